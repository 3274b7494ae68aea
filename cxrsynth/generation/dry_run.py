"""What a run would make, how much room it takes and how long it lasts: measured, not guessed."""

import math
import time
from datetime import timedelta

import torch

from cxrsynth.console import counted
from cxrsynth.diffusion.compiled import compile_denoiser
from cxrsynth.diffusion.model import DiffusionModel
from cxrsynth.diffusion.noise import seeded_noise
from cxrsynth.diffusion.parallel import SamplingPool
from cxrsynth.diffusion.sampler import make_scheduler, sample_images
from cxrsynth.errors import ModelError
from cxrsynth.generation.batches import prompt_builder_of
from cxrsynth.generation.plan import GenerateRun
from cxrsynth.generation.rows import Rows
from cxrsynth.reports.table.summary import describe_columns
from cxrsynth.runtime.memory import LOADING_ADVICE, memory_advice
from cxrsynth.settings import ImageFormat, ShardFormat
from cxrsynth.shards.plan import shard_count

# Bytes per pixel of nano's 256-pixel images as encoded (measured); DICOM is uncompressed, 12 bits in 16.
_BYTES_PER_PIXEL = {ImageFormat.PNG: 0.6, ImageFormat.JPG: 0.25, ImageFormat.PNG16: 1.7}
_BYTES_BESIDE_IMAGE = 5_000  # tar headers and the JSON member
_PROBE_CALLS = 3


def describe(run: GenerateRun, rows: Rows) -> tuple[str, str]:
    """What the dry run prints, and the prompt of the first report, as the model would get it.

    The prompt may hold words of the report: it is no part of what a log may keep.
    """
    settings = run.settings
    reports, rejected = rows.usable, rows.rejected
    images = reports * settings.images_per_report
    shards = shard_count(reports, images_per_report=settings.images_per_report, size=settings.shards.size)
    with memory_advice(LOADING_ADVICE):
        model = run.load_model()
    threads = settings.sampling.threads_per_batch
    # A compiled network sees no smaller batch.
    size = run.batch_size if settings.sampling.compiled else min(run.batch_size, images)
    parts = 1 if settings.part is None else settings.part.count
    workers = parts * run.processes.count
    # Shards are made whole: who makes the first one makes the most.
    batches = sum(math.ceil(count / run.batch_size) for count in _shard_sizes(images, settings.shards.size, workers))
    with SamplingPool(model, batch_size=run.batch_size, threads_per_batch=threads) as pool:
        compiled = _compiled(run, model, pool)
        at_once = min(pool.batches, batches)
        round_s = _seconds_per_round(run, model, pool, batches=at_once, size=size)
    duration_s = math.ceil(batches / at_once) * round_s
    speed = sum(_shard_sizes(images, settings.shards.size, parts)) / duration_s
    prompt = prompt_builder_of(run, model).build(next(rows.reports())).prompt
    size_bytes = images * _bytes_per_image(run, model.image_shape)
    # Tars are removed once all files of the file-set are there.
    peak = ", twice that while it is written" if settings.shards.unpacked else ""
    estimate = (
        f"would make {counted(images, 'image')} of {model.image_shape[1]} x {model.image_shape[0]} pixels"
        f" from {counted(reports, 'report')} ({counted(rejected, 'row')} rejected)\n"
        f"  columns: {describe_columns(run.table)}\n"
        f"  shards: {shards}, about {size_bytes / 1e6:.1f} MB{peak}{_part(run, shards)}\n"
        f"  model: {model.name}, {counted(run.steps, 'step')}, guidance {run.guidance:g}, {run.sampler.value},"
        f" {model.precision.value} on {model.device.type}\n"
        f"  time: about {timedelta(seconds=round(duration_s))}{'' if parts == 1 else ' for each part'}"
        f" ({speed:.2f} images/s,"
        f" {counted(run.processes.count, 'process', 'processes')}, {counted(at_once, 'batch', 'batches')} of"
        f" {run.batch_size} at once{'' if run.processes.count == 1 else ' in each'})"
        + _idle(shards, workers)
        + compiled
        + _about_attempts(run)
    )
    return estimate, prompt


def _compiled(run: GenerateRun, model: DiffusionModel, pool: SamplingPool) -> str:
    if not run.settings.sampling.compiled:
        return ""
    seconds = compile_denoiser(
        model, pool, batch_size=run.batch_size, sampler=run.sampler, steps=run.steps, guidance=run.guidance
    )
    return f"\n  before that, compiling: {seconds:.0f} s here, less once torch has it in its cache"


def _about_attempts(run: GenerateRun) -> str:
    accept = run.settings.accept
    if accept is None:
        return ""
    return (
        f"\n  time of one attempt for each image, without judging; images that fail take up to {accept.attempts} in all"
    )


def _part(run: GenerateRun, shards: int) -> str:
    part = run.settings.part
    if part is None:
        return ""
    return f"; part {part}: {counted(sum(part.has(index) for index in range(shards)), 'shard')}"


def _shard_sizes(images: int, shard_size: int, every: int) -> list[int]:
    """How many images each of the first, the `every`-th after it, and so on of all shards holds."""
    return [min(shard_size, images - first) for first in range(0, images, shard_size * every)]


def _idle(shards: int, workers: int) -> str:
    """What to say where some would wait for others."""
    if shards >= workers:
        return ""
    return (
        f"\n  {workers - shards} of {workers} parts or processes would have no shard to make: a smaller --shard-size"
        " divides the work further"
    )


def _seconds_per_round(
    run: GenerateRun, model: DiffusionModel, pool: SamplingPool, *, batches: int, size: int
) -> float:
    """Time of `batches` batches side by side, from 1 and from `_PROBE_CALLS` calls of the network after a warm-up.

    Some samplers call it more than once a step, and some take no other number of steps than that asked for.
    """
    noise = torch.stack([seeded_noise(model.latent_shape, run.settings.seed, f"probe-{i}") for i in range(size)])
    calls = len(make_scheduler(model, run.sampler, steps=run.steps).timesteps)

    def sample(only: int) -> None:
        images = sample_images(
            model,
            [model.any_prompt] * size,
            noise,
            sampler=run.sampler,
            steps=run.steps,
            guidance=run.guidance,
            calls=only,
            stopped=pool.stopped,
        )
        if not images.isfinite().all():
            raise ModelError(
                f"{run.settings.model}: its images are not finite ({model.precision.value} on {model.device.type})\n"
                "  its weights may be damaged; else try --precision fp32, or another --guidance"
            )

    def timed(only: int) -> float:
        started = time.perf_counter()
        for _ in pool.map_in_order(sample, [only] * batches):
            pass
        return time.perf_counter() - started

    timed(1)
    one, more = timed(1), timed(_PROBE_CALLS)
    return one + (calls - 1) * max(0.0, (more - one) / (_PROBE_CALLS - 1))


def _bytes_per_image(run: GenerateRun, image_shape: tuple[int, int]) -> float:
    shards = run.settings.shards
    per_pixel = 2.0 if shards.format is ShardFormat.DICOM else _BYTES_PER_PIXEL[shards.image_format]
    return math.prod(image_shape) * per_pixel + _BYTES_BESIDE_IMAGE
