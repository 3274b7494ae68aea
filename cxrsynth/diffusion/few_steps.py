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
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from cxrsynth.diffusion.condition import Condition
from cxrsynth.diffusion.families.base import Family
from cxrsynth.diffusion.model import DiffusionModel
from cxrsynth.diffusion.sampler import make_scheduler, predict_noise, sampling_timesteps, scaled_input, stop_if
from cxrsynth.diffusion.schedule import FLOW, is_flow, with_known_betas
from cxrsynth.errors import ModelError
from cxrsynth.settings import Sampler

# A first step must begin in noise alone, and teacher and student must visit the same noise levels. A folder may have
# others for its own samplers.
_TRAILING: dict[str, Any] = {
    "timestep_spacing": "trailing",
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "use_lu_lambdas": False,
}
# The student's steps must be linear in its prediction.
_LINEAR: dict[str, Any] = {"clip_sample": False, "thresholding": False}
# How DPM-Solver++ steps, where a model's scheduler says so: what `make_scheduler` takes over beside the noise levels.
_SOLVER = (
    "solver_order",
    "solver_type",
    "lower_order_final",
    "euler_at_final",
    "thresholding",
    "dynamic_thresholding_ratio",
    "sample_max_value",
)
_ROUNDING = 1.5e-3  # of the first timestep: how far apart the same noise level may lie on two schedulers


@dataclass(frozen=True)
class Schedule:
    """A scheduler's configuration, and the sampler that goes with it."""

    config: dict[str, Any]
    sampler: Sampler

    def of(self, model: DiffusionModel) -> DiffusionModel:
        """The same networks under this configuration."""
        return replace(model, components=replace(model.components, scheduler_config=self.config))


def student_schedule(config: dict[str, Any], family: Family) -> Schedule:
    """The schedule of a few-step model, which plain diffusers samples in the same steps.

    DDIM for discrete schedules. For flow matching, Euler's steps over evenly spaced noise levels, which are then
    shifted. Where the family's pipeline gives them to the scheduler, this is flow matching's own Euler scheduler; by
    itself that one spends its last step next to the image. There, DPM-Solver++ of first order takes the same steps.

    Args:
        config: of the model's own scheduler.
        family: of the model.
    """
    if not is_flow(config):
        return Schedule(_config_of(DDIMScheduler, {**with_known_betas(config), **_TRAILING, **_LINEAR}), Sampler.DDIM)
    if family.noise_levels(2) is not None:
        shift = config.get("shift", config.get("flow_shift", 1.0))
        given = {**config, "shift": shift, "stochastic_sampling": False}
        return Schedule(_config_of(FlowMatchEulerDiscreteScheduler, given), Sampler.EULER)
    return Schedule(_flow_config(config, {"solver_order": 1}), Sampler.DPMPP)


def teacher_schedule(config: dict[str, Any], family: Family, sampler: Sampler) -> Schedule:
    """A teacher's sampler as the model is used, over the noise levels that its student's steps are among.

    Args:
        config: of the model's own scheduler.
        family: of the model.
        sampler: how the model is used.
    """
    if not is_flow(config):
        return Schedule({**config, **_TRAILING}, sampler)
    if sampler is Sampler.EULER:
        return student_schedule(config, family)
    return Schedule(_flow_config(config, {name: config[name] for name in _SOLVER if name in config}), Sampler.DPMPP)


def _flow_config(config: dict[str, Any], solver: dict[str, Any]) -> dict[str, Any]:
    """DPM-Solver++ over the noise levels of flow matching, with the shift of any scheduler's configuration."""
    given = {
        **solver,
        "prediction_type": FLOW,
        "use_flow_sigmas": True,
        "flow_shift": config.get("flow_shift", config.get("shift", 1.0)),
        "algorithm_type": "dpmsolver++",
        "final_sigmas_type": "zero",
    }
    kept = ("num_train_timesteps", "use_dynamic_shifting", "time_shift_type")
    shifting = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
    found = _config_of(DPMSolverMultistepScheduler, {name: config[name] for name in kept if name in config} | given)
    return found | {name: config[name] for name in shifting if name in config}


def _config_of(kind: Any, config: dict[str, Any]) -> dict[str, Any]:
    """The configuration that a scheduler has when it is made from another."""
    found = kind.from_config({**config, "_class_name": kind.__name__}).config
    return {"_class_name": kind.__name__, **{key: one for key, one in found.items() if not key.startswith("_")}}


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

    def beginnings(self, model: DiffusionModel, clean: Tensor, noise: Tensor) -> Tensor:
        """Images with noise where each of the steps begins, [B, K, C, h, w] float32.

        Args:
            model: under the student's configuration.
            clean: scaled latents of images, [B, C, h, w].
            noise: standard normal, as `clean`.
        """
        made = []
        for step in range(self.count):
            if is_flow(model.scheduler_config):
                level = -self.moved[step:].sum()  # each step moves along noise - image, the last one to no noise
                made.append((1 - level) * clean + level * noise)
            else:
                made.append(model.schedule.noisy(clean, noise, self.levels[step].expand(len(clean))))
        return torch.stack(made, 1).float()


