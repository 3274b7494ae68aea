"""Sampling: prompts and noise to images."""

import hashlib
import inspect
import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import calculate_shift
from torch import Tensor

from cxrsynth.diffusion.condition import Condition
from cxrsynth.diffusion.families.base import Family, from_encoder, to_decoder
from cxrsynth.diffusion.host_copy import HostCopy
from cxrsynth.diffusion.model import DiffusionModel
from cxrsynth.diffusion.networks import encoded_mean
from cxrsynth.diffusion.resolve import ResolvedModel
from cxrsynth.diffusion.schedule import FLOW, SCHEDULER_FILE, is_flow, with_known_betas
from cxrsynth.errors import ModelError, in_words
from cxrsynth.settings import Sampler

_DECODED_AT_ONCE = 8


@dataclass(frozen=True)
class Asked:
    """How messages name what chose a sampler and its steps: options of the command line, or keys of a recipe.

    Args:
        both: sampler and steps.
        steps: the steps alone.
        sampler: the sampler alone.
        use: what another sampler is given to, before its name.
        other: what to change where sampler and steps do not go with the model's scheduler.
        start: what to change where no image follows from the first step; None for another sampler.
    """

    both: str
    steps: str
    sampler: str
    use: str
    other: str
    start: str | None = None

    @classmethod
    def by_options(cls, sampler: Sampler, steps: int) -> "Asked":
        """As `generate` is asked."""
        own, count = f"--sampler {sampler.value}", f"--steps {steps}"
        return cls(f"{own} {count}", count, own, "--sampler", "another --sampler, or other --steps")

    @classmethod
    def in_words(cls, sampler: Sampler, steps: int) -> "Asked":
        """Where it is not known what chose them."""
        own, count = f"the sampler {sampler.value}", f"{steps} steps"
        return cls(f"{count} of {sampler.value}", count, own, "the sampler", "another sampler, or other steps")


class SamplingStopped(Exception):
    """Sampling was stopped; the images are no longer needed."""


@torch.inference_mode()
def encode_prompts(model: DiffusionModel, prompts: Sequence[str]) -> tuple[Condition, Condition]:
    """Conditions of B prompts, and of the negative prompt (B = 1), in the denoiser's type; long prompts are cut."""
    return model.encode(prompts)


def guided_condition(
    model: DiffusionModel,
    text: Condition,
    empty: Condition,
    guidance: float,
    *,
    mask: Tensor | None = None,
    shift: Tensor | None = None,
) -> Condition:
    """The condition for the denoiser: that of the negative prompt, then that of the prompts with the model's ACE.

    Args:
        model: its `ace` is added, if it has one.
        text: of B prompts.
        empty: of the negative prompt, which is empty in most models (B = 1); it gets no ACE.
        guidance: scale of classifier-free guidance, or the network's input, where it takes one.
        mask: blocks each report gets, [B, K], from `ConditionEmbedding.mask`; None adds nothing.
        shift: sampled around the mean of a `SubspaceEmbedding`, [B, r]; None uses the mean.

    Returns:
        2B samples, unconditional first; B when guidance is 1, or an input.
    """
    if model.ace is not None and mask is not None:
        text = text.with_aligned_text(model.ace(text.aligned_text(), mask.to(text.text.device), shift))
    if model.takes_guidance or guidance == 1.0:
        return single_condition(model, text, guidance)
    return Condition.cat([empty.expand(len(text)), text])


def single_condition(model: DiffusionModel, condition: Condition, guidance: float) -> Condition:
    """A condition for predictions without classifier-free guidance: with the scale, where that is an input."""
    return condition.with_guidance(guidance) if model.takes_guidance else condition


def make_scheduler(model: DiffusionModel, sampler: Sampler, *, steps: int) -> Any:
    """The model's own noise schedule with the chosen sampler, set to `steps` timesteps: a scheduler of diffusers.

    Raises:
        ModelError: if the schedule has fewer timesteps than `steps`, or the sampler does not fit it.
    """
    config, family = model.scheduler_config, model.family
    asked = Asked.in_words(sampler, steps)
    with _explained(SCHEDULER_FILE, config, asked):
        scheduler = _scheduler(config, sampler, asked)
        mu = _shift_by_size(model, scheduler.config) if _shifts_by_size(scheduler) else None
        _set_timesteps(scheduler, config, sampler, family, steps=steps, device=model.device, mu=mu, asked=asked)
    return scheduler


