"""Denoiser, autoencoder, text encoders and tokenizers of a model folder, each from a folder of its own."""

import math
from pathlib import Path
from typing import Any

import torch
import transformers
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderTiny, UNet2DConditionModel

from cxrsynth.diffusion.families.base import Family
from cxrsynth.errors import ModelError
from cxrsynth.runtime import pretrained
from cxrsynth.runtime.clip import load_text_encoder
from cxrsynth.runtime.files import read_json
from cxrsynth.runtime.pretrained import load_pretrained

# Heads that text embeddings do not need: those of a pretraining task, or of a model the encoder is part of.
_POOLER = ("pooler.",)


def load_denoiser(folder: Path, family: Family, *, dtype: torch.dtype = torch.float32) -> Any:
    """Load the network that predicts noise, on the CPU and in eval mode.

    Raises:
        ModelError: if the folder cannot be loaded, or its weights do not match the network.
    """
    named, wanted = _class_name(folder), family.denoiser_class.__name__
    if named and named != wanted:
        raise ModelError(
            f"{folder / 'config.json'}: a {named}\n  expected: a {wanted}, as {family.title} has, in {family.denoiser}/"
        )
    role = "a UNet" if family.denoiser == "unet" else "a diffusion transformer"
    return load_pretrained(family.denoiser_class, folder, role=role, dtype=dtype)[0]


def load_unet(folder: Path, *, dtype: torch.dtype = torch.float32) -> UNet2DConditionModel:
    """Load a UNet, on the CPU and in eval mode. Raises as `load_denoiser` does."""
    unet, _ = load_pretrained(UNet2DConditionModel, folder, role="a UNet", dtype=dtype)
    return unet  # type: ignore[no-any-return]


def load_vae(folder: Path, *, dtype: torch.dtype = torch.float32) -> AutoencoderKL | AutoencoderDC | AutoencoderTiny:
    """Load an autoencoder, on the CPU and in eval mode.

    Raises:
        ModelError: if the folder cannot be loaded, or its weights do not match the network.
    """
    kind = {one.__name__: one for one in (AutoencoderDC, AutoencoderTiny)}.get(_class_name(folder), AutoencoderKL)
    vae, _ = load_pretrained(kind, folder, role="an autoencoder", dtype=dtype)
    for name in ("scaling_factor", "shift_factor"):
        value = vae.config.get(name)
        is_number = isinstance(value, int | float) and math.isfinite(value) and (value != 0 or name == "shift_factor")
        if not is_number and not (value is None and name == "shift_factor"):
            raise ModelError(
                f"{folder / 'config.json'}: {name} {value!r}, expected the number that the model was trained with"
            )
    return vae  # type: ignore[no-any-return]


def encoded_mean(found: Any) -> torch.Tensor:
    """Latents from what an autoencoder's `encode` gives: the mean of a posterior, or the latents themselves."""
    if hasattr(found, "latent_dist"):
        mean: torch.Tensor = found.latent_dist.mode()
        return mean
    latents: torch.Tensor = found.latent if hasattr(found, "latent") else found.latents
    return latents


def load_encoder(folder: Path, *, dtype: torch.dtype = torch.float32) -> Any:
    """Load a text encoder of any kind that transformers has, on the CPU and in eval mode.

    Raises:
        ModelError: if the folder cannot be loaded, or its weights do not match the network.
    """
    config = _config(folder)
    kind, architectures = config.get("model_type"), config.get("architectures")
    architectures = architectures if isinstance(architectures, list) else []
    if kind in (None, "clip", "clip_text_model") and "CLIPTextModelWithProjection" not in architectures:
        return load_text_encoder(folder).to(dtype)
    if kind in (None, "clip", "clip_text_model"):
        return load_pretrained(
            transformers.CLIPTextModelWithProjection, folder, role="CLIP's text encoder", dtype=dtype
        )[0]
    # T5 and its kin have a decoder, which embeddings do not need.
    role, loader = "a text encoder", transformers.AutoModel
    if config.get("is_encoder_decoder") or kind in ("t5", "umt5", "mt5"):
        loader = getattr(transformers, f"{_T5.get(str(kind), 'T5')}EncoderModel")
    return load_pretrained(loader, folder, role=role, dtype=dtype, may_miss=_POOLER, may_hold=None)[0]


_T5 = {"t5": "T5", "mt5": "MT5", "umt5": "UMT5"}


def load_tokenizer(folder: Path, *, named: str | None = None) -> Any:
    """Load a tokenizer, fast where it can be.

    Args:
        folder: its files.
        named: its class in the model's index, which counts where its own settings name none.

    Raises:
        ModelError: if the folder cannot be loaded, or has no vocabulary.
    """
    own = _tokenizer_class(folder)
    name = own or named or "CLIPTokenizer"  # the first Stable Diffusion folders name no class
    kind = transformers.AutoTokenizer
    # The files of CLIP's may name the slow class, which reads no tokenizer.json before transformers 5.
    if own is None or name.startswith("CLIP"):
        fast, slow = (getattr(transformers, one, None) for one in (f"{name.removesuffix('Fast')}Fast", name))
        kind = fast or slow or kind
    return pretrained.load_tokenizer(kind, folder, role="a tokenizer")


def _tokenizer_class(folder: Path) -> str | None:
    try:
        named = read_json(folder / "tokenizer_config.json").get("tokenizer_class")
    except (OSError, ValueError, AttributeError):
        return None
    return None if named is None else str(named)


def _class_name(folder: Path) -> str:
    return str(_config(folder).get("_class_name", ""))


def _config(folder: Path) -> dict[str, Any]:
    """Content of config.json; empty if it cannot be read, which loading says better."""
    try:
        content = read_json(folder / "config.json")
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
