"""Policy against baseline on held-out reports: margins, win rates, image statistics, and the reward-hacking alarm."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import nan

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cxrsynth.metrics.diversity import similarity_within
from cxrsynth.metrics.fidelity import frechet_interval, mean_interval
from cxrsynth.rewards.feedback import reward_std

TUNING, EVALUATOR = "tuning", "evaluator"
EVALUATION, TEST = "evaluation", "test"  # prefixes of the rows of metrics.jsonl
_SIMILARITY_PAIRS = 200
_BOOTSTRAP_ROUNDS = 1000


@dataclass(frozen=True)
class EvaluatedImages:
    """One model's images of the held-out reports, in order, with their rewards and features."""

    images: Tensor  # [N, H, W] uint8
    rewards: Tensor  # [N, R] float32: the tuning rewards, then the evaluator's
    features: Tensor  # [N, D] float32


@dataclass(frozen=True)
class Verdict:
    """Policy against baseline. `evaluator` and `tuning` are mean margins, in SDs of the baseline's rewards.

    `tuning` is nan where no rewards tune.
    """

    numbers: dict[str, float]
    evaluator: float
    tuning: float

    @property
    def summary(self) -> str:
        """Margins with their intervals and win rates, in a line."""
        return ", ".join(
            f"{kind} {self.numbers[f'{kind}/total/margin']:+.3f}"
            f" ({self.numbers.get(f'{kind}/total/margin_low', nan):+.3f} to"
            f" {self.numbers.get(f'{kind}/total/margin_high', nan):+.3f}),"
            f" win rate {self.numbers[f'{kind}/total/win_rate']:.2f}"
            for kind in (TUNING, EVALUATOR)
            if f"{kind}/total/margin" in self.numbers
        )

    def as_row(self, prefix: str = EVALUATION) -> dict[str, float]:
        """Its numbers as one flat row for metrics.jsonl."""
        return {f"{prefix}/{name}": value for name, value in self.numbers.items()}


def compare_models(
    policy: EvaluatedImages,
    baseline: EvaluatedImages,
    *,
    weights: Mapping[str, Mapping[str, float]],
    images_per_report: int,
    reference: NDArray[np.float64] | None,
    seed: int,
) -> Verdict:
    """Margins, win rates, Frechet distance and diversity.

    Args:
        policy: the policy's images; those of one report are consecutive.
        baseline: the baseline's images of the same reports, on the same noise.
        weights: `tuning` and `evaluator` -> reward -> weight in the total, in the order of the reward columns.
        images_per_report: images of each report.
        reference: features of real images, [M, D]; None compares with the baseline's images.
        seed: of the image pairs that measure diversity.
    """
    numbers = _compare_rewards(policy.rewards, baseline.rewards, weights, images_per_report)
    numbers |= _compare_images(policy, baseline, reference, seed)
    return Verdict(
        numbers, evaluator=numbers[f"{EVALUATOR}/total/margin"], tuning=numbers.get(f"{TUNING}/total/margin", nan)
    )


def hacking_warning(verdict: Verdict, *, evaluator: float, tuning: float, margin: float) -> str | None:
    """A warning if the evaluator's margin falls by more than `margin` while that of the tuning rewards rises, or None.

    The tuning rewards must also be above the baseline's: a policy that its own rewards do not prefer hacks nothing.

    Args:
        verdict: the newest.
        evaluator: the evaluator's margin at its best so far; zero is the baseline's.
        tuning: the margin of the tuning rewards at that time.
        margin: in standard deviations of the baseline's rewards, as the others.
    """
    fall = evaluator - verdict.evaluator
    if not (fall > margin and verdict.tuning > max(tuning, 0.0)):  # a margin that is not a number raises no alarm
        return None
    return (
        f"reward hacking: the evaluator's margin fell by {fall:.2f} standard deviations (to {verdict.evaluator:+.2f})"
        f" while that of the tuning rewards rose from {tuning:+.2f} to {verdict.tuning:+.2f}.\n"
        "  Begin again with a larger kl_weight, go on from the best checkpoint with lower learning rates (--from-best),"
        " or stop here: the best checkpoint according to the evaluator is kept"
    )


def _compare_rewards(
    policy: Tensor, baseline: Tensor, weights: Mapping[str, Mapping[str, float]], images_per_report: int
) -> dict[str, float]:
    """Means, margins and win rates of each reward, and of the weighted total of each kind."""
    columns = [(kind, name, weight) for kind, own in weights.items() for name, weight in own.items()]
    margin = (policy - baseline).double()  # [N, R]
    known = ~margin.isnan()
    numbers: dict[str, float] = {}
    for column, (kind, name, _) in enumerate(columns):
        key, one, counted = f"{kind}/{name}", margin[:, column], known[:, column]
        numbers[f"{key}/policy"] = float(policy[:, column].nanmean())
        numbers[f"{key}/baseline"] = float(baseline[:, column].nanmean())
        numbers |= _interval(f"{key}/margin", one, counted, images_per_report)
        numbers |= _interval(f"{key}/win_rate", _wins(one), counted, images_per_report)
    scaled = (margin / reward_std(baseline)).nan_to_num(0.0)
    for kind in weights:
        own = torch.tensor([of == kind for of, _, _ in columns])
        weight = torch.tensor([weight for _, _, weight in columns], dtype=torch.float64) * own
        share = (known * weight).sum(1)
        total = (scaled * weight).sum(1) / share.where(share > 0, 1.0)  # [N]
        counted = (known & own).any(1)
        numbers |= _interval(f"{kind}/total/margin", total, counted, images_per_report)
        numbers |= _interval(f"{kind}/total/win_rate", _wins(total), counted, images_per_report)
    return numbers


def _interval(name: str, values: Tensor, known: Tensor, images_per_report: int) -> dict[str, float]:
    """The mean over reports with its 95% interval: images of one report are not independent."""
    grouped = values.view(-1, images_per_report)
    counted = known.view(-1, images_per_report)
    rows = counted.any(1)
    means = ((grouped * counted).nan_to_num(0.0).sum(1) / counted.sum(1).clamp(min=1))[rows]
    if not len(means):
        return {name: float("nan")}
    found = mean_interval(means.double().numpy(), rounds=_BOOTSTRAP_ROUNDS)
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}


def _wins(margin: Tensor) -> Tensor:
    """1 for a better image, 0 for a worse one, a half for a tie; [N] float64."""
    return 0.5 + 0.5 * margin.nan_to_num(0.0).sign()


def _compare_images(
    policy: EvaluatedImages, baseline: EvaluatedImages, reference: NDArray[np.float64] | None, seed: int
) -> dict[str, float]:
    """Frechet distance with its interval, and mean MS-SSIM between images of each model."""
    ours, before = policy.features.double().numpy(), baseline.features.double().numpy()
    compared = {"frechet_to_baseline": (ours, before)}
    if reference is not None:
        compared = {"frechet_to_real": (ours, reference), "baseline_frechet_to_real": (before, reference)}
    numbers: dict[str, float] = {}
    for name, (first, second) in compared.items():
        distance = frechet_interval(first, second)
        numbers |= {name: distance.value, f"{name}_low": distance.low, f"{name}_high": distance.high}
    for name, images in (("ms_ssim", policy.images), ("baseline_ms_ssim", baseline.images)):
        pairs = min(_SIMILARITY_PAIRS, 4 * len(images))
        numbers[name] = similarity_within(images.numpy(), pairs=pairs, seed=seed).value
    return numbers
