"""`python -m tests.benchmarks.network_tried`: what was tried to make nano's UNet faster on a CPU.

Other types and memory formats, attention without the fused kernel or with fused projections, linear layers in int8, and
`torch.compile`. Each variant and the UNet as `generate` loads it take turns on the same inputs, on one core as in
`generate`, and the ratio is that of the least CPU times, so that other work on the machine disturbs little.
`torch.compile` needs a C++ compiler; set `TORCHINDUCTOR_CACHE_DIR` to an empty folder and run the command twice for
its first pass without and with a cache.
"""

import argparse
import copy
import time
import warnings
from collections.abc import Iterator
from functools import partial

import torch
from diffusers.models.attention_processor import AttnProcessor
from rich.console import Console
from rich.table import Table as RichTable
from torch import Tensor, nn

from cxrsynth.console import say
from cxrsynth.settings import Precision
from tests.benchmarks.network_share import Inputs, Network, least_cpu_s, predict


def main() -> None:
    """Print each variant's time beside the UNet's, and how far its predictions are from it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--images", type=int, default=8, help="of a batch")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--only", default="", help="variants whose name contains this")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    torch.set_num_threads(1)
    network, in_float32 = Network(options.model), Network(options.model, precision=Precision.FP32)
    inputs = network.inputs(options.images)
    own = predict(network.unet, inputs).float()
    exact = predict(in_float32.unet, in_float32.inputs(options.images))
    table = RichTable("tried", "ms a pass", "times as fast", "largest difference", "first pass")
    for name, unet, given in _variants(network, in_float32, options.images):
        if options.only not in name:
            continue
        started = time.process_time(), time.perf_counter()
        changed = predict(unet, given).float()
        cpu_s, wall_s = time.process_time() - started[0], time.perf_counter() - started[1]
        works = {"own": partial(predict, network.unet, inputs), "changed": partial(predict, unet, given)}
        taken = least_cpu_s(works, repeats=options.repeats)
        difference, error = (float((changed - other).abs().max() / exact.std()) for other in (own, exact))
        row = (
            name,
            f"{taken['changed'] * 1e3:.1f} beside {taken['own'] * 1e3:.1f}",
            f"ratio {taken['own'] / taken['changed']:.2f}",
            f"{difference:.3f}, {error:.3f}",
            f"{wall_s:.1f} s ({cpu_s:.1f} s of CPU)",
        )
        table.add_row(*row)
        say(", ".join(row))  # the next one may take minutes
    error = float((own - exact).abs().max() / exact.std())
    console = Console(width=140)
    console.print(table)
    console.print(
        "differences in standard deviations of the prediction: from the UNet as it is, and from it in float32; the UNet"
        f" as it is ({network.dtype}) is {error:.3f} from float32; one core"
    )


def _variants(network: Network, in_float32: Network, images: int) -> Iterator[tuple[str, nn.Module, Inputs]]:
    """Name, network and inputs of each variant, made when it is its turn."""
    inputs, inputs32 = network.inputs(images), in_float32.inputs(images)
    yield "float32", in_float32.unet, inputs32
    yield "channels_last, small maps too", _without_hooks(network.unet), inputs
    plain = _without_hooks(network.unet).to(memory_format=torch.contiguous_format)
    yield "contiguous", plain, (inputs[0].contiguous(), *inputs[1:])
    unfused = copy.deepcopy(network.unet)
    unfused.set_attn_processor(AttnProcessor())
    yield "attention without the fused kernel", unfused, inputs
    fused = copy.deepcopy(network.unet)
    fused.fuse_qkv_projections()
    yield "projections of attention fused", fused, inputs
    yield "linear layers in int8, the rest as it is", _int8(copy.deepcopy(network.unet)), inputs
    yield "linear layers in int8, the rest in float32", _int8(copy.deepcopy(in_float32.unet)), inputs32
    yield "torch.compile", torch.compile(copy.deepcopy(network.unet)), inputs
    yield "torch.compile, channels_last, small maps too", torch.compile(_without_hooks(network.unet)), inputs
    yield (
        "torch.compile, max-autotune",
        torch.compile(copy.deepcopy(network.unet), mode="max-autotune-no-cudagraphs"),
        inputs,
    )


def _without_hooks(unet: nn.Module) -> nn.Module:
    """A copy whose small maps are not made contiguous for group norm (`cxrsynth.diffusion.speed`)."""
    copied = copy.deepcopy(unet)
    for module in copied.modules():
        module._forward_pre_hooks.clear()
        module._forward_hooks.clear()
    return copied


class _Int8Linear(nn.Module):
    """A linear layer with int8 weights, and inputs quantized as they come; they are float32 on the way in."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        alone = nn.Sequential(copy.deepcopy(linear).float())
        self.quantized = torch.ao.quantization.quantize_dynamic(alone, {nn.Linear}, dtype=torch.qint8)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.quantized(inputs.float()).to(inputs.dtype)
        return outputs


def _int8(unet: nn.Module) -> nn.Module:
    """The same network with all its linear layers in int8."""
    for module in list(unet.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, _Int8Linear(child))
    return unet


if __name__ == "__main__":
    main()
