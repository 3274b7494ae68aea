"""Text burned into the picture: rows of small, bright, regular marks of one height."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

Gray = npt.NDArray[np.uint8]

_LARGEST = 512  # larger images are shrunk to this side: letters stay letters, and time stays bounded
_STROKE = 9  # pixels; a bright mark narrower than this stands out from its surroundings
_CONTRAST = 0.14  # of full range, over the surroundings
# A stroke is brighter than this share of the brightest nearby: low joins faint strokes, high separates close letters.
_CUTS = (0.5, 0.65)
_MIN_HEIGHT, _MAX_HEIGHT = 5, 0.14  # of a letter: pixels; part of the image's height
_MAX_MARKS = 400  # more than any text has; an image with more shows a texture, where rows mean nothing


@dataclass(frozen=True, slots=True)
class _Marks:
    """Letter-like marks, by left edge: edges in pixels, each [K]."""

    top: npt.NDArray[np.int64]
    bottom: npt.NDArray[np.int64]
    left: npt.NDArray[np.int64]
    right: npt.NDArray[np.int64]


def longest_row(images: Tensor) -> Tensor:
    """Number of letter-like marks in the longest row of each image: [B] float32.

    A side marker is a row of one or two. Finds bright, upright text only, with letters at least 5 pixels high.
    """
    side = max(images.shape[-2:])
    if side > _LARGEST:
        size = [round(n * _LARGEST / side) for n in images.shape[-2:]]
        images = F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
    # In 256 levels: running maxima of bytes take half the time.
    gray: Gray = (images[:, 0] * 255).round().clamp(0, 255).to(torch.uint8).numpy()
    return torch.tensor([_longest(one[None]) for one in gray], dtype=torch.float32)


def _longest(gray: Gray) -> int:
    """For one image [1, H, W]: one at a time stays in the processor's cache."""
    opened = _running_max(~_running_max(~gray))  # largest of the smallest
    standing = gray - opened  # white top-hat: Soille, Morphological Image Analysis, 4.5
    nearby = _running_max(standing)
    bright = np.flatnonzero(standing > int(255 * _CONTRAST))  # compared as bytes
    share = standing.ravel()[bright] / nearby.ravel()[bright]
    return max(_row(bright[share > cut], gray.shape[1:]) for cut in _CUTS)


def _running_max(gray: Gray) -> Gray:
    """Largest value in the square of `_STROKE` pixels around each of [B, H, W]; at the edge, of what is inside."""
    half = _STROKE // 2
    gray = np.pad(gray, ((0, 0), (half, half), (half, half)), mode="edge")
    reached = 1
    while reached < _STROKE:  # doubling the reach takes a few passes over full arrays, far faster than a filter
        step = min(reached, _STROKE - reached)
        gray = np.maximum(gray[:, :-step], gray[:, step:])
        gray = np.maximum(gray[..., :-step], gray[..., step:])
        reached += step
    return gray


def _row(places: npt.NDArray[np.int64], shape: tuple[int, ...]) -> int:
    """Marks in the longest row of the pixels at sorted `places` of an image [H, W]."""
    marks = _letters(places, shape)
    count = len(marks.left)
    if not 0 < count <= _MAX_MARKS:
        return 0
    height = np.maximum.outer(marks.bottom - marks.top, marks.bottom - marks.top)
    gap = np.subtract.outer(marks.left, marks.right).T  # [K, K]: from the right of one to the left of the next
    beside = (gap >= -1) & (gap <= 1.1 * height)
    beside &= np.abs(np.subtract.outer(marks.bottom, marks.bottom)) <= 0.18 * height + 0.5
    beside &= np.abs(np.subtract.outer(marks.top, marks.top)) <= 0.3 * height + 0.5
    longest = np.ones(count, dtype=int)
    for index in range(1, count):
        before = longest[:index][beside[:index, index]]
        longest[index] += before.max(initial=0)
    return int(longest.max())


def _letters(places: npt.NDArray[np.int64], shape: tuple[int, ...]) -> _Marks:
    """The connected parts of these pixels that have a letter's size, shape and fill."""
    mask = np.zeros(shape, dtype=np.bool_)
    mask.ravel()[places] = True
    parts, count = ndimage.label(mask, np.ones((3, 3)))
    # Few pixels belong to a mark: sorting them by mark is faster than searching the picture.
    part = parts.ravel()[places]
    area = np.bincount(part, minlength=count + 1)[1:]
    rows, columns = np.divmod(places, shape[1])
    by_mark = np.argsort(part, kind="stable")
    first = np.concatenate(([0], area.cumsum()))[:count]
    rows, columns = rows[by_mark], columns[by_mark]
    top, left = (np.minimum.reduceat(place, first) if count else place for place in (rows, columns))
    bottom, right = (np.maximum.reduceat(place, first) + 1 if count else place for place in (rows, columns))
    height, width = bottom - top, right - left
    fill = area / (height * width)
    fits = (height >= _MIN_HEIGHT) & (height <= _MAX_HEIGHT * shape[0])
    fits &= (width >= 0.12 * height) & (width <= 1.6 * height) & (fill > 0.25)
    fits &= (fill <= 0.9) | (width <= 0.45 * height)  # a full box is a marker's plate; a full bar is an I
    order = np.flatnonzero(fits)[np.argsort(left[fits], kind="stable")]
    return _Marks(top[order], bottom[order], left[order], right[order])