def check_scheduler(model: ResolvedModel, sampler: Sampler, *, steps: int, asked: Asked | None = None) -> None:
    """Refuse a sampler, or a number of steps, that a model's scheduler does not take; all steps are tried on zeros.

    Schedulers of diffusers check little when they are made: most of what does not go together fails at some step.

    Args:
        model: whose scheduler it is.
        sampler: as chosen.
        steps: denoising steps.
        asked: what chose sampler and steps, for messages; None for the options of `generate`.

    Raises:
        ModelError: naming the scheduler, and what diffusers says.
    """
    config, family = model.scheduler_config(), model.family
    asked = asked or Asked.by_options(sampler, steps)
    with _explained(str(model.folders["scheduler"] / SCHEDULER_FILE), config, asked):
        scheduler = _scheduler(config, sampler, asked)
        # By how much is known once the networks are loaded; any shift shows if there can be one.
        mu = 1.0 if _shifts_by_size(scheduler) else None
        _set_timesteps(scheduler, config, sampler, family, steps=steps, device=torch.device("cpu"), mu=mu, asked=asked)
        zeros = torch.zeros(1, 1, 2, 2)
        latents = zeros + 1
        drawing = _step_noise(scheduler, latents) if sampler is Sampler.MODEL else {}
        for timestep in scheduler.timesteps:
            scaled = scaled_input(scheduler, latents, timestep)
            latents = scheduler.step(zeros * scaled, timestep, latents, return_dict=False, **drawing)[0]
        if not latents.isfinite().all():
            raise ValueError("its steps give numbers that are not finite")


def sampling_timesteps(
    config: dict[str, Any], family: Family, sampler: Sampler, *, steps: int, asked: Asked | None = None
) -> Tensor:
    """Timesteps of a sampler before any network is loaded, in descending order.

    Where they depend on the image's size, they are those of some size. `asked` is what chose sampler and steps, for
    messages.

    Raises:
        ModelError: as `make_scheduler` does.
    """
    asked = asked or Asked.in_words(sampler, steps)
    with _explained(SCHEDULER_FILE, config, asked):
        scheduler = _scheduler(config, sampler, asked)
        mu = 1.0 if _shifts_by_size(scheduler) else None
        _set_timesteps(scheduler, config, sampler, family, steps=steps, device=torch.device("cpu"), mu=mu, asked=asked)
    timesteps: Tensor = scheduler.timesteps
    return timesteps


