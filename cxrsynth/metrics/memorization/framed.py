"""The third and the fourth look: images as they are framed, unmoved, as a whole and in small windows.

A mixture of two images has no position of its own: brought to one position, it coincides with neither of them. Where
nobody moved it, each of its parts still lies where it lay. As a whole, each is compared with every reference image; in
windows, where a patch of another image is all that there is, with those that its patches vote for.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from cxrsynth.metrics.memorization.features import Thumbs, middle_weight
from cxrsynth.metrics.memorization.partial import Alike
from cxrsynth.metrics.memorization.patches import PatchIndex
from cxrsynth.metrics.memorization.registration import local_mean
from cxrsynth.metrics.memorization.verification import Places

# The finest texture: pixels from their mean, over local contrast in a wider square; the last is added to that contrast.
_REACH, _CONTRAST_REACH, _LEAST_CONTRAST = 1, 2, 0.01
# Unmoved images are seldom alike by chance. Shrinking what is missing to 1 brings them to the scale of the other looks
# (99th percentiles for real images of different patients: 0.31 for these, 0.59 for the other two together).
_UNMOVED = 0.6
# Windows of 20 of 64 pixels on a side, at every fourth: a patch of 24 holds one whole. Their cells of 4 pixels count
# alike, so that a marker alone makes no two windows alike; a cell with less texture (mean square) than the least
# counts in proportion to it. The best of many windows is more alike than whole images: what is missing to 1 is
# stretched, by more than the one scale asks for (before that, of real images of different patients 99 of 100 are below
# 0.68, and the highest of 3,600 is 0.75).
_CELL, _CELLS_ALONG, _LEAST_POWER, _WINDOWED = 4, 5, 0.02, 2.0
_FITTED_ON = 4096  # images at most
_VOTED_FOR = 16  # reference images that are compared in windows
_WINDOWED_AT_ONCE = 64  # images
_SOUGHT, _BLOCK = 4096, 256  # images and reference images at a time: few passes over the reference, in 67 MB


@dataclass(frozen=True, slots=True)
class FramedIndex:
    """Images to compare with, as they are framed: thumbnails [N, T, T], and the group of each (one patient's), [N].

    `mean` [1, 1, T, T] is that of their finest texture. As a whole, every image is compared with each of them, so a
    search takes time in proportion to N.

    Memory: 4096 bytes an image, and those of the index of their patches.
    """

    thumbs: Thumbs
    groups: Places
    mean: Tensor
    patches: PatchIndex

    @classmethod
    def of(cls, thumbs: Thumbs, groups: Places, *, seed: int = 0) -> "FramedIndex":
        """From thumbnails [N, T, T], N at least 1, made without registration; the mean is of an even sample of many."""
        sample = thumbs[np.linspace(0, len(thumbs) - 1, min(len(thumbs), _FITTED_ON)).round().astype(int)]
        parts = [_texture(sample[first : first + _BLOCK]).sum(0) for first in range(0, len(sample), _BLOCK)]
        mean = torch.stack(parts).sum(0, keepdim=True) / len(sample)
        return cls(thumbs, groups, mean, PatchIndex(thumbs, groups, seed=seed))

    def most_alike(self, thumbs: Thumbs, *, leave_out: Places) -> Alike:
        """The image most similar to each of [Q, T, T]; of equals, the first.

        `leave_out` is the group that each image is not compared with, [Q]; -1 for none. The similarity is the
        correlation of the finest texture, on the scale of `verification.Compared`.
        """
        places, similarity = np.full(len(thumbs), -1), np.full(len(thumbs), -1, np.float32)
        for first in range(0, len(thumbs), _SOUGHT):
            rows = slice(first, first + _SOUGHT)
            places[rows], similarity[rows] = self._compared(thumbs[rows], leave_out[rows])
        return Alike(places, similarity)

    def most_alike_in_a_window(self, thumbs: Thumbs, *, leave_out: Places) -> Alike:
        """As `most_alike`, by the window in which two images are most similar, of images that patches vote for."""
        places, similarity = np.full(len(thumbs), -1), np.full(len(thumbs), -1, np.float32)
        for first in range(0, len(thumbs), _WINDOWED_AT_ONCE):
            rows = slice(first, first + _WINDOWED_AT_ONCE)
            votes = self.patches.vote(
                thumbs[rows], leave_out=leave_out[rows], scales=(1.0,), count=_VOTED_FOR, unmoved=True
            )
            places[rows], similarity[rows] = self._compared_in_windows(thumbs[rows], votes.places)
        return Alike(places, similarity)

    @torch.inference_mode()
    def _compared_in_windows(self, thumbs: Thumbs, candidates: Places) -> tuple[Places, npt.NDArray[np.float32]]:
        """The best of `candidates` [Q, k], places or -1 for none."""
        sought = self._seen(thumbs)[:, None, 0]
        others = self._seen(self.thumbs[candidates.clip(min=0).ravel()]).view(*candidates.shape, *sought.shape[-2:])
        powers = [F.avg_pool2d(side.square(), _CELL).clamp_min(_LEAST_POWER) for side in (sought, others)]
        cells = F.avg_pool2d(sought * others, _CELL) / (powers[0] * powers[1]).sqrt()
        cosines = F.avg_pool2d(cells, _CELLS_ALONG, stride=1).flatten(2).amax(2)
        best = cosines.masked_fill(torch.from_numpy(candidates < 0), -torch.inf).max(1)
        places: Places = np.take_along_axis(candidates, best.indices.numpy()[:, None], 1)[:, 0]
        return places, (1 - _WINDOWED * (1 - best.values)).clamp(-1, 1).numpy()

    @torch.inference_mode()
    def _compared(self, thumbs: Thumbs, leave_out: Places) -> tuple[Places, npt.NDArray[np.float32]]:
        seen = torch.cat([self._vectors(thumbs[first : first + _BLOCK]) for first in range(0, len(thumbs), _BLOCK)])
        best, places = torch.full((len(seen),), -torch.inf), torch.full((len(seen),), -1)
        for first in range(0, len(self.thumbs), _BLOCK):
            cosines = seen @ self._vectors(self.thumbs[first : first + _BLOCK]).T
            hidden = self.groups[first : first + _BLOCK] == leave_out[:, None]
            nearer = cosines.masked_fill(torch.from_numpy(hidden), -torch.inf).max(1)
            better = nearer.values > best
            best = torch.where(better, nearer.values, best)
            places = torch.where(better, nearer.indices + first, places)
        similarity = torch.where(places >= 0, 1 - _UNMOVED * (1 - best), -1).clamp(-1, 1)
        return places.numpy(), similarity.numpy()

    def _seen(self, thumbs: Thumbs) -> Tensor:
        """Texture beyond that of the mean image where there is any: nothing in flat areas; [N, 1, T, T]."""
        texture, contrast = _texture_and_contrast(thumbs)
        return texture - self.mean * (contrast / (contrast + _LEAST_CONTRAST))

    def _vectors(self, thumbs: Thumbs) -> Tensor:
        """Texture beyond that of the mean image, the middle weighted more: [N, T T], of length 1."""
        return F.normalize(((_texture(thumbs) - self.mean) * middle_weight(thumbs.shape[-1])).flatten(1), dim=1)


def _texture(thumbs: Thumbs) -> Tensor:
    """Finest texture of thumbnails [N, T, T] at one contrast; [N, 1, T, T] float32."""
    return _texture_and_contrast(thumbs)[0]


def _texture_and_contrast(thumbs: Thumbs) -> tuple[Tensor, Tensor]:
    """The texture, and the local contrast it had, both [N, 1, T, T]."""
    images = torch.from_numpy(thumbs)[:, None].float() / 255.0
    centered = images - local_mean(images, _REACH)
    contrast = local_mean(centered.square(), _CONTRAST_REACH).clamp_min(0).sqrt()
    return centered / (contrast + _LEAST_CONTRAST), contrast
