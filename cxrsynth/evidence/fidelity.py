"""How near a set of images is to a set of real ones, in the feature space of a named extractor."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import cdist

Features = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """A measure with the 95% interval of its bootstrap."""

    value: float
    low: float
    high: float


def frechet_distance(first: Features, second: Features) -> float:
    """Squared Frechet distance of two Gaussians fitted to features [N, D] and [M, D]; 0 is equal.

    Biased upwards for small sets: compare only at equal counts.

    Source: Heusel et al., arXiv:1706.08500, equation 6.
    """
    difference = first.mean(0) - second.mean(0)
    one, other = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    # tr sqrt(AB) through the symmetric sqrt(A) B sqrt(A): real, and stable where A is singular.
    values, vectors = np.linalg.eigh(one)
    root = (vectors * np.sqrt(values.clip(min=0.0))) @ vectors.T
    crossed = np.linalg.eigvalsh(root @ other @ root).clip(min=0.0)
    return float(difference @ difference + np.trace(one) + np.trace(other) - 2.0 * np.sqrt(crossed).sum())


def kernel_distance(first: Features, second: Features) -> float:
    """Unbiased squared maximum mean discrepancy under the cubic polynomial kernel; may be below 0 for equal sets.

    Source: Binkowski et al., arXiv:1801.01401, equation 4 and section 4 (KID).
    """
    size, others = len(first), len(second)

    def kernel(a: Features, b: Features) -> Features:
        return np.asarray((a @ b.T / a.shape[1] + 1.0) ** 3, dtype=np.float64)

    within, beside = kernel(first, first), kernel(second, second)
    own = (within.sum() - np.trace(within)) / (size * (size - 1))
    theirs = (beside.sum() - np.trace(beside)) / (others * (others - 1))
    return float(own + theirs - 2.0 * kernel(first, second).mean())


@dataclass(frozen=True, slots=True)
class Manifolds:
    """Shares of images that lie where the others do. Source: Naeem et al., arXiv:2002.09797 (and 1904.06991)."""

    precision: float
    recall: float
    density: float
    coverage: float


def manifolds(real: Features, made: Features, *, neighbours: int = 5) -> Manifolds:
    """Precision, recall, density and coverage of made features [M, D] against real ones [N, D].

    Raises:
        ValueError: if a set has no more images than `neighbours`.
    """
    if min(len(real), len(made)) <= neighbours:
        raise ValueError(f"{len(real)} real and {len(made)} made images, expected more than {neighbours} of each")
    real_radius, made_radius = _radii(real, neighbours), _radii(made, neighbours)
    apart = cdist(made, real)  # [M, N]
    inside_real = apart < real_radius[None]
    return Manifolds(
        precision=float(inside_real.any(1).mean()),
        recall=float((apart < made_radius[:, None]).any(0).mean()),
        density=float(inside_real.sum() / (neighbours * len(made))),
        coverage=float((apart.min(0) < real_radius).mean()),
    )


def bootstrap(
    measure: Callable[..., float], *sets: Features, rounds: int = 200, seed: int = 0, share: float = 0.95
) -> Interval:
    """The measure of sets of features, and its interval over resampled sets (percentiles, with replacement).

    For Frechet and kernel distances resampling adds bias (copies shrink covariance): their interval is moved to be
    centred on the value itself.
    """
    rng = np.random.default_rng(seed)
    value = measure(*sets)
    drawn = [measure(*(one[rng.integers(len(one), size=len(one))] for one in sets)) for _ in range(rounds)]
    low, high = np.quantile(drawn, [(1 - share) / 2, (1 + share) / 2])
    moved = value - float(np.median(drawn))
    return Interval(value, float(low) + moved, float(high) + moved)


def _radii(features: Features, neighbours: int) -> Features:
    """Distance of each to its k-th nearest neighbour, itself not counted; [N]."""
    return np.asarray(np.partition(cdist(features, features), neighbours, axis=1)[:, neighbours], dtype=np.float64)
