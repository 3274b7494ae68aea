"""95% intervals of what readers answered."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import ttest_ind

from cxrsynth.metrics.proportion import clustered_variance, wilson

Found = dict[str, float | int | None]


def proportion(right: npt.NDArray[np.float64]) -> Found:
    """The share of right answers, and its Wilson interval at the effective number of answers.

    Answers about one image are alike, and so are those of one reader, so there is less in them than their number says.
    The effective number is the one at which independent answers would vary as much as these do, by the variance
    clustered both ways (images and readers). It is at most the number of answers, and at most that of images where all
    answers are alike. The variance of two or three readers is hardly known: where their skill differs, the interval is
    too narrow (docs/audit.md has its coverage).

    Args:
        right: [R, N] 1 where reader r was right about image n, 0 where wrong, nan where not asked.

    Source: two-way clustering: Cameron, Gelbach, Miller, Journal of Business & Economic Statistics 29 (2011), 238-249;
    effective size: Korn, Graubard, Survey Methodology 24 (1998), 193-201.
    """
    asked = ~np.isnan(right)
    count = int(asked.sum())
    if not count:
        return {"value": None, "low": None, "high": None, "answers": 0}
    share = float(np.nansum(right) / count)
    rest = np.where(asked, right - share, 0.0)
    images = int(asked.any(0).sum())
    variance = clustered_variance(rest.sum(0)[asked.any(0)])
    if int(asked.any(1).sum()) > 1:
        by_reader = clustered_variance(rest.sum(1)[asked.any(1)])
        variance = max(variance, by_reader, variance + by_reader - float((rest**2).sum()))
    spread = share * (1 - share)
    effective = min(count, spread * count**2 / variance) if variance and spread else min(count, images)
    low, high = wilson(share * effective, effective)
    return {"value": share, "low": low, "high": high, "answers": count}


def difference(one: Sequence[float], other: Sequence[float]) -> Found:
    """Mean of `one` minus mean of `other`, with Welch's interval; without an interval for fewer than two of either.

    Nor is there one where neither side varies: equal answers leave no measure of how they scatter.
    """
    if not one or not other:
        return {"value": None, "low": None, "high": None}
    value = float(np.mean(one) - np.mean(other))
    if min(len(one), len(other)) < 2:
        return {"value": value, "low": None, "high": None}
    if not np.ptp(one) and not np.ptp(other):
        return {"value": value, "low": None, "high": None}
    interval: Any = ttest_ind(one, other, equal_var=False).confidence_interval(0.95)
    return {"value": value, "low": float(interval.low), "high": float(interval.high)}
