"""What classifiers are trained on: synthetic images, real ones of half of the patients, and both in several ways."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import GroupShuffleSplit

from cxrsynth.errors import ReportsError
from cxrsynth.metrics.fidelity import Features
from cxrsynth.metrics.groups import ImageTable, Places

Truth = npt.NDArray[np.bool_]

SYNTHETIC, REAL, BOTH = "synthetic", "real", "real + synthetic"
BALANCED, PRETRAINED = "real + balanced synthetic", "synthetic then real"
TRAINED_ON = (SYNTHETIC, REAL, BOTH, BALANCED, PRETRAINED)
# Training images of one kind, at most: with more, a probe gains little and takes longer.
MOST = 5000


@dataclass(frozen=True, slots=True)
class Split:
    """Places of the reference images to train on and to test on; no patient is in both."""

    train: Places
    test: Places


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """Images to train on.

    `features` are [N, D], `present` the findings present in each, `subjects` sex and age group (None where one is
    unknown), `pixels` [N, H, W] uint8 where a network is trained.
    """

    features: Features
    present: list[set[str]]
    patients: list[str]
    subjects: list[tuple[str, str] | None]
    pixels: npt.NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return len(self.present)

    def __add__(self, other: "TrainingSet") -> "TrainingSet":
        return TrainingSet(
            np.concatenate([self.features, other.features]),
            self.present + other.present,
            self.patients + other.patients,
            self.subjects + other.subjects,
            None if self.pixels is None or other.pixels is None else np.concatenate([self.pixels, other.pixels]),
        )

    def take(self, places: Places) -> "TrainingSet":
        """The images at some places, in their order."""
        chosen = places.tolist()
        return TrainingSet(
            self.features[places],
            [self.present[place] for place in chosen],
            [self.patients[place] for place in chosen],
            [self.subjects[place] for place in chosen],
            None if self.pixels is None else self.pixels[places],
        )


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to train: on `before`, then on `own` and `beside` together; None where a part is left out.

    `own` are real images, `before` and `beside` synthetic ones.
    """

    name: str
    own: TrainingSet | None
    beside: TrainingSet | None = None
    before: TrainingSet | None = None

    def stages(self) -> list[tuple[str, TrainingSet]]:
        """Sets that each need enough images, by the name they have in `too_few`."""
        last = [one for one in (self.own, self.beside) if one is not None]
        joined = [(self.name, last[0] if len(last) == 1 else last[0] + last[1])]
        return joined if self.before is None else [(SYNTHETIC, self.before), (REAL, joined[0][1])]


@dataclass(frozen=True, slots=True)
class Cohorts:
    """Synthetic and real images to train on. `unbalanced` says why no balanced cohort can be drawn, None where one can.

    In a balanced cohort sexes and age groups are equally frequent in all combinations: as many images of each as the
    rarest has, chosen at random.
    """

    synthetic: TrainingSet
    own: TrainingSet
    least: int
    seed: int

    def arms(self, finding: str | None = None) -> list[Arm]:
        """Every way to train. For a finding, its presence is balanced too where every combination has enough images."""
        balanced = [] if self.unbalanced else [Arm(BALANCED, self.own, beside=self._balanced(finding))]
        return [
            Arm(SYNTHETIC, None, beside=self.synthetic),
            Arm(REAL, self.own),
            Arm(BOTH, self.own, beside=self.synthetic),
            *balanced,
            Arm(PRETRAINED, self.own, before=self.synthetic),
        ]

    @property
    def unbalanced(self) -> str | None:
        """Why no balanced cohort can be drawn."""
        sexes, ages = ({one[part] for one in self.synthetic.subjects if one} for part in (0, 1))
        if not sexes:
            return "no synthetic image has a known sex and age group"
        if len(sexes) * len(ages) == 1:
            return f"all synthetic images show one sex and age group ({', '.join([*sexes, *ages])})"
        few = {f"{sex}, {age}": self.synthetic.subjects.count((sex, age)) for sex in sexes for age in ages}
        rarest = min(sorted(few), key=lambda name: few[name])
        if few[rarest] < self.least:
            return f"{few[rarest]} synthetic images show {rarest}, expected at least {self.least}"
        return None

    def balanced_by(self, finding: str) -> bool:
        """Whether there are enough synthetic images with and without a finding in every combination of sex and age."""
        if self.unbalanced:
            return False
        cells = self._cells(finding)
        combinations = {one for one in self.synthetic.subjects if one}
        return len(cells) == 2 * len(combinations) and min(map(len, cells.values())) >= self.least

    def _balanced(self, finding: str | None) -> TrainingSet:
        by = finding if finding is not None and self.balanced_by(finding) else None
        cells = self._cells(by)
        rng = np.random.default_rng([self.seed, *(by or "").encode()])
        count = min(map(len, cells.values()))
        chosen = [rng.choice(cells[name], count, replace=False) for name in sorted(cells)]
        return self.synthetic.take(np.sort(np.concatenate(chosen)))

    def _cells(self, finding: str | None) -> dict[tuple[str, str, bool], list[int]]:
        """Places of the synthetic images of each sex, age group and, for a finding, with and without it."""
        cells: dict[tuple[str, str, bool], list[int]] = {}
        for place, subject in enumerate(self.synthetic.subjects):
            if subject is not None:
                cells.setdefault((*subject, finding in self.synthetic.present[place]), []).append(place)
        return cells


