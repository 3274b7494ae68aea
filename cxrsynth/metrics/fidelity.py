"""Fidelity: how close a set of images is to a set of real ones, in the feature space of a named extractor.

The FID and KID of torchmetrics need pixels and a network; FID takes eigenvalues of an asymmetric product, KID needs
equal counts. The numbers here agree with theirs, with torch-fidelity's and with prdc's (see the tests) and are fast
enough to resample.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg import LinAlgError, eigvalsh
from scipy.stats import t as student
from sklearn.metrics.pairwise import euclidean_distances

Features = npt.NDArray[np.float64]
# [N] int: whose each image is, from 0 without gaps. Images of a patient, or of a report, are resampled together.
Units = npt.NDArray[np.int64]

_ROWS = 1024  # rows of a matrix of pairs held at a time
_HALF = 500  # images of a subsample, at most: the number of pairs grows with the square


@dataclass(frozen=True, slots=True)
class Interval:
    """A measure with its 95% interval; what the interval is of, the function that returns it says."""

    value: float
    low: float
    high: float


def frechet_distance(first: Features, second: Features) -> float:
    """Squared Frechet distance of two Gaussians fitted to features [N, D] and [M, D]; 0 is equal.

    Biased upwards for small sets: compare only at equal counts.

    Source: Heusel et al., arXiv:1706.08500, equation 6.
    """
    difference = first.mean(0) - second.mean(0)
    one, other = _deviations(first), _deviations(second)
    variance = (one**2).sum() + (other**2).sum()  # the traces of both covariances
    return float(difference @ difference + variance - 2.0 * _root_trace(one, other))


def _deviations(features: Features) -> Features:
    """X with X'X the covariance."""
    return np.asarray((features - features.mean(0)) / np.sqrt(len(features) - 1))


def _root_trace(first: Features, second: Features) -> float:
    """tr sqrt(AB) of the covariances A = X'X and B = Y'Y: the sum of singular values of X Y'."""
    narrow = min(len(first), len(second))
    if narrow < first.shape[1]:
        return float(np.linalg.svd(first @ second.T, compute_uv=False).sum())
    return root_trace(first.T @ first, second.T @ second)


def root_trace(one: Features, other: Features) -> float:
    """tr sqrt(AB) of two covariances [D, D]."""
    try:
        crossed = eigvalsh(one, other, type=2)  # A B x = v x
    except LinAlgError:
        # B is singular if a feature is the same for all images; the symmetric sqrt(B) A sqrt(B) allows that.
        values, vectors = np.linalg.eigh(other)
        root = (vectors * np.sqrt(values.clip(min=0.0))) @ vectors.T
        crossed = np.linalg.eigvalsh(root @ one @ root)
    return float(np.sqrt(crossed.clip(min=0.0)).sum())


def frechet_interval(
    first: Features,
    second: Features,
    *,
    units: tuple[Units, Units] | None = None,
    rounds: int = 100,
    seed: int = 0,
) -> Interval:
    """`frechet_distance` with the interval of its mean at this sample size, centered on the value (see `bootstrap`).

    Not an interval of the distance between the populations, which is smaller: see `frechet_infinity`. The same numbers
    as `bootstrap(frechet_distance, ...)`, without repeated rows: an image sampled w times is one row times sqrt(w),
    which leaves five rows of eight. `units` of both sets are resampled whole; without them every image is its own.
    """
    rng = np.random.default_rng(seed)
    whose = _units(first, second, units)
    sampled = []
    for _ in range(rounds):
        one, other = (_counted(features, of, rng) for features, of in zip((first, second), whose, strict=True))
        difference = one.mean - other.mean
        variance = (one.deviations**2).sum() + (other.deviations**2).sum()
        sampled.append(difference @ difference + variance - 2.0 * _root_trace(one.deviations, other.deviations))
    return _centered(frechet_distance(first, second), np.asarray(sampled))


@dataclass(frozen=True, slots=True)
class _Resampled:
    mean: Features
    deviations: Features


def _counted(features: Features, units: Units, rng: np.random.Generator) -> _Resampled:
    [times] = _times(units, 1, rng)
    kept, weight = features[times > 0], times[times > 0]
    count = weight.sum()
    mean = weight @ kept / count
    return _Resampled(mean, (kept - mean) * np.sqrt(weight / (count - 1))[:, None])


def kernel_distance(first: Features, second: Features, *, units: tuple[Units, Units] | None = None) -> float:
    """Unbiased squared maximum mean discrepancy under the cubic polynomial kernel; may be below 0 for equal sets.

    Within a set all pairs of images count (KID), or with `units` those of different units: images of one patient are
    more alike than images of two, which raises the distance to a set of other patients. torch-fidelity averages KID
    over random subsets of equal size.

    Source: Binkowski et al., arXiv:1801.01401, equation 4 and section 4 (KID).
    """
    one, other = np.ones((1, len(first))), np.ones((1, len(second)))
    return float(_kernel_distances(first, second, one, other, _units(first, second, units))[0])


