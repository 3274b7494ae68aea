"""The supervised loss against diffusers' own schedulers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from safetensors.torch import load_file
from torch import Tensor

from cxrsynth.diffusion.finetune import denoising_loss
from cxrsynth.diffusion.model import load_model
from cxrsynth.diffusion.resolve import find_model, resolve_model
from cxrsynth.diffusion.sampler import decode_latents, encode_images
from cxrsynth.diffusion.schedule import DiscreteSchedule, noise_schedule
from cxrsynth.errors import ModelError
from cxrsynth.settings import Precision

KINDS = ("epsilon", "v_prediction", "sample")
TIMESTEPS = torch.tensor([0, 17, 500, 998])


def config(kind: str, **others: Any) -> dict[str, Any]:
    return {"prediction_type": kind, "beta_schedule": "scaled_linear", "clip_sample": False, **others}


def drawn() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, len(TIMESTEPS), 4, 8, 8, generator=generator)
    return clean, noise


def schedule_of(given: dict[str, Any]) -> DiscreteSchedule:
    found = noise_schedule(given, torch.device("cpu"))
    assert isinstance(found, DiscreteSchedule)
    return found


def implied(scheduler: DDIMScheduler, said: Tensor, noisy: Tensor) -> Tensor:
    """The clean latents that the scheduler of diffusers derives from a prediction."""
    scheduler.set_timesteps(1000)
    steps = zip(said, TIMESTEPS, noisy, strict=True)
    return torch.stack([scheduler.step(p[None], t, n[None]).pred_original_sample[0] for p, t, n in steps])


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_right_answer_is_the_schedulers_and_costs_nothing(kind: str, rescale: bool) -> None:
    schedule = schedule_of(config(kind, rescale_betas_zero_snr=rescale))
    clean, noise = drawn()
    noisy = schedule.noisy(clean, noise, TIMESTEPS)
    right = schedule.target(clean, noise, TIMESTEPS)
    torch.testing.assert_close(implied(schedule.scheduler, right, noisy), clean, atol=1e-2, rtol=1e-3)
    for gamma in (None, 5.0):
        assert not denoising_loss(schedule, right, clean, noise, TIMESTEPS, min_snr=gamma).any()
        assert (denoising_loss(schedule, right + 1, clean, noise, TIMESTEPS, min_snr=gamma) > 0).all()
    wrong = denoising_loss(schedule, right + 2, clean, noise, TIMESTEPS)
    torch.testing.assert_close(wrong, torch.full((4,), 4.0))


@pytest.mark.parametrize("kind", KINDS)
def test_min_snr_weighs_the_error_of_the_clean_latents(kind: str) -> None:
    """For every prediction type, the weighted loss is min(SNR, gamma) times the error of the clean latents."""
    schedule, gamma = schedule_of(config(kind)), 5.0
    clean, noise = drawn()
    clean, noise = clean.double(), noise.double()
    right = schedule.target(clean, noise, TIMESTEPS)
    said = right + 0.1
    error = implied(schedule.scheduler, said, schedule.noisy(clean, noise, TIMESTEPS)) - clean
    kept = schedule.scheduler.alphas_cumprod[TIMESTEPS]
    expected = (kept / (1 - kept)).clamp(max=gamma) * error.square().mean((1, 2, 3))
    found = denoising_loss(schedule, said, clean, noise, TIMESTEPS, min_snr=gamma)
    torch.testing.assert_close(found.double(), expected.double(), rtol=2e-3, atol=0)


def test_weights_are_numbers_where_the_signal_is_zero() -> None:
    last = torch.tensor([999])
    weights = {}
    for kind in KINDS:
        schedule = schedule_of(config(kind, rescale_betas_zero_snr=True))
        assert schedule.scheduler.alphas_cumprod[-1] == 0
        weights[kind] = schedule.snr_weights(last, gamma=5.0).item()
    assert weights == {"epsilon": 1.0, "v_prediction": 0.0, "sample": 0.0}


def test_the_schedule_is_the_models_whatever_sampler_its_folder_names() -> None:
    saved = dict(DDPMScheduler(**config("epsilon", beta_start=0.00085, beta_end=0.012)).config)
    expected = DDPMScheduler.from_config(saved).alphas_cumprod
    assert torch.equal(schedule_of(saved).scheduler.alphas_cumprod, expected)
    with pytest.raises(ModelError, match="expected: epsilon, v_prediction, sample"):
        schedule_of(config("flow"))


def test_a_large_batch_is_decoded_in_parts(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(resolve_model(str(tiny_model)), device=torch.device("cpu"), precision=Precision.FP32)
    latents = torch.randn(19, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    assert model.vae is not None
    decode, sizes = model.vae.decode, []

    def noted(part: torch.Tensor, **given: bool) -> tuple[torch.Tensor]:
        sizes.append(len(part))
        return decode(part, **given)

    monkeypatch.setattr(model.vae, "decode", noted)
    images = decode_latents(model, latents)
    assert sizes == [8, 8, 3]
    alone = torch.cat([decode_latents(model, one[None]) for one in latents])
    torch.testing.assert_close(images, alone, atol=1e-5, rtol=0)
    assert decode_latents(model, latents[:0]).shape == (0, *images.shape[1:])


def test_an_encoded_image_decodes_to_itself() -> None:
    """Range, scale and channels come back as they went in."""
    model = load_model(resolve_model("nano"), device=torch.device("cpu"), precision=Precision.FP32)
    chests = load_file(find_model("nano") / "judges" / "nano" / "canonical.safetensors")
    radiographs = torch.stack([chests["mean_adult"], chests["mean_child"]])[:, None]
    radiographs = torch.nn.functional.interpolate(radiographs, (256, 256), mode="bicubic").clamp(0, 1)
    latents = encode_images(model, radiographs)
    assert latents.shape == (2, *model.latent_shape)
    error = (decode_latents(model, latents) - radiographs).square().mean()
    assert 10 * torch.log10(1 / error) > 30  # dB


def test_gray_is_repeated_for_the_channels_of_the_autoencoder(tiny_model: object) -> None:
    model = load_model(resolve_model(str(tiny_model)), device=torch.device("cpu"), precision=Precision.FP32)
    radiograph = torch.linspace(0, 1, 32 * 32).view(1, 1, 32, 32)
    latents = encode_images(model, radiograph)
    with torch.no_grad():
        found = model.vae.encode(torch.cat([radiograph] * 3, 1) * 2 - 1).latent_dist.mean
    torch.testing.assert_close(latents, found * model.vae.config.scaling_factor)
