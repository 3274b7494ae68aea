"""Synthetic images against real ones, overall and in every group: findings, views, sexes, age groups."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from cxrsynth.metrics.diversity import similarity_between, similarity_within
from cxrsynth.metrics.fidelity import (
    Features,
    Units,
    frechet_interval,
    kernel_interval,
    manifold_intervals,
)
from cxrsynth.metrics.floors import measure_floor, rows_by_patient
from cxrsynth.metrics.frechet_infinity import FEWEST_UNITS, frechet_infinity, infinity_problem
from cxrsynth.reports.labels import OBSERVATIONS

Places = npt.NDArray[np.int64]

# Images compared, at most: the number of pairs grows with the square.
MOST = 5000
NEIGHBORS = 5
# Below `least` images only the kernel distances are measured, which have no bias, down to this many: simulated with 20
# on each side, their intervals hold the populations' distance in 97% of sets or more.
FEWEST = 20
# Above this width a round of the Frechet distance takes half a second, so there are half as many.
_WIDE = 512
# Below these sizes a number means little (docs/audit.md has the simulation): more than half of the Frechet distance is
# bias, and the intervals of the four are wider than 0.2.
FEW_PER_FEATURE, FEW_NEIGHBORS = 2, 100
_MANIFOLDS = ("precision", "recall", "density", "coverage")
_SIMILARITIES = ("ms_ssim_within", "ms_ssim_real", "ms_ssim_to_real")


@dataclass(frozen=True, slots=True)
class ImageTable:
    """Features and metadata of N images, row by row.

    `features` are [N, D] float32. `view`, `sex` and `age_group` are None where unknown. `present` holds the findings
    stated as present (`No Finding` for a normal image) and `absent` those stated as absent, both empty without a
    report; `patients` are empty where unknown. `pixels` are [N, H, W] uint8, or None if diversity is not to be
    measured; they may be memory-mapped, because only images in sampled pairs are read. 128 pixels take a fifth of the
    time of 256.

    Raises:
        ValueError: if columns differ in length, or features are not finite.
    """

    features: npt.NDArray[np.float32] = field(repr=False)
    view: list[str | None] = field(repr=False)
    sex: list[str | None] = field(repr=False)
    age_group: list[str | None] = field(repr=False)
    present: list[set[str]] = field(repr=False)
    patients: list[str] = field(repr=False)
    pixels: npt.NDArray[np.uint8] | None = field(default=None, repr=False)
    absent: list[set[str]] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.features.ndim != 2 or not np.isfinite(self.features).all():
            raise ValueError(f"features {self.features.shape}, expected [N, D], all finite")
        columns = (self.view, self.sex, self.age_group, self.present, self.patients, self.pixels, self.absent)
        lengths = {len(column) for column in columns if column is not None}
        if lengths != {len(self.features)}:
            raise ValueError(f"columns of {sorted(lengths)} images, expected {len(self.features)} as features have")

    def take(self, places: Places) -> "ImageTable":
        """The images at some places, in their order; all if `places` are all."""
        chosen = places.tolist()
        if len(chosen) == len(self.features):
            return self
        return ImageTable(
            features=self.features[places],
            view=[self.view[place] for place in chosen],
            sex=[self.sex[place] for place in chosen],
            age_group=[self.age_group[place] for place in chosen],
            present=[self.present[place] for place in chosen],
            patients=[self.patients[place] for place in chosen],
            pixels=None if self.pixels is None else self.pixels[places],
            absent=None if self.absent is None else [self.absent[place] for place in chosen],
        )

    def denied(self) -> list[set[str]]:
        """`absent`, empty for every image if it is not given."""
        return [set() for _ in self.present] if self.absent is None else self.absent

    def groups(self) -> dict[str, Places]:
        """Places of the images of each group: `all`, `finding: Edema`, `view: PA`, `sex: F`, `age group: child`."""
        found: dict[str, list[int]] = {}
        for place in range(len(self.features)):
            for name in self._groups_of(place):
                found.setdefault(name, []).append(place)
        return {"all": np.arange(len(self.features))} | {
            name: np.asarray(places, dtype=np.int64) for name, places in found.items()
        }

    def _groups_of(self, place: int) -> Iterator[str]:
        yield from (f"finding: {finding}" for finding in self.present[place])
        known = (("view", self.view[place]), ("sex", self.sex[place]), ("age group", self.age_group[place]))
        yield from (f"{kind}: {value}" for kind, value in known if value)


def measure_groups(
    made: ImageTable, real: ImageTable, *, least: int = 50, seed: int, pairs: int = 200
) -> list[dict[str, Any]]:
    """Fidelity and diversity by group, each at equal counts of made and real images.

    Args:
        made: the synthetic images.
        real: the reference, features of the same extractor.
        least: images a group needs on both sides for all measures. With fewer, down to `FEWEST`, only the kernel
            distances are measured; smaller groups are listed with their counts and None for every measure.
        seed: of the choice of images and of all resampling. A group's numbers do not depend on the other groups.
        pairs: random pairs for MS-SSIM: within the table that has pixels, and between the two if both have.

    Returns:
        One row per group, `all` first: its name, the number of `images` and of `real` images, `compared` (as many of
        each side, chosen at random, `MOST` at most), each measure's value and interval under its name, `floor`
        (`measure_floor`), `not_measured`: which of these is None and why, and `warnings`: which measures mean little at
        this size and why. Images of one patient (of the audited ones: of one report) are resampled together where at
        least `FEWEST_UNITS` are known.

    Raises:
        ValueError: if the features differ in width.
    """
    if made.features.shape[1] != real.features.shape[1]:
        raise ValueError(f"features of {made.features.shape[1]} and {real.features.shape[1]}, expected one extractor")
    groups, others = made.groups(), real.groups()
    nobody = np.empty(0, dtype=np.int64)
    rows = []
    for name in _in_order(set(groups) | set(others)):
        own, theirs = groups.get(name, nobody), others.get(name, nobody)
        row: dict[str, Any] = {"group": name, "images": len(own), "real": len(theirs)}
        fewest = min(least, FEWEST)
        rng = np.random.default_rng([seed, *name.encode()])
        if min(len(own), len(theirs)) >= fewest:
            row |= _measured(made, own, real, theirs, pairs=pairs, least=least, rng=rng, is_all=name == "all")
        else:
            row |= _UNMEASURED | {"not_measured": {"all": _too_few(own, theirs, fewest)}, "warnings": {}}
        rows.append(row)
    return rows


_OF_MANY = ("frechet", "frechet_infinity", *_MANIFOLDS, *_SIMILARITIES)
_UNMEASURED: dict[str, Any] = dict.fromkeys(
    ("compared", "frechet", "frechet_infinity", "kid", "mmd", *_MANIFOLDS, *_SIMILARITIES, "floor"), None
)


def _too_few(own: Places, theirs: Places, least: int) -> str:
    return f"{len(own)} audited and {len(theirs)} real images, expected at least {least} of each"


def _in_order(names: set[str]) -> list[str]:
    """All images, findings in CheXpert's order and then others, views, sexes, age groups."""
    kinds = ("all", "finding", "view", "sex", "age group")

    def order(name: str) -> tuple[int, int, str]:
        kind, _, value = name.partition(": ")
        known = OBSERVATIONS.index(value) if value in OBSERVATIONS else len(OBSERVATIONS)
        return kinds.index(kind), known, value

    return sorted(names, key=order)


