"""MONAI's bundle for chest X-rays (`cxr_image_synthesis_latent_diffusion_model`), to a folder in diffusers' layout.

Its U-Net has the layers of diffusers' under other names. Its autoencoder differs in three ways, and becomes one of
diffusers' that computes the same:

- It has fewer residual blocks. Those that it lacks add zero.
- No SiLU precedes its last convolutions. Since silu(x) - silu(-x) = x, every channel is there twice, and the last
  normalizations give x and -x.
- Its images are in [0, 1], diffusers' in [-1, 1]. The scale goes into the first and last convolution.

Networks of MONAI Generative and of MONAI from 1.4 on are read, which name layers differently.

Source: configs/inference.json and scripts/sampler.py of the bundle; Pinaya et al., arXiv:2209.07162.
"""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor

from cxrsynth.conversion.base import base_index
from cxrsynth.conversion.weights import read_weights
from cxrsynth.diffusion.families import family_of
from cxrsynth.diffusion.resolve import INDEX
from cxrsynth.diffusion.spec import SPEC_FILE
from cxrsynth.errors import ModelError, in_words
from cxrsynth.runtime.files import read_json, stable_json
from cxrsynth.runtime.pretrained import LOADING_ERRORS

CONFIG = Path("configs") / "inference.json"
_NETWORKS = {"unet": "diffusion_model", "vae": "autoencoder"}  # our folder -> name of the file in models/
_COPIED = ("text_encoder", "tokenizer")
# MONAI's names, in regular expressions -> diffusers', in this order.
_UNET_NAMES = (
    (r"^time_embed\.0\.", "time_embedding.linear_1."),
    (r"^time_embed\.2\.", "time_embedding.linear_2."),
    (r"^middle_block\.resnet_1\.", "mid_block.resnets.0."),
    (r"^middle_block\.attention\.", "mid_block.attentions.0."),
    (r"^middle_block\.resnet_2\.", "mid_block.resnets.1."),
    (r"^out\.0\.", "conv_norm_out."),
    (r"^out\.2\.", "conv_out."),
    (r"\.downsampler\.op\.", ".downsamplers.0.conv."),
    (r"\.upsampler\.(?:postconv|conv)\.", ".upsamplers.0.conv."),
    (r"\.skip_connection\.", ".conv_shortcut."),
    (r"\.ff\.linear1\.", ".ff.net.0.proj."),
    (r"\.ff\.linear2\.", ".ff.net.2."),
    (r"(\.attn[12])\.out_proj\.", r"\1.to_out.0."),
    # Every convolution is wrapped once more; diffusers' own samplers end in `conv`, too, and have been renamed above.
    (r"(?<!samplers\.0)\.conv\.", "."),
    (r"(samplers\.0\.conv)\.conv\.", r"\1."),
)
_SCHEDULES = {"scaled_linear_beta": "scaled_linear", "linear_beta": "linear"}
_NOISE = re.compile(r"randn\(\(1, *\d+, *(\d+), *(\d+)\)\)")
_SCALE = re.compile(r"scale_factor\b[^=\n]*= *([0-9.]+)")


def is_bundle(folder: Path) -> bool:
    """Whether a folder is a bundle of MONAI."""
    return (folder / CONFIG).is_file()


def convert_bundle(source: Path, base: Path | None, out: Path) -> None:
    """Fill `out` with the model of a bundle, and with text encoder and tokenizer of a base folder.

    Args:
        source: the bundle, with `configs/`, `scripts/sampler.py` and `models/`; its code is read as text, and not run.
        base: folder of Stable Diffusion 2.1, whose text encoder the bundle uses and does not contain.
        out: an empty folder.

    Raises:
        ModelError: if the bundle is of another kind, or something is missing.
        OSError: if a file cannot be copied or written.
    """
    if base is None:
        raise ModelError(
            f"{source}: holds a U-Net and an autoencoder of MONAI; missing: a text encoder and a tokenizer\n"
            "  name the folder of stable-diffusion-2-1-base, whose text encoder it was trained with, with --base"
        )
    if family_of(base).name != "stable_diffusion":
        raise ModelError(f"--base {base}: {family_of(base).title}\n  expected: stable-diffusion-2-1-base")
    for part in _COPIED:
        if not (base / part).is_dir():
            raise ModelError(f"--base {base}: missing {part}/\n  expected: the folder of stable-diffusion-2-1-base")
    index = base_index(base)
    try:
        config = read_json(source / CONFIG)
        unet = _unet(config["diffusion_def"], _latent_size(config["noise"]), _state(source, "unet"))
        vae = _autoencoder(config["autoencoder_def"], _scale(source), _state(source, "vae"))
        scheduler = _scheduler(config["scheduler"])
        guidance = config.get("guidance_scale")
    except LOADING_ERRORS as error:
        raise ModelError(
            f"{source}: cannot be converted as MONAI's bundle for chest X-rays ({in_words(error)})\n"
            f"  expected: the bundle cxr_image_synthesis_latent_diffusion_model, with {CONFIG.as_posix()},"
            " scripts/sampler.py and models/"
        ) from None
    unet.save_pretrained(out / "unet", safe_serialization=True)
    vae.save_pretrained(out / "vae", safe_serialization=True)
    scheduler.save_pretrained(out / "scheduler")
    for part in _COPIED:
        shutil.copytree(base / part, out / part, ignore=lambda _, names: [n for n in names if not _is_safe(n)])
    parts = {"unet": unet, "vae": vae, "scheduler": scheduler}
    kept = {name: [None, None] if isinstance(kind, list) else kind for name, kind in index.items()}
    kept |= {part: index[part] for part in _COPIED}
    kept |= {part: ["diffusers", type(network).__name__] for part, network in parts.items()}
    (out / INDEX).write_bytes(stable_json(kept))
    if isinstance(guidance, int | float):
        (out / SPEC_FILE).write_bytes(stable_json({"defaults": {"guidance": float(guidance)}}))


