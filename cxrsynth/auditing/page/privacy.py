"""What was tested of privacy, what that would have found, and what it cannot find: one row for each kind of test."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any

from cxrsynth.metrics.membership.attacks import ATTACKS

Summary = Mapping[str, Any]
_NORMAL_95 = 1.96


@dataclass(frozen=True, slots=True)
class Tested:
    """A test: what was done, or why it was not; what it would have found, None where it was not done; its limit."""

    name: str
    section: str  # of the page, where the numbers come from
    tested: str
    would_find: str | None
    cannot_find: str


def privacy_tests(summary: Summary) -> list[Tested]:
    """The three tests of an audit by its summary, done or not."""
    return [_copies(summary), _patients(summary), _members(summary)]


def shares(memorization: Mapping[str, Any] | None) -> dict[str, float]:
    """Share of the planted near-duplicates that the search found, by kind."""
    sensitivity = (memorization or {}).get("sensitivity") or {}
    return {name: one["caught"] / one["of"] for name, one in sensitivity.items() if one["of"]}


def reason(summary: Summary, part: str, otherwise: str) -> str:
    """Why a part was not measured, in one line."""
    return str(summary["not_measured"].get(part) or otherwise).replace("\n ", ";")


def _against(summary: Summary) -> str:
    real = (summary["reference"] or {}).get("images")
    return f"each of {summary['input']['images']:,} images against {'the' if real is None else f'{real:,}'} real ones"


def _copies(summary: Summary) -> Tested:
    memorization = summary["memorization"]
    cannot = "copies of images that are not in the reference, and copies altered in ways that were not planted"
    if memorization is None:
        why = reason(summary, "memorization", "no reference of real images was given")
        if summary.get("copies") is not None:
            return Tested(
                "Copies of real images",
                "memorization",
                f"{_against(summary)}, for copies alone; not tested for near-duplicates: {why}",
                "the same picture, also in another format, size or exposure, or moved a little; how many is unknown",
                f"near-duplicates that were changed further, and {cannot}",
            )
        return Tested("Copies of real images", "memorization", f"not tested: {why}", None, cannot)
    found = shares(memorization)
    would = "no copies were planted, so this is unknown"
    if found:
        would = f"{min(found.values()):.0%} to {max(found.values()):.0%} of planted copies, depending on the kind"
    return Tested("Copies of real images", "memorization", _against(summary), would, cannot)


def _patients(summary: Summary) -> Tested:
    found = summary.get("reidentification")
    cannot = "patients who are not in the reference, and those whom only a better verifier recognizes"
    if not found:
        why = reason(summary, "reidentification", "no reference of real images was given")
        return Tested("Patients recognized", "reidentification", f"not tested: {why}", None, cannot)
    again = found["reference"]["found"]
    would = "no patient has two images in the reference, so this is unknown"
    if again:
        would = f"{again['caught'] / again['of']:.0%} of the patients with another image in the reference"
    return Tested("Patients recognized", "reidentification", _against(summary), would, cannot)


def _members(summary: Summary) -> Tested:
    membership = summary.get("membership")
    cannot = "what stronger attacks find: with models trained for comparison, more passes, or on the text encoder"
    if not membership:
        why = reason(summary, "membership", "no training images of the model (--model, --members, --non-members)")
        return Tested("The model's training images", "membership", f"not tested: {why}", None, cannot)
    members, others = (membership[name]["images"] for name in ("members", "non_members"))
    attacks = sum(name in ATTACKS for name in membership["attacks"])
    tested = f"{attacks} attacks on {membership['model']['name']}: {members:,} members, {others:,} others"
    return Tested(
        "The model's training images",
        "membership",
        tested,
        _smallest(*(membership[name]["patients"] for name in ("members", "non_members"))),
        cannot,
    )


def _smallest(members: int, others: int) -> str:
    """The least AUC whose interval lies above guessing, by the number of patients: half of them are tested.

    Not by the interval that was found: near 1 it is narrow, though smaller leaks would not have shown. The variance is
    that of the rank sum where nothing distinguishes the two sides (Mann and Whitney, 1947).
    """
    tested = [max(1.0, patients / 2) for patients in (members, others)]
    least = 0.5 + _NORMAL_95 * sqrt((sum(tested) + 1) / (12 * tested[0] * tested[1]))
    if least >= 1:
        return "nothing for certain: with so few images, the interval of any AUC reaches down to guessing"
    return (
        f"a leak that gives all attacks together an AUC of about {least:.2f} or more; the interval of a smaller one"
        " would hold 0.5, which is guessing"
    )
