"""Running out of memory: torch refuses at once to allocate more than any machine has."""

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner, Result

from cxrsynth.auditing import audit, setup
from cxrsynth.auditing.scorer import Scorer
from cxrsynth.cli import app
from cxrsynth.conversion import convert
from cxrsynth.errors import ModelError
from cxrsynth.generation import plan
from cxrsynth.rewards import contract
from cxrsynth.runtime.memory import memory_advice
from cxrsynth.tuning import inputs
from tests.generation.making import command, write_table
from tests.tuning.making import recipe, tune, write_recipe


def _too_much(*_: object, **__: object) -> Tensor:
    return torch.empty(2**60)


def test_memory_of_the_cpu() -> None:
    with pytest.raises(ModelError, match="out of memory\n  sell shoes"), memory_advice("sell shoes"):
        _too_much()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        # In torch 2.8 and later a torch.AcceleratorError, which is a RuntimeError, too.
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB, other allocations: 1.00 GB)"),
    ],
)
def test_memory_of_devices_and_python(error: BaseException) -> None:
    with pytest.raises(ModelError, match="sell shoes"), memory_advice("sell shoes"):
        raise error


@pytest.mark.skipif(not hasattr(torch, "AcceleratorError"), reason="of torch 2.8")
def test_memory_that_the_driver_does_not_give() -> None:
    with pytest.raises(ModelError, match="sell shoes"), memory_advice("sell shoes"):
        raise torch.AcceleratorError("CUDA error: out of memory")


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="shape"), memory_advice("sell shoes"):
        raise RuntimeError("shape of the tensor")


@pytest.fixture
def starved(monkeypatch: pytest.MonkeyPatch) -> None:
    """The denoising and the scoring networks ask for more memory than there is."""
    monkeypatch.setattr(UNet2DConditionModel, "forward", _too_much)
    monkeypatch.setattr(Scorer, "__call__", _too_much)


def _refused(result: Result) -> str:
    assert result.exit_code == 2
    assert "out of memory" in result.output
    assert "Traceback" not in result.output
    return result.output


def test_generate_names_the_option(starved: None, tiny_model: Path, tmp_path: Path) -> None:
    table, out = write_table(tmp_path / "few.csv"), tmp_path / "set"
    assert "lower --batch-size" in _refused(CliRunner().invoke(app, command(table, out, tiny_model)))
    assert not [path for path in out.iterdir() if ".tar" in path.name]


def test_a_dry_run_of_generate_names_the_option(starved: None, tiny_model: Path, tmp_path: Path) -> None:
    table = write_table(tmp_path / "few.csv")
    done = CliRunner().invoke(app, command(table, tmp_path / "set", tiny_model, "--dry-run"))
    assert "lower --batch-size" in _refused(done)


def test_networks_that_do_not_fit_are_no_fault_of_ours(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each command but `generate` loads some before it knows of batches."""
    (tmp_path / "images").mkdir()
    Image.new("L", (64, 64), 128).save(tmp_path / "images" / "one.png")
    for module in (setup, inputs, contract):
        monkeypatch.setattr(module, "load_reward", _too_much)
    content = recipe(tiny_model, rewards={"diagnosis": {}})
    for done in (
        CliRunner().invoke(app, ["audit", str(tmp_path / "images")]),
        CliRunner().invoke(app, ["rewards", "check", "diagnosis"]),
        tune(write_recipe(tmp_path, content), tmp_path / "run"),
    ):
        assert "the networks do not fit" in _refused(done)


@pytest.mark.parametrize("options", [(), ("--dry-run",), ("--accept",), ("--labeler", "folder")])
def test_networks_that_do_not_fit_are_no_fault_of_a_batch_size(
    options: tuple[str, ...], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor in `generate`, which knows of batches when it loads networks."""
    loads = {"--accept": "load_acceptor", "--labeler": "load_labeler"}
    monkeypatch.setattr(plan, loads.get("".join(options[:1]), "load_model"), _too_much)
    monkeypatch.setattr(plan, "labeler_record", lambda name: {})
    table, out = write_table(tmp_path / "few.csv"), tmp_path / "set"
    said = _refused(CliRunner().invoke(app, command(table, out, tiny_model, *options)))
    assert "the networks do not fit" in said
    assert "--batch-size" not in said
    assert not list(out.glob("*.tar"))


def test_comparing_images_can_run_out_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "images").mkdir()
    Image.new("L", (64, 64), 128).save(tmp_path / "images" / "one.png")
    monkeypatch.setattr(audit, "duplicates", _too_much)
    done = CliRunner().invoke(app, ["audit", str(tmp_path / "images"), "--out", str(tmp_path / "out")])
    assert "audit fewer images" in _refused(done)


def test_a_conversion_can_run_out_of_memory(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "convert_folder", _too_much)
    done = CliRunner().invoke(app, ["convert", str(tiny_model), str(tmp_path / "new")])
    assert "all weights of a file must fit" in _refused(done)
    assert not (tmp_path / "new").exists()


def test_audit_names_the_option(starved: None, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.new("L", (64, 64), 128).save(tmp_path / "images" / "one.png")
    assert "lower --batch-size" in _refused(CliRunner().invoke(app, ["audit", str(tmp_path / "images")]))


@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_tune_names_the_settings(options: list[str], starved: None, tiny_model: Path, tmp_path: Path) -> None:
    content = recipe(tiny_model, rewards={"diagnosis": {}})
    message = _refused(tune(write_recipe(tmp_path, content), tmp_path / "run", *options))
    assert "lower sampling.batch_size and update.micro_batch first" in message
