"""Which images are kept, and why: rules over the scores of a set. Pure; the order of the images changes nothing."""

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy.stats import rankdata

from cxrsynth.auditing.score_table import finding_groups, reward_names, reward_values
from cxrsynth.errors import RecipeError

Reference = Mapping[str, npt.NDArray[np.floating[Any]]]

# The percentile that images must reach unless told otherwise, and the least images that show it. Of real validation
# images with the report of another, 81% lie below this percentile of the training images, and 0.9% with their own.
_USUAL = {"consistency": 0.5}
_SHOWN_BY = 200


@dataclass(frozen=True)
class Rules:
    """What rejects an image, besides being a duplicate or a near-duplicate of a real image.

    `at_least` holds a threshold for each reward; `percentile` (0 to 100) takes the threshold from the rewards of the
    reference. `keep_fraction` (above 0, at most 1) keeps that share of each finding's images, the best ones by
    `rank_on` (all measured rewards where empty). Quality checks in `ignored_checks` reject nothing.

    Raises:
        RecipeError: for a number outside its range.
    """

    at_least: Mapping[str, float] = field(default_factory=dict)
    keep_fraction: float | None = None
    rank_on: tuple[str, ...] = ()
    percentile: Mapping[str, float] = field(default_factory=dict)
    ignored_checks: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        for name, value in self.at_least.items():
            if not math.isfinite(value):
                raise RecipeError(f"--min {name}={value}: expected a finite number")
        for name, value in self.percentile.items():
            if not 0 <= value <= 100:
                raise RecipeError(f"--beat-reference {name}={value}: expected a percentile from 0 to 100")
        if self.keep_fraction is not None and not 0 < self.keep_fraction <= 1:
            raise RecipeError(f"--keep-fraction {self.keep_fraction}: expected above 0, at most 1")

    def check(
        self, rewards: Collection[str], reference: Collection[str] = (), checks: Collection[str] | None = None
    ) -> None:
        """Refuse rules on what is not measured; call it before hours of scoring.

        Raises:
            RecipeError: for a reward that is not among `rewards`, a percentile of one that is not in `reference`, or
                an ignored check that is not among `checks` (if given).
        """
        _refuse_unknown("--min", "reward", self.at_least, rewards)
        _refuse_unknown("--beat-reference", "reward", self.percentile, rewards)
        _refuse_unknown("--keep-fraction by", "reward", self.rank_on, rewards)
        if checks is not None:
            _refuse_unknown("--ignore-check", "check", self.ignored_checks, checks)
        if self.keep_fraction is not None and not rewards:
            raise RecipeError("--keep-fraction: no reward is measured to rank images by\n  name one with --judge")
        for name in sorted(set(self.percentile) - set(reference)):
            raise RecipeError(f"--beat-reference {name}: there is no reference to beat\n  name one with --reference")

    def as_json(self) -> dict[str, Any]:
        """The rules as summary.json and a manifest hold them."""
        return {
            "at_least": dict(sorted(self.at_least.items())),
            "keep_fraction": self.keep_fraction,
            "rank_on": sorted(self.rank_on),
            "percentile": dict(sorted(self.percentile.items())),
            "ignored_checks": sorted(self.ignored_checks),
        }


def decide(scores: Any, rules: Rules, reference: Reference | None = None) -> Any:
    """The scores with `kept` (bool) and `reasons` (list of str, empty exactly where kept) appended.

    Every reason that holds is listed: `check: inverted`, `duplicate`, `memorized`, `posture<-2.0`,
    `diagnosis below p5 of reference`, and, only for images that passed all of these, `outside best 0.50 of Edema`.
    A value equal to its threshold passes. A duplicate is rejected whether or not the image it repeats is kept.

    An undefined reward (null or nan) neither rejects nor helps: it passes every threshold, ranks in the middle, and an
    image without any defined reward is not ranked, takes no place and stays.

    Within each finding stated as present (images with none form a group of their own), images are ranked by the mean of
    their ranks in each reward, ties by key; the best ceil(fraction * images) of the group stay. An image stays if it is
    among the best of any of its findings, so a set keeps at least the fraction of each finding, often more in all.

    Args:
        scores: pyarrow Table as `cxrsynth.auditing.score_table` describes; keys are unique. Reward columns that were
            not measured, `memorized` and others may be missing.
        rules: what rejects.
        reference: the rewards of real images, each [M] with nan where undefined.

    Raises:
        RecipeError: for rules on what was not measured.
    """
    reference = reference or {}
    rules.check(reward_names(scores), reference)
    reasons: list[list[str]] = [[] for _ in range(scores.num_rows)]
    for rejected, reason in _alone(scores, rules, reference):
        for row in np.flatnonzero(rejected).tolist():
            reasons[row].append(reason)
    if rules.keep_fraction is not None:
        passed = {row for row, found in enumerate(reasons) if not found}
        names = sorted(set(rules.rank_on or reward_names(scores)))
        for row, outside in _outside_best(scores, names, fraction=rules.keep_fraction, passed=passed):
            reasons[row] += outside
    decided = scores.drop_columns([name for name in ("kept", "reasons") if name in scores.column_names])
    decided = decided.append_column(
        pa.field("kept", pa.bool_(), nullable=False), pa.array([not found for found in reasons], pa.bool_())
    )
    kind = pa.list_(pa.string())
    return decided.append_column(pa.field("reasons", kind, nullable=False), pa.array(reasons, kind))


