"""MONAI's bundle for chest X-rays: the U-Net's predictions and the autoencoder's images stay what they are."""

import json
import re
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor
from torch.nn import functional

import cxrsynth
from cxrsynth.conversion.monai import _autoencoder
from cxrsynth.errors import ModelError
from tests.diffusion.test_additions import loaded
from tests.families import build, unet

State = dict[str, Tensor]
_GROUPS = 4
_UNET = {
    "spatial_dims": 2,
    "in_channels": 3,
    "out_channels": 3,
    "num_channels": [8, 16],
    "num_res_blocks": 1,
    "attention_levels": [False, True],
    "norm_num_groups": _GROUPS,
    "norm_eps": 1e-6,
    "num_head_channels": [0, 8],
    "with_conditioning": True,
    "cross_attention_dim": 16,
}
_VAE = {
    "spatial_dims": 2,
    "in_channels": 1,
    "out_channels": 1,
    "latent_channels": 3,
    "num_channels": [8, 16],
    "num_res_blocks": 1,
    "attention_levels": [False, False],
    "norm_num_groups": _GROUPS,
    "with_encoder_nonlocal_attn": False,
    "with_decoder_nonlocal_attn": False,
}
_SCHEDULER = {
    "beta_start": 0.0015,
    "beta_end": 0.0205,
    "num_train_timesteps": 1000,
    "schedule": "scaled_linear_beta",
    "prediction_type": "v_prediction",
    "clip_sample": False,
}
_NAMES = (
    (r"^time_embedding\.linear_(\d)", lambda m: f"time_embed.{2 * int(m[1]) - 2}"),
    (r"^mid_block\.resnets\.(\d)", lambda m: f"middle_block.resnet_{int(m[1]) + 1}"),
    (r"^mid_block\.attentions\.0", lambda m: "middle_block.attention"),
    (r"^conv_norm_out", lambda m: "out.0"),
    (r"^conv_out", lambda m: "out.2.conv"),
    (r"^conv_in", lambda m: "conv_in.conv"),
    (r"downsamplers\.0\.conv", lambda m: "downsampler.op.conv"),
    (r"upsamplers\.0\.conv", lambda m: "upsampler.conv.conv"),
    (r"\.conv_shortcut", lambda m: ".skip_connection.conv"),
    (r"\.(conv[12]|proj_in|proj_out)\.", lambda m: f".{m[1]}.conv."),
    (r"\.ff\.net\.0\.proj", lambda m: ".ff.linear1"),
    (r"\.ff\.net\.2", lambda m: ".ff.linear2"),
)


def monai_name(name: str) -> str:
    for pattern, replacement in _NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def vae_state() -> State:
    """Random weights in the layout of MONAI Generative's autoencoder."""
    generator = torch.Generator().manual_seed(0)

    def conv(name: str, out: int, size: int, side: int = 3) -> State:
        weight = 0.2 * torch.randn(out, size, side, side, generator=generator)
        return {f"{name}.conv.weight": weight, f"{name}.conv.bias": 0.2 * torch.randn(out, generator=generator)}

    def norm(name: str, count: int) -> State:
        drawn = 0.2 * torch.randn(2, count, generator=generator)
        return {f"{name}.weight": 1 + drawn[0], f"{name}.bias": drawn[1]}

    def resnet(name: str, out: int, size: int) -> State:
        found = norm(f"{name}.norm1", size) | conv(f"{name}.conv1", out, size)
        found |= norm(f"{name}.norm2", out) | conv(f"{name}.conv2", out, out)
        return found if out == size else found | conv(f"{name}.nin_shortcut", out, size, 1)

    state = conv("quant_conv_mu", 3, 3, 1) | conv("quant_conv_log_sigma", 3, 3, 1) | conv("post_quant_conv", 3, 3, 1)
    for half, ends, first, last in (("encoder", (1, 3), 8, 16), ("decoder", (3, 1), 16, 8)):
        at = f"{half}.blocks"
        state |= conv(f"{at}.0", first, ends[0]) | resnet(f"{at}.1", first, first) | conv(f"{at}.2.conv", first, first)
        state |= resnet(f"{at}.3", last, first) | norm(f"{at}.4", last) | conv(f"{at}.5", ends[1], last)
    return state


