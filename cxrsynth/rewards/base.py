"""What a reward is, and several of them side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from cxrsynth.reports.table.rows import Report


class Reward(Protocol):
    """Scores images, higher is better; without gradient or side effect, each image by itself.

    `unit` says what the number is, `low` and `high` its range; `needs_report` whether it looks at the report at all.
    """

    unit: str
    low: float
    high: float
    needs_report: bool

    def __call__(self, images: Tensor, reports: Sequence[Report]) -> Tensor:
        """Images [B, 1, H, W] float32 in [0, 1] and their B reports -> [B] float32; nan where it cannot tell."""
        ...


@dataclass(frozen=True)
class RewardTable:
    """Rewards of B images, one column a reward; nan where a reward could not tell."""

    names: tuple[str, ...]
    values: Tensor  # [B, R] float32

    def column(self, name: str) -> Tensor:
        """One reward's column, [B]."""
        return self.values[:, self.names.index(name)]

    def total(self, weights: Mapping[str, float]) -> Tensor:
        """Weighted mean over the rewards that could tell, [B]; nan where none could."""
        weight = torch.tensor([float(weights[name]) for name in self.names])
        known = ~self.values.isnan()
        return (self.values.nan_to_num() * weight).sum(1) / (known * weight).sum(1)


class RewardSuite:
    """Rewards by name, applied to the same images."""

    def __init__(self, rewards: Mapping[str, Reward]) -> None:
        if not rewards:
            raise ValueError("a reward suite needs at least one reward")
        self.rewards = dict(rewards)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the columns."""
        return tuple(self.rewards)

    @torch.inference_mode()
    def __call__(self, images: Tensor, reports: Sequence[Report]) -> RewardTable:
        """Raises ValueError for images that are not [B, 1, H, W] float32 in [0, 1] with one report each."""
        check_images(images, reports)
        columns = [reward(images, reports).float().cpu() for reward in self.rewards.values()]
        return RewardTable(tuple(self.rewards), torch.stack(columns, dim=1))


def check_images(images: Tensor, reports: Sequence[Report]) -> None:
    """Raises ValueError unless images are [B, 1, H, W] float32 in [0, 1], one for each report."""
    if images.dim() != 4 or images.shape[1] != 1 or images.dtype != torch.float32:
        raise ValueError(
            f"images of shape {tuple(images.shape)} and type {images.dtype}, expected [B, 1, H, W] float32"
        )
    if len(images) != len(reports):
        raise ValueError(f"{len(images)} images for {len(reports)} reports, expected one report an image")
    if len(images) and not (images.amin() >= 0 and images.amax() <= 1):
        raise ValueError("images hold values outside [0, 1], or none that are numbers")
