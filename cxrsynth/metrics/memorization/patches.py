"""Descriptors of patches, and the images that the patches of an image vote for.

What shows only part of an image, larger, smaller or elsewhere, differs from it as a whole. Its patches still resemble
those of the image, and agree on where they come from.
"""

from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cxrsynth.metrics.memorization.features import THUMB, Thumbs, Vectors, details, discriminants, jittered, unit
from cxrsynth.metrics.memorization.registration import halved, local_mean
from cxrsynth.runtime.warps import warp

GRID = THUMB // 2  # pixels on a side of the images that patches are cut from
SIDE = 8  # pixels on a side of a patch
REACH = 4  # pixels of local contrast, see `features.details`
_STORED, _SOUGHT = 9, 13  # patches along a side: of an indexed image, of one that is looked for
_WIDTH = 32  # numbers of a descriptor
_FITTED_ON = 1024  # images at most
_NEAREST = 4  # patches that each patch votes for; the last of them only shows what resemblance is common
_MOST_LEFT_OUT = 16  # patches of one group that a search can skip
_LEAST, _POWER = 0.1, 1.5  # votes: cosine beyond the least and beyond the last of the nearest, to this power
_BIN = 4  # pixels; shifts within a bin agree
_RIGID = 30.0  # squared pixels: how far patches must lie apart to say something of the scale
_MOST_ZOOM = 4 / 3
# Patches: most of the image, not black beyond an edge. Cells of the index: patches in each, and how many are searched.
_LEAST_SEEN, _PER_CELL, _CELLS_SEARCHED = 0.8, 40, 4

_BLOCK = 256  # images at a time

Places = npt.NDArray[np.int64]
Floats = npt.NDArray[np.floating[Any]]


def seen_pixels(thumbs: Thumbs) -> Tensor:
    """Where thumbnails [N, T, T] show something: 1 where no pixel near is black, else 0; [N, 1, T, T]."""
    return (local_mean(torch.from_numpy(thumbs > 0)[:, None].float(), 2) > 0.9).float()


def halved_mask(seen: Tensor) -> Tensor:
    """A mask [N, 1, T, T] of ones and zeros at half its size: 1 where all four pixels are."""
    return (halved(seen) > 0.9).float()


@dataclass(frozen=True, slots=True)
class Votes:
    """The images that the patches of each of Q images agree on, best first, all [Q, k]; place -1 for none.

    `start` [Q, k, 2, 3] are the matrices that bring the image to the place agreed on, and `weight` [Q, k, G, G] says
    where in the indexed image the patches are that agree, 1 at most.
    """

    places: Places
    start: Tensor
    weight: Tensor


