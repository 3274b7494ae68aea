"""Copies of real images that need no threshold of the reference's own to be known as copies.

A reference of few images, or of few patients, does not show how similar different patients are, so no threshold can be
taken from it. An image that is more similar to a real one than any such threshold is a copy all the same.
"""

from collections.abc import Sequence

import numpy as np

from cxrsynth.metrics.memorization.features import MatchSpace
from cxrsynth.metrics.memorization.search import ImageSet, Match, SearchSettings
from cxrsynth.metrics.memorization.verification import Gallery, compare

# The highest threshold that a reference may give the search.
LEAST_SIMILAR = SearchSettings().ceiling
_CANDIDATES = 8


def find_copies(
    made: ImageSet, reference: ImageSet, *, made_digests: Sequence[str], digests: Sequence[str], seed: int = 0
) -> tuple[Match, ...]:
    """The most similar real image of each image, flagged where it is the same one.

    Files with one digest are equal. Other images are registered, mirrored too, and compared in fine detail: the same
    picture in another format, size or position, or with another exposure, is more similar than `LEAST_SIMILAR`.

    Args:
        made: the synthetic images.
        reference: the real ones, one or more.
        made_digests: SHA-256 of each synthetic image's file.
        digests: that of each real image's.
        seed: of the features that choose candidates.
    """
    if not made.keys:
        return ()
    # Of one image alone no features could be fitted.
    space = MatchSpace.fit(np.concatenate((reference.thumbs, made.thumbs)), seed=seed)
    gallery = Gallery.of(reference.thumbs, np.arange(len(reference.keys)), space)
    nobody = np.full(len(made.keys), -1)
    found = compare(made.thumbs, gallery, leave_out=nobody, candidates=_CANDIDATES, verified=_CANDIDATES).best()
    equal = {digest: place for place, digest in reversed(list(enumerate(digests)))}
    matches = []
    for place, key in enumerate(made.keys):
        same = equal.get(made_digests[place])
        nearest = int(found.places[place]) if same is None else same
        similarity = float(found.similarity[place]) if same is None else 1.0
        matches.append(
            Match(
                key,
                reference.keys[nearest] if nearest >= 0 else "",
                similarity,
                float(found.cosines[place]),
                bool(found.mirrored[place]) and same is None,
                similarity > LEAST_SIMILAR,
            )
        )
    return tuple(matches)
