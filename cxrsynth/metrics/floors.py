"""What real images of other patients give: the floor below which no measure can show a set to be better.

The reference is split into halves by patient, several times over, and the halves are compared as the audited images are
with the reference.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cxrsynth.metrics.fidelity import Features, Units, frechet_distance, kernel_distance, manifolds
from cxrsynth.metrics.frechet_infinity import FEWEST_UNITS, frechet_infinity, infinity_problem

Rows = npt.NDArray[np.int64]

SPLITS = 10
# Images of a half, at most: this bounds the time, and the audited images are then measured at that size too.
MOST = 1000
_INFINITY = "frechet_infinity"
_MEASURES = ("frechet", _INFINITY, "kid", "mmd", "precision", "recall", "density", "coverage")


def measure_floor(
    features: npt.NDArray[np.floating[Any]],
    of_patients: Sequence[Sequence[int]],
    made: Features,
    reports: Units,
    *,
    least: int,
    few: int,
    neighbours: int,
    rng: np.random.Generator,
    extrapolate: bool = False,
) -> dict[str, Any]:
    """Each measure between two halves of the reference that share no patient, over `SPLITS` splits.

    Splits share images, so their range is that of this reference, not an interval of all possible ones.

    Args:
        features: of the reference [N, D].
        of_patients: rows of each known patient (`rows_by_patient`).
        made: features of the audited images that were compared [M, D].
        reports: whose each of them is [M].
        least: images that a half needs for all measures.
        few: images that it needs for the kernel distances, which have no bias.
        neighbours: k of precision, recall, density and coverage.
        rng: of the splits.
        extrapolate: measures `frechet_infinity`, too, where the halves have images enough; it takes as long as ten
            Frechet distances.

    Returns:
        `images` in each half: M, or as many as there are, `MOST` at most; number of `patients` and `splits`; for each
        measure its mean (`value`), lowest and highest (`low`, `high`) over the splits; `audited`: the mean of each
        measure for as many audited images against one half; `frechet_ratio`: the Frechet distance of `audited` over
        that of real images. With fewer than `least` images all but the kernel distances are None; where the halves are
        the reason, `few_real` says so, else it is None.

    Raises:
        ValueError: if there are fewer than `FEWEST_UNITS` patients, or fewer than `few` images in a half.
    """
    if len(of_patients) < FEWEST_UNITS:
        raise ValueError(f"real images of {len(of_patients)} known patients, expected at least {FEWEST_UNITS}")
    splits = [halves(of_patients, rng) for _ in range(SPLITS)]
    smaller = min(len(half) for split in splits for half in split)
    if smaller < few:
        raise ValueError(f"{smaller} real images in one half of the patients, expected at least {few}")
    count = min(len(made), MOST, smaller)
    owner = np.zeros(len(features), dtype=np.int64)
    for patient, rows in enumerate(of_patients):
        owner[list(rows)] = patient
    measured = _measured if count >= least else _kernels
    floors: list[dict[str, float]] = []
    audited: list[dict[str, float]] = []
    for number, split in enumerate(splits):
        some, others = (rng.choice(half, count, replace=False) for half in split)
        real = _Set(features[others].astype(np.float64), owner[others])
        other = _Set(features[some].astype(np.float64), owner[some])
        chosen = rng.choice(len(made), count, replace=False)
        own = _Set(made[chosen], reports[chosen])
        for one, found in ((other, floors), (own, audited)):
            far = _extrapolated(one, real, seed=number) if extrapolate else {}
            found.append(measured(one, real, neighbours) | far)
    missing: dict[str, Any] = dict.fromkeys(_MEASURES)
    ranges = missing | {name: _range(values) for name in floors[0] if (values := _all_of(floors, name))}
    means = missing | {name: float(np.mean(values)) for name in audited[0] if (values := _all_of(audited, name))}
    about: dict[str, Any] = {"images": count, "patients": len(of_patients), "splits": SPLITS, "few_real": None}
    if smaller < least <= len(made):
        about["few_real"] = (
            f"known for KID and MMD alone: {smaller} real images in one half of the patients, expected at least {least}"
        )
    return about | ranges | {"audited": means, "frechet_ratio": _ratio(means["frechet"], ranges["frechet"])}


def _all_of(found: Sequence[dict[str, float]], name: str) -> list[float]:
    """A measure of all splits; none where one of them lacks it."""
    values = [each[name] for each in found if name in each]
    return values if len(values) == len(found) else []


def _extrapolated(one: "_Set", real: "_Set", *, seed: int) -> dict[str, float]:
    """The extrapolated distance; empty where the sets are too small for it."""
    units = one.units, real.units
    fewest = min(len(np.unique(of)) for of in units)
    if infinity_problem(len(one.features), one.features.shape[1], fewest) is not None:
        return {}
    return {_INFINITY: frechet_infinity(one.features, real.features, units=units, blocks=10, seed=seed).value}


def _ratio(made: float | None, real: dict[str, float] | None) -> float | None:
    """Both are far from 0: their bias alone is. Halves that are copies of each other have no ratio."""
    return made / real["value"] if made is not None and real is not None and real["value"] > 0 else None


def rows_by_patient(patients: Sequence[str], rows: Rows) -> list[list[int]]:
    """Of `rows`, those of each patient; images of unknown patients are left out."""
    found: dict[str, list[int]] = {}
    for row in rows.tolist():
        if patients[row]:
            found.setdefault(patients[row], []).append(row)
    return list(found.values())


def halves(of_patients: Sequence[Sequence[int]], rng: np.random.Generator) -> tuple[Rows, Rows]:
    """Rows in two halves without a common patient: of all patients, or of as many as give `MOST` images twice."""
    found: tuple[list[int], list[int]] = ([], [])
    for turn in rng.permutation(len(of_patients)).tolist():
        # Into the smaller half: this keeps the halves even despite patients with many images.
        smaller = min(found, key=len)
        if len(smaller) >= MOST:
            break
        smaller.extend(of_patients[turn])
    return np.asarray(found[0], dtype=np.int64), np.asarray(found[1], dtype=np.int64)


@dataclass(frozen=True, slots=True)
class _Set:
    features: Features
    owner: Units

    @property
    def units(self) -> Units:
        return np.asarray(np.unique(self.owner, return_inverse=True)[1], dtype=np.int64)


def _measured(made: _Set, real: _Set, neighbours: int) -> dict[str, float]:
    return {
        "frechet": frechet_distance(made.features, real.features),
        **_kernels(made, real),
        **asdict(manifolds(real.features, made.features, neighbours=neighbours)),
    }


def _kernels(made: _Set, real: _Set, _: int = 0) -> dict[str, float]:
    units = made.units, real.units
    kid = kernel_distance(made.features, real.features)
    # A draw from a half that is nearly all one patient's has no pairs of two.
    alone = any(len(np.unique(of)) < 2 for of in units) or all(int(of.max()) + 1 == len(of) for of in units)
    return {"kid": kid, "mmd": kid if alone else kernel_distance(made.features, real.features, units=units)}


def _range(values: list[float]) -> dict[str, float]:
    return {"value": float(np.mean(values)), "low": min(values), "high": max(values)}
