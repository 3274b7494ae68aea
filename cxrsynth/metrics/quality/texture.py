"""Fine detail: is it there, is it noise, and is it cut into blocks?"""

import numpy as np
import numpy.typing as npt
from torch import Tensor

from cxrsynth.metrics.memorization.registration import local_mean

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
    soft, softer = local_mean(images, 1), local_mean(images, 3)
    # Storing in 256 levels adds noise, which would pass for detail where contrast is low.
    rounding = _LEVEL**2 / 12
    finest = (_power(images - soft) - rounding).clamp_min(rounding / 10)
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
    left: Tensor = inside.diff(n=2, dim=-1).diff(n=2, dim=-2).abs().flatten(1).median(1).values
    return left / (6 * _MEDIAN)


def block_edges(gray: npt.NDArray[np.float32]) -> float:
    """How much larger steps are at the edges of square blocks than beside them, as share of the mean step.

    The weaker of both directions, at the place where the blocks fit best.

    Args:
        gray: [H, W] in [0, 1], at the size at which the image was stored: resizing hides blocks.
    """
    return max(min(_excess(gray, period), _excess(gray.T, period)) for period in _PERIODS)


def _excess(gray: npt.NDArray[np.float32], period: int) -> float:
    """Excess of the steps in every `period`-th column over those of the neighboring columns."""
    steps = np.abs(np.diff(gray, axis=1)).mean(0)  # [W - 1]
    beyond = steps[1:-1] - (steps[:-2] + steps[2:]) / 2
    beyond = beyond[: len(beyond) // period * period]
    if not len(beyond):
        return 0.0
    return float(beyond.reshape(-1, period).mean(0).max() / max(steps.mean(), _LEVEL / 100))


def _power(band: Tensor) -> Tensor:
    power: Tensor = band[..., _EDGE:-_EDGE, _EDGE:-_EDGE].square().mean((1, 2, 3))
    return power
