"""The posture regressor of a reward family: learns known warps of images in the canonical frame."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cxrsynth.nano.build.config import FitSettings
from cxrsynth.nano.build.fitting import augmented, fit, sample_batch, seeded
from cxrsynth.rewards.networks import PostureRegressor
from cxrsynth.runtime.warps import compose, warp_matrices


def train_posture(
    pixels: Tensor,
    frames: Tensor,
    checkpoint: Path,
    *,
    trunk: dict[str, Any],
    reach: tuple[float, ...],
    settings: FitSettings,
    seed: int,
    save_every: int,
) -> PostureRegressor:
    """Train a regressor to predict the warp of a canonical chest.

    Args:
        pixels: uint8 [N, 1, H, W].
        frames: canonical frames of the images, matrices [N, 2, 3].
        checkpoint: file from which the run resumes.
        trunk: arguments of `Trunk`, without the size.
        reach: largest shift x and y (half widths), log scale x and y, rotation (radians).
        settings: steps, batch, augmentation of gray levels; images are not warped beyond the known warp.
        seed: of weights and batches.
        save_every: steps between checkpoints.
    """
    with seeded(seed):
        network = PostureRegressor(trunk | {"size": settings.size}, list(reach))
    span, even = torch.tensor(reach), torch.ones(len(pixels))

    def loss(rng: torch.Generator) -> Tensor:
        chosen = sample_batch(even, settings, rng)
        warps = (torch.rand(len(chosen), len(reach), generator=rng) * 2 - 1) * span
        images = augmented(pixels[chosen], compose(frames[chosen], warp_matrices(warps)), settings, rng)
        return F.smooth_l1_loss(network(images).float() / span, warps / span, beta=0.1)

    fit(network, loss, checkpoint, settings=settings, seed=seed, save_every=save_every)
    return network
