"""Which images readers see: as many real as synthetic ones, one a patient, alike in what their metadata says."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy.optimize import linear_sum_assignment

from cxrsynth.console import counted
from cxrsynth.errors import ShardError

# Real images that a partner is looked for among: the time grows with their number.
_MOST_COMPARED = 5000
LEAST_STUDY = 4  # images
# What a pair costs that differs in view, age group, sex, or has no finding in common. A view or a child among adults is
# seen at once, so that findings give way to them.
_WEIGHTS = {"view": 4.0, "age_group": 4.0, "sex": 1.0}
_FINDINGS = 2.0


@dataclass(frozen=True, slots=True)
class Candidate:
    """An image that may be shown. Unknown metadata is None; `patient` is empty where unknown."""

    key: str
    patient: str = field(default="", repr=False)
    view: str | None = None
    sex: str | None = None
    age_group: str | None = None
    present: frozenset[str] = frozenset()
    absent: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Pair:
    """A synthetic image and the real one that is to stand against it."""

    synthetic: Candidate
    real: Candidate


def candidates(rows: pa.Table, patients: Sequence[str], allowed: Sequence[bool]) -> list[Candidate]:
    """The allowed rows of a table of scores."""
    columns = ("key", "view", "sex", "age_group", "present", "absent")
    values: list[Mapping[str, Any]] = rows.select(columns).to_pylist()
    return [
        Candidate(
            row["key"],
            patient,
            row["view"],
            row["sex"],
            row["age_group"],
            frozenset(row["present"] or ()),
            frozenset(row["absent"] or ()),
        )
        for row, patient, fit in zip(values, patients, allowed, strict=True)
        if fit
    ]


def choose_pairs(
    synthetic: Sequence[Candidate], real: Sequence[Candidate], pairs: int, rng: np.random.Generator
) -> list[Pair]:
    """Synthetic images at random, each with a real one most like it in view, age group, sex and findings.

    Without that, readers could go by the mix: a set of frontal images against a reference with laterals. Of each
    patient there is at most one image. Images with a finding stated as present are preferred where there are enough.

    Raises:
        ShardError: if there are too few of either kind.
    """
    shuffled = [_one_per_patient(pool, rng) for pool in (synthetic, real)]
    stated = [[one for one in pool if one.present] for pool in shuffled]
    made, others = stated if min(map(len, stated)) >= pairs else shuffled
    for pool, what in ((made, "kept synthetic"), (others, "real")):
        if len(pool) < pairs:
            fewest = min(len(made), len(others))
            raise ShardError(
                f"--reader-study {2 * pairs}: {counted(len(pool), f'{what} image')} of different patients passed the"
                f" quality checks, {pairs} are needed\n  {fewer_pairs(fewest)}give more images"
            )
    made, others = made[:pairs], others[:_MOST_COMPARED]
    places = linear_sum_assignment(_costs(made, others))[1]
    return [Pair(one, others[place]) for one, place in zip(made, places, strict=True)]


def fewer_pairs(count: int) -> str:
    """The advice to ask for fewer images where there are `count` of one kind; empty for fewer than a study takes."""
    return f"ask for at most {2 * count}, or " if 2 * count >= LEAST_STUDY else ""


def matched(pairs: Sequence[Pair]) -> dict[str, int]:
    """In how many pairs both images are known to have the same view, age group, sex, and findings present."""
    return {name: sum(_are_alike(pair, name) for pair in pairs) for name in (*_WEIGHTS, "present")}


def _are_alike(pair: Pair, name: str) -> bool:
    one, other = pair.synthetic, pair.real
    known = bool(one.present | one.absent) if name == "present" else getattr(one, name) is not None
    known &= bool(other.present | other.absent) if name == "present" else True
    return known and getattr(one, name) == getattr(other, name)


def _one_per_patient(pool: Sequence[Candidate], rng: np.random.Generator) -> list[Candidate]:
    """In random order, the first image of each patient; one without a patient is on its own."""
    ordered = [pool[place] for place in rng.permutation(len(pool))]
    seen: dict[object, Candidate] = {}
    for place, one in enumerate(ordered):
        seen.setdefault(one.patient or place, one)
    return list(seen.values())


def _costs(synthetic: Sequence[Candidate], real: Sequence[Candidate]) -> npt.NDArray[np.float64]:
    """How little each synthetic image is like each real one; [S, R]."""
    costs = np.zeros((len(synthetic), len(real)))
    for name, weight in _WEIGHTS.items():
        one, other = (np.array([str(getattr(c, name)) for c in pool]) for pool in (synthetic, real))
        costs += weight * (one[:, None] != other[None])
    names = sorted({name for pool in (synthetic, real) for candidate in pool for name in candidate.present})
    one, other = (
        np.array([[name in candidate.present for name in names] for candidate in pool], dtype=np.float64).reshape(
            len(pool), len(names)
        )
        for pool in (synthetic, real)
    )
    shared = one @ other.T
    union = one.sum(1)[:, None] + other.sum(1)[None] - shared
    # Jaccard's distance of the findings; two images without any are alike.
    costs += _FINDINGS * (1 - np.divide(shared, union, out=np.ones_like(union), where=union > 0))
    return costs
