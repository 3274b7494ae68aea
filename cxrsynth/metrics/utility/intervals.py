"""Areas and rates on test images, with intervals by a bootstrap over patients."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cxrsynth.metrics.fidelity import Features, Interval
from cxrsynth.metrics.groups import ImageTable, Places
from cxrsynth.metrics.utility.cohorts import Truth, patients_of

_KINDS = ("sex", "age group", "view")


@dataclass(frozen=True, slots=True)
class Tested:
    """Test images: features [N, D], groups as masks [N], how often each image is in each round [rounds, N], patients.

    Patients are numbers, [N].
    """

    features: Features
    present: list[set[str]]
    groups: Mapping[str, Truth]
    times: Features
    patients: Places

    @staticmethod
    def of(real: ImageTable, places: Places, *, rounds: int, seed: int) -> "Tested":
        """The images of the reference at some places."""
        groups = {name: np.isin(places, own) for name, own in real.groups().items()}
        shown = {name: mask for name, mask in groups.items() if name == "all" or name.split(":")[0] in _KINDS}
        patients = patients_of(real, places, prefix="real")
        times = _resampled(patients, rounds=rounds, seed=seed)
        features = real.features[places].astype(np.float64)
        numbers = np.unique(np.asarray(patients), return_inverse=True)[1].astype(np.int64)
        return Tested(features, [real.present[p] for p in places], shown, times, numbers)


def fewest_patients(truth: Truth, patients: Places) -> int:
    """Of how many patients the images [N] are that have a finding, or that lack it, whichever are fewer.

    A bootstrap over very few patients gives intervals that are far too narrow: of one patient, of no width.
    """
    return min(len(np.unique(patients[kind])) for kind in (truth, ~truth))


def areas(scores: Features, truth: Truth, times: Features) -> Features:
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


def shares(chosen: Truth, times: Features) -> Features:
    """Share of images [N] that are `chosen`, as they are, then resampled -> [1 + rounds]; nan for no image."""
    weights = np.concatenate([np.ones((1, len(chosen))), times])
    with np.errstate(invalid="ignore"):
        return np.asarray((weights * chosen).sum(1) / weights.sum(1))


def interval_of(values: Features) -> Interval:
    """The first of [1 + rounds] values, with the 95% interval of the others."""
    low, high = np.nanquantile(values[1:], [0.025, 0.975])
    return Interval(float(values[0]), float(low), float(high))


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
    return interval_of(areas(scores, truth, _resampled(names, rounds=rounds, seed=seed)))


def _resampled(patients: Sequence[str], *, rounds: int, seed: int) -> Features:
    """How often each image is in each round, [rounds, N]: patients are drawn, because their images are similar."""
    _, patient = np.unique(np.asarray(patients), return_inverse=True)
    count = int(patient.max()) + 1
    rng = np.random.default_rng(seed)
    times = [np.bincount(rng.integers(count, size=count), minlength=count)[patient] for _ in range(rounds)]
    return np.stack(times).astype(np.float64)
