"""`python -m tests.benchmarks.encode_share`: processor time an image takes to draw with nano, and to encode.

Encoding is measured in every format, of the images that nano draws and of the same enlarged to 512 x 512, and beside it
what is left to the process that writes where worker processes encode: sending images and receiving their members.
Times are processor time, the least of several rounds, so that other work on the machine disturbs little. The ratio is
that of encoding as PNG to drawing.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.nn.functional import interpolate

from cxrsynth.diffusion.model import DiffusionModel, choose_precision, load_model
from cxrsynth.diffusion.noise import seeded_noise
from cxrsynth.diffusion.resolve import resolve_model
from cxrsynth.diffusion.sampler import sample_images
from cxrsynth.runtime.worker_processes import WorkerProcesses
from cxrsynth.settings import ImageFormat, Precision, ShardFormat, ShardSettings
from cxrsynth.shards.encode import DatasetIdentity, Encoder
from cxrsynth.shards.sample import Sample

_LARGE = 512  # pixels, as Stable Diffusion 1.5's
_FORMATS = {
    "PNG": ShardSettings(),
    "PNG, 16 bits": ShardSettings(image_format=ImageFormat.PNG16),
    "JPG": ShardSettings(image_format=ImageFormat.JPG),
    "DICOM": ShardSettings(format=ShardFormat.DICOM),
}


def draw(model: DiffusionModel, count: int) -> torch.Tensor:
    """Images [B, 1, H, W] of the model at its own settings."""
    noise = torch.stack([seeded_noise(model.latent_shape, 0, f"{number}-00") for number in range(count)])
    defaults = model.spec.defaults
    prompts = [model.any_prompt] * count
    return sample_images(
        model, prompts, noise, sampler=defaults.sampler, steps=defaults.steps, guidance=defaults.guidance
    )


def as_samples(images: torch.Tensor) -> list[Sample]:
    """Samples as `generate` hands them on, with a JSON member of about the usual size."""
    metadata = {f"key_{number}": "a value of the metadata" for number in range(30)}
    return [Sample(f"{n:020d}-00", f"{n:020d}", 0, image[0].numpy(), metadata) for n, image in enumerate(images)]


def cpu_ms(work: Callable[[], object], images: int, *, rounds: int) -> float:
    """Processor time of this process an image, in milliseconds: the least of several rounds."""
    taken = []
    for _ in range(rounds):
        started = time.process_time()
        work()
        taken.append(time.process_time() - started)
    return min(taken) / images * 1e3


def main() -> None:
    """Print the table and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8, help="drawn as two batches")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cpu = torch.device("cpu")
    model = load_model(resolve_model("nano"), device=cpu, precision=choose_precision(Precision.AUTO, cpu))
    drawing = cpu_ms(lambda: draw(model, options.images // 2), options.images // 2, rounds=options.rounds)
    small = draw(model, options.images)
    large = interpolate(small, size=(_LARGE, _LARGE), mode="bicubic").clamp(0, 1)
    sizes = {f"{images.shape[-1]} pixels": as_samples(images) for images in (small, large)}
    table = Table("processor time an image, ms", *sizes)
    table.add_row(f"nano draws it ({model.precision.value})", f"{drawing:.1f}", "")
    encoding = {}
    for name, settings in _FORMATS.items():
        encoder = Encoder(settings, DatasetIdentity("seed", "nano", "0" * 64, "0"))
        cells = []
        for size, samples in sizes.items():
            taken = cpu_ms(lambda e=encoder, s=samples: e.encode(s), len(samples), rounds=options.rounds)  # type: ignore[misc]
            encoding[name, size] = taken
            cells.append(f"{taken:.2f}")
        table.add_row(f"encoded as {name}", *cells)
    encoder = Encoder(_FORMATS["PNG"], DatasetIdentity("seed", "nano", "0" * 64, "0"))
    cells = []
    with WorkerProcesses(1) as workers:
        for samples in sizes.values():

            def send(samples: list[Sample] = samples) -> None:
                for _ in workers.map_in_order(encoder.encode, [(None, samples)]):
                    pass

            send()  # the first starts the worker
            cells.append(f"{cpu_ms(send, len(samples), rounds=options.rounds):.2f}")
    table.add_row("sent to a worker as PNG, and received", *cells)
    console = Console()
    console.print(table)
    first = next(iter(sizes))
    console.print(f"bytes of a PNG: {np.mean([len(m['png']) for m in encoder.encode(sizes[first])]):,.0f}")
    console.print(f"at {first}, ratio of encoding to drawing: {encoding['PNG', first] / drawing:.4f}")


if __name__ == "__main__":
    main()
