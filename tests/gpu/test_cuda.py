"""On a CUDA device: the CPU's images, the same bytes twice, and tuning that can be stopped and leaves a model."""

import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from cxrsynth.cli import app
from cxrsynth.diffusion.host_copy import HostCopy
from cxrsynth.tuning.policy_stage import PolicyStage
from tests.generation.making import command, hashes, write_table
from tests.gpu.report import pixels
from tests.tuning.making import install_brightness, metrics, recipe, tune, write_recipe

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

TRAINED: dict[str, dict[str, Any]] = {
    "whole UNet": {"train": {"unet": "full", "learning_rate": 1.0e-3, "ema_decay": 0.5, "ace": {"tokens": 16}}},
    "adapters": {
        "train": {"unet": "lora", "lora": {"rank": 2}, "ace": {"subspace": 3, "exploration_std": 0.5}},
        "update": {"num_minibatches": 2, "kl_weight": 0.1},
    },
}


def generate(out: Path, model: Path | str, *options: str) -> Path:
    """A set of four images in two shards, on the GPU unless the options say otherwise."""
    table = write_table(out.with_suffix(".csv"))
    result = CliRunner().invoke(app, command(table, out, model, "--limit", "4", "--device", "cuda", *options))
    assert result.exit_code == 0, result.output
    return out


@pytest.mark.parametrize("model", ["tiny", "nano"])
def test_images_are_the_cpus(model: str, tiny_model: Path, tmp_path: Path) -> None:
    name = tiny_model if model == "tiny" else model
    on_gpu = pixels(generate(tmp_path / "gpu", name))
    on_cpu = pixels(generate(tmp_path / "cpu", name, "--device", "cpu"))
    assert on_cpu.std() > 1
    # Convolutions on a GPU may round float32 to TF32's 11 bits.
    assert np.abs(on_gpu - on_cpu).mean() < 0.5


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_the_same_command_gives_the_same_bytes(precision: str, tmp_path: Path) -> None:
    first, again = (generate(tmp_path / name, "nano", "--precision", precision) for name in ("first", "again"))
    assert hashes(first) == hashes(again)


def test_compiled_images_are_those_of_the_network_as_it_is(tmp_path: Path) -> None:
    plain, out = (generate(tmp_path / name, "nano", *more) for name, more in (("plain", ()), ("out", ("--compile",))))
    assert np.abs(pixels(out) - pixels(plain)).mean() < 0.5


def test_a_copy_to_the_cpu_is_pinned_and_does_not_wait_for_the_card() -> None:
    ones = torch.ones(64, 1, 256, 256, device="cuda")
    torch.cuda.synchronize()
    torch.cuda._sleep(2_000_000_000)  # type: ignore[no-untyped-call]  # clock cycles: about a second
    started = time.perf_counter()
    copy = HostCopy(ones * 3)
    done = torch.cuda.Event()
    done.record()
    begun = time.perf_counter() - started
    assert not done.query(), f"waited for the card, {begun:.2f} s"
    found = copy.wait()
    assert found.is_pinned()
    assert found.eq(3).all()


@pytest.mark.parametrize("form", ["webdataset", "dicom"])
def test_workers_that_encode_change_no_byte(form: str, tmp_path: Path) -> None:
    sets = [generate(tmp_path / count, "nano", "--format", form, "--workers", count) for count in ("0", "2")]
    assert hashes(sets[0]) == hashes(sets[1])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("trained", TRAINED)
def test_tuning_that_was_stopped_ends_as_if_it_never_was(
    trained: str, precision: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_brightness(tmp_path / "own", monkeypatch)
    content = recipe(tiny_model, iterations=4, **TRAINED[trained])
    content["model"] |= {"device": "cuda", "precision": precision}
    path, whole, cut = write_recipe(tmp_path, content), tmp_path / "whole", tmp_path / "cut"
    result = tune(path, whole)
    assert result.exit_code == 0, result.output
    assert "|ratio - 1| before the first update: 0.0e+00" in result.output
    key = PolicyStage.key

    def pressed(self: PolicyStage, iteration: int) -> str:
        if iteration == 1:
            signal.raise_signal(signal.SIGINT)
        return key(self, iteration)

    with monkeypatch.context() as patch:
        patch.setattr(PolicyStage, "key", pressed)
        assert tune(path, cut).exit_code == 130
    assert tune(path, cut).exit_code == 0
    assert metrics(cut) == metrics(whole)
    assert hashes(cut / "model") == hashes(whole / "model")
    tuned = pixels(generate(tmp_path / "tuned", whole / "model"))
    assert np.abs(tuned - pixels(generate(tmp_path / "plain", tiny_model))).max() > 0