def _measured(
    made: ImageTable,
    own: Places,
    real: ImageTable,
    theirs: Places,
    *,
    pairs: int,
    least: int,
    rng: np.random.Generator,
    is_all: bool,
) -> dict[str, Any]:
    count = min(len(own), len(theirs), MOST)
    seed = int(rng.integers(2**31))
    chosen, others = _some(own, count, rng), _some(theirs, count, rng)
    least = max(least, NEIGHBORS + 1)
    compared = _features(made, chosen), _features(real, others)
    units = _units(made, chosen), _units(real, others)
    found: dict[str, Any] = {}
    missing: dict[str, str | None] = {}
    if count < least:
        missing.update(dict.fromkeys(_OF_MANY, _too_few(own, theirs, least)))
    else:
        found |= _similarities(made, own, real, theirs, pairs=pairs, rng=rng, seed=seed)
        found |= _biased(*compared, units=units, seed=seed)
        infinite = infinity_problem(count, compared[0].shape[1], min(len(np.unique(of)) for of in units))
        missing["frechet_infinity"] = infinite
        if infinite is None:
            blocks = 10 if compared[0].shape[1] > _WIDE else 20
            found["frechet_infinity"] = asdict(frechet_infinity(*compared, units=units, blocks=blocks, seed=seed))
    patients = rows_by_patient(real.patients, theirs)
    warnings = _warnings(count, compared[0].shape[1], least=least)
    few = min(least, FEWEST)
    try:
        floor = measure_floor(
            real.features,
            patients,
            compared[0],
            units[0],
            least=least,
            few=few,
            neighbours=NEIGHBORS,
            rng=rng,
            # Of wide features it takes minutes; a group's floor tells little that this one does not.
            extrapolate=is_all and compared[0].shape[1] <= _WIDE,
        )
    except ValueError as error:
        missing["floor"] = str(error)
    else:
        found["floor"] = floor
        if floor["few_real"] is not None:
            warnings["floor"] = floor["few_real"]
    return {
        **_UNMEASURED,
        "compared": count,
        **_kernels(*compared, units=units, seed=seed),
        **found,
        "not_measured": {name: why for name, why in missing.items() if why is not None},
        "warnings": warnings,
    }


