"""Measures of fidelity: closed forms, a written-out sum, and laws."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from cxrsynth.metrics import fidelity
from cxrsynth.metrics.fidelity import (
    Features,
    _kernel_distances,
    bootstrap,
    frechet_distance,
    frechet_interval,
    kernel_distance,
    kernel_interval,
    manifold_intervals,
    manifolds,
)


def cloud(count: int, width: int = 4, *, seed: int = 0, shift: float = 0.0) -> Features:
    return np.random.default_rng(seed).normal(shift, 1.0, (count, width))


def white(features: Features) -> Features:
    """The same cloud with mean exactly 0 and covariance exactly 1."""
    centred = features - features.mean(0)
    return np.asarray(centred @ np.linalg.inv(np.linalg.cholesky(np.cov(centred, rowvar=False))).T)


def test_frechet_distance_has_its_closed_form() -> None:
    one, other = white(cloud(60, seed=1)), white(cloud(70, seed=2))
    scale = np.array([1.0, 2.0, 0.5, 3.0])
    mean = np.array([1.0, 0.0, -2.0, 0.5])
    expected = (mean**2).sum() + ((1 - scale) ** 2).sum()
    assert frechet_distance(one, other * scale + mean) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(one, one) == pytest.approx(0.0, abs=1e-9)
    # Correlated: covariance R R' against 1 has distance sum (1 - singular value)^2 for symmetric R.
    mixed = np.array([[2.0, 0.5, 0, 0], [0.5, 1.0, 0, 0], [0, 0, 1.0, 0], [0, 0, 0, 1.0]])
    values = np.linalg.eigvalsh(mixed)
    assert frechet_distance(one @ mixed, other) == pytest.approx(((1 - values) ** 2).sum(), rel=1e-9)


def test_frechet_distance_bears_fewer_images_than_features() -> None:
    assert 0 < frechet_distance(cloud(10, 40, seed=1), cloud(10, 40, seed=2)) < 1000


def test_kernel_distance_is_the_sum_written_out() -> None:
    one, other = cloud(5, seed=1), cloud(6, seed=2, shift=0.5)

    def kernel(a: Features, b: Features) -> float:
        return float((a @ b / 4 + 1) ** 3)

    def mean(pairs: list[float]) -> float:
        return sum(pairs) / len(pairs)

    expected = (
        mean([kernel(a, b) for i, a in enumerate(one) for j, b in enumerate(one) if i != j])
        + mean([kernel(a, b) for i, a in enumerate(other) for j, b in enumerate(other) if i != j])
        - 2 * mean([kernel(a, b) for a in one for b in other])
    )
    assert kernel_distance(one, other) == pytest.approx(expected)


def test_kernel_distance_is_unbiased() -> None:
    drawn = [kernel_distance(cloud(30, seed=2 * i), cloud(30, seed=2 * i + 1)) for i in range(300)]
    assert abs(np.mean(drawn)) < 4 * np.std(drawn) / 300**0.5
    assert kernel_distance(cloud(200, seed=1), cloud(200, seed=2, shift=1.0)) > 1


def test_manifolds_separate_quality_from_diversity() -> None:
    real = np.concatenate([cloud(200, seed=1), cloud(200, seed=2, shift=30.0)])
    same = manifolds(real, np.concatenate([cloud(200, seed=3), cloud(200, seed=4, shift=30.0)]))
    assert min(same.precision, same.recall, same.coverage) > 0.85
    assert same.density == pytest.approx(1.0, abs=0.2)
    half = manifolds(real, cloud(400, seed=5))  # good images of one kind only
    assert half.precision > 0.85
    assert half.recall == pytest.approx(0.5, abs=0.1)
    assert half.coverage == pytest.approx(0.5, abs=0.1)
    bad = manifolds(real, cloud(400, seed=6, shift=-50.0))
    assert (bad.precision, bad.recall, bad.density, bad.coverage) == (0, 0, 0, 0)
    copies = manifolds(real, real)
    assert (copies.precision, copies.recall, copies.coverage) == (1, 1, 1)


def test_manifolds_need_more_images_than_neighbours() -> None:
    with pytest.raises(ValueError, match="4 real and 9 made images, expected more than 5"):
        manifolds(cloud(4), cloud(9))


def test_bootstrap_holds_the_truth_as_often_as_it_says() -> None:
    def mean(features: Features) -> float:
        return float(features.mean())

    held = 0
    for seed in range(200):
        interval = bootstrap(mean, cloud(40, 1, seed=seed), rounds=200, seed=seed)
        held += interval.low <= 0.0 <= interval.high
    assert 0.88 <= held / 200 <= 0.99
    few, many = bootstrap(mean, cloud(40, 1)), bootstrap(mean, cloud(4000, 1))
    assert many.high - many.low < (few.high - few.low) / 5
    assert bootstrap(mean, cloud(40, 1), seed=3) == bootstrap(mean, cloud(40, 1), seed=3)


def test_bootstrap_of_a_biased_measure_stays_around_its_value() -> None:
    interval = bootstrap(frechet_distance, cloud(50, 10, seed=1), cloud(50, 10, seed=2), rounds=50)
    assert interval.low < interval.value < interval.high


class Given(torch.nn.Module):
    """Images that are their own features, for measures that want a network."""

    num_features = 16

    def forward(self, radiographs: torch.Tensor) -> torch.Tensor:
        return radiographs.flatten(1).double()


def as_images(features: Features) -> torch.Tensor:
    return torch.from_numpy(features).reshape(-1, 1, 4, 4)


@pytest.mark.parametrize("count", [12, 60])  # fewer images than features, and more
def test_distances_are_those_of_torchmetrics(count: int) -> None:
    one, other = cloud(count, 16, seed=1), cloud(count, 16, seed=2, shift=0.5)
    frechet = FrechetInceptionDistance(feature=Given(), input_img_size=(1, 4, 4)).set_dtype(torch.float64)
    kernel = KernelInceptionDistance(feature=Given(), subsets=1, subset_size=count)
    for metric in (frechet, kernel):
        metric.update(as_images(one), real=True)
        metric.update(as_images(other), real=False)
    # Theirs loses digits where covariances are singular.
    assert frechet_distance(one, other) == pytest.approx(float(frechet.compute()), rel=1e-4)
    assert kernel_distance(one, other) == pytest.approx(float(kernel.compute()[0]), rel=1e-9)


def test_frechet_distance_bears_features_that_never_change() -> None:
    one, other = cloud(50, 6, seed=1), cloud(50, 6, seed=2)
    dead = np.zeros((50, 1))
    expected = frechet_distance(one, other)
    assert frechet_distance(np.hstack([one, dead]), np.hstack([other, dead])) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("width", [5, 80])
def test_frechet_interval_is_the_bootstrap_without_repeated_rows(width: int) -> None:
    one, other = cloud(40, width, seed=1), cloud(50, width, seed=2, shift=0.3)
    slow = bootstrap(frechet_distance, one, other, rounds=20, seed=4)
    fast = frechet_interval(one, other, rounds=20, seed=4)
    assert (fast.value, fast.low, fast.high) == pytest.approx((slow.value, slow.low, slow.high), rel=1e-6)


def test_kernel_interval_holds_the_truth_as_often_as_it_says() -> None:
    def pair(seed: int) -> tuple[Features, Features]:
        return cloud(50, 6, seed=2 * seed), cloud(50, 6, seed=2 * seed + 1, shift=0.3)

    truth = np.mean([kernel_distance(*pair(seed)) for seed in range(1000, 1400)])
    found = [kernel_interval(*pair(seed), seed=seed) for seed in range(150)]
    assert 0.88 <= np.mean([interval.low <= truth <= interval.high for interval in found]) <= 0.995


def test_kernel_resampling_never_pairs_a_image_with_itself() -> None:
    one, other = cloud(6, seed=1), cloud(5, seed=2)
    times = np.array([[2.0, 1, 1, 1, 1, 0]])
    drawn = _kernel_distances(one, other, times, np.ones((1, 5)))[0]

    def kernel(a: Features, b: Features) -> Features:
        return np.asarray((a @ b.T / 4 + 1) ** 3)

    copied = one[[0, 0, 1, 2, 3, 4]]
    allowed = ~np.eye(6, dtype=bool)
    allowed[0, 1] = allowed[1, 0] = False
    within = kernel(copied, copied)[allowed].mean()
    beside = kernel(other, other)[~np.eye(5, dtype=bool)].mean()
    assert drawn == pytest.approx(within + beside - 2 * kernel(copied, other).mean())


def test_manifold_intervals_lie_around_their_values() -> None:
    real, made = cloud(150, seed=1), cloud(120, seed=2, shift=0.7)
    values, found = manifolds(real, made), manifold_intervals(real, made, seed=3)
    for name in ("precision", "recall", "density", "coverage"):
        interval = getattr(found, name)
        assert interval.value == getattr(values, name)
        assert interval.low < interval.value < interval.high
    assert found == manifold_intervals(real, made, seed=3)


def test_manifolds_are_those_of_all_distances_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    real, made = cloud(60, seed=1), cloud(45, seed=2, shift=0.7)
    apart, within, theirs = cdist(made, real), np.sort(cdist(real, real)), np.sort(cdist(made, made))
    inside = apart < within[:, 5]
    expected = (
        inside.any(1).mean(),
        (apart < theirs[:, 5][:, None]).any(0).mean(),
        inside.sum() / (5 * 45),
        inside.any(0).mean(),
    )
    monkeypatch.setattr(fidelity, "_ROWS", 7)
    found = manifolds(real, made)
    assert (found.precision, found.recall, found.density, found.coverage) == pytest.approx(expected)
