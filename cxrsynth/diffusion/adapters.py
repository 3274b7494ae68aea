"""Low-rank adapters on the UNet."""

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from torch import nn

from cxrsynth.errors import ModelError
from cxrsynth.runtime.pretrained import LOADING_ERRORS

# Attention projections, as in the LoRA training scripts of diffusers.
_LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")


_ADAPTER = "cxrsynth"


def add_adapters(unet: UNet2DConditionModel, *, rank: int, alpha: int | None, seed: int) -> None:
    """Add adapters to the attention projections, in float32. They change nothing at first: their second factor is zero.

    `alpha` is the scale times the rank, None for the rank.

    Raises:
        ModelError: if the UNet has no such projections, or the rank is too large for them.
    """
    check_rank(unet, rank)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            unet.add_adapter(
                LoraConfig(r=rank, lora_alpha=alpha or rank, target_modules=list(_LORA_TARGETS)),
                adapter_name=_ADAPTER,
            )
        except ValueError as error:
            raise ModelError(f"unet: no place for adapters: {error}") from None
    for name, weight in unet.named_parameters():
        weight.requires_grad_("lora_" in name)
        if weight.requires_grad:
            weight.data = weight.data.float()


def check_rank(unet: nn.Module, rank: int) -> None:
    """Refuse adapters that could not be smaller than what they adapt.

    A matrix [m, n] has at most rank min(m, n): adapters beyond it add numbers to train, and nothing that can be
    learned.

    Raises:
        ModelError: if the rank is above the smallest dimension of the attention projections.
    """
    sides = [
        side
        for name, module in unet.named_modules()
        if isinstance(module, nn.Linear) and name.endswith(tuple(f".{target}" for target in _LORA_TARGETS))
        for side in (module.in_features, module.out_features)
    ]
    if sides and rank > min(sides):
        raise ModelError(
            f"train.lora.rank {rank}: the smallest of the adapted layers has {min(sides)} dimensions\n"
            f"  expected: at most {min(sides)}"
        )


def check_rank_in(folder: Path, rank: int) -> None:
    """As `check_rank`, for the UNet in a folder, whose weights are not read.

    Raises:
        ModelError: as `check_rank` does, or if the folder describes no UNet.
    """
    try:
        with torch.device("meta"):
            unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder))
    except LOADING_ERRORS as error:
        raise ModelError(f"{folder}: cannot be loaded: {error}") from None
    check_rank(unet, rank)
