"""The autoencoder: a small AutoencoderKL on gray 256-pixel images, factor 8."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from cxrsynth.nano.build.config import AutoencoderSettings
from cxrsynth.nano.build.training import (
    PartGradients,
    cores,
    forward_context,
    load_state,
    log,
    save_state,
    step_generator,
    warmup_stable_decay,
)


def make_autoencoder(settings: AutoencoderSettings, *, size: int) -> AutoencoderKL:
    """Untrained network; one gray channel in and out, no attention in the middle."""
    blocks = len(settings.channels)
    return AutoencoderKL(
        in_channels=1,
        out_channels=1,
        latent_channels=settings.latent_channels,
        block_out_channels=settings.channels,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=size,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )


def reconstruction_loss(output: Tensor, target: Tensor, *, levels: int = 3) -> Tensor:
    """L1 on pixels and on their gradients, on a pyramid of `levels`; [B, 1, H, W] in, scalar out."""
    total = output.new_zeros(())
    for level in range(levels):
        if level:
            output, target = F.avg_pool2d(output, 2), F.avg_pool2d(target, 2)
        error = output - target
        total = total + error.abs().mean()
        total = total + 2.0 * (error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean())
    return total


def train_autoencoder(
    pixels: Tensor, work: Path, *, settings: AutoencoderSettings, size: int, seed: int, save_every: int, parts: int
) -> AutoencoderKL:
    """Train on random crops; pixels uint8 [N, 1, H, W]. Resumes from `work/autoencoder.pt`."""
    torch.manual_seed(seed)
    vae = make_autoencoder(settings, size=size).train()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=settings.learning_rate, betas=(0.9, 0.99), weight_decay=1e-4)
    checkpoint = work / "autoencoder.pt"
    first = load_state(checkpoint, optimizer=optimizer, vae=vae)
    gradients, parameters = PartGradients(parts), list(vae.parameters())

    def loss(radiographs: Tensor, noise: Tensor) -> Tensor:
        with forward_context():
            posterior = vae.encode(radiographs).latent_dist
            output = vae.decode(posterior.mean + posterior.std * noise).sample
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        kl: Tensor = 0.5 * (mean**2 + logvar.exp() - 1.0 - logvar).sum((1, 2, 3)).mean()
        return reconstruction_loss(output.float(), radiographs) + settings.kl_weight * kl

    started, losses = time.monotonic(), 0.0
    latent = settings.crop // 2 ** (len(settings.channels) - 1)
    for step in range(first, settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * warmup_stable_decay(step, steps=settings.steps)
        rng = step_generator(seed, step)
        radiographs = random_crops(pixels, settings.batch_size, settings.crop, rng)  # [B, 1, crop, crop]
        noise = torch.randn((settings.batch_size, settings.latent_channels, latent, latent), generator=rng)
        losses += gradients(loss, (radiographs, noise), parameters)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if (step + 1) % 100 == 0:
            rate = (step + 1 - first) * settings.batch_size / (time.monotonic() - started)
            log.info("autoencoder %d/%d loss %.4f, %.0f crops/s", step + 1, settings.steps, losses / 100, rate)
            losses = 0.0
        if (step + 1) % save_every == 0 or step + 1 == settings.steps:
            save_state(checkpoint, step=step + 1, optimizer=optimizer, vae=vae)
    return vae.eval()


def random_crops(pixels: Tensor, count: int, crop: int, rng: torch.Generator) -> Tensor:
    """Random crops in [-1, 1], float32 [count, 1, crop, crop]."""
    radiographs = torch.randint(len(pixels), (count,), generator=rng).tolist()
    corners = torch.randint(pixels.shape[-1] - crop + 1, (count, 2), generator=rng).tolist()
    cut = [pixels[f, :, y : y + crop, x : x + crop] for f, (y, x) in zip(radiographs, corners, strict=True)]
    return torch.stack(cut).float().div(127.5).sub(1.0)


def encode_mean(vae: AutoencoderKL, images: Tensor, *, batch_size: int = 8) -> Tensor:
    """Posterior means of images in [-1, 1]: [N, 1, H, W] -> [N, C, h, w] float32. Each core takes a batch."""
    return encode_moments(vae, images, batch_size=batch_size).chunk(2, 1)[0]


def encode_moments(vae: AutoencoderKL, images: Tensor, *, batch_size: int = 8) -> Tensor:
    """Posterior means and log-variances: [N, 1, H, W] -> [N, 2C, h, w] float32. Each core takes a batch."""

    @torch.no_grad()  # grad mode is per thread
    def encode(chunk: Tensor) -> Tensor:
        with forward_context():
            moments: Tensor = vae.encode(chunk).latent_dist.parameters
        return moments.float()

    with ThreadPoolExecutor(cores(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return torch.cat(list(pool.map(encode, images.split(batch_size))))


@torch.no_grad()
def standardize_latents(vae: AutoencoderKL, latents: Tensor) -> None:
    """Fold the latents' mean and per-channel scale into the 1x1 quantization layers, in place.

    Afterwards latents have zero mean and unit variance per channel at scaling_factor 1, which works in every Stable
    Diffusion pipeline (those pipelines have one scale and no offset).
    """
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))  # [C]
    channels = len(mean)
    quant, post = vae.quant_conv, vae.post_quant_conv
    if quant is None or post is None or quant.bias is None or post.bias is None:
        raise ValueError("the autoencoder has no quantization layers with bias to fold the scale into")
    quant.weight[:channels] /= std[:, None, None, None]
    quant.bias[:channels] = (quant.bias[:channels] - mean) / std
    quant.bias[channels:] -= 2 * std.log()  # the log-variance scales with the mean
    post.bias += post.weight[:, :, 0, 0] @ mean
    post.weight *= std[None, :, None, None]
