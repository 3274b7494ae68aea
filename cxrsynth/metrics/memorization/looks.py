"""The looks of the search: registered images as a whole, the region in which they agree best, and images as framed, as
a whole and in windows.

Negatives are turned back first.
"""

from dataclasses import dataclass, replace

import numpy as np

from cxrsynth.metrics.memorization.features import MatchSpace, Thumbs, Vectors, inverted, negatives
from cxrsynth.metrics.memorization.framed import FramedIndex
from cxrsynth.metrics.memorization.partial import Alike, most_alike
from cxrsynth.metrics.memorization.patches import PatchIndex
from cxrsynth.metrics.memorization.verification import Gallery, Nearest, Places, compare

# Posture regressors do not know negatives, so these are looked at in several sizes.
_SCALES, _SCALES_OF_NEGATIVES = (1.0,), (0.8, 1.0, 1.25)


@dataclass(frozen=True, slots=True)
class Searchable:
    """Reference images, prepared for all looks."""

    gallery: Gallery  # none of its images is a negative of the others
    patches: PatchIndex
    framed: FramedIndex
    mean: Vectors  # [T, T], of the registered thumbnails

    @classmethod
    def of(cls, thumbs: Thumbs, framed: Thumbs, groups: Places, space: MatchSpace, *, seed: int = 0) -> "Searchable":
        """Index thumbnails [N, T, T] of patients `groups` [N], with features fitted on them.

        `framed` [N, T, T] are the same images unmoved.
        """
        mean = thumbs.mean(0, dtype=np.float32)
        negative = inverted(thumbs, mean)
        upright, framed = _positives(thumbs, negative), _positives(framed, negative)
        return cls(
            Gallery.of(upright, groups, space),
            PatchIndex(upright, groups, seed=seed),
            FramedIndex.of(framed, groups, seed=seed),
            mean,
        )

    def nearest(self, thumbs: Thumbs, framed: Thumbs, *, leave_out: Places) -> Nearest:
        """The most similar reference image of each [Q, T, T], by the look in which it is most similar.

        `framed` [Q, T, T] are the same images unmoved. `leave_out` is the group that each image is not compared with,
        [Q]; -1 for none. `mirrored` is True only where the first look decides.
        """
        negative = inverted(thumbs, self.mean)
        thumbs = _positives(thumbs, negative)
        found = compare(thumbs, self.gallery, leave_out=leave_out).best()
        for which, scales in ((~negative, _SCALES), (negative, _SCALES_OF_NEGATIVES)):
            if which.any():
                rows, others = which.nonzero()[0], self.gallery.thumbs
                alike = most_alike(thumbs[rows], others, self.patches, leave_out=leave_out[rows], scales=scales)
                found = self._or_better(found, thumbs, rows, alike)
        framed, rows = _positives(framed, negative), np.arange(len(thumbs))
        for look in (self.framed.most_alike, self.framed.most_alike_in_a_window):
            found = self._or_better(found, thumbs, rows, look(framed, leave_out=leave_out))
        return found

    def _or_better(self, found: Nearest, thumbs: Thumbs, rows: Places, alike: Alike) -> Nearest:
        """What was found, and in `rows` what another look found where that is more similar."""
        better = alike.similarity > found.similarity[rows]
        rows, places = rows[better], alike.places[better]
        others = self.gallery.space.features(self.gallery.thumbs[places])
        columns = {
            "places": places,
            "similarity": alike.similarity[better],
            "cosines": (self.gallery.space.features(thumbs[rows]) * others).sum(1),
            "mirrored": np.zeros(len(rows), np.bool_),
        }
        changed = {name: getattr(found, name).copy() for name in columns}
        for name, values in columns.items():
            changed[name][rows] = values
        return replace(found, **changed)


def _positives(thumbs: Thumbs, negative: np.typing.NDArray[np.bool_]) -> Thumbs:
    """Negatives turned back; the same array where there are none, as there may be many images."""
    return np.where(negative[:, None, None], negatives(thumbs), thumbs) if negative.any() else thumbs
