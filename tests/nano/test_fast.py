"""nano-fast as shipped, and how it is exported and measured."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file

from cxrsynth.diffusion.model import load_model
from cxrsynth.diffusion.noise import seeded_noise
from cxrsynth.diffusion.resolve import find_model, resolve_model
from cxrsynth.diffusion.sampler import sample_images
from cxrsynth.nano.build import fast
from cxrsynth.nano.build.fast import NAME, export_fast, fast_card, images_per_second
from cxrsynth.settings import Precision, Sampler
from tests.nano.test_nano import PROMPTS, by_diffusers, is_a_chest


def test_it_makes_chests_in_the_steps_it_recommends() -> None:
    model = load_model(resolve_model(NAME), device=torch.device("cpu"), precision=Precision.FP32)
    defaults = model.spec.defaults
    assert (model.name, defaults.guidance, defaults.sampler) == (NAME, 1.0, Sampler.DDIM)
    assert defaults.steps <= 4
    noise = torch.stack([seeded_noise(model.latent_shape, 0, f"nano-{i}") for i in range(len(PROMPTS))])
    images = sample_images(
        model, PROMPTS, noise, sampler=defaults.sampler, steps=defaults.steps, guidance=defaults.guidance
    )
    for image in images.numpy()[:, 0]:
        assert is_a_chest(image)


def test_it_is_near_its_teacher_from_the_same_noise_and_sharper_than_few_steps_of_it() -> None:
    teacher, fast = (
        load_model(resolve_model(name), device=torch.device("cpu"), precision=Precision.FP32) for name in ("nano", NAME)
    )
    noise = torch.stack([seeded_noise(fast.latent_shape, 0, f"near-{i}") for i in range(len(PROMPTS))])
    steps = fast.spec.defaults.steps
    wanted, hasty = (
        sample_images(teacher, PROMPTS, noise, sampler=Sampler.DPMPP, steps=count, guidance=1.75)
        for count in (20, steps)
    )
    found = sample_images(fast, PROMPTS, noise, sampler=Sampler.DDIM, steps=steps, guidance=1.0)
    assert (found - wanted).square().mean() < 0.7 * (hasty - wanted).square().mean()

    def detail(images: torch.Tensor) -> float:
        return float(images.diff(dim=-1).abs().mean())

    assert abs(detail(found) - detail(wanted)) < 0.5 * abs(detail(hasty) - detail(wanted))


@by_diffusers
def test_diffusers_samples_it_as_it_is() -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(find_model(NAME), safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    assert isinstance(pipeline.scheduler, DDIMScheduler)
    [image] = pipeline(PROMPTS[:1], num_inference_steps=4, guidance_scale=1.0).images
    assert is_a_chest(np.asarray(image, dtype=np.float32) / 255)


def test_its_card_agrees_with_its_numbers_and_its_other_networks_are_those_of_nano() -> None:
    folder, nano = find_model(NAME), find_model("nano")
    numbers = json.loads((folder / "numbers.json").read_text(encoding="utf-8"))
    assert (folder / "model_card.md").read_text(encoding="utf-8") == fast_card(numbers)
    assert numbers["made_by"]["steps"] == resolve_model(NAME).spec.defaults.steps
    for part in ("vae", "text_encoder", "tokenizer"):
        for path in (nano / part).iterdir():
            assert (folder / part / path.name).read_bytes() == path.read_bytes(), path
    ours, theirs = (resolve_model(name).spec for name in (NAME, "nano"))
    assert (ours.prompt, ours.depicts) == (theirs.prompt, theirs.depicts)


def test_both_models_stay_below_the_size_limit_together() -> None:
    folders = [find_model(name) for name in ("nano", NAME)]
    assert sum(path.stat().st_size for one in folders for path in one.rglob("*") if path.is_file()) <= 60_000_000


def test_exporting_halves_the_network_and_names_the_model(tiny_model: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    load = resolve_model(str(tiny_model)).folder
    source.mkdir()
    for path in load.rglob("*"):
        if path.is_file():
            (source / path.relative_to(load)).parent.mkdir(parents=True, exist_ok=True)
            (source / path.relative_to(load)).write_bytes(path.read_bytes())
    (source / "cxrsynth.json").write_text('{"name": "nano-distilled", "defaults": {"steps": 2, "guidance": 1.0}}')
    (source / "model_card.md").write_text("of the run")
    export_fast(source, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "cxrsynth.json").read_text())["name"] == NAME
    assert not (tmp_path / "out" / "model_card.md").exists()
    before, after = (
        load_file(one / "unet" / "diffusion_pytorch_model.safetensors") for one in (source, tmp_path / "out")
    )
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], weight.half()) for name, weight in before.items())
    assert resolve_model(str(tmp_path / "out")).spec.defaults.steps == 2


def test_the_ratio_of_speeds_is_that_of_the_times(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    class Taking:
        """A generator that takes its time on a clock of the test."""

        def __init__(self, seconds: float) -> None:
            self.seconds, self.warm = seconds, False

        def generate(self, prompts: list[str], names: list[str]) -> None:
            nonlocal now
            assert len(prompts) == len(names) == len(set(names))
            now += self.seconds if self.warm else 100.0  # the first time counts for nothing
            self.warm = True

    monkeypatch.setattr(fast, "time", SimpleNamespace(monotonic=lambda: now))
    found = images_per_second({"fast": Taking(2.0), "slow": Taking(16.0)})  # type: ignore[dict-item]
    assert (found["fast"], found["slow"]) == (16.0, 2.0)
    assert found["times"] == {"value": 8.0, "low": 8.0, "high": 8.0}
