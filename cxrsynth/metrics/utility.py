"""Utility: does training on synthetic images help? A probe trained on synthetic, real or both, tested on real
patients.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, GroupShuffleSplit, StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cxrsynth.errors import ReportsError
from cxrsynth.metrics.fidelity import Features, Interval
from cxrsynth.metrics.groups import ImageTable, Places
from cxrsynth.reports.labels import OBSERVATIONS

Truth = npt.NDArray[np.bool_]

SYNTHETIC, REAL, BOTH = "synthetic", "real", "real + synthetic"
# Training images of one kind, at most: with more, a probe gains little and takes longer.
MOST = 5000
_FOLDS = 3
_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # inverse strengths, for standardized features
_KINDS = ("sex", "age group", "view")


@dataclass(frozen=True, slots=True)
class Split:
    """Places of the reference images to train on and to test on; no patient is in both."""

    train: Places
    test: Places


@dataclass(frozen=True, slots=True)
class _TrainingSet:
    """Images to train on: features [N, D], the findings present in each, and their patients."""

    features: Features
    present: list[set[str]]
    patients: list[str]

    def __add__(self, other: "_TrainingSet") -> "_TrainingSet":
        features = np.concatenate([self.features, other.features])
        return _TrainingSet(features, self.present + other.present, self.patients + other.patients)


def measure_utility(
    made: ImageTable, real: ImageTable, *, seed: int, least: int = 10, rounds: int = 500
) -> dict[str, Any]:
    """How well findings are recognized in held-out real patients after training on synthetic, real, or both.

    The probe is one logistic regression per finding on the extractor's features: standardized, classes balanced, its L2
    chosen by cross-validation with patients kept apart. A finding that is not stated as present counts as absent;
    images without any stated finding are left out. This cannot show whether the generator has seen the test patients.

    Args:
        made: synthetic images, with the findings that were requested.
        real: the reference, features of the same extractor: half of its patients train, half test. An image of unknown
            patient counts as a patient of its own.
        seed: of the split, of the choice of training images (`MOST` of a kind) and of the bootstrap.
        least: images with a finding, and without it, needed to train on it or to test it in a group.
        rounds: of the bootstrap over test patients.

    Returns:
        `rows`: AUROC by finding, group and training set, with interval, and the number of test images; `lift`: AUROC of
        real + synthetic minus that of real, both on the same resampled patients; `too_few`: where fewer than `least`
        images had a finding or lacked it: which finding, in which group, `in` which training set or in `test`, how many
        `present` and `absent`, and how many `patients` if these are too few to choose the L2; `split`: images to train
        and to test on, and those of unknown patient.

    Raises:
        ReportsError: if no image of the reference, or no synthetic one, has a finding stated as present.
        ValueError: if the features differ in width.
    """
    if made.features.shape[1] != real.features.shape[1]:
        raise ValueError(f"features of {made.features.shape[1]} and {real.features.shape[1]}, expected one extractor")
    for kind, table in (("audited images", made), ("reference", real)):
        if not any(table.present):
            raise ReportsError(
                f"{kind}: no image has a finding stated as present\n  expected: labels or reports to measure utility"
            )
    split = split_patients(real, seed=seed)
    rng = np.random.default_rng(seed)
    synthetic = _some(made, _labeled(made), prefix="made", rng=rng)
    own = _some(real, split.train, prefix="real", rng=rng)
    sets = {SYNTHETIC: synthetic, REAL: own, BOTH: own + synthetic}
    test = _Tested.of(real, split.test, rounds=rounds, seed=seed)
    found: dict[str, Any] = {"rows": [], "lift": [], "too_few": []}
    for finding in _findings(made, real):
        _measure_finding(finding, sets, test, found, least=least)
    unknown = sum(not real.patients[place] for place in np.concatenate([split.train, split.test]))
    counts = {"train": len(own.present), "synthetic": len(synthetic.present), "test": len(split.test)}
    return found | {"split": counts | {"patients_unknown": unknown}}


def split_patients(real: ImageTable, *, seed: int) -> Split:
    """Images with any stated finding, in two halves by patient.

    Raises:
        ReportsError: if they are of a single patient.
    """
    labeled = _labeled(real)
    patients = _patients(real, labeled, prefix="real")
    if len(set(patients)) < 2:
        raise ReportsError(
            "reference: labeled images of a single patient\n  expected: patients to train and to test on"
        )
    train, test = next(GroupShuffleSplit(n_splits=1, test_size=0.5, random_state=seed).split(labeled, groups=patients))
    return Split(labeled[train], labeled[test])


def _labeled(table: ImageTable) -> Places:
    stated = (present or absent for present, absent in zip(table.present, table.denied(), strict=True))
    return np.flatnonzero(np.fromiter(map(bool, stated), dtype=bool))


def _patients(table: ImageTable, places: Places, *, prefix: str) -> list[str]:
    """Each image's patient; an image of unknown patient is a patient of its own. No two can coincide."""
    return [f"{prefix} {table.patients[p]!r}" if table.patients[p] else f"{prefix} image {p}" for p in places]


