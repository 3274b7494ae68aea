"""`--fail-under METRIC=VALUE`: thresholds on numbers of summary.json, upper ones where less is better."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import product
from typing import Any

from cxrsynth.auditing.score_table import NONE_STATED
from cxrsynth.errors import RecipeError
from cxrsynth.metrics.membership.attacks import ATTACKS
from cxrsynth.metrics.membership.inference import COMBINED, FALSE_POSITIVES
from cxrsynth.metrics.utility.cohorts import BOTH, REAL, TRAINED_ON
from cxrsynth.metrics.utility.measure import GAP_KINDS
from cxrsynth.reports.labels import OBSERVATIONS

OPTION = "--fail-under"

_STATISTICS = ("mean", "p5", "p25", "p50", "p75", "p95")
_SUBGROUPS = ("view: AP", "view: LATERAL", "view: PA", "sex: F", "sex: M", "age group: adult", "age group: child")
_GROUPS = ("all", *(f"finding: {name}" for name in OBSERVATIONS), *_SUBGROUPS)
_SCORES = ("reader_study", "scores")
_LIFT, _AUROC, _MEAN = (("utility", part) for part in ("lift", "auroc", "mean"))
_MISSED, _GAP = ("utility", "underdiagnosis"), ("utility", "gap")
# Parts of names before 0.2.0.
_RENAMED = {"not_told": "unscored", "no finding told": NONE_STATED}
_AT_LEAST, _AT_MOST = "at least", "at most"


@dataclass(frozen=True)
class Metric:
    """Where a number is in the summary, which way is good, and the range a threshold on it can have."""

    path: tuple[str, ...]
    limit: str = _AT_LEAST
    low: float = -math.inf
    high: float = math.inf


@dataclass(frozen=True)
class Threshold:
    """`metric` must be at least `value`, or at most where less is better (`limit` says which)."""

    metric: str
    value: float
    path: tuple[str, ...]
    limit: str


def known_metrics(rewards: Iterable[str], alterations: Iterable[str] = ()) -> dict[str, Metric]:
    """Every metric that can have a threshold, by name.

    Args:
        rewards: the rewards that are measured.
        alterations: the planted near-duplicates whose detection is measured.
    """
    rewards = tuple(rewards)
    metrics = [
        Metric(("kept",), low=0),
        Metric(("kept_fraction",), low=0, high=1),
        Metric(("damaged",), _AT_MOST, low=0),
        Metric(("memorization", "flagged"), _AT_MOST, low=0),
        Metric(("memorization", "flagged_fraction"), _AT_MOST, low=0, high=1),
        Metric(("memorization", "false_alarms"), _AT_MOST, low=0, high=1),
        Metric(("copies", "flagged"), _AT_MOST, low=0),
    ]
    metrics += [
        Metric(("reidentification", "matched"), _AT_MOST, low=0),
        Metric(("reidentification", "matched_fraction"), _AT_MOST, low=0, high=1),
        Metric(("reidentification", "reference", "auc"), low=0, high=1),
    ]
    metrics += [Metric(("memorization", "sensitivity", name), low=0, high=1) for name in alterations]
    # The better readers tell synthetic images from real ones, the worse these are.
    metrics += [Metric((*_SCORES, name), _AT_MOST, low=0, high=1) for name in ("accuracy", "sensitivity")]
    metrics += [Metric((*_SCORES, "quality", "difference"), _AT_MOST, low=-4, high=4)]
    metrics += [
        Metric(("membership", "attacks", attack, *found), _AT_MOST, low=0, high=1)
        for attack in (*ATTACKS, COMBINED)
        for found in (("auc",), *(("true_positives", f"{share:g}") for share in FALSE_POSITIVES))
    ]
    for reward in rewards:
        metrics += [Metric(("rewards", reward, statistic)) for statistic in _STATISTICS]
        metrics += [Metric(("rewards", reward, "unscored"), _AT_MOST, low=0)]
        metrics += [Metric(("rewards_kept", reward, statistic)) for statistic in _STATISTICS]
    for finding in (*OBSERVATIONS, NONE_STATED):
        metrics += [Metric(("findings", finding, name), low=0) for name in ("images", "kept")]
        metrics += [Metric(("findings", finding, "kept_fraction"), low=0, high=1)]
        metrics += [Metric(("findings", finding, reward)) for reward in rewards]
    for group in _GROUPS:
        metrics += [
            Metric(("fidelity", group, "frechet"), _AT_MOST, low=0),
            Metric(("fidelity", group, "frechet_infinity"), _AT_MOST),  # of equal populations it scatters around 0
            Metric(("fidelity", group, "floor", "frechet_ratio"), _AT_MOST, low=0),
            Metric(("fidelity", group, "kid"), _AT_MOST),
            Metric(("fidelity", group, "mmd"), _AT_MOST),
        ]
        metrics += [Metric(("fidelity", group, name), low=0, high=1) for name in ("precision", "recall", "coverage")]
        metrics += [Metric(("fidelity", group, "density"), low=0)]
        # The more alike the images of a set, the less diverse it is.
        metrics += [Metric(("fidelity", group, "ms_ssim_within"), _AT_MOST, low=0, high=1)]
    metrics += list(_of_utility())
    return {"/".join(metric.path): metric for metric in metrics}


def _of_utility() -> Iterator[Metric]:
    """Of each training set; lifts are over real images alone."""
    for name in TRAINED_ON:
        yield Metric((*_MEAN, name, "auroc"), low=0, high=1)
        for finding, group in product(OBSERVATIONS, ("all", *_SUBGROUPS)):
            yield Metric((*_AUROC, name, finding, group), low=0, high=1)
            if not group.startswith("view"):
                yield Metric((*_MISSED, name, finding, group), _AT_MOST, low=0, high=1)
        # However a gap is signed, less of it is better.
        for finding, kind in product(OBSERVATIONS, GAP_KINDS):
            yield Metric((*_GAP, name, finding, kind), _AT_MOST, low=0, high=1)
        if name != REAL:
            yield Metric((*_MEAN, name, "lift"), low=-1, high=1)
            for finding, group in product(OBSERVATIONS, ("all", *_SUBGROUPS)):
                yield Metric((*_LIFT, name, finding, group), low=-1, high=1)


def parse_thresholds(texts: Sequence[str], known: Mapping[str, Metric]) -> tuple[Threshold, ...]:
    """The thresholds given on the command line, each METRIC=VALUE.

    Raises:
        RecipeError: for another form, an unknown or renamed metric, a value that is not a number or that no run could
            miss or reach, or a metric given twice.
    """
    found: dict[str, Threshold] = {}
    for text in texts:
        name, equals, written = (part.strip() for part in text.rpartition("="))
        if not equals or not name:
            raise RecipeError(f"{OPTION} {text!r}: expected METRIC=VALUE, for example kept_fraction=0.5")
        if name in found:
            raise RecipeError(f"{OPTION} {name}: given twice\n  leave one out")
        metric = _metric(name, known)
        found[name] = Threshold(name, _value(name, written, metric), metric.path, metric.limit)
    return tuple(found.values())


def missed(thresholds: Iterable[Threshold], summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The thresholds a summary misses, as its "failed" lists them: metric, value, threshold, limit.

    `limit` is "at least" or "at most". A metric that was not measured is missed, with value null.
    """
    failed = []
    for threshold in thresholds:
        value = _measured(threshold.path, summary)
        at_least = threshold.limit == _AT_LEAST
        if value is None or (value < threshold.value if at_least else value > threshold.value):
            failed.append(
                {"metric": threshold.metric, "value": value, "threshold": threshold.value, "limit": threshold.limit}
            )
    return failed


