"""Every family: our images are those of the plain pipeline of diffusers from the same noise."""

import inspect
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import (
    AutoencoderTiny,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FluxPipeline,
)
from safetensors.torch import load_file, save_file
from torch import Tensor

from cxrsynth.diffusion.additions import Additions
from cxrsynth.diffusion.families import FAMILIES as KNOWN
from cxrsynth.diffusion.model import DiffusionModel, load_model
from cxrsynth.diffusion.networks import load_vae
from cxrsynth.diffusion.resolve import resolve_model
from cxrsynth.diffusion.sampler import encode_images, guided_condition, make_scheduler, predict_noise, sample_images
from cxrsynth.diffusion.schedule import KNOWN_SCHEDULERS, read_scheduler_config
from cxrsynth.errors import ModelError
from cxrsynth.settings import Precision, Sampler
from tests.families import BUILDERS, FAMILIES, FLOW, build

CPU = torch.device("cpu")
# One of each family; what differs in its text encoders takes longer in all.
KINDS = [name if name in FAMILIES else pytest.param(name, marks=pytest.mark.slow) for name in BUILDERS]
PROMPTS = ["clear lungs", "left lower lobe pneumonia"]
STEPS = 4


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model of each kind."""
    home = tmp_path_factory.mktemp("families")
    return {name: build(name, home / name.replace(" ", "-")) for name in BUILDERS}


@pytest.fixture(scope="module")
def stable_diffusion(folders: dict[str, Path]) -> DiffusionModel:
    """The first of them, loaded."""
    return loaded(folders["stable_diffusion"])


def loaded(folder: Path) -> DiffusionModel:
    return load_model(resolve_model(str(folder)), device=CPU, precision=Precision.FP32)


def noise_of(model: DiffusionModel) -> Tensor:
    return torch.randn(len(PROMPTS), *model.latent_shape, generator=torch.Generator().manual_seed(0))


def by_diffusers(
    folder: Path,
    noise: Tensor,
    guidance: float,
    scheduler: Any = None,
    *,
    negative: str | None = None,
    prompts: list[str] = PROMPTS,
) -> Tensor:
    """Images [B, 1, H, W] of the plain pipeline."""
    index = json.loads((folder / "model_index.json").read_text())
    left_out = {name: None for name in index if index[name] == [None, None]} | {"safety_checker": None}
    pipeline = DiffusionPipeline.from_pretrained(folder, **left_out)
    pipeline.set_progress_bar_config(disable=True)
    if scheduler is not None:
        pipeline.scheduler = scheduler(pipeline.scheduler.config)
    height, width = (side * pipeline.vae_scale_factor for side in noise.shape[2:])
    wanted = {"use_resolution_binning": False, "clean_caption": False}
    further: dict[str, Any] = {
        name: value for name, value in wanted.items() if name in inspect.signature(pipeline.__call__).parameters
    }
    if negative is not None:
        further["negative_prompt"] = (
            negative if "Sana" in index["_class_name"] or "PixArt" in index["_class_name"] else [negative] * 2
        )
    latents = noise.clone()
    if isinstance(pipeline, FluxPipeline):
        latents = FluxPipeline._pack_latents(latents, *latents.shape)
        if not pipeline.transformer.config.guidance_embeds:
            further |= {"true_cfg_scale": guidance, "negative_prompt": [negative or ""] * len(PROMPTS)}
    images = pipeline(
        prompts,
        latents=latents,
        height=height,
        width=width,
        num_inference_steps=STEPS,
        guidance_scale=guidance,
        output_type="np",
        **further,
    ).images
    return torch.from_numpy(images).permute(0, 3, 1, 2)


class _OfItsOwn(DPMSolverMultistepScheduler):
    """DPM-Solver++ for pipelines that give every scheduler noise levels: it keeps its own."""

    def set_timesteps(self, *given: Any, sigmas: Any = None, mu: float | None = None, **further: Any) -> None:
        if self.config.get("use_dynamic_shifting"):
            assert mu is not None
            self.register_to_config(flow_shift=math.exp(mu))
        super().set_timesteps(*(given or [len(sigmas)]), **further)


def dpmpp(config: Any) -> Any:
    further = {}
    if "FlowMatch" in config["_class_name"]:
        further = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": config["shift"]}
    return _OfItsOwn.from_config(config, **further)


@pytest.mark.parametrize("guidance", [pytest.param(1.0, marks=pytest.mark.slow), 3.0])
@pytest.mark.parametrize("name", KINDS)
def test_images_are_those_of_diffusers(name: str, guidance: float, folders: dict[str, Path]) -> None:
    model = loaded(folders[name])
    noise = noise_of(model)
    for sampler in (Sampler.MODEL, Sampler.DPMPP):
        expected = by_diffusers(folders[name], noise, guidance, dpmpp if sampler is Sampler.DPMPP else None)
        assert expected.shape == (2, 1, *model.image_shape)
        found = sample_images(model, PROMPTS, noise, sampler=sampler, steps=STEPS, guidance=guidance)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert (found[0] - found[1]).abs().max() > 1e-4  # not the same image whatever the prompt


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "sana"])
def test_a_tiny_autoencoder_decodes_as_in_diffusers(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """In the place of the model's, as TAESD and its kin are used; and it encodes what it decodes."""
    shutil.copytree(folders[name], tmp_path / "own")
    if name == "flux":  # its images have the size that the autoencoder names, which a tiny one does not
        (tmp_path / "own" / "cxrsynth.json").write_text(
            json.dumps({"image_size": list(loaded(folders[name]).image_shape)})
        )
    shutil.copytree(tmp_path / "own", tmp_path / "model", ignore=shutil.ignore_patterns("vae"))
    wide = load_vae(folders[name] / "vae").config
    sides = (8,) * len(wide.block_out_channels)
    vae = AutoencoderTiny(
        in_channels=wide.in_channels,
        out_channels=wide.out_channels,
        latent_channels=wide.latent_channels,
        encoder_block_out_channels=sides,
        decoder_block_out_channels=sides,
        num_encoder_blocks=(1,) * len(sides),
        num_decoder_blocks=(1,) * len(sides),
        scaling_factor=0.5,
    )
    with torch.no_grad():
        vae.decoder.layers[-1].bias.fill_(0.5)  # gray, whatever the random weights
    vae.save_pretrained(tmp_path / "model" / "vae")
    index = json.loads((tmp_path / "model" / "model_index.json").read_text())
    index["vae"] = ["diffusers", "AutoencoderTiny"]
    (tmp_path / "model" / "model_index.json").write_text(json.dumps(index))
    model = loaded(tmp_path / "model")
    noise = noise_of(model)
    found = sample_images(model, PROMPTS, noise, sampler=Sampler.MODEL, steps=STEPS, guidance=3.0)
    torch.testing.assert_close(found, by_diffusers(tmp_path / "model", noise, 3.0), atol=1e-4, rtol=0)
    assert found.std() > 1e-3
    with torch.no_grad():
        latents = vae.encode((found * 2 - 1).expand(-1, wide.in_channels, -1, -1)).latents
    torch.testing.assert_close(encode_images(model, found), latents * 0.5, atol=1e-4, rtol=1e-4)
    over = load_model(
        resolve_model(str(tmp_path / "own"), additions=Additions(vae=tmp_path / "model" / "vae")),
        device=CPU,
        precision=Precision.FP32,
    )
    again = sample_images(over, PROMPTS, noise, sampler=Sampler.MODEL, steps=STEPS, guidance=3.0)
    torch.testing.assert_close(again, found)


