"""Patients of a reference who are recognized in other images, and how well the verifier recognizes anybody.

An image is matched if it is closer to some reference image than a stated share of real images of other patients are.
Follow-up images in the reference show how many images of its patients would be matched.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cxrsynth.metrics.fidelity import Interval
from cxrsynth.metrics.memorization.features import Vectors
from cxrsynth.metrics.memorization.verification import Mask, Places
from cxrsynth.metrics.proportion import Share

FALSE_MATCHES = 0.01  # share of real images of other patients that the threshold lets match
FEWEST = 100  # patients; the quantile of fewer does not exist
_SAMPLE = 2000  # reference images, with all of their patients' images, that the threshold is found from
_BLOCK = 256  # images compared at a time
_ROUNDS = 1000
_QUANTILES = {"p5": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95, "p99": 0.99, "p100": 1.0}


@dataclass(frozen=True, slots=True)
class Calibration:
    """What a verifier does on the reference itself.

    `threshold` is that of an image's best score among all of the reference, `pair_threshold` that of one pair's, both
    at `FALSE_MATCHES`. `false_matches` counts real images of other patients over a threshold that was found without
    them; `found` patients of whom another image is matched to one of them, None where no patient has two images. `auc`
    is of pairs of one patient against pairs of two, each patient weighing the same; 95% interval over patients.
    """

    threshold: float
    pair_threshold: float
    false_matches: Share
    found: Share | None
    auc: Interval | None
    others: dict[str, float]
    same: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        """As in summary.json."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Best:
    """The reference image with the highest score of each of N images, [N], and that score."""

    places: Places
    scores: Vectors


def check_patients(patients: Places, *, unknown: int = 0) -> None:
    """Raises ValueError for fewer than `FEWEST` patients.

    Args:
        patients: number of each image's patient, [M], of the images whose patient is known.
        unknown: images beside them whose patient is not.
    """
    count = len(np.unique(patients))
    if count < FEWEST:
        known = f"known patients in the reference, and {unknown} images of unknown ones" if unknown else ""
        advice = "\n  name the column of patients with --patient-column" if unknown else ""
        raise ValueError(f"{count} {known or 'patients in the reference'}, expected at least {FEWEST}{advice}")


def calibrate(vectors: Vectors, patients: Places, *, seed: int) -> Calibration:
    """Find the threshold, and measure the verifier, on real images.

    Args:
        vectors: embeddings of length 1, [M, D].
        patients: number of each image's patient, [M], all known: two images of one person that count as two people
            would raise the threshold to where nobody is found.
        seed: of the sample, the halves and the bootstrap.

    Raises:
        ValueError: for fewer than `FEWEST` patients.
    """
    check_patients(patients)
    rng = np.random.default_rng([seed, 3])
    sample = _whole_patients(patients, rng)
    other, same = _apart(vectors, patients, sample)
    own = patients[sample]
    pairs = pair_scores(vectors[sample], own)
    pair_threshold = float(np.quantile(pairs.others, 1 - FALSE_MATCHES))
    threshold = float(np.quantile(other, 1 - FALSE_MATCHES))
    again = np.flatnonzero(same > -np.inf)
    # One image a patient: patients with many follow-ups would count as many.
    _, first = np.unique(own[again], return_index=True)
    return Calibration(
        threshold,
        pair_threshold,
        Share.among(_over_other_half(other, own, rng), own),
        Share.among(same[again[first]] > threshold) if len(first) else None,
        _auc(pairs, rng),
        quantiles(other),
        quantiles(pairs.same),
    )


def separation(vectors: Vectors, patients: Places, *, seed: int) -> Interval | None:
    """AUC of pairs of images of one patient against pairs of two, as in `Calibration`; None without such a pair.

    Args:
        vectors: embeddings of length 1, [M, D]; all pairs are formed.
        patients: number of each image's patient, [M].
        seed: of the bootstrap.
    """
    return _auc(pair_scores(vectors, patients), np.random.default_rng([seed, 3]))


def best_matches(made: Vectors, real: Vectors) -> Best:
    """The closest of real [M, D] to each of made [N, D], both of length 1; exact."""
    places, scores = np.zeros(len(made), np.int64), np.zeros(len(made), np.float32)
    for first, block in _blocks(made, real):
        rows = slice(first, first + len(block))
        places[rows] = block.argmax(1)
        scores[rows] = block.max(1)
    return Best(places, scores)


def source_scores(made: Vectors, real: Vectors, sources: Sequence[Sequence[int]]) -> Vectors:
    """The mean score of each image with its own sources among the real ones, [N]; nan without a source.

    The best of several would be compared with a threshold for one pair. The mean of several scatters less than one, so
    that no more of other patients' images are above that threshold.
    """
    return np.array(
        [(real[list(own)] @ vector).mean() if len(own) else np.nan for vector, own in zip(made, sources, strict=True)],
        dtype=np.float32,
    )