def _is_safe(name: str) -> bool:
    return name.endswith((".json", ".txt", ".model", ".safetensors"))


def _state(source: Path, part: str) -> dict[str, Tensor]:
    """The weights of a network, which releases save as .pth or .pt."""
    found = sorted((source / "models").glob(f"{_NETWORKS[part]}.*"))
    if not found:
        raise ModelError(f"{source / 'models'}: no {_NETWORKS[part]}.pth\n  expected: the bundle with its large files")
    return read_weights(found[0])


def _latent_size(noise: str) -> int | list[int]:
    found = _NOISE.search(noise)
    if found is None:
        raise ValueError(f"noise {noise!r} gives no size of latents")
    height, width = int(found[1]), int(found[2])
    return height if height == width else [height, width]


def _scale(source: Path) -> float:
    found = _SCALE.search((source / "scripts" / "sampler.py").read_text(encoding="utf-8"))
    if found is None:
        raise ValueError("scripts/sampler.py gives no scale_factor")
    return float(found[1])


def _scheduler(given: dict[str, Any]) -> Any:
    return DDIMScheduler(
        num_train_timesteps=given["num_train_timesteps"],
        beta_schedule=_SCHEDULES[given["schedule"]],
        beta_start=given["beta_start"],
        beta_end=given["beta_end"],
        prediction_type=given["prediction_type"],
        clip_sample=given["clip_sample"],
        set_alpha_to_one=given.get("set_alpha_to_one", True),
        steps_offset=given.get("steps_offset", 0),
    )


def _channels(given: dict[str, Any]) -> list[int]:
    return list(given["channels"] if "channels" in given else given["num_channels"])


