"""Policy against baseline: margins, win rates, intervals, the reward-hacking alarm."""

import pytest
import torch
from torch import Tensor

from cxrsynth.tuning.verdict import EvaluatedImages, Verdict, compare_models, hacking_warning

REPORTS, IMAGES = 12, 2


def evaluated(rewards: Tensor, *, seed: int = 0) -> EvaluatedImages:
    rng = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (len(rewards), 64, 64), generator=rng).to(torch.uint8)
    return EvaluatedImages(images, rewards, torch.randn(len(rewards), 8, generator=rng))


def verdict_of(policy: EvaluatedImages, baseline: EvaluatedImages) -> Verdict:
    weights = {"tuning": {"posture": 1.0}, "evaluator": {"posture": 1.0}}
    return compare_models(policy, baseline, weights=weights, images_per_report=IMAGES, reference=None, seed=0)


def test_margins_are_in_standard_deviations_and_wins_are_counted() -> None:
    rng = torch.Generator().manual_seed(1)
    start = torch.randn(REPORTS * IMAGES, 2, generator=rng)
    better = start + torch.tensor([1.0, 0.0])
    better[0, 1] = torch.nan  # an unknown reward is left out
    numbers = verdict_of(evaluated(better), evaluated(start)).numbers
    assert numbers["tuning/posture/margin"] == pytest.approx(1.0, abs=1e-5)
    assert numbers["tuning/total/margin"] == pytest.approx(1 / float(start[:, 0].std()), rel=1e-4)
    assert numbers["tuning/total/win_rate"] == 1.0
    assert numbers["evaluator/total/win_rate"] == 0.5
    assert numbers["evaluator/posture/margin_low"] == 0.0 == numbers["evaluator/posture/margin_high"]
    assert numbers["frechet_to_baseline"] == pytest.approx(0.0, abs=1e-6)


def test_the_interval_is_over_reports_not_images() -> None:
    """Two images of a report that change together carry no more information than one."""
    start = torch.zeros(REPORTS * IMAGES, 2)
    by_report = torch.randn(REPORTS, 1, generator=torch.Generator().manual_seed(2)).repeat_interleave(IMAGES, 0)
    alone = torch.randn(REPORTS * IMAGES, 1, generator=torch.Generator().manual_seed(3)) * float(by_report.std())
    widths = []
    for moved in (by_report, alone):
        numbers = verdict_of(evaluated(start + moved), evaluated(start)).numbers
        widths.append(numbers["evaluator/posture/margin_high"] - numbers["evaluator/posture/margin_low"])
    assert widths[0] > 1.15 * widths[1]


def test_totals_are_weighted_by_kind() -> None:
    """A reward of the evaluator does not count in the total of the tuning rewards, nor the other way round."""
    start = torch.randn(REPORTS * IMAGES, 3, generator=torch.Generator().manual_seed(5))
    margins = torch.tensor([1.0, -1.0, 2.0])
    # Only their ratios count, however small they are.
    weights = {"tuning": {"posture": 3e-20, "diagnosis": 1e-20}, "evaluator": {"posture": 1.0}}
    verdict = compare_models(
        evaluated(start + margins * start.std(0)),
        evaluated(start),
        weights=weights,
        images_per_report=IMAGES,
        reference=None,
        seed=0,
    )
    assert verdict.tuning == pytest.approx((3 * 1.0 - 1.0) / 4, rel=1e-4)
    assert verdict.evaluator == pytest.approx(2.0, rel=1e-4)


def test_equal_images_neither_win_nor_lose() -> None:
    same = evaluated(torch.randn(REPORTS * IMAGES, 2, generator=torch.Generator().manual_seed(4)))
    verdict = verdict_of(same, same)
    assert (verdict.evaluator, verdict.tuning) == (0.0, 0.0)
    assert verdict.numbers["evaluator/total/win_rate"] == 0.5
    assert verdict.numbers["ms_ssim"] == verdict.numbers["baseline_ms_ssim"]


@pytest.mark.parametrize(
    ("evaluator", "tuning", "alarm"), [(0.05, 0.9, True), (0.25, 0.9, False), (0.05, 0.4, False), (0.4, 0.9, False)]
)
def test_the_alarm_needs_a_falling_evaluator_and_a_rising_tuning_reward(
    evaluator: float, tuning: float, alarm: bool
) -> None:
    verdict = Verdict({}, evaluator=evaluator, tuning=tuning)
    found = hacking_warning(verdict, evaluator=0.3, tuning=0.5, margin=0.1)
    assert (found is not None) == alarm


@pytest.mark.parametrize(("tuning", "alarm"), [(-3.0, False), (0.0, False), (0.1, True)])
def test_the_alarm_needs_tuning_rewards_above_the_baselines(tuning: float, alarm: bool) -> None:
    """+2.00 after +2.14 by the evaluator is no reward hacking while the policy's own rewards prefer the baseline."""
    verdict = Verdict({}, evaluator=2.0, tuning=tuning)
    found = hacking_warning(verdict, evaluator=2.14, tuning=-5.0, margin=0.1)
    assert (found is not None) == alarm
