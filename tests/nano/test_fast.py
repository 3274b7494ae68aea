"""nano-fast as shipped, and how it is exported and measured."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from cxrsynth.diffusion.model import load_model
from cxrsynth.diffusion.networks import load_vae
from cxrsynth.diffusion.noise import seeded_noise
from cxrsynth.diffusion.resolve import find_model, resolve_model
from cxrsynth.diffusion.sampler import sample_images
from cxrsynth.nano.build import fast, fast_autoencoder
from cxrsynth.nano.build.autoencoder import encode_moments
from cxrsynth.nano.build.fast import NAME, export_fast, fast_card, images_per_second
from cxrsynth.nano.build.training import step_generator
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


@pytest.mark.slow
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
    [image] = pipeline(
        PROMPTS[:1], num_inference_steps=resolve_model(NAME).spec.defaults.steps, guidance_scale=1.0
    ).images
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


def test_an_autoencoder_of_its_own_changes_the_card() -> None:
    numbers = json.loads((find_model(NAME) / "numbers.json").read_text(encoding="utf-8"))
    numbers["made_by"]["own_autoencoder"] = True
    card = fast_card(numbers)
    assert "Its autoencoder is narrower than nano's" in card
    assert "nano; text encoder and tokenizer are nano's" in card
    assert "fast_autoencoder --model" in card
    assert "Decoding takes as long as before" not in card


def test_a_narrow_autoencoder_fits_nanos_latents() -> None:
    nano = load_vae(find_model("nano") / "vae")
    narrow = fast_autoencoder.narrow_autoencoder(nano)
    image = torch.zeros(1, 1, 256, 256)
    with torch.no_grad():
        means = [vae.encode(image).latent_dist.mean for vae in (nano, narrow)]
        drawn = narrow.decode(means[1]).sample
    assert means[0].shape == means[1].shape
    assert drawn.shape == image.shape
    sizes = [sum(weight.numel() for weight in vae.decoder.parameters()) for vae in (nano, narrow)]
    assert sizes[1] < 0.5 * sizes[0]


def test_a_crop_of_examples_is_the_same_place_in_both_and_counts_what_padding_does_not_reach() -> None:
    latents = torch.arange(32.0 * 32).reshape(1, 1, 32, 32).expand(101, 8, 32, 32)
    images = latents[:, :1].repeat_interleave(8, -1).repeat_interleave(8, -2)
    corners = set()
    for step in range(60):
        crop, target, inside = fast_autoencoder._crops(latents, images, step_generator(0, step))
        assert torch.equal(crop[:, :1], target[:, :, ::8, ::8])
        pairs, (top, bottom, left, right) = fast_autoencoder._crops(images, latents, step_generator(0, step)), inside[0]
        assert all(torch.equal(a, b) for a, b in zip(pairs, (target, crop, inside), strict=True))
        assert top == (0 if crop[0, 0, 0, 0] < 32 else 16)
        assert bottom == (160 if crop[0, 0, -1, 0] >= 31 * 32 else 144)
        assert left == (0 if crop[0, 0, 0, 0] % 32 == 0 else 16)
        assert right == (160 if crop[0, 0, 0, -1] % 32 == 31 else 144)
        assert fast_autoencoder.cut(target, inside).shape[2:] == (bottom - top, right - left)
        corners.add(float(crop[0, 0, 0, 0]))
    assert len(corners) > 30


@pytest.mark.slow
def test_both_halves_of_a_narrow_autoencoder_learn_and_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    nano = load_vae(find_model("nano") / "vae")
    latents = torch.randn(4, nano.config.latent_channels, 32, 32, generator=generator)
    with torch.no_grad():
        images = nano.decode(latents).sample
    save_file(
        {"latents": latents.half(), "images": images.half(), "moments": encode_moments(nano, images).half()},
        tmp_path / "fast-autoencoder.safetensors",
    )
    monkeypatch.setattr(fast_autoencoder, "_HELD_OUT", 2)
    monkeypatch.setattr(fast_autoencoder, "_TRAINED", 2)
    reports = tmp_path / "reports.csv"  # not read: there are examples already
    fast_autoencoder.main(
        find_model("nano"), reports, tmp_path, decoder_steps=2, sharpening_steps=2, encoder_steps=2, seed=3
    )
    written = load_vae(tmp_path / fast_autoencoder.FOLDER)
    torch.manual_seed(3)
    untrained = fast_autoencoder.narrow_autoencoder(nano).half().state_dict()
    halves = ("encoder.", "quant_conv.", "decoder.", "post_quant_conv.")
    for half in halves:
        kept = {name: one for name, one in written.state_dict().items() if name.startswith(half)}
        assert any(not torch.equal(one.float(), untrained[name].float()) for name, one in kept.items()), half
        assert all(one.isfinite().all() for one in kept.values())
    plain, sharp = (torch.load(tmp_path / f"fast-{name}.pt", weights_only=True) for name in ("decoder", "sharpening"))
    assert any(not torch.equal(one, sharp["decoder"][name]) for name, one in plain["half"].items())


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
    export_fast(source, tmp_path / "out", autoencoder=find_model("nano") / "vae")
    assert json.loads((tmp_path / "out" / "cxrsynth.json").read_text())["name"] == NAME
    assert not (tmp_path / "out" / "model_card.md").exists()
    for path in (find_model("nano") / "vae").iterdir():
        assert (tmp_path / "out" / "vae" / path.name).read_bytes() == path.read_bytes()
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
