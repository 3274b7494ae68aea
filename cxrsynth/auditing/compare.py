"""`--compare`: the numbers of this audit beside those of another, before and after tuning, say."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import Any

from cxrsynth.auditing.fail_under import Metric, measured_interval
from cxrsynth.auditing.folder import SUMMARY
from cxrsynth.errors import ShardError
from cxrsynth.runtime.files import read_json

Summary = Mapping[str, Any]

OPTION = "--compare"
_LONGEST = 1 << 28  # bytes
_EXPECTED = "expected the summary.json of another audit, or its folder"
_COUNTS = ("images", "kept", "kept_fraction")
_SIZED = ("frechet", "precision", "recall", "density", "coverage")  # depend on the number of images
_FEATURES, _REFERENCE, _SIZE = "features", "reference", "number of images"
_LABELER, _MODEL, _VERIFIER = "labeler", "model of utility", "verifier"


@dataclass(frozen=True, slots=True)
class Compared:
    """A metric in both audits, each with value, low and high (None where there is no interval).

    `limit` says which way is good, `at least` or `at most`; `apart` whether the intervals do not meet, None where one
    of the two has none.
    """

    metric: str
    this: dict[str, float | None]
    other: dict[str, float | None]
    limit: str
    apart: bool | None


def read_summary(path: Path, known: Mapping[str, Metric]) -> dict[str, Any]:
    """The summary of another audit: its summary.json, or the folder that holds it.

    Args:
        path: of it.
        known: metrics that will be compared: the summary is compared with itself, so that damage shows before hours of
            scoring.

    Raises:
        ShardError: if it cannot be read, or is no summary.
    """
    file = path / SUMMARY if path.is_dir() else path
    try:
        found = read_json(file, longest=_LONGEST)
    except OSError as error:
        raise ShardError(f"{OPTION} {file}: cannot be read ({error.strerror})\n  {_EXPECTED}") from None
    except ValueError:
        raise ShardError(f"{OPTION} {file}: damaged, not JSON\n  {_EXPECTED}") from None
    if not isinstance(found, dict) or not isinstance(found.get("input"), dict) or "kept" not in found:
        raise ShardError(f"{OPTION} {file}: not the summary of an audit\n  {_EXPECTED}")
    try:
        compare(found, found, known)
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
        raise ShardError(f"{OPTION} {file}: damaged, parts of it are not what an audit writes\n  {_EXPECTED}") from None
    return found


def compare(this: Summary, other: Summary, known: Mapping[str, Metric]) -> dict[str, Any]:
    """What summary.json says of both audits.

    Args:
        this: its summary.
        other: that of the other audit.
        known: metrics that are looked for in both.

    Returns:
        `with`: name and version of the other; `rows`: `Compared` as mappings, of the metrics that both have measured
        alike; `refused`: what differs between the audits, so that what depends on it was left out, and how.
    """
    differs = dict(_differences(this, other))
    rows = []
    for name, metric in known.items():
        one, two = (measured_interval(metric.path, summary) for summary in (this, other))
        if one is not None and two is not None and not _depends_on(metric) & differs.keys():
            rows.append(asdict(Compared(name, one, two, metric.limit, _apart(one, two))))
    return {
        "with": {"path": PurePath(str(other["input"].get("path", ""))).name, "version": other.get("version")},
        "rows": rows,
        "refused": [{"differs": what, "why": why} for what, why in differs.items()],
    }


def _depends_on(metric: Metric) -> set[str]:
    """What has to be the same in both audits for a metric to be compared."""
    first, *rest = metric.path
    match first:
        case "rewards" | "rewards_kept":
            return {f"reward {rest[0]}", _LABELER}
        case "findings":
            return {_LABELER} if rest[1] in _COUNTS else {f"reward {rest[1]}", _LABELER}
        case "fidelity":
            group = {_LABELER} if rest[0].startswith("finding") else set()
            if rest[1].startswith("ms_ssim"):
                return group
            return group | {_FEATURES, _REFERENCE, *((_SIZE,) if rest[1] in _SIZED else ())}
        case "utility":
            return {_FEATURES, _REFERENCE, _LABELER, _MODEL}
        case "memorization":
            return {_REFERENCE}
        case "reidentification":
            return {_REFERENCE, _VERIFIER}
    return set()


def _differences(this: Summary, other: Summary) -> Iterator[tuple[str, str]]:
    """What differs between the audits, and how."""
    judges, others = (summary.get("reward_models") or {} for summary in (this, other))
    for name in [name for name in judges if name in others]:
        if judges[name].get("digest") != others[name].get("digest"):
            yield f"reward {name}", f"{judges[name].get('backend')} here, {others[name].get('backend')} there"
    labelers = [(summary.get("provenance") or {}).get("labeler") for summary in (this, other)]
    if labelers[0] != labelers[1]:
        here, there = ("rules" if one is None else str(one)[:12] for one in labelers)
        yield _LABELER, f"{here} here, {there} there"
    features = [summary.get("features") or {} for summary in (this, other)]
    if features[0].get("digest") != features[1].get("digest"):
        yield _FEATURES, f"{features[0].get('name')} here, {features[1].get('name')} there"
    verifiers = [(summary.get("reidentification") or {}).get("verifier") or {} for summary in (this, other)]
    if verifiers[0].get("digest") != verifiers[1].get("digest"):
        yield _VERIFIER, f"{verifiers[0].get('name')} here, {verifiers[1].get('name')} there"
    references = [summary.get("reference") for summary in (this, other)]
    if all(references) and _which(references[0]) != _which(references[1]):
        yield _REFERENCE, f"{_which(references[0])} here, {_which(references[1])} there"
    models = [_trained(summary) for summary in (this, other)]
    if None not in models and models[0] != models[1]:
        yield _MODEL, f"{models[0]} here, {models[1]} there"
    sizes = [_compared(summary) for summary in (this, other)]
    if None not in sizes and sizes[0] != sizes[1]:
        yield _SIZE, f"fidelity on {sizes[0]} images here, on {sizes[1]} there"


def _which(reference: Any) -> str:
    return f"{reference.get('path')} ({reference.get('images')} images)"


def _trained(summary: Summary) -> str | None:
    """What utility trained; None where it was not measured."""
    utility = summary.get("utility")
    model = (utility or {}).get("model")
    if not utility:
        return None
    return f"{model['name']} ({model['digest'] or model['starts_from']})" if model else "a linear probe"


def _compared(summary: Summary) -> int | None:
    """Images that the fidelity of all was measured on."""
    return next((row.get("compared") for row in summary.get("fidelity") or () if row.get("group") == "all"), None)


def _apart(one: Mapping[str, float | None], two: Mapping[str, float | None]) -> bool | None:
    """Whether two intervals do not meet; None where one of them is none."""
    (low, high), (other_low, other_high) = ((each["low"], each["high"]) for each in (one, two))
    if low is None or high is None or other_low is None or other_high is None:
        return None
    return low > other_high or other_low > high
