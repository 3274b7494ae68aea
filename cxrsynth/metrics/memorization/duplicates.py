"""Images of a set that are the same, or nearly so."""

from collections.abc import Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from cxrsynth.metrics.memorization.features import CopySpace, Thumbs
from cxrsynth.metrics.memorization.verification import Gallery, compare

# Correlation of fine detail from which two images of one set are one. Measured: images nano makes of one report differ
# by
# more than 0.6 (largest 0.35), real images of different patients reach 0.65, and images with noise of 5% or moved by 3%
# stay above 0.74 with themselves.
NEAR_DUPLICATE = 0.7
# A second look is given to so many neighbours, and in sets of many images only to those of some likeness in features:
# of
# few images features tell little.
_NEIGHBOURS, _MANY, _LEAST_COSINE = 8, 500, 0.3


def duplicates(
    thumbs: Thumbs, keys: Sequence[str], sha256s: Sequence[str], *, threshold: float = NEAR_DUPLICATE, seed: int = 0
) -> dict[str, tuple[str, float]]:
    """Images that repeat an earlier one: key -> key of the first of its like, and how like it is to the one it
    links to.

    Equal digests are duplicates of similarity 1. Of the others, images of more than `threshold` are linked; of linked
    images the first is kept, the others point to it.

    Args:
        thumbs: [N, T, T], in the order that decides which is first.
        keys: of the images, [N], each once.
        sha256s: digests of the images' pixels, [N].
        threshold: least similarity of near duplicates (see `verify.Compared`).
        seed: of the features.

    Memory: the thumbnails, and 8 neighbours an image.
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
    # Whatever equals an image that turned out to repeat an earlier one repeats that earlier one.
    return {
        key: (found[first][0] if first in found else first, similarity) for key, (first, similarity) in found.items()
    }


def _near(thumbs: Thumbs, threshold: float, seed: int) -> dict[int, tuple[int, float]]:
    """Places of images that are linked to an earlier one: its first, and the strongest of the image's links."""
    count = len(thumbs)
    own = np.arange(count)
    gallery = Gallery.of(thumbs, own, CopySpace.fit(thumbs, seed=seed))
    least = _LEAST_COSINE if count >= _MANY else -1.0
    seen = compare(thumbs, gallery, leave_out=own, candidates=_NEIGHBOURS, looked_at=_NEIGHBOURS, least_cosine=least)
    rows, columns = (seen.similarity >= threshold).nonzero()
    others, alike = seen.places[rows, columns], seen.similarity[rows, columns]
    links = coo_array((np.ones(len(rows), np.int8), (rows, others)), shape=(count, count))
    groups = connected_components(links, directed=False)[1]
    _, first, group = np.unique(groups, return_index=True, return_inverse=True)
    strongest = np.zeros(count)
    np.maximum.at(strongest, rows, alike)
    np.maximum.at(strongest, others, alike)
    return {int(i): (int(first[group[i]]), float(strongest[i])) for i in own if first[group[i]] != i}
