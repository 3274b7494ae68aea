"""The recipe reference of the documentation: made from the schema, complete."""

from collections.abc import Iterator
from typing import Any, get_args

from cxrsynth.recipe.reference import recipe_reference
from cxrsynth.recipe.schema import Recipe, Section


def sections(annotation: Any) -> Iterator[type[Section]]:
    """Every section that a recipe may contain, found through type annotations."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
        for field in annotation.model_fields.values():
            yield from sections(field.annotation)
    for inner in get_args(annotation):
        yield from sections(inner)


def test_every_key_has_a_row_with_a_description() -> None:
    tables = recipe_reference().split("### ")[1:]
    every = set(sections(Recipe))
    assert len(tables) == len(every)
    for section in every:
        (table,) = [one for one in tables if f"\n{section.__doc__}\n" in one]
        rows = [line for line in table.splitlines() if line.startswith("| `")]
        assert {row.split("`")[1] for row in rows} == set(section.model_fields)
        for row in rows:
            *_, description, end = row.replace("\\|", "/").split("|")
            assert description.strip()
            assert end == ""


def test_values_bounds_and_defaults_are_those_of_the_schema() -> None:
    reference = recipe_reference()
    for row in (
        "| `held_out` | path or integer ≥ 1 | `100` |",
        "| `table` | path | required |",
        "| `device` | `auto`, `cpu`, `cuda`, `mps` | `auto` |",
        "| `ace` | true or false or section | `true` |",
        "| `eta` | number > 0 and ≤ 1 |  |",
        "| `strength` | number > 0 | `1.0` |",
        "| `seed` | integer ≥ 0 and < 2^62 | `0` |",
        "| `stage` | `ddpo` | required |",
        "| `rewards` | name: section |  |",
    ):
        assert row in reference, row


def test_sections_are_named_by_their_place() -> None:
    headings = [line for line in recipe_reference().splitlines() if line.startswith("### ")]
    assert headings[:3] == ["### Top level", "### `model`", "### `reports`"]
    assert {"### `stages (rlcf).train.ace`", "### `stages (rlcf).rewards.NAME`", "### `stages (sft).train`"} <= set(
        headings
    )
    assert len(set(headings)) == len(headings)
