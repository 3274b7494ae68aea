"""A recipe read: YAML, overrides, relative paths."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from cxrsynth.errors import RecipeError
from cxrsynth.recipe.messages import _told
from cxrsynth.recipe.schema import Recipe, SftStage, Stage
from cxrsynth.rewards.backends import FAMILIES


class _Loader(yaml.SafeLoader):
    """Safe YAML that does not let the second of two equal keys win in silence."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """As SafeLoader's; a key that is there twice is an error. Here what is merged is not yet put in."""
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    told = f"key {key.value!r} is there twice"
                    raise yaml.constructor.ConstructorError("in a section", node.start_mark, told, key.start_mark)
                seen.add((key.tag, key.value))
        return node


def load_recipe(path: Path, *, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply `--set key=value` overrides; paths in it are relative to the recipe's folder.

    Raises:
        RecipeError: naming every unknown key, wrong type and bad value at once.
    """
    data = _read(path)
    for given in overrides:
        _override(data, given)
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        raise RecipeError("\n".join(f"{path}: {told}" for told in _told(error, data))) from None
    return _resolved(recipe, path.parent)


def recipe_schema() -> str:
    """JSON Schema of a recipe, for editors."""
    return json.dumps(Recipe.model_json_schema(), indent=1) + "\n"


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML; every default is written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


def _read(path: Path) -> dict[str, Any]:
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}\n  expected: a YAML file") from None
    except UnicodeDecodeError:
        raise RecipeError(f"{path}: not UTF-8 text\n  expected: a YAML file") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise RecipeError(f"{path}: line {line}: not valid YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError):  # a date or number that is none; far too deep
        raise RecipeError(f"{path}: not valid YAML\n  expected: a recipe, as those under recipes/") from None
    if not isinstance(data, dict):
        raise RecipeError(f"{path}: holds {type(data).__name__}, expected sections such as reports: and stages:")
    return data


def _override(data: dict[str, Any], given: str) -> None:
    """`stages.0.iterations=5`: a dotted path, numbers for places in lists; the value is read as YAML."""
    key, sign, text = given.partition("=")
    names = key.split(".")
    if not sign or not all(names):
        raise RecipeError(f"--set {given}: expected key=value, as stages.0.iterations=5")
    try:
        value = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise RecipeError(f"--set {key}: the value is not valid YAML") from None
    place: Any = data
    for name in names[:-1]:
        place = _step_into(place, name, given)
    if isinstance(place, list):
        place[_index(place, names[-1], given)] = value
    elif isinstance(place, dict):
        place[names[-1]] = value
    else:
        raise RecipeError(f"--set {given}: {'.'.join(names[:-1])} holds no sections")


def _step_into(place: Any, name: str, given: str) -> Any:
    if isinstance(place, list):
        return place[_index(place, name, given)]
    if isinstance(place, dict):
        if not isinstance(place.get(name), dict | list):
            place[name] = {}
        return place[name]
    raise RecipeError(f"--set {given}: {name} is inside a plain value")


def _index(place: list[Any], name: str, given: str) -> int:
    if not name.isdecimal() or int(name) >= len(place):
        raise RecipeError(f"--set {given}: {name!r} is no place in a list of {len(place)}, counted from 0")
    return int(name)


def _resolved(recipe: Recipe, folder: Path) -> Recipe:
    """Paths made absolute; so are names of models and judges where they are folders beside the recipe."""

    def absolute(path: Any) -> Any:
        return (folder / path).resolve() if isinstance(path, Path) else path

    def beside(name: str) -> str:
        own = name in ("nano", *FAMILIES)
        return str((folder / name).resolve()) if (folder / name).is_dir() and not own else name

    def resolved(stage: Stage) -> Stage:
        if isinstance(stage, SftStage):
            return stage.model_copy(update={"data": absolute(stage.data), "table": absolute(stage.table)})
        rewards = {
            name: section.model_copy(update={"backend": beside(section.backend)})
            for name, section in stage.rewards.items()
        }
        return stage.model_copy(update={"rewards": rewards})

    def features(name: str) -> str:
        kind, colon, rest = name.partition(":")
        return f"{kind}:{beside(rest)}" if colon else beside(name)

    reports, evaluation, evaluator = recipe.reports, recipe.evaluation, recipe.evaluation.evaluator
    evaluators = beside(evaluator) if isinstance(evaluator, str) else {k: beside(v) for k, v in evaluator.items()}
    return recipe.model_copy(
        update={
            "reports": reports.model_copy(
                update={"table": absolute(reports.table), "held_out": absolute(reports.held_out)}
            ),
            "evaluation": evaluation.model_copy(
                update={
                    "reference": absolute(evaluation.reference),
                    "evaluator": evaluators,
                    "features": features(evaluation.features),
                }
            ),
            "stages": tuple(map(resolved, recipe.stages)),
            "model": recipe.model.model_copy(update={"checkpoint": beside(recipe.model.checkpoint)}),
        }
    )
