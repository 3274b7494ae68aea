"""From rewards to feedback: compared with the frozen baseline's, or as they are."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from cxrsynth.recipe.schema import DdpoStage, RlcfStage
from cxrsynth.rewards.feedback import Comparison, compare, reward_std
from cxrsynth.rl.rollout_spec import RolloutSpec
from cxrsynth.rl.rollouts import BaselineCache, Collector, PromptExample


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


class Comparer:
    """Compares images with the baseline's for the same reports and x_T. `ddpo` compares nothing."""

    def __init__(self, section: RlcfStage | DdpoStage) -> None:
        self._section = section.comparison if isinstance(section, RlcfStage) else None
        self.cache = BaselineCache()

    def baseline_rewards(
        self, collector: Collector, specs: Sequence[RolloutSpec], examples: Sequence[PromptExample]
    ) -> Tensor | None:
        """The baseline's rewards [N, R], sampled where the cache does not have them; None where nothing is compared."""
        if self._section is None:
            return None
        return collector.baseline_rewards(specs, examples, self.cache, images=self._section.baseline_images)

    def __call__(self, rewards: Tensor, baseline: Tensor | None) -> Feedback:
        """Feedback of the policy's rewards [N, R], in standard deviations of all the baseline's rewards so far."""
        if self._section is None or baseline is None:
            return Feedback(rewards, rewards, None)
        scale = reward_std(self.cache.everything())
        kind, beta = Comparison(self._section.kind), self._section.beta
        return Feedback(compare(rewards, baseline, kind=kind, scale=scale, beta=beta), rewards, baseline)
