"""Comparative feedback: how much better than the frozen baseline's image, reward by reward."""

from enum import StrEnum

import torch
from torch import Tensor


class Comparison(StrEnum):
    """What is made of the difference of two rewards, in units of `scale`."""

    MARGIN = "margin"
    SIGMOID = "sigmoid"
    SIGN = "sign"


def compare(policy: Tensor, baseline: Tensor, *, kind: Comparison, scale: Tensor, beta: float = 1.0) -> Tensor:
    """Feedback [B, R]: above zero where the policy's image is the better one, zero where they are equal.

    Args:
        policy: rewards of the policy's images, [B, R]; nan where a reward could not tell.
        baseline: rewards of the baseline's images for the same reports, [B, R].
        kind: `margin` is the difference itself, `sigmoid` squeezes it into (-1, 1), `sign` takes its sign. The last
            two are not carried by a few extreme cases: a log-likelihood has a heavy tail.
        scale: unit of each reward, [R], above zero; usually the spread of the baseline's own rewards.
        beta: steepness of `sigmoid`.

    Returns:
        [B, R] float32; nan where one of the two could not tell.

    Source: CXRL (Han et al., arXiv:2403.06516) rewards the better and penalises the worse of each pair; the form of
    the comparison is not on public record.
    """
    margin = ((policy - baseline) / scale).float()
    if kind is Comparison.SIGMOID:
        return torch.tanh(0.5 * beta * margin)  # 2 sigmoid(beta m) - 1
    if kind is Comparison.SIGN:
        return torch.where(margin.isnan(), margin, margin.sign())  # the sign of nan is 0
    return margin


def spread(rewards: Tensor, *, floor: float = 1e-3) -> Tensor:
    """Standard deviation of each reward over images, [N, R] -> [R], at least `floor`; nan entries are left out.

    A reward that never differs (or of fewer than two known values) gets 1: its margins are zero anyway.
    """
    _, found = mean_and_std(rewards)
    return torch.where(found > 0, found.clamp(min=floor), 1.0).float()


def mean_and_std(values: Tensor) -> tuple[Tensor, Tensor]:
    """Of each column over what is not nan, [N, R] -> two of [R] float64; std 0 for fewer than two, mean 0 for none."""
    known = ~values.isnan()
    count, filled = known.sum(0), values.nan_to_num(0.0).double()
    mean = filled.sum(0) / count.clamp(min=1)
    return mean, (((filled - mean).square() * known).sum(0) / (count - 1).clamp(min=1)).sqrt()
