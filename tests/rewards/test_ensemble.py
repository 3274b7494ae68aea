"""Ensembles of reward models: values computed by hand."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from cxrsynth.reports.table.rows import Report
from cxrsynth.rewards.ensemble import EnsembleReward

IMAGES, REPORTS = torch.zeros(4, 1, 8, 8), [Report(str(row), row) for row in range(4)]


class Fixed:
    """A reward model that always answers the same."""

    def __init__(self, *values: float, unit: str = "cosine", low: float = -1.0, needs_report: bool = False) -> None:
        self.unit, self.low, self.high, self.needs_report = unit, low, 1.0, needs_report
        self._values = torch.tensor(values, dtype=torch.float32)

    def __call__(self, images: Tensor, reports: Sequence[Report]) -> Tensor:
        return self._values


def test_mean_minus_a_multiple_of_the_spread() -> None:
    members = [Fixed(0.5, 0.2, -1.0, 0.0), Fixed(0.5, 0.4, 1.0, 0.6)]
    for weight in (0.0, 0.5, 2.0):
        found = EnsembleReward(members, std_weight=weight)(IMAGES, REPORTS)
        torch.testing.assert_close(found, torch.tensor([0.5, 0.3, 0.0, 0.3]) - weight * torch.tensor([0, 0.1, 1, 0.3]))


def test_members_without_an_answer_are_left_out() -> None:
    nan = math.nan
    found = EnsembleReward([Fixed(nan, 0.2, nan, 0.1), Fixed(0.5, nan, nan, 0.3)], std_weight=1.0)(IMAGES, REPORTS)
    torch.testing.assert_close(found, torch.tensor([0.5, 0.2, nan, 0.1]), equal_nan=True)


@pytest.mark.parametrize("infinite", [math.inf, -math.inf])
def test_an_infinite_value_is_not_averaged_away(infinite: float) -> None:
    found = EnsembleReward([Fixed(infinite, 0, 0, 0), Fixed(1, 0, 0, 0)], std_weight=0.5)(IMAGES, REPORTS)
    assert found.isinf().tolist() == [True, False, False, False]


def test_range_and_needs_are_those_of_all() -> None:
    ensemble = EnsembleReward([Fixed(low=-2.0), Fixed(needs_report=True)], std_weight=0.5)
    assert (ensemble.low, ensemble.high, ensemble.unit, ensemble.needs_report) == (-2.75, 1.0, "cosine", True)
    assert EnsembleReward([Fixed(low=-math.inf), Fixed()]).low == -math.inf
    # Of n values in a range of r, the standard deviation is at most r / 2: the bound is reached.
    far = EnsembleReward([Fixed(-1), Fixed(1)], std_weight=0.5)
    assert far.low <= float(far(IMAGES, REPORTS)) == -0.5


def test_units_must_agree() -> None:
    with pytest.raises(ValueError, match="found units 'cosine' and 'nats', expected one unit"):
        EnsembleReward([Fixed(), Fixed(unit="nats")])
