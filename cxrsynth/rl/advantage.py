"""From feedback to advantage: normalized per reward and per report, weighted, clipped."""

import math
from collections import deque
from collections.abc import Hashable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from cxrsynth.rewards.feedback import mean_and_std

Name = TypeVar("Name", bound=Hashable)


class PromptStatistics:
    """The latest feedback of each report, which normalizes the next.

    Args:
        size: values kept per report.
        least: with fewer values than this, the batch's statistics are used.

    Source: per-prompt statistics of DDPO (arXiv:2305.13301), section 4.3; here one column a reward.
    """

    def __init__(self, *, size: int = 32, least: int = 8) -> None:
        self.size = size
        self.least = least
        self.values: dict[str, deque[list[float]]] = {}

    def add(self, report_ids: Sequence[str], feedback: Tensor) -> None:
        """Add feedback [B, R] of reports."""
        for report_id, row in zip(report_ids, feedback.double().tolist(), strict=True):
            self.values.setdefault(report_id, deque(maxlen=self.size)).append(row)

    def of(self, report_id: str) -> Tensor | None:
        """Feedback [n, R] of a report, float64; None while there are fewer than `least` values."""
        known = self.values.get(report_id, ())
        return torch.tensor(list(known), dtype=torch.float64) if len(known) >= self.least else None

    def state(self) -> dict[str, list[list[float]]]:
        """For a checkpoint."""
        return {report_id: list(rows) for report_id, rows in self.values.items()}

    def load(self, state: dict[str, list[list[float]]]) -> None:
        """From a checkpoint."""
        self.values = {report_id: deque(rows, maxlen=self.size) for report_id, rows in state.items()}


def to_advantage(
    feedback: Tensor,
    report_ids: Sequence[str],
    statistics: PromptStatistics,
    *,
    weights: Tensor,
    clip: float,
    centre: bool = True,
    streams: Sequence[int] | None = None,
) -> Tensor:
    """Advantages [B] float32.

    Each reward's feedback is normalized to zero mean and unit standard deviation by the report's own latest values
    (this batch included) or, while there are too few, by the batch's; so no reward outweighs another by its unit.

    Args:
        feedback: [B, R], of all processes; nan, where a reward has no answer, counts neither for nor against.
        report_ids: of the images, [B].
        statistics: values seen so far; this batch is added.
        weights: of the rewards, [R].
        clip: largest advantage in either direction.
        centre: False keeps the comparison's sign: better than the baseline stays above zero, however well others do.
        streams: which noise each image was sampled with, [B]. Images that share it, as mirrored ones do, are left out
            of the mean that is subtracted from them: a mean that depends on an action takes a part of its gradient
            away, all of it where there are no others. None leaves nothing out.
    """
    statistics.add(report_ids, feedback)
    batch = feedback.double()
    whole = _mean_and_std(batch)
    shared, members = _places(streams or ()), _places(report_ids)
    rows = []
    for place, (report_id, row) in enumerate(zip(report_ids, batch, strict=True)):
        own = statistics.of(report_id)
        if own is not None and len(members[report_id]) > len(own):  # more images at once than are remembered
            own = batch[members[report_id]]
        std = whole[1] if own is None else _mean_and_std(own, instead=whole[1])[1]
        if centre:
            pair = batch[shared[streams[place]]] if streams is not None else batch[:0]
            row = row - _mean_without(batch if own is None else own, pair, instead=batch)
        rows.append((row / std).nan_to_num(0.0))
    weighted = torch.stack(rows) @ weights.double() / weights.double().sum()
    return weighted.clamp(-clip, clip).float()


def _places(names: Sequence[Name]) -> dict[Name, list[int]]:
    """Where each name stands."""
    found: dict[Name, list[int]] = {}
    for place, name in enumerate(names):
        found.setdefault(name, []).append(place)
    return found


def _mean_without(values: Tensor, left_out: Tensor, *, instead: Tensor) -> Tensor:
    """Mean of each column of [n, R] without the rows `left_out`, which are among them; nan is ignored, [R].

    A column with no other values gets the mean of `instead`, again without those rows, or else nan.
    """

    def total(rows: Tensor) -> tuple[Tensor, Tensor]:
        return rows.nan_to_num(0.0).sum(0), (~rows.isnan()).sum(0)

    gone, gone_count = total(left_out)
    means = []
    for rows in (values, instead):
        found, count = total(rows)
        means.append((found - gone) / (count - gone_count))
    own, other = means
    return torch.where(own.isfinite(), own, other)


def no_signal(feedback: Tensor, report_ids: Sequence[str]) -> float:
    """Share of reports whose images all got the same feedback from every reward: alone, they give no gradient."""
    groups: dict[str, list[Tensor]] = {}
    for report_id, row in zip(report_ids, feedback.nan_to_num(0.0), strict=True):
        groups.setdefault(report_id, []).append(row)
    flat = [len(rows) < 2 or torch.equal(torch.stack(rows), rows[0].expand(len(rows), -1)) for rows in groups.values()]
    return sum(flat) / len(flat) if flat else math.nan


def _mean_and_std(values: Tensor, *, instead: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Of the known values of [n, R]; a standard deviation of zero becomes `instead`, or 1."""
    mean, std = mean_and_std(values)
    return mean, torch.where(std > 1e-8, std, torch.ones_like(std) if instead is None else instead)
