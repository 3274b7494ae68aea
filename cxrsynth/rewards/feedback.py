"""Comparative feedback: how much better each image is than the frozen baseline's, per reward."""

from enum import StrEnum

import torch
from torch import Tensor


class Comparison(StrEnum):
    """How the difference of two rewards, in units of `scale`, becomes feedback."""

    MARGIN = "margin"
    SIGMOID = "sigmoid"
    SIGN = "sign"


def compare(policy: Tensor, baseline: Tensor, *, kind: Comparison, scale: Tensor, beta: float = 1.0) -> Tensor:
    """Feedback [B, R]: positive where the policy's image is better, zero where both are equal.

    Args:
        policy: rewards of the policy's images, [B, R]; nan where a reward could not score an image.
        baseline: rewards of the baseline's images for the same reports, [B, R].
        kind: `margin` is the difference itself, `sigmoid` squashes it into (-1, 1), `sign` keeps its sign only. The
            last two are not dominated by a few extreme values: a log-likelihood has a heavy tail.
        scale: unit of each reward, [R], above zero; usually the standard deviation of the baseline's rewards.
        beta: steepness of `sigmoid`.

    Returns:
        [B, R] float32; nan where either reward is nan.

    Source: CXRL (Han et al., arXiv:2403.06516) rewards the better and penalizes the worse image of each pair; the
    form of its comparison is not published.
    """
    margin = ((policy - baseline) / scale).float()
    if kind is Comparison.SIGMOID:
        return torch.tanh(0.5 * beta * margin)  # 2 sigmoid(beta m) - 1
    if kind is Comparison.SIGN:
        return torch.where(margin.isnan(), margin, margin.sign())  # the sign of nan is 0
    return margin


# A standard deviation below this share of a reward's size is rounding of float32.
_ROUNDING = 1e-6


def reward_std(rewards: Tensor) -> Tensor:
    """Standard deviation of each reward over images, [N, R] -> [R], above zero; nan is ignored.

    A reward that is constant up to rounding, or that has fewer than two known values, gets 1: its margins are close to
    zero anyway.
    """
    mean, std = mean_and_std(rewards)
    return torch.where(std > _ROUNDING * mean.abs(), std, 1.0).float()


def mean_and_std(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each column, ignoring nan, [N, R] -> two of [R] float64.

    The standard deviation of fewer than two values is 0, the mean of none is 0.
    """
    known = ~values.isnan()
    count, filled = known.sum(0), values.nan_to_num(0.0).double()
    mean = filled.sum(0) / count.clamp(min=1)
    return mean, (((filled - mean).square() * known).sum(0) / (count - 1).clamp(min=1)).sqrt()
