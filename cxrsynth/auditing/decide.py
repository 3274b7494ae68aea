"""Which images are kept, and why: rules over the scores of a set. Pure; the order of the images changes nothing."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from scipy.stats import rankdata

from cxrsynth.auditing.score_table import finding_groups, reward_names, reward_values, rows_by_value
from cxrsynth.errors import RecipeError

Reference = Mapping[str, npt.NDArray[np.floating[Any]]]
Rejection = tuple[npt.NDArray[np.int64], str]  # rows, and the reason that rejects them

ALL_REWARDS = "all rewards"  # what a rule is on that names none
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

    Every reason that holds is listed: `check: inverted`, `duplicate`, `memorized`, `repeats memorized`, `posture<-2.0`,
    `diagnosis below p5 of reference`, and, only for images that passed all of these, `outside best 0.50 of Edema`.
    A value equal to its threshold passes. Duplicates are rejected; but where the image that they repeat fails a
    check or threshold, the first by key that passes all of these stays in its place. Of duplicates of which one is
    `memorized` none stays: the one that would is rejected as `repeats memorized`.

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
    checks, others = list(_failed_checks(scores, rules)), list(_alone(scores, rules, reference))
    copied = copied_groups(scores)
    repeated = _duplicates(scores, passed=_free_of([*checks, *others], scores.num_rows), copied=copied)
    firsts = np.setdiff1d(_where(copied & ~_memorized(scores)), repeated)
    rejections = [*checks, (repeated, "duplicate"), *others, (firsts, "repeats memorized")]
    if rules.keep_fraction is not None:
        names = sorted(set(rules.rank_on or reward_names(scores)))
        passed = _free_of(rejections, scores.num_rows)
        rejections += _outside_best(scores, names, fraction=rules.keep_fraction, passed=passed)
    decided = scores.drop_columns([name for name in ("kept", "reasons") if name in scores.column_names])
    kept = pa.array(_free_of(rejections, scores.num_rows), pa.bool_())
    reasons = _reasons(rejections, scores.num_rows)
    decided = decided.append_column(pa.field("kept", pa.bool_(), nullable=False), kept)
    return decided.append_column(pa.field("reasons", reasons.type, nullable=False), reasons)


def _free_of(rejections: Sequence[Rejection], count: int) -> npt.NDArray[np.bool_]:
    """Which of `count` images nothing rejects, [N]."""
    free = np.ones(count, dtype=bool)
    for rows, _ in rejections:
        free[rows] = False
    return free


def _reasons(rejections: Sequence[Rejection], count: int) -> Any:
    """The reasons of each of `count` images, in the order given: pyarrow array of lists of strings.

    Built without a Python object an image, of which there may be millions.
    """
    rows = np.concatenate([np.empty(0, np.int64), *(rows for rows, _ in rejections)])
    counts = np.array([len(rows) for rows, _ in rejections], dtype=np.int64)
    codes = np.repeat(np.arange(len(rejections), dtype=np.int32), counts)
    in_order = np.argsort(rows, kind="stable")
    ends = np.cumsum(np.bincount(rows, minlength=count), dtype=np.int32)
    texts = pa.array([text for _, text in rejections], pa.string())
    return pa.ListArray.from_arrays(np.append(np.int32(0), ends), texts.take(pa.array(codes[in_order])))


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
        on = ", ".join(sorted(rules.rank_on)) or ALL_REWARDS
        found.append({"rule": "best of each finding", "on": on, "value": float(rules.keep_fraction)})
    return found


def _failed_checks(scores: Any, rules: Rules) -> Iterator[Rejection]:
    """Each quality check that counts, and the images that fail it."""
    if "checks_failed" in scores.column_names:
        for name, rows in rows_by_value(scores["checks_failed"]).items():
            if name not in rules.ignored_checks:
                yield rows, f"check: {name}"


def copied_groups(scores: Any) -> npt.NDArray[np.bool_]:
    """Whether an image, or a duplicate of it, is a near-duplicate of a real image, [N].

    What repeats a copy of a real image is nearly one, even where it lies just below the threshold.

    Args:
        scores: as for `decide`.
    """
    return with_duplicates(scores, _memorized(scores))


def with_duplicates(scores: Any, marked: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """The marked images, and those that repeat one or are repeated by one, [N].

    Args:
        scores: as for `decide`.
        marked: [N].
    """
    if "duplicate_of" not in scores.column_names:
        return marked
    keys = scores["key"].combine_chunks()
    firsts = np.asarray(pc.index_in(scores["duplicate_of"].combine_chunks(), value_set=keys).fill_null(-1))
    heads = np.where(firsts >= 0, firsts, np.arange(scores.num_rows))
    found = np.zeros(scores.num_rows, dtype=bool)
    found[heads[marked]] = True
    return found[heads]


def _duplicates(scores: Any, *, passed: npt.NDArray[np.bool_], copied: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Images that repeat another one, without those that stay in the place of one that did not pass, [M]."""
    if "duplicate_of" not in scores.column_names:
        return np.empty(0, np.int64)
    repeats = scores["duplicate_of"].combine_chunks()
    rows = _where(np.asarray(repeats.is_valid()))
    keys = scores["key"].combine_chunks()
    originals = np.asarray(pc.index_in(repeats.take(pa.array(rows)), value_set=keys).fill_null(-1))
    could_stay = rows[(originals >= 0) & ~passed[originals] & ~copied[rows] & passed[rows]]
    by_key = could_stay[np.argsort(_places(keys)[could_stay])]
    _, first = np.unique(np.asarray(pc.index_in(repeats.take(pa.array(by_key)), value_set=keys)), return_index=True)
    return np.setdiff1d(rows, by_key[first])


