"""Trajectories: sampling that records every step, and the log-probability of those steps under weights that learn."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cxrsynth.diffusion.condition import Condition
from cxrsynth.diffusion.ddim import DDIMSchedule, ddim_schedule, step_log_prob, step_mean, step_std
from cxrsynth.diffusion.model import DiffusionModel
from cxrsynth.diffusion.sampler import decode_latents, make_scheduler, predict_noise
from cxrsynth.diffusion.schedule import FLOW
from cxrsynth.errors import ModelError
from cxrsynth.settings import Sampler


@dataclass(frozen=True)
class Trajectory:
    """B trajectories of T steps, on the CPU, float32.

    Action t leads from `latents[t]` to `latents[t + 1]`. The last step, from `latents[T - 1]` to the image, is not
    an action.
    """

    latents: Tensor  # [T, B, C, h, w]
    log_probs: Tensor  # [T - 1, B]
    images: Tensor  # [B, 1, H, W] in [0, 1]


def trajectory_schedule(model: DiffusionModel, *, steps: int, eta: float) -> DDIMSchedule:
    """The model's own noise schedule in `steps` DDIM steps.

    Raises:
        ModelError: if the schedule has fewer timesteps than `steps`, or is one of flow matching.
    """
    if model.schedule.prediction_type == FLOW:
        raise ModelError(
            "objective: policy_gradient: the model learned by flow matching, whose steps have no noise and so no"
            " probability\n  use: objective: forward"
        )
    scheduler = make_scheduler(model, Sampler.DDIM, steps=steps)
    device = model.device
    return ddim_schedule(
        scheduler.alphas_cumprod.to(device),
        scheduler.timesteps.long().to(device),
        stride=scheduler.config.num_train_timesteps // steps,
        final_alpha=torch.as_tensor(scheduler.final_alpha_cumprod),
        eta=eta,
        prediction_type=str(scheduler.config.prediction_type),
    )


@torch.no_grad()  # not inference mode: an update uses these tensors again
def rollout(
    model: DiffusionModel,
    schedule: DDIMSchedule,
    condition: Condition,
    noise: Tensor,
    step_noise: Callable[[int], Tensor],
    *,
    guidance: float,
) -> Trajectory:
    """Sample trajectories.

    Args:
        model: the policy, or its baseline.
        schedule: its steps.
        condition: from `guided_condition`.
        noise: x_T, [B, C, h, w] float32 standard normal.
        step_noise: noise of action t, [B, C, h, w] float32 standard normal: the policy's actions.
        guidance: classifier-free guidance scale.
    """
    latents = noise.to(model.device)
    visited, log_probs = [], []
    count = len(latents)
    for step, timestep in enumerate(schedule.timesteps):
        visited.append(latents.cpu())
        places = torch.full((count,), step, device=model.device)
        prediction = predict_noise(model, latents, timestep, condition, guidance)
        mean = step_mean(schedule, places, latents, prediction)
        if step < schedule.actions:
            std = step_std(schedule, places)
            latents = mean + std * step_noise(step).to(model.device)
            log_probs.append(step_log_prob(latents, mean, std).cpu())
        else:
            latents = mean
    return Trajectory(torch.stack(visited), torch.stack(log_probs), decode_latents(model, latents).cpu())


def predict_means(
    model: DiffusionModel,
    schedule: DDIMSchedule,
    steps: Tensor,
    latents: Tensor,
    condition: Condition,
    *,
    guidance: float,
) -> Tensor:
    """Mean of the next latents, [B, C, h, w] float32, with the gradient of whatever is trained.

    Args:
        model: the policy, or its baseline.
        schedule: its steps.
        steps: which step each latent takes, int64 [B].
        latents: visited in a rollout, [B, C, h, w] float32.
        condition: from `guided_condition`.
        guidance: classifier-free guidance scale.
    """
    prediction = predict_noise(model, latents, schedule.timesteps[steps], condition, guidance)
    return step_mean(schedule, steps, latents, prediction)
