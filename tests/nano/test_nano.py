"""The embedded model as shipped."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from diffusers import StableDiffusionPipeline
from numpy.typing import NDArray

from cxrsynth.diffusion.model import DiffusionModel, load_model
from cxrsynth.diffusion.noise import seeded_noise
from cxrsynth.diffusion.resolve import find_model, resolve_model
from cxrsynth.diffusion.sampler import make_scheduler, sample_images
from cxrsynth.diffusion.spec import read_spec
from cxrsynth.nano import build
from cxrsynth.nano.build.card import model_card
from cxrsynth.nano.build.config import load_config
from cxrsynth.settings import Precision, PromptStyle, Sampler

# nano's tokenizer is a tokenizer.json alone: before transformers 5 cxrsynth reads it, but not a pipeline of diffusers.
by_diffusers = pytest.mark.skipif(
    int(transformers.__version__.partition(".")[0]) < 5, reason="a pipeline needs transformers 5 or later"
)

PROMPTS = ["PA view. Adult woman. Normal chest.", "AP view. Child. Pneumonia."]


@pytest.fixture(scope="module")
def nano() -> DiffusionModel:
    return load_model(resolve_model("nano"), device=torch.device("cpu"), precision=Precision.FP32)


def images_of(model: DiffusionModel, *, steps: int = 12) -> torch.Tensor:
    noise = torch.stack([seeded_noise(model.latent_shape, 0, f"nano-{i}") for i in range(len(PROMPTS))])
    return sample_images(model, PROMPTS, noise, sampler=Sampler.DDIM, steps=steps, guidance=2.0)


def is_a_chest(image: NDArray[np.float32]) -> bool:
    """Whether an image [256, 256] in [0, 1] has two dark lungs beside a bright mediastinum, and is smooth."""
    middle = image[90:150, 118:138].mean()
    lungs = np.minimum(image[90:150, 60:100].mean(), image[90:150, 156:196].mean())
    return bool(middle - lungs > 0.1 and np.abs(np.diff(image, axis=1)).mean() < 0.05)


@by_diffusers
def test_diffusers_itself_loads_and_runs_it() -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(find_model("nano"), safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    [image] = pipeline(PROMPTS[:1], num_inference_steps=2).images
    assert image.size == (256, 256)
    assert image.mode == "L"


def test_it_takes_canonical_prompts_and_declares_its_findings(nano: DiffusionModel) -> None:
    assert nano.spec.prompt is PromptStyle.CANONICAL
    assert nano.spec.depicts is not None
    assert "Pneumonia" in nano.spec.depicts.findings
    assert not nano.spec.depicts.sides
    card = (find_model("nano") / "model_card.md").read_text(encoding="utf-8")
    for name, count in nano.spec.depicts.findings.items():
        assert f"| {name} | {count} |" in card


def test_its_card_names_the_networks_beside_the_model_and_how_they_are_made() -> None:
    folder = find_model("nano")
    card = (folder / "model_card.md").read_text(encoding="utf-8")
    beside = {path.name for path in folder.iterdir() if path.is_dir()} - set(resolve_model("nano").parts)
    assert beside == {"framing", "judges", "verifier"}
    assert all(f"`{name}/`" in card for name in beside)
    for name in ("framing", "verifier"):
        assert f"python -m cxrsynth.nano.build.{name} --data DIR --work DIR" in card


def test_its_card_agrees_with_its_numbers() -> None:
    folder = find_model("nano")
    numbers = json.loads((folder / "numbers.json").read_text(encoding="utf-8"))
    settings = load_config(Path(build.__file__).with_name("config.yaml"))
    assert (folder / "model_card.md").read_text(encoding="utf-8") == model_card(read_spec(folder), numbers, settings)


@by_diffusers
def test_its_sampler_ends_at_the_lowest_noise_level_of_training(nano: DiffusionModel) -> None:
    """At zero noise, images come out too smooth; the pipeline of diffusers must end at the same level."""
    defaults = nano.spec.defaults
    pipeline = StableDiffusionPipeline.from_pretrained(find_model("nano"), safety_checker=None)
    pipeline.scheduler.set_timesteps(defaults.steps)
    for scheduler in (make_scheduler(nano, defaults.sampler, steps=defaults.steps), pipeline.scheduler):
        assert scheduler.timesteps[0] == 999
        assert 0.01 < float(scheduler.sigmas[-1]) < 0.05


def test_its_images_are_chests_rather_than_noise_or_blank(nano: DiffusionModel) -> None:
    images = images_of(nano).numpy()[:, 0]  # [B, H, W]
    assert images.shape == (2, 256, 256)
    assert all(map(is_a_chest, images))


def test_the_prompt_changes_the_image(nano: DiffusionModel) -> None:
    noise = seeded_noise(nano.latent_shape, 0, "same").expand(2, -1, -1, -1)
    adult, child = sample_images(nano, PROMPTS, noise, sampler=Sampler.DDIM, steps=6, guidance=2.0)
    assert (adult - child).abs().mean() > 0.02


@pytest.mark.slow
def test_bfloat16_stays_close_to_float32(nano: DiffusionModel) -> None:
    half = load_model(resolve_model("nano"), device=torch.device("cpu"), precision=Precision.BF16)
    assert (images_of(half) - images_of(nano)).abs().mean() < 0.02
