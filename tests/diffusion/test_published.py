"""What docs/public-models.md prints, tried with tiny models in the layouts of published ones."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from transformers import BertConfig, BertForMaskedLM

from cxrsynth.diffusion.model import load_model
from cxrsynth.diffusion.resolve import resolve_model
from cxrsynth.diffusion.sampler import sample_images
from cxrsynth.diffusion.spec import SPEC_FILE
from cxrsynth.errors import ModelError
from cxrsynth.settings import Additions, Lora, Precision, Sampler
from tests.diffusion.test_additions import lora_of
from tests.families import autoencoder, build, unet

CPU = torch.device("cpu")
PAGE = Path(__file__).resolve().parents[2] / "docs" / "public-models.md"
_WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] clear lungs left lower lobe pneumonia"


def biovil(folder: Path) -> Path:
    """BERT as CXR-BERT is published: a class of its own, in the settings of network and tokenizer."""
    words = _WORDS.split()
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=128,
    )
    BertForMaskedLM(config).save_pretrained(folder)
    settings = json.loads((folder / "config.json").read_text())
    code = {"AutoConfig": "configuration_cxrbert.CXRBertConfig", "AutoModel": "modeling_cxrbert.CXRBertModel"}
    own = {"model_type": "cxr-bert", "architectures": ["CXRBertModel"], "projection_size": 128, "auto_map": code}
    (folder / "config.json").write_text(json.dumps(settings | own))
    (folder / "vocab.txt").write_text("\n".join(words))
    tokenizer = {
        "do_lower_case": True,
        "tokenizer_class": "CXRBertTokenizer",
        "auto_map": {"AutoTokenizer": ["configuration_cxrbert.CXRBertTokenizer", None]},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return folder


def printed(kind: str) -> str:
    """The code of that kind in the section on RadEdit."""
    section = PAGE.read_text(encoding="utf-8").partition("\n## RadEdit\n")[2]
    found = re.search(rf"```{kind}\n(.*?)```", section, re.DOTALL)
    assert found is not None
    return found[1]


def test_the_steps_for_radedit_give_a_folder_that_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    own, language = tmp_path / "own", biovil(tmp_path / "language")
    vae = AutoencoderKL.from_config(dict(autoencoder().config) | {"in_channels": 3, "out_channels": 3})
    unet(16).save_pretrained(own / "unet")
    vae.save_pretrained(tmp_path / "vae")
    steps = printed("python")
    places = {
        "microsoft/radedit": own,
        "stabilityai/sdxl-vae": tmp_path / "vae",
        "microsoft/BiomedVLP-BioViL-T": language,
    }
    for name, place in places.items():
        assert f'"{name}"' in steps
        steps = steps.replace(f'"{name}"', repr(str(place)))
    exec(steps, {})
    (tmp_path / "radedit" / SPEC_FILE).write_text(printed("json"))
    resolved = resolve_model("radedit")
    assert (resolved.spec.defaults.steps, resolved.spec.defaults.sampler) == (100, Sampler.MODEL)
    model = load_model(resolved, device=CPU, precision=Precision.FP32)
    assert model.encode(["clear lungs"])[0].text.shape == (1, 128, 16)
    noise = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    images = sample_images(model, ["clear lungs"], noise, sampler=Sampler.MODEL, steps=4, guidance=7.5)
    assert images.isfinite().all()


def test_the_published_language_model_itself_asks_for_its_own_code(tmp_path: Path) -> None:
    folder = build("stable_diffusion with BERT", tmp_path / "model")
    for path in biovil(tmp_path / "language").iterdir():
        (folder / "text_encoder" / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ModelError, match="asks for Python code of its own"):
        load_model(resolve_model(str(folder)), device=CPU, precision=Precision.FP32)


@pytest.mark.parametrize("name", ["flux", "flux without guidance"])
def test_lora_weights_of_flux_are_added_to_the_network(name: str, tmp_path: Path) -> None:
    folder = build(name, tmp_path / "model")
    plain: Any = load_model(resolve_model(str(folder)), device=CPU, precision=Precision.FP32).denoiser
    additions = Additions(loras=(Lora(lora_of(folder, tmp_path / "lora"), 0.5),))
    adapted: Any = load_model(resolve_model(str(folder), additions=additions), device=CPU, precision=Precision.FP32)
    weights = load_file(tmp_path / "lora" / "pytorch_lora_weights.safetensors")
    before, after = plain.state_dict(), adapted.denoiser.state_dict()
    layers = {key.partition(".lora_")[0].removeprefix("transformer.") for key in weights}
    assert layers
    for key, weight in before.items():
        layer = key.removesuffix(".weight")
        change = torch.zeros_like(weight)
        if layer in layers and key.endswith(".weight"):
            up, down = (weights[f"transformer.{layer}.lora_{half}.weight"] for half in "BA")
            change = 0.5 * up @ down
        torch.testing.assert_close(after[key], weight + change)
