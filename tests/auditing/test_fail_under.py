"""`--fail-under`: which way is good is known of each metric, and what was not measured is missed."""

import math
from typing import Any

import pytest

from cxrsynth.auditing.fail_under import Threshold, known_metrics, missed, parse_thresholds
from cxrsynth.auditing.score_table import NONE_STATED
from cxrsynth.errors import RecipeError

REWARDS = ("posture", "diagnosis")
KNOWN = known_metrics(REWARDS, ("rotated", "JPEG"))
SUMMARY: dict[str, Any] = {
    "input": {"images": 200, "damaged_count": 1500, "damaged": [{"source": "a.tar", "member": "", "reason": "cut"}]},
    "kept": 150,
    "rejected": 50,
    "rewards": {"posture": {"mean": -1.0, "p5": -2.0, "unscored": 3}, "diagnosis": {"mean": None, "unscored": 200}},
    "findings": {"Edema": {"images": 20, "kept": 15, "posture": -1.5}, NONE_STATED: {"images": 4, "kept": 1}},
    "fidelity": [
        {
            "group": "all",
            "frechet": {"value": 30.0, "low": 1.0, "high": 90.0},
            "frechet_infinity": {"value": -0.5, "low": -1.0, "high": 0.2},
            "precision": {"value": 0.7},
            "floor": {"images": 100, "frechet_ratio": 1.5},
        },
        {"group": "finding: Edema", "frechet": None, "kid": {"value": -0.01}, "ms_ssim_within": {"value": 0.3}},
    ],
    "memorization": {
        "flagged": 4,
        "sensitivity": {"rotated": {"caught": 9, "of": 10, "low": 0.6, "high": 1.0}},
        "false_alarms": {"caught": 1, "of": 50},
    },
    "copies": {"flagged": 2, "threshold": 0.8, "real": 15},
    "utility": {
        "rows": [
            {"finding": "Edema", "group": "sex: F", "trained_on": "real + synthetic", "auroc": {"value": 0.8}},
            {"finding": "Edema", "group": "all", "trained_on": "real + synthetic", "auroc": {"value": 0.9}},
        ],
        "lift": [
            {
                "finding": "Edema",
                "group": "all",
                "trained_on": "synthetic then real",
                "value": 0.05,
                "low": -0.1,
                "high": 0.1,
            }
        ],
        "mean": [
            {"trained_on": "real", "auroc": {"value": 0.81}, "lift": None},
            {"trained_on": "synthetic then real", "auroc": {"value": 0.84}, "lift": {"value": 0.03}},
        ],
        "underdiagnosis": [
            {"finding": "Edema", "group": "sex: F", "trained_on": "real", "rate": {"value": 0.3}, "images": 20}
        ],
        "gaps": [{"finding": "Edema", "trained_on": "real", "kind": "sex", "value": -0.2, "low": -0.3, "high": 0.0}],
    },
}

# Each with its value, and whether less of it is better.
MEASURED = [
    ("kept", 150, False),
    ("kept_fraction", 0.75, False),
    ("damaged", 1500, True),
    ("rewards/posture/mean", -1, False),
    ("rewards/posture/p5", -2, False),
    ("rewards/posture/unscored", 3, True),
    ("findings/Edema/images", 20, False),
    ("findings/Edema/kept", 15, False),
    ("findings/Edema/kept_fraction", 0.75, False),
    (f"findings/{NONE_STATED}/kept_fraction", 0.25, False),
    ("findings/Edema/posture", -1.5, False),
    ("fidelity/all/frechet", 30, True),
    ("fidelity/all/floor/frechet_ratio", 1.5, True),
    ("fidelity/all/precision", 0.7, False),
    ("fidelity/finding: Edema/kid", -0.01, True),
    ("fidelity/finding: Edema/ms_ssim_within", 0.3, True),
    ("memorization/flagged", 4, True),
    ("memorization/flagged_fraction", 0.02, True),
    ("memorization/sensitivity/rotated", 0.9, False),
    ("memorization/false_alarms", 0.02, True),
    ("copies/flagged", 2, True),
    ("utility/auroc/real + synthetic/Edema/sex: F", 0.8, False),
    ("utility/lift/synthetic then real/Edema/all", 0.05, False),
    ("utility/mean/real/auroc", 0.81, False),
    ("utility/mean/synthetic then real/lift", 0.03, False),
    ("utility/underdiagnosis/real/Edema/sex: F", 0.3, True),
    ("utility/gap/real/Edema/sex", 0.2, True),
]


