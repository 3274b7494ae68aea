"""Folders, tables and keys that are broken, or made to hang or to fill the memory: refused with one message."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cxrsynth.diffusion.model import load_model
from cxrsynth.diffusion.resolve import resolve_model
from cxrsynth.errors import CxrsynthError, ModelError, ReportsError, ShardError
from cxrsynth.reports.table.columns import ColumnNames
from cxrsynth.reports.table.table import open_table
from cxrsynth.runtime.files import read_json
from cxrsynth.runtime.pretrained import load_pretrained
from cxrsynth.settings import Precision
from cxrsynth.shards.sample import load_id_key
from tests.conftest import build_tiny_model

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")

NO_FILES: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "folder": Path.mkdir,
    "link to nothing": lambda path: path.symlink_to("nowhere"),
}
TOO_DEEP: dict[str, Callable[[Path], object]] = {
    "lists": lambda path: path.write_text("[" * 200_000),
    "objects": lambda path: path.write_text('{"a":' * 100_000 + "1" + "}" * 100_000),
}
JSON_FILES = (
    "model_index.json",
    "cxrsynth.json",
    "unet/config.json",
    "scheduler/scheduler_config.json",
    "tokenizer/tokenizer_config.json",
    "text_encoder/config.json",
    "vae/config.json",
)
WEIGHTS = ("unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors")
HUGE = 10**9


@pytest.fixture(autouse=True)
def _never_hangs() -> Iterator[None]:
    """A pipe that is opened waits for ever: fail in place of that."""

    def stop(*_: object) -> None:
        raise AssertionError("waited for a pipe")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def model(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "model"))


def load(folder: Path) -> object:
    return load_model(resolve_model(str(folder)), device=torch.device("cpu"), precision=Precision.FP32)


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("name", [*JSON_FILES, *WEIGHTS])
@pytest.mark.parametrize("kind", NO_FILES)
def test_what_is_no_file_is_not_opened(model: Path, name: str, kind: str) -> None:
    (model / name).unlink(missing_ok=True)
    NO_FILES[kind](model / name)
    with pytest.raises(ModelError, match=f"{name}: a {kind}\n"):
        load(model)


@pytest.mark.parametrize("name", JSON_FILES)
@pytest.mark.parametrize("kind", TOO_DEEP)
def test_settings_nested_without_end_are_refused(model: Path, name: str, kind: str) -> None:
    TOO_DEEP[kind](model / name)
    with pytest.raises(ModelError, match="nested too deeply"):
        load(model)


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"num_train_timesteps": HUGE}, "num_train_timesteps 1,000,000,000"),
        ({"num_train_timesteps": 10**30}, "num_train_timesteps 1,000"),
        ({"num_train_timesteps": -5}, "cannot be loaded"),
        ({"num_train_timesteps": "many"}, "cannot be loaded"),
        ({"beta_start": -1}, "noise levels are zero or not finite"),
        ({"beta_end": 5}, "noise levels are zero or not finite"),
        ({"beta_end": float("nan")}, "noise levels are zero or not finite"),
        ({"trained_betas": [0.1, "x"]}, "cannot be loaded"),
        ({"trained_betas": []}, "noise levels of 0 timesteps"),
        ({"beta_schedule": 7}, "cannot be loaded"),
        ({"_class_name": ["DDIMScheduler"]}, "is not supported"),
    ],
)
def test_schedules_that_are_none_are_refused(model: Path, settings: dict[str, Any], found: str) -> None:
    change(model / "scheduler" / "scheduler_config.json", **settings)
    with pytest.raises(ModelError, match=found):
        load(model)


@pytest.mark.parametrize(
    ("part", "settings", "found"),
    [
        ("unet", {"in_channels": HUGE}, "describes a network of 72,0"),
        ("unet", {"cross_attention_dim": HUGE}, "describes a network of 64,0"),
        ("unet", {"block_out_channels": [HUGE, HUGE]}, "cannot be loaded as a UNet"),
        ("unet", {"layers_per_block": 10**7}, "layers_per_block 10,000,000, but the weights are"),
        ("unet", {"norm_num_groups": 0}, "cannot be loaded as a UNet"),
        ("unet", {"attention_head_dim": 0}, "cannot be loaded as a UNet"),
        ("unet", {"sample_size": HUGE}, "sample_size 1000000000, expected 1 to 16,384"),
        ("unet", {"sample_size": 0}, "sample_size 0, expected 1 to 16,384"),
        ("text_encoder", {"vocab_size": 10**10}, "describes a network of 160,0"),
        ("text_encoder", {"num_hidden_layers": 10**7}, "num_hidden_layers 10,000,000, but the weights are 20"),
        ("text_encoder", {"num_attention_heads": 0}, "cannot be loaded as CLIP's text encoder"),
        ("vae", {"latent_channels": HUGE}, "cannot be loaded as an autoencoder"),
        ("vae", {"scaling_factor": 0}, "scaling_factor 0"),
        ("vae", {"scaling_factor": "x"}, "scaling_factor 'x'"),
        ("vae", {"scaling_factor": float("nan")}, "scaling_factor nan"),
        ("vae", {"shift_factor": "x"}, "shift_factor 'x'"),
    ],
)
def test_networks_that_their_weights_are_not_are_refused(
    model: Path, part: str, settings: dict[str, Any], found: str
) -> None:
    change(model / part / "config.json", **settings)
    with pytest.raises(ModelError, match=found):
        load(model)


@pytest.mark.parametrize("limit", ["x", -1, 0, float("nan")])
def test_a_tokenizer_has_a_length(model: Path, limit: object) -> None:
    change(model / "tokenizer" / "tokenizer_config.json", model_max_length=limit)
    with pytest.raises(ModelError, match=r"tokenizer_config\.json: model_max_length"):
        load(model)


def test_a_network_that_names_no_architecture_loads(model: Path) -> None:
    change(model / "text_encoder" / "config.json", architectures=5)
    load(model)


def test_names_have_an_end(model: Path) -> None:
    (model / "cxrsynth.json").write_text(json.dumps({"name": "x" * 10**6}))
    with pytest.raises(ModelError, match="name: String should have at most 256 characters") as raised:
        resolve_model(str(model))
    assert len(str(raised.value)) < 1000


def test_long_settings_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"a": "b" * 100}))
    assert read_json(tmp_path / "config.json") == {"a": "b" * 100}
    with pytest.raises(ValueError, match="109 bytes, more than the 50"):
        read_json(tmp_path / "config.json", longest=50)


def test_a_network_as_large_as_its_weights_loads(tiny: Path) -> None:
    """Numbers in the settings may be longer than any tensor: `max_position_embeddings` of a network without them."""
    from diffusers import UNet2DConditionModel

    folder = tiny / "unet"
    change(folder / "config.json", projection_class_embeddings_input_dim=HUGE)
    load_pretrained(UNet2DConditionModel, folder, role="a UNet")


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_tables_and_keys_are_files(tmp_path: Path, kind: str) -> None:
    errors: list[CxrsynthError] = []
    for name, read in (
        ("reports.csv", lambda path: open_table(path, columns=ColumnNames())),
        ("id.key", load_id_key),
    ):
        NO_FILES[kind](tmp_path / name)
        with pytest.raises((ReportsError, ShardError), match=rf"{name}: (is )?a {kind}") as raised:
            read(tmp_path / name)
        errors.append(raised.value)
    assert [type(error) for error in errors] == [ReportsError, ShardError]


def test_a_long_file_is_no_key(tmp_path: Path) -> None:
    (tmp_path / "id.key").write_bytes(os.urandom((1 << 20) + 1))
    with pytest.raises(ShardError, match="1,048,577 bytes, which is no key"):
        load_id_key(tmp_path / "id.key")
