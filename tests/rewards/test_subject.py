"""Agreement of view, sex and age by a classifier: signs, what has no answer, and backends that cannot answer."""

import math
from pathlib import Path

import pytest
import torch

from cxrsynth.errors import ModelError
from cxrsynth.reports.table.rows import Report
from cxrsynth.rewards.networks import SUBJECT_HEADS, FindingClassifier
from cxrsynth.rewards.subject import AGREEMENTS, AgreementReward, load_agreement
from tests.rewards.test_rewards import family as family

LOGITS = torch.tensor([[9.0, 2.0, -3.0, 0.5]])
HEADS = ("Edema", *SUBJECT_HEADS)


def score(name: str, report: Report) -> float:
    return AgreementReward(name, lambda images: LOGITS, HEADS)(torch.zeros(1, 1, 8, 8), [report]).item()


@pytest.mark.parametrize(
    ("name", "report", "expected"),
    [
        ("view", Report("a", 2, view="AP"), 2.0),
        ("view", Report("a", 2, view="PA"), -2.0),
        ("age", Report("a", 2, age_years=6.0), -3.0),
        ("age", Report("a", 2, age_years=61.0), 3.0),
        ("age", Report("a", 2, stated_age_group="child"), -3.0),
        ("sex", Report("a", 2, sex="F"), 0.5),
        ("sex", Report("a", 2, sex="M"), -0.5),
    ],
)
def test_the_log_odds_are_those_of_what_the_report_states(name: str, report: Report, expected: float) -> None:
    assert score(name, report) == expected


@pytest.mark.parametrize("name", AGREEMENTS)
def test_what_is_not_stated_has_no_score(name: str) -> None:
    assert math.isnan(score(name, Report("a", 2, view="LATERAL")))


@pytest.mark.parametrize("name", AGREEMENTS)
def test_nanos_families_can_answer(name: str) -> None:
    images = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    reports = [Report("a", 2, view="AP", sex="F", age_years=6.0), Report("b", 3, view="PA", sex="M", age_years=61.0)]
    other = [reports[1], reports[0]]
    for backend in ("nano", "nano-judge"):
        reward = load_agreement(name, backend, device=torch.device("cpu"))
        assert torch.equal(reward(images, reports), -reward(images, other))


def test_a_backend_that_cannot_answer_is_refused(family: Path) -> None:
    assert FindingClassifier.from_pretrained(family / "classifier").heads == ("Edema", "Pneumonia", "Child")
    load_agreement("age", str(family), device=torch.device("cpu"))
    with pytest.raises(ModelError, match=r"sex: the classifier of .* does not tell it\n  expected: a head 'Female'"):
        load_agreement("sex", str(family), device=torch.device("cpu"))
    with pytest.raises(ModelError, match="view: 'densenet121-res224-all' is no family"):
        load_agreement("view", "densenet121-res224-all", device=torch.device("cpu"))
