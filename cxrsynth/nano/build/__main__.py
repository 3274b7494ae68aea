"""`python -m cxrsynth.nano.build --data DIR [--only STAGE]`: build nano from real images, stage by stage."""

import logging
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor
from transformers import CLIPTokenizer

from cxrsynth.diffusion.networks import load_vae
from cxrsynth.nano.build.align import canonical_frames, registered_frames
from cxrsynth.nano.build.autoencoder import encode_mean, standardize_latents, train_autoencoder
from cxrsynth.nano.build.config import BuildConfig, load_config
from cxrsynth.nano.build.decoder import sharpen_decoder
from cxrsynth.nano.build.denoiser import cache_latents, make_tokenizer, train_denoiser
from cxrsynth.nano.build.export import FAMILIES_FOLDER, SHARP_VAE, START, export_model
from cxrsynth.nano.build.images import SMALL_GROUPS, load_images
from cxrsynth.nano.build.measure import measure
from cxrsynth.nano.build.reward_models import FAMILIES, train_reward_models
from cxrsynth.nano.build.start import take_over
from cxrsynth.nano.build.training import log
from cxrsynth.rewards.networks import FindingClassifier

_ASSETS = Path(__file__).parents[1] / "assets"
_CONFIG = Path(__file__).with_name("config.yaml")


class Stage(StrEnum):
    """Stages in order; each reads from the work folder what the stages before it wrote."""

    AUTOENCODER = "autoencoder"
    DENOISER = "denoiser"
    REWARD_MODELS = "reward-models"
    DECODER = "decoder"
    EXPORT = "export"
    MEASURE = "measure"


_AFTER_START = [Stage.DENOISER, Stage.EXPORT, Stage.MEASURE]


def main(
    data: Annotated[Path, typer.Option(help="Folder with images/ and manifests/.")],
    work: Annotated[Path, typer.Option(help="Work folder with checkpoints; the same command resumes from them.")],
    out: Annotated[Path, typer.Option(help="The model folder to write.")] = Path(__file__).parents[1] / "assets",
    config: Annotated[Path, typer.Option(help="Build settings.")] = _CONFIG,
    only: Annotated[Stage | None, typer.Option(help="Run one stage.")] = None,
    start: Annotated[
        Path | None,
        typer.Option(help="Model folder to continue from: its denoiser trains further, its other networks are kept."),
    ] = None,
) -> None:
    """Build nano from real images, stage by stage."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    settings = load_config(config)
    work.mkdir(parents=True, exist_ok=True)
    if start is not None:
        take_over(start, work)
    for stage in [only] if only else list(Stage) if start is None else _AFTER_START:
        log.info("stage %s", stage.value)
        if stage is Stage.AUTOENCODER:
            _autoencoder(data, work, settings)
        elif stage is Stage.DENOISER:
            _denoiser(data, work, settings)
        elif stage is Stage.REWARD_MODELS:
            train_reward_models(data, work, settings)
        elif stage is Stage.DECODER:
            _decoder(data, work, settings)
        elif stage is Stage.EXPORT:
            export_model(data, work, out, settings=settings)
        else:
            measure(data, work, out, settings=settings)


def _autoencoder(data: Path, work: Path, settings: BuildConfig) -> None:
    radiographs, pixels = load_images(data, size=settings.image_size)
    log.info("%d training images", len(radiographs))
    vae = train_autoencoder(
        pixels,
        work,
        settings=settings.autoencoder,
        size=settings.image_size,
        seed=settings.seed,
        save_every=settings.save_every,
        parts=settings.parts,
    )
    standardize_latents(vae, encode_mean(vae, pixels.float() / 127.5 - 1.0))
    vae.save_pretrained(work / "vae")


def _denoiser(data: Path, work: Path, settings: BuildConfig) -> None:
    radiographs, pixels = load_images(data, size=settings.image_size)
    frames, shown = canonical_frames(radiographs, pixels, work / "frames.safetensors", settings=settings.align)
    latents = _latents(pixels[shown], frames[shown], work, "latents", settings)
    kept = [radiograph for radiograph, here in zip(radiographs, shown.tolist(), strict=True) if here]
    # Small images are marked in their prompt: they teach findings that are rare elsewhere, without their blur.
    small, pixels = load_images(data, size=settings.image_size, groups=SMALL_GROUPS, resample=True)
    frames, shown = registered_frames(small, pixels, work / "frames.safetensors", settings=settings.align)
    latents = torch.cat((latents, _latents(pixels[shown], frames[shown], work, "latents_small", settings)))
    kept += [radiograph for radiograph, here in zip(small, shown.tolist(), strict=True) if here]
    tokenizer = _tokenizer(work / "tokenizer", settings)
    networks = train_denoiser(
        kept,
        latents,
        tokenizer,
        work,
        settings=settings.denoiser,
        text=settings.text,
        seed=settings.seed,
        save_every=settings.save_every,
        parts=settings.parts,
        start=work / START if (work / START).is_dir() else None,
    )
    networks.unet.save_pretrained(work / "unet")
    networks.text_encoder.save_pretrained(work / "text_encoder")


def _latents(pixels: Tensor, frames: Tensor, work: Path, name: str, settings: BuildConfig) -> Tensor:
    return cache_latents(
        pixels,
        frames,
        load_vae(work / "vae"),
        work / f"{name}.safetensors",
        settings=settings.denoiser,
        seed=settings.seed,
    )


def _decoder(data: Path, work: Path, settings: BuildConfig) -> None:
    _, pixels = load_images(data, size=settings.image_size)
    vae = sharpen_decoder(
        pixels,
        load_vae(work / "vae"),
        FindingClassifier.from_pretrained(work / FAMILIES_FOLDER / FAMILIES[0] / "classifier").eval(),
        work / "decoder.pt",
        settings=settings.decoder,
        seed=settings.seed,
        save_every=settings.save_every,
        parts=settings.parts,
    )
    vae.save_pretrained(work / SHARP_VAE)


def _tokenizer(folder: Path, settings: BuildConfig) -> CLIPTokenizer:
    """Trained once and kept: learning merges breaks ties at random, and other ids would change what words mean."""
    if not folder.is_dir():
        make_tokenizer(settings.text).save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder)


if __name__ == "__main__":
    typer.run(main)