def few_steps(model: DiffusionModel, student: Schedule, count: int) -> FewSteps:
    """The steps of a student.

    Args:
        model: under `student`'s configuration.
        student: its schedule.
        count: K.

    Raises:
        ModelError: if its schedule has fewer timesteps, or a step depends on no prediction.
    """

    def landed(latents: float, prediction: float) -> Tensor:
        scheduler = make_scheduler(model, student.sampler, steps=count)
        at, given = (torch.full((1, 1, 1, 1), value) for value in (latents, prediction))
        ends = [scheduler.step(given, timestep, at, return_dict=False)[0] for timestep in scheduler.timesteps]
        return torch.stack(ends).flatten().float()

    timesteps = make_scheduler(model, student.sampler, steps=count).timesteps
    kept, moved = landed(1.0, 0.0), landed(0.0, 1.0)
    if not moved.abs().min() > 1e-4:
        raise ModelError(f"a step of {count} goes nowhere whatever the model predicts\n  expected: fewer steps")
    levels = torch.zeros(len(timesteps), dtype=torch.int64) if is_flow(model.scheduler_config) else timesteps.long()
    return FewSteps(*(part.to(model.device) for part in (timesteps, levels, kept, moved)))


def nested_steps(teacher: Schedule, student: Schedule, family: Family, *, steps: int, count: int, exact: bool) -> int:
    """The teacher's steps, if it visits the noise levels at which the student's begin; else the nearest count.

    Args:
        teacher: how the teacher samples.
        student: the student's schedule.
        family: of the model.
        steps: of the teacher, as wanted.
        count: steps of the student.
        exact: refuse another count than `steps`.

    Raises:
        ModelError: naming the counts nearest to `steps` that do; also for what the schedule does not allow.
    """
    wanted = sampling_timesteps(student.config, family, student.sampler, steps=count).double()

    def fits(number: int) -> bool:
        own = sampling_timesteps(teacher.config, family, teacher.sampler, steps=number).double()
        return bool(_is_near(own[0], wanted[0], wanted)) and all(
            bool(_is_near(own, one, wanted).any()) for one in wanted
        )

    if steps >= count and fits(steps):
        return steps
    most = min(int(teacher.config.get("num_train_timesteps", 1000)), max(steps, count) + 2 * count)
    others = sorted((n for n in range(count, most + 1) if fits(n)), key=lambda number: abs(number - steps))
    if others and not exact:
        return others[0]
    expected = ", ".join(map(str, sorted(others[:3]))) or "another sampler of the teacher (teacher.sampler)"
    raise ModelError(
        f"{steps} steps of {teacher.sampler.value} do not visit the noise levels at which"
        f" {'1 step begins' if count == 1 else f'{count} steps begin'}\n  expected: {expected}"
    )


def _is_near(timestep: Tensor, other: Tensor, all_of_them: Tensor) -> Tensor:
    """Whether timesteps are the same up to rounding; those of flow matching are no whole numbers."""
    mine, others, first = (one.cpu().double() for one in (timestep, other, all_of_them[0]))  # MPS has no float64
    return (mine - others).abs() <= _ROUNDING * first


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
    beginnings: Tensor | None = None,
    stopped: threading.Event | None = None,
) -> Tensor:
    """Where the teacher is when the student's steps end: noisy latents, the clean ones last, [B, K, C, h, w] float32.

    Args:
        model: the teacher, under its `teacher_schedule`.
        condition: from `guided_condition`.
        noise: x_T, [B, C, h, w] float32 standard normal.
        sampler: of the teacher: any that draws no noise.
        steps: of the teacher, from `nested_steps`.
        guidance: scale of classifier-free guidance.
        few: of the student.
        beginnings: where the teacher begins anew when a step of the student begins, [B, K, C, h, w]; None: where it is,
            at first at `noise`.
        stopped: checked before each step.

    Raises:
        SamplingStopped: once `stopped` is set.
    """
    scheduler = make_scheduler(model, sampler, steps=steps)
    latents: Tensor = noise.to(model.device) * getattr(scheduler, "init_noise_sigma", 1.0)
    visited: list[Tensor] = []
    for place, timestep in enumerate(scheduler.timesteps):
        stop_if(stopped)
        shown = scaled_input(scheduler, latents, timestep)
        begun = len(visited) + 1
        begins = begun < few.count and bool(_is_near(timestep, few.timesteps[begun], few.timesteps))
        if begins:
            visited.append(shown)
        if beginnings is not None and (begins or place == 0):
            # What a multistep sampler remembers is of another trajectory.
            scheduler = make_scheduler(model, sampler, steps=steps)
            if hasattr(scheduler, "set_begin_index"):  # DDIM keeps no place
                scheduler.set_begin_index(place)
            shown = beginnings[:, len(visited)].to(model.device)
            latents = shown / scaled_input(scheduler, torch.ones_like(shown[:1, :1, :1, :1]), timestep)
        prediction = predict_noise(model, shown, timestep, condition, guidance)
        latents = scheduler.step(prediction, timestep, latents, return_dict=False)[0]
    return torch.stack([*visited, latents], 1)
