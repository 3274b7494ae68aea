"""Faster sampling with the same results."""

import torch
from torch import Tensor, nn

# Below this many positions, ATen's group_norm_kernel.cpp takes another path for channels_last.
_FEATURE_MAP_THRESHOLD = 1024


def normalize_small_maps_contiguously(network: nn.Module) -> None:
    """Make small channels_last maps contiguous for torch's CPU group norm, which is 4 to 7 times slower on them."""

    def before(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        (maps,) = inputs
        return (maps.contiguous(),) if _is_small(maps) else inputs

    def after(_: nn.Module, __: tuple[Tensor], output: Tensor) -> Tensor:
        return output.contiguous(memory_format=torch.channels_last) if _is_small(output) else output

    for module in network.modules():
        if isinstance(module, nn.GroupNorm):
            module.register_forward_pre_hook(before)
            module.register_forward_hook(after)


def _is_small(maps: Tensor) -> bool:
    return maps.dim() == 4 and maps.shape[2] * maps.shape[3] < _FEATURE_MAP_THRESHOLD