def kernel_interval(
    first: Features,
    second: Features,
    *,
    units: tuple[Units, Units] | None = None,
    rounds: int = 200,
    seed: int = 0,
) -> Interval:
    """`kernel_distance` with the interval of the distance between the populations: the measure has no bias.

    A unit sampled twice is never paired with itself, so resampling adds no bias.
    """
    rng = np.random.default_rng(seed)
    whose = _units(first, second, units)
    one, other = (_times(of, rounds, rng) for of in whose)
    value = kernel_distance(first, second, units=units)
    return _centered(value, _kernel_distances(first, second, one, other, whose))


def _kernel_distances(
    first: Features, second: Features, one: Features, other: Features, units: tuple[Units, Units]
) -> Features:
    """For sets with image i repeated one[:, i] times; weights [rounds, N] and [rounds, M] -> [rounds]."""
    within = np.zeros(len(one))
    for features, weight, of in ((first, one, units[0]), (second, other, units[1])):
        # All pairs except those of a unit with itself.
        pairs = weight.sum(1) ** 2 - (weight**2) @ np.bincount(of)[of]
        within += (
            _kernel_sums(features, features, weight, weight) - (weight**2) @ _kernel_of_unit(features, of)
        ) / pairs
    crossed = _kernel_sums(first, second, one, other)
    return np.asarray(within - 2.0 * crossed / (one.sum(1) * other.sum(1)))


def _kernel_sums(first: Features, second: Features, one: Features, other: Features) -> Features:
    total = np.zeros(len(one))
    for rows in _blocks(len(first)):
        kernel = (first[rows] @ second.T / first.shape[1] + 1.0) ** 3
        total += ((one[:, rows] @ kernel) * other).sum(1)
    return total


def _kernel_of_unit(features: Features, units: Units) -> Features:
    """Sum of the kernel of each image with all of its unit, itself included; [N]."""
    found = ((features**2).sum(1) / features.shape[1] + 1.0) ** 3
    for unit in np.flatnonzero(np.bincount(units) > 1):
        own = np.flatnonzero(units == unit)
        found[own] = ((features[own] @ features[own].T / features.shape[1] + 1.0) ** 3).sum(1)
    return np.asarray(found)


@dataclass(frozen=True, slots=True)
class Manifolds:
    """Shares of images among those of the other set. Source: Naeem et al., arXiv:2002.09797 (and 1904.06991)."""

    precision: float
    recall: float
    density: float
    coverage: float


@dataclass(frozen=True, slots=True)
class ManifoldIntervals:
    """`Manifolds` with intervals."""

    precision: Interval
    recall: Interval
    density: Interval
    coverage: Interval


def manifolds(real: Features, made: Features, *, neighbours: int = 5) -> Manifolds:
    """Precision, recall, density and coverage of synthetic features [M, D] against real ones [N, D].

    A neighborhood ends before its k-th neighbor, as in prdc: of real images that are the same more than k times, a
    further copy is in none. torch-fidelity counts the k-th neighbor in.

    Raises:
        ValueError: if a set has no more images than `neighbours`.
    """
    parts = _parts(real, made, neighbours)
    return Manifolds(**{name: float(values.mean()) for name, values in parts.items()})


def manifold_intervals(
    real: Features,
    made: Features,
    *,
    neighbours: int = 5,
    units: tuple[Units, Units] | None = None,
    rounds: int = 50,
    seed: int = 0,
) -> ManifoldIntervals:
    """`manifolds` with intervals of their means at this sample size, by subsampling.

    None of the four has a population value to be near: radii shrink with the number of images. Both sets are resampled
    with their manifolds. A repeated image would shrink a radius, so each round takes half of the images of either set
    without replacement (`_HALF` at most); of a share f, the variance is f / (1 - f) times that of the rounds, and the
    interval is Student's. With the manifolds kept fixed, intervals cover 0.74 to 0.93 where these cover 0.88 to 1.00.

    Args:
        real: [N, D].
        made: [M, D].
        neighbours: k of the k-th nearest neighbor.
        units: of real and synthetic images, taken whole; without them every image is its own.
        rounds: subsamples.
        seed: of the subsamples.

    Raises:
        ValueError: if half of a set is no more images than `neighbours`.

    Source: Politis and Romano, Ann. Statist. 22(4), 1994 (subsampling).
    """
    if min(len(real), len(made)) // 2 <= neighbours:
        raise ValueError(
            f"{len(real)} real and {len(made)} made images, expected more than {2 * neighbours + 1} of each"
        )
    value, rng = manifolds(real, made, neighbours=neighbours), np.random.default_rng(seed)
    whose = _units(real, made, units)
    share = min(0.5, _HALF / max(len(real), len(made)))
    sampled = []
    for _ in range(rounds):
        one, other = (
            features[_chosen(of, share, rng, least=neighbours + 1)]
            for features, of in zip((real, made), whose, strict=True)
        )
        sampled.append(list(asdict(manifolds(one, other, neighbours=neighbours)).values()))
    half = student.ppf(0.975, rounds - 1) * np.std(sampled, axis=0, ddof=1) * np.sqrt(share / (1 - share))
    found = {}
    for (name, one_value), margin in zip(asdict(value).items(), half.tolist(), strict=True):
        highest = np.inf if name == "density" else 1.0
        found[name] = Interval(one_value, max(0.0, one_value - margin), min(highest, one_value + margin))
    return ManifoldIntervals(**found)


