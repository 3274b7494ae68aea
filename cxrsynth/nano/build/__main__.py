"""`python -m cxrsynth.nano.build --data DIR [--only STAGE]`: build nano from real films, stage by stage."""

import logging
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from diffusers import AutoencoderKL
from transformers import CLIPTokenizer

from cxrsynth.nano.build.align import canonical_frames
from cxrsynth.nano.build.autoencoder import encode_mean, standardise_latents, train_autoencoder
from cxrsynth.nano.build.config import BuildConfig, load_config
from cxrsynth.nano.build.denoiser import cache_latents, make_tokenizer, train_denoiser
from cxrsynth.nano.build.export import export_model
from cxrsynth.nano.build.films import load_films
from cxrsynth.nano.build.judges import train_judges
from cxrsynth.nano.build.measure import measure
from cxrsynth.nano.build.training import log

_ASSETS = Path(__file__).parents[1] / "assets"
_CONFIG = Path(__file__).with_name("config.yaml")


class Stage(StrEnum):
    """Stages in order; each reads what the one before left in the work folder."""

    AUTOENCODER = "autoencoder"
    DENOISER = "denoiser"
    JUDGES = "judges"
    EXPORT = "export"
    MEASURE = "measure"


def main(
    data: Annotated[Path, typer.Option(help="Folder with images/ and manifests/.")],
    work: Annotated[Path, typer.Option(help="Checkpoints; the same command resumes from them.")],
    out: Annotated[Path, typer.Option(help="Where the model folder is written.")] = Path(__file__).parents[1]
    / "assets",
    config: Annotated[Path, typer.Option(help="Build settings.")] = _CONFIG,
    only: Annotated[Stage | None, typer.Option(help="Run one stage.")] = None,
) -> None:
    """Build nano."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    settings = load_config(config)
    work.mkdir(parents=True, exist_ok=True)
    for stage in [only] if only else list(Stage):
        log.info("stage %s", stage.value)
        if stage is Stage.AUTOENCODER:
            _autoencoder(data, work, settings)
        elif stage is Stage.DENOISER:
            _denoiser(data, work, settings)
        elif stage is Stage.JUDGES:
            train_judges(data, work, settings)
        elif stage is Stage.EXPORT:
            export_model(data, work, out, settings=settings)
        else:
            measure(data, work, out, settings=settings)


def _autoencoder(data: Path, work: Path, settings: BuildConfig) -> None:
    films, pixels = load_films(data, size=settings.image_size)
    log.info("%d training films", len(films))
    vae = train_autoencoder(
        pixels,
        work,
        settings=settings.autoencoder,
        size=settings.image_size,
        seed=settings.seed,
        save_every=settings.save_every,
        parts=settings.parts,
    )
    standardise_latents(vae, encode_mean(vae, pixels.float() / 127.5 - 1.0))
    vae.save_pretrained(work / "vae")


def _denoiser(data: Path, work: Path, settings: BuildConfig) -> None:
    films, pixels = load_films(data, size=settings.image_size)
    frames, shown = canonical_frames(films, pixels, work / "frames.safetensors", settings=settings.align)
    vae = AutoencoderKL.from_pretrained(work / "vae").eval()
    latents = cache_latents(
        pixels[shown],
        frames[shown],
        vae,
        work / "latents.safetensors",
        settings=settings.denoiser,
        seed=settings.seed,
    )
    tokenizer = _tokenizer(work / "tokenizer", settings)
    networks = train_denoiser(
        [film for film, here in zip(films, shown.tolist(), strict=True) if here],
        latents,
        tokenizer,
        work,
        settings=settings.denoiser,
        text=settings.text,
        seed=settings.seed,
        save_every=settings.save_every,
        parts=settings.parts,
    )
    networks.unet.save_pretrained(work / "unet")
    networks.text_encoder.save_pretrained(work / "text_encoder")


def _tokenizer(folder: Path, settings: BuildConfig) -> CLIPTokenizer:
    """Made once and kept: learning merges breaks ties at random, and other ids would shuffle what words mean."""
    if not folder.is_dir():
        make_tokenizer(settings.text).save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder)


if __name__ == "__main__":
    typer.run(main)
