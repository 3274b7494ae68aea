"""`--set key=value`: a dotted path changes one value of the resolved recipe and nothing else.

Overrides are applied to the recipe as it was written, so that defaults which depend on other keys still follow them.
Where a path leads into what the recipe left out or abbreviated (`ace: true`), that is written out first.
"""

from collections.abc import Callable
from copy import copy
from typing import Any

from pydantic import BaseModel

from cxrsynth.errors import RecipeError
from cxrsynth.recipe.schema import (
    STAGES,
    AceSection,
    EvaluationSection,
    Recipe,
    Section,
    TrainSection,
)


def _ace(value: Any) -> Any:
    section = TrainSection(ace=True).ace_section if value is True else None
    return AceSection() if value is False else section or value


def _evaluator(value: Any) -> Any:
    return EvaluationSection(evaluator=value).evaluators if isinstance(value, str) else value


# Keys whose value may be an abbreviation of a section.
_ABBREVIATED: dict[tuple[type[Section], str], Callable[[Any], Any]] = {
    (TrainSection, "ace"): _ace,
    (EvaluationSection, "evaluator"): _evaluator,
}


def override(data: dict[str, Any], key: str, value: Any) -> None:
    """Set one value in the recipe `data`, in place.

    Args:
        data: a recipe as it was written.
        key: as `stages.0.iterations`; positions in lists are counted from 0.
        value: as YAML gives it. Whether the recipe may have it is checked with the whole recipe.

    Raises:
        RecipeError: if the path leads nowhere.
    """
    names = key.split(".")
    place: Any = data
    section: type[BaseModel] | None = Recipe
    for depth, name in enumerate(names[:-1]):
        path = ".".join(names[: depth + 1])
        if isinstance(place, list):
            at = _index(place, name, key)
            place[at] = copy(place[at])  # YAML's anchors put one section into several places
            place = place[at]
            section = STAGES.get(str(place.get("stage"))) if isinstance(place, dict) else None
        else:
            place[name] = copy(_written_out(section, name, place.get(name)))
            place, section = place[name], _inner(section, name)
        if not isinstance(place, dict | list):
            raise RecipeError(f"--set {key}: {path} is {place!r}, which has no keys\n  expected: a section or a list")
    if isinstance(place, list):
        place[_index(place, names[-1], key)] = value
    else:
        place[names[-1]] = value


def _index(place: list[Any], name: str, key: str) -> int:
    if not name.isdecimal() or int(name) >= len(place):
        raise RecipeError(f"--set {key}: {name!r} is not a position in a list of {len(place)}, counted from 0")
    return int(name)


def _written_out(section: type[BaseModel] | None, name: str, value: Any) -> Any:
    """The value of a key with what it stands for: of a missing key the default, of an abbreviation the section."""
    if isinstance(value, dict | list):
        return value
    if section is not None:
        field = section.model_fields.get(name)
        if value is None and field is not None and not field.is_required():
            value = field.get_default(call_default_factory=True)
        value = next((full(value) for (of, key), full in _ABBREVIATED.items() if (of, key) == (section, name)), value)
    return {} if value is None else _plain(value)


def _plain(value: Any) -> Any:
    """As YAML would give it; in a section, what differs from its defaults."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_defaults=True)
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, tuple) else value


def _inner(section: type[BaseModel] | None, name: str) -> type[BaseModel] | None:
    """The section that a key holds, None for a key without one."""
    field = None if section is None else section.model_fields.get(name)
    if field is None:
        return None
    kinds = (field.annotation, *getattr(field.annotation, "__args__", ()))
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)), None)
