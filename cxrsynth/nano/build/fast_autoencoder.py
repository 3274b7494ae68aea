"""`python -m cxrsynth.nano.build.fast_autoencoder --model MODEL --reports FILE --work DIR`: nano-fast's autoencoder.

Half of nano-fast's time would go into nano's decoder. A narrower autoencoder learns from nano's: its decoder to draw
the same images from the latents that MODEL (what `nano-distill` left) samples for the reports, first alone and then
against a discriminator that has nano's images for real (alone it draws them too soft), its encoder to find the
same latents. No real image is used. The result is the folder `fast-autoencoder` in DIR.
"""

import csv
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cxrsynth.diffusion.networks import load_vae
from cxrsynth.diffusion.noise import seeded_noise
from cxrsynth.diffusion.parallel import SamplingPool
from cxrsynth.diffusion.resolve import find_model
from cxrsynth.diffusion.sampler import decode_latents, encode_prompts, guided_condition, sample_latents
from cxrsynth.nano.build.autoencoder import encode_moments, reconstruction_loss
from cxrsynth.nano.build.config import DecoderSettings
from cxrsynth.nano.build.decoder import early_layers, train_against_discriminator
from cxrsynth.nano.build.export import FAMILIES_FOLDER
from cxrsynth.nano.build.measure_generator import ImageGenerator
from cxrsynth.nano.build.reward_models import FAMILIES
from cxrsynth.nano.build.training import (
    PartGradients,
    forward_context,
    load_state,
    log,
    save_state,
    step_generator,
    warmup_stable_decay,
)
from cxrsynth.reports.findings.reader import FindingsReader
from cxrsynth.reports.prompt import Subject, age_group, canonical_prompt
from cxrsynth.rewards.networks import FindingClassifier

FOLDER = "fast-autoencoder"
CHANNELS = (16, 16, 32, 64)
_IMAGES, _HELD_OUT, _BATCH = 1600, 100, 8
_TRAINED, _PARTS, _SAVE_EVERY, _PEAK = 16, 2, 250, 2e-3
_SHARPENING = DecoderSettings(
    steps=1500,
    batch_size=_TRAINED,
    crop=160,
    learning_rate=3e-4,
    width=32,
    feature_weight=1.0,
    adversarial_weight=0.1,
    blend=1.0,
)
# Log-variances lie some 10 below the means' scale, and only noise depends on them.
_SPREAD = 0.01
# A crop of 20 latents decodes to 160 pixels; the loss leaves out 16 at each edge inside the image, where zero padding
# stands in for what the whole image has there.
_CROP, _MARGIN, _FACTOR = 20, 2, 8