@contextmanager
def _explained(where: str, config: dict[str, Any], asked: Asked) -> Iterator[None]:
    """Name file, class and options in a ModelError where diffusers fails, with whatever exception."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"{where}: {config.get('_class_name', 'DDIMScheduler')} does not go with {asked.both}\n"
            f"  diffusers: {in_words(error)}\n"
            f"  use: {asked.other}, or correct the file"
        ) from None


def _set_timesteps(
    scheduler: Any,
    config: dict[str, Any],
    sampler: Sampler,
    family: Family,
    *,
    steps: int,
    device: torch.device,
    mu: float | None,
    asked: Asked,
) -> None:
    """Set a scheduler to `steps` timesteps.

    Args:
        scheduler: from `_scheduler`.
        config: of the model's own.
        sampler: that was chosen.
        family: of the model.
        steps: denoising steps.
        device: where the timesteps go.
        mu: shift of the noise levels by the image's size; None for none.
        asked: what chose sampler and steps, for messages.

    Raises:
        ModelError: if the schedule has fewer, or no image follows from its first.
    """
    longest = scheduler.config.num_train_timesteps
    if steps > longest:
        raise ModelError(f"{asked.steps}: the model's schedule has {longest} timesteps")
    settings: dict[str, Any] = {}
    if mu is not None:
        if "mu" in inspect.signature(scheduler.set_timesteps).parameters:
            settings["mu"] = mu
        else:  # DPM-Solver++ before diffusers 0.34
            scheduler.register_to_config(flow_shift=math.exp(mu))
    levels = family.noise_levels(steps)
    if levels is not None and is_flow(config) and _takes_levels(scheduler):
        settings["sigmas"] = levels
    scheduler.set_timesteps(steps, device=device, **settings)
    if sampler is Sampler.DDIM:
        # By rounding, some counts of `trailing` steps (61, 103 ...) get one more, at timestep -1.
        scheduler.timesteps = scheduler.timesteps[scheduler.timesteps >= 0]
        _check_start(scheduler, asked)


def _check_start(scheduler: Any, asked: Asked) -> None:
    """Raises ModelError if no image follows from a prediction at the first timestep."""
    first = scheduler.alphas_cumprod[scheduler.timesteps[0].cpu()]
    if scheduler.config.prediction_type == "epsilon" and first == 0:
        raise ModelError(
            f"{asked.sampler}: the model predicts noise, and its schedule ends in noise alone (rescale_betas_zero_snr):"
            " from such a prediction no image follows\n"
            f"  use: {asked.start or f'{asked.use} euler, or timestep_spacing leading in its scheduler'}"
        )


def _takes_levels(scheduler: Any) -> bool:
    """Whether a scheduler is set to the noise levels it is given. Those with `use_flow_sigmas` make their own."""
    return "sigmas" in inspect.signature(scheduler.set_timesteps).parameters and not getattr(
        scheduler.config, "use_flow_sigmas", False
    )


def _shifts_by_size(scheduler: Any) -> bool:
    return bool(getattr(scheduler.config, "use_dynamic_shifting", False))


def scaled_input(scheduler: Any, latents: Tensor, timestep: Tensor) -> Tensor:
    """Latents as the network is given them."""
    scaling = getattr(scheduler, "scale_model_input", None)  # flow matching has none
    scaled: Tensor = latents if scaling is None else scaling(latents, timestep)
    return scaled


def _scheduler(config: dict[str, Any], sampler: Sampler, asked: Asked) -> Any:
    if sampler is Sampler.MODEL:
        return _own_scheduler(config, asked)
    if is_flow(config):
        if sampler is Sampler.DDIM:
            raise ModelError(
                f"{asked.sampler}: the model learned by flow matching, which has no DDIM steps\n"
                "  use: euler, dpm++ or model"
            )
        if sampler is Sampler.EULER:
            given = dict(config) if "shift" in config else {**config, "shift": config.get("flow_shift", 1.0)}
            return FlowMatchEulerDiscreteScheduler.from_config(given, stochastic_sampling=False)
        shift = config.get("flow_shift", config.get("shift", 1.0))
        return DPMSolverMultistepScheduler.from_config(
            config, prediction_type=FLOW, use_flow_sigmas=True, flow_shift=shift, **_without_noise(config)
        )
    config = with_known_betas(config)
    if sampler is Sampler.DDIM:
        # DDIM clips by default. Others do not, or do not have the setting.
        own = getattr(diffusers, str(config.get("_class_name", "DDIMScheduler")), EulerDiscreteScheduler)
        default = inspect.signature(own.__init__).parameters.get("clip_sample")
        clips = config.get("clip_sample", default is not None and default.default)
        return DDIMScheduler.from_config(config, clip_sample=bool(clips))
    if sampler is Sampler.EULER:
        return EulerDiscreteScheduler.from_config(config)
    return DPMSolverMultistepScheduler.from_config(config, **_without_noise(config))


def _without_noise(config: dict[str, Any]) -> dict[str, Any]:
    """DPM-Solver++ as an ordinary differential equation, where the folder's own sampler adds noise at each step."""
    algorithm = str(config.get("algorithm_type", ""))
    return {"algorithm_type": "dpmsolver++"} if algorithm.startswith("sde-") else {}