def _metric(name: str, known: Mapping[str, Metric]) -> Metric:
    if name in known:
        return known[name]
    parts = [_RENAMED.get(part, part) for part in name.split("/")]
    if tuple(parts[:2]) == _LIFT and len(parts) == 4:  # the only lift before 0.3.0
        parts.insert(2, BOTH)
    renamed = "/".join(parts)
    if renamed in known:
        raise RecipeError(f"{OPTION} {name}: this metric has another name now\n  use: {renamed}")
    same_end = [one for one in known if one.rpartition("/")[2] == name.rpartition("/")[2]]
    close = get_close_matches(name, [*known], n=3) or same_end[:3]
    hint = "".join(f"\n  did you mean: {one}" for one in close)
    raise RecipeError(f"{OPTION} {name}: no such metric{hint}\n  known: {_families(known)}")


def _families(known: Mapping[str, Metric]) -> str:
    """The known metrics; those that differ only in a finding or a group are written once."""
    wild = dict.fromkeys((*OBSERVATIONS, NONE_STATED), "FINDING") | dict.fromkeys(_GROUPS, "GROUP")
    wild |= dict.fromkeys((*ATTACKS, COMBINED), "ATTACK") | dict.fromkeys(TRAINED_ON, "TRAINED_ON")
    families = dict.fromkeys("/".join(wild.get(part, part) for part in metric.path) for metric in known.values())
    attacks = "; ".join((*ATTACKS, COMBINED))
    return (
        f"{', '.join(families)}\n  GROUP is one of: {'; '.join(_GROUPS)}\n  ATTACK is one of: {attacks}"
        f"\n  TRAINED_ON is one of: {'; '.join(TRAINED_ON)}"
    )


