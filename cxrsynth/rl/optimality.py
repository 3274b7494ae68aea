"""From rewards to optimality: how good each image is, in [0, 1], beside the baseline or its own group. Pure.

At one half an image teaches nothing. The mean need not be one half: at the weights that sampled, the expected gradient
of an image does not depend on it (method of DiffusionNFT, arXiv:2509.16117), so what a mean elsewhere adds is noise.
`centred` takes that noise away.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from cxrsynth.rewards.feedback import mean_and_std

OptimalityKind = Literal["win_probability", "margin", "group"]


def win_probability(rewards: Tensor, baseline: Tensor, *, scale: Tensor, weights: Tensor, temperature: float) -> Tensor:
    """The probability that an image beats one of the frozen baseline's for the same report, [N].

    Estimated against K images of the baseline, reward by reward, each comparison a logistic function of the difference;
    then the weighted mean over rewards. It is bounded: once the baseline is beaten, it pushes no further.

    Args:
        rewards: of the policy's images, [N, R]; nan, where a reward has no answer, leaves that reward out.
        baseline: of K images of the baseline for each report, [N, K, R].
        scale: unit of each reward, [R], above zero.
        weights: of the rewards, [R].
        temperature: the difference, in units of `scale`, that wins with a probability of 0.73.
    """
    margins = (rewards[:, None] - baseline) / scale  # [N, K, R]
    wins = torch.sigmoid(margins / temperature).nanmean(1)  # [N, R]
    return _weighted(wins, weights, unknown=0.5)


def margin(rewards: Tensor, baseline: Tensor, *, scale: Tensor, weights: Tensor) -> Tensor:
    """One half, plus half the weighted mean margin over the baseline's images, clipped to one unit either way; [N].

    Args:
        rewards, baseline, scale, weights: as for `win_probability`.
    """
    margins = ((rewards[:, None] - baseline) / scale).nanmean(1)
    return 0.5 + 0.5 * _weighted(margins, weights, unknown=0.0).clamp(-1, 1)


def centred(optimality: Tensor, report_ids: Sequence[str], streams: Sequence[int], *, known: Tensor) -> Tensor:
    """Optimality around one half: less the mean of the report's other images, plus one half, in [0, 1]; [N].

    Part of an image's optimality is of its report: how strong the few images of the baseline happen to be. That part
    has no expected gradient, but as much variance as any other.

    Args:
        optimality: of the images, [N].
        report_ids: of the images, [N].
        streams: which noise each image was sampled with, [N]. Mirrored images share it, and are not in each other's
            mean: it would take a part of their own gradient away.
        known: whether any reward has an answer for the image, [N]. Without one it stays at one half, in no mean.

    An image without others keeps its optimality.
    """
    others = _means_of_others(optimality, report_ids, streams, known=known)
    less = torch.where(known, 0.5 - others, 0.0).nan_to_num(0.0)
    return (optimality.double() + less).clamp(0, 1).float()


def group(
    rewards: Tensor, report_ids: Sequence[str], streams: Sequence[int], *, scale: Tensor, weights: Tensor
) -> Tensor:
    """Compared with the other images of the same report, without a baseline, [N].

    The weighted total less the mean of the others, divided by the standard deviation of that over all images, clipped.
    A reward without an answer counts as the report's others do: `with_others`.

    Args:
        rewards, scale, weights: as for `win_probability`.
        report_ids, streams: as for `centred`.
    """
    filled = with_others(rewards, report_ids, streams)
    total = _weighted(filled / scale, weights, unknown=float("nan")).double()
    others = _means_of_others(total, report_ids, streams, known=~total.isnan())
    difference = (total - others)[:, None]
    _, std = mean_and_std(difference)
    units = (difference[:, 0] / std.clamp(min=1e-8)).nan_to_num(0.0)
    return (0.5 + 0.5 * units.clamp(-1, 1)).float()


def with_others(rewards: Tensor, report_ids: Sequence[str], streams: Sequence[int]) -> Tensor:
    """Rewards [N, R] in which one without an answer is the mean of the report's other images, where these have one.

    Left out of an image's weighted mean, a reward on which its report is weak would make it better than the others, for
    nothing but giving no answer: no two lungs found, no posture to be bad. An image without any answer stays as it is.

    Args:
        rewards: of the images, [N, R].
        report_ids, streams: as for `centred`.
    """
    known = ~rewards.isnan()
    columns = [
        torch.where(answered, column, _means_of_others(column, report_ids, streams, known=answered))
        for column, answered in zip(rewards.double().unbind(1), known.unbind(1), strict=True)
    ]
    filled = torch.stack(columns, 1).to(rewards.dtype) if columns else rewards
    return torch.where(known.any(1, keepdim=True), filled, rewards)


def _means_of_others(values: Tensor, report_ids: Sequence[str], streams: Sequence[int], *, known: Tensor) -> Tensor:
    """For each of N values, the mean of the report's known others of another stream, [N]; nan without any."""
    members: dict[str, list[int]] = {}
    for place, report_id in enumerate(report_ids):
        if known[place]:
            members.setdefault(report_id, []).append(place)
    given, found = values.double().tolist(), [float("nan")] * len(values)
    for place, report_id in enumerate(report_ids):
        others = [given[other] for other in members.get(report_id, ()) if streams[other] != streams[place]]
        if others:
            found[place] = sum(others) / len(others)
    return torch.tensor(found, dtype=torch.float64)


def _weighted(values: Tensor, weights: Tensor, *, unknown: float) -> Tensor:
    """Weighted mean of the known values of [N, R], [N]; `unknown` where none is known."""
    known = ~values.isnan()
    share = (known * weights).sum(1)
    total = (values.nan_to_num(0.0) * weights).sum(1) / share
    return torch.where(share > 0, total, unknown)