def _some(table: ImageTable, places: Places, *, prefix: str, rng: np.random.Generator) -> _TrainingSet:
    if len(places) > MOST:
        places = np.sort(rng.choice(places, MOST, replace=False))
    features = table.features[places].astype(np.float64)
    return _TrainingSet(features, [table.present[p] for p in places], _patients(table, places, prefix=prefix))


def _findings(made: ImageTable, real: ImageTable) -> list[str]:
    """Findings of either side: CheXpert's in their order, then others."""
    seen = set[str]().union(*made.present, *real.present)
    return [name for name in OBSERVATIONS if name in seen] + sorted(seen - set(OBSERVATIONS))


@dataclass(frozen=True, slots=True)
class _Tested:
    """Test images: features [N, D], groups as masks [N], and how often each image is in each round [rounds, N]."""

    features: Features
    present: list[set[str]]
    groups: Mapping[str, Truth]
    times: Features

    @staticmethod
    def of(real: ImageTable, places: Places, *, rounds: int, seed: int) -> "_Tested":
        groups = {name: np.isin(places, own) for name, own in real.groups().items()}
        shown = {name: mask for name, mask in groups.items() if name == "all" or name.split(":")[0] in _KINDS}
        times = _resampled(_patients(real, places, prefix="real"), rounds=rounds, seed=seed)
        features = real.features[places].astype(np.float64)
        return _Tested(features, [real.present[p] for p in places], shown, times)


def _measure_finding(
    finding: str, sets: Mapping[str, _TrainingSet], test: _Tested, found: dict[str, Any], *, least: int
) -> None:
    """Adds a finding's rows to `found`."""
    truth = _truth(finding, test.present)
    groups = dict(_enough(finding, truth, test.groups, found["too_few"], least=least))
    if not groups:
        return
    scores = {}
    for name, images in sets.items():
        labels = _truth(finding, images.present)
        everyone = {"all": np.ones(len(labels), dtype=bool)}
        if not list(_enough(finding, labels, everyone, found["too_few"], least, name)):
            continue
        folds = _folds(images, labels)
        if folds is None:
            found["too_few"].append(_few(finding, labels, "all", name) | {"patients": len(set(images.patients))})
        else:
            scores[name] = _probe(images, labels, folds).decision_function(test.features)
    for group, mask in groups.items():
        areas = {
            name: _areas(score[mask], truth[mask], test.times[:, mask]) for name, score in scores.items()
        }  # [1 + rounds] each, that of the set itself first
        for name, area in areas.items():
            cell = {"finding": finding, "group": group, "trained_on": name}
            found["rows"].append(cell | {"auroc": asdict(_interval(area)), "images": int(mask.sum())})
        if REAL in areas and BOTH in areas:
            lift = _interval(areas[BOTH] - areas[REAL])
            found["lift"].append({"finding": finding, "group": group} | asdict(lift))


