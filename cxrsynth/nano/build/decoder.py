"""Further training of the autoencoder's decoder for sharpness; the latents, and so the denoiser, do not change."""

import copy
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from cxrsynth.nano.build.autoencoder import random_crops, reconstruction_loss
from cxrsynth.nano.build.config import DecoderSettings
from cxrsynth.nano.build.training import (
    PartGradients,
    forward_context,
    load_state,
    log,
    save_state,
    step_generator,
    warmup_stable_decay,
)
from cxrsynth.rewards.networks import FindingClassifier


class PatchDiscriminator(nn.Module):
    """Patch scores: real above 1, decoded below -1. Source: Isola et al., arXiv:1611.07004 (PatchGAN).

    Its input is the image and a high-passed copy: blur shows in the details.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(2, width, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, 2, 1, bias=False),
            nn.GroupNorm(8, 2 * width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 4 * width, 3, 1, 1, bias=False),
            nn.GroupNorm(8, 4 * width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(4 * width, 1, 3, 1, 1),
        )

    def forward(self, radiographs: Tensor) -> Tensor:
        """[B, 1, H, W] in [-1, 1] -> [B, 1, H / 4, W / 4]."""
        smooth = F.avg_pool2d(F.pad(radiographs, (2, 2, 2, 2), mode="reflect"), 5, 1)
        return self.layers(torch.cat((radiographs, 4.0 * (radiographs - smooth)), 1))  # type: ignore[no-any-return]


def sharpen_decoder(
    pixels: Tensor,
    vae: AutoencoderKL,
    classifier: FindingClassifier,
    checkpoint: Path,
    *,
    settings: DecoderSettings,
    seed: int,
    save_every: int,
    parts: int,
) -> AutoencoderKL:
    """Train decoder and discriminator against each other on random crops; resumes from `checkpoint`.

    Args:
        pixels: uint8 [N, 1, H, W].
        vae: trained; only its decoder and the layer before it are changed, in place.
        classifier: its first layers define which details matter (feature loss; Johnson et al., arXiv:1603.08155).
        checkpoint: file of the run.
        settings: steps, weights of the three losses.
        seed: of weights and crops.
        save_every: steps between checkpoints.
        parts: parts of a batch, one per core.

    Source: Esser et al., arXiv:2012.09841 (adversarial and feature loss on an autoencoder).
    """
    vae.requires_grad_(False)
    decoder = nn.ModuleList([vae.post_quant_conv, vae.decoder]).requires_grad_(True).train()
    plain = [parameter.detach().clone() for parameter in decoder.parameters()]

    def draw(radiographs: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            latents = vae.encode(radiographs).latent_dist.mean
        return vae.decode(latents).sample, radiographs

    train_against_discriminator(
        decoder,
        draw,
        lambda step: [random_crops(pixels, settings.batch_size, settings.crop, step_generator(seed + 2, step))],
        early_layers(classifier),
        checkpoint,
        settings=settings,
        seed=seed,
        save_every=save_every,
        parts=parts,
    )
    with torch.no_grad():
        # Interpolate between plain and sharp, so as not to invent detail (arXiv:1809.00219, section 3.4).
        for parameter, start in zip(decoder.parameters(), plain, strict=True):
            parameter.copy_(torch.lerp(start, parameter, settings.blend))
    return vae.eval()


def train_against_discriminator(
    decoder: nn.Module,
    draw: Callable[..., tuple[Tensor, Tensor]],
    batch: Callable[[int], Sequence[Tensor]],
    early: nn.Module,
    checkpoint: Path,
    *,
    settings: DecoderSettings,
    seed: int,
    save_every: int,
    parts: int,
) -> None:
    """Train `decoder` in place so that what it draws is taken for its targets; resumes from `checkpoint`.

    Args:
        decoder: what is trained.
        draw: from a part of a batch to images drawn with `decoder` and their targets, both [B, 1, H, W] in [-1, 1].
        batch: from a step to the tensors of its batch.
        early: which details matter, see `early_layers`.
        checkpoint: file of the run.
        settings: steps, learning rate, weights of the three losses.
        seed: of the discriminator's weights.
        save_every: steps between checkpoints.
        parts: parts of a batch, one per core.
    """
    torch.manual_seed(seed)
    discriminator = PatchDiscriminator(settings.width).train()
    optimizer = torch.optim.AdamW(
        [
            {"params": list(decoder.parameters()), "peak": settings.learning_rate},
            {"params": list(discriminator.parameters()), "peak": 2 * settings.learning_rate},
        ],
        lr=settings.learning_rate,
        betas=(0.5, 0.99),
        weight_decay=1e-4,
    )
    first = load_state(checkpoint, optimizer=optimizer, decoder=decoder, discriminator=discriminator)
    # A separate copy for the decoder's loss: parts run in threads, and a module cannot be frozen for one thread only.
    opponent = copy.deepcopy(discriminator).requires_grad_(False)
    gradients = PartGradients(parts)
    parameters = [*decoder.parameters(), *discriminator.parameters()]

    def loss(*part: Tensor) -> Tensor:
        with forward_context():
            drawn, target = draw(*part)
            scores = opponent(drawn).float()
            both = discriminator(torch.cat((target, drawn.detach().float()))).float()
            details = F.l1_loss(early(drawn).float(), early(target).float().detach())
        real, fake = both.chunk(2)
        # Two losses in one sum: neither term has a gradient in the other network.
        decoder_loss = reconstruction_loss(drawn.float(), target) + settings.feature_weight * details
        decoder_loss = decoder_loss - settings.adversarial_weight * scores.mean()
        total: Tensor = decoder_loss + F.relu(1 - real).mean() + F.relu(1 + fake).mean()
        return total

    started, losses = time.monotonic(), 0.0
    for step in range(first, settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * warmup_stable_decay(step, steps=settings.steps)
        losses += gradients(loss, batch(step), parameters)
        for group in optimizer.param_groups:
            torch.nn.utils.clip_grad_norm_(group["params"], 1.0)
        optimizer.step()
        opponent.load_state_dict(discriminator.state_dict())
        if (step + 1) % 100 == 0:
            rate = (step + 1 - first) * settings.batch_size / (time.monotonic() - started)
            log.info("sharpening %d/%d loss %.4f, %.0f crops/s", step + 1, settings.steps, losses / 100, rate)
            losses = 0.0
        if (step + 1) % save_every == 0 or step + 1 == settings.steps:
            save_state(checkpoint, step=step + 1, optimizer=optimizer, decoder=decoder, discriminator=discriminator)


def early_layers(classifier: FindingClassifier) -> nn.Module:
    """The classifier's layers up to its second block, frozen: images in [-1, 1] -> maps."""
    layers = list(classifier.trunk.network.children())[:6]
    return nn.Sequential(*layers).requires_grad_(False).eval()