def _value(name: str, written: str, metric: Metric) -> float:
    try:
        value = float(written)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or not metric.low <= value <= metric.high:
        between = f" from {metric.low:g} to {metric.high:g}" if math.isfinite(metric.low + metric.high) else ""
        between = between or (f" from {metric.low:g} up" if math.isfinite(metric.low) else "")
        raise RecipeError(f"{OPTION} {name}={written}: expected a number{between}")
    return value


def measured_interval(path: tuple[str, ...], summary: Mapping[str, Any]) -> dict[str, float | None] | None:
    """Value, low and high at a path of a summary; None where there is no value. Counts and means have no interval."""
    value = _measured(path, summary)
    if value is None:
        return None
    found = _found(path, summary)
    ends = {end: _number(found.get(end)) if isinstance(found, Mapping) else None for end in ("low", "high")}
    return {"value": value, **ends}


def _measured(path: tuple[str, ...], summary: Mapping[str, Any]) -> float | None:
    """The number a summary has at a path, None where there is none."""
    first, *rest = path
    if path == ("kept_fraction",):
        return _share(summary.get("kept"), _sum(summary.get("kept"), summary.get("rejected")))
    if path == ("damaged",):
        return _number((summary.get("input") or {}).get("damaged_count"))  # `damaged` lists the first of them only
    if path in (("memorization", "flagged_fraction"), ("reidentification", "matched_fraction")):
        flagged = (summary.get(first) or {}).get(path[1].removesuffix("_fraction"))
        return _share(flagged, (summary.get("input") or {}).get("images"))
    if first == "findings" and rest[-1] == "kept_fraction":
        finding = (summary.get("findings") or {}).get(rest[0]) or {}
        return _share(finding.get("kept"), finding.get("images"))
    return _number(_found(path, summary))


def _found(path: tuple[str, ...], summary: Mapping[str, Any]) -> Any:
    """What a summary has at a path."""
    first, *rest = path
    found = summary.get(first)
    if first == "fidelity":
        found = {group["group"]: group for group in found or ()}
    if first == "utility":
        found, rest = _utility(path, found or {}), []
    for name in rest:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def _utility(path: tuple[str, ...], utility: Mapping[str, Any]) -> Any:
    """The number of a row that is named by its parts."""

    def rows(part: str) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
        for row in utility.get(part) or ():
            yield (row.get("trained_on", BOTH), row["finding"], row.get("group") or row["kind"]), row

    found: dict[tuple[str, ...], Any] = {(*_AUROC, *name): row["auroc"] for name, row in rows("rows")}
    found |= {(*_LIFT, *name): row for name, row in rows("lift")}
    found |= {(*_MISSED, *name): row["rate"] for name, row in rows("underdiagnosis")}
    found |= {(*_GAP, *name): abs(row["value"]) for name, row in rows("gaps")}
    for row in utility.get("mean") or ():
        found |= {(*_MEAN, row["trained_on"], part): row[part] for part in ("auroc", "lift")}
    return found.get(path)


def _number(found: Any) -> float | None:
    """A number, the value of an interval, or the share of what was caught."""
    if isinstance(found, Mapping):
        if "caught" in found:
            return _share(found.get("caught"), found.get("of"))
        found = found.get("value")
    if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
        return None
    return float(found)


def _sum(*parts: Any) -> float | None:
    return None if None in parts else sum(parts)


def _share(part: Any, whole: Any) -> float | None:
    return None if part is None or not whole else part / whole
