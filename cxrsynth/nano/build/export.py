"""Export the trained networks as a Stable Diffusion folder in half precision, with cxrsynth.json and a model card."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTokenizer

from cxrsynth.diffusion.networks import load_unet, load_vae
from cxrsynth.diffusion.spec import SPEC_FILE, ModelSpec, SamplingDefaults
from cxrsynth.nano.build.align import image_kind, registered_frames
from cxrsynth.nano.build.card import model_card
from cxrsynth.nano.build.config import BuildConfig
from cxrsynth.nano.build.denoiser import make_sampler
from cxrsynth.nano.build.fitting import resampled
from cxrsynth.nano.build.images import SMALL_GROUPS, Radiograph, load_images
from cxrsynth.nano.build.training import log
from cxrsynth.reports.prompt import Depicts
from cxrsynth.runtime.clip import load_text_encoder
from cxrsynth.runtime.files import folder_atomically
from cxrsynth.settings import PromptStyle

NUMBERS_FILE = "numbers.json"
CARD_FILE = "model_card.md"
FAMILIES_FOLDER = "judges"  # of the reward families, in the model folder and in the work folder
CANONICAL_FILE = "canonical.safetensors"  # mean chest of adults and children in the canonical frame
_MEAN_SIZE = 64
SHARP_VAE = "vae_sharp"  # in the work folder: output of the decoder stage
START = "start"  # in the work folder: the denoiser that training continues from, if any


def export_model(data: Path, work: Path, out: Path, *, settings: BuildConfig) -> None:
    """Write the model folder, measured numbers and the card; the folder is replaced as a whole."""
    vae = load_vae(work / SHARP_VAE)
    train, train_pixels = load_images(data, size=settings.image_size)
    val, pixels = load_images(data, size=settings.image_size, split="val")
    numbers: dict[str, Any] = {
        "autoencoder": _autoencoder_numbers(vae, pixels),
        "images": {"train": len(train), "val": len(val)},
    }
    frames = load_file(work / "frames.safetensors")
    shown = frames["shown"].tolist()
    means = _mean_chests(train, train_pixels, frames["matrices"], frames["shown"])
    small, small_pixels = load_images(data, size=settings.image_size, groups=SMALL_GROUPS, resample=True)
    _, small_shown = registered_frames(small, small_pixels, work / "frames.safetensors", settings=settings.align)
    seen = zip([*train, *small], shown + small_shown.tolist(), strict=True)
    trained = [
        radiograph for radiograph, here in seen if here and settings.denoiser.share.get(radiograph.group, 1.0) > 0
    ]
    spec = _spec(trained, settings)
    numbers["denoiser_steps"] = _denoiser_steps(work, settings)
    numbers["sources"] = _sources(train, trained, [*train, *small])
    denoiser = work if _trained(work) else work / START
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=load_text_encoder(denoiser / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(work / "tokenizer"),
        unet=load_unet(denoiser / "unet"),
        scheduler=make_sampler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    numbers["parameters"] = {name: _count(getattr(pipeline, name)) for name in ("vae", "unet", "text_encoder")}
    # The text encoder stays float32: transformers loads a model in its stored type, and the pipeline would mix two.
    pipeline.unet.half()
    pipeline.vae.half()
    with folder_atomically(out) as partial:
        pipeline.save_pretrained(partial, safe_serialization=True)
        for part in ("unet", "vae"):
            _forget_origin(partial / part / "config.json")
        (partial / SPEC_FILE).write_text(
            spec.model_dump_json(indent=1, exclude={"prompt_template", "negative_prompt"}) + "\n", encoding="utf-8"
        )
        (partial / NUMBERS_FILE).write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
        (partial / CARD_FILE).write_text(model_card(spec, numbers, settings), encoding="utf-8")
        for family in (work / FAMILIES_FOLDER).glob("nano*"):
            for network in ("classifier", "posture", "dual_encoder"):
                # Without the README that the library adds.
                shutil.copytree(
                    family / network,
                    partial / FAMILIES_FOLDER / family.name / network,
                    ignore=shutil.ignore_patterns("README.md"),
                )
            save_file(means, partial / FAMILIES_FOLDER / family.name / CANONICAL_FILE)
    log.info("wrote %s", out)


def _denoiser_steps(work: Path, settings: BuildConfig) -> list[int]:
    """Training steps of the denoiser, by learning-rate schedule."""
    if not (work / START).is_dir():
        return [settings.denoiser.steps]
    previous = work / START / NUMBERS_FILE
    before = json.loads(previous.read_text(encoding="utf-8")) if previous.is_file() else {}
    more = [settings.denoiser.more_steps] if _trained(work) else []
    return [*before.get("denoiser_steps", [settings.denoiser.steps]), *more]


def _trained(work: Path) -> bool:
    """Whether the work folder has a denoiser of its own; a build that continues may train other networks only."""
    return (work / "unet").is_dir()


def _sources(
    autoencoder: list[Radiograph], denoiser: list[Radiograph], reward_models: list[Radiograph]
) -> dict[str, dict[str, int]]:
    """Number of images of each source, by the networks they trained."""
    users = {"autoencoder": autoencoder, "denoiser": denoiser, "reward_models": reward_models}
    counts = {user: Counter(radiograph.group for radiograph in radiographs) for user, radiographs in users.items()}
    return {group: {user: counts[user][group] for user in users} for group in counts["reward_models"]}


def _mean_chests(radiographs: list[Radiograph], pixels: Tensor, matrices: Tensor, shown: Tensor) -> dict[str, Tensor]:
    """`mean_adult` and `mean_child`, float32 [64, 64] in [0, 1]: the mean image of each kind."""
    kinds = [image_kind(radiograph) for radiograph in radiographs]
    means = {}
    for kind in sorted(set(kinds)):
        own = torch.tensor([one == kind for one in kinds]) & shown
        parts = zip(pixels[own].split(256), matrices[own].split(256), strict=True)
        total = sum(
            (resampled(part, m, _MEAN_SIZE).sum(0) for part, m in parts), torch.zeros(1, _MEAN_SIZE, _MEAN_SIZE)
        )
        means[f"mean_{kind}"] = (total / own.sum())[0]
    return means


def _spec(radiographs: list[Radiograph], settings: BuildConfig) -> ModelSpec:
    findings = Counter(name for radiograph in radiographs for name in radiograph.present)

    def values(field: str) -> tuple[str, ...]:
        counts = Counter(getattr(radiograph.subject, field) for radiograph in radiographs)
        return tuple(sorted(v for v, n in counts.items() if v and n >= settings.min_shown))

    return ModelSpec(
        name="nano",
        prompt=PromptStyle.CANONICAL,
        defaults=SamplingDefaults(**settings.defaults.model_dump()),
        depicts=Depicts(
            views=values("view"),
            age_groups=values("age_group"),
            sexes=values("sex"),
            findings={name: n for name, n in sorted(findings.items()) if n >= settings.min_shown},
            # The sources label neither sides nor uncertain findings.
            sides=False,
            uncertain=False,
        ),
    )


@torch.no_grad()
def _autoencoder_numbers(vae: AutoencoderKL, pixels: Tensor) -> dict[str, float]:
    """Over images of split val, at full size in float32; pixels uint8 [N, 1, H, W].

    `psnr_db`: of grey levels stretched to full range. `top_octave`: energy in the upper half of spatial frequencies of
    the reconstructions, relative to that of the images.
    """
    ratios, kept, total = [], 0.0, 0.0
    for radiograph in pixels.split(8):
        images = radiograph.float() / 127.5 - 1
        output = vae.decode(vae.encode(images).latent_dist.mean).sample.clamp(-1, 1)
        mse = ((output - images) / 2).pow(2).mean((1, 2, 3))
        ratios.append(-10 * mse.log10())
        kept, total = kept + _top_octave(output), total + _top_octave(images)
    every = torch.cat(ratios)
    return {
        "psnr_db_mean": round(every.mean().item(), 2),
        "psnr_db_std": round(every.std().item(), 2),
        "top_octave": round(kept / total, 3),
    }


def _top_octave(images: Tensor) -> float:
    """Energy of [B, 1, H, W] between half the Nyquist frequency and the Nyquist frequency, with a Hann window."""
    size = images.shape[-1]
    window = torch.hann_window(size)
    energy = torch.fft.fft2(images * window[:, None] * window).abs().square()
    frequency = torch.fft.fftfreq(size)  # cycles per pixel; Nyquist is 0.5
    radius = (frequency[:, None].square() + frequency.square()).sqrt()
    return float(energy[..., (radius >= 0.25) & (radius < 0.5)].sum())


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _forget_origin(path: Path) -> None:
    """Remove the path of the work folder, which diffusers writes into a config."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("_name_or_path", None)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
