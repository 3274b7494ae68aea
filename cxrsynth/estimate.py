"""What a run would make, how much room it takes and how long it lasts: measured on one batch, not guessed."""

import time
from datetime import timedelta

import torch

from cxrsynth.diffusion.model import DiffusionModel
from cxrsynth.diffusion.parallel import SamplingPool
from cxrsynth.diffusion.sampler import sample_images
from cxrsynth.run import Run
from cxrsynth.seeds import sample_noise
from cxrsynth.settings import ImageFormat, ShardFormat
from cxrsynth.shards.plan import shard_count

# Bytes per pixel of nano's 256-pixel films as encoded (measured); DICOM is uncompressed, 12 bits in 16.
_BYTES_PER_PIXEL = {ImageFormat.PNG: 0.6, ImageFormat.JPG: 0.25, ImageFormat.PNG16: 1.7}
_BYTES_BESIDE_IMAGE = 5_000  # tar headers and the JSON member
_PROBE_STEPS = 3


def describe(run: Run, reports: int, rejected: int) -> str:
    """The dry run's answer, as text."""
    settings = run.settings
    images = reports * settings.images_per_report
    shards = shard_count(reports, images_per_report=settings.images_per_report, size=settings.shards.size)
    model = run.load_model()
    threads = settings.sampling.threads_per_batch
    with SamplingPool(model, batch_size=run.batch_size, threads_per_batch=threads) as pool:
        per_image_s = _seconds_per_image(run, model, pool)
    duration = timedelta(seconds=round(images * per_image_s / run.processes.count))
    size_bytes = images * _bytes_per_image(run, model.image_size)
    return (
        f"would make {images} images of {model.image_size} x {model.image_size} pixels from {reports} reports"
        f" ({rejected} rows rejected)\n"
        f"  shards: {shards}, about {size_bytes / 1e6:.1f} MB\n"
        f"  model: {model.name}, {run.steps} steps, guidance {run.guidance:g}, {settings.sampling.sampler.value},"
        f" {model.precision.value} on {model.device.type}\n"
        f"  time: about {duration} ({1 / per_image_s:.2f} images/s a process, {run.processes.count} processes,"
        f" {pool.batches} batches of {run.batch_size} at once)"
    )


def _seconds_per_image(run: Run, model: DiffusionModel, pool: SamplingPool) -> float:
    """From a full batch on every thread of the pool, at one step and at `_PROBE_STEPS` steps, after a warm-up."""
    batch = run.batch_size
    noise = torch.stack([sample_noise(run.settings.seed, f"probe-{i}", model.latent_shape) for i in range(batch)])

    def sample(steps: int) -> None:
        sample_images(
            model,
            [""] * batch,
            noise,
            sampler=run.settings.sampling.sampler,
            steps=steps,
            guidance=run.guidance,
        )

    def timed(steps: int) -> float:
        started = time.perf_counter()
        for _ in pool.map_in_order(sample, [steps] * pool.batches):
            pass
        return time.perf_counter() - started

    timed(1)
    one, more = timed(1), timed(_PROBE_STEPS)
    per_step = max(0.0, (more - one) / (_PROBE_STEPS - 1))
    return (one + (run.steps - 1) * per_step) / (batch * pool.batches)


def _bytes_per_image(run: Run, image_size: int) -> float:
    shards = run.settings.shards
    per_pixel = 2.0 if shards.format is ShardFormat.DICOM else _BYTES_PER_PIXEL[shards.image_format]
    return image_size**2 * per_pixel + _BYTES_BESIDE_IMAGE