class PatchIndex:
    """Patches of images, searched by cosine of their descriptors.

    Memory: at most 81 patches per image, 48 bytes each; 128 more while the index is made.
    """

    def __init__(self, thumbs: Thumbs, groups: Places, *, seed: int = 0) -> None:
        """From thumbnails [N, T, T], and the group of each (images of one patient form a group), [N]."""
        self._groups = groups
        self._mean, self._directions = _fitted(thumbs, seed)
        described, places = [], []
        for first in range(0, len(thumbs), _BLOCK):
            cut = _descriptors(thumbs[first : first + _BLOCK], _STORED)
            described.append(self._described(cut.patches[cut.seen]))
            places.append(first * _STORED**2 + cut.seen.ravel().nonzero()[0])
        self._patch_of = np.concatenate(places)  # image * 81 + place
        self._index = _index(np.concatenate(described))

    def vote(
        self, thumbs: Thumbs, *, leave_out: Places, scales: tuple[float, ...], count: int, unmoved: bool = False
    ) -> Votes:
        """The `count` images that most patches agree on.

        Args:
            thumbs: [Q, T, T], a block.
            leave_out: the group that each image is not compared with, [Q]; -1 for none.
            scales: at which the images are looked at: above 1 they are made smaller first.
            count: k.
            unmoved: patches are cut where those of the index are: where nothing was moved these are the same patches,
                so that it is found more surely, and in half the time.

        Source: voting for position and scale (generalized Hough transform) as Lowe, IJCV 2004, section 7.3.
        """
        pixels, seen = details(thumbs, reach=REACH, half=True), halved_mask(seen_pixels(thumbs))
        along = _STORED if unmoved else _SOUGHT
        cuts = [_cut(_scaled(pixels, scale), _scaled(seen, scale), along) for scale in scales]
        usable = np.stack([cut.seen for cut in cuts], 1)  # [Q, S, P]
        described = self._described(np.stack([cut.patches for cut in cuts], 1)[usable])
        query, scale, place = usable.nonzero()
        cosines, patches = self._nearest(described, leave_out[query])
        image, stored = np.divmod(patches[:, :-1], _STORED**2)
        votes = (cosines[:, :-1] - np.maximum(cosines[:, -1:], _LEAST)).clip(min=0) ** _POWER
        rows, ranks = votes.nonzero()
        return _counted(
            _Ballots(
                query[rows], scale[rows], place[rows], image[rows, ranks], stored[rows, ranks], votes[rows, ranks]
            ),
            _corners(along),
            np.array(scales),
            len(thumbs),
            count,
        )

    def _described(self, patches: Vectors) -> Vectors:
        return unit((patches - self._mean) @ self._directions)

    def _nearest(self, described: Vectors, leave_out: Places) -> tuple[Vectors, Places]:
        """Cosines falling, and patches, both [P, K]; without those of the groups left out, where cosines are 0."""
        sizes = np.bincount(self._groups)
        largest = int(sizes[leave_out[leave_out >= 0]].max(initial=0))
        reach = min(_NEAREST + min(3 * largest, _MOST_LEFT_OUT), self._index.ntotal)
        cosines, found = self._index.search(described, reach)
        patches = self._patch_of[found]
        own = (self._groups[patches // _STORED**2] == leave_out[:, None]) | (found < 0)
        order = np.argsort(own, axis=1, kind="stable")[:, :_NEAREST]
        cosines = np.where(own, 0, cosines)
        return np.take_along_axis(cosines, order, 1), np.take_along_axis(patches, order, 1)


@dataclass(frozen=True, slots=True)
class _Cut:
    """Patches [N, P, SIDE * SIDE] of mean 0 and bounded length, and which of them show something, [N, P]."""

    patches: Vectors
    seen: npt.NDArray[np.bool_]


def _cut(pixels: Tensor, seen: Tensor, along: int) -> _Cut:
    """`along` x `along` patches, evenly spread."""
    patches = _windows(pixels, along)
    patches = patches - patches.mean(-1, keepdim=True)
    # Patches without texture stay short: their direction is noise.
    patches = patches / (patches.norm(dim=-1, keepdim=True) + 1.0)
    return _Cut(patches.numpy(), (_windows(seen, along).mean(-1) > _LEAST_SEEN).numpy())


def _windows(images: Tensor, along: int) -> Tensor:
    corners = torch.from_numpy(_corners(along))
    windows = images[:, 0].unfold(1, SIDE, 1).unfold(2, SIDE, 1)
    return windows[:, corners][:, :, corners].reshape(len(images), along**2, SIDE**2)


def _corners(along: int) -> Places:
    """First row (and column) of each patch along a side."""
    return np.linspace(0, GRID - SIDE, along).round().astype(np.int64)


def _descriptors(thumbs: Thumbs, along: int) -> _Cut:
    """Patches of many images; all count as seen where no image shows anything."""
    blocks = [thumbs[first : first + _BLOCK] for first in range(0, len(thumbs), _BLOCK)]
    cuts = [_cut(details(part, reach=REACH, half=True), halved_mask(seen_pixels(part)), along) for part in blocks]
    seen = np.concatenate([cut.seen for cut in cuts])
    return _Cut(np.concatenate([cut.patches for cut in cuts]), seen if seen.any() else ~seen)


def _fitted(thumbs: Thumbs, seed: int) -> tuple[Vectors, Vectors]:
    """Mean and directions of descriptors that small moves change little, as `MatchSpace.fit`."""
    sample = thumbs[np.linspace(0, len(thumbs) - 1, min(len(thumbs), _FITTED_ON)).round().astype(int)]
    generator = torch.Generator().manual_seed(seed)
    plain = _descriptors(sample, _STORED)
    moved = [_descriptors(jittered(sample, generator), _STORED).patches for _ in range(2)]
    moves = [(patches - plain.patches)[plain.seen].astype(np.float64) for patches in moved]
    return discriminants(plain.patches[plain.seen].astype(np.float64), moves, _WIDTH)


def _index(described: Vectors) -> Any:
    """Bytes for descriptors, in cells: an exhaustive search of all patches would take most of an audit's time."""
    width, cells = described.shape[1], int(min(4 * len(described) ** 0.5, len(described) / _PER_CELL))
    if cells <= _CELLS_SEARCHED:
        index: Any = faiss.IndexFlatIP(width)
    else:
        index = faiss.IndexIVFScalarQuantizer(
            faiss.IndexFlatIP(width), width, cells, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT, False
        )
        index.cp.niter, index.cp.max_points_per_centroid, index.cp.seed = 6, _PER_CELL, 0
        index.nprobe = _CELLS_SEARCHED
        index.train(described)
    index.add(described)
    return index


def _scaled(images: Tensor, scale: float) -> Tensor:
    if scale == 1:
        return images
    return warp(images, torch.tensor([[scale, 0, 0], [0, scale, 0]]).expand(len(images), 2, 3))


@dataclass(frozen=True, slots=True)
class _Ballots:
    """One vote each, all [V]: of patch `place` of image `query` at a scale, for patch `stored` of an indexed image."""

    query: Places
    scale: Places
    place: Places
    image: Places
    stored: Places
    weight: Floats


def _counted(votes: _Ballots, sought: Places, scales: Floats, queries: int, count: int) -> Votes:
    """Votes of patches that agree on image, scale and shift, added up; of each image the best place.

    `sought` are the corners along a side of the patches that vote.
    """
    stored = _corners(_STORED)
    here = np.stack((sought[votes.place % len(sought)], sought[votes.place // len(sought)]), 1)  # x, y
    there = np.stack((stored[votes.stored % _STORED], stored[votes.stored // _STORED]), 1)
    images = int(votes.image.max(initial=0)) + 1
    head = (votes.query * images + votes.image) * len(scales) + votes.scale
    # Bins overlap by half, so that votes next to each other meet in one of them.
    most = 2 * GRID // _BIN + 1
    keys = np.concatenate(
        [
            ((head * most + bins[:, 1]) * most + bins[:, 0]) * 4 + corner
            for corner in range(4)
            for bins in [(there - here + GRID + _BIN // 2 * np.array((corner % 2, corner // 2))) // _BIN]
        ]
    )
    bins, bin_of = np.unique(keys, return_inverse=True)
    total = np.bincount(bin_of, np.tile(votes.weight, 4), minlength=len(bins))
    query, image = np.divmod(bins // 4 // most**2 // len(scales), images)
    order = np.lexsort((bins, -total, image, query))
    first = np.ones(len(order), np.bool_)
    first[1:] = (np.diff(query[order]) != 0) | (np.diff(image[order]) != 0)
    order = order[first]
    order = order[np.lexsort((image[order], -total[order], query[order]))]
    rank = np.arange(len(order)) - np.searchsorted(query[order], query[order])
    chosen = order[rank < count]
    slot = np.full(len(bins), -1)
    slot[chosen] = query[chosen] * count + rank[rank < count]
    places = np.full(queries * count, -1)
    places[slot[chosen]] = image[chosen]
    zoom = np.ones(queries * count)
    zoom[slot[chosen]] = scales[bins[chosen] // 4 // most**2 % len(scales)]
    cast = slot[bin_of]
    voter = np.tile(np.arange(len(votes.query)), 4)[cast >= 0]
    start = _agreed(here[voter], there[voter], votes.weight[voter], cast[cast >= 0], zoom)
    weight = np.bincount(
        cast[cast >= 0] * _STORED**2 + votes.stored[voter], votes.weight[voter], minlength=len(places) * _STORED**2
    )
    shape = (queries, count)
    return Votes(places.reshape(shape), start.view(*shape, 2, 3), _spread(weight).view(*shape, GRID, GRID))


def _agreed(here: Places, there: Places, weight: Floats, slot: Places, zoom: Floats) -> Tensor:
    """Matrices [M, 2, 3] of the scale and shift that lead the patches at `there` to `here`, by least squares."""

    def mean(values: Floats) -> Floats:
        return np.asarray(np.bincount(slot, weight * values, minlength=len(zoom)) / total)

    total = np.bincount(slot, weight, minlength=len(zoom)).clip(min=1e-9)
    middle = (GRID - SIDE) / 2  # the corner of a patch in the middle
    from_, to = here - middle, there - middle
    centers = [np.stack([mean(side[:, axis]) for axis in (0, 1)], 1) for side in (from_, to)]
    apart_from, apart_to = (side - center[slot] for side, center in zip((from_, to), centers, strict=True))
    common, spread = mean((apart_from * apart_to).sum(1)), mean((apart_to**2).sum(1))
    scale = ((common + _RIGID) / (spread + _RIGID)).clip(1 / _MOST_ZOOM, _MOST_ZOOM)
    shift = (centers[0] - scale[:, None] * centers[1]) * 2 / GRID  # half widths
    matrices = np.zeros((len(zoom), 2, 3), np.float32)
    matrices[:, 0, 0] = matrices[:, 1, 1] = zoom * scale
    matrices[:, :, 2] = zoom[:, None] * shift
    return torch.from_numpy(matrices)


def _spread(weight: Floats | Places) -> Tensor:
    """Votes [M * P] by stored patch as weights of the pixels, [M, G * G]."""
    corners, boxes = _corners(_STORED), torch.zeros(_STORED**2, GRID, GRID)
    for place, (row, column) in enumerate((row, column) for row in corners for column in corners):
        boxes[place, row : row + SIDE, column : column + SIDE] = 1
    summed = torch.from_numpy(weight).float().view(-1, _STORED**2) @ boxes.flatten(1)
    share = summed / summed.amax(1, keepdim=True).clamp_min(1e-6)
    return local_mean(share.sqrt().view(-1, 1, GRID, GRID), 2).flatten(1)
