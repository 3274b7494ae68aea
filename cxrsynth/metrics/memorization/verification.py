"""Verification of candidates: two images are registered to each other and compared in fine detail."""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from cxrsynth.metrics.memorization.features import FeatureIndex, MatchSpace, Thumbs, Vectors, details, mirrored
from cxrsynth.metrics.memorization.registration import correlation, fit_pairs, halved
from cxrsynth.runtime.warps import inverse, warp

CANDIDATES = 10  # of each image, by features
VERIFIED = 1  # of these, by how well they register
_BLOCK = 64  # images at a time
_MOST_LEFT_OUT = 256  # images of one group that a search can skip
# Reach in pixels of local contrast: anatomy, which registers images (at half the size); texture, which distinguishes
# them; and the finest texture, which agrees only where images already coincide to the pixel.
_COARSE, _FINE, _FINEST = 4, 2, 1
# Registration finds some similarity in any two images, so an unregistered pair is as unlikely at a lower correlation.
# Adding this share of what is missing to 1 brings both to one scale (99th percentiles for real images of different
# patients: 0.60 registered, 0.39 unregistered). This finds blends, which leave nothing to register.
_UNREGISTERED = 0.35
# Blurs of the steps: for all candidates at a quarter of the size, then at half of it.
_ALL_BLURS, _BLURS = (1, 0), (1, 0, 0)

Places = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Gallery:
    """Images that others are compared with, and the group of each: images of one patient form a group."""

    thumbs: Thumbs  # [N, T, T]
    groups: Places  # [N], from 0
    index: FeatureIndex
    space: MatchSpace

    @classmethod
    def of(cls, thumbs: Thumbs, groups: Places, space: MatchSpace) -> "Gallery":
        """Index the features of images [N, T, T]."""
        return cls(
            thumbs, groups, FeatureIndex(space.features(thumbs), [str(place) for place in range(len(thumbs))]), space
        )


@dataclass(frozen=True, slots=True)
class Compared:
    """For each of Q images, the gallery images it was compared with, all [Q, k]; place -1 and similarity -1 for none.

    `similarity` is the correlation of fine detail of the registered images, or that of the unregistered images brought
    to the same scale if it is larger; 1 is equal. `cosines` compares their features.
    """

    places: Places
    similarity: Vectors
    cosines: Vectors
    mirrored: Mask

    def best(self) -> "Nearest":
        """The most similar of each image; of equals, the one nearer by features."""
        rows, best = np.arange(len(self.places)), self.similarity.argmax(1)
        return Nearest(*(getattr(self, name)[rows, best] for name in Compared.__slots__))


@dataclass(frozen=True, slots=True)
class Nearest:
    """As `Compared`, with only the most similar image of each: [Q]."""

    places: Places
    similarity: Vectors
    cosines: Vectors
    mirrored: Mask


def compare(
    thumbs: Thumbs,
    gallery: Gallery,
    *,
    leave_out: Places,
    candidates: int = CANDIDATES,
    verified: int = VERIFIED,
    least_cosine: float = -1.0,
) -> Compared:
    """Compare each image with the images of a gallery that are nearest by features, mirrored or not.

    Args:
        thumbs: [Q, T, T], any number; processed in blocks.
        gallery: what they are compared with.
        leave_out: the group that each image is not compared with, [Q]; -1 for none.
        candidates: the images nearest by features, registered roughly.
        verified: k, the candidates that register best: these are compared in fine detail.
        least_cosine: candidates with features less similar than this are dropped.
    """
    parts = []
    for first in range(0, max(len(thumbs), 1), _BLOCK):
        block = thumbs[first : first + _BLOCK]
        found = _candidates(block, gallery, leave_out[first : first + _BLOCK], candidates)
        found = replace(found, places=np.where(found.cosines >= least_cosine, found.places, -1))
        parts.append(_verified(block, gallery, found, verified))
    return Compared(*(np.concatenate([getattr(part, name) for part in parts]) for name in Compared.__slots__))


