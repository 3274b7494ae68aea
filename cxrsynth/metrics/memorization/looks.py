"""Both looks of the search: images as a whole, then the region in which they agree best; negatives are turned back."""

from dataclasses import dataclass, replace

import numpy as np

from cxrsynth.metrics.memorization.features import MatchSpace, Thumbs, Vectors, inverted, negatives
from cxrsynth.metrics.memorization.partial import most_alike
from cxrsynth.metrics.memorization.patches import PatchIndex
from cxrsynth.metrics.memorization.verification import Gallery, Nearest, Places, compare

# Posture regressors do not know negatives, so these are looked at in several sizes.
_SCALES, _SCALES_OF_NEGATIVES = (1.0,), (0.8, 1.0, 1.25)


@dataclass(frozen=True, slots=True)
class Searchable:
    """Reference images, prepared for both looks."""

    gallery: Gallery  # none of its images is a negative of the others
    patches: PatchIndex
    mean: Vectors  # [T, T], of the thumbnails

    @classmethod
    def of(cls, thumbs: Thumbs, groups: Places, space: MatchSpace, *, seed: int = 0) -> "Searchable":
        """Index thumbnails [N, T, T] of patients `groups` [N], with features fitted on them."""
        mean = thumbs.mean(0, dtype=np.float32)
        upright = _positives(thumbs, inverted(thumbs, mean))
        return cls(Gallery.of(upright, groups, space), PatchIndex(upright, groups, seed=seed), mean)

    def nearest(self, thumbs: Thumbs, *, leave_out: Places) -> Nearest:
        """The most similar reference image of each [Q, T, T], by the look in which it is more similar.

        `leave_out` is the group that each image is not compared with, [Q]; -1 for none. `mirrored` is always False
        where the second look decides.
        """
        negative = inverted(thumbs, self.mean)
        thumbs = _positives(thumbs, negative)
        found = compare(thumbs, self.gallery, leave_out=leave_out).best()
        for which, scales in ((~negative, _SCALES), (negative, _SCALES_OF_NEGATIVES)):
            if which.any():
                found = self._second_look(thumbs, found, which.nonzero()[0], leave_out, scales)
        return found

    def _second_look(
        self, thumbs: Thumbs, found: Nearest, rows: Places, leave_out: Places, scales: tuple[float, ...]
    ) -> Nearest:
        alike = most_alike(thumbs[rows], self.gallery.thumbs, self.patches, leave_out=leave_out[rows], scales=scales)
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
    return np.where(negative[:, None, None], negatives(thumbs), thumbs)
