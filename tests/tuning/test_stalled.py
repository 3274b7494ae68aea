"""The note that a reward does not rise while others do."""

import random
from typing import Any

import pytest

from cxrsynth.tuning.stalled import WINDOW, stalled_rewards


def rows(baseline: float | None = 0.5, **gains: list[float]) -> list[dict[str, Any]]:
    """Rows of metrics in which rewards gain that much over the baseline."""
    count = len(next(iter(gains.values())))
    found: list[dict[str, Any]] = [{"iteration": place + 1} for place in range(count)]
    for name, values in gains.items():
        for row, value in zip(found, values, strict=True):
            row[f"reward/{name}/mean"] = value + (baseline or 0.0)
            if baseline is not None:
                row[f"reward/{name}/baseline"] = baseline
    return found


UP = [0.01 * place for place in range(WINDOW)]
STILL = [0.01 * (-1) ** place for place in range(WINDOW)]


@pytest.mark.parametrize("baseline", [0.5, None])
def test_a_reward_that_stands_still_while_others_rise_is_named(baseline: float | None) -> None:
    found = stalled_rewards(rows(baseline, posture=UP, diagnosis=STILL, consistency=UP))
    assert found == "diagnosis has not moved in 10 iterations, while consistency, posture rise"


def test_a_reward_that_falls_while_another_rises_is_named() -> None:
    found = stalled_rewards(rows(posture=UP, diagnosis=UP[::-1]))
    assert found == "diagnosis has fallen in 10 iterations, while posture rises"


@pytest.mark.parametrize(
    "gains",
    [
        {"posture": UP, "diagnosis": UP},
        {"posture": STILL, "diagnosis": STILL},  # nothing rises: the run as a whole stands still
        {"posture": UP},
        {"posture": UP[1:], "diagnosis": STILL[1:]},  # too few iterations to say
    ],
)
def test_nothing_is_said_otherwise(gains: dict[str, list[float]]) -> None:
    assert stalled_rewards(rows(**gains)) is None


def test_a_reward_is_compared_with_its_baseline() -> None:
    """Easier reports raise both: the policy gains nothing."""
    found = rows(posture=UP, diagnosis=STILL)
    for row, rise in zip(found, UP, strict=True):
        row["reward/diagnosis/mean"] += rise
        row["reward/diagnosis/baseline"] += rise
    assert "diagnosis has not moved" in str(stalled_rewards(found))


def test_a_reward_is_named_once_as_long_as_it_stays_behind() -> None:
    higher = [1 + gain for gain in UP]
    assert "diagnosis has not moved" in str(stalled_rewards(rows(posture=UP + higher, diagnosis=UP + STILL)))
    assert stalled_rewards(rows(posture=UP + higher, diagnosis=STILL + STILL)) is None
    assert "diagnosis has fallen" in str(stalled_rewards(rows(posture=UP + higher, diagnosis=STILL + UP[::-1])))


def test_one_bad_batch_decides_nothing() -> None:
    """In the mean of either half, or in a least-squares line, it would."""
    bad = [-9.0 if place == WINDOW - 1 else gain for place, gain in enumerate(UP)]
    assert "diagnosis has not moved" in str(stalled_rewards(rows(posture=bad, diagnosis=STILL)))
    assert stalled_rewards(rows(posture=UP, diagnosis=bad)) is None


def test_noise_alone_is_seldom_called_a_rise() -> None:
    rng = random.Random(0)
    said = sum(
        stalled_rewards(rows(a=[rng.gauss(0, 1) for _ in UP], b=[rng.gauss(0, 1) for _ in UP])) is not None
        for _ in range(500)
    )
    assert said < 0.06 * 500


@pytest.mark.parametrize("unknown", [None, float("nan")])
def test_a_reward_without_an_answer_is_left_out(unknown: float | None) -> None:
    found = rows(posture=UP, diagnosis=STILL)
    found[3]["reward/diagnosis/mean"] = unknown
    assert stalled_rewards(found) is None
