"""Reads a recipe: YAML, `--set` overrides, paths relative to the recipe."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from cxrsynth.errors import RecipeError
from cxrsynth.recipe.messages import explain, renamed_keys, what_it_is
from cxrsynth.recipe.override import override
from cxrsynth.recipe.schema import DistillStage, Recipe, RewardSection, Section, SftStage, Stage
from cxrsynth.rewards.backends import FAMILIES
from cxrsynth.settings import PACKAGED_MODELS, parse_lora

AnySection = TypeVar("AnySection", bound=Section)


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice; plain YAML would silently use the second."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Like SafeLoader's, with the check. Merged sections (`<<`) are not expanded yet here."""
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    found = f"key {key.value!r} is given twice"
                    raise yaml.constructor.ConstructorError("in a section", node.start_mark, found, key.start_mark)
                seen.add((key.tag, key.value))
        return node


def load_recipe(path: Path, *, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, apply `--set key=value` overrides, and make its paths absolute.

    Raises:
        RecipeError: naming every unknown key, wrong type and bad value at once.
    """
    data = _read(path)
    given = [_override(data, one) for one in overrides]

    def where(message: str) -> str:
        """Whether to look in the file or on the command line."""
        key = message.partition(":")[0]
        return "--set" if any(f"{key}.".startswith(f"{one}.") for one in given) else f"{path}:"

    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        raise RecipeError("\n".join(f"{where(message)} {message}" for message in explain(error, data))) from None
    try:
        return _resolve(recipe, path.parent)
    except RecipeError as error:
        raise RecipeError(f"{where(str(error))} {error}") from None


def recipe_schema() -> str:
    """JSON Schema of a recipe, for editors; the content of recipes/recipe.schema.json."""
    return json.dumps(Recipe.model_json_schema(), indent=1) + "\n"


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML, with every default written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


def keys_of_earlier_version(resolved: str) -> list[str]:
    """Keys of a resolved recipe that have a new name now, as `explore is now exploration_std`."""
    try:
        Recipe.model_validate(yaml.safe_load(resolved))
    except ValidationError as error:
        return renamed_keys(error)
    except yaml.YAMLError:
        pass
    return []


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
    except (yaml.YAMLError, ValueError, RecursionError):  # an impossible date or number; nested far too deep
        raise RecipeError(f"{path}: not valid YAML\n  expected: a recipe like those under recipes/") from None
    if not isinstance(data, dict):
        raise RecipeError(f"{path}: found {what_it_is(data)}, expected sections such as reports: and stages:")
    return data


def _override(data: dict[str, Any], given: str) -> str:
    """Apply `stages.0.iterations=5`: a dotted path, with list positions counted from 0, and a YAML value.

    Returns:
        The path.
    """
    key, sign, text = given.partition("=")
    if not sign or not all(key.split(".")):
        raise RecipeError(f"--set {given}: expected key=value, for example stages.0.iterations=5")
    try:
        value = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise RecipeError(f"--set {key}: the value is not valid YAML") from None
    override(data, key, value)
    return key


def _resolve(recipe: Recipe, folder: Path) -> Recipe:
    """Make paths absolute, and names of models and reward models that are folders beside the recipe."""

    def path(given: Any) -> Any:
        return (folder / given).resolve() if isinstance(given, Path) else given

    def name(given: str) -> str:
        built_in = given in (*PACKAGED_MODELS, *FAMILIES)
        return str((folder / given).resolve()) if (folder / given).is_dir() and not built_in else given

    def beside(given: Path) -> Path:
        return (folder / given).resolve() if (folder / given).exists() else given  # else a hub id, or nowhere

    def lora(given: str) -> str:
        if (folder / given).exists():
            return str((folder / given).resolve())
        found = parse_lora(given)
        return f"{beside(found.path)}={found.scale!r}"

    def features(given: str) -> str:
        kind, colon, rest = given.partition(":")
        return f"{kind}:{name(rest)}" if colon else name(given)

    def reward(given: RewardSection, key: str) -> RewardSection:
        found = tuple(map(name, given.backends))
        if len(set(found)) < len(found):
            named = ", ".join(given.backends)
            raise RecipeError(f"{key}.backend: {named} name one reward model twice\n  expected: different ones")
        return _with(given, backend=found if len(found) > 1 else found[0])

    def stage(place: int, given: Stage) -> Stage:
        if isinstance(given, SftStage | DistillStage):
            return _with(given, data=path(given.data), table=path(given.table))
        rewards = {key: reward(one, f"stages.{place}.rewards.{key}") for key, one in given.rewards.items()}
        return _with(given, rewards=rewards)

    reports, evaluation, evaluator = recipe.reports, recipe.evaluation, recipe.evaluation.evaluator
    return _with(
        recipe,
        model=_with(
            recipe.model,
            checkpoint=name(recipe.model.checkpoint),
            unet=recipe.model.unet and beside(recipe.model.unet),
            vae=recipe.model.vae and beside(recipe.model.vae),
            scheduler=recipe.model.scheduler and beside(recipe.model.scheduler),
            lora=tuple(map(lora, recipe.model.lora)),
            embeddings=tuple(map(beside, recipe.model.embeddings)),
        ),
        reports=_with(
            reports,
            table=path(reports.table),
            held_out=path(reports.held_out),
            test=path(reports.test),
            labeler=reports.labeler and beside(reports.labeler),
        ),
        stages=tuple(stage(place, one) for place, one in enumerate(recipe.stages)),
        evaluation=_with(
            evaluation,
            reference=path(evaluation.reference),
            evaluator=name(evaluator) if isinstance(evaluator, str) else {k: name(v) for k, v in evaluator.items()},
            features=features(evaluation.features),
        ),
    )


def _with(section: AnySection, **changed: Any) -> AnySection:
    """A copy of the section with some keys changed."""
    return section.model_copy(update=changed)
