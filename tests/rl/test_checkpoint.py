"""Checkpoints: everything comes back, the one before stays whole, nothing is unpickled."""

import errno
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from cxrsynth.errors import ModelError
from cxrsynth.rl.checkpoint import Learner, explain_damage, load_best, load_checkpoint, save_checkpoint


def learner(*, steps: int, width: int = 8, averaged: bool = True) -> Learner:
    """A layer that has learned for some steps from fixed data."""
    torch.manual_seed(0)
    layer = nn.Linear(width, width)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    made = Learner(
        dict(layer.named_parameters()),
        optimizer,
        {name: weight.detach().clone() for name, weight in layer.named_parameters()} if averaged else None,
    )
    learn(made, steps)
    return made


def learn(made: Learner, steps: int) -> None:
    weight, bias = made.weights["weight"], made.weights["bias"]
    for _ in range(steps):
        made.optimizer.zero_grad()
        (torch.ones(3, weight.shape[1]) @ weight.T + bias).square().sum().backward()  # type: ignore[no-untyped-call]
        made.optimizer.step()


def test_resuming_equals_never_stopping(tmp_path: Path) -> None:
    whole, first, second = learner(steps=6), learner(steps=3), learner(steps=0)
    save_checkpoint(tmp_path / "a", first, {"iteration": 3, "baseline": [["id", 0, [0.1, float("nan")]]]})
    state = load_checkpoint(tmp_path / "a", second)
    learn(second, 3)
    assert state["iteration"] == 3
    assert state["baseline"][0][2][0] == 0.1
    for name, weight in whole.weights.items():
        assert torch.equal(second.weights[name], weight)
    assert not list(tmp_path.glob(".*"))
    assert {path.suffix for path in (tmp_path / "a").iterdir()} == {".safetensors", ".json"}


def test_tensors_beside_the_weights_come_back_too(tmp_path: Path) -> None:
    """Such as the basis of the embeddings' coordinates: recomputed on another machine, it could be rotated."""
    save_checkpoint(tmp_path / "a", replace(learner(steps=1), beside={"basis": torch.eye(3)}), {})
    turned = torch.eye(3).flip(0)
    load_checkpoint(tmp_path / "a", replace(learner(steps=0), beside={"basis": turned}))
    assert torch.equal(turned, torch.eye(3))


def test_the_best_weights_are_the_averaged_ones(tmp_path: Path) -> None:
    made = learner(steps=2)
    assert made.averaged is not None
    made.averaged["weight"].fill_(7.0)
    save_checkpoint(tmp_path / "a", made, {"iteration": 2})
    other = learner(steps=0)
    assert load_best(tmp_path / "a", other.weights, averaged=True) == 2
    assert (other.weights["weight"] == 7.0).all()


def test_averaged_weights_that_are_missing_are_never_replaced_by_others(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a", learner(steps=2), {"iteration": 2})
    (tmp_path / "a" / "ema.safetensors").unlink()
    other = learner(steps=0)
    before = {name: weight.detach().clone() for name, weight in other.weights.items()}
    with pytest.raises(ModelError, match=r"a: not whole, ema.safetensors is missing\n  remove this checkpoint"):
        load_best(tmp_path / "a", other.weights, averaged=True)
    with pytest.raises(ModelError, match=r"ema.safetensors is missing"):
        load_checkpoint(tmp_path / "a", other)
    save_checkpoint(tmp_path / "b", learner(steps=2, averaged=False), {"iteration": 2})
    with pytest.raises(ModelError, match=r"b: not whole, ema.safetensors is missing"):
        load_best(tmp_path / "b", other.weights, averaged=True)
    assert all(torch.equal(before[name], weight) for name, weight in other.weights.items())
    assert load_best(tmp_path / "b", other.weights, averaged=False) == 2


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", "ema.safetensors", "state.json"])
def test_a_flipped_bit_is_found(name: str, tmp_path: Path) -> None:
    """In the last number of a file, where safetensors and JSON alike would read on."""
    save_checkpoint(tmp_path / "a", learner(steps=2), {"iteration": 2})
    path = tmp_path / "a" / name
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    with pytest.raises(
        ModelError, match=rf"a/{name}: damaged, .*\n  remove this checkpoint to go on from the one before"
    ):
        load_checkpoint(tmp_path / "a", learner(steps=0))


def test_a_checkpoint_without_digests_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a", learner(steps=2), {"iteration": 2})
    (tmp_path / "a" / "digests.json").unlink()
    with pytest.raises(ModelError, match=r"a: no digests.json, so it is not whole or of an earlier version"):
        load_checkpoint(tmp_path / "a", learner(steps=0))


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_on_a_full_disk_the_previous_checkpoint_stays(tmp_path: Path) -> None:
    kept = tmp_path / "best"
    save_checkpoint(kept, learner(steps=1), {"iteration": 1})
    before = {path.name: path.read_bytes() for path in kept.iterdir()}
    larger = learner(steps=2, width=64)
    with files_of_at_most(8192), pytest.raises(OSError, match="too large") as error:
        save_checkpoint(kept, larger, {"iteration": 2})
    # What the message tells people to do depends on it: safetensors has the number in its text alone.
    assert error.value.errno == errno.EFBIG
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == before


@pytest.mark.parametrize(
    ("kind", "said"),
    [("cut", "damaged"), ("other weights", "not a checkpoint of"), ("no state", "state.json is missing")],
)
def test_a_checkpoint_of_other_weights_is_refused(kind: str, said: str, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a", learner(steps=1), {"iteration": 1})
    width = 8
    if kind == "cut":
        path = tmp_path / "a" / "weights.safetensors"
        path.write_bytes(path.read_bytes()[:-10])
    elif kind == "no state":
        (tmp_path / "a" / "state.json").unlink()
    else:
        width = 4
    with pytest.raises(ModelError, match=said):
        load_checkpoint(tmp_path / "a", learner(steps=0, width=width))


def test_a_device_without_memory_is_no_damage(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="out of memory"), explain_damage(tmp_path):
        raise RuntimeError("CUDA error: out of memory")
    with pytest.raises(ModelError, match="not a checkpoint"), explain_damage(tmp_path):
        raise RuntimeError("size mismatch")