def main(
    model: Annotated[Path, typer.Option(help="Model folder that `cxrsynth tune nano-distill` left.")],
    reports: Annotated[Path, typer.Option(help="Reports that it was distilled on.")],
    work: Annotated[Path, typer.Option(help="Work folder; an interrupted run goes on from there.")],
    decoder_steps: int = 4000,
    sharpening_steps: int = 1500,
    encoder_steps: int = 1500,
    seed: int = 0,
) -> None:
    """Train both halves and write the autoencoder."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    work.mkdir(parents=True, exist_ok=True)
    latents, images, moments = _examples(model, reports, work / "fast-autoencoder.safetensors")
    torch.manual_seed(seed)
    student = narrow_autoencoder(load_vae(find_model("nano") / "vae"))
    nano = FindingClassifier.from_pretrained(find_model("nano") / FAMILIES_FOLDER / FAMILIES[0] / "classifier")
    details = early_layers(nano)

    def decoder_loss(crop: Tensor, target: Tensor, inside: Tensor) -> Tensor:
        with forward_context():
            drawn = cut(student.decode(crop).sample.float(), inside)
            target = cut(target, inside)
            felt = F.l1_loss(details(drawn).float(), details(target).float())
        return reconstruction_loss(drawn, target) + felt

    def encoder_loss(image: Tensor, target: Tensor, inside: Tensor) -> Tensor:
        with forward_context():
            found = student.encode(image).latent_dist.parameters.float()
        found, target = cut(found, inside // _FACTOR), cut(target, inside // _FACTOR)
        (mean, log_variance), (its_mean, its_log_variance) = found.chunk(2, 1), target.chunk(2, 1)
        return F.mse_loss(mean, its_mean) + _SPREAD * F.mse_loss(log_variance, its_log_variance)

    decoder = nn.ModuleList([student.post_quant_conv, student.decoder])
    encoder = nn.ModuleList([student.encoder, student.quant_conv])
    held_out = (latents[-_HELD_OUT:], images[-_HELD_OUT:], moments[-_HELD_OUT:])
    _train(decoder, decoder_loss, latents, images, work / "fast-decoder.pt", steps=decoder_steps, seed=seed)
    _report(student, *held_out)

    def draw(crop: Tensor, target: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
        return cut(student.decode(crop).sample, inside), cut(target, inside)

    train_against_discriminator(
        decoder.train(),
        draw,
        lambda step: _crops(latents, images, step_generator(seed + 1, step)),
        details,
        work / "fast-sharpening.pt",
        settings=_SHARPENING.model_copy(update={"steps": sharpening_steps}),
        seed=seed,
        save_every=_SAVE_EVERY,
        parts=_PARTS,
    )
    _train(encoder, encoder_loss, images, moments, work / "fast-encoder.pt", steps=encoder_steps, seed=seed)
    _report(student, *held_out)
    student.half().save_pretrained(work / FOLDER, safe_serialization=True)
    log.info("wrote %s", work / FOLDER)


def narrow_autoencoder(nano: AutoencoderKL) -> AutoencoderKL:
    """An untrained autoencoder with nano's latents and `CHANNELS` in its blocks."""
    config = dict(nano.config) | {"block_out_channels": CHANNELS}
    student: AutoencoderKL = AutoencoderKL.from_config(config)
    return student.to(memory_format=torch.channels_last)  # type: ignore[call-arg]


