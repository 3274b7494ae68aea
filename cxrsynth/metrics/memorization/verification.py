"""The second look at copies: candidates are laid on each other and compared in fine detail."""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from cxrsynth.metrics.memorization.features import CopyIndex, CopySpace, Thumbs, Vectors, details, mirrored
from cxrsynth.metrics.memorization.registration import correlation, fit_pairs, halved
from cxrsynth.runtime.warps import inverse, warp

CANDIDATES = 10  # of each image, by features
LOOKED_AT = 1  # of these, by how well they can be laid on the image
_BLOCK = 64  # images worked on at a time
_MOST_LEFT_OUT = 256  # images of one group searched past
# Pixels around, for local contrast: anatomy to lay images on each other by (at half the size), texture to tell them
# apart by, and the finest texture, which agrees only where images lie on each other to the pixel already.
_COARSE, _FINE, _FINEST = 4, 2, 1
# Laying images on each other finds some likeness in any two. Of images as they lie it takes less to be as unlikely:
# this
# share of what is missing to 1 brings the two to one scale (99th percentiles of real images of different patients: 0.60
# laid, 0.39 as they lie). It is what finds blends, in which there is nothing to lay on.
_AS_THEY_LIE = 0.35
# Blurs of the steps: of all candidates at a quarter of the size, then at half of it.
_ALL_BLURS, _BLURS = (1, 0), (1, 0, 0)

Places = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Gallery:
    """Images that others are compared with, and the group of each: images of one patient are of one group."""

    thumbs: Thumbs  # [N, T, T]
    groups: Places  # [N], from 0
    index: CopyIndex
    space: CopySpace

    @classmethod
    def of(cls, thumbs: Thumbs, groups: Places, space: CopySpace) -> "Gallery":
        """Index the features of images [N, T, T]."""
        return cls(
            thumbs, groups, CopyIndex(space.features(thumbs), [str(place) for place in range(len(thumbs))]), space
        )


@dataclass(frozen=True, slots=True)
class Compared:
    """The images of a gallery each of Q images was compared with, all [Q, k]; place -1 and similarity -1 for none.

    `similarity` is the correlation of fine detail of the images laid on each other, or what that of the images as they
    lie amounts to, if it is larger; 1 is equal. `cosines` is that of their features.
    """

    places: Places
    similarity: Vectors
    cosines: Vectors
    mirrored: Mask

    def best(self) -> "Nearest":
        """The most alike of each image; of equals the one nearer by features."""
        rows, best = np.arange(len(self.places)), self.similarity.argmax(1)
        return Nearest(*(getattr(self, name)[rows, best] for name in Compared.__slots__))


@dataclass(frozen=True, slots=True)
class Nearest:
    """As `Compared`, of each image the one most alike: [Q]."""

    places: Places
    similarity: Vectors
    cosines: Vectors
    mirrored: Mask


def compare(
    radiographs: Thumbs,
    gallery: Gallery,
    *,
    leave_out: Places,
    candidates: int = CANDIDATES,
    looked_at: int = LOOKED_AT,
    least_cosine: float = -1.0,
) -> Compared:
    """Compare each image with the images of a gallery that are nearest by features, mirrored or not.

    Args:
        radiographs: [Q, T, T], of any number; they are worked on in blocks.
        gallery: what they are compared with.
        leave_out: the group each image must not meet, [Q]; -1 for none.
        candidates: images nearest by features, laid on the image roughly.
        looked_at: k, the candidates that then are most like it: those looked at in fine detail.
        least_cosine: of features, below which a candidate is not looked at.
    """
    parts = []
    for first in range(0, max(len(radiographs), 1), _BLOCK):
        block = radiographs[first : first + _BLOCK]
        found = _candidates(block, gallery, leave_out[first : first + _BLOCK], candidates)
        found = replace(found, places=np.where(found.cosines >= least_cosine, found.places, -1))
        parts.append(_looked_at(block, gallery, found, looked_at))
    return Compared(*(np.concatenate([getattr(part, name) for part in parts]) for name in Compared.__slots__))


