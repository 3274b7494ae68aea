"""Loading a pretrained folder: code that it brings never runs, and nobody is asked."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

from cxrsynth.errors import ModelError
from cxrsynth.metrics.features import load_extractor
from cxrsynth.rewards.backends import load_reward
from cxrsynth.runtime.pretrained import load_pretrained

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


def test_a_name_that_is_no_folder_is_not_looked_for_at_a_hub() -> None:
    with pytest.raises(ModelError, match="no such folder"):
        load_pretrained(AutoencoderKL, Path("owner/name"), role="an autoencoder")
