"""Loading a pretrained folder: code that it brings never runs, and nobody is asked."""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModel, BitImageProcessor, Dinov2Config, Dinov2Model

from cxrsynth.diffusion.model import load_model
from cxrsynth.diffusion.resolve import resolve_model
from cxrsynth.errors import ModelError
from cxrsynth.metrics.features import load_extractor
from cxrsynth.rewards.backends import load_reward
from cxrsynth.runtime.pretrained import load_pretrained
from cxrsynth.settings import Precision
from tests.families import build

CPU = torch.device("cpu")
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
LOADERS: dict[str, Callable[[Path], Any]] = {
    "features": lambda folder: load_extractor(str(folder), device=CPU),
    "consistency": lambda folder: load_reward("consistency", str(folder), device=CPU),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An image encoder whose settings name a module of its own, which leaves a file when it runs."""
    path = tmp_path / "encoder"
    Dinov2Model(Dinov2Config(**SMALL)).save_pretrained(path)
    BitImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(path)
    (path / "planted.py").write_text(
        f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n"
        "from transformers import Dinov2Config, Dinov2Model\n"
        "class PlantedConfig(Dinov2Config):\n    model_type = 'planted'\n"
        "class Planted(Dinov2Model):\n    config_class = PlantedConfig\n"
        "class PlantedProcessor:\n    pass\n"
    )
    return path


def plant(config: Path, **settings: object) -> None:
    config.write_text(json.dumps(json.loads(config.read_text()) | settings))


@pytest.mark.parametrize("model_type", ["planted", "dinov2"])
@pytest.mark.parametrize("loader", LOADERS)
def test_code_of_a_model_is_refused_without_a_prompt(
    loader: str, model_type: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(prompt: str = "") -> str:
        pytest.fail("asked whether to run the code")

    monkeypatch.setattr("builtins.input", asked)
    code = {"AutoConfig": "planted.PlantedConfig", "AutoModel": "planted.Planted"}
    plant(folder / "config.json", model_type=model_type, auto_map=code)
    with pytest.raises(ModelError, match=r"config\.json: asks for Python code of its own \(auto_map\)"):
        LOADERS[loader](folder)
    assert not (folder.parent / "ran").exists()


def test_code_of_a_processor_is_refused_without_a_prompt(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda prompt="": pytest.fail("asked whether to run the code"))
    plant(
        folder / "preprocessor_config.json",
        image_processor_type="PlantedProcessor",
        auto_map={"AutoImageProcessor": "planted.PlantedProcessor"},
    )
    with pytest.raises(ModelError, match=r"preprocessor_config\.json: asks for Python code"):
        load_extractor(str(folder), device=CPU)
    assert not (folder.parent / "ran").exists()


def test_tensors_of_a_diffusers_folder_must_match(tmp_path: Path) -> None:
    torch.manual_seed(0)
    made = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, layers_per_block=1)
    made.save_pretrained(tmp_path)
    loaded, missing = load_pretrained(AutoencoderKL, tmp_path, role="an autoencoder")
    assert not missing
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in made.state_dict().items())
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    lost = sorted(state)[0]
    save_file({name: value for name, value in state.items() if name != lost}, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"1 tensors are missing from its weights, such as {lost}"):
        load_pretrained(AutoencoderKL, tmp_path, role="an autoencoder")
    save_file(state | {"further": torch.zeros(2)}, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="that the network does not have, such as further"):
        load_pretrained(AutoencoderKL, tmp_path, role="an autoencoder")
    save_file(state | {lost: torch.zeros(7)}, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=lost) as error:
        load_pretrained(AutoencoderKL, tmp_path, role="an autoencoder")
    assert "low_cpu_mem_usage" not in str(error.value)


def test_a_tensor_that_only_the_index_of_the_files_names_is_missing(tmp_path: Path) -> None:
    AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, layers_per_block=1).save_pretrained(
        tmp_path, max_shard_size="20KB"
    )
    index = json.loads((tmp_path / "diffusion_pytorch_model.safetensors.index.json").read_text())["weight_map"]
    lost = sorted(index)[0]
    file = tmp_path / index[lost]
    save_file({name: one for name, one in load_file(file).items() if name != lost}, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"missing from its weights, such as {lost}"):
        load_pretrained(AutoencoderKL, tmp_path, role="an autoencoder")


@pytest.mark.parametrize("name", ["../afar.safetensors", "weights.bin", "absolute"])
@pytest.mark.parametrize("of_diffusers", [True, False], ids=["diffusers", "transformers"])
def test_an_index_names_nothing_but_safetensors_beside_it(
    of_diffusers: bool, name: str, folder: Path, tmp_path: Path
) -> None:
    kind: Any = Dinov2Model
    whole = folder / "model.safetensors"
    if of_diffusers:
        kind, folder = AutoencoderKL, tmp_path / "vae"
        AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, layers_per_block=1).save_pretrained(folder)
        whole = folder / "diffusion_pytorch_model.safetensors"
    state = load_file(whole)
    whole.rename(tmp_path / "afar.safetensors")
    torch.save(state, folder / "weights.bin")
    named = str(tmp_path / "afar.safetensors") if name == "absolute" else name
    index = folder / f"{whole.name}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(state, named)}))
    with pytest.raises(ModelError, match=rf"{index.name}: names '{re.escape(named)}' as a file of weights"):
        load_pretrained(kind, folder, role="a network")


def test_weights_under_other_names_in_an_index_load(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    named = {"metadata": {}, "weight_map": dict.fromkeys(state, "weights.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(named))
    first = load_extractor(str(folder), device=CPU)
    save_file({name: 2 * one for name, one in state.items()}, folder / "weights.safetensors", metadata={"format": "pt"})
    assert load_extractor(str(folder), device=CPU).digest != first.digest


def test_weights_of_a_variant_alone_are_features(folder: Path) -> None:
    before = load_extractor(str(folder), device=CPU)
    (folder / "model.safetensors").rename(folder / "model.fp16.safetensors")
    image = torch.linspace(0, 1, 32 * 32).reshape(1, 1, 32, 32)
    assert torch.equal(load_extractor(str(folder), device=CPU)(image), before(image))


@pytest.mark.parametrize("loader", LOADERS)
def test_an_adapter_beside_the_weights_is_refused(loader: str, folder: Path) -> None:
    """transformers would add it, and say nothing of tensors that the weights lack."""
    adapted = get_peft_model(Dinov2Model(Dinov2Config(**SMALL)), LoraConfig(r=2, target_modules=["query", "q_proj"]))
    adapted.save_pretrained(folder)
    with pytest.raises(ModelError, match=r"adapter_config\.json: an adapter, which transformers would add"):
        LOADERS[loader](folder)


def test_weights_that_only_the_settings_name_are_refused(folder: Path) -> None:
    shutil.copy(folder / "model.safetensors", folder / "other.safetensors")
    plant(folder / "config.json", transformers_weights="other.safetensors")
    with pytest.raises(ModelError, match=r"config\.json: takes weights from another file \(transformers_weights\)"):
        load_extractor(str(folder), device=CPU)


@pytest.mark.parametrize(
    "settings",
    [
        {"attn_implementation": "lab/attention"},
        {"_attn_implementation": "lab/attention@v1"},
        {"attn_implementation": {"": "eager", "vision_config": "lab/attention:forward"}},
        {"vision_config": {"attn_implementation": "lab/attention"}},
    ],
)
def test_attention_from_the_hub_is_refused(settings: dict[str, Any], folder: Path) -> None:
    plant(folder / "config.json", **settings)
    with pytest.raises(
        ModelError, match=r"config\.json: asks for code from the hub \(attn_implementation 'lab/attention"
    ):
        load_extractor(str(folder), device=CPU)


def test_attention_of_the_library_is_taken(folder: Path) -> None:
    plant(folder / "config.json", attn_implementation="eager")
    assert load_extractor(str(folder), device=CPU).width == 16


def test_a_tensor_of_another_shape_is_named(folder: Path) -> None:
    file = folder / "model.safetensors"
    state = load_file(file)
    name = next(name for name in sorted(state) if "fc1.bias" in name)
    save_file(state | {name: torch.zeros(7)}, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"1 tensors are of another shape than the network's, such as {name}"):
        load_pretrained(Dinov2Model, folder, role="an image encoder")


def test_a_setting_of_another_type_is_named(folder: Path) -> None:
    plant(folder / "config.json", hidden_size="wide")
    with pytest.raises(ModelError, match=r"cannot be loaded as an image encoder: .*hidden_size.*wide"):
        load_pretrained(AutoModel, folder, role="an image encoder")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_network_of_diffusers_is_converted_as_it_is_read(
    dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, layers_per_block=1).save_pretrained(tmp_path)
    monkeypatch.setattr(AutoencoderKL, "to", lambda *_, **__: pytest.fail("was whole in memory before"))
    loaded, _ = load_pretrained(AutoencoderKL, tmp_path, role="an autoencoder", dtype=dtype)
    assert {weight.dtype for weight in loaded.parameters()} == {dtype}
    assert not loaded.training


def test_an_autoencoder_with_attention_under_earlier_names_loads(tmp_path: Path) -> None:
    made = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, layers_per_block=1)
    made.save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    former = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = load_file(file)
    for new, old in former.items():
        state = {name.replace(f"attentions.0.{new}.", f"attentions.0.{old}."): one for name, one in state.items()}
    assert sum("proj_attn.weight" in name for name in state) == 2
    save_file(state, file, metadata={"format": "pt"})
    loaded, _ = load_pretrained(AutoencoderKL, tmp_path, role="an autoencoder")
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in made.state_dict().items())


def test_a_name_that_is_no_folder_is_not_looked_for_at_a_hub() -> None:
    with pytest.raises(ModelError, match="no such folder"):
        load_pretrained(AutoencoderKL, Path("owner/name"), role="an autoencoder")


@pytest.mark.parametrize("content", ['"lab/chest"', "[]", "null", "3"])
@pytest.mark.parametrize("part", ["vae", "text_encoder", "tokenizer"])
def test_settings_that_are_no_object_are_refused(part: str, content: str, tiny_model: Path, tmp_path: Path) -> None:
    """The libraries take a string for the name of a repository."""
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    name = "tokenizer_config.json" if part == "tokenizer" else "config.json"
    (model / part / name).write_text(content)
    with pytest.raises(ModelError, match=rf"{part}/{name}: not a configuration but .*\n  expected: a JSON object"):
        load_model(resolve_model(str(model)), device=CPU, precision=Precision.FP32)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stable_diffusion", "stable_diffusion with BERT"])
def test_libraries_print_nothing_about_loading_and_long_prompts(name: str, tmp_path: Path) -> None:
    folder = build(name, tmp_path / "model")
    code = (
        "import sys, torch\n"
        "from cxrsynth.diffusion.model import load_model\n"
        "from cxrsynth.diffusion.resolve import resolve_model\n"
        "from cxrsynth.settings import Precision\n"
        "model = load_model(resolve_model(sys.argv[1]), device=torch.device('cpu'), precision=Precision.FP32)\n"
        "model.encode(['clear lungs ' * 100])\n"
    )
    names = ("DIFFUSERS_VERBOSITY", "TRANSFORMERS_VERBOSITY", "HF_HUB_DISABLE_PROGRESS_BARS")
    environment = {key: value for key, value in os.environ.items() if key not in names}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(folder)], env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_loading_leaves_the_libraries_verbosity_as_it_was(tiny_model: Path) -> None:
    logger = logging.getLogger("transformers")
    before = logger.level
    logger.setLevel(logging.INFO)
    try:
        load_model(resolve_model(str(tiny_model)), device=CPU, precision=Precision.FP32)
        assert logger.level == logging.INFO
    finally:
        logger.setLevel(before)
