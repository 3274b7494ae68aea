"""`python -m tests.benchmarks.network_share`: the speed of nano's UNet against the machine's matmul rate.

Floating-point operations are counted by torch, for the UNet as `generate` loads it. A batch of images is two rows each,
with and without the prompt. They are set against two rates of `torch.matmul` in the same type: that of one large
product, and that at the UNet's own shapes (each convolution and linear layer as one product, of rows times inputs times
outputs); and against the large product in float32, since not every machine that multiplies bfloat16 does it faster.

As in `generate`, every core has a batch of its own. Times are CPU time, the least of many that take turns, so that
other work on the machine disturbs little; on a machine that does nothing else, they are the time on the clock.
"""

import argparse
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from rich.console import Console
from rich.table import Table as RichTable
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cxrsynth.diffusion.model import choose_precision, load_model
from cxrsynth.diffusion.resolve import resolve_model
from cxrsynth.settings import Precision

_LARGE = 2048  # rows and columns of the large matrices
_BATCHES = (1, 4, 8, 16)  # images

Inputs = tuple[Tensor, Tensor, Tensor]
Shape = tuple[int, int, int]  # M, K, N of a product [M, K] @ [K, N]


class Network:
    """The UNet of a model on the CPU, and inputs for it."""

    def __init__(self, name: str, *, precision: Precision = Precision.AUTO) -> None:
        """Load the model as `generate` does."""
        cpu = torch.device("cpu")
        precision = choose_precision(precision, cpu)
        self.model = load_model(resolve_model(name), device=cpu, precision=precision)
        self.unet: nn.Module = self.model.denoiser
        self.dtype = self.model.dtype
        self.text = self.model.encode([self.model.any_prompt])[0].text  # [1, L, D]

    def inputs(self, images: int) -> Inputs:
        """Latents [2B, C, h, w] in channels_last, a timestep and texts [2B, L, D], always the same."""
        generator = torch.Generator().manual_seed(0)
        latents = torch.randn(2 * images, *self.model.latent_shape, generator=generator)
        shown = latents.to(self.dtype, memory_format=torch.channels_last)
        return shown, torch.tensor(500), self.text.expand(2 * images, -1, -1).contiguous()


def predict(unet: nn.Module, inputs: Inputs) -> Tensor:
    """The UNet's prediction, [2B, C, h, w]."""
    with torch.inference_mode():
        prediction: Tensor = unet(*inputs, return_dict=False)[0]
        return prediction


def least_cpu_s(works: Mapping[str, Callable[[], object]], *, repeats: int, cores: int = 1) -> dict[str, float]:
    """CPU seconds of each work on one core, the least of `repeats` after a warm-up; they take turns.

    With several cores, each does the same work at the same time, in a thread of its own.
    """
    best = dict.fromkeys(works, math.inf)
    with ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for repeat in range(repeats + 1):
            for name, work in works.items():
                taken = min(pool.map(_cpu_s, [work] * cores))
                best[name] = min(best[name], taken) if repeat else math.inf
    return best


def _cpu_s(work: Callable[[], object]) -> float:
    started = time.thread_time()
    work()
    return time.thread_time() - started


def flops(unet: nn.Module, inputs: Inputs) -> int:
    """Floating-point operations of one prediction: two for each product that is added."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():  # does not see inside inference mode
        unet(*inputs, return_dict=False)
    return int(counter.get_total_flops())


def product_shapes(unet: nn.Module, inputs: Inputs) -> Counter[Shape]:
    """How often each matrix product occurs, with convolutions as the products that they amount to."""
    shapes: Counter[Shape] = Counter()

    def seen(layer: nn.Module, _: object, output: Tensor) -> None:
        inner = layer.weight[0].numel()  # inputs times the kernel's positions
        outputs = layer.weight.shape[0]
        shapes[output.numel() // outputs, inner, outputs] += 1

    layers = [layer for layer in unet.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(seen) for layer in layers]
    try:
        predict(unet, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return shapes


def product(shape: Shape, dtype: torch.dtype) -> Callable[[], Tensor]:
    """One matrix product of random numbers."""
    m, k, n = shape
    a, b = torch.randn(m, k).to(dtype), torch.randn(k, n).to(dtype)
    return lambda: a @ b


def main() -> None:
    """Print the share of the matmul rate at each batch size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--batches", type=int, nargs="+", default=_BATCHES, help="images")
    parser.add_argument(
        "--precision", default=Precision.AUTO.value, choices=[Precision.BF16.value, Precision.FP32.value]
    )
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    cores = torch.get_num_threads()
    network = Network(options.model, precision=Precision(options.precision))
    square = (_LARGE, _LARGE, _LARGE)
    large = {"large": product(square, network.dtype), "large in float32": product(square, torch.float32)}
    table = RichTable(*("images", "ms an image and step", "GFLOP/s", "of a large matmul", "of matmuls at its shapes"))
    for images in options.batches:
        inputs = network.inputs(images)
        counted = flops(network.unet, inputs)
        shapes = product_shapes(network.unet, inputs)
        own = {f"{shape}": product(shape, network.dtype) for shape in shapes}
        unet = partial(predict, network.unet, inputs)
        taken = least_cpu_s({"unet": unet, **large, **own}, repeats=options.repeats, cores=cores)
        in_products = sum(2 * math.prod(shape) * count for shape, count in shapes.items())
        at_own = cores * in_products / sum(taken[f"{shape}"] * count for shape, count in shapes.items())
        at_large, at_float32 = (cores * 2 * _LARGE**3 / taken[name] for name in large)
        rate = cores * counted / taken["unet"]
        table.add_row(
            str(images),
            f"{taken['unet'] / images / cores * 1e3:.1f}",
            f"{rate / 1e9:.0f}",
            f"ratio {rate / at_large:.2f} of {at_large / 1e9:.0f} ({at_float32 / 1e9:.0f} in float32)",
            f"{rate / at_own:.2f} of {at_own / 1e9:.0f}",
        )
    console = Console(width=140)
    console.print(table)
    console.print(
        f"{counted / images / 1e9:.2f} GFLOP an image and step, {in_products / counted:.1%} of them in convolutions and"
        f" linear layers; {network.dtype}; {cores} cores, one batch on each"
    )


if __name__ == "__main__":
    main()
