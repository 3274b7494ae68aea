"""Turns the validation errors of a recipe into messages for people."""

import copy
import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from cxrsynth.console import counted
from cxrsynth.recipe.schema import (
    STAGES,
    AceSection,
    AdvantageSection,
    EvaluationSection,
    Recipe,
    RewardSection,
    Section,
    SftStage,
    UpdateSection,
)

# Keys of earlier versions: section, old name, new name.
RENAMED_KEYS: tuple[tuple[type[Section], str, str], ...] = (
    (AceSection, "explore", "exploration_std"),
    (AdvantageSection, "least", "min_count"),
    (UpdateSection, "updates", "num_minibatches"),
    (UpdateSection, "timesteps", "timestep_fraction"),
    (SftStage, "unconditional", "cond_dropout_prob"),
    (EvaluationSection, "judge", "evaluator"),
    (RewardSection, "spread_weight", "std_weight"),
)


def explain(error: ValidationError, data: Mapping[str, Any]) -> Iterator[str]:
    """One paragraph per error in the recipe `data`: where, what was found, what was expected."""
    all_errors = error.errors(include_url=False)
    found = [one for one in all_errors if not _is_consequence(one, all_errors)]
    for one in found:
        yield f"{_where(one['loc'], data)}: {_what(one)}"
    for place in sorted({one["loc"][1] for one in found if one["loc"][:1] == ("stages",) and len(one["loc"]) > 3}):
        yield from _hidden([one for one in found if one["loc"][:2] == ("stages", place)], data)


def _hidden(errors: Sequence[Any], data: Mapping[str, Any]) -> Iterator[str]:
    """What is contradictory in a stage beside its unknown keys: with those, pydantic looks no further.

    Nothing where the stage has errors of another kind. Without the values that have them it would be another stage.
    """
    if any(one["type"] != "extra_forbidden" for one in errors):
        return
    _, place, kind = errors[0]["loc"][:3]
    stage = copy.deepcopy(data["stages"][place])
    for one in errors:
        section: Any = stage
        for step in one["loc"][3:-1]:
            section = section.get(step, section) if isinstance(section, dict) else section
        if isinstance(section, dict):
            section.pop(one["loc"][-1], None)
    try:
        STAGES[kind].model_validate(stage)
    except ValidationError as error:
        for one in error.errors(include_url=False):
            if one["type"] == "value_error":
                yield f"{_where(('stages', place, kind, *one['loc']), data)}: {_what(one)}"


def renamed_keys(error: ValidationError) -> list[str]:
    """The errors that are keys of an earlier version, as `explore is now exploration_std`."""
    found = [one["loc"] for one in error.errors(include_url=False) if one["type"] == "extra_forbidden"]
    return [f"{loc[-1]} is now {new}" for loc in found if (new := _new_name(loc))]


def _what(one: Any) -> str:
    """What was found and what was expected."""
    match one["type"]:
        case "extra_forbidden":
            return _unknown_key(one["loc"])
        case "missing":
            return "missing"
        case "union_tag_not_found":
            return f"has no stage\n  expected: stage: {_kinds()}"
        case "union_tag_invalid":
            return f"stage {one['ctx']['tag']!r}\n  expected: {_kinds()}"
        case "value_error":
            return str(one["ctx"]["error"])
        case "too_short":
            return (
                f"found {counted(one['ctx']['actual_length'], 'item')}\n  expected: at least {one['ctx']['min_length']}"
            )
        case kind:
            found = one["input"]
            shown = repr(found) if isinstance(found, str | int | float | bool) else what_it_is(found)
            return f"found {shown}\n  expected: {_KINDS.get(kind) or one['msg'].removeprefix('Input should be ')}"


# What pydantic expects, in the words of YAML.
_KINDS = {
    "string_type": "a text",
    "tuple_type": "a list",
    "dict_type": "a section",
    "model_type": "a section",
    "model_attributes_type": "a section",
}


def what_it_is(value: object) -> str:
    """The kind of a YAML value, in words."""
    match value:
        case None:
            return "nothing"
        case dict():
            return "a section"
        case list():
            return "a list"
        case str():
            return "a text"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case _:
            return "a date or another value"


def _kinds() -> str:
    """The values of `stage`."""
    *others, last = STAGES
    return f"{', '.join(others)} or {last}"


def _unknown_key(loc: tuple[int | str, ...]) -> str:
    """The new name of a renamed key; for any other, the known keys and the closest of them."""
    if new := _new_name(loc):
        return f"renamed to {new}"
    section = _section(loc)
    known = sorted(section.model_fields) if section else []
    close = difflib.get_close_matches(str(loc[-1]), known, n=1)
    meant = f"\n  did you mean: {close[0]}" if close else ""
    return f"unknown key\n  known keys: {', '.join(known)}{meant}"


def _new_name(loc: tuple[int | str, ...]) -> str | None:
    """The new name of a key of an earlier version; None for any other key."""
    section = _section(loc)
    return next((new for of, old, new in RENAMED_KEYS if of is section and old == loc[-1]), None)


def _is_consequence(one: Any, others: Sequence[Any]) -> bool:
    """Whether an error only says that the value is not of the other allowed kind, or follows from another error."""
    kind, place = one["type"], one["loc"][:-1]
    beside = [o for o in others if o is not one and o["loc"][: len(place)] == place and len(o["loc"]) > len(place)]
    if kind == "bool_type" and isinstance(one["input"], dict):
        return len(others) > 1
    if kind == "model_type":
        return any(o["type"] == "bool_type" and o["loc"][:-1] == place for o in beside)
    if kind == "path_type":  # of a path or a number
        return any(o["loc"][len(place)] == _NUMBER for o in beside)
    if kind == "string_type" and isinstance(one["input"], list | dict):  # of a text, or a list or section of texts
        return any(str(o["loc"][len(place)]).startswith(_SEVERAL) for o in beside)
    if kind in ("tuple_type", "dict_type") and str(one["loc"][-1]).startswith(_SEVERAL):
        return any(o["type"] == "string_type" for o in beside)
    return kind == "too_short" and any(o is not one and o["loc"][: len(one["loc"])] == one["loc"] for o in others)


# How pydantic calls members of a union.
_NUMBER, _SEVERAL = "constrained-int", ("tuple[", "dict[")


def _where(loc: tuple[int | str, ...], data: Any) -> str:
    """The path as the file has it: pydantic adds the union member it tried, which is left out."""
    names: list[str] = []
    place = data
    for step in loc:
        if isinstance(place, list) and isinstance(step, int) and step < len(place):
            place = place[step]
        elif isinstance(place, dict):
            if step not in place and (step != loc[-1] or step in STAGES or "[" in str(step)):
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
        section = _step_into(section, step)
    if not isinstance(section, type):  # a section that may be left out
        section = _step_into(section, "")
    return section if isinstance(section, type) and issubclass(section, BaseModel) else None


def _step_into(section: Any, step: int | str) -> Any:
    """The section, or annotation of a key, one step further down."""
    if step in STAGES:
        return STAGES[str(step)]
    if isinstance(section, type) and issubclass(section, BaseModel):
        if step in section.model_fields:
            return section.model_fields[str(step)].annotation
        return section
    for inner in getattr(section, "__args__", ()):
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            return inner
    return section
