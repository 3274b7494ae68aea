"""Shares with intervals: against scipy, and by how often they hold the truth."""

import numpy as np
import pytest
from scipy.stats import binomtest

from cxrsynth.metrics.proportion import Share, wilson


@pytest.mark.parametrize("of", range(1, 40))
def test_a_share_lies_in_its_interval(of: int) -> None:
    for successes in range(of + 1):
        low, high = wilson(successes, of)
        assert 0 <= low <= successes / of <= high <= 1


@pytest.mark.parametrize(("successes", "of"), [(0, 10), (7, 10), (10, 10), (53, 100)])
def test_wilson_is_that_of_scipy(successes: int, of: int) -> None:
    known = binomtest(successes, of).proportion_ci(0.95, method="wilson")
    assert wilson(successes, of) == pytest.approx((known.low, known.high))


def test_a_share_of_independent_images_has_wilsons_interval() -> None:
    none = Share.among(np.zeros(10, np.bool_))
    assert (none.caught, none.of, none.low) == (0, 10, 0.0)
    # Wilson's interval of 0 of 10 (Brown, Cai, DasGupta 2001, equation 4): upper end z^2 / (n + z^2).
    assert none.high == pytest.approx(1.96**2 / (10 + 1.96**2), abs=1e-3)
    some = np.arange(40) < 7
    alone = Share.among(some, np.arange(40))
    assert (alone.low, alone.high) == pytest.approx(wilson(7, 40), abs=5e-3)


def test_images_of_one_report_add_nothing_if_all_are_alike() -> None:
    reports = np.arange(30) % 10 < 3
    one, copied = Share.among(reports, np.arange(30)), Share.among(np.repeat(reports, 4), np.repeat(np.arange(30), 4))
    assert (copied.caught, copied.of) == (36, 120)
    assert (copied.low, copied.high) == pytest.approx((one.low, one.high), abs=1e-9)
    nobody = Share.among(np.zeros(120, np.bool_), np.repeat(np.arange(30), 4))
    assert (nobody.low, nobody.high) == wilson(0, 30)


@pytest.mark.parametrize("spread", [0.0, 0.15])
def test_intervals_hold_the_truth_where_reports_differ(spread: float) -> None:
    """Of 60 reports with five images each, which are matched with a chance of the report's own."""
    rng, held, rounds = np.random.default_rng(0), 0, 600
    reports = np.repeat(np.arange(60), 5)
    for _ in range(rounds):
        chances = np.repeat(0.2 + spread * rng.choice([-1, 1], 60), 5)
        found = Share.among(rng.random(300) < chances, reports)
        held += found.low <= 0.2 <= found.high
    assert held / rounds > 0.92, held / rounds