@pytest.mark.parametrize(("metric", "value", "less_is_better"), MEASURED)
def test_a_metric_fails_on_its_bad_side_only(metric: str, value: float, less_is_better: bool) -> None:
    def failed(limit: float) -> list[dict[str, Any]]:
        return missed(parse_thresholds([f"{metric}={limit!r}"], KNOWN), SUMMARY)

    step = 0.005 * max(1, abs(value)) if abs(value) < 1 else 1
    assert failed(value) == []
    assert failed(value + step if less_is_better else value - step) == []
    bad = value - step if less_is_better else value + step
    assert failed(bad) == [
        {
            "metric": metric,
            "value": pytest.approx(value),
            "threshold": bad,
            "limit": "at most" if less_is_better else "at least",
        }
    ]


@pytest.mark.parametrize(
    "metric",
    [
        "rewards/diagnosis/mean=-100",
        "rewards/posture/p95=-100",
        "findings/Fracture/kept=0",
        "findings/Edema/diagnosis=-100",
        "fidelity/finding: Edema/frechet=1e9",
        "fidelity/view: PA/kid=1e9",
        "memorization/sensitivity/JPEG=0",
        "utility/lift/synthetic then real/Edema/sex: M=-1",
        "utility/gap/real/Edema/age group=1",
        "utility/auroc/real/Edema/all=0",
    ],
)
def test_what_was_not_measured_is_missed(metric: str) -> None:
    (failed,) = missed(parse_thresholds([metric], KNOWN), SUMMARY)
    assert failed["value"] is None


def test_no_part_of_the_summary_is_needed() -> None:
    nothing = {"input": None, "fidelity": None, "memorization": None, "utility": None, "rewards": {}}
    stated = parse_thresholds([f"{metric}={value}" for metric, value, _ in MEASURED], KNOWN)
    for summary in ({}, nothing):
        assert [failed["value"] for failed in missed(stated, summary)] == [None] * len(MEASURED)
    empty = {"kept": 0, "rejected": 0, "input": {"images": 0}, "memorization": {"flagged": 0}}
    odd = {"kept": True, "rewards": {"posture": {"mean": math.nan}}}
    stated = parse_thresholds(["kept_fraction=0", "memorization/flagged_fraction=1"], KNOWN)
    assert [failed["value"] for failed in missed(stated, empty)] == [None, None]
    assert len(missed(parse_thresholds(["kept=0", "rewards/posture/mean=-9"], KNOWN), odd)) == 2


def test_several_are_kept_in_order() -> None:
    assert parse_thresholds([" kept_fraction = 0.5 ", "rewards/posture/mean=-1"], KNOWN) == (
        Threshold("kept_fraction", 0.5, ("kept_fraction",), "at least"),
        Threshold("rewards/posture/mean", -1.0, ("rewards", "posture", "mean"), "at least"),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kept_fraction", "expected METRIC=VALUE"),
        ("=0.5", "expected METRIC=VALUE"),
        ("kept_fractoin=0.5", "did you mean: kept_fraction"),
        ("rewards/postur/mean=0", "did you mean: rewards/posture/mean"),
        ("fidelity/all/frechet_distance=3", "did you mean: fidelity/all/frechet"),
        ("frechet=3", "did you mean: fidelity/all/frechet"),
        ("utility/lift/Edema/all=0", r"use: utility/lift/real \+ synthetic/Edema/all$"),
        ("utility/lift/real/Edema/all=0", "did you mean: utility/"),
        ("nonsense=1", "known: kept, kept_fraction, "),
        ("rewards/consistency/mean=0", "no such metric"),
        ("memorization/sensitivity/blurred=0.5", "no such metric"),
        ("kept_fraction=50", "expected a number from 0 to 1"),
        ("fidelity/all/frechet=-1", "expected a number from 0 up"),
        ("rewards/posture/mean=high", r"mean=high: expected a number$"),
        ("rewards/posture/mean=nan", r"mean=nan: expected a number$"),
        ("kept_fraction=", "expected a number from 0 to 1"),
    ],
)
def test_mistakes_are_reported_before_the_run(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse_thresholds([text], KNOWN)


def test_a_metric_is_given_once() -> None:
    with pytest.raises(RecipeError, match="kept: given twice"):
        parse_thresholds(["kept=1", "kept=2"], KNOWN)


def test_findings_and_groups_are_listed_once() -> None:
    with pytest.raises(RecipeError) as caught:
        parse_thresholds(["nonsense=1"], KNOWN)
    message = str(caught.value)
    assert "findings/FINDING/kept_fraction" in message
    assert "fidelity/GROUP/frechet" in message
    assert "utility/lift/TRAINED_ON/FINDING/GROUP" in message
    assert "TRAINED_ON is one of: synthetic; real; " in message
    assert len(message) < 2500