@dataclass(frozen=True, slots=True)
class _Candidates:
    """Images to look at for each of Q images, all [Q, k]; place -1 for none."""

    places: Places
    cosines: Vectors
    mirrored: Mask


def _candidates(radiographs: Thumbs, gallery: Gallery, leave_out: Places, count: int) -> _Candidates:
    """The nearest of each image and of its mirror image by features, each image of the gallery once."""
    sizes = np.bincount(gallery.groups)
    largest = int(sizes[leave_out[leave_out >= 0]].max(initial=0))
    reach = count + min(largest, _MOST_LEFT_OUT)
    plain, other = (
        gallery.index.nearest(gallery.space.features(seen), reach) for seen in (radiographs, mirrored(radiographs))
    )
    places = np.concatenate((plain.places, other.places), 1)
    cosines = np.concatenate((plain.cosines, other.cosines), 1)
    flipped = np.concatenate((np.zeros_like(plain.places, np.bool_), np.ones_like(other.places, np.bool_)), 1)
    apart = (places >= 0) & ((gallery.groups[places] != leave_out[:, None]) | (leave_out < 0)[:, None])
    # By falling cosine, then place: the order does not depend on how the index met equal images.
    order = np.lexsort((flipped, places, np.where(apart, -cosines, np.inf)), axis=1)
    places, cosines, flipped, apart = (np.take_along_axis(v, order, 1) for v in (places, cosines, flipped, apart))
    again = np.tril(places[:, :, None] == places[:, None, :], -1).any(2)
    good = apart & ~again
    kept = np.argsort(~good, axis=1, kind="stable")[:, :count]
    places, cosines, flipped, good = (np.take_along_axis(v, kept, 1) for v in (places, cosines, flipped, good))
    return _Candidates(np.where(good, places, -1), np.where(good, cosines, -1).astype(np.float32), flipped)


@torch.inference_mode()
def _looked_at(radiographs: Thumbs, gallery: Gallery, found: _Candidates, count: int) -> Compared:
    """Candidates laid on their images roughly, and the `count` that fit best compared in fine detail."""
    seen = found.places >= 0
    if not seen.any():
        none = np.full((len(radiographs), min(count, seen.shape[1])), -1)
        return Compared(none, none.astype(np.float32), none.astype(np.float32), none > 0)
    others = gallery.thumbs[found.places]  # [Q, C, T, T]
    others[found.mirrored] = others[found.mirrored][..., ::-1]
    others = others.reshape(-1, *radiographs.shape[1:])
    fixed, moving = (details(side, reach=_COARSE, half=True) for side in (radiographs, others))
    still = torch.eye(2, 3).expand(len(moving), 2, 3)
    rough = fit_pairs(halved(moving), halved(fixed), start=still, blurs=_ALL_BLURS)
    fits = np.where(seen, rough.correlation.view(seen.shape).numpy(), -np.inf)
    best = np.argsort(-fits, axis=1, kind="stable")[:, :count]
    places = np.take_along_axis(found.places, best, 1)
    chosen = torch.from_numpy((best + np.arange(len(radiographs))[:, None] * seen.shape[1]).ravel())
    # From here on the image is moved: what it may have lost at an edge then lies beyond the frame.
    rows = np.arange(len(radiographs)).repeat(best.shape[1])
    start = inverse(rough.matrices[chosen])
    laid = fit_pairs(fixed[torch.from_numpy(rows)], moving[chosen], start=start, blurs=_BLURS).matrices
    radiographs, others = radiographs[rows], others[chosen.numpy()]
    on_each_other = correlation(warp(details(radiographs, reach=_FINE), laid), details(others, reach=_FINE))
    as_they_lie = correlation(details(radiographs, reach=_FINEST), details(others, reach=_FINEST))
    alike = torch.maximum(on_each_other, as_they_lie + _AS_THEY_LIE * (1 - as_they_lie)).view(places.shape).numpy()
    return Compared(
        places,
        np.where(places >= 0, alike, np.float32(-1)),
        np.take_along_axis(found.cosines, best, 1),
        np.take_along_axis(found.mirrored, best, 1),
    )