@dataclass(frozen=True, slots=True)
class _Candidates:
    """Candidates of each of Q images, all [Q, k]; place -1 for none."""

    places: Places
    cosines: Vectors
    mirrored: Mask


def _candidates(thumbs: Thumbs, gallery: Gallery, leave_out: Places, count: int) -> _Candidates:
    """The nearest by features of each image and of its mirror image, each gallery image once."""
    sizes = np.bincount(gallery.groups)
    largest = int(sizes[leave_out[leave_out >= 0]].max(initial=0))
    reach = count + min(largest, _MOST_LEFT_OUT)
    plain, other = (gallery.index.nearest(gallery.space.features(seen), reach) for seen in (thumbs, mirrored(thumbs)))
    places = np.concatenate((plain.places, other.places), 1)
    cosines = np.concatenate((plain.cosines, other.cosines), 1)
    flipped = np.concatenate((np.zeros_like(plain.places, np.bool_), np.ones_like(other.places, np.bool_)), 1)
    apart = (places >= 0) & ((gallery.groups[places] != leave_out[:, None]) | (leave_out < 0)[:, None])
    # By falling cosine, then place: the order does not depend on the index's order of equal images.
    order = np.lexsort((flipped, places, np.where(apart, -cosines, np.inf)), axis=1)
    places, cosines, flipped, apart = (np.take_along_axis(v, order, 1) for v in (places, cosines, flipped, apart))
    again = np.tril(places[:, :, None] == places[:, None, :], -1).any(2)
    good = apart & ~again
    kept = np.argsort(~good, axis=1, kind="stable")[:, :count]
    places, cosines, flipped, good = (np.take_along_axis(v, kept, 1) for v in (places, cosines, flipped, good))
    return _Candidates(np.where(good, places, -1), np.where(good, cosines, -1).astype(np.float32), flipped)


@torch.inference_mode()
def _verified(thumbs: Thumbs, gallery: Gallery, found: _Candidates, count: int) -> Compared:
    """Candidates registered roughly, and the `count` that fit best compared in fine detail."""
    seen = found.places >= 0
    if not seen.any():
        none = np.full((len(thumbs), min(count, seen.shape[1])), -1)
        return Compared(none, none.astype(np.float32), none.astype(np.float32), none > 0)
    others = gallery.thumbs[found.places]  # [Q, C, T, T]
    others[found.mirrored] = others[found.mirrored][..., ::-1]
    others = others.reshape(-1, *thumbs.shape[1:])
    fixed, moving = (details(side, reach=_COARSE, half=True) for side in (thumbs, others))
    still = torch.eye(2, 3).expand(len(moving), 2, 3)
    rough = fit_pairs(halved(moving), halved(fixed), start=still, blurs=_ALL_BLURS)
    fits = np.where(seen, rough.correlation.view(seen.shape).numpy(), -np.inf)
    best = np.argsort(-fits, axis=1, kind="stable")[:, :count]
    places = np.take_along_axis(found.places, best, 1)
    chosen = torch.from_numpy((best + np.arange(len(thumbs))[:, None] * seen.shape[1]).ravel())
    # From here on the image is moved, not the candidate: what it may have lost at an edge is then outside the frame.
    rows = np.arange(len(thumbs)).repeat(best.shape[1])
    start = inverse(rough.matrices[chosen])
    moves = fit_pairs(fixed[torch.from_numpy(rows)], moving[chosen], start=start, blurs=_BLURS).matrices
    thumbs, others = thumbs[rows], others[chosen.numpy()]
    registered = correlation(warp(details(thumbs, reach=_FINE), moves), details(others, reach=_FINE))
    plain = correlation(details(thumbs, reach=_FINEST), details(others, reach=_FINEST))
    similarity = torch.maximum(registered, plain + _UNREGISTERED * (1 - plain)).view(places.shape).numpy()
    return Compared(
        places,
        np.where(places >= 0, similarity, np.float32(-1)),
        np.take_along_axis(found.cosines, best, 1),
        np.take_along_axis(found.mirrored, best, 1),
    )
