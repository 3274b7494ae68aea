"""Training loop of the reward networks: one network on one core, so that two families train in parallel."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from cxrsynth.nano.build.config import FitSettings
from cxrsynth.nano.build.training import (
    forward_context,
    load_state,
    log,
    save_state,
    step_generator,
    warmup_stable_decay,
)
from cxrsynth.runtime.warps import compose, warp_matrices

_INITIALIZING = threading.Lock()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Weights initialized inside depend on `seed` only, even if another thread initializes others at the same time."""
    with _INITIALIZING:
        torch.manual_seed(seed)
        yield


def teaching_thread() -> ThreadPoolExecutor:
    """Where teachers work on a batch while the network that learns from them does, each on one core."""
    return ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,))


def fit(
    network: nn.Module,
    loss: Callable[[torch.Generator], Tensor],
    checkpoint: Path,
    *,
    settings: FitSettings,
    seed: int,
    save_every: int,
) -> None:
    """Minimize `loss`, which samples its own batch with the step's generator; resumes from `checkpoint`."""
    network.train()
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=settings.learning_rate, betas=(0.9, 0.99), weight_decay=settings.weight_decay
    )
    first = load_state(checkpoint, optimizer=optimizer, network=network)
    started, total = time.monotonic(), 0.0
    for step in range(first, settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * warmup_stable_decay(step, steps=settings.steps)
        with forward_context():
            value = loss(step_generator(seed, step))
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        total += value.item()
        if (step + 1) % 100 == 0:
            rate = (step + 1 - first) * settings.batch_size / (time.monotonic() - started)
            log.info("%s %d/%d loss %.4f, %.0f images/s", checkpoint.stem, step + 1, settings.steps, total / 100, rate)
            total = 0.0
        if (step + 1) % save_every == 0 or step + 1 == settings.steps:
            save_state(checkpoint, step=step + 1, optimizer=optimizer, network=network)
    network.eval()


def augmented(
    pixels: Tensor, frames: Tensor, settings: FitSettings, rng: torch.Generator, *, outside: str = "zeros"
) -> Tensor:
    """Augment images: shift, zoom, rotation, gamma, noise, a blank rectangle, the blur of 64 pixels for half of them.

    The blur keeps a network from recognizing the source of an image, and so its findings, by sharpness.

    Args:
        pixels: uint8 [B, 1, H, W].
        frames: matrices [B, 2, 3], the part of each image that is shown.
        settings: extent of the augmentation, and output size.
        rng: random generator of the step.
        outside: what lies beyond the edges, see `resampled`.

    Returns:
        float32 [B, 1, size, size] in [0, 1].
    """
    count = len(pixels)
    reach = torch.tensor([settings.shift, settings.shift, settings.zoom, settings.zoom, settings.rotation_rad])
    warps = (torch.rand(count, 5, generator=rng) * 2 - 1) * reach
    images = resampled(pixels, compose(frames, warp_matrices(warps)), settings.size, outside=outside)
    blurred = nn.functional.interpolate(
        nn.functional.interpolate(images, (64, 64), mode="bilinear", antialias=True),
        (settings.size, settings.size),
        mode="bicubic",
    )
    images = torch.where(torch.rand(count, 1, 1, 1, generator=rng) < 0.5, blurred, images)
    gamma = torch.exp((torch.rand(count, 1, 1, 1, generator=rng) * 2 - 1) * settings.gamma)
    images = images.clamp(1e-3, 1.0) ** gamma
    if settings.noise:
        std = torch.rand(count, 1, 1, 1, generator=rng) * settings.noise
        images = images + torch.randn(images.shape, generator=rng) * std
    if settings.erase:
        images = torch.where(_rectangles(count, settings, rng), images.mean((2, 3), keepdim=True), images)
    return images.clamp(0.0, 1.0)


def _rectangles(count: int, settings: FitSettings, rng: torch.Generator) -> Tensor:
    """Mask [B, 1, size, size] of a rectangle in a share `erase` of the images, its sides 0.1 to 0.35 of the image's.

    Source: random erasing (Zhong et al., arXiv:1708.04896).
    """
    half = (0.1 + 0.25 * torch.rand(count, 2, generator=rng)) / 2
    center = torch.rand(count, 2, generator=rng)
    grid = (torch.arange(settings.size) + 0.5) / settings.size
    inside = (grid - center[..., None]).abs() < half[..., None]  # [B, 2, size]
    chosen = torch.rand(count, generator=rng) < settings.erase
    return (inside[:, 0, :, None] & inside[:, 1, None, :] & chosen[:, None, None])[:, None]


def resampled(pixels: Tensor, matrices: Tensor, size: int, *, outside: str = "zeros") -> Tensor:
    """Resample uint8 [B, 1, H, W] by matrices [B, 2, 3] to float32 [B, 1, size, size] in [0, 1].

    `outside`: black beyond the edges (`zeros`), the edge repeated (`border`), or the image mirrored (`reflection`).
    """
    radiographs = pixels.float() / 255.0
    grid = nn.functional.affine_grid(matrices, [len(radiographs), 1, size, size], align_corners=False)
    if radiographs.shape[-1] > size:
        radiographs = nn.functional.interpolate(radiographs, (size, size), mode="bilinear", antialias=True)
    return nn.functional.grid_sample(radiographs, grid, padding_mode=outside, align_corners=False)


def sample_batch(weights: Tensor, settings: FitSettings, rng: torch.Generator) -> Tensor:
    """Indices of one batch, sampled by weight with replacement."""
    return torch.multinomial(weights, settings.batch_size, replacement=True, generator=rng)
