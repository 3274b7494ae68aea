"""Adaptive condition embeddings: identity at the start, different for each condition, saved and read back."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cxrsynth.diffusion.ace import (
    ACE_CONFIG,
    ACE_FILE,
    AdaptiveConditionEmbedding,
    SubspaceEmbedding,
    load_ace,
    prompt_directions,
    save_ace,
    word_directions,
)
from cxrsynth.errors import ModelError
from cxrsynth.reports.conditions import CONDITIONS, conditions_of
from cxrsynth.reports.labels import FindingLabel, Status
from cxrsynth.reports.table.rows import Report

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


def test_the_gradient_reaches_only_the_blocks_of_the_conditions() -> None:
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
def test_unreadable_files_are_refused(kind: str, tmp_path: Path) -> None:
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


def prompts(count: int = 7) -> Tensor:
    """Embeddings [N, 5, 6] that differ in two directions, by 4 and by 1."""
    rng = torch.Generator().manual_seed(2)
    ways = torch.linalg.qr(torch.randn(30, 2, generator=rng))[0].T
    weights = torch.linalg.qr(torch.cat([torch.ones(count, 1), torch.randn(count, 2, generator=rng)], 1))[0][:, 1:]
    spread = torch.tensor([4.0, 1.0]) * count**0.5
    return (3 + (weights * spread) @ ways).view(count, 5, 6)


def test_directions_are_those_in_which_prompts_differ() -> None:
    found = prompt_directions(prompts(), 16)
    assert found.shape == (2, 5, 6)
    assert found.flatten(1).norm(dim=1).tolist() == pytest.approx([4.0, 1.0], rel=1e-4)
    centred = (prompts() - prompts().mean(0)).flatten(1)
    units = found.flatten(1) / found.flatten(1).norm(dim=1, keepdim=True)
    assert torch.allclose(centred @ units.T @ units, centred, atol=1e-4)  # nothing of the prompts is outside
    assert prompt_directions(prompts(), 1).shape == (1, 5, 6)
    # Their order and signs do not depend on the order of the prompts.
    assert torch.allclose(prompt_directions(prompts().flip(0), 2), found, atol=1e-4)


def test_directions_of_words_are_the_same_at_every_position() -> None:
    found = word_directions(prompts(), 16)
    assert len(found) == 6  # two directions over five positions fill the width
    assert torch.equal(found[:, :1].expand(-1, 5, -1), found)
    words = (prompts() - prompts().mean(0)).flatten(0, 1)
    expected = torch.linalg.svdvals(words) / len(words) ** 0.5
    assert torch.allclose(found[:, 0].norm(dim=1), expected, rtol=1e-3)
    assert torch.allclose(word_directions(prompts().flip(0), 2), found[:2], atol=1e-4)


def test_prompts_that_do_not_differ_give_no_directions() -> None:
    with pytest.raises(ValueError, match="the same embedding"):
        prompt_directions(torch.ones(4, 5, 6), 2)


def subspace(begin: AdaptiveConditionEmbedding | None = None) -> SubspaceEmbedding:
    ace = SubspaceEmbedding(prompt_directions(prompts(), 2), start=begin)
    torch.nn.init.normal_(ace.coordinates, generator=torch.Generator().manual_seed(3))
    return ace


def test_coordinates_start_as_the_identity() -> None:
    ace = SubspaceEmbedding(prompt_directions(prompts(), 2))
    assert torch.equal(ace(text(5), ace.mask([CONDITIONS, ()])), text(5))


@pytest.mark.parametrize("begin", [None, trained()])
def test_coordinates_are_saved_as_blocks(begin: AdaptiveConditionEmbedding | None, tmp_path: Path) -> None:
    ace = subspace(begin)
    save_ace(ace.plain(), tmp_path)
    found = load_ace(tmp_path)
    mask = ace.mask([conditions_of(REPORT), ("view AP",)])
    assert torch.allclose(found(text(5), mask), ace(text(5), mask), atol=1e-5)
    assert not torch.allclose(found(text(5), mask), text(5), atol=0.1)


def test_a_shift_replaces_the_mean() -> None:
    ace = subspace()
    mask = ace.mask([("view PA",), ("view AP",)])
    assert torch.allclose(ace(text(5), mask, ace.mean(mask)), ace(text(5), mask), atol=1e-6)
    moved = ace(text(5), mask, torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    assert torch.allclose(moved[0] - text(5)[0], ace.basis[0], atol=1e-5)
    assert torch.equal(moved[1], text(5)[1])
    assert not moved.requires_grad
    with pytest.raises(ValueError, match="subspace"):
        trained()(text(), mask, torch.zeros(2, 2))
