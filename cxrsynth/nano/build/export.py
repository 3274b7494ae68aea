"""The trained networks as a Stable Diffusion folder, half precision, with cxrsynth.json and a model card."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from cxrsynth.diffusion.spec import SPEC_FILE, ModelSpec, SamplingDefaults
from cxrsynth.nano.build.config import BuildConfig
from cxrsynth.nano.build.denoiser import make_scheduler
from cxrsynth.nano.build.films import Film, load_films
from cxrsynth.nano.build.training import log
from cxrsynth.reports.prompt import Depicts
from cxrsynth.settings import PromptStyle

NUMBERS_FILE = "numbers.json"
CARD_FILE = "model_card.md"


def export_model(data: Path, work: Path, out: Path, *, settings: BuildConfig) -> None:
    """Write the model folder, measured numbers and the card; the folder is replaced whole."""
    vae = AutoencoderKL.from_pretrained(work / "vae").eval()
    train, _ = load_films(data, size=settings.image_size)
    val, pixels = load_films(data, size=settings.image_size, split="val")
    numbers: dict[str, Any] = {
        "autoencoder": _autoencoder_numbers(vae, pixels),
        "films": {"train": len(train), "val": len(val)},
    }
    shown = load_file(work / "frames.safetensors")["shown"].tolist()
    drawn = [film for film, here in zip(train, shown, strict=True) if here]
    spec = _spec(drawn, settings)
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel.from_pretrained(work / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(work / "tokenizer"),
        unet=UNet2DConditionModel.from_pretrained(work / "unet"),
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    numbers["parameters"] = {name: _count(getattr(pipeline, name)) for name in ("vae", "unet", "text_encoder")}
    # The text encoder stays float32: transformers loads a model in its stored type, and the pipeline would mix two.
    pipeline.unet.half()
    pipeline.vae.half()
    pipeline.save_pretrained(partial, safe_serialization=True)
    for part in ("unet", "vae"):
        _forget_origin(partial / part / "config.json")
    (partial / SPEC_FILE).write_text(spec.model_dump_json(indent=1) + "\n", encoding="utf-8")
    (partial / NUMBERS_FILE).write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    (partial / CARD_FILE).write_text(_card(spec, numbers, train, drawn, settings), encoding="utf-8")
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)
    log.info("wrote %s", out)


def _spec(films: list[Film], settings: BuildConfig) -> ModelSpec:
    findings = Counter(name for film in films for name in film.present)

    def values(field: str) -> tuple[str, ...]:
        counts = Counter(getattr(film.subject, field) for film in films)
        return tuple(sorted(v for v, n in counts.items() if v and n >= settings.min_shown))

    return ModelSpec(
        name="nano",
        prompt=PromptStyle.CANONICAL,
        defaults=SamplingDefaults(steps=settings.defaults.steps, guidance=settings.defaults.guidance),
        depicts=Depicts(
            views=values("view"),
            age_groups=values("age_group"),
            sexes=values("sex"),
            findings={name: n for name, n in sorted(findings.items()) if n >= settings.min_shown},
            # Sources name no side, and no "possible".
            sides=False,
            uncertain=False,
        ),
    )


@torch.no_grad()
def _autoencoder_numbers(vae: AutoencoderKL, pixels: Tensor) -> dict[str, float]:
    """Over films of split val, at full size in float32; pixels uint8 [N, 1, H, W].

    `psnr_db`: of grey levels stretched to full range. `top_octave`: energy of the upper half of spatial frequencies in
    the reconstructions, as a share of that in the films.
    """
    ratios, kept, there = [], 0.0, 0.0
    for film in pixels.split(8):
        images = film.float() / 127.5 - 1
        output = vae.decode(vae.encode(images).latent_dist.mean).sample.clamp(-1, 1)
        mse = ((output - images) / 2).pow(2).mean((1, 2, 3))
        ratios.append(-10 * mse.log10())
        kept, there = kept + _top_octave(output), there + _top_octave(images)
    every = torch.cat(ratios)
    return {
        "psnr_db_mean": round(every.mean().item(), 2),
        "psnr_db_std": round(every.std().item(), 2),
        "top_octave": round(kept / there, 3),
    }


def _top_octave(images: Tensor) -> float:
    """Energy between half the Nyquist frequency and it, of [B, 1, H, W] under a Hann window."""
    size = images.shape[-1]
    window = torch.hann_window(size)
    energy = torch.fft.fft2(images * window[:, None] * window).abs().square()
    frequency = torch.fft.fftfreq(size)  # cycles per pixel; Nyquist is 0.5
    radius = (frequency[:, None].square() + frequency.square()).sqrt()
    return float(energy[..., (radius >= 0.25) & (radius < 0.5)].sum())


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


_SOURCES = {
    "nih": ("NIH ChestX-ray14 (Wang et al., CVPR 2017)", "no restrictions on use; NIH Clinical Center acknowledged"),
    "nih_more": ("NIH ChestX-ray14, further films", "as above"),
    "hannover": ("MHH COVID-19 Image Repository, doi 10.25835/0090041", "CC BY 3.0"),
    "kermany_ped": ("Kermany et al. 2018, doi 10.17632/rscbjbr9sj.2: children aged 1 to 5", "CC BY 4.0"),
    "cohen_open": ("ieee8023/covid-chestxray-dataset, openly licensed images only", "per image, open"),
}


def _card(spec: ModelSpec, numbers: dict[str, Any], films: list[Film], shown: list[Film], settings: BuildConfig) -> str:
    assert spec.depicts is not None
    groups = Counter(film.group for film in films)
    drawn = Counter(film.group for film in shown)
    parameters = ", ".join(f"{name} {count / 1e6:.2f} M" for name, count in numbers["parameters"].items())
    psnr = numbers["autoencoder"]
    lines = [
        "# nano: a small text-to-chest-X-ray latent diffusion model",
        "",
        "Version v0, second training: made so that every command works at once on a laptop. Its images are",
        "recognisably frontal chest X-rays, soft, and not for diagnosis, its teaching, or training of a product.",
        "",
        f"Stable Diffusion layout, {settings.image_size} x {settings.image_size} grey pixels, half-precision weights."
        f" Parameters: {parameters}.",
        "",
        "## Data",
        "",
        "Real films of split `train`, each with an open licence. No radiology report was used: the text is the",
        "canonical prompt made from each film's labels, view, age group and sex.",
        "",
        "| source | licence | films (autoencoder) | films (denoiser) |",
        "| --- | --- | --- | --- |",
        *(f"| {_SOURCES[g][0]} | {_SOURCES[g][1]} | {n} | {drawn[g]} |" for g, n in groups.items()),
        "",
        "The NIH films were provided by the NIH Clinical Center. NIH labels were mined from reports by software.",
        "",
        "Before the denoiser's training all films were registered to a mean film of their kind (shift, two scales,",
        "rotation), so its chests are centred and upright; letterboxed films and those that do not fill the frame",
        "served the autoencoder only. Films of rare findings were drawn more often.",
        "",
        "## What it was shown",
        "",
        f"Views {', '.join(spec.depicts.views)}; age groups {', '.join(spec.depicts.age_groups)}"
        f" (children are mostly 1 to 5 years old); sexes {', '.join(spec.depicts.sexes)}.",
        "",
        "| finding | training films that show it |",
        "| --- | --- |",
        *(f"| {name} | {count} |" for name, count in spec.depicts.findings.items()),
        "",
        f"Findings on fewer than {settings.min_shown} films, sides (left, right), uncertain findings and lateral views",
        "count as not shown: `cxrsynth generate` leaves them out of the prompt and marks them `not_depicted`.",
        "How well the images obey the prompt has not been measured for this version.",
        "",
        "## Measured",
        "",
        f"- autoencoder, films of split `val`: PSNR {psnr['psnr_db_mean']} dB"
        f" (standard deviation between films {psnr['psnr_db_std']} dB) on grey levels stretched to full range;"
        f" {psnr['top_octave']:.0%} of the energy in the upper half of spatial frequencies is kept",
        f"- training steps: autoencoder {settings.autoencoder.steps}, denoiser {settings.denoiser.steps}",
        "",
        "## Made by",
        "",
        "`python -m cxrsynth.nano.build --data DIR --work DIR`, settings in `cxrsynth/nano/build/config.yaml`.",
        "",
    ]
    return "\n".join(lines)


def _forget_origin(path: Path) -> None:
    """Drop the builder's own folder, which diffusers writes into a config."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("_name_or_path", None)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
