"""What a reason for rejection means, in words; and what was measured of an image that a check rejected."""

from collections.abc import Mapping
from typing import Any

from cxrsynth.auditing.page.figures import figure
from cxrsynth.metrics.quality.checks import CHECKS

_CHECK = "check: "
_FIXED = {
    "duplicate": "the same picture as an earlier image of the set, or nearly",
    "memorized": "more similar to a real image than images of different patients are to each other",
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
    if reason.endswith(" of reference"):
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


def measured(reason: str, image: Mapping[str, Any]) -> str:
    """What a check measured of an image, and its limit; empty for other reasons."""
    name = reason.removeprefix(_CHECK)
    value = image.get(f"check_{name}")
    if not reason.startswith(_CHECK) or name not in CHECKS or value is None:
        return ""
    check = CHECKS[name]
    least = "at least" if check.fails == "below" else "at most"
    return f"{figure(value)}, {least} {figure(check.threshold)}"
