"""How a recipe differs from the one a run began with, and what may differ when it goes on from its best checkpoint."""

from typing import Any

import yaml

from cxrsynth.errors import RecipeError

# Everything else decides what was learned and measured so far.
_EVALUATED = ("rlcf", "ddpo")  # stages that keep their best checkpoint
MAY_CHANGE = ("iterations", "train.learning_rate", "train.ace_learning_rate", "train.schedule")


def changes(before: str, now: str) -> dict[str, list[Any]]:
    """Dotted key -> [old value, new value] of all that differs between two resolved recipes; None for a missing key.

    Raises:
        RecipeError: if `before` is no YAML.
    """
    try:
        old = _flat(yaml.safe_load(before))
    except yaml.YAMLError:
        raise RecipeError(
            "recipe.yaml of the run: not what a run wrote there\n  restore it, or choose a new folder"
        ) from None
    new = _flat(yaml.safe_load(now))
    return {key: [old.get(key), new.get(key)] for key in {**old, **new} if old.get(key) != new.get(key)}


def check_changes(before: str, now: str, stage: int) -> None:
    """Refuse a recipe with which a run cannot go on from the best checkpoint of a stage.

    Raises:
        RecipeError: if nothing differs, or something that must not.
    """
    found = changes(before, now)
    kinds = [one.get("stage") for one in yaml.safe_load(now).get("stages", [])]
    if kinds[stage : stage + 1] and kinds[stage] not in _EVALUATED:
        raise RecipeError(
            f"--from-best: stage {stage} is {kinds[stage]}, which keeps no best checkpoint\n"
            "  choose a new folder for other settings, or leave out --from-best to resume"
        )
    if not found:
        raise RecipeError(
            "--from-best: the recipe is the one of the run, which would repeat itself\n"
            f"  expected: another value of {', '.join(MAY_CHANGE)}; leave out --from-best to resume"
        )
    refused = [key for key in found if not _allowed(key, stage)]
    if refused:
        shown = "\n".join(f"  {key}: {found[key][1]}, the run has {found[key][0]}" for key in refused[:6])
        raise RecipeError(
            f"--from-best: more differs than may\n{shown}\n"
            f"  expected: changes of {', '.join(MAY_CHANGE)} of stage {stage} or later, counted from 0"
        )


def _allowed(key: str, stage: int) -> bool:
    parts = key.split(".", 2)
    return len(parts) == 3 and parts[0] == "stages" and int(parts[1]) >= stage and parts[2] in MAY_CHANGE


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    """Dotted key -> plain value; an empty section is a value."""
    if not isinstance(value, dict | list) or not value:
        return {path: value}
    parts = value.items() if isinstance(value, dict) else enumerate(value)
    return {
        key: one for name, part in parts for key, one in _flat(part, f"{path}.{name}" if path else str(name)).items()
    }
