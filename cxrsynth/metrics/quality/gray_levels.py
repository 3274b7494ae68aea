"""Is there a picture in the gray levels? Measures that know nothing about chests."""

from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

_Images = TypeVar("_Images", Tensor, npt.NDArray[np.uint8], npt.NDArray[np.bool_])

_CELLS = 8  # coarse cells on a side of the middle
_LEVELS = 256
# This many 8-bit gray levels at either end count as the end: JPEG rings around what was clipped.
_END_LEVELS = 3
_MIDDLE = 0.625  # share of the width that is the middle: chests fill it, collimation and markers seldom reach it


def structure(images: Tensor) -> Tensor:
    """Range of coarse gray levels in the middle, beyond what smooth shading explains: [B] float32 of full range.

    The 5th to 95th percentile over 8 x 8 cells, minus their best quadratic surface: noise averages out within a cell,
    and a plain or shaded picture leaves nothing.
    """
    cells = F.adaptive_avg_pool2d(_middle(images), _CELLS).flatten(1).double()  # [B, cells]
    line = torch.linspace(-1, 1, _CELLS, dtype=torch.float64)
    y, x = (axis.flatten() for axis in torch.meshgrid(line, line, indexing="ij"))
    surface, _ = torch.linalg.qr(torch.stack((torch.ones_like(x), x, y, x * x, x * y, y * y), 1))
    rest = cells - cells @ surface @ surface.T
    low, high = torch.quantile(rest, torch.tensor([0.05, 0.95], dtype=torch.float64), dim=1)
    found: Tensor = (high - low).float()
    return found


def end_share(images: Tensor) -> Tensor:
    """Share of the middle at the brightest or the darkest gray levels, whichever is larger: [B] float32.

    Black that reaches the image's edge does not count: collimation, bars and air around the body are black in good
    images.
    """
    levels = _levels(images)  # [B, H, W]
    share: npt.NDArray[np.float64] = _middle(levels >= _LEVELS - 1 - _END_LEVELS).mean((1, 2))
    dark = levels <= _END_LEVELS
    more = _middle(dark).mean((1, 2)) > share  # elsewhere what is enclosed cannot be the larger share
    if more.any():
        share[more] = np.maximum(share[more], _middle(_enclosed(dark[more])).mean((1, 2)))
    return torch.from_numpy(share.astype(np.float32))


def effective_levels(images: Tensor) -> Tensor:
    """Gray levels of 256 that the middle uses, as the perplexity of its histogram: [B] float32.

    Few if levels were rounded away (posterized), compressed, or piled up at both ends. Exponential of
    Shannon's entropy: Hill, Ecology 1973 (number of order 1).
    """
    levels = _middle(_levels(images)).reshape(len(images), -1).astype(np.int64)
    bins = levels + _LEVELS * np.arange(len(images))[:, None]  # every image counts into bins of its own
    share = np.bincount(bins.ravel(), minlength=_LEVELS * len(images)).reshape(-1, _LEVELS) / levels.shape[1]
    entropy = -(share * np.log(np.where(share > 0, share, 1.0))).sum(1)
    return torch.from_numpy(np.exp(entropy).astype(np.float32))


def _levels(images: Tensor) -> npt.NDArray[np.uint8]:
    levels: npt.NDArray[np.uint8] = (images[:, 0] * (_LEVELS - 1)).round().to(torch.uint8).numpy()
    return levels


def _middle(images: _Images) -> _Images:
    """The middle of [..., H, W]."""
    height, width = images.shape[-2:]
    top, left = round(height * (1 - _MIDDLE) / 2), round(width * (1 - _MIDDLE) / 2)
    return images[..., top : height - top, left : width - left]


def _enclosed(dark: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """The parts of each image [B, H, W] that do not reach its edge."""
    within = ndimage.generate_binary_structure(3, 1)
    within[[0, 2]] = False  # images of a batch are no neighbours
    parts, count = ndimage.label(dark, within)
    enclosed = np.ones(count + 1, dtype=bool)
    for edge in (parts[:, 0], parts[:, -1], parts[:, :, 0], parts[:, :, -1]):
        enclosed[edge] = False
    found: npt.NDArray[np.bool_] = dark & enclosed[parts]
    return found
