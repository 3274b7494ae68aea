"""The denoising step as a policy: against torch's Normal and diffusers' own scheduler."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

from cxrsynth.diffusion.ddim import DDIMSchedule, ddim_schedule, step_kl, step_log_prob, step_mean, step_std
from cxrsynth.diffusion.model import load_model
from cxrsynth.diffusion.resolve import resolve_model
from cxrsynth.diffusion.rollout import rollout, trajectory_schedule
from cxrsynth.diffusion.sampler import decode_latents, encode_prompts, guided_condition, sample_latents
from cxrsynth.settings import Precision, Sampler

SHAPE = (3, 4, 5, 5)


def made(
    prediction_type: str = "v_prediction", *, eta: float = 1.0, steps: int = 10, zero_snr: bool = True
) -> tuple[DDIMScheduler, DDIMSchedule]:
    scheduler = DDIMScheduler(
        prediction_type=prediction_type,
        timestep_spacing="trailing",
        rescale_betas_zero_snr=zero_snr,
        clip_sample=False,
    )
    scheduler.set_timesteps(steps)
    schedule = ddim_schedule(
        scheduler.alphas_cumprod,
        scheduler.timesteps,
        stride=1000 // steps,
        final_alpha=scheduler.final_alpha_cumprod,
        eta=eta,
        prediction_type=prediction_type,
    )
    return scheduler, schedule


def drawn(seed: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("eta", [1.0, 0.4])
def test_a_step_is_the_one_diffusers_takes(prediction_type: str, eta: float) -> None:
    # An epsilon model cannot start at zero signal.
    scheduler, schedule = made(prediction_type, eta=eta, zero_snr=prediction_type != "epsilon")
    latents, prediction, noise = drawn(0), drawn(1), drawn(2)
    for step, timestep in enumerate(scheduler.timesteps[:-1]):
        if schedule.alpha[step] == 0:
            continue  # diffusers' own step takes the root of a rounding error there, and gives nan
        expected = scheduler.step(prediction, timestep, latents, eta=eta, variance_noise=noise).prev_sample
        places = torch.full((3,), step)
        found = step_mean(schedule, places, latents, prediction) + step_std(schedule, places) * noise
        assert torch.allclose(found, expected, atol=2e-5, rtol=1e-4)


def test_from_pure_noise_the_next_latent_is_the_predicted_image_plus_new_noise() -> None:
    _, schedule = made()
    first = torch.zeros(3, dtype=torch.long)
    signal = schedule.alpha_next[0].sqrt().float()
    assert torch.allclose(step_mean(schedule, first, drawn(0), drawn(1)), -signal * drawn(1), atol=1e-6)
    assert step_std(schedule, first)[0].item() == pytest.approx((1 - signal.item() ** 2) ** 0.5)


def test_the_last_step_adds_no_noise_and_is_no_action() -> None:
    scheduler, schedule = made()
    assert schedule.actions == 9
    last = torch.full((3,), 9)
    assert not step_std(schedule, last).any()
    expected = scheduler.step(drawn(1), scheduler.timesteps[-1], drawn(0), eta=0.0).prev_sample
    assert torch.allclose(step_mean(schedule, last, drawn(0), drawn(1)), expected, atol=1e-5)


def test_log_prob_and_kl_agree_with_torch() -> None:
    mean, other, reached = drawn(0), drawn(1), drawn(2)
    std = torch.tensor([0.5, 0.1, 1.0])[:, None, None, None]
    elements = mean[0].numel()
    policy, baseline = (Independent(Normal(m, std.expand(SHAPE)), 3) for m in (mean, other))
    assert torch.allclose(step_log_prob(reached, mean, std), policy.log_prob(reached) / elements, atol=1e-5)
    assert torch.allclose(step_kl(mean, other, std), kl_divergence(policy, baseline) / elements, rtol=1e-4)


def test_no_gradient_flows_into_the_latents_reached() -> None:
    mean, reached = drawn(0).requires_grad_(), drawn(1).requires_grad_()
    step_log_prob(reached, mean, torch.full((3, 1, 1, 1), 0.5)).sum().backward()
    assert reached.grad is None
    assert mean.grad is not None


def test_a_step_without_noise_has_no_log_prob() -> None:
    with pytest.raises(ValueError, match="without noise"):
        step_log_prob(drawn(0), drawn(1), torch.tensor([0.1, 0.0, 0.1])[:, None, None, None])


@pytest.mark.parametrize(
    ("change", "message"),
    [({"prediction_type": "flow"}, "prediction type"), ({"timesteps": torch.tensor([5])}, "at least 2")],
)
def test_an_invalid_schedule_is_refused(change: dict[str, object], message: str) -> None:
    given: dict[str, object] = {"timesteps": torch.tensor([900, 400]), "prediction_type": "epsilon"}
    with pytest.raises(ValueError, match=message):
        ddim_schedule(
            torch.linspace(0.99, 0.01, 1000), stride=500, final_alpha=torch.tensor(1.0), eta=1.0, **given | change
        )  # type: ignore[arg-type]


@pytest.mark.parametrize("steps", [7, 20])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_a_rollout_without_noise_gives_the_images_of_generate(
    prediction_type: str, spacing: str, steps: int, tiny_model: Path
) -> None:
    """The steps that are learned are those that are taken: for every spacing, also where steps do not divide 1000."""
    loaded = load_model(resolve_model(str(tiny_model)), device=torch.device("cpu"), precision=Precision.FP32)
    changes = {"prediction_type": prediction_type, "timestep_spacing": spacing, "rescale_betas_zero_snr": False}
    model = replace(loaded, components=replace(loaded.components, scheduler_config=loaded.scheduler_config | changes))
    noise = torch.randn((2, *model.latent_shape), generator=torch.Generator().manual_seed(0))
    text, empty = encode_prompts(model, ["clear lungs", "effusion"])
    condition = guided_condition(model, text.clone(), empty.clone(), 1.5)
    schedule = trajectory_schedule(model, steps=steps, eta=1e-12)
    found = rollout(model, schedule, condition, noise, lambda _: torch.zeros_like(noise), guidance=1.5)
    assert len(schedule.timesteps) == steps
    expected = sample_latents(model, condition, noise, sampler=Sampler.DDIM, steps=steps, guidance=1.5)
    assert torch.allclose(found.images, decode_latents(model, expected), atol=1e-5)
