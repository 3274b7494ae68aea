"""Duplicates within one set: images that repeat an earlier one, exactly or nearly."""

from collections.abc import Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from cxrsynth.metrics.memorization.features import MatchSpace, Thumbs
from cxrsynth.metrics.memorization.verification import Gallery, compare

# Two images of one set are duplicates from this correlation of fine detail on. Measured: images that nano makes from
# one report reach at most 0.35, real images of different patients 0.65, and an image with 5% noise, or moved by 3%,
# stays above 0.74 with the original.
NEAR_DUPLICATE = 0.7
# Neighbors that are verified; in large sets only those with similar features. In small sets features say little.
_NEIGHBORS, _MANY, _LEAST_COSINE = 8, 500, 0.3


def duplicates(
    thumbs: Thumbs, keys: Sequence[str], sha256s: Sequence[str], *, threshold: float = NEAR_DUPLICATE, seed: int = 0
) -> dict[str, tuple[str, float]]:
    """Images that repeat an earlier one: key -> key of the first in its group, and its strongest similarity.

    Equal digests are duplicates of similarity 1. Other images are linked if more similar than `threshold`; of linked
    images the first is kept, the others point to it.

    Args:
        thumbs: [N, T, T]; their order decides which is first.
        keys: of the images, [N], each once.
        sha256s: digests of the images' pixels, [N].
        threshold: least similarity of near-duplicates (see `verification.Compared`).
        seed: of the features.

    Memory: the thumbnails, and 8 neighbors per image.
    """
    first_of: dict[str, int] = {}
    heads = np.array([first_of.setdefault(digest, place) for place, digest in enumerate(sha256s)], np.int64)
    unique = np.unique(heads)
    found = {keys[place]: (keys[head], 1.0) for place, head in enumerate(heads) if head != place}
    if len(unique) < 2:
        return found
    near = _near(thumbs[unique], threshold, seed)
    for place, (head, similarity) in near.items():
        found[keys[unique[place]]] = keys[unique[head]], similarity
    # An image equal to one that repeats an earlier image repeats that earlier image.
    return {
        key: (found[first][0] if first in found else first, similarity) for key, (first, similarity) in found.items()
    }


def _near(thumbs: Thumbs, threshold: float, seed: int) -> dict[int, tuple[int, float]]:
    """Places of images linked to an earlier one: the first of the group, and the strongest of the image's links."""
    count = len(thumbs)
    own = np.arange(count)
    gallery = Gallery.of(thumbs, own, MatchSpace.fit(thumbs, seed=seed))
    least = _LEAST_COSINE if count >= _MANY else -1.0
    seen = compare(thumbs, gallery, leave_out=own, candidates=_NEIGHBORS, verified=_NEIGHBORS, least_cosine=least)
    rows, columns = (seen.similarity >= threshold).nonzero()
    others, similarity = seen.places[rows, columns], seen.similarity[rows, columns]
    links = coo_array((np.ones(len(rows), np.int8), (rows, others)), shape=(count, count))
    groups = connected_components(links, directed=False)[1]
    _, first, group = np.unique(groups, return_index=True, return_inverse=True)
    strongest = np.zeros(count)
    np.maximum.at(strongest, rows, similarity)
    np.maximum.at(strongest, others, similarity)
    return {int(i): (int(first[group[i]]), float(strongest[i])) for i in own if first[group[i]] != i}
