"""The third look: images as they are framed, unmoved and as a whole, each with every reference image.

A mixture of two images has no position of its own: brought to one position, it coincides with neither of them. Where
nobody moved it, each of its parts still lies where it lay.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cxrsynth.metrics.memorization.features import Thumbs, middle_weight
from cxrsynth.metrics.memorization.partial import Alike
from cxrsynth.metrics.memorization.registration import local_mean
from cxrsynth.metrics.memorization.verification import Places

# The finest texture: pixels from their mean, over local contrast in a wider square; the last is added to that contrast.
_REACH, _CONTRAST_REACH, _LEAST_CONTRAST = 1, 2, 0.01
# Unmoved images are seldom alike by chance. Shrinking what is missing to 1 brings them to the scale of the other looks
# (99th percentiles for real images of different patients: 0.31 for these, 0.59 for the other two together).
_UNMOVED = 0.6
_FITTED_ON = 4096  # images at most
_SOUGHT, _BLOCK = 4096, 256  # images and reference images at a time: few passes over the reference, in 67 MB


@dataclass(frozen=True, slots=True)
class FramedIndex:
    """Images to compare with, as they are framed: thumbnails [N, T, T], and the group of each (one patient's), [N].

    `mean` [1, 1, T, T] is that of their finest texture. Every image is compared with each of them, so a search takes
    time in proportion to N.

    Memory: 4096 bytes an image.
    """

    thumbs: Thumbs
    groups: Places
    mean: Tensor

    @classmethod
    def of(cls, thumbs: Thumbs, groups: Places) -> "FramedIndex":
        """From thumbnails [N, T, T], N at least 1, made without registration; the mean is of an even sample of many."""
        sample = thumbs[np.linspace(0, len(thumbs) - 1, min(len(thumbs), _FITTED_ON)).round().astype(int)]
        parts = [_texture(sample[first : first + _BLOCK]).sum(0) for first in range(0, len(sample), _BLOCK)]
        return cls(thumbs, groups, torch.stack(parts).sum(0, keepdim=True) / len(sample))

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

    @torch.inference_mode()
    def _compared(self, thumbs: Thumbs, leave_out: Places) -> tuple[Places, np.typing.NDArray[np.float32]]:
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

    def _vectors(self, thumbs: Thumbs) -> Tensor:
        """Texture beyond that of the mean image, the middle weighted more: [N, T T], of length 1."""
        return F.normalize(((_texture(thumbs) - self.mean) * middle_weight(thumbs.shape[-1])).flatten(1), dim=1)


def _texture(thumbs: Thumbs) -> Tensor:
    """Finest texture of thumbnails [N, T, T] at one contrast; [N, 1, T, T] float32."""
    images = torch.from_numpy(thumbs)[:, None].float() / 255.0
    centered = images - local_mean(images, _REACH)
    power = local_mean(centered.square(), _CONTRAST_REACH).clamp_min(0)
    return centered / (power.sqrt() + _LEAST_CONTRAST)
