"""Loading a model: networks whose weights do not match them are refused, wherever a folder is read."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cxrsynth.auditing.autoencoder import load_autoencoder
from cxrsynth.diffusion.model import load_model
from cxrsynth.diffusion.resolve import resolve_model
from cxrsynth.errors import ModelError
from cxrsynth.nano.build.start import take_over
from cxrsynth.settings import Precision

CPU = torch.device("cpu")
LOADERS: dict[str, Callable[[Path], object]] = {
    "generate": lambda model: load_model(resolve_model(str(model)), device=CPU, precision=Precision.FP32),
    "audit": lambda model: load_autoencoder(str(model), None, CPU),
    "nano": lambda model: take_over(model, model.parent / "work"),
}


def lacking(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {other: value for other, value in state.items() if other != name}


def misshapen(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return state | {name: torch.zeros(7)}


def overfull(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return state | {f"{name}_further": torch.zeros(7)}


@pytest.mark.parametrize("change", [lacking, misshapen, overfull])
@pytest.mark.parametrize(
    ("loader", "part"), [("generate", "unet"), ("generate", "vae"), ("audit", "vae"), ("nano", "vae")]
)
def test_weights_that_do_not_match_are_refused_by_name(
    loader: str, part: str, change: Callable[..., dict[str, Tensor]], tiny_model: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    (model / "judges").mkdir()
    weights = model / part / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    name = "conv_in.bias" if part == "unet" else "decoder.conv_in.bias"
    save_file(change(state, name), weights, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"cannot be loaded as an? .*{name}") as error:
        LOADERS[loader](model)
    assert str(error.value).startswith(f"{model / part}: ")


@pytest.mark.parametrize(
    ("precision", "unet", "vae"),
    [
        (Precision.FP32, torch.float32, torch.float32),
        (Precision.BF16, torch.bfloat16, torch.bfloat16),
        (Precision.FP16, torch.float16, torch.float32),
    ],
)
def test_networks_are_loaded_in_their_precision(
    precision: Precision, unet: torch.dtype, vae: torch.dtype, tiny_model: Path
) -> None:
    model = load_model(resolve_model(str(tiny_model)), device=CPU, precision=precision)
    assert {weight.dtype for weight in model.denoiser.parameters()} == {unet}
    assert model.vae.encoder.conv_in.weight.dtype is vae
    assert {weight.dtype for weight in model.components.encoders["text_encoder"].parameters()} == {torch.float32}
    for network in (model.denoiser, model.vae, *model.components.encoders.values()):
        assert not network.training
        assert not any(weight.requires_grad for weight in network.parameters())
    assert model.denoiser.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
