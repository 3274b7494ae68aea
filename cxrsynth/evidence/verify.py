"""The second look at copies: candidates are laid on each other and compared in fine detail."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from cxrsynth.evidence.copy_features import CopyIndex, CopySpace, Thumbs, Vectors, details, mirrored
from cxrsynth.evidence.registration import correlation, fit_pairs
from cxrsynth.rewards.warps import warp

CANDIDATES = 10  # of each film, by features
_BLOCK = 64  # films worked on at a time
_MOST_LEFT_OUT = 256  # films of one group searched past
# Pixels around, for local contrast: anatomy to lay films on each other by, texture to tell them apart by, and
# the finest texture, which agrees only where films lie on each other to the pixel already.
_COARSE, _FINE, _FINEST = 8, 2, 1
# Laying films on each other finds some likeness in any two. Of films as they lie it takes less to be as unlikely: this
# share of what is missing to 1 brings the two to one scale (99th percentiles of real films of different patients: 0.60
# laid, 0.39 as they lie). It is what finds blends, in which there is nothing to lay on.
_AS_THEY_LIE = 0.35
_BLURS = (2, 1, 1, 0, 0)

Places = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Gallery:
    """Films that others are compared with, and the group of each: films of one patient are of one group."""

    thumbs: Thumbs  # [N, T, T]
    groups: Places  # [N], from 0
    index: CopyIndex
    space: CopySpace

    @classmethod
    def of(cls, thumbs: Thumbs, groups: Places, space: CopySpace) -> "Gallery":
        """Index the features of films [N, T, T]."""
        return cls(
            thumbs, groups, CopyIndex(space.features(thumbs), [str(place) for place in range(len(thumbs))]), space
        )


@dataclass(frozen=True, slots=True)
class Compared:
    """The films of a gallery each of Q films was compared with, all [Q, k]; place -1 and similarity -1 for none.

    `similarity` is the correlation of fine detail of the films laid on each other, or what that of the films as they
    lie amounts to, if it is larger; 1 is equal. `cosines` is that of their features.
    """

    places: Places
    similarity: Vectors
    cosines: Vectors
    mirrored: Mask

    def best(self) -> "Nearest":
        """The most alike of each film; of equals the one nearer by features."""
        rows, best = np.arange(len(self.places)), self.similarity.argmax(1)
        return Nearest(*(getattr(self, name)[rows, best] for name in Compared.__slots__))


@dataclass(frozen=True, slots=True)
class Nearest:
    """As `Compared`, of each film the one most alike: [Q]."""

    places: Places
    similarity: Vectors
    cosines: Vectors
    mirrored: Mask


def compare(
    films: Thumbs, gallery: Gallery, *, leave_out: Places, candidates: int = CANDIDATES, least_cosine: float = -1.0
) -> Compared:
    """Compare each film with the films of a gallery that are nearest by features, mirrored or not.

    Args:
        films: [Q, T, T], of any number; they are worked on in blocks.
        gallery: what they are compared with.
        leave_out: the group each film must not meet, [Q]; -1 for none.
        candidates: k.
        least_cosine: of features, below which a candidate is not looked at.
    """
    parts = []
    for first in range(0, max(len(films), 1), _BLOCK):
        block = films[first : first + _BLOCK]
        found = _candidates(block, gallery, leave_out[first : first + _BLOCK], candidates)
        seen = found.places >= 0
        seen &= found.cosines >= least_cosine
        alike = np.full(seen.shape, -1.0, np.float32)
        alike[seen] = _similarities(block, gallery, found, seen)
        parts.append(Compared(np.where(seen, found.places, -1), alike, found.cosines, found.mirrored))
    return Compared(*(np.concatenate([getattr(part, name) for part in parts]) for name in Compared.__slots__))


@dataclass(frozen=True, slots=True)
class _Candidates:
    """Films to look at for each of Q films, all [Q, k]; place -1 for none."""

    places: Places
    cosines: Vectors
    mirrored: Mask


def _candidates(films: Thumbs, gallery: Gallery, leave_out: Places, count: int) -> _Candidates:
    """The nearest of each film and of its mirror image by features, each film of the gallery once."""
    sizes = np.bincount(gallery.groups)
    largest = int(sizes[leave_out[leave_out >= 0]].max(initial=0))
    reach = count + min(largest, _MOST_LEFT_OUT)
    plain, other = (gallery.index.nearest(gallery.space.features(seen), reach) for seen in (films, mirrored(films)))
    places = np.concatenate((plain.places, other.places), 1)
    cosines = np.concatenate((plain.cosines, other.cosines), 1)
    flipped = np.concatenate((np.zeros_like(plain.places, np.bool_), np.ones_like(other.places, np.bool_)), 1)
    apart = (places >= 0) & ((gallery.groups[places] != leave_out[:, None]) | (leave_out < 0)[:, None])
    # By falling cosine, then place: the order does not depend on how the index met equal films.
    order = np.lexsort((flipped, places, np.where(apart, -cosines, np.inf)), axis=1)
    places, cosines, flipped, apart = (np.take_along_axis(v, order, 1) for v in (places, cosines, flipped, apart))
    again = np.tril(places[:, :, None] == places[:, None, :], -1).any(2)
    good = apart & ~again
    kept = np.argsort(~good, axis=1, kind="stable")[:, :count]
    places, cosines, flipped, good = (np.take_along_axis(v, kept, 1) for v in (places, cosines, flipped, good))
    return _Candidates(np.where(good, places, -1), np.where(good, cosines, -1).astype(np.float32), flipped)


def _similarities(films: Thumbs, gallery: Gallery, found: _Candidates, seen: Mask) -> Vectors:
    """Correlation of fine detail of the pairs that are to be `seen`, in the order of their mask; [P]."""
    if not seen.any():
        return np.zeros(0, np.float32)
    rows = seen.nonzero()[0]
    flipped = torch.from_numpy(found.mirrored[seen])[:, None, None, None]
    unique, which = np.unique(found.places[seen], return_inverse=True)
    others = gallery.thumbs[unique]

    def pairs(reach: int) -> tuple[Tensor, Tensor]:
        moving = details(films, reach=reach)[rows]
        return torch.where(flipped, moving.flip(-1), moving), details(others, reach=reach)[which]

    moving, fixed = (F.avg_pool2d(side, 2) for side in pairs(_COARSE))
    still = torch.eye(2, 3).expand(len(moving), 2, 3)
    laid = fit_pairs(moving, fixed, start=still, blurs=_BLURS).matrices
    moving, fixed = pairs(_FINE)
    on_each_other = correlation(warp(moving, laid), fixed)
    as_they_lie = correlation(*pairs(_FINEST))
    alike = torch.maximum(on_each_other, as_they_lie + _AS_THEY_LIE * (1 - as_they_lie))
    return np.asarray(alike.numpy(), dtype=np.float32)
