"""Rewards and feedback of one iteration, as they are logged."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Feedback:
    """Of N trajectories by R rewards, [N, R] each; nan where a reward has no answer. `baseline` is None for `ddpo`."""

    values: Tensor
    rewards: Tensor
    baseline: Tensor | None

    def row(self, names: Sequence[str], weights: Tensor) -> dict[str, float]:
        """Means by reward for metrics.jsonl, and the share of images that beat the baseline's."""
        row: dict[str, float] = {}
        for column, name in enumerate(names):
            row[f"reward/{name}/mean"] = float(self.rewards[:, column].nanmean())
            row[f"feedback/{name}/mean"] = float(self.values[:, column].nanmean())
            if self.baseline is not None:
                row[f"reward/{name}/baseline"] = float(self.baseline[:, column].nanmean())
        if self.baseline is not None:
            total = self.values.nan_to_num(0.0) @ weights
            row["feedback/win_rate"] = float((0.5 + 0.5 * total.sign()).mean())
        return row
