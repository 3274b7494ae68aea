"""The Frechet distance of two populations, from sets too small for the distance of the sets to show it.

The distance of two sets lies above that of their populations by about a/N: at 260 images of 160 features by half of
the value. Extrapolating to infinite N (Chong and Forsyth, arXiv:1911.07023) takes that away. They fit a line in 1/N to
distances of random subsets; here the line goes through the whole sets and through them without one of K blocks, which
is the jackknife. On the same simulated sets its standard deviation is two thirds of theirs and its bias smaller, and
the blocks give the interval as well (docs/audit.md has numbers, `tests/benchmarks/fidelity_coverage.py` makes them).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import t as student

from cxrsynth.metrics.fidelity import Features, Interval, Units, root_trace

# Images that are resampled together count once. Fewer leave a block empty.
FEWEST_UNITS = 20


def infinity_problem(images: int, width: int, units: int) -> str | None:
    """Why sets of this size have no extrapolated distance; None where they have.

    Args:
        images: of the smaller set.
        width: features per image.
        units: patients (or reports) of the set that has fewer.
    """
    if images <= width:
        return f"{images} images for {width} features, expected more images than features"
    if units < FEWEST_UNITS:
        return f"images of {units} patients or reports, expected at least {FEWEST_UNITS}"
    return None


def frechet_infinity(
    first: Features,
    second: Features,
    *,
    units: tuple[Units, Units] | None = None,
    blocks: int = 20,
    seed: int = 0,
) -> Interval:
    """Squared Frechet distance of the populations that features [N, D] and [M, D] come from, with its interval.

    Nearly unbiased, so that of equal populations it scatters around 0 and may be below.

    Args:
        first: [N, D].
        second: [M, D].
        units: whose each image is, by set; a unit is in one block. Without them every image is its own.
        blocks: K; the distance is computed K + 1 times.
        seed: of the random blocks.

    Returns:
        K t - (K - 1) mean(t_k) for the distances t of all images and t_k without block k, and the interval of Student's
        t with K - 1 degrees of freedom around it. It is too wide near 0, where the distance is no longer linear.

    Raises:
        ValueError: if `infinity_problem` finds one, or there are more blocks than units.
    """
    whose = (np.arange(len(first)), np.arange(len(second))) if units is None else units
    fewest = min(len(np.unique(of)) for of in whose)
    problem = infinity_problem(min(len(first), len(second)), first.shape[1], fewest)
    if problem is not None or blocks > fewest:
        raise ValueError(problem or f"{blocks} blocks of {fewest} units")
    rng = np.random.default_rng(seed)
    center = first.mean(0)  # distances stay, and sums of squares keep their digits
    one, other = (_in_blocks(x - center, of, blocks, rng) for x, of in zip((first, second), whose, strict=True))
    all_one, all_other = _Sums.of(first - center), _Sums.of(second - center)
    value = _distance(all_one, all_other)
    left = np.asarray(
        [_distance(all_one - _Sums.of(x), all_other - _Sums.of(y)) for x, y in zip(one, other, strict=True)]
    )
    estimate = blocks * value - (blocks - 1) * float(left.mean())
    # Both sets lose a block at a time: pairs of blocks are the units of the jackknife.
    error = np.sqrt((blocks - 1) / blocks * ((left - left.mean()) ** 2).sum())
    margin = float(student.ppf(0.975, blocks - 1) * error)
    return Interval(estimate, estimate - margin, estimate + margin)


@dataclass(frozen=True, slots=True)
class _Sums:
    """Number of images, sum of their features [D], and sum of the outer products [D, D]."""

    count: int
    total: Features
    products: Features

    @staticmethod
    def of(features: Features) -> "_Sums":
        return _Sums(len(features), features.sum(0), features.T @ features)

    def __sub__(self, other: "_Sums") -> "_Sums":
        return _Sums(self.count - other.count, self.total - other.total, self.products - other.products)

    @property
    def mean(self) -> Features:
        return self.total / self.count

    @property
    def covariance(self) -> Features:
        return np.asarray((self.products - self.count * np.outer(self.mean, self.mean)) / (self.count - 1))


def _distance(one: _Sums, other: _Sums) -> float:
    """The squared Frechet distance, the part of the means without its bias of tr(A)/N + tr(B)/M."""
    difference = one.mean - other.mean
    first, second = one.covariance, other.covariance
    traces = np.trace(first) * (1 - 1 / one.count) + np.trace(second) * (1 - 1 / other.count)
    return float(difference @ difference + traces - 2.0 * root_trace(first, second))


def _in_blocks(
    features: Features, units: Units, blocks: int, rng: np.random.Generator
) -> list[npt.NDArray[np.float64]]:
    """The features in blocks of whole units, as many units in each, give or take one."""
    names, numbers = np.unique(units, return_inverse=True)
    block_of = (rng.permutation(len(names)) % blocks)[numbers]
    return [features[block_of == block] for block in range(blocks)]
