"""Adaptive condition embeddings: identity at the start, told apart by conditions, saved and read back."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cxrsynth.diffusion.ace import ACE_CONFIG, ACE_FILE, AdaptiveConditionEmbedding, load_ace, save_ace
from cxrsynth.errors import ModelError
from cxrsynth.reports.conditions import CONDITIONS, conditions_of
from cxrsynth.reports.labels import FindingLabel, Status
from cxrsynth.reports.rows import Report

REPORT = Report(
    "a",
    2,
    findings="words that do not count",
    view="PA",
    age_years=61,
    labels={
        "Pneumonia": FindingLabel(Status.PRESENT),
        "Edema": FindingLabel(Status.ABSENT),
        "Fracture": FindingLabel(Status.UNCERTAIN),
    },
)


def trained(width: int = 6, tokens: int = 3) -> AdaptiveConditionEmbedding:
    ace = AdaptiveConditionEmbedding(width, tokens=tokens)
    torch.nn.init.normal_(ace.blocks, generator=torch.Generator().manual_seed(0))
    return ace


def text(positions: int = 10, width: int = 6) -> Tensor:
    return torch.randn(2, positions, width, generator=torch.Generator().manual_seed(1))


def test_conditions_are_facts_and_findings() -> None:
    assert conditions_of(REPORT) == (
        "any report", "view PA", "age group adult", "Edema absent", "Pneumonia present",
    )  # fmt: skip
    assert conditions_of(Report("b", 3)) == ("any report",)


def test_it_starts_as_the_identity() -> None:
    ace = AdaptiveConditionEmbedding(6, tokens=3)
    assert torch.equal(ace(text(), ace.mask([CONDITIONS, ()])), text())


def test_only_the_last_positions_of_reports_with_conditions_move() -> None:
    ace = trained()
    moved = ace(text(), ace.mask([conditions_of(REPORT), ()])) - text()
    assert not moved[1].any()
    assert not moved[0, :-3].any()
    places = [CONDITIONS.index(name) for name in conditions_of(REPORT)]
    assert torch.allclose(moved[0, -3:], ace.blocks[places].sum(0), atol=1e-6)


def test_gradient_reaches_the_blocks_asked_for_and_no_other() -> None:
    ace = AdaptiveConditionEmbedding(6, tokens=3)
    ace(text(), ace.mask([("view PA",), ("view AP",)])).square().sum().backward()  # type: ignore[no-untyped-call]
    assert ace.blocks.grad is not None
    learned = ace.blocks.grad.abs().sum((1, 2)) > 0
    assert [CONDITIONS[i] for i in learned.nonzero()[:, 0]] == ["view PA", "view AP"]


def test_saved_and_read_back(tmp_path: Path) -> None:
    ace = trained()
    save_ace(ace, tmp_path)
    for where in (tmp_path, tmp_path / ACE_FILE):
        found = load_ace(where)
        assert torch.equal(found.blocks, ace.blocks)
        assert found.conditions == CONDITIONS
        assert not found.blocks.requires_grad


def test_a_condition_unknown_to_older_embeddings_is_passed_over() -> None:
    ace = AdaptiveConditionEmbedding(6, tokens=3, conditions=("view PA",))
    assert ace.mask([("any report", "view PA")]).tolist() == [[1.0]]


@pytest.mark.parametrize("kind", ["missing", "no config", "not safetensors", "other shape", "not json", "no list"])
def test_what_cannot_be_read_is_told(kind: str, tmp_path: Path) -> None:
    save_ace(trained(), tmp_path)
    config = json.loads((tmp_path / ACE_CONFIG).read_text())
    if kind == "missing":
        (tmp_path / ACE_FILE).unlink()
    elif kind == "no config":
        (tmp_path / ACE_CONFIG).unlink()
    elif kind == "not safetensors":
        (tmp_path / ACE_FILE).write_bytes(b"\x80\x04pickle")
    elif kind == "not json":
        (tmp_path / ACE_CONFIG).write_text("{")
    else:
        config |= {"tokens": 4} if kind == "other shape" else {"conditions": 3}
        (tmp_path / ACE_CONFIG).write_text(json.dumps(config))
    with pytest.raises(ModelError, match="expected"):
        load_ace(tmp_path)


def test_a_condition_of_another_size_is_refused() -> None:
    ace = trained()
    with pytest.raises(ValueError, match="expected at least 3 of 6"):
        ace(text(positions=2), ace.mask([(), ()]))