def _own_scheduler(config: dict[str, Any], asked: Asked) -> Any:
    """The scheduler that a model's folder names.

    Raises:
        ModelError: if diffusers has none of that name, or it cannot be used.
    """
    named = str(config.get("_class_name", "DDIMScheduler"))
    kind = getattr(diffusers, named, None)
    if kind is None:
        raise ModelError(f"{asked.sampler}: the model's scheduler is {named}, which this diffusers does not have")
    if named == "DPMSolverSDEScheduler":
        raise ModelError(
            f"{asked.sampler}: {named} draws its noise from a generator of its own, so images could not be made again\n"
            f"  use: {asked.use} dpm++, ddim or euler"
        )
    return kind.from_config(config)


def _shift_by_size(model: DiffusionModel, config: Any) -> float:
    """Shift of the noise levels, which grows with the number of tokens of an image.

    Source: Stable Diffusion 3.5 and Flux, whose pipelines in diffusers compute it like this.
    """
    return float(
        calculate_shift(
            model.family.shift_length(model.denoiser, model.latent_shape),
            config.get("base_image_seq_len", 256),
            config.get("max_image_seq_len", 4096),
            config.get("base_shift", 0.5),
            config.get("max_shift", 1.16),
        )
    )


def predict_noise(
    model: DiffusionModel, latents: Tensor, timestep: Tensor, condition: Condition, guidance: float
) -> Tensor:
    """Guided prediction (noise, velocity or clean latents, as the model was trained), [B, C, h, w] float32.

    Args:
        model: the networks.
        latents: [B, C, h, w] float32, already scaled by the scheduler.
        timestep: scalar, or one for each latent, [B].
        condition: from `guided_condition`: of 2B samples, unconditional first; or of B when guidance is 1, or an input.
        guidance: classifier-free guidance scale; 1 is no guidance. As an input, it is in the condition.
    """
    if model.takes_guidance or guidance == 1.0:
        return model.predict(latents, timestep, condition)
    if timestep.dim():
        timestep = torch.cat([timestep, timestep])
    unconditional, conditional = model.predict(torch.cat([latents, latents]), timestep, condition).chunk(2)
    return model.family.guide(unconditional, conditional, guidance)


def sample_images(
    model: DiffusionModel,
    prompts: list[str],
    noise: Tensor,
    *,
    sampler: Sampler,
    steps: int,
    guidance: float,
    conditions: Sequence[Sequence[str]] | None = None,
    calls: int | None = None,
    stopped: threading.Event | None = None,
) -> Tensor:
    """Sample images of prompts from given noise; they depend on nothing else that is random.

    Args:
        model: the networks.
        prompts: B prompts.
        noise: x_T, [B, C, h, w] float32 standard normal.
        sampler: the solver.
        steps: denoising steps.
        guidance: classifier-free guidance scale.
        conditions: of each report, for a model with ACE (`cxrsynth.reports.conditions.conditions_of`).
        calls: as for `sample_latents`.
        stopped: checked before each step and before decoding; once set, sampling ends.

    Returns:
        [B, 1, H, W] float32 in [0, 1] on the CPU.

    Raises:
        SamplingStopped: once `stopped` is set.
    """
    return start_images(
        model,
        prompts,
        noise,
        sampler=sampler,
        steps=steps,
        guidance=guidance,
        conditions=conditions,
        calls=calls,
        stopped=stopped,
    ).wait()


@torch.inference_mode()
def start_images(
    model: DiffusionModel,
    prompts: list[str],
    noise: Tensor,
    *,
    sampler: Sampler,
    steps: int,
    guidance: float,
    conditions: Sequence[Sequence[str]] | None = None,
    calls: int | None = None,
    stopped: threading.Event | None = None,
) -> HostCopy:
    """As `sample_images`, which waits for the images: a CUDA device may still be at work on them."""
    text, empty = encode_prompts(model, prompts)
    mask = None if model.ace is None or conditions is None else model.ace.mask(conditions)
    condition = guided_condition(model, text, empty, guidance, mask=mask)
    latents = sample_latents(
        model, condition, noise, sampler=sampler, steps=steps, guidance=guidance, calls=calls, stopped=stopped
    )
    stop_if(stopped)
    return HostCopy(decode_latents(model, latents))


