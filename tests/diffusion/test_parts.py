"""Parts of a model that do not fit each other, or are damaged, are refused while they are loaded."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from cxrsynth.diffusion.model import load_model
from cxrsynth.diffusion.networks import load_vae
from cxrsynth.diffusion.resolve import resolve_model
from cxrsynth.diffusion.sampler import sample_images
from cxrsynth.errors import ModelError
from cxrsynth.settings import Additions, Precision, Sampler
from tests.diffusion.test_families import PROMPTS, STEPS, by_diffusers, loaded, noise_of
from tests.families import FAMILIES, build, clip_config, gemma, t5, unet


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("families")
    return {name: build(name, home / name) for name in (*FAMILIES, "stable_diffusion with BERT")}


def refused(folder: Path, **given: Any) -> str:
    """The message."""
    with pytest.raises(ModelError) as error:
        load_model(resolve_model(str(folder), **given), device=torch.device("cpu"), precision=Precision.FP32)
    return str(error.value)


@pytest.mark.parametrize("name", FAMILIES)
def test_an_autoencoder_of_other_latents(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    vae = load_vae(folders[name] / "vae")
    wide = type(vae).from_config({**vae.config, "latent_channels": 8})
    wide.save_pretrained(tmp_path / "vae")
    message = refused(folders[name], additions=Additions(vae=tmp_path / "vae"))
    assert f"config.json: latents of 4 channels (in_channels {16 if name == 'flux' else 4})" in message
    assert f"those of {tmp_path / 'vae'} have 8" in message


def clip(width: int, *, projection: int | None = None) -> Any:
    if projection is None:
        return CLIPTextModel(clip_config(width))
    return CLIPTextModelWithProjection(clip_config(width, projection_dim=projection))


@pytest.mark.parametrize(
    ("name", "part", "encoder", "said"),
    [
        ("stable_diffusion", "text_encoder", lambda: clip(24), "text embeddings of width 16, but .* give 24"),
        ("sdxl", "text_encoder", lambda: clip(24), "text embeddings of width 40, but .* give 48"),
        ("sdxl", "text_encoder_2", lambda: clip(24, projection=8), "pooled embeddings of width 16, but .* give 8"),
        ("pixart", "text_encoder", lambda: t5(32), "text embeddings of width 16, but .* give 32"),
        ("sana", "text_encoder", lambda: gemma(16), "text embeddings of width 8, but .* give 16"),
        ("lumina2", "text_encoder", lambda: gemma(16), "text embeddings of width 8, but .* give 16"),
        ("sd3", "text_encoder", lambda: clip(24, projection=16), "text embeddings of width 32, but .* give 40"),
        ("sd3", "text_encoder_2", lambda: clip(16, projection=8), "pooled embeddings of width 32, but .* give 24"),
        ("sd3", "text_encoder_3", lambda: t5(16), "text embeddings of width 32, but .* give 16"),
        ("flux", "text_encoder", lambda: clip(24), "pooled embeddings of width 16, but .* give 24"),
        ("flux", "text_encoder_2", lambda: t5(32), "text embeddings of width 16, but .* give 32"),
        (
            "stable_diffusion",
            "text_encoder",
            lambda: clip(16, projection=16),
            "a CLIPTextModelWithProjection, which is",
        ),
        ("sdxl", "text_encoder_2", lambda: clip(24), "a CLIPTextModel, which is not what a Stable Diffusion XL model"),
        ("sd3", "text_encoder", lambda: clip(16), "a CLIPTextModel, which is not"),
        ("flux", "text_encoder", lambda: clip(16, projection=16), "a CLIPTextModelWithProjection, which is not"),
        ("pixart", "text_encoder", lambda: clip(16), "a CLIPTextModel, which is not what a PixArt model has"),
        ("sana", "text_encoder", lambda: clip(8), "a CLIPTextModel, which is not what a Sana model has"),
    ],
)
def test_another_text_encoder(
    name: str, part: str, encoder: Any, said: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(folders[name], tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / part)
    encoder().save_pretrained(tmp_path / "model" / part)
    with pytest.raises(ModelError, match=said):
        load_model(resolve_model(str(tmp_path / "model")), device=torch.device("cpu"), precision=Precision.FP32)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
            | {"projection_class_embeddings_input_dim": 64},
            "addition_embed_type 'text_time'",
        ),
        ({"addition_embed_type": "text"}, "addition_embed_type 'text'"),
        ({"dual_cross_attention": True}, "dual_cross_attention True"),
        ({"in_channels": 9}, "latents of 9 channels"),
        ({"out_channels": 8}, "out_channels 8, but latents have 4 channels"),
        ({"cross_attention_dim": 24}, "takes text embeddings of width 24, but the text encoders give 16"),
        ({"time_cond_proj_dim": 8}, "time_cond_proj_dim 8"),
        ({"num_class_embeds": 3}, "a UNet with class labels"),
    ],
)
def test_a_unet_of_another_kind(changes: dict[str, Any], said: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """Named by its own folder, not by that of the model it is laid over."""
    given = {"cross_attention_dim": 16} | changes
    unet(given.pop("cross_attention_dim"), **given).save_pretrained(tmp_path / "unet")
    message = refused(folders["stable_diffusion"], additions=Additions(denoiser=tmp_path / "unet"))
    assert message.startswith(f"{tmp_path / 'unet' / 'config.json'}: {said}")
    assert "\n  expected: " in message


def test_an_autoencoder_and_a_denoiser_of_another_class(folders: dict[str, Path]) -> None:
    message = refused(folders["stable_diffusion"], additions=Additions(vae=folders["sana"] / "vae"))
    assert message.startswith(f"{folders['sana'] / 'vae'}: an AutoencoderDC, but a Stable Diffusion model has an Auto")
    message = refused(folders["stable_diffusion"], additions=Additions(denoiser=folders["pixart"] / "transformer"))
    assert message.startswith(f"{folders['pixart'] / 'transformer' / 'config.json'}: a PixArtTransformer2DModel\n")


def test_a_unet_of_stable_diffusion_over_sdxl(folders: dict[str, Path], tmp_path: Path) -> None:
    unet(40).save_pretrained(tmp_path / "unet")
    assert "addition_embed_type None" in refused(folders["sdxl"], additions=Additions(denoiser=tmp_path / "unet"))


def test_a_distilled_sana_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["sana"], tmp_path / "model")
    network = tmp_path / "model" / "transformer"
    from diffusers import SanaTransformer2DModel

    config = SanaTransformer2DModel.load_config(network)
    SanaTransformer2DModel.from_config({**config, "guidance_embeds": True}).save_pretrained(network)
    assert "guidance_embeds: a distilled model (Sana-Sprint)" in refused(tmp_path / "model")


def without(part: str, source: Path, folder: Path) -> Path:
    """A copy of a model whose index leaves a part out."""
    shutil.copytree(source, folder)
    shutil.rmtree(folder / part)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {part: [None, None]}))
    return folder


def test_a_tokenizer_whose_encoder_is_left_out_is_left_out_too(folders: dict[str, Path], tmp_path: Path) -> None:
    """Pipelines of diffusers load such a folder; the images are theirs."""
    model = loaded(without("text_encoder_3", folders["sd3"], tmp_path / "model"))
    assert list(model.components.tokenizers) == ["tokenizer", "tokenizer_2"]
    noise = noise_of(model)
    ours = sample_images(model, PROMPTS, noise, sampler=Sampler.EULER, steps=STEPS, guidance=3.0)
    torch.testing.assert_close(ours, by_diffusers(tmp_path / "model", noise, 3.0), atol=1e-4, rtol=0)


def test_an_encoder_whose_tokenizer_is_left_out_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    message = refused(without("tokenizer_3", folders["sd3"], tmp_path / "model"))
    assert message.startswith(f"{tmp_path / 'model' / 'model_index.json'}: text_encoder_3 without tokenizer_3\n")


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_weights_that_are_not_numbers(part: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """Also where no image of a dry run would show it: in the autoencoder's encoder, in one token's embedding."""
    shutil.copytree(folders["stable_diffusion"], tmp_path / "model")
    [file] = (tmp_path / "model" / part).glob("*.safetensors")
    state = load_file(file)
    name = next(
        name
        for name in state
        if {"unet": "conv_in.weight", "vae": "encoder.conv_in.weight", "text_encoder": "token_embedding"}[part] in name
    )
    state[name].view(-1)[-1] = float("inf") if part == "vae" else float("nan")
    save_file(state, file, metadata={"format": "pt"})
    message = refused(tmp_path / "model")
    assert message.startswith(f"{tmp_path / 'model' / part}: ")
    assert "holds values that are not finite numbers" in message


def test_a_tokenizer_without_padding(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["stable_diffusion with BERT"], tmp_path / "model")
    path = tmp_path / "model" / "tokenizer" / "tokenizer_config.json"
    content = json.loads(path.read_text())
    content.pop("pad_token")
    path.write_text(json.dumps(content))
    special = path.with_name("special_tokens_map.json")
    if special.exists():
        special.write_text("{}")
    assert "no padding token" in refused(tmp_path / "model")


def test_a_whole_unet_is_still_taken(folders: dict[str, Path], tmp_path: Path) -> None:
    """The checks let a projection of the text embeddings pass, which some UNets have."""
    network = unet(16, encoder_hid_dim=16, encoder_hid_dim_type="text_proj")
    assert isinstance(network, UNet2DConditionModel)
    network.save_pretrained(tmp_path / "unet")
    found = resolve_model(str(folders["stable_diffusion"]), additions=Additions(denoiser=tmp_path / "unet"))
    model = load_model(found, device=torch.device("cpu"), precision=Precision.FP32)
    assert model.encode(["clear lungs"])[0].text.shape[-1] == 16
