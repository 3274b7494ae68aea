"""A reward by several reward models, which is harder to exploit: an error of one of them is rarely an error of all."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cxrsynth.reports.table.rows import Report
from cxrsynth.rewards.base import Reward


class EnsembleReward:
    """Mean of several models' values, minus a multiple of their standard deviation.

    Where some models have no answer (nan), those that have one count; without any, the value is nan.

    Args:
        members: at least two models of one reward, whose values have the same unit.
        std_weight: how many (population) standard deviations between the models are subtracted. Models disagree
            most where they were not trained, which is where an optimizer takes the images.

    Raises:
        ValueError: if units differ; the message says which.

    Source: worst-case and uncertainty-weighted ensembles of Coste et al., arXiv:2310.02743.
    """

    def __init__(self, members: Sequence[Reward], *, std_weight: float = 0.0) -> None:
        units = list(dict.fromkeys(member.unit for member in members))
        if len(units) > 1:
            raise ValueError(f"found units {units[0]!r} and {units[1]!r}, expected one unit for all")
        self.unit = units[0]
        lowest, highest = min(member.low for member in members), max(member.high for member in members)
        # The standard deviation is at most half the range.
        self.low, self.high = lowest - (std_weight and std_weight * (highest - lowest) / 2), highest
        self.needs_report = any(member.needs_report for member in members)
        self._members, self._std_weight = tuple(members), std_weight

    @torch.inference_mode()
    def __call__(self, images: Tensor, reports: Sequence[Report]) -> Tensor:
        """[B, 1, H, W] in [0, 1] and B reports -> [B]."""
        values = torch.stack([member(images, reports) for member in self._members])  # [M, B]
        mean = values.nanmean(0)
        std = (values - mean).square().nanmean(0).sqrt()
        # An infinite value is an error of its model, and must show.
        return torch.where(values.isinf().any(0), math.inf, mean - self._std_weight * std)
