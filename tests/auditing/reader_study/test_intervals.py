"""Intervals, by hand and by how often they hold the truth."""

import numpy as np
import pytest

from cxrsynth.auditing.reader_study.intervals import difference, proportion
from cxrsynth.metrics.proportion import wilson


def test_one_reader_has_the_interval_of_independent_answers() -> None:
    right = np.array([[1.0] * 14 + [0.0] * 6 + [np.nan] * 5])
    found = proportion(right)
    low, high = wilson(14, 20)
    assert found["value"] == 0.7
    assert found["answers"] == 20
    # One answer more or less: the variance is corrected for the number of images.
    assert (found["low"], found["high"]) == (pytest.approx(low, abs=0.01), pytest.approx(high, abs=0.01))
    assert proportion(np.full((2, 3), np.nan)) == {"value": None, "low": None, "high": None, "answers": 0}


def test_readers_who_copy_each_other_add_nothing() -> None:
    one = (np.arange(40) % 10 < 7).astype(np.float64)[None]
    alone, copied = proportion(one), proportion(np.repeat(one, 5, axis=0))
    assert copied["value"] == alone["value"]
    assert copied["low"] == pytest.approx(alone["low"], abs=0.01)
    perfect = proportion(np.ones((5, 40)))
    assert (perfect["low"], perfect["high"]) == pytest.approx(wilson(40, 40))


@pytest.mark.parametrize(("readers", "hard", "skilled"), [(1, 0.0, 0.0), (4, 0.0, 0.0), (4, 0.25, 0.0), (8, 0.2, 0.08)])
def test_intervals_hold_the_truth_as_often_as_they_say(readers: int, hard: float, skilled: float) -> None:
    """Images differ in how hard they are, readers in their skill, each by so much (standard deviation)."""
    rng, held, rounds = np.random.default_rng(0), 0, 600
    for _ in range(rounds):
        chances = 0.6 + hard * rng.choice([-1, 1], 60)[None] + skilled * rng.choice([-1, 1], readers)[:, None]
        found = proportion((rng.random((readers, 60)) < chances).astype(np.float64))
        held += found["low"] <= 0.6 <= found["high"]
    assert held / rounds > 0.92, held / rounds


def test_difference_by_hand() -> None:
    # Means 4 and 3, variances 1 and 1, three each: half width 2.776 * sqrt(2/3).
    found = difference([3, 4, 5], [2, 3, 4])
    assert found["value"] == 1
    assert found["low"] == pytest.approx(1 - 2.7764 * (2 / 3) ** 0.5, abs=1e-3)
    # Equal grades do not show how grades scatter.
    assert difference([4.0, 4.0], [3.0, 3.0]) == {"value": 1, "low": None, "high": None}
    assert difference([4.0], [3.0, 2.0])["low"] is None
    assert difference([], [3.0])["value"] is None
