"""The judge of a tuning run: margins, wins, intervals, the alarm."""

import pytest
import torch
from torch import Tensor

from cxrsynth.metrics.features import load_extractor
from cxrsynth.reports.table.rows import Report
from cxrsynth.rewards.base import RewardSuite
from cxrsynth.rewards.posture import PostureReward
from cxrsynth.rl.rollouts import PromptExample
from cxrsynth.runtime.pool import OrderedPool
from cxrsynth.runtime.processes import ProcessGroup
from cxrsynth.settings import Sampler
from cxrsynth.tuning.evaluator import EvaluatedImages, Evaluator, Verdict, hacking_warning

REPORTS, IMAGES = 12, 2


class _Still(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(5))

    def forward(self, images: Tensor) -> Tensor:
        return self.weight.expand(len(images), 5)


@pytest.fixture(scope="module")
def evaluator() -> Evaluator:
    cases = [PromptExample(Report(f"r{i}", i), "", ()) for i in range(REPORTS)]
    suite = RewardSuite({"posture": PostureReward(_Still())})
    return Evaluator(
        cases,
        images_per_report=IMAGES,
        tuning=suite,
        weights={"posture": 1.0},
        judge=suite,
        extractor=load_extractor("nano-judge", device=torch.device("cpu")),
        reference=None,
        steps=2,
        guidance=1.0,
        sampler=Sampler.DDIM,
        batch_size=2,
        seed=0,
        pool=OrderedPool(1, threads=1),
        group=ProcessGroup(),
    )


def judged(rewards: Tensor, *, seed: int = 0) -> EvaluatedImages:
    rng = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (len(rewards), 64, 64), generator=rng).to(torch.uint8)
    return EvaluatedImages(images, rewards, torch.randn(len(rewards), 8, generator=rng))


def test_margins_are_in_spreads_and_wins_are_counted(evaluator: Evaluator) -> None:
    rng = torch.Generator().manual_seed(1)
    start = torch.randn(REPORTS * IMAGES, 2, generator=rng)
    better = start + torch.tensor([1.0, 0.0])
    better[0, 1] = torch.nan  # a judge that cannot tell is left out
    numbers = evaluator.verdict(judged(better), judged(start)).numbers
    assert numbers["tuning/posture/margin"] == pytest.approx(1.0, abs=1e-5)
    assert numbers["tuning/total/margin"] == pytest.approx(1 / float(start[:, 0].std()), rel=1e-4)
    assert numbers["tuning/total/win_rate"] == 1.0
    assert numbers["evaluator/total/win_rate"] == 0.5
    assert numbers["evaluator/posture/margin_low"] == 0.0 == numbers["evaluator/posture/margin_high"]
    assert numbers["frechet_to_baseline"] == pytest.approx(0.0, abs=1e-6)


def test_the_interval_is_over_reports_not_images(evaluator: Evaluator) -> None:
    """Two images of a report that move together say no more than one."""
    start = torch.zeros(REPORTS * IMAGES, 2)
    by_report = torch.randn(REPORTS, 1, generator=torch.Generator().manual_seed(2)).repeat_interleave(IMAGES, 0)
    alone = torch.randn(REPORTS * IMAGES, 1, generator=torch.Generator().manual_seed(3)) * float(by_report.std())
    widths = []
    for moved in (by_report, alone):
        numbers = evaluator.verdict(judged(start + moved), judged(start)).numbers
        widths.append(numbers["evaluator/posture/margin_high"] - numbers["evaluator/posture/margin_low"])
    assert widths[0] > 1.15 * widths[1]


def test_equal_images_neither_win_nor_lose(evaluator: Evaluator) -> None:
    same = judged(torch.randn(REPORTS * IMAGES, 2, generator=torch.Generator().manual_seed(4)))
    verdict = evaluator.verdict(same, same)
    assert (verdict.evaluator, verdict.tuning) == (0.0, 0.0)
    assert verdict.numbers["evaluator/total/win_rate"] == 0.5
    assert verdict.numbers["ms_ssim"] == verdict.numbers["baseline_ms_ssim"]


@pytest.mark.parametrize(
    ("evaluator", "tuning", "alarm"), [(0.05, 0.9, True), (0.25, 0.9, False), (0.05, 0.4, False), (0.4, 0.9, False)]
)
def test_the_alarm_is_for_a_falling_judge_under_a_rising_reward(evaluator: float, tuning: float, alarm: bool) -> None:
    verdict = Verdict({}, evaluator=evaluator, tuning=tuning)
    found = hacking_warning(verdict, evaluator=0.3, tuning=0.5, margin=0.1)
    assert (found is not None) == alarm
