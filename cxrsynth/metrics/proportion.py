"""Shares of images, and their 95% intervals."""

from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import norm

_Z = float(norm.ppf(0.975))


def wilson(successes: float, of: float) -> tuple[float, float]:
    """Wilson's score interval of a proportion; `of`, above zero, need not be whole.

    Source: Wilson, Journal of the American Statistical Association 22 (1927), 209-212.
    """
    share, square = successes / of, _Z**2
    center = (share + square / (2 * of)) / (1 + square / of)
    half = _Z * sqrt(share * (1 - share) / of + square / (4 * of**2)) / (1 + square / of)
    # Rounding may put an end on the wrong side of a share of 0 or 1.
    return min(share, max(0.0, center - half)), max(share, min(1.0, center + half))


def clustered_variance(sums: npt.NDArray[np.floating[Any]]) -> float:
    """Variance of a total by the sums of its clusters, deviations from the mean [C], corrected for their number."""
    clusters = len(sums)
    return float((sums**2).sum()) * (clusters / (clusters - 1) if clusters > 1 else 1.0)


@dataclass(frozen=True, slots=True)
class Share:
    """`caught` of `of` images, and the 95% Wilson interval of the share."""

    caught: int
    of: int
    low: float
    high: float

    @classmethod
    def among(cls, caught: npt.NDArray[np.bool_], groups: npt.NDArray[np.int64] | None = None) -> "Share":
        """Of images [N], N at least 1.

        Args:
            caught: which images count, [N].
            groups: number of each image's report or patient, from 0, [N]. Images of one are alike, so that the interval
                is that of an effective number of images: the number at which independent ones would vary as much as
                these do, the number of groups where all are alike. Without it each image counts as one.

        Source: Korn, Graubard, Survey Methodology 24 (1998), 193-201.
        """
        count, total = len(caught), int(caught.sum())
        effective = float(count)
        if groups is not None:
            sums = np.bincount(groups, caught - total / count).astype(np.float64)
            variance = clustered_variance(sums[np.bincount(groups) > 0])
            spread = total * (count - total)
            effective = min(effective, spread / variance if spread and variance else float(len(np.unique(groups))))
        low, high = wilson(total / count * effective, effective)
        return cls(total, count, low, high)