def draw_cohorts(made: ImageTable, real: ImageTable, train: Places, *, least: int, seed: int) -> Cohorts:
    """Labeled synthetic images and the real ones at `train`, at most `MOST` of a kind, chosen at random."""
    rng = np.random.default_rng(seed)
    synthetic = _some(made, labeled(made), prefix="made", rng=rng)
    return Cohorts(synthetic, _some(real, train, prefix="real", rng=rng), least, seed)


def split_patients(real: ImageTable, *, seed: int, fewest: int = 1) -> Split:
    """Images with any stated finding, in two halves by patient.

    Args:
        real: the reference.
        seed: of the split.
        fewest: patients to train on; a network needs two, one of whom says when its outputs are calibrated.

    Raises:
        ReportsError: if they are of a single patient, or of too few.
    """
    places = labeled(real)
    patients = patients_of(real, places, prefix="real")
    if len(set(patients)) < 2:
        raise ReportsError(
            "reference: labeled images of a single patient\n  expected: patients to train and to test on"
        )
    train, test = halves(patients, share=0.5, seed=seed)
    if (found := len({patients[place] for place in train})) < fewest:
        raise ReportsError(
            f"reference: labeled images of {len(set(patients))} patients, {found} of them to train on\n"
            f"  expected: at least {fewest} to train a network on"
        )
    return Split(places[train], places[test])


def halves(patients: list[str], *, share: float, seed: int) -> tuple[Places, Places]:
    """Places in two parts that share no patient; the second has `share` of the patients."""
    split = GroupShuffleSplit(n_splits=1, test_size=share, random_state=seed)
    first, second = next(split.split(patients, groups=patients))
    return first, second


def labeled(table: ImageTable) -> Places:
    """Places of the images with any stated finding."""
    stated = (present or absent for present, absent in zip(table.present, table.denied(), strict=True))
    return np.flatnonzero(np.fromiter(map(bool, stated), dtype=bool))


def patients_of(table: ImageTable, places: Places, *, prefix: str) -> list[str]:
    """Each image's patient; an image of unknown patient is a patient of its own. No two can coincide."""
    return [f"{prefix} {table.patients[p]!r}" if table.patients[p] else f"{prefix} image {p}" for p in places]


def truth_of(finding: str, present: list[set[str]]) -> Truth:
    """Whether each image has a finding, [N]."""
    return np.asarray([finding in names for names in present], dtype=bool)


def _some(table: ImageTable, places: Places, *, prefix: str, rng: np.random.Generator) -> TrainingSet:
    if len(places) > MOST:
        places = np.sort(rng.choice(places, MOST, replace=False))
    subjects = [(table.sex[p], table.age_group[p]) for p in places]
    return TrainingSet(
        table.features[places].astype(np.float64),
        [table.present[p] for p in places],
        patients_of(table, places, prefix=prefix),
        [(sex, age) if sex and age else None for sex, age in subjects],
        None if table.pixels is None else np.asarray(table.pixels[places]),
    )
