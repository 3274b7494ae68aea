"""`python -m tests.benchmarks.generate_speed`: cxrsynth against two plain diffusers loops, within one run.

The loops are what a user would write: `StableDiffusionPipeline`, the same model, prompts, sampler, steps, guidance and
batch, PNG into `webdataset.ShardWriter`; one in float32, the pipeline's default, and one in bfloat16. cxrsynth runs in
the precision that `generate` chooses on this machine, which the table names. All take turns, so that other work on the
machine slows each of them; it slows the loops more, whose threads wait for each other at every operation. With
`OMP_NUM_THREADS=1` nothing waits, and the ratio of CPU time holds beside other work.

Also printed: the share of CPU time that is not the network (with many more batches than cores these are busy
throughout, and it is the share of wall time too), and how far cxrsynth's pixels are from the same sampler in float32.
"""

import argparse
import io
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import webdataset
from diffusers import StableDiffusionPipeline
from rich.console import Console
from rich.table import Table as RichTable

from cxrsynth import console
from cxrsynth.diffusion.host_copy import HostCopy
from cxrsynth.diffusion.model import choose_precision, load_model
from cxrsynth.diffusion.noise import seeded_noise
from cxrsynth.diffusion.resolve import find_model, resolve_model
from cxrsynth.diffusion.sampler import make_scheduler, sample_images
from cxrsynth.generation import draw
from cxrsynth.generation.generate import generate
from cxrsynth.settings import GenerateSettings, Precision, SamplingSettings
from cxrsynth.shards.tar import read_members

_REPORTS = Path(__file__).resolve().parents[2] / "recipes" / "reports.csv"
_PLAIN = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_GOAL = 2.0  # times the images/s of the loop in bfloat16


@dataclass(frozen=True)
class Speed:
    """Of one loop over all images."""

    images_per_s: float
    cpu_s_per_image: float

    def __str__(self) -> str:
        return f"{self.images_per_s:.3f} images/s, {self.cpu_s_per_image:.2f} CPU s an image"


def main() -> None:
    """Print the ratio, the overhead and the pixel differences."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--images-per-report", type=int, default=2, help="of the example reports")
    parser.add_argument("--limit", type=int, default=24, help="example reports")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    speeds: dict[str, list[Speed]] = {name: [] for name in (*_PLAIN, "ours")}
    network = []
    with tempfile.TemporaryDirectory() as folder:
        prompts = _prompts_of(options, Path(folder) / "prompts")
        for round_index in range(options.rounds):
            for name, dtype in _PLAIN.items():
                speeds[name].append(_plain_loop(options, prompts, dtype, Path(folder) / f"{name}-{round_index}"))
                console.say(f"round {round_index + 1}, {name}: {speeds[name][-1]}")
            speed, share = _ours(options, Path(folder) / f"ours-{round_index}")
            speeds["ours"].append(speed)
            console.say(f"round {round_index + 1}, ours: {speed}")
            network.append(share)
    mean, largest = _pixel_difference(options)
    own = choose_precision(Precision.AUTO, torch.device("cpu")).value
    table = RichTable("measure", "value")
    for name, measured in speeds.items():
        what = f"cxrsynth generate in {own}" if name == "ours" else f"plain diffusers loop in {name}"
        table.add_row(f"{what}, images/s", ", ".join(f"{speed.images_per_s:.2f}" for speed in measured))
        table.add_row(f"{what}, CPU s an image", ", ".join(f"{speed.cpu_s_per_image:.2f}" for speed in measured))
    for name in _PLAIN:
        pairs = [*zip(speeds["ours"], speeds[name], strict=True)]
        ratios = [ours.images_per_s / plain.images_per_s for ours, plain in pairs]
        table.add_row(f"loop in {name}: ratio, round by round", _ratios(ratios, goal=name == "bfloat16"))
        ratios = [plain.cpu_s_per_image / ours.cpu_s_per_image for ours, plain in pairs]
        table.add_row(f"loop in {name}: ratio of CPU time", _ratios(ratios, goal=name == "bfloat16"))
    table.add_row("CPU time outside the network", ", ".join(f"{1 - v:.1%}" for v in network))
    table.add_row("pixel difference to float32, of 255: mean, max", f"{mean * 255:.2f}, {largest * 255:.1f}")
    table.add_row("threads", str(torch.get_num_threads()))
    Console().print(table)


def _ratios(ratios: list[float], *, goal: bool) -> str:
    """Round by round, with the median, and whether it reaches the goal."""
    median = statistics.median(ratios)
    said = f"{', '.join(f'{ratio:.2f}' for ratio in ratios)}; median {median:.2f}"
    return f"{said} (goal {_GOAL:g}: {'met' if median >= _GOAL else 'missed'})" if goal else said


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
        limit=options.limit,
        sampling=sampling,
    )


def _plain_loop(options: argparse.Namespace, prompts: list[str], dtype: torch.dtype, out: Path) -> Speed:
    """Of the pipeline, from the first batch to the closed shard."""
    out.mkdir()
    folder = find_model(options.model)
    pipeline = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=dtype, safety_checker=None)
    # The sampler of `generate`, which need not be the one that the folder names.
    model = load_model(resolve_model(options.model), device=torch.device("cpu"), precision=Precision.FP32)
    pipeline.scheduler = make_scheduler(model, model.spec.defaults.sampler, steps=options.steps)
    pipeline.set_progress_bar_config(disable=True)
    pipeline(prompts[:1], num_inference_steps=1)  # warm-up
    started, cpu = time.perf_counter(), time.process_time()
    with webdataset.ShardWriter(str(out / "plain-%06d.tar"), verbose=0) as writer:
        for first in range(0, len(prompts), options.batch_size):
            batch = prompts[first : first + options.batch_size]
            images = pipeline(batch, num_inference_steps=options.steps, guidance_scale=options.guidance).images
            for place, image in enumerate(images):
                writer.write({"__key__": f"{first + place:06d}", "png": image})
    wall, cpu = time.perf_counter() - started, time.process_time() - cpu
    return Speed(len(prompts) / wall, cpu / len(prompts))


def _ours(options: argparse.Namespace, out: Path) -> tuple[Speed, float]:
    """Speed from the first batch to the manifest, and the share of CPU time spent in the networks."""
    network: list[float] = []  # CPU seconds of each batch; list.append is atomic
    began: list[tuple[float, float]] = []
    original = draw.start_images

    def timed(*args: object, **kwargs: object) -> HostCopy:
        began.append((time.perf_counter(), time.process_time()))
        before = time.thread_time()
        images = original(*args, **kwargs)  # type: ignore[arg-type]
        network.append(time.thread_time() - before)
        return images

    draw.start_images = timed  # type: ignore[assignment]
    try:
        done = generate(_settings(options, out, steps=options.steps))
    finally:
        draw.start_images = original
    wall, cpu = time.perf_counter() - began[0][0], time.process_time() - began[0][1]
    return Speed(done.samples / wall, cpu / done.samples), sum(network) / cpu


def _pixel_difference(options: argparse.Namespace) -> tuple[float, float]:
    """Mean and largest absolute difference of images in [0, 1] between the default precision and float32."""
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
                sampler=model.spec.defaults.sampler,
                steps=options.steps,
                guidance=options.guidance,
            )
        )
    difference = np.abs(images[0].numpy() - images[1].numpy())
    return float(difference.mean()), float(difference.max())


if __name__ == "__main__":
    main()
