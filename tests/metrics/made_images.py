"""Images made for tests: one chest for all, and in each a texture and a posture of its own."""

import torch
import torch.nn.functional as F
from torch import Tensor

from cxrsynth.metrics.memorization.features import Thumbs, thumbnails
from cxrsynth.metrics.memorization.registration import unmoved
from cxrsynth.runtime.warps import warp, warp_matrices


def made_images(count: int, *, seed: int = 0, size: int = 128) -> Tensor:
    """[count, 1, size, size] float32 in [0, 1]: two dark lungs, ribs, and what distinguishes them."""
    rng = torch.Generator().manual_seed(seed)
    wide = size + size // 4  # moved first, then cropped: no image ends within its frame
    axis = torch.linspace(-1.25, 1.25, wide)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    lungs = sum(torch.exp(-(((x - side) / 0.25) ** 2 + (y / 0.55) ** 2)) for side in (-0.4, 0.4))
    chest = 0.85 - 0.65 * torch.as_tensor(lungs) + 0.04 * torch.sin(24 * y + 6 * x**2)
    texture = sum(
        weight * F.interpolate(torch.randn(count, 1, cells, cells, generator=rng), (wide, wide), mode="bicubic")
        for cells, weight in ((8, 0.02), (16, 0.03), (40, 0.03))
    )
    moves = torch.randn(count, 5, generator=rng) * torch.tensor([0.03, 0.03, 0.03, 0.03, 0.03])
    edge = (wide - size) // 2
    radiographs = warp((chest + texture).clamp(0.02, 1), warp_matrices(moves))[
        ..., edge : edge + size, edge : edge + size
    ]
    return radiographs.clamp(0, 1)


def made_thumbs(count: int, *, seed: int = 0) -> Thumbs:
    """Thumbnails of `made_images`."""
    return thumbnails(made_images(count, seed=seed), unmoved)