def _unet(given: dict[str, Any], size: int | list[int], state: dict[str, Tensor]) -> Any:
    channels, attended = _channels(given), given["attention_levels"]
    if given["spatial_dims"] != 2 or given.get("resblock_updown") or not given["with_conditioning"]:
        raise ValueError("its U-Net is not one for images with cross-attention and plain samplers")
    widths = given["num_head_channels"]
    widths = [widths] * len(channels) if isinstance(widths, int) else widths
    unet = UNet2DConditionModel(
        sample_size=size,
        in_channels=given["in_channels"],
        out_channels=given["out_channels"],
        block_out_channels=channels,
        down_block_types=[f"{'CrossAttn' * one}DownBlock2D" for one in attended],
        up_block_types=[f"{'CrossAttn' * one}UpBlock2D" for one in reversed(attended)],
        layers_per_block=given["num_res_blocks"],
        # The number of heads, in spite of its name.
        attention_head_dim=[n // w if one else 1 for n, w, one in zip(channels, widths, attended, strict=True)],
        cross_attention_dim=given["cross_attention_dim"],
        transformer_layers_per_block=given.get("transformer_num_layers", 1),
        upcast_attention=given.get("upcast_attention", False),
        norm_num_groups=given.get("norm_num_groups", 32),
        norm_eps=given.get("norm_eps", 1e-6),
    )
    unet.load_state_dict({_unet_name(name): tensor for name, tensor in state.items()})
    return unet


def _unet_name(name: str) -> str:
    for pattern, replacement in _UNET_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _autoencoder(given: dict[str, Any], scale: float, state: dict[str, Tensor]) -> Any:
    channels, layers, latents = _channels(given), given["num_res_blocks"], given["latent_channels"]
    blocks = {layers} if isinstance(layers, int) else set(layers)
    attention = ("with_encoder_nonlocal_attn", "with_decoder_nonlocal_attn")
    if (
        given["spatial_dims"] != 2
        or any(given["attention_levels"])
        or any(given.get(key, True) for key in attention)
        or given.get("use_convtranspose")
        or len(blocks) > 1
    ):
        raise ValueError("its autoencoder is not one for images without attention and with plain samplers")
    (depth,), groups = blocks, given.get("norm_num_groups", 32)
    vae = AutoencoderKL(
        in_channels=given["in_channels"],
        out_channels=given["out_channels"],
        latent_channels=latents,
        block_out_channels=[2 * count for count in channels],
        down_block_types=["DownEncoderBlock2D"] * len(channels),
        up_block_types=["UpDecoderBlock2D"] * len(channels),
        layers_per_block=depth,
        norm_num_groups=groups,
        mid_block_add_attention=False,
        scaling_factor=scale,
    )
    # What MONAI's lacks stays zero: a residual block that adds nothing.
    converted = {name: torch.zeros_like(tensor) for name, tensor in vae.state_dict().items()}
    for half in ("encoder", "decoder"):
        for ours, theirs in _blocks(half, len(channels), depth):
            for name in [name for name in state if name.startswith(f"{theirs}.")]:
                # Convolutions are wrapped once, those of samplers twice.
                rest = re.sub(r"\.(post)?conv(?=\.)", "", name.removeprefix(theirs))
                rest = rest.replace(".nin_shortcut.", ".conv_shortcut.")
                converted[ours + rest] = _doubled(ours.removeprefix(f"{half}."), state.pop(name), groups)
    _join_latent_convolutions(converted, state, latents)
    _to_signed_range(converted)
    if state:
        raise ValueError(f"its autoencoder has further layers, such as {sorted(state)[0]}")
    vae.load_state_dict(converted)
    return vae


def _doubled(layer: str, tensor: Tensor, groups: int) -> Tensor:
    """A layer's weights with every channel twice, within its group, so that normalizations stay what they are.

    Convolutions read the first of two equal channels; the last one reads the difference of both.
    """
    if layer != "conv_out":
        tensor = tensor[_twice(len(tensor), groups)]
        if layer == "conv_norm_out":
            tensor = tensor * _signs(len(tensor), groups)
    if tensor.ndim == 4 and layer != "conv_in":
        count = tensor.shape[1]
        signs = _signs(2 * count, groups)
        factors = signs if layer == "conv_out" else signs.clamp(min=0)
        tensor = tensor[:, _twice(count, groups)] * factors[:, None, None]
    return tensor


def _twice(count: int, groups: int) -> Tensor:
    """Numbers of `count` channels, each group's twice, [2 * count]."""
    return torch.arange(count).view(groups, 1, -1).expand(-1, 2, -1).reshape(-1)


def _signs(count: int, groups: int) -> Tensor:
    """1 for the first half of each group of channels and -1 for the second, [count]."""
    return torch.tensor([1.0, -1.0]).view(1, 2, 1).expand(groups, -1, count // groups // 2).reshape(-1)


def _blocks(half: str, levels: int, depth: int) -> Iterator[tuple[str, str]]:
    """Layers of diffusers' encoder or decoder, and MONAI's, which are numbered through."""
    kind, sampler = ("down_blocks", "downsamplers") if half == "encoder" else ("up_blocks", "upsamplers")
    names = ["conv_in"]
    for level in range(levels):
        names += [f"{kind}.{level}.resnets.{place}" for place in range(depth)]
        if level < levels - 1:
            names.append(f"{kind}.{level}.{sampler}.0.conv")
    names += ["conv_norm_out", "conv_out"]
    for place, name in enumerate(names):
        yield f"{half}.{name}", f"{half}.blocks.{place}"


def _join_latent_convolutions(converted: dict[str, Tensor], state: dict[str, Tensor], latents: int) -> None:
    """MONAI's encoder gives C maps to two convolutions, for mean and log variance; diffusers' gives 2C maps to one."""
    for kind in ("weight", "bias"):
        narrow = converted[f"encoder.conv_out.{kind}"]
        converted[f"encoder.conv_out.{kind}"] = torch.cat([narrow, torch.zeros_like(narrow)])
        means, log_stds = state.pop(f"quant_conv_mu.conv.{kind}"), state.pop(f"quant_conv_log_sigma.conv.{kind}")
        joined = torch.cat([means, log_stds])
        if kind == "weight":
            joined = torch.cat([joined, torch.zeros_like(joined)], dim=1)  # [2C, 2C, 1, 1]
        converted[f"quant_conv.{kind}"] = joined
        converted[f"post_quant_conv.{kind}"] = state.pop(f"post_quant_conv.conv.{kind}")


def _to_signed_range(converted: dict[str, Tensor]) -> None:
    """Let the autoencoder take and give images in [-1, 1] in place of [0, 1].

    Decoding is exact. Encoding is too, but for the padding around an image, which is gray now and was black.
    """
    weight, bias = "encoder.conv_in.weight", "encoder.conv_in.bias"
    converted[bias] = converted[bias] + converted[weight].sum((1, 2, 3)) / 2
    converted[weight] = converted[weight] / 2
    converted["decoder.conv_out.weight"] = converted["decoder.conv_out.weight"] * 2
    converted["decoder.conv_out.bias"] = converted["decoder.conv_out.bias"] * 2 - 1
