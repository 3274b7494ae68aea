"""The supervised loss against diffusers' own schedulers."""

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from safetensors.torch import load_file
from torch import Tensor

from cxrsynth.diffusion.finetune import denoising_loss, denoising_target, snr_weights, training_schedule
from cxrsynth.diffusion.model import load_model
from cxrsynth.diffusion.resolve import find_model, resolve_model
from cxrsynth.diffusion.sampler import decode_latents, encode_images
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


def implied(scheduler: DDIMScheduler, said: Tensor, noisy: Tensor) -> Tensor:
    """The clean latents that diffusers' own step takes a prediction to mean."""
    scheduler.set_timesteps(1000)
    steps = zip(said, TIMESTEPS, noisy, strict=True)
    return torch.stack([scheduler.step(p[None], t, n[None]).pred_original_sample[0] for p, t, n in steps])


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_right_answer_is_the_schedulers_and_costs_nothing(kind: str, rescale: bool) -> None:
    scheduler = training_schedule(config(kind, rescale_betas_zero_snr=rescale))
    clean, noise = drawn()
    noisy = scheduler.add_noise(clean, noise, TIMESTEPS)
    right = denoising_target(scheduler, clean, noise, TIMESTEPS)
    torch.testing.assert_close(implied(scheduler, right, noisy), clean, atol=1e-2, rtol=1e-3)
    for gamma in (None, 5.0):
        assert not denoising_loss(scheduler, right, clean, noise, TIMESTEPS, min_snr=gamma).any()
        assert (denoising_loss(scheduler, right + 1, clean, noise, TIMESTEPS, min_snr=gamma) > 0).all()
    wrong = denoising_loss(scheduler, right + 2, clean, noise, TIMESTEPS)
    torch.testing.assert_close(wrong, torch.full((4,), 4.0))


@pytest.mark.parametrize("kind", KINDS)
def test_min_snr_weighs_the_error_of_the_clean_latents(kind: str) -> None:
    """Whatever is predicted, the weighted loss is min(SNR, gamma) times the error it makes in the clean latents."""
    scheduler, gamma = training_schedule(config(kind)), 5.0
    clean, noise = drawn()
    clean, noise = clean.double(), noise.double()
    right = denoising_target(scheduler, clean, noise, TIMESTEPS)
    said = right + 0.1
    error = implied(scheduler, said, scheduler.add_noise(clean, noise, TIMESTEPS)) - clean
    kept = scheduler.alphas_cumprod[TIMESTEPS]
    expected = (kept / (1 - kept)).clamp(max=gamma) * error.square().mean((1, 2, 3))
    found = denoising_loss(scheduler, said, clean, noise, TIMESTEPS, min_snr=gamma)
    torch.testing.assert_close(found.double(), expected.double(), rtol=2e-3, atol=0)


def test_weights_are_numbers_where_the_signal_is_zero() -> None:
    last = torch.tensor([999])
    weights = {}
    for kind in KINDS:
        scheduler = training_schedule(config(kind, rescale_betas_zero_snr=True))
        assert scheduler.alphas_cumprod[-1] == 0
        weights[kind] = snr_weights(scheduler, last, gamma=5.0).item()
    assert weights == {"epsilon": 1.0, "v_prediction": 0.0, "sample": 0.0}


def test_the_schedule_is_the_models_whatever_sampler_its_folder_names() -> None:
    saved = dict(DDPMScheduler(**config("epsilon", beta_start=0.00085, beta_end=0.012)).config)
    expected = DDPMScheduler.from_config(saved).alphas_cumprod
    assert torch.equal(training_schedule(saved).alphas_cumprod, expected)
    with pytest.raises(ModelError, match="expected: epsilon, v_prediction, sample"):
        training_schedule(config("flow"))


def test_an_encoded_image_decodes_to_itself() -> None:
    """The range, the scale and the channels that go in are those that come out."""
    model = load_model(resolve_model("nano"), device=torch.device("cpu"), precision=Precision.FP32)
    chests = load_file(find_model("nano") / "judges" / "nano" / "canonical.safetensors")
    radiographs = torch.stack([chests["mean_adult"], chests["mean_child"]])[:, None]
    radiographs = torch.nn.functional.interpolate(radiographs, (256, 256), mode="bicubic").clamp(0, 1)
    latents = encode_images(model, radiographs)
    assert latents.shape == (2, *model.latent_shape)
    error = (decode_latents(model, latents) - radiographs).square().mean()
    assert 10 * torch.log10(1 / error) > 30  # dB


def test_grey_becomes_the_channels_the_autoencoder_takes(tiny_model: object) -> None:
    model = load_model(resolve_model(str(tiny_model)), device=torch.device("cpu"), precision=Precision.FP32)
    radiograph = torch.linspace(0, 1, 32 * 32).view(1, 1, 32, 32)
    latents = encode_images(model, radiograph)
    with torch.no_grad():
        found = model.vae.encode(torch.cat([radiograph] * 3, 1) * 2 - 1).latent_dist.mean
    torch.testing.assert_close(latents, found * model.vae.config.scaling_factor)
