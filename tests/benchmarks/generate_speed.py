"""`python -m tests.benchmarks.generate_speed`: cxrsynth against a plain diffusers loop, within one run.

The loop is what a user would write: `StableDiffusionPipeline` at its defaults (float32), the same model, prompts,
steps, guidance and batch, PNG into `webdataset.ShardWriter`. Also printed: the share of CPU time that is not the
network (with many more batches than cores these are busy throughout, and it is the share of wall time too), and how far
cxrsynth's pixels are from the same sampler in float32.
"""

import argparse
import io
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import webdataset
from diffusers import StableDiffusionPipeline
from rich.console import Console
from rich.table import Table as RichTable

from cxrsynth.diffusion.model import load_model
from cxrsynth.diffusion.noise import seeded_noise
from cxrsynth.diffusion.resolve import find_model, resolve_model
from cxrsynth.diffusion.sampler import sample_images
from cxrsynth.generation import draw
from cxrsynth.generation.generate import generate
from cxrsynth.settings import GenerateSettings, Precision, Sampler, SamplingSettings
from cxrsynth.shards.tar import read_members

_REPORTS = Path(__file__).parents[2] / "recipes" / "reports.csv"


def main() -> None:
    """Print the ratio, the overhead and the pixel differences."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--images-per-report", type=int, default=2, help="of the 24 example reports")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    plain, ours, network = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for round_index in range(options.rounds):
            plain.append(_plain_loop(options, Path(folder) / f"plain-{round_index}"))
            images_per_s, share = _ours(options, Path(folder) / f"ours-{round_index}")
            ours.append(images_per_s)
            network.append(share)
    mean, largest = _pixel_difference(options)
    table = RichTable("measure", "value")
    table.add_row("plain diffusers loop, images/s", ", ".join(f"{v:.2f}" for v in plain))
    table.add_row("cxrsynth generate, images/s", ", ".join(f"{v:.2f}" for v in ours))
    table.add_row("ratio, round by round", ", ".join(f"{a / b:.2f}" for a, b in zip(ours, plain, strict=True)))
    table.add_row("CPU time outside the network", ", ".join(f"{1 - v:.1%}" for v in network))
    table.add_row("pixel difference to float32, of 255: mean, max", f"{mean * 255:.2f}, {largest * 255:.1f}")
    table.add_row("threads", str(torch.get_num_threads()))
    Console().print(table)


def _prompts_of(options: argparse.Namespace, out: Path) -> list[str]:
    """The prompts cxrsynth itself asks for the example reports."""
    import json

    settings = _settings(options, out, steps=1)
    generate(settings)
    members = (m for shard in sorted(out.glob("*.tar")) for m in read_members(io.BytesIO(shard.read_bytes())))
    return [json.loads(content)["prompt"] for name, content in members if name.endswith(".json")]


def _settings(options: argparse.Namespace, out: Path, *, steps: int) -> GenerateSettings:
    sampling = SamplingSettings(steps=steps, guidance=options.guidance, batch_size=options.batch_size)
    return GenerateSettings(
        reports=_REPORTS,
        out=out,
        model=options.model,
        images_per_report=options.images_per_report,
        sampling=sampling,
    )


def _plain_loop(options: argparse.Namespace, out: Path) -> float:
    prompts = _prompts_of(options, out / "prompts")
    pipeline = StableDiffusionPipeline.from_pretrained(find_model(options.model), safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    pipeline(prompts[:1], num_inference_steps=1)  # warm-up
    started = time.perf_counter()
    with webdataset.ShardWriter(str(out / "plain-%06d.tar"), verbose=0) as writer:
        for first in range(0, len(prompts), options.batch_size):
            batch = prompts[first : first + options.batch_size]
            images = pipeline(batch, num_inference_steps=options.steps, guidance_scale=options.guidance).images
            for place, image in enumerate(images):
                writer.write({"__key__": f"{first + place:06d}", "png": image})
    return len(prompts) / (time.perf_counter() - started)


def _ours(options: argparse.Namespace, out: Path) -> tuple[float, float]:
    """Images/s from first batch to manifest, and the share of CPU time spent in the networks."""
    network: list[float] = []  # CPU seconds of each batch; list.append is atomic
    began: list[tuple[float, float]] = []
    original = draw.sample_images

    def timed(*args: object, **kwargs: object) -> torch.Tensor:
        began.append((time.perf_counter(), time.process_time()))
        before = time.thread_time()
        images = original(*args, **kwargs)  # type: ignore[arg-type]
        network.append(time.thread_time() - before)
        return images

    draw.sample_images = timed  # type: ignore[assignment]
    try:
        done = generate(_settings(options, out, steps=options.steps))
    finally:
        draw.sample_images = original
    wall, cpu = time.perf_counter() - began[0][0], time.process_time() - began[0][1]
    return done.samples / wall, sum(network) / cpu


def _pixel_difference(options: argparse.Namespace) -> tuple[float, float]:
    """Mean and largest absolute difference of images in [0, 1] between the default precision and float32."""
    from cxrsynth.diffusion.model import choose_precision

    device = torch.device("cpu")
    images = []
    for precision in (choose_precision(Precision.AUTO, device), Precision.FP32):
        model = load_model(resolve_model(options.model), device=device, precision=precision)
        noise = torch.stack([seeded_noise(model.latent_shape, 0, f"benchmark-{i}") for i in range(8)])
        images.append(
            sample_images(
                model,
                ["PA view. Adult woman. Normal chest."] * 8,
                noise,
                sampler=Sampler.DDIM,
                steps=options.steps,
                guidance=options.guidance,
            )
        )
    difference = np.abs(images[0].numpy() - images[1].numpy())
    return float(difference.mean()), float(difference.max())


if __name__ == "__main__":
    main()