@torch.no_grad()  # not inference mode: what is sampled may be learned from
def sample_latents(
    model: DiffusionModel,
    condition: Condition,
    noise: Tensor,
    *,
    sampler: Sampler,
    steps: int,
    guidance: float,
    calls: int | None = None,
    stopped: threading.Event | None = None,
) -> Tensor:
    """Clean latents from given noise: [B, C, h, w] float32 on the model's device.

    A model's own sampler may add noise at each step. It is drawn from generators seeded by each image's x_T.

    Args:
        model: the networks.
        condition: from `guided_condition`.
        noise: x_T, [B, C, h, w] float32 standard normal.
        sampler: the solver.
        steps: denoising steps.
        guidance: classifier-free guidance scale.
        calls: end after so many calls of the network, with latents that are still noisy; None for all.
        stopped: checked before each step; once set, sampling ends.

    Raises:
        SamplingStopped: once `stopped` is set.
    """
    scheduler = make_scheduler(model, sampler, steps=steps)
    latents: Tensor = noise.to(model.device) * getattr(scheduler, "init_noise_sigma", 1.0)
    drawing = _step_noise(scheduler, noise) if sampler is Sampler.MODEL else {}
    for timestep in scheduler.timesteps[:calls]:
        stop_if(stopped)
        prediction = predict_noise(model, scaled_input(scheduler, latents, timestep), timestep, condition, guidance)
        latents = scheduler.step(prediction, timestep, latents, return_dict=False, **drawing)[0]
    return latents


def _step_noise(scheduler: Any, noise: Tensor) -> dict[str, Any]:
    """Generators for a scheduler that may draw noise, one for each image, as an argument of its `step`."""
    if "generator" not in inspect.signature(scheduler.step).parameters:
        return {}
    seeds = [hashlib.sha256(own.cpu().float().numpy().tobytes()).digest()[:8] for own in noise]
    return {"generator": [torch.Generator().manual_seed(int.from_bytes(seed, "little") >> 1) for seed in seeds]}


def stop_if(stopped: threading.Event | None) -> None:
    if stopped is not None and stopped.is_set():
        raise SamplingStopped


@torch.inference_mode()
def decode_latents(model: DiffusionModel, latents: Tensor) -> Tensor:
    """Latents [B, C, h, w] to gray images [B, 1, H, W] float32 in [0, 1]; three channels are averaged.

    The last convolution runs in float32 whatever the precision, so that the result has more than bfloat16's 8 bits. At
    most eight images are decoded at once: a large batch of latents takes little memory, its full-size maps very much.
    """
    if model.vae is None:
        return _to_gray(latents)
    dtype = next(model.vae.decoder.parameters()).dtype
    scaled = to_decoder(model.vae, latents.float()).to(dtype).contiguous(memory_format=torch.channels_last)
    parts = [_to_gray(model.vae.decode(part, return_dict=False)[0]) for part in scaled.split(_DECODED_AT_ONCE)]
    return torch.cat(parts)


def _to_gray(pixels: Tensor) -> Tensor:
    """Pixels [B, C, H, W], about in [-1, 1], to gray images [B, 1, H, W] float32 in [0, 1].

    Each channel is clipped before they are averaged: the gray of the image that diffusers gives.
    """
    return (pixels.float() / 2 + 0.5).clamp(0.0, 1.0).mean(dim=1, keepdim=True)


@torch.inference_mode()
def encode_images(model: DiffusionModel, images: Tensor) -> Tensor:
    """Gray images [B, 1, H, W] in [0, 1] to latents [B, C, h, w] float32: the means of the autoencoder's posterior.

    The gray channel is repeated for an autoencoder, or a model in pixel space, of three channels.
    """
    if model.vae is None:
        return (images * 2 - 1).expand(-1, model.latent_shape[0], -1, -1).to(model.device).float()
    dtype = next(model.vae.encoder.parameters()).dtype
    pixels = (images * 2 - 1).expand(-1, int(model.vae.config.in_channels), -1, -1)
    shown = pixels.to(model.device, dtype).contiguous(memory_format=torch.channels_last)
    found = model.vae.encode(shown)
    latents = encoded_mean(found)
    return from_encoder(model.vae, latents.float())
