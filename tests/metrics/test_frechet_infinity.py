"""The extrapolated Frechet distance: simulated truth, blocks of patients, and what it refuses."""

from typing import Any

import numpy as np
import pytest

from cxrsynth.metrics.fidelity import Features, Interval, Units, frechet_distance, frechet_interval
from cxrsynth.metrics.frechet_infinity import _in_blocks, frechet_infinity, infinity_problem
from tests.metrics.populations import populations


def simulated(count: int, width: int, rounds: int, **options: Any) -> tuple[float, list[Interval], list[Interval]]:
    """The populations' distance, and by round the extrapolated one and that of the sets, each with its interval."""
    first, second, truth = populations(width, **options)
    extrapolated, plain = [], []
    for seed in range(rounds):
        rng = np.random.default_rng(seed)
        (one, own), (other, theirs) = first.draw(count, rng), second.draw(count, rng)
        extrapolated.append(frechet_infinity(one, other, units=(own, theirs), seed=seed))
        plain.append(frechet_interval(one, other, units=(own, theirs), rounds=20, seed=seed))
    return truth, extrapolated, plain


def coverage(truth: float, found: list[Interval]) -> float:
    return float(np.mean([interval.low <= truth <= interval.high for interval in found]))


@pytest.mark.parametrize("apart", [0.0, 0.25])
def test_the_interval_holds_the_distance_of_the_populations(apart: float) -> None:
    truth, found, plain = simulated(260, 64, 60, apart=apart)
    values = np.asarray([interval.value for interval in found])
    # Unbiased as far as 60 rounds can show; the distance of the sets lies four standard deviations above.
    assert abs(values.mean() - truth) < 3.5 * values.std() / 60**0.5
    assert np.mean([interval.value for interval in plain]) > truth + 4 * values.std()
    assert coverage(truth, found) >= 0.9
    assert coverage(truth, plain) == 0.0
    # Not by being wide: the interval of Student's t is 4.2 standard errors.
    widths = np.asarray([interval.high - interval.low for interval in found])
    assert 3.5 < widths.mean() / values.std() < 7.5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "width", "options"),
    [
        (260, 160, {"apart": 0.0}),
        (260, 160, {"apart": 0.25}),
        (260, 160, {"apart": 0.8}),
        (260, 160, {"apart": 0.25, "per_unit": 3}),
        (260, 160, {"apart": 0.25, "heavy": True}),
        (1000, 256, {"apart": 0.25}),
    ],
)
def test_the_interval_holds_at_the_sizes_of_real_audits(count: int, width: int, options: dict[str, Any]) -> None:
    truth, found, plain = simulated(count, width, 60, **options)
    values = np.asarray([interval.value for interval in found])
    assert coverage(truth, found) >= 0.88
    # A tenth of the bias of the sets' distance, at most.
    bias = np.mean([interval.value for interval in plain]) - truth
    assert abs(values.mean() - truth) < 0.1 * bias + 3 * values.std() / 60**0.5


def test_images_of_a_patient_that_are_torn_apart_make_the_interval_too_narrow() -> None:
    first, second, _ = populations(16, apart=0.8, per_unit=6)
    rng = np.random.default_rng(0)
    (one, own), (other, theirs) = first.draw(240, rng), second.draw(240, rng)
    whole = frechet_infinity(one, other, units=(own, theirs))
    torn = frechet_infinity(one, other)
    assert whole.high - whole.low > 1.2 * (torn.high - torn.low)
    assert whole.value < torn.value  # six images of a patient are fewer than six images


def test_a_patient_is_in_one_block() -> None:
    units: Units = np.arange(90) // 3
    blocks = _in_blocks(np.arange(90.0)[:, None], units, 10, np.random.default_rng(0))
    assert sorted(float(value) for block in blocks for value in block[:, 0]) == list(range(90))
    assert [len(block) for block in blocks] == [9] * 10
    assert all(len({value // 3 for value in block[:, 0]}) == 3 for block in blocks)


def test_it_is_the_jackknife_written_out() -> None:
    """Against `frechet_distance` of the sets without each block, the bias of the means taken off."""
    first, second, _ = populations(5, apart=0.5)
    rng = np.random.default_rng(1)
    one, other = first.draw(60, rng)[0] + 7.0, second.draw(80, rng)[0] + 7.0
    shuffled = np.random.default_rng(3)
    blocks = [shuffled.permutation(len(features)) % 20 for features in (one, other)]

    def distance(x: Features, y: Features) -> float:
        return frechet_distance(x, y) - sum(np.cov(z, rowvar=False).trace() / len(z) for z in (x, y))

    left = np.asarray([distance(one[blocks[0] != k], other[blocks[1] != k]) for k in range(20)])
    found = frechet_infinity(one, other, seed=3)
    assert found.value == pytest.approx(20 * distance(one, other) - 19 * left.mean())
    error = np.sqrt(19 / 20 * ((left - left.mean()) ** 2).sum())
    assert (found.high - found.low) / 2 == pytest.approx(2.093 * error, rel=1e-3)


def test_sets_that_are_too_small_are_refused_with_the_reason() -> None:
    assert infinity_problem(65, 64, 20) is None
    assert infinity_problem(64, 64, 64) == "64 images for 64 features, expected more images than features"
    assert infinity_problem(100, 64, 19) == "images of 19 patients or reports, expected at least 20"
    few = np.random.default_rng(0).normal(size=(30, 40))
    with pytest.raises(ValueError, match="30 images for 40 features"):
        frechet_infinity(few, few)
    with pytest.raises(ValueError, match="40 blocks of 30 units"):
        frechet_infinity(few[:, :4], few[:, :4], blocks=40)