def _chosen(units: Units, share: float, rng: np.random.Generator, *, least: int) -> npt.NDArray[np.bool_]:
    """Which images belong to a random share of all units, [N]; to more units where these have fewer than `least`."""
    sizes = np.bincount(units)
    order = rng.permutation(len(sizes))
    # Some patients have hundreds of images, others one: a few units may be hardly any images.
    enough = int(np.searchsorted(np.cumsum(sizes[order]), least)) + 1
    chosen = np.zeros(len(sizes), dtype=bool)
    chosen[order[: max(round(share * len(sizes)), enough)]] = True
    return np.asarray(chosen[units])


def _parts(real: Features, made: Features, neighbours: int) -> dict[str, Features]:
    """What each image contributes to each measure, which is their mean: synthetic images [M] or real ones [N]."""
    if min(len(real), len(made)) <= neighbours:
        raise ValueError(f"{len(real)} real and {len(made)} made images, expected more than {neighbours} of each")
    real_radius, made_radius = _radii(real, neighbours), _radii(made, neighbours)
    inside = np.zeros(len(made))  # number of real balls around each synthetic image
    recalled, nearest = np.zeros(len(real), dtype=bool), np.full(len(real), np.inf)
    for rows in _blocks(len(made)):
        apart = euclidean_distances(made[rows], real)
        inside[rows] = (apart < real_radius).sum(1)
        recalled |= (apart < made_radius[rows, None]).any(0)
        nearest = np.minimum(nearest, apart.min(0))
    return {
        "precision": (inside > 0).astype(np.float64),
        "recall": recalled.astype(np.float64),
        "density": inside / neighbours,
        "coverage": (nearest < real_radius).astype(np.float64),
    }


def _radii(features: Features, neighbours: int) -> Features:
    """Distance of each to its k-th nearest neighbor, itself excluded; [N]."""
    parts = (euclidean_distances(features[rows], features) for rows in _blocks(len(features)))
    return np.concatenate([np.partition(part, neighbours, axis=1)[:, neighbours] for part in parts])


def bootstrap(
    measure: Callable[..., float], *sets: Features, rounds: int = 200, seed: int = 0, share: float = 0.95
) -> Interval:
    """The measure of sets of features, and its interval over resampled sets (percentiles, with replacement).

    Resampling biases Frechet and kernel distances (repeated rows shrink the covariance), so their interval is moved to
    be centered on the value. `frechet_interval` and `kernel_interval` do the same faster.
    """
    rng = np.random.default_rng(seed)
    value = measure(*sets)
    sampled = [measure(*(one[rng.integers(len(one), size=len(one))] for one in sets)) for _ in range(rounds)]
    return _centered(value, np.asarray(sampled), share=share)


def mean_interval(values: Features, *, rounds: int = 200, seed: int = 0) -> Interval:
    """The mean of values [N] and its interval over resampled values."""
    times = _times(np.arange(len(values)), rounds, np.random.default_rng(seed))
    low, high = np.quantile(times @ values / len(values), [0.025, 0.975])
    return Interval(float(values.mean()), float(low), float(high))


def _centered(value: float, sampled: Features, *, share: float = 0.95) -> Interval:
    low, high = np.quantile(sampled, [(1 - share) / 2, (1 + share) / 2])
    moved = value - float(np.median(sampled))
    return Interval(value, float(low) + moved, float(high) + moved)


def _units(first: Features, second: Features, units: tuple[Units, Units] | None) -> tuple[Units, Units]:
    return (np.arange(len(first)), np.arange(len(second))) if units is None else units


def _times(units: Units, rounds: int, rng: np.random.Generator) -> Features:
    """How often each image is sampled in each round, all of a unit together; [rounds, N]."""
    count = int(units.max()) + 1
    sampled = (np.bincount(rng.integers(count, size=count), minlength=count) for _ in range(rounds))
    return np.stack(list(sampled)).astype(np.float64)[:, units]


def _blocks(count: int) -> Iterator[slice]:
    for start in range(0, count, _ROWS):
        yield slice(start, start + _ROWS)
