"""What a reason for rejection means, in words; and what was measured of an image that it rejects."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cxrsynth.auditing.page.figures import figure
from cxrsynth.metrics.memorization.duplicates import NEAR_DUPLICATE
from cxrsynth.metrics.quality.checks import CHECKS

_CHECK, _AT_LEAST, _OF_REFERENCE = "check: ", "at least", " of reference"
_FIXED = {
    "duplicate": "the same picture as another image of the set, or nearly (correlation of fine detail with the most"
    f" similar of its duplicates: {figure(NEAR_DUPLICATE)} or more)",
    "memorized": "more similar to a real image than images of different patients are to each other",
    "repeats memorized": "the same picture as an image that is `memorized`, or nearly: a copy, too, though its own"
    " similarity to the real image is lower",
}


def meaning(reason: str) -> str:
    """A reason in words; empty for one that is not known."""
    if reason.startswith(_CHECK):
        check = CHECKS.get(reason.removeprefix(_CHECK))
        if check is None:
            return ""
        return f"{check.meaning} ({check.unit}: {check.fails} {figure(check.threshold)})"
    if reason in _FIXED:
        return _FIXED[reason]
    reward, _, limit = reason.partition("<")
    if _is_number(limit):
        return f"{reward} is worse than --min {reward}={limit}"
    if reason.endswith(_OF_REFERENCE):
        return "worse than that share of the real images (--beat-reference)"
    if reason.startswith("outside best "):
        return "not among the best of its finding (--keep-fraction)"
    return ""


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Limit:
    """What of an image is held against a limit: a column of scores.parquet."""

    column: str
    words: str  # before the limit, of images that pass
    value: float


def limits(summary: Mapping[str, Any]) -> dict[str, Limit]:
    """The limit behind each reason that has one."""
    found = {
        f"{_CHECK}{name}": Limit(f"check_{name}", _AT_LEAST if check.fails == "below" else "at most", check.threshold)
        for name, check in CHECKS.items()
    }
    found["duplicate"] = Limit("duplicate_similarity", "below", NEAR_DUPLICATE)
    if searched := summary["memorization"] or summary.get("copies"):
        found["memorized"] = Limit("nearest_real_similarity", "at most", searched["threshold"])
    for one in summary["thresholds"] or ():
        limit = Limit(f"reward_{one['on']}", _AT_LEAST, one["value"])
        if one["rule"] == _AT_LEAST:
            found[f"{one['on']}<{one['value']}"] = limit
        elif one["rule"].endswith(_OF_REFERENCE):
            found[f"{one['on']} below {one['rule']}"] = limit
    return found


def measured(reason: str, image: Mapping[str, Any], limits: Mapping[str, Limit]) -> str:
    """What was measured of an image that a reason rejects, and the limit; empty where there is none."""
    limit = limits.get(reason)
    value = None if limit is None else image.get(limit.column)
    return "" if limit is None or value is None else f"{figure(value)}, {limit.words} {figure(limit.value)}"