@pytest.mark.parametrize("guidance", [0.0, 0.25, 1.0, 2.0])
def test_guidance_mixes_both_predictions_at_every_scale(guidance: float, stable_diffusion: DiffusionModel) -> None:
    """Pipelines of diffusers leave the prediction without prompt out at 1 and below; the definition does not."""
    model, latents, timestep = stable_diffusion, noise_of(stable_diffusion), torch.tensor(500)
    text, empty = model.encode(PROMPTS)
    condition = guided_condition(model, text, empty, guidance)
    with torch.no_grad():
        conditional = model.predict(latents, timestep, text)
        unconditional = model.predict(latents, timestep, empty.expand(len(PROMPTS)))
        found = predict_noise(model, latents, timestep, condition, guidance)
    assert not torch.allclose(conditional, unconditional)
    torch.testing.assert_close(found, (1 - guidance) * unconditional + guidance * conditional)


def test_a_negative_prompt_is_refused_where_guidance_is_an_input(folders: dict[str, Path]) -> None:
    model = resolve_model(str(folders["flux"]))
    with pytest.raises(ModelError, match="a negative prompt, but the model takes its guidance as an input"):
        load_model(model, device=CPU, precision=Precision.FP32, negative_prompt="left lungs")


@pytest.mark.parametrize("name", [name for name in KINDS if name != "flux"])
def test_a_negative_prompt_is_that_of_diffusers(name: str, folders: dict[str, Path]) -> None:
    plain = loaded(folders[name])
    noise = noise_of(plain)
    negative = load_model(
        resolve_model(str(folders[name])), device=CPU, precision=Precision.FP32, negative_prompt="left lungs"
    )
    images = [
        sample_images(model, PROMPTS, noise, sampler=Sampler.MODEL, steps=STEPS, guidance=3.0)
        for model in (plain, negative)
    ]
    expected = by_diffusers(folders[name], noise, 3.0, negative="left lungs")
    torch.testing.assert_close(images[1], expected, atol=1e-4, rtol=0)
    assert (images[0] - images[1]).abs().max() > 1e-3
    for condition in plain.encode(PROMPTS)[1].tensors.values():
        assert len(condition) == 1


