"""Low-rank adapters on a denoiser, by peft, whatever its class."""

from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from cxrsynth.diffusion.families.base import Family
from cxrsynth.errors import ModelError, in_words
from cxrsynth.runtime.pretrained import LOADING_ERRORS, reason

_ADAPTER = "cxrsynth"


def add_adapters(denoiser: nn.Module, layers: Sequence[str], *, rank: int, alpha: int | None, seed: int) -> None:
    """Add adapters to the attention projections, in float32. They change nothing at first: their second factor is zero.

    Args:
        denoiser: the network; only the adapters are trained from now on.
        layers: how the names of the adapted layers end.
        rank: of the adapters.
        alpha: the scale times the rank, None for the rank.
        seed: of their initial weights.

    Raises:
        ModelError: if the network has no such layers, or the rank is too large for them.
    """
    check_rank(denoiser, layers, rank)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            config = LoraConfig(r=rank, lora_alpha=alpha or rank, target_modules=list(layers))
            inject_adapter_in_model(config, denoiser, _ADAPTER)
        except ValueError as error:
            raise ModelError(f"the denoiser has no place for adapters: {in_words(error)}") from None
    for name, weight in denoiser.named_parameters():
        weight.requires_grad_("lora_" in name)
        if weight.requires_grad:
            weight.data = weight.data.float()


def set_adapters(denoiser: nn.Module, *, on: bool) -> None:
    """Turn all adapters on or off."""
    for module in denoiser.modules():
        if isinstance(module, BaseTunerLayer):
            module.enable_adapters(on)


def adapted_layers(denoiser: nn.Module) -> list[tuple[str, LoraLinear]]:
    """Layers with a low-rank adapter, by name."""
    return [(name, module) for name, module in denoiser.named_modules() if isinstance(module, LoraLinear)]


@torch.no_grad()
def merge_adapters(denoiser: nn.Module) -> None:
    """Add each adapter to the weights of its layer, and put the plain layer back in its place."""
    for name, module in adapted_layers(denoiser):
        module.merge()
        denoiser.set_submodule(name, module.get_base_layer())


def check_rank(denoiser: nn.Module, layers: Sequence[str], rank: int) -> None:
    """Refuse adapters that could not be smaller than what they adapt.

    A matrix [m, n] has at most rank min(m, n): adapters beyond it add numbers to train, and nothing that can be
    learned.

    Raises:
        ModelError: if the rank is above the smallest dimension of the adapted layers.
    """
    sides = [
        side
        for name, module in denoiser.named_modules()
        if isinstance(module, nn.Linear) and name.endswith(tuple(f".{layer}" for layer in layers))
        for side in (module.in_features, module.out_features)
    ]
    if sides and rank > min(sides):
        raise ModelError(
            f"train.lora.rank {rank}: the smallest of the adapted layers has {min(sides)} dimensions\n"
            f"  expected: at most {min(sides)}"
        )


def check_rank_in(folder: Path, family: Family, rank: int) -> None:
    """As `check_rank`, for the denoiser of a model folder, whose weights are not read.

    Raises:
        ModelError: as `check_rank` does, or if the folder describes no such network.
    """
    kind = family.denoiser_class
    try:
        with torch.device("meta"):
            denoiser = kind.from_config(kind.load_config(folder / family.denoiser))  # type: ignore[attr-defined]
    except LOADING_ERRORS as error:
        raise ModelError(f"{folder / family.denoiser}: cannot be loaded: {reason(error)}") from None
    check_rank(denoiser, family.adapted_layers, rank)
