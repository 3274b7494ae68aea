"""How far readers agree beyond chance: Cohen's kappa of two, Fleiss' kappa of all."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import cohen_kappa_score

Given = Mapping[str, Mapping[str, str | int]]


def fleiss_kappa(counts: npt.NDArray[np.int64]) -> float | None:
    """Agreement of raters beyond chance, 1 where all agree and 0 where they agree as often as chance has it.

    Args:
        counts: [N, K], how many raters gave each subject each category; as many raters for all subjects, at least two.

    Returns:
        None where it is undefined: without subjects, or if only one category was ever given.

    Raises:
        ValueError: if subjects have different numbers of raters, or fewer than two.

    Source: Fleiss, Psychological Bulletin 76 (1971), 378-382.
    """
    if not len(counts):
        return None
    raters = int(counts[0].sum())
    if raters < 2 or (counts.sum(1) != raters).any():
        raise ValueError("expected the same number of raters, at least two, for each subject")
    agreement = float(((counts**2).sum(1) - raters).mean() / (raters * (raters - 1)))
    by_chance = float(((counts.sum(0) / counts.sum()) ** 2).sum())
    return None if by_chance == 1 else (agreement - by_chance) / (1 - by_chance)


def cohen_kappa(
    one: Sequence[str | int],
    other: Sequence[str | int],
    *,
    weights: str | None = None,
    scale: Sequence[str | int] | None = None,
) -> float | None:
    """Agreement of two readers beyond chance; None without images, or where both always gave one and the same answer.

    Args:
        one: answers of a reader.
        other: of the other, on the same images.
        weights: of disagreements, by how many places of the scale they are apart.
        scale: all possible answers in order; None: those given. Weights need all: without a grade that nobody gave, its
            neighbors would be one place apart.

    Source: Cohen, Educational and Psychological Measurement 20 (1960), 37-46; weights "quadratic": Cohen, Psychological
    Bulletin 70 (1968), 213-220.
    """
    if not one or len({*one, *other}) == 1:
        return None
    return float(cohen_kappa_score(one, other, weights=weights, labels=None if scale is None else list(scale)))


def agreement(
    given: Given, *, weights: str | None = None, scale: Sequence[str | int] | None = None
) -> dict[str, Any] | None:
    """Kappa of all readers on the images that all of them answered, and of each two on those that both did.

    Args:
        given: reader -> image -> answer.
        weights: of disagreements in Cohen's kappa; Fleiss' has none.
        scale: as in `cohen_kappa`.

    Returns:
        None for fewer than two readers.
    """
    if len(given) < 2:
        return None
    pairs = []
    for one, other in combinations(given, 2):
        both = sorted(given[one].keys() & given[other].keys())
        answers_of = ([given[reader][name] for name in both] for reader in (one, other))
        kappa = cohen_kappa(*answers_of, weights=weights, scale=scale)
        pairs.append({"readers": [one, other], "images": len(both), "kappa": kappa})
    shared = sorted(set.intersection(*(set(answers) for answers in given.values())))
    categories = sorted({answer for answers in given.values() for answer in answers.values()}, key=str)
    counts = np.zeros((len(shared), len(categories)), dtype=np.int64)
    for answers in given.values():
        for place, name in enumerate(shared):
            counts[place, categories.index(answers[name])] += 1
    return {"fleiss": fleiss_kappa(counts), "images": len(shared), "pairs": pairs}
