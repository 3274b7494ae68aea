"""The second look: the region of two images in which they agree best, wherever it is and however large it is shown."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cxrsynth.metrics.memorization.features import Thumbs, Vectors, details
from cxrsynth.metrics.memorization.patches import REACH, PatchIndex, Places, halved_mask, seen_pixels
from cxrsynth.metrics.memorization.registration import fit_regions, local_mean
from cxrsynth.runtime.warps import warp

_CANDIDATES = 4  # images that most patches agree on, registered at half the size; the best is looked at closely
_WINDOW = 12  # reach in pixels of the window that is compared: 25 of 64 on a side
_FINE = 2  # reach of local contrast, see `features.details`
_BLURS, _FINE_BLURS = (1, 0, 0), (1, 0)
_FURTHER, _FINE_FURTHER = 0.16, 0.08  # how far from where the votes lead, in half widths
_LEAST_POWER = 0.15  # of a window's details; in less there is nothing to compare
# A best window of many is more alike than whole images. Stretching what is missing to 1 brings both to one scale (99th
# percentiles for real images of different patients: 0.80 for windows, 0.56 for whole images).
_WINDOWED = 2.2
_BLOCK = 64  # images at a time


@dataclass(frozen=True, slots=True)
class Alike:
    """For each of Q images the one with the most similar region: [Q]; place -1 and similarity -1 for none.

    `similarity` is the correlation of fine detail in the best window, on the scale of `verification.Compared`.
    """

    places: Places
    similarity: Vectors


def most_alike(
    thumbs: Thumbs, others: Thumbs, index: PatchIndex, *, leave_out: Places, scales: tuple[float, ...] = (1.0,)
) -> Alike:
    """Search each image's regions among other images.

    Args:
        thumbs: [Q, T, T], any number; processed in blocks.
        others: the indexed images, [N, T, T].
        index: of their patches.
        leave_out: the group that each image is not compared with, [Q]; -1 for none.
        scales: at which patches are looked for, see `PatchIndex.vote`.
    """
    if not len(thumbs):
        return Alike(np.zeros(0, np.int64), np.zeros(0, np.float32))
    parts = [
        _looked_at(thumbs[first : first + _BLOCK], others, index, leave_out[first : first + _BLOCK], scales)
        for first in range(0, len(thumbs), _BLOCK)
    ]
    return Alike(np.concatenate([part.places for part in parts]), np.concatenate([part.similarity for part in parts]))


@torch.inference_mode()
def _looked_at(
    thumbs: Thumbs, others: Thumbs, index: PatchIndex, leave_out: Places, scales: tuple[float, ...]
) -> Alike:
    votes = index.vote(thumbs, leave_out=leave_out, scales=scales, count=_CANDIDATES)
    places = votes.places.ravel()
    voted = others[places.clip(min=0)]
    rows = np.arange(len(thumbs)).repeat(_CANDIDATES)
    moving, fixed = (_Detail.of(side, half=True) for side in (thumbs, voted))
    weight = votes.weight.flatten(0, 1)[:, None] + 0.02
    rough = fit_regions(
        moving.masked[rows],
        fixed.masked,
        weight,
        start=votes.start.flatten(0, 1),
        blurs=_BLURS,
        further=_FURTHER,
    )
    fits = torch.where(
        torch.from_numpy(places >= 0), _best_window(moving.at(rows), fixed, rough, _WINDOW // 2), -torch.inf
    )
    best = fits.view(-1, _CANDIDATES).argmax(1).numpy() + np.arange(len(thumbs)) * _CANDIDATES
    moving, fixed = _Detail.of(thumbs), _Detail.of(voted[best])
    larger = F.interpolate(weight[best], scale_factor=2, mode="bilinear")
    moves = fit_regions(
        moving.masked, fixed.masked, larger, start=rough[best], blurs=_FINE_BLURS, further=_FINE_FURTHER
    )
    correlation = _best_window(moving, fixed, moves, _WINDOW).numpy()
    similarity = np.where(places[best] >= 0, 1 - _WINDOWED * (1 - correlation), -1).clip(min=-1)
    return Alike(places[best], similarity.astype(np.float32))


@dataclass(frozen=True, slots=True)
class _Detail:
    """Details of images and where they show something, both [N, 1, h, w]."""

    pixels: Tensor
    seen: Tensor

    @classmethod
    def of(cls, thumbs: Thumbs, *, half: bool = False) -> "_Detail":
        seen = seen_pixels(thumbs)
        return cls(details(thumbs, reach=REACH if half else _FINE, half=half), halved_mask(seen) if half else seen)

    @property
    def masked(self) -> Tensor:
        return self.pixels * self.seen

    def at(self, rows: Places) -> "_Detail":
        return _Detail(self.pixels[rows], self.seen[rows])


def _best_window(moving: _Detail, fixed: _Detail, moves: Tensor, reach: int) -> Tensor:
    """The highest correlation in a square window that both images show, the first moved by `moves`; [N]."""
    both = (warp(moving.seen, moves) > 0.99).float() * fixed.seen
    first, second = warp(moving.pixels, moves) * both, fixed.pixels * both
    inside = (..., slice(reach, -reach), slice(reach, -reach))

    def mean(values: Tensor) -> Tensor:
        return local_mean(values, reach)[inside]

    means = mean(first), mean(second)
    powers = [
        (mean(side.square()) - middle.square()).clamp_min(_LEAST_POWER)
        for side, middle in zip((first, second), means, strict=True)
    ]
    correlation = (mean(first * second) - means[0] * means[1]) / (powers[0] * powers[1]).sqrt()
    return correlation.flatten(1).amax(1)
