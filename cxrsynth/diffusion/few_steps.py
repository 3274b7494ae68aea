"""Few-step models: what a teacher visits on its way from noise to an image, and what a student must predict to follow.

A student takes K deterministic steps without guidance, DDIM's or, for flow matching, Euler's. Each is linear in the
prediction: x' = kept x + moved p. So there is just one prediction with which the student lands where the teacher went
from the same noise in many guided steps. Learning it is progressive distillation in one stage (Salimans and Ho,
arXiv:2202.00512) along the teacher's own trajectories (Luhman and Luhman, arXiv:2101.02388).
"""

import threading
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from cxrsynth.diffusion.condition import Condition
from cxrsynth.diffusion.families.base import Family
from cxrsynth.diffusion.model import DiffusionModel
from cxrsynth.diffusion.sampler import make_scheduler, predict_noise, sampling_timesteps, scaled_input, stop_if
from cxrsynth.diffusion.schedule import is_flow, with_known_betas
from cxrsynth.errors import ModelError
from cxrsynth.settings import Sampler

# A first step must begin in noise, and all steps must be linear. Noise levels other than the schedule's own would not
# be visited by other samplers.
_PLAIN: dict[str, Any] = {
    "timestep_spacing": "trailing",
    "clip_sample": False,
    "thresholding": False,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "use_lu_lambdas": False,
}


def few_step_sampler(config: dict[str, Any]) -> Sampler:
    """The sampler of few-step models with this scheduler's configuration."""
    return Sampler.EULER if is_flow(config) else Sampler.DDIM


def few_step_config(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a student's scheduler: the teacher's noise levels, in steps that begin in noise alone."""
    if is_flow(config):
        return config
    found = DDIMScheduler.from_config({**with_known_betas(config), **_PLAIN}).config
    return {"_class_name": "DDIMScheduler", **{k: v for k, v in found.items() if k != "_use_default_values"}}


def with_few_step_config(model: DiffusionModel) -> DiffusionModel:
    """The same networks under `few_step_config`: as teacher or student."""
    config = few_step_config(model.scheduler_config)
    return replace(model, components=replace(model.components, scheduler_config=config))


@dataclass(frozen=True)
class FewSteps:
    """K steps x' = kept x + moved p at `timesteps`, where p is the network's prediction of x. All [K].

    `levels` are the places of the timesteps among the noise levels of training.
    """

    timesteps: Tensor
    levels: Tensor
    kept: Tensor
    moved: Tensor

    @property
    def count(self) -> int:
        """K."""
        return len(self.timesteps)

    def prediction(self, steps: Tensor, start: Tensor, end: Tensor) -> Tensor:
        """The prediction that leads from `start` to `end`, [B, C, h, w] float32 as these are.

        Args:
            steps: which step each takes, int64 [B].
            start: where it begins.
            end: where it must land.
        """
        kept, moved = (part[steps][:, None, None, None] for part in (self.kept, self.moved))
        return (end - kept * start) / moved


def few_steps(model: DiffusionModel, count: int) -> FewSteps:
    """The steps of a student.

    Args:
        model: under `with_few_step_config`.
        count: K.

    Raises:
        ModelError: if its schedule has fewer timesteps, or a step depends on no prediction.
    """
    sampler = few_step_sampler(model.scheduler_config)

    def landed(latents: float, prediction: float) -> Tensor:
        scheduler = make_scheduler(model, sampler, steps=count)
        at, given = (torch.full((1, 1, 1, 1), value) for value in (latents, prediction))
        ends = [scheduler.step(given, timestep, at, return_dict=False)[0] for timestep in scheduler.timesteps]
        return torch.stack(ends).flatten().float()

    timesteps = make_scheduler(model, sampler, steps=count).timesteps
    kept, moved = landed(1.0, 0.0), landed(0.0, 1.0)
    if not moved.abs().min() > 1e-4:
        raise ModelError(f"a step of {count} goes nowhere whatever the model predicts\n  expected: fewer steps")
    levels = torch.zeros(len(timesteps), dtype=torch.int64) if is_flow(model.scheduler_config) else timesteps.long()
    return FewSteps(*(part.to(model.device) for part in (timesteps, levels, kept, moved)))


def check_nested(config: dict[str, Any], family: Family, sampler: Sampler, *, steps: int, count: int) -> None:
    """Refuse a teacher that does not visit the noise levels at which the student's steps begin.

    Args:
        config: of the teacher's scheduler, by `few_step_config`.
        family: of the model.
        sampler: of the teacher.
        steps: of the teacher.
        count: steps of the student.

    Raises:
        ModelError: naming the counts nearest to `steps` that do; also for what the schedule does not allow.
    """
    wanted = sampling_timesteps(config, family, few_step_sampler(config), steps=count).double()

    def fits(number: int) -> bool:
        own = sampling_timesteps(config, family, sampler, steps=number).double()
        return bool(own[0] == wanted[0]) and all(bool(_is_near(own, one, wanted).any()) for one in wanted)

    if steps >= count and fits(steps):
        return
    most = min(int(config.get("num_train_timesteps", 1000)), steps + 50)
    others = [number for number in range(count, most + 1) if fits(number)]
    nearest = sorted(sorted(others, key=lambda number: abs(number - steps))[:3])
    raise ModelError(
        f"{steps} steps of {sampler.value} do not visit the noise levels at which {count} steps begin\n"
        f"  expected: {', '.join(map(str, nearest)) or 'another sampler'}"
    )


def _is_near(timestep: Tensor, other: Tensor, all_of_them: Tensor) -> Tensor:
    """Whether timesteps are the same up to rounding; those of flow matching are no whole numbers."""
    mine, others, first = (one.cpu().double() for one in (timestep, other, all_of_them[0]))  # MPS has no float64
    return (mine - others).abs() < 1e-3 * first


@torch.no_grad()
def teacher_states(
    model: DiffusionModel,
    condition: Condition,
    noise: Tensor,
    *,
    sampler: Sampler,
    steps: int,
    guidance: float,
    few: FewSteps,
    stopped: threading.Event | None = None,
) -> Tensor:
    """Where the teacher is when the student's steps end: noisy latents, the clean ones last, [B, K, C, h, w] float32.

    Args:
        model: the teacher, under `with_few_step_config`.
        condition: from `guided_condition`.
        noise: x_T, [B, C, h, w] float32 standard normal.
        sampler: of the teacher: any that draws no noise.
        steps: of the teacher, checked by `check_nested`.
        guidance: scale of classifier-free guidance.
        few: of the student.
        stopped: checked before each step.

    Raises:
        SamplingStopped: once `stopped` is set.
    """
    scheduler = make_scheduler(model, sampler, steps=steps)
    latents: Tensor = noise.to(model.device) * getattr(scheduler, "init_noise_sigma", 1.0)
    visited: list[Tensor] = []
    for timestep in scheduler.timesteps:
        stop_if(stopped)
        shown = scaled_input(scheduler, latents, timestep)
        begun = len(visited) + 1
        if begun < few.count and _is_near(timestep, few.timesteps[begun], few.timesteps):
            visited.append(shown)
        prediction = predict_noise(model, shown, timestep, condition, guidance)
        latents = scheduler.step(prediction, timestep, latents, return_dict=False)[0]
    return torch.stack([*visited, latents], 1)
