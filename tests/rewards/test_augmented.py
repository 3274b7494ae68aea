"""Rewards averaged over views of an image."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cxrsynth.reports.table.rows import Report
from cxrsynth.rewards.augmented import AugmentedReward

REPORTS = [Report(str(row), row) for row in range(3)]


class Answers:
    """A reward with one answer after another, each for all images."""

    unit, low, high, needs_report = "any", 0.0, 1.0, False

    def __init__(self, *answers: list[float]) -> None:
        self.seen: list[Tensor] = []
        self._answers = iter(answers)

    def __call__(self, images: Tensor, reports: Sequence[Report]) -> Tensor:
        self.seen.append(images)
        return torch.tensor(next(self._answers))


def test_views_are_averaged_and_one_without_an_answer_is_left_out() -> None:
    nothing, endless = math.nan, math.inf
    reward = Answers([0.0, nothing, 0.5], [0.4, 0.2, endless], [0.8, nothing, nothing])
    images = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    found = AugmentedReward(reward, views=3)(images, REPORTS)
    torch.testing.assert_close(found, torch.tensor([0.4, 0.2, endless]))
    assert torch.equal(reward.seen[0], images)
    assert all(not torch.equal(view, images) for view in reward.seen[1:])
    silent = Answers([nothing] * 3, [nothing] * 3)
    assert AugmentedReward(silent, views=2)(images, REPORTS).isnan().all()