def _kernels(first: Features, second: Features, *, units: tuple[Units, Units], seed: int) -> dict[str, Any]:
    """Distances that mean the same at any number of images."""
    kid = kernel_interval(first, second, seed=seed)
    alone = all(int(of.max()) + 1 == len(of) for of in units)
    mmd = kid if alone else kernel_interval(first, second, units=units, seed=seed)
    return {"kid": asdict(kid), "mmd": asdict(mmd)}


def _biased(first: Features, second: Features, *, units: tuple[Units, Units], seed: int) -> dict[str, Any]:
    """Measures that depend on the number of images."""
    rounds = 50 if first.shape[1] > _WIDE else 100
    return {
        "frechet": asdict(frechet_interval(first, second, units=units, rounds=rounds, seed=seed)),
        **asdict(manifold_intervals(second, first, neighbours=NEIGHBORS, units=(units[1], units[0]), seed=seed)),
    }


def _units(table: ImageTable, places: Places) -> Units:
    """Patients by number; images of unknown patients, and all where too few are known, count as their own."""
    named = [table.patients[place] or f"image {place}" for place in places.tolist()]
    numbers = np.unique(named, return_inverse=True)[1]
    return np.asarray(numbers if numbers.max() + 1 >= FEWEST_UNITS else np.arange(len(places)), dtype=np.int64)


def _warnings(count: int, width: int, *, least: int) -> dict[str, str]:
    """Measures that mean little at this sample size, and why."""
    if count < least:
        return dict.fromkeys(("kid", "mmd"), f"{count} images: wide intervals")
    found = {}
    if count < FEW_PER_FEATURE * width:
        found["frechet"] = (
            f"{count} images for {width} features: most of the value may come from the number of images; compare it"
            " with the floor"
        )
    if count < FEW_NEIGHBORS:
        found |= dict.fromkeys(_MANIFOLDS, f"{count} images: intervals wider than 0.2")
    return found


def _similarities(
    made: ImageTable, own: Places, real: ImageTable, theirs: Places, *, pairs: int, rng: np.random.Generator, seed: int
) -> dict[str, Any]:
    """MS-SSIM of `pairs` pairs, or as many as there are without a shared image: the pairs stay independent."""
    found: dict[str, Any] = dict.fromkeys(_SIMILARITIES)
    if made.pixels is None:
        return found
    pairs = min(pairs, len(own) // 2, len(theirs) // 2)
    chosen = made.pixels[_some(own, 2 * pairs, rng)]
    if real.pixels is None:
        return found | {"ms_ssim_within": asdict(similarity_within(chosen, pairs=pairs, seed=seed))}
    others = real.pixels[_some(theirs, 2 * pairs, rng)]
    intervals = (
        similarity_within(chosen, pairs=pairs, seed=seed),
        similarity_within(others, pairs=pairs, seed=seed),
        similarity_between(chosen, others, pairs=pairs, seed=seed),
    )
    return {name: asdict(interval) for name, interval in zip(_SIMILARITIES, intervals, strict=True)}


def _some(places: Places, count: int, rng: np.random.Generator) -> Places:
    return np.sort(rng.choice(places, count, replace=False))


def _features(table: ImageTable, places: Places) -> Features:
    return table.features[places].astype(np.float64)
