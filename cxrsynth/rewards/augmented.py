"""A reward averaged over slightly moved views: what holds under a small shift is less easily gamed."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import affine

from cxrsynth.reports.table.rows import Report
from cxrsynth.rewards.base import Reward

_SHIFT, _TURN_DEG, _ZOOM = 0.03, 3.0, 0.05  # largest, either way; shift as a share of width


class AugmentedReward:
    """Mean of a reward over an image and `views - 1` moved copies of it; the moves are the same for all images."""

    def __init__(self, reward: Reward, *, views: int, seed: int = 0) -> None:
        self.unit, self.low, self.high = reward.unit, reward.low, reward.high
        self.needs_report = reward.needs_report
        self._reward = reward
        rng = torch.Generator().manual_seed(seed)
        self._moves = (torch.rand(views - 1, 4, generator=rng) * 2 - 1).tolist()

    @torch.inference_mode()
    def __call__(self, images: Tensor, reports: Sequence[Report]) -> Tensor:
        """[B, 1, H, W] in [0, 1] and B reports -> [B]."""
        values = [self._reward(images, reports)]
        for right, down, turn, zoom in self._moves:
            side = images.shape[-1]
            moved = affine(
                images,
                angle=turn * _TURN_DEG,
                translate=[right * _SHIFT * side, down * _SHIFT * side],
                scale=1 + zoom * _ZOOM,
                shear=[0.0, 0.0],
                interpolation=InterpolationMode.BILINEAR,
            )
            values.append(self._reward(moved.clamp(0, 1), reports))
        return torch.stack(values).mean(0)
