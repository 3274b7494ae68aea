"""Low-rank adapters on the UNet."""

import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig

from cxrsynth.errors import ModelError

# Attention projections, as diffusers' own LoRA training scripts take them.
_LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")


_ADAPTER = "cxrsynth"


def add_adapters(unet: UNet2DConditionModel, *, rank: int, alpha: int | None, seed: int) -> None:
    """Add adapters to the attention projections, in float32. Their second factor is zero: they change nothing yet.

    `alpha` is the scale times the rank, None for the rank.

    Raises:
        ModelError: if the UNet has no such projections.
    """
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
