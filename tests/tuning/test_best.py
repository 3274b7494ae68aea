"""The best evaluation so far: patience, the alarm against the baseline, and what a checkpoint keeps of it."""

import json

import pytest

from cxrsynth.recipe.schema import EvaluationSection
from cxrsynth.tuning.best import BestSoFar
from cxrsynth.tuning.verdict import Verdict


def verdict(evaluator: float, tuning: float = 0.0) -> Verdict:
    return Verdict({}, evaluator=evaluator, tuning=tuning)


def ended_at(margins: list[float], patience: int | None, *, stopped_at: int | None = None) -> int | None:
    """The evaluation, counted from 1, that ends the stage; the run is stopped and resumed after one of them."""
    section = EvaluationSection(patience=patience)
    best = BestSoFar()
    for place, margin in enumerate(margins, 1):
        best.replaced_by(verdict(margin), place)
        message = best.out_of_patience(section)
        assert (message is not None) == best.ends_stage
        if message is not None:
            assert f"has not improved in {patience} evaluations" in message
            return place
        if place == stopped_at:
            kept = json.loads(json.dumps(best.state()))
            best = BestSoFar()
            best.load(kept)
    return None


@pytest.mark.parametrize(
    ("margins", "patience", "expected"),
    [
        ([0.1, 0.2, 0.1, 0.2, 0.3], 2, 4),  # equal is no improvement
        ([0.1, 0.2, 0.1, 0.3, 0.2, 0.1], 2, 6),
        ([0.1, 0.2, 0.1, 0.3, 0.2, 0.1], 3, None),
        ([0.1, 0.0], 1, 2),
        ([0.1, float("nan"), float("nan")], 2, 3),
        ([0.3, 0.2, 0.1, 0.0], None, None),
    ],
)
def test_a_stage_ends_after_evaluations_without_improvement(
    margins: list[float], patience: int | None, expected: int | None
) -> None:
    assert ended_at(margins, patience) == expected
    for stopped_at in range(1, len(margins)):
        assert ended_at(margins, patience, stopped_at=stopped_at) == expected


def test_patience_that_has_ended_a_stage_is_remembered() -> None:
    best, again = BestSoFar(), BestSoFar()
    best.replaced_by(verdict(0.2), 5)
    best.replaced_by(verdict(0.1), 10)
    message = best.out_of_patience(EvaluationSection(patience=1))
    assert "(the best: +0.200 after iteration 5)" in str(message)
    again.load(json.loads(json.dumps(best.state())))
    assert again.ends_stage


def test_tuning_rewards_below_the_baselines_are_no_reward_hacking() -> None:
    """The evaluator fell a little from a height, and the tuning reward recovered a little from a depth."""
    section, best = EvaluationSection(), BestSoFar()
    best.replaced_by(verdict(2.14, tuning=-3.0), 10)
    assert best.alarm(verdict(2.00, tuning=-2.5), section) is None
    assert best.alarm(verdict(2.00, tuning=0.0), section) is None
    assert "reward hacking" in str(best.alarm(verdict(2.00, tuning=0.5), section))