def _enough(
    finding: str,
    truth: Truth,
    groups: Mapping[str, Truth],
    too_few: list[dict[str, Any]],
    least: int,
    where: str = "test",
) -> Iterator[tuple[str, Truth]]:
    """Groups with at least `least` images that have the finding and `least` that lack it; the others are listed."""
    for group, mask in groups.items():
        few = _few(finding, truth[mask], group, where)
        if min(few["present"], few["absent"]) >= least:
            yield group, mask
        else:
            too_few.append(few)


def _few(finding: str, truth: Truth, group: str, where: str) -> dict[str, Any]:
    """A row of `too_few`."""
    present = int(truth.sum())
    return {"finding": finding, "group": group, "in": where, "present": present, "absent": len(truth) - present}


def _truth(finding: str, present: list[set[str]]) -> Truth:
    return np.asarray([finding in names for names in present], dtype=bool)


def _folds(images: _TrainingSet, labels: Truth) -> list[tuple[Places, Places]] | None:
    """Places to train and to test on in each fold, patients kept apart; None if in a fold all images or none have it.

    That happens with many images of few patients: those with the finding may show one or two.
    """
    if len(set(images.patients)) < _FOLDS:
        return None
    folds = list(StratifiedGroupKFold(_FOLDS).split(images.features, labels, images.patients))
    both = all(0 < labels[places].sum() < len(places) for fold in folds for places in fold)
    return folds if both else None


def _probe(images: _TrainingSet, labels: Truth, folds: list[tuple[Places, Places]]) -> Any:
    """The fitted probe, with the strongest of equally good penalties."""
    probe = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000))
    search = GridSearchCV(
        probe, {"logisticregression__C": list(_PENALTIES)}, scoring="roc_auc", cv=folds, error_score="raise"
    )
    return search.fit(images.features, labels)


def _areas(scores: Features, truth: Truth, times: Features) -> Features:
    """AUROC of images [N] as they are, then resampled `times` [rounds, N] -> [1 + rounds]; nan without both classes.

    Ties count half, as in sklearn.metrics.roc_auc_score with weights, which takes one round at a time.
    """
    order = np.argsort(scores, kind="stable")
    _, first = np.unique(scores[order], return_index=True)
    weights = np.concatenate([np.ones((1, len(scores))), times])[:, order]
    present = np.add.reduceat(weights * truth[order], first, axis=1)  # at each score
    absent = np.add.reduceat(weights * ~truth[order], first, axis=1)
    below = absent.cumsum(1) - absent / 2
    with np.errstate(invalid="ignore"):  # 0 / 0 where a round lacks a class
        return np.asarray((present * below).sum(1) / (present.sum(1) * absent.sum(1)))


def auroc_interval(scores: Features, truth: Truth, patients: Sequence[str], *, rounds: int, seed: int) -> Interval:
    """AUROC of N scores, with a 95% interval by a bootstrap over patients; an unknown patient is one of its own.

    Args:
        scores: higher where the finding is likelier, [N].
        truth: whether it is there, [N].
        patients: of each, empty where unknown.
        rounds: of the bootstrap.
        seed: of the bootstrap.
    """
    names = [name or f"image {place}" for place, name in enumerate(patients)]
    return _interval(_areas(scores, truth, _resampled(names, rounds=rounds, seed=seed)))


def _resampled(patients: Sequence[str], *, rounds: int, seed: int) -> Features:
    """How often each image is in each round, [rounds, N]: patients are drawn, because their images are similar."""
    _, patient = np.unique(np.asarray(patients), return_inverse=True)
    count = int(patient.max()) + 1
    rng = np.random.default_rng(seed)
    times = [np.bincount(rng.integers(count, size=count), minlength=count)[patient] for _ in range(rounds)]
    return np.stack(times).astype(np.float64)


def _interval(areas: Features) -> Interval:
    low, high = np.nanquantile(areas[1:], [0.025, 0.975])
    return Interval(float(areas[0]), float(low), float(high))
