"""Fine detail: is it there, is it noise, and is it cut into blocks?"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_EDGE = 32  # pixels at each edge that do not count: frames of images end there
_LEVEL = 1 / 255
_MEDIAN = 0.6745  # of the size of a normal variable with standard deviation 1
_PERIODS = (8, 4)  # pixels: JPEG's blocks, and those of an image at half its size or enlarged pixel by pixel


def fineness(images: Tensor) -> Tensor:
    """Power of the finest detail over that of the next finest, as natural logarithm: [B] float32.

    Finest is what the mean of 3 x 3 pixels loses, next finest what that of 7 x 7 loses of the rest. Contrast changes
    nothing; a picture without detail has 0.

    Args:
        images: [B, 1, H, W] in [0, 1], H and W above 64.
    """
    # Only what the inside needs: means of a few pixels are sums of shifted images, far cheaper than matrix products.
    inside, soft, softer = (_inside_mean(images, reach) for reach in (0, 1, 3))
    # Storing in 256 levels adds noise, which would pass for detail where contrast is low.
    rounding = _LEVEL**2 / 12
    finest = (_power(inside - soft) - rounding).clamp_min(rounding / 10)
    next_finest = (_power(soft - softer) - rounding / 9).clamp_min(rounding / 10)
    ratio: Tensor = (finest / next_finest).log()
    return ratio


def noise_level(images: Tensor) -> Tensor:
    """Standard deviation of white noise, in gray levels of 255: [B] float32.

    Second differences down and across leave nothing of a plain or of straight edges along the axes, and 36 times the
    variance of white noise. Their median leaves out the few pixels where the image itself has detail.

    Args:
        images: [B, 1, H, W] in [0, 1], H and W above 66.

    Source: Immerkaer, Computer Vision and Image Understanding 64 (1996); the median in place of the mean, as Donoho and
        Johnstone estimate noise (Biometrika 81, 1994).
    """
    inside = images[..., _EDGE:-_EDGE, _EDGE:-_EDGE] / _LEVEL
    left = inside.diff(n=2, dim=-1).diff(n=2, dim=-2).abs().flatten(1).numpy()
    middle = (left.shape[1] - 1) // 2
    median = np.partition(left, middle, axis=1)[:, middle]  # several times faster than torch's median
    return torch.from_numpy(median) / (6 * _MEDIAN)


def block_edges(gray: npt.NDArray[np.float32]) -> float:
    """How much larger steps are at the edges of square blocks than beside them, as share of the mean step.

    The weaker of both directions, at the place where the blocks fit best.

    Args:
        gray: [H, W] in [0, 1], at the size at which the image was stored: resizing hides blocks.
    """
    across, down = (np.abs(np.diff(gray, axis=axis)).mean(1 - axis) for axis in (1, 0))
    return max(min(_excess(across, period), _excess(down, period)) for period in _PERIODS)


def _excess(steps: npt.NDArray[np.float32], period: int) -> float:
    """Excess of every `period`-th mean step over its neighbors, of the steps [W - 1] between columns."""
    beyond = steps[1:-1] - (steps[:-2] + steps[2:]) / 2
    beyond = beyond[: len(beyond) // period * period]
    if not len(beyond):
        return 0.0
    return float(beyond.reshape(-1, period).mean(0).max() / max(steps.mean(), _LEVEL / 100))


def _inside_mean(images: Tensor, reach: int) -> Tensor:
    """Mean of the square of 2 reach + 1 pixels around each pixel inside the edges, [B, 1, H - 64, W - 64]."""
    edge, width = _EDGE - reach, 2 * reach + 1
    seen = images[..., edge:-edge, edge:-edge]
    for dim in (-2, -1):
        length = seen.shape[dim] - 2 * reach
        total = seen.narrow(dim, 0, length)
        for shift in range(1, width):
            total = total + seen.narrow(dim, shift, length)
        seen = total / width
    return seen


def _power(band: Tensor) -> Tensor:
    power: Tensor = band.square().mean((1, 2, 3))
    return power
