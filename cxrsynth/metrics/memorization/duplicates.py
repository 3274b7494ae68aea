"""Duplicates within one set: images that repeat an earlier one, exactly or nearly."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
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


@dataclass(frozen=True, slots=True)
class Repeats:
    """Images of a set that repeat an earlier one.

    `first_of`: key -> key of the first in its group, and the image's strongest similarity to one of that group.
    `follow_ups`: images that resemble an earlier one of the same patient, and are no duplicates.
    """

    first_of: Mapping[str, tuple[str, float]]
    follow_ups: frozenset[str] = frozenset()


def duplicates(
    thumbs: Thumbs,
    keys: Sequence[str],
    sha256s: Sequence[str],
    *,
    patients: Sequence[str] | None = None,
    threshold: float = NEAR_DUPLICATE,
    seed: int = 0,
) -> Repeats:
    """Images that repeat an earlier one.

    Equal digests are duplicates of similarity 1. Other images are linked if more similar than `threshold`; of linked
    images the first is kept, the others point to it.

    Args:
        thumbs: [N, T, T]; their order decides which is first.
        keys: of the images, [N], each once.
        sha256s: digests of the images' pixels, [N].
        patients: of the images, [N], empty where unknown: images of one are not linked, unless they are equal. None
            links all.
        threshold: least similarity of near-duplicates (see `verification.Compared`).
        seed: of the features.

    Memory: the thumbnails, and 8 neighbors per image.
    """
    first_of: dict[str, int] = {}
    heads = np.array([first_of.setdefault(digest, place) for place, digest in enumerate(sha256s)], np.int64)
    unique = np.unique(heads)
    number = {patient: place for place, patient in enumerate(dict.fromkeys(patients or ()))}
    people = np.array([number[patients[place]] if patients and patients[place] else -1 for place in unique], np.int64)
    near = _near(thumbs[unique], people, threshold, seed)
    roots, similarity = unique[near.roots][np.searchsorted(unique, heads)], near.similarity
    found = {}
    for place, (head, root) in enumerate(zip(heads.tolist(), roots.tolist(), strict=True)):
        if root != place:  # one that is equal to a near-duplicate is as near to the first as that is
            alike = 1.0 if root == head else float(similarity[np.searchsorted(unique, head)])
            found[keys[place]] = keys[root], alike
    again = {keys[unique[place]] for place in near.again}
    return Repeats(found, frozenset(again - found.keys()))


@dataclass(frozen=True, slots=True)
class _Near:
    """The first of each image's group, [N], its strongest link, [N], and images like an earlier one of a patient."""

    roots: npt.NDArray[np.int64]
    similarity: npt.NDArray[np.float64]
    again: frozenset[int]


def _near(thumbs: Thumbs, people: npt.NDArray[np.int64], threshold: float, seed: int) -> _Near:
    """Links of N images, `people` saying whose they are (-1: unknown).

    An image is linked to few others. Of many that are alike, those nearest to each other would not meet the rest: the
    firsts of all groups are compared again until none is like another.
    """
    roots, strongest, again = np.arange(len(thumbs)), np.zeros(len(thumbs)), set[int]()
    left = roots.copy()
    while len(left) > 1:
        rows, others, similarity = _links(thumbs[left], threshold, seed)
        one, two = left[rows], left[others]
        same = (people[one] == people[two]) & (people[one] >= 0)
        again |= set(np.maximum(one[same], two[same]).tolist())
        rows, others, similarity, one, two = (part[~same] for part in (rows, others, similarity, one, two))
        np.maximum.at(strongest, one, similarity)
        np.maximum.at(strongest, two, similarity)
        links = coo_array((np.ones(len(rows), np.int8), (rows, others)), shape=(len(left), len(left)))
        groups = connected_components(links, directed=False)[1]
        _, first, group = np.unique(groups, return_index=True, return_inverse=True)
        heads = left[first[group]]
        merged = heads != left
        roots[left[merged]] = heads[merged]
        left = left[~merged]
        if not merged.any():
            break
    while (roots[roots] != roots).any():
        roots = roots[roots]
    return _Near(roots, strongest, frozenset(again))


def _links(
    thumbs: Thumbs, threshold: float, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Places of two images each that are alike, and how much."""
    count = len(thumbs)
    own = np.arange(count)
    gallery = Gallery.of(thumbs, own, MatchSpace.fit(thumbs, seed=seed))
    least = _LEAST_COSINE if count >= _MANY else -1.0
    seen = compare(thumbs, gallery, leave_out=own, candidates=_NEIGHBORS, verified=_NEIGHBORS, least_cosine=least)
    rows, columns = (seen.similarity >= threshold).nonzero()
    return rows, seen.places[rows, columns], seen.similarity[rows, columns].astype(np.float64)
