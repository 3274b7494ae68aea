"""Films made for tests: one chest for all, and in each a texture and a posture of its own."""

import torch
import torch.nn.functional as F
from torch import Tensor

from cxrsynth.evidence.copy_features import Thumbs, thumbnails
from cxrsynth.evidence.registration import unmoved, warp, warp_matrices


def made_films(count: int, *, seed: int = 0, size: int = 128) -> Tensor:
    """[count, 1, size, size] float32 in [0, 1]: two dark lungs, ribs, and what tells one from another."""
    rng = torch.Generator().manual_seed(seed)
    axis = torch.linspace(-1, 1, size)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    lungs = sum(torch.exp(-(((x - side) / 0.25) ** 2 + (y / 0.55) ** 2)) for side in (-0.4, 0.4))
    chest = 0.75 - 0.45 * torch.as_tensor(lungs) + 0.05 * torch.sin(24 * y + 6 * x**2)
    texture = sum(
        weight * F.interpolate(torch.randn(count, 1, cells, cells, generator=rng), (size, size), mode="bicubic")
        for cells, weight in ((8, 0.04), (16, 0.04), (40, 0.03))
    )
    moves = torch.randn(count, 5, generator=rng) * torch.tensor([0.04, 0.04, 0.04, 0.04, 0.03])
    return (warp((chest + texture).clamp(0.02, 1), warp_matrices(moves))).clamp(0, 1)


def made_thumbs(count: int, *, seed: int = 0) -> Thumbs:
    """Thumbnails of `made_films`."""
    return thumbnails(made_films(count, seed=seed), unmoved)
