"""What is wrong with a recipe, in words for people."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from cxrsynth.recipe.schema import (
    AceSection,
    AdvantageSection,
    DdpoStage,
    EvaluationSection,
    Recipe,
    RlcfStage,
    SftStage,
    UpdateSection,
    _Section,
)

# Keys of earlier versions: section, old name, new name.
RENAMED_KEYS: tuple[tuple[type[_Section], str, str], ...] = (
    (AceSection, "explore", "exploration_std"),
    (AdvantageSection, "least", "min_count"),
    (UpdateSection, "updates", "num_minibatches"),
    (UpdateSection, "timesteps", "timestep_fraction"),
    (SftStage, "unconditional", "cond_dropout_prob"),
    (EvaluationSection, "judge", "evaluator"),
)
_TAGS: dict[str, type[_Section]] = {"rlcf": RlcfStage, "ddpo": DdpoStage, "sft": SftStage}


def _told(error: ValidationError, data: Mapping[str, Any]) -> Iterator[str]:
    """One paragraph an error: where, what was found, what was expected."""
    found_errors = error.errors(include_url=False)
    for one in found_errors:
        if _is_beside(one, found_errors):
            continue
        where = _where(one["loc"], data)
        match one["type"]:
            case "extra_forbidden":
                section = _section(one["loc"])
                if renamed := _renamed(section, str(one["loc"][-1])):
                    yield f"{where}: renamed to {renamed}"
                    continue
                known = sorted(section.model_fields) if section else []
                close = difflib.get_close_matches(str(one["loc"][-1]), known, n=1)
                meant = f"\n  did you mean: {close[0]}" if close else ""
                yield f"{where}: unknown key\n  known keys: {', '.join(known)}{meant}"
            case "missing":
                yield f"{where}: missing"
            case "union_tag_not_found":
                yield f"{where}: has no stage\n  expected: stage: sft, rlcf or ddpo"
            case "union_tag_invalid":
                yield f"{where}: stage {one['ctx']['tag']!r}\n  expected: sft, rlcf or ddpo"
            case "value_error":
                yield f"{where}: {one['ctx']['error']}"
            case _:
                found = one["input"]
                shown = repr(found) if isinstance(found, str | int | float | bool | None) else type(found).__name__
                yield f"{where}: found {shown}\n  expected: {one['msg'].removeprefix('Input should be ')}"


def _is_beside(one: Any, others: Sequence[Any]) -> bool:
    """Whether an error only says that the other kind of value was not given, or follows from another."""
    other_kind = {"bool_type": dict, "path_type": int}.get(one["type"])
    if other_kind is not None and isinstance(one["input"], other_kind):
        return len(others) > 1
    if one["type"] == "model_type":
        return any(o["type"] == "bool_type" and o["loc"][:-1] == one["loc"][:-1] for o in others)
    return one["type"] == "too_short" and any(o is not one and o["loc"][:1] == one["loc"] for o in others)


def _where(loc: tuple[int | str, ...], data: Any) -> str:
    """The path as it is written in the file: pydantic also names the member of a union it tried."""
    names: list[str] = []
    place = data
    for step in loc:
        if isinstance(place, list) and isinstance(step, int) and step < len(place):
            place = place[step]
        elif isinstance(place, dict):
            if step not in place and (step != loc[-1] or step in _TAGS or "[" in str(step)):
                continue
            place = place.get(str(step))
        else:
            continue
        names.append(str(step))
    return ".".join(names) or "recipe"


def _section(loc: tuple[int | str, ...]) -> type[BaseModel] | None:
    """The section that holds the key at `loc`."""
    section: Any = Recipe
    for step in loc[:-1]:
        section = _field(section, step)
    return section if isinstance(section, type) and issubclass(section, BaseModel) else None


def _renamed(section: type[BaseModel] | None, key: str) -> str | None:
    """The new name of a key of an earlier version; None for any other key."""
    return next((new for of, old, new in RENAMED_KEYS if of is section and old == key), None)


def _field(section: Any, step: int | str) -> Any:
    """The section one step further down."""
    if step in _TAGS:
        return _TAGS[str(step)]
    if isinstance(section, type) and issubclass(section, BaseModel):
        if step in section.model_fields:
            return section.model_fields[str(step)].annotation
        return section
    for inner in getattr(section, "__args__", ()):
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            return inner
    return section
