"""Measures of fidelity: closed forms, a written-out sum, and laws."""

import numpy as np
import pytest

from cxrsynth.evidence.fidelity import Features, bootstrap, frechet_distance, kernel_distance, manifolds


def cloud(count: int, width: int = 4, *, seed: int = 0, shift: float = 0.0) -> Features:
    return np.random.default_rng(seed).normal(shift, 1.0, (count, width))


def white(features: Features) -> Features:
    """The same cloud with mean exactly 0 and covariance exactly 1."""
    centred = features - features.mean(0)
    return np.asarray(centred @ np.linalg.inv(np.linalg.cholesky(np.cov(centred, rowvar=False))).T)


def test_frechet_distance_has_its_closed_form() -> None:
    one, other = white(cloud(60, seed=1)), white(cloud(70, seed=2))
    spread = np.array([1.0, 2.0, 0.5, 3.0])
    mean = np.array([1.0, 0.0, -2.0, 0.5])
    expected = (mean**2).sum() + ((1 - spread) ** 2).sum()
    assert frechet_distance(one, other * spread + mean) == pytest.approx(expected, rel=1e-9)
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


def test_manifolds_tell_quality_from_variety() -> None:
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
