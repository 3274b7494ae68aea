"""One stochastic DDIM step as a policy: its mean, its noise, its log-probability. Tensor math only, no model.

`log_prob` is nats per latent element: the mean over C, h and w, not the sum. Clip ranges are chosen for that.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)


@dataclass(frozen=True)
class DDIMSchedule:
    """The steps of one sampler, from noisy to clean. All tensors are [T], on one device.

    `alpha` and `alpha_next` are the cumulative products of the schedule (alpha-bar) before and after each step, `std`
    the noise it adds. The last step adds none: its noise would be tiny, and its log-probability would outweigh all
    others hundreds of times. So T steps make T - 1 actions.
    """

    timesteps: Tensor  # int64
    alpha: Tensor  # float32
    alpha_next: Tensor
    std: Tensor
    prediction_type: str

    @property
    def actions(self) -> int:
        """Steps that have a log-probability."""
        return len(self.timesteps) - 1


def ddim_schedule(
    alphas_cumprod: Tensor, timesteps: Tensor, *, stride: int, final_alpha: Tensor, eta: float, prediction_type: str
) -> DDIMSchedule:
    """The steps of a noise schedule, as diffusers' DDIMScheduler takes them.

    A step from timestep t ends at t - `stride`. With `linspace` spacing, or steps that do not divide N, that is not
    quite the next timestep visited; but so `generate` and diffusers sample, and the policy must learn the steps with
    which it will be used.

    Args:
        alphas_cumprod: alpha-bar of every training timestep, [N].
        timesteps: those that are visited, from noisy to clean, int64 [T].
        stride: training timesteps that each step goes down.
        final_alpha: alpha-bar below timestep 0, scalar.
        eta: 1 adds the noise of DDPM, 0 none.
        prediction_type: `epsilon`, `v_prediction` or `sample`.

    Raises:
        ValueError: for another prediction type, or fewer than two steps.

    Source: DDIM (arXiv:2010.02502), eq. 12 and 16.
    """
    if prediction_type not in ("epsilon", "v_prediction", "sample"):
        raise ValueError(f"prediction type {prediction_type!r}: expected epsilon, v_prediction or sample")
    if len(timesteps) < 2:
        raise ValueError(f"{len(timesteps)} steps, expected at least 2: the last has no log-probability")
    # In float64 on the CPU: some accelerators do not have it.
    every, reached = alphas_cumprod.cpu().double(), timesteps.cpu() - stride
    alpha = every[timesteps.cpu()]
    alpha_next = torch.where(reached >= 0, every[reached.clamp(min=0)], final_alpha.cpu().double())
    variance = (1 - alpha_next) / (1 - alpha) * (1 - alpha / alpha_next)
    std = eta * variance.clamp(min=0).sqrt()
    std[-1] = 0.0
    alpha, alpha_next, std = (values.float().to(timesteps.device) for values in (alpha, alpha_next, std))
    return DDIMSchedule(timesteps, alpha, alpha_next, std, prediction_type)


def step_mean(schedule: DDIMSchedule, steps: Tensor, latents: Tensor, prediction: Tensor) -> Tensor:
    """Mean of the next latents, [B, C, h, w] float32.

    Args:
        schedule: the steps of the sampler.
        steps: which step each latent takes, int64 [B], 0 the noisiest.
        latents: [B, C, h, w] float32.
        prediction: the network's guided output, [B, C, h, w] float32.
    """
    alpha, alpha_next, std = (
        values[steps][:, None, None, None] for values in (schedule.alpha, schedule.alpha_next, schedule.std)
    )
    clean, epsilon = clean_and_noise(schedule.prediction_type, latents, prediction, alpha)
    return alpha_next.sqrt() * clean + (1 - alpha_next - std**2).clamp(min=0).sqrt() * epsilon


def clean_and_noise(prediction_type: str, latents: Tensor, prediction: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """The clean latents and the noise that a prediction says noisy latents consist of, two of [B, C, h, w].

    Args:
        prediction_type: `epsilon`, `v_prediction` or `sample`.
        latents: noisy, [B, C, h, w].
        prediction: of the network, [B, C, h, w].
        alpha: alpha-bar of each latent's noise level, [B, 1, 1, 1].
    """
    signal, noise = alpha.sqrt(), (1 - alpha).sqrt()
    if prediction_type == "v_prediction":
        return signal * latents - noise * prediction, signal * prediction + noise * latents
    if prediction_type == "epsilon":
        return (latents - noise * prediction) / signal, prediction
    return prediction, (latents - signal * prediction) / noise


def step_std(schedule: DDIMSchedule, steps: Tensor) -> Tensor:
    """Noise each step adds, [B, 1, 1, 1] float32; zero for the last."""
    return schedule.std[steps][:, None, None, None]


def step_log_prob(reached: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Log-probability of one denoising step under the policy.

    Args:
        reached: latents actually reached, [B, C, h, w]; treated as data, no gradient.
        mean: predicted by the policy, [B, C, h, w].
        std: step noise, [B, 1, 1, 1], above zero.

    Returns:
        [B] float32, nats per latent element.

    Raises:
        ValueError: if a std is not above zero.

    Source: a Gaussian step as a policy: DDPO (arXiv:2305.13301), section 4.2.
    """
    if not bool((std > 0).all()):
        raise ValueError("a step without noise has no log-probability: eta must be above zero, the last step left out")
    standardised = (reached.detach().float() - mean.float()) / std
    return (-0.5 * standardised.square() - std.log() - _HALF_LOG_TWO_PI).flatten(1).mean(1)


def step_kl(mean: Tensor, other: Tensor, std: Tensor) -> Tensor:
    """KL divergence of two Gaussian steps of equal noise, in closed form: [B] float32, nats per latent element.

    Source: DPOK (arXiv:2305.16381), eq. 8; two Gaussians of the same std.
    """
    return ((mean - other).float().square() / (2 * std.square())).flatten(1).mean(1)