@pytest.mark.parametrize("name", FAMILIES)
def test_euler_is_the_schedulers_of_that_name(name: str, folders: dict[str, Path]) -> None:
    model = loaded(folders[name])
    noise = noise_of(model)
    found = sample_images(model, PROMPTS, noise, sampler=Sampler.EULER, steps=STEPS, guidance=3.0)
    own = None if name in FLOW else EulerDiscreteScheduler.from_config
    # The pipelines scale given latents by the scheduler's own first noise level, as ours do.
    torch.testing.assert_close(found, by_diffusers(folders[name], noise, 3.0, own), atol=1e-4, rtol=0)


def test_colors_are_clipped_before_they_become_gray(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "model")
    weights = tmp_path / "model" / "vae" / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    state["decoder.conv_out.weight"] *= 30  # pixels far outside of [-1, 1]
    save_file(state, weights, metadata={"format": "pt"})
    model = loaded(tmp_path / "model")
    noise = noise_of(model)
    expected = by_diffusers(tmp_path / "model", noise, 3.0)
    assert ((expected == 0) | (expected == 1)).float().mean() > 0.2
    found = sample_images(model, PROMPTS, noise, sampler=Sampler.MODEL, steps=STEPS, guidance=3.0)
    torch.testing.assert_close(found, expected.mean(1, keepdim=True), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", FLOW)
def test_flow_matching_has_no_ddim_steps(name: str, folders: dict[str, Path]) -> None:
    model = loaded(folders[name])
    with pytest.raises(ModelError, match=r"the sampler ddim: .*flow matching.*\n.*euler"):
        sample_images(model, PROMPTS, noise_of(model), sampler=Sampler.DDIM, steps=STEPS, guidance=1.0)


@pytest.mark.parametrize("name", FAMILIES)
def test_encoding_undoes_the_scale_and_shift_of_decoding(name: str, folders: dict[str, Path]) -> None:
    model = loaded(folders[name])
    image = torch.rand(1, 1, *model.image_shape, generator=torch.Generator().manual_seed(0))
    config = model.vae.config
    with torch.no_grad():
        encoded = model.vae.encode(image * 2 - 1)
    raw = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latent
    expected = (raw - (config.get("shift_factor") or 0.0)) * config.scaling_factor
    torch.testing.assert_close(encode_images(model, image), expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_condition_does_not_depend_on_the_prompts_beside_it(name: str, folders: dict[str, Path]) -> None:
    model = loaded(folders[name])
    together, empty = model.encode(PROMPTS)
    for place, prompt in enumerate(PROMPTS):
        alone, also_empty = model.encode([prompt])
        for key, tensor in alone.tensors.items():
            torch.testing.assert_close(together[[place]].tensors[key], tensor, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(also_empty.tensors[key], empty.tensors[key])


@pytest.mark.parametrize("name", FAMILIES)
def test_what_a_perfect_network_predicts_has_the_velocity_of_the_target(name: str, folders: dict[str, Path]) -> None:
    schedule = loaded(folders[name]).schedule
    levels = torch.tensor([10, 400, schedule.end - 1])
    clean, noise = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    noisy, std = schedule.noisy(clean, noise, levels), schedule.noise_std(levels)[:, None, None, None]
    right = schedule.velocity_target(clean, noise, levels)
    found = schedule.velocity(noisy, schedule.target(clean, noise, levels), levels)
    torch.testing.assert_close(found, right, atol=1e-4, rtol=1e-4)
    # An error d of the clean latents is an error d / s of the velocity: noisy stays what it is.
    error = torch.full_like(clean, 0.1)
    signal = (noisy - std * noise)[:, :1] / clean[:, :1]
    other = schedule.velocity_target(clean + error, noise - signal * error / std, levels)
    torch.testing.assert_close(other - right, -error / std, atol=1e-3, rtol=1e-3)


def test_the_families_name_themselves() -> None:
    assert sorted(KNOWN) == sorted((*FAMILIES, "unconditional"))
    for family in KNOWN.values():
        assert family.defaults.sampler is not Sampler.DDIM or family.denoiser == "unet"


@pytest.mark.parametrize("name", ["sdxl", "sd3"])
def test_a_folder_without_a_part_says_what_it_looks_like(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders[name], tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / "text_encoder_2")
    with pytest.raises(ModelError, match=r"looks like a Stable Diffusion .* missing text_encoder_2/"):
        resolve_model(str(tmp_path / "model"))


SCHEDULERS = sorted(name for name in dir(diffusers) if name.endswith("Scheduler") and not name.startswith("Flax"))


@pytest.mark.parametrize("named", SCHEDULERS)
def test_every_scheduler_is_reproducible_or_refused(
    named: str, stable_diffusion: DiffusionModel, tmp_path: Path
) -> None:
    """Images depend on their own noise alone: not on torch's global generator, nor on what is beside them."""
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps({"_class_name": named}))
    if named not in KNOWN_SCHEDULERS:
        with pytest.raises(ModelError, match=f"{named} is not supported"):
            read_scheduler_config(tmp_path / "scheduler")
        return
    components = replace(stable_diffusion.components, scheduler_config=read_scheduler_config(tmp_path / "scheduler"))
    model = replace(stable_diffusion, components=components)
    noise, given = noise_of(model), {"sampler": Sampler.MODEL, "steps": STEPS, "guidance": 1.0}
    if named == "DPMSolverSDEScheduler":
        with pytest.raises(ModelError, match="draws its noise from a generator of its own"):
            sample_images(model, PROMPTS, noise, **given)  # type: ignore[arg-type]
        return
    torch.manual_seed(1)
    whole = sample_images(model, PROMPTS, noise, **given)  # type: ignore[arg-type]
    torch.manual_seed(2)
    alone = sample_images(model, PROMPTS[1:], noise[1:], **given)  # type: ignore[arg-type]
    torch.testing.assert_close(whole[1:], alone, atol=1e-5, rtol=0)
    assert whole.isfinite().all()


@pytest.mark.parametrize("sampler", [Sampler.DDIM, Sampler.DPMPP])
def test_sigmoid_betas(sampler: Sampler, folders: dict[str, Path], tmp_path: Path) -> None:
    """Only one scheduler of diffusers knows them; the noise levels are its own in all of ours."""
    shutil.copytree(folders["stable_diffusion"], tmp_path / "model")
    config = tmp_path / "model" / "scheduler" / "scheduler_config.json"
    content = {"_class_name": "DDPMScheduler", "beta_schedule": "sigmoid", "clip_sample": False}
    config.write_text(json.dumps(content))
    model = loaded(tmp_path / "model")
    expected = DDPMScheduler(beta_schedule="sigmoid").alphas_cumprod
    scheduler = make_scheduler(model, sampler, steps=STEPS)
    torch.testing.assert_close(scheduler.alphas_cumprod, expected)
    assert scheduler.alphas_cumprod[500] != DDPMScheduler().alphas_cumprod[500]
    assert sample_images(model, PROMPTS, noise_of(model), sampler=sampler, steps=STEPS, guidance=1.0).isfinite().all()


def test_noise_prediction_from_noise_alone_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["stable_diffusion"], tmp_path / "model")
    config = tmp_path / "model" / "scheduler" / "scheduler_config.json"
    content = {"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    config.write_text(json.dumps(content))
    model = loaded(tmp_path / "model")
    with pytest.raises(ModelError, match=r"predicts noise, and its schedule ends in noise alone"):
        sample_images(model, PROMPTS, noise_of(model), sampler=Sampler.DDIM, steps=STEPS, guidance=1.0)