def closer_to_source(
    made: Vectors, real: Vectors, sources: Sequence[Sequence[int]], patients: Places, kinds: Places, *, seed: int
) -> Interval | None:
    """Share of like images of other patients that an image is less close to than to its source; mean, 0.5 by chance.

    Of several sources each is ranked by itself, and their mean taken: the closest of k would be ahead of k/(k + 1) of
    single images by chance.

    Args:
        made: embeddings [N, D] of length 1.
        real: those of the reference, [M, D].
        sources: places of each image's sources, one at least. Images of one report have the same.
        patients: number of each reference image's patient, [M].
        kinds: number of each reference image's kind, [M]: a source is compared with others of its kind, since what a
            prompt states makes an image closer to all of these.
        seed: of the bootstrap, which resamples reports.

    Returns:
        None where no source has another image of its kind.
    """
    closer = np.full(len(made), np.nan)
    for first, block in _blocks(made, real):
        for row, scores in enumerate(block):
            own = list(sources[first + row])
            apart = ~np.isin(patients, patients[own])
            ranks = [
                ((others < scores[one]).mean() + (others <= scores[one]).mean()) / 2
                for one in own
                if len(others := scores[apart & (kinds == kinds[one])])
            ]
            if ranks:
                closer[first + row] = np.mean(ranks)
    known = ~np.isnan(closer)
    if not known.any():
        return None
    reports = np.array([min(own) for own in sources])[known]
    numbers = np.unique(reports, return_inverse=True)[1]
    return _mean_of_groups(closer[known], numbers, np.random.default_rng([seed, 4]))


def quantiles(scores: npt.NDArray[np.floating[Any]]) -> dict[str, float]:
    """Quantiles by name; none of no scores."""
    if not len(scores):
        return {}
    values = np.quantile(scores, list(_QUANTILES.values()))
    return dict(zip(_QUANTILES, values.tolist(), strict=True))


@dataclass(frozen=True, slots=True)
class Pairs:
    """Scores of pairs of real images: `others` of two patients, `same` of one, and the patient of each of these."""

    others: Vectors
    same: Vectors
    patients: Places


def _blocks(rows: Vectors, columns: Vectors) -> Iterator[tuple[int, Vectors]]:
    """Cosines of some rows at a time with all columns, and the first of these rows."""
    for first in range(0, len(rows), _BLOCK):
        yield first, rows[first : first + _BLOCK] @ columns.T


def _whole_patients(patients: Places, rng: np.random.Generator) -> Places:
    """Places of the images of random patients, up to `_SAMPLE` images, in order."""
    sizes = np.bincount(patients)
    order = rng.permutation(np.flatnonzero(sizes))
    taken = order[: max(FEWEST, int(np.searchsorted(np.cumsum(sizes[order]), _SAMPLE, "right")))]
    return np.flatnonzero(np.isin(patients, taken)).astype(np.int64)


def _apart(vectors: Vectors, patients: Places, sample: Places) -> tuple[Vectors, Vectors]:
    """Best score of sampled images with other patients' images, and with others of their own (-inf for none), [S]."""
    other, same = np.zeros(len(sample), np.float32), np.zeros(len(sample), np.float32)
    for first, block in _blocks(vectors[sample], vectors):
        places = sample[first : first + len(block)]
        own = patients[places][:, None] == patients
        other[first : first + len(block)] = np.where(own, -np.inf, block).max(1)
        own[np.arange(len(block)), places] = False
        same[first : first + len(block)] = np.where(own, block, -np.inf).max(1)
    return other, same


def _over_other_half(scores: Vectors, patients: Places, rng: np.random.Generator) -> Mask:
    """Which scores are over the threshold that the other half of the patients gives, [S]."""
    known = np.unique(patients)
    half = np.isin(patients, rng.permutation(known)[: len(known) // 2])
    thresholds = np.where(
        half, np.quantile(scores[~half], 1 - FALSE_MATCHES), np.quantile(scores[half], 1 - FALSE_MATCHES)
    )
    return np.asarray(scores > thresholds)


def pair_scores(vectors: Vectors, patients: Places) -> Pairs:
    """Cosines of all pairs of embeddings [M, D] of length 1, by whether they are of one patient, `patients` [M]."""
    scores = vectors @ vectors.T
    upper = np.triu(np.ones(scores.shape, bool), 1)
    own = patients[:, None] == patients
    rows, _ = np.nonzero(upper & own)
    return Pairs(scores[upper & ~own], scores[upper & own], patients[rows])


def _auc(pairs: Pairs, rng: np.random.Generator) -> Interval | None:
    """AUC of pairs of one patient against those of two; resampled are the patients with several images."""
    if not len(pairs.same):
        return None
    ordered = np.sort(pairs.others)
    below = np.searchsorted(ordered, pairs.same, "left") + np.searchsorted(ordered, pairs.same, "right")
    return _mean_of_groups(below / (2 * len(ordered)), np.unique(pairs.patients, return_inverse=True)[1], rng)


def _mean_of_groups(values: npt.NDArray[np.floating[Any]], groups: Places, rng: np.random.Generator) -> Interval:
    """Mean over groups of their means, and its 95% percentile interval over resampled groups, numbered from 0."""
    means = np.bincount(groups, values) / np.bincount(groups)
    drawn = [means[rng.integers(len(means), size=len(means))].mean() for _ in range(_ROUNDS)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(float(means.mean()), float(low), float(high))