def run(half: str, state: State, x: Tensor) -> Tensor:
    """One half of MONAI's autoencoder: no block in the middle, no SiLU before the last convolution."""

    def conv(name: str, x: Tensor, **given: int) -> Tensor:
        weight = state[f"{name}.conv.weight"]
        return functional.conv2d(x, weight, state[f"{name}.conv.bias"], **{"padding": weight.shape[-1] // 2} | given)

    def norm(name: str, x: Tensor) -> Tensor:
        return functional.group_norm(x, _GROUPS, state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-6)

    def resnet(name: str, x: Tensor) -> Tensor:
        h = conv(f"{name}.conv1", functional.silu(norm(f"{name}.norm1", x)))
        h = conv(f"{name}.conv2", functional.silu(norm(f"{name}.norm2", h)))
        return h + (conv(f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.conv.weight" in state else x)

    at = f"{half}.blocks"
    x = resnet(f"{at}.1", conv(f"{at}.0", x))
    if half == "encoder":
        x = conv(f"{at}.2.conv", functional.pad(x, (0, 1, 0, 1)), stride=2, padding=0)
    else:
        x = conv(f"{at}.2.conv", functional.interpolate(x, scale_factor=2.0))
    return conv(f"{at}.5", norm(f"{at}.4", resnet(f"{at}.3", x)))


def latent_conv(name: str, state: State, x: Tensor) -> Tensor:
    return functional.conv2d(x, state[f"{name}.conv.weight"], state[f"{name}.conv.bias"])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("stable_diffusion", tmp_path_factory.mktemp("base") / "base")


def bundle(folder: Path, unet_state: State) -> Path:
    for name in ("configs", "scripts", "models"):
        (folder / name).mkdir(parents=True)
    config = {
        "diffusion_def": _UNET,
        "autoencoder_def": _VAE,
        "scheduler": _SCHEDULER,
        "noise": "$torch.randn((1, 3, 8, 8)).to(@device)",
        "guidance_scale": 7.0,
    }
    (folder / "configs" / "inference.json").write_text(json.dumps(config))
    (folder / "scripts" / "sampler.py").write_text("raise SystemExit\n\ndef f(scale_factor: float = 0.3): ...\n")
    torch.save(unet_state, folder / "models" / "diffusion_model.pth")
    torch.save(vae_state(), folder / "models" / "autoencoder.pth")
    return folder


def test_a_bundle_of_monai(base: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape = {"in_channels": 3, "out_channels": 3, "block_out_channels": (8, 16), "attention_head_dim": (1, 2)}
    original = unet(16, **shape, norm_eps=1e-6).eval()
    for weight in original.parameters():
        if not weight.any():
            torch.nn.init.normal_(weight, std=0.02)
    source = bundle(tmp_path / "bundle", {monai_name(name): one for name, one in original.state_dict().items()})
    with pytest.raises(ModelError, match=r"missing: a text encoder and a tokenizer\n.*stable-diffusion-2-1-base"):
        cxrsynth.convert(source, tmp_path / "out")
    cxrsynth.convert(source, tmp_path / "out", base=base)
    model = loaded(tmp_path / "out")
    assert (model.latent_shape, model.spec.defaults.guidance) == ((3, 8, 8), 7.0)
    scheduler = DDIMScheduler.from_pretrained(tmp_path / "out" / "scheduler").config
    assert (scheduler.prediction_type, scheduler.beta_schedule) == ("v_prediction", "scaled_linear")
    x, text = torch.randn(2, 3, 8, 8), torch.randn(2, 5, 16)
    latents = torch.randn(2, 3, 8, 8)
    state = vae_state()
    with torch.no_grad():
        torch.testing.assert_close(model.denoiser(x, 500, text).sample, original(x, 500, text).sample)
        expected = run("decoder", state, latent_conv("post_quant_conv", state, latents / 0.3))
        found = model.vae.decode(latents / model.vae.config.scaling_factor).sample
    torch.testing.assert_close(found / 2 + 0.5, expected, atol=1e-4, rtol=1e-5)


def test_encoding_is_monais_on_a_gray_surround() -> None:
    vae = _autoencoder(_VAE, 0.3, vae_state())
    state = vae_state()
    image = torch.rand(2, 1, 16, 16)
    # Padding with zeros stands for gray once images are shifted; the bias puts the shift back.
    weight, bias = state["encoder.blocks.0.conv.weight"], "encoder.blocks.0.conv.bias"
    state[bias] = state[bias] + 0.5 * weight.sum((1, 2, 3))
    hidden = run("encoder", state, image - 0.5)
    with torch.no_grad():
        found = vae.encode(2 * image - 1).latent_dist
    torch.testing.assert_close(found.mean, latent_conv("quant_conv_mu", state, hidden), atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(found.logvar, latent_conv("quant_conv_log_sigma", state, hidden), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"attention_levels": [False, True]}, "without attention"),
        ({"with_encoder_nonlocal_attn": True}, "without attention"),
        ({"num_channels": [8, 8]}, "Unexpected key"),
    ],
)
def test_bundles_of_other_networks_are_refused(
    changed: dict[str, object], said: str, base: Path, tmp_path: Path
) -> None:
    shape = {"in_channels": 3, "out_channels": 3, "block_out_channels": (8, 16), "attention_head_dim": (1, 2)}
    state = {monai_name(name): one for name, one in unet(16, **shape).state_dict().items()}
    source = bundle(tmp_path / "bundle", state)
    path = source / "configs" / "inference.json"
    config = json.loads(path.read_text())
    config["autoencoder_def"] |= changed
    path.write_text(json.dumps(config))
    with pytest.raises(ModelError, match=rf"cannot be converted as MONAI's bundle(.|\n)*{said}"):
        cxrsynth.convert(source, tmp_path / "out", base=base)
    assert not (tmp_path / "out").exists()
