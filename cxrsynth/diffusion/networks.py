"""UNet and autoencoder of a Stable Diffusion folder, each from a folder of its own."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from cxrsynth.runtime.pretrained import load_pretrained


def load_unet(folder: Path, *, dtype: torch.dtype = torch.float32) -> UNet2DConditionModel:
    """Load a UNet, on the CPU and in eval mode.

    Raises:
        ModelError: if the folder cannot be loaded, or its weights do not match the network.
    """
    unet, _ = load_pretrained(UNet2DConditionModel, folder, role="a UNet", dtype=dtype)
    return unet  # type: ignore[no-any-return]


def load_vae(folder: Path, *, dtype: torch.dtype = torch.float32) -> AutoencoderKL:
    """Load an autoencoder, on the CPU and in eval mode.

    Raises:
        ModelError: if the folder cannot be loaded, or its weights do not match the network.
    """
    vae, _ = load_pretrained(AutoencoderKL, folder, role="an autoencoder", dtype=dtype)
    return vae  # type: ignore[no-any-return]