def _memorized(scores: Any) -> npt.NDArray[np.bool_]:
    """Near-duplicates of real images, [N]; none where they were not looked for."""
    if "memorized" not in scores.column_names:
        return np.zeros(scores.num_rows, dtype=bool)
    return np.asarray(scores["memorized"].cast(pa.bool_()).fill_null(False).to_numpy().astype(bool))


def _places(keys: Any) -> npt.NDArray[np.int64]:
    """Of each key, its place in the order of all, [N]."""
    return np.argsort(np.asarray(pc.sort_indices(keys)))


def _alone(scores: Any, rules: Rules, reference: Reference) -> Iterator[Rejection]:
    """Each other reason that concerns one image by itself, and the images it rejects."""
    if "memorized" in scores.column_names:
        yield _where(_memorized(scores)), "memorized"
    for name, least in sorted(rules.at_least.items()):
        # In float32 like the scores: -1.1 there lies below the -1.1 a user writes.
        yield _where(reward_values(scores, name) < np.float32(least)), f"{name}<{float(least)}"
    for name, percentile in sorted(rules.percentile.items()):
        limit = _reference_limit(name, percentile, reference)
        yield _where(reward_values(scores, name) < limit), f"{name} below p{percentile:g} of reference"


def _where(rejected: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    return np.flatnonzero(rejected).astype(np.int64)


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


def _outside_best(scores: Any, names: list[str], *, fraction: float, passed: npt.NDArray[np.bool_]) -> list[Rejection]:
    """Of the images that passed, those that are not among the best of any of their findings, for each finding."""
    place_of_key = _places(scores["key"])
    values = np.stack([reward_values(scores, name) for name in names], axis=1)  # [N, R]
    written = f"{fraction:.2f}" if round(fraction, 2) == fraction else f"{fraction:g}"
    best = np.zeros(scores.num_rows, dtype=bool)
    outside: list[Rejection] = []
    for finding, rows in finding_groups(scores).items():
        order = _best_first(rows[passed[rows]], values, place_of_key)
        # By its decimal digits: in floating point a tenth of 30 images would round up to 4.
        places = math.ceil(Fraction(repr(float(fraction))) * len(order))
        best[order[:places]] = True
        outside.append((order[places:], f"outside best {written} of {finding}"))
    return [(rows[~best[rows]], reason) for rows, reason in outside]


def _best_first(
    rows: npt.NDArray[np.int64], values: npt.NDArray[np.float32], place_of_key: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """The rows with a defined reward, by their mean rank among each other over the rewards, then by key."""
    ranked = rows[~np.isnan(values[rows]).all(axis=1)]
    standing = np.full((len(ranked), values.shape[1]), 0.5)  # [G, R], in (0, 1); undefined in the middle
    for column in range(values.shape[1]):
        group = values[ranked, column]
        defined = ~np.isnan(group)
        standing[defined, column] = (rankdata(group[defined]) - 0.5) / max(1, defined.sum())
    # Rounded: equal sums of thirds differ in their last bits.
    mean = np.round(standing.mean(axis=1), 9)
    return ranked[np.lexsort((place_of_key[ranked], -mean))]


def _refuse_unknown(option: str, what: str, names: Collection[str], known: Collection[str]) -> None:
    for name in sorted(set(names) - set(known)):
        close = get_close_matches(name, sorted(known), n=1)
        hint = f"\n  did you mean: {close[0]}" if close else ""
        raise RecipeError(
            f"{option} {name}: no {what} of that name is measured\n"
            f"  measured: {', '.join(sorted(known)) or 'none'}{hint}"
        )