def _examples(folder: Path, reports: Path, file: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Latents [N, C, 32, 32], nano's images of them in [-1, 1] [N, 1, 256, 256], nano's moments of those images."""
    if not file.exists():
        generator = ImageGenerator(folder)
        model, defaults = generator.model, generator.model.spec.defaults
        prompts = _prompts(reports)[:_IMAGES]

        def one(first: int) -> tuple[Tensor, Tensor]:
            own = prompts[first : first + _BATCH]
            noise = torch.stack(
                [seeded_noise(model.latent_shape, 0, f"autoencoder-{first + k}") for k in range(len(own))]
            )
            condition = guided_condition(model, *encode_prompts(model, own), defaults.guidance)
            latents = sample_latents(
                model, condition, noise, sampler=defaults.sampler, steps=defaults.steps, guidance=defaults.guidance
            )
            return latents, decode_latents(model, latents) * 2 - 1

        with SamplingPool(model, batch_size=_BATCH, threads_per_batch=1) as pool:
            done = list(pool.map_in_order(one, list(range(0, len(prompts), _BATCH))))
        latents, images = (torch.cat([pair[place] for _, pair in done]).half() for place in (0, 1))
        moments = encode_moments(load_vae(find_model("nano") / "vae").eval(), images.float()).half()
        save_file({"latents": latents, "images": images, "moments": moments}, file)
        log.info("%d images sampled", len(images))
    kept = load_file(file)
    return kept["latents"], kept["images"], kept["moments"]


def _prompts(reports: Path) -> list[str]:
    """The canonical prompt of each report."""
    reader = FindingsReader()
    with reports.open(newline="", encoding="utf-8") as file:
        return [
            canonical_prompt(
                Subject(row["view"] or None, age_group(float(row["age"]) if row["age"] else None), row["sex"] or None),
                reader.read(row["report"]),
            )
            for row in csv.DictReader(file)
        ]


def _train(
    half: nn.Module,
    loss: Callable[..., Tensor],
    inputs: Tensor,
    targets: Tensor,
    checkpoint: Path,
    *,
    steps: int,
    seed: int,
) -> None:
    """Train `half` on random crops of the examples that are not held out; resumes from `checkpoint`."""
    half.train()
    parameters = list(half.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=_PEAK, betas=(0.9, 0.99), weight_decay=1e-4)
    first = load_state(checkpoint, optimizer=optimizer, half=half)
    gradients = PartGradients(_PARTS)
    started, losses = time.monotonic(), 0.0
    for step in range(first, steps):
        for group in optimizer.param_groups:
            group["lr"] = _PEAK * warmup_stable_decay(step, steps=steps)
        losses += gradients(loss, _crops(inputs, targets, step_generator(seed, step)), parameters)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if (step + 1) % 100 == 0:
            rate = (step + 1 - first) * _TRAINED / (time.monotonic() - started)
            log.info("%s %d/%d loss %.4f, %.0f crops/s", checkpoint.stem, step + 1, steps, losses / 100, rate)
            losses = 0.0
        if (step + 1) % _SAVE_EVERY == 0 or step + 1 == steps:
            save_state(checkpoint, step=step + 1, optimizer=optimizer, half=half)
    half.eval()


def _crops(inputs: Tensor, targets: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Crops of inputs and targets at the same place, and which pixels of the crop count: [B, 4], top to right."""
    whole = inputs.shape[-1] if inputs.shape[1] > 1 else targets.shape[-1]  # in latents
    chosen = torch.randint(len(inputs) - _HELD_OUT, (_TRAINED,), generator=rng)
    corner = torch.randint(whole - _CROP + 1, (2,), generator=rng).tolist()

    def crop(maps: Tensor) -> Tensor:
        factor = maps.shape[-1] // whole
        (y, x), size = (factor * place for place in corner), factor * _CROP
        cropped = maps[chosen][:, :, y : y + size, x : x + size].float()
        return cropped.contiguous(memory_format=torch.channels_last)

    inside = [
        limit
        for place in corner
        for limit in (0 if place == 0 else _MARGIN, _CROP - (0 if place == whole - _CROP else _MARGIN))
    ]
    return crop(inputs), crop(targets), (torch.tensor([inside]) * _FACTOR).expand(_TRAINED, 4)


def cut(maps: Tensor, inside: Tensor) -> Tensor:
    """The rows and columns of [B, C, H, W] that `inside` [B, 4] (top, bottom, left, right; equal rows) names."""
    top, bottom, left, right = inside[0].tolist()
    return maps[:, :, top:bottom, left:right]


@torch.no_grad()
def _report(student: AutoencoderKL, latents: Tensor, images: Tensor, moments: Tensor) -> None:
    """Log how near the student comes to nano's autoencoder on examples that it did not see."""
    student.eval()
    drawn, found = [], []
    for z, image in zip(latents.float().split(_BATCH), images.float().split(_BATCH), strict=True):
        with forward_context():
            drawn.append(student.decode(z.contiguous(memory_format=torch.channels_last)).sample.float())
            found.append(student.encode(image).latent_dist.parameters.float())
    picture, target = torch.cat(drawn).clamp(-1, 1), images.float()
    psnr = 10 * torch.log10(4 / F.mse_loss(picture, target))
    sharp = picture.diff(dim=-1).abs().mean() / target.diff(dim=-1).abs().mean()
    mean, log_variance = torch.cat(found).chunk(2, 1)
    its_mean, its_log_variance = moments.float().chunk(2, 1)
    log.info(
        "decoder: %.1f dB, contrast between neighbors %.2f of nano's; encoder: error %.3f of the variance, standard "
        "deviation %.2f of nano's",
        psnr,
        sharp,
        F.mse_loss(mean, its_mean) / its_mean.var(),
        (0.5 * (log_variance - its_log_variance).mean()).exp(),
    )


if __name__ == "__main__":
    typer.run(main)