def with_usual_rules(rules: Rules, reference: Reference) -> Rules:
    """`rules`, and that an image fits its report as well as the 0.5th percentile of the real images do.

    Without effect on rewards for which a threshold was given, and where fewer than 200 real images have the reward.
    """
    given = rules.at_least.keys() | rules.percentile.keys()
    usual = {
        name: percentile
        for name, percentile in _USUAL.items()
        if name not in given and np.isfinite(reference.get(name, np.empty(0))).sum() >= _SHOWN_BY
    }
    return replace(rules, percentile={**usual, **rules.percentile})


def thresholds(rules: Rules, reference: Reference | None = None) -> list[dict[str, Any]]:
    """The thresholds `decide` applies, as summary.json lists them: rule, on which reward, which number."""
    found: list[dict[str, Any]] = [
        {"rule": "at least", "on": name, "value": float(value)} for name, value in sorted(rules.at_least.items())
    ]
    for name, percentile in sorted(rules.percentile.items()):
        limit = _reference_limit(name, percentile, reference or {})
        found.append({"rule": f"p{percentile:g} of reference", "on": name, "value": float(limit)})
    if rules.keep_fraction is not None:
        on = ", ".join(sorted(rules.rank_on)) or "all rewards"
        found.append({"rule": "best of each finding", "on": on, "value": float(rules.keep_fraction)})
    return found


def _alone(scores: Any, rules: Rules, reference: Reference) -> Iterator[tuple[npt.NDArray[np.bool_], str]]:
    """Each reason that concerns one image by itself, and the images it rejects, [N]."""
    failed = _column(scores, "checks_failed")
    for name in sorted({check for checks in failed for check in checks or ()} - rules.ignored_checks):
        yield np.array([name in (checks or ()) for checks in failed], dtype=bool), f"check: {name}"
    yield np.array([original is not None for original in _column(scores, "duplicate_of")], dtype=bool), "duplicate"
    yield np.array([flagged is True for flagged in _column(scores, "memorized")], dtype=bool), "memorized"
    for name, least in sorted(rules.at_least.items()):
        # In float32 like the scores: -1.1 there lies below the -1.1 a user writes.
        yield reward_values(scores, name) < np.float32(least), f"{name}<{float(least)}"
    for name, percentile in sorted(rules.percentile.items()):
        limit = _reference_limit(name, percentile, reference)
        yield reward_values(scores, name) < limit, f"{name} below p{percentile:g} of reference"


def _column(scores: Any, name: str) -> list[Any]:
    return list(scores[name].to_pylist()) if name in scores.column_names else [None] * scores.num_rows


def _reference_limit(name: str, percentile: float, reference: Reference) -> np.float32:
    """The p-th percentile of a reward over the reference."""
    defined = np.asarray(reference.get(name, ()), dtype=np.float64)
    defined = defined[~np.isnan(defined)]
    if not len(defined):
        raise RecipeError(
            f"--beat-reference {name}: this reward is undefined for every image of the reference\n"
            "  give a reference with the reports it needs, or leave the rule out"
        )
    return np.float32(np.percentile(defined, percentile))


def _outside_best(
    scores: Any, names: list[str], *, fraction: float, passed: set[int]
) -> Iterator[tuple[int, list[str]]]:
    """Rows of `passed` that are not among the best of any of their findings, with one reason per finding."""
    keys = scores["key"].to_pylist()
    values = np.stack([reward_values(scores, name) for name in names], axis=1)  # [N, R]
    written = f"{fraction:.2f}" if round(fraction, 2) == fraction else f"{fraction:g}"
    best: set[int] = set()
    outside: dict[int, list[str]] = {}
    for finding, rows in finding_groups(scores).items():
        order = _best_first([row for row in rows if row in passed], values, keys)
        # By its decimal digits: in floating point a tenth of 30 images would round up to 4.
        places = math.ceil(Fraction(repr(float(fraction))) * len(order))
        best.update(order[:places])
        for row in order[places:]:
            outside.setdefault(row, []).append(f"outside best {written} of {finding}")
    yield from ((row, reasons) for row, reasons in sorted(outside.items()) if row not in best)


def _best_first(rows: list[int], values: npt.NDArray[np.float32], keys: list[str]) -> list[int]:
    """The rows with a defined reward, by their mean rank among each other over the rewards, then by key."""
    ranked = [row for row in rows if not np.isnan(values[row]).all()]
    standing = np.full((len(ranked), values.shape[1]), 0.5)  # [G, R], in (0, 1); undefined in the middle
    for column in range(values.shape[1]):
        group = values[ranked, column]
        defined = ~np.isnan(group)
        standing[defined, column] = (rankdata(group[defined]) - 0.5) / max(1, defined.sum())
    # Rounded: equal sums of thirds differ in their last bits.
    mean = np.round(standing.mean(axis=1), 9)
    return [ranked[place] for place in sorted(range(len(ranked)), key=lambda one: (-mean[one], keys[ranked[one]]))]


def _refuse_unknown(option: str, what: str, names: Collection[str], known: Collection[str]) -> None:
    for name in sorted(set(names) - set(known)):
        close = get_close_matches(name, sorted(known), n=1)
        hint = f"\n  did you mean: {close[0]}" if close else ""
        raise RecipeError(
            f"{option} {name}: no {what} of that name is measured\n"
            f"  measured: {', '.join(sorted(known)) or 'none'}{hint}"
        )
