"""The network that tells how a chest is framed: what it learns from, and that its build runs."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cxrsynth.metrics.quality.framing import (
    FRAMING_FAULTS,
    FramingNetwork,
    framing_digest,
    framing_folder,
    load_framing,
)
from cxrsynth.nano.build import framing
from cxrsynth.nano.build.framing import framed
from cxrsynth.runtime.files import file_sha256
from tests.nano.test_build import write_images


def test_each_move_makes_the_fault_that_it_is_called() -> None:
    moves, faults = framed(3000, torch.Generator().manual_seed(0))
    assert moves.shape == (3000, 5)
    assert faults.shape == (3000, len(FRAMING_FAULTS) - 1)
    assert (faults.sum(1) <= 1).all()
    assert faults.sum(1).mean().item() == pytest.approx(0.6, abs=0.03)
    rotated, cropped, not_frontal = faults.bool().unbind(1)
    assert (moves[faults.sum(1) == 0] == 0).all()
    turns = moves[rotated, 4].abs()
    assert turns.min() >= math.radians(7)
    assert turns.max() <= math.radians(35)
    assert {-1.0, 1.0} == set(moves[rotated, 4].sign().tolist())
    assert (moves[~rotated, 4] == 0).all()
    assert torch.equal(moves[cropped, 2], moves[cropped, 3])
    zoom = moves[cropped, 2].exp()
    assert (zoom <= 1 / 1.3 + 1e-6).all()
    # A cut-out lies inside the image.
    assert (moves[cropped, :2].abs() + zoom[:, None] <= 1 + 1e-6).all()
    assert (moves[not_frontal, 2] - moves[not_frontal, 3]).abs().min() >= math.log(1.35) - 1e-6


def test_the_build_writes_a_network_and_takes_no_step_twice(tmp_path: Path) -> None:
    data = write_images(tmp_path / "data", size=256)
    framing.main(data, tmp_path / "work", steps=2, seed=1)
    file = tmp_path / "work" / "framing" / "model.safetensors"
    weights = load_file(file)
    assert all(one.dtype in (torch.float16, torch.int64) and torch.isfinite(one).all() for one in weights.values())
    framing.main(data, tmp_path / "work", steps=2, seed=1)
    again = load_file(file)
    assert all(torch.equal(one, again[name]) for name, one in weights.items())
    network = FramingNetwork.from_pretrained(file.parent)
    assert network(torch.rand(2, 1, 64, 64)).shape == (2, len(FRAMING_FAULTS))


def test_the_shipped_network_is_what_its_digest_says() -> None:
    assert framing_digest() == file_sha256(framing_folder() / "model.safetensors")
    network = load_framing(torch.device("cpu"))
    assert all(parameter.dtype == torch.float32 for parameter in network.parameters())
    assert not network.training
