"""A reward averaged over slightly shifted, rotated and scaled views, which is harder to exploit."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import affine

from cxrsynth.reports.table.rows import Report
from cxrsynth.rewards.base import Reward

_MAX_SHIFT, _MAX_ROTATION_DEG, _MAX_ZOOM = 0.03, 3.0, 0.05  # in either direction; shift as a share of width


class AugmentedReward:
    """Mean of a reward over an image and `views - 1` augmented views; all images get the same augmentations."""

    def __init__(self, reward: Reward, *, views: int, seed: int = 0) -> None:
        self.unit, self.low, self.high = reward.unit, reward.low, reward.high
        self.needs_report = reward.needs_report
        self._reward = reward
        rng = torch.Generator().manual_seed(seed)
        self._augmentations = (torch.rand(views - 1, 4, generator=rng) * 2 - 1).tolist()

    @torch.inference_mode()
    def __call__(self, images: Tensor, reports: Sequence[Report]) -> Tensor:
        """[B, 1, H, W] in [0, 1] and B reports -> [B]."""
        values = [self._reward(images, reports)]
        for right, down, rotation, zoom in self._augmentations:
            side = images.shape[-1]
            view = affine(
                images,
                angle=rotation * _MAX_ROTATION_DEG,
                translate=[right * _MAX_SHIFT * side, down * _MAX_SHIFT * side],
                scale=1 + zoom * _MAX_ZOOM,
                shear=[0.0, 0.0],
                interpolation=InterpolationMode.BILINEAR,
            )
            values.append(self._reward(view.clamp(0, 1), reports))
        found = torch.stack(values)
        # A view without an answer does not take that of the others away; an infinite value is an error, and must show.
        return torch.where(found.isinf().any(0), math.inf, found.nanmean(0))
