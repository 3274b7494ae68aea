"""Sampling: prompts and noise to images."""

import threading
from collections.abc import Sequence

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from torch import Tensor

from cxrsynth.diffusion.model import DiffusionModel
from cxrsynth.errors import ModelError
from cxrsynth.settings import Sampler


class SamplingStopped(Exception):
    """Sampling was stopped; the images are no longer needed."""


@torch.inference_mode()
def encode_prompts(model: DiffusionModel, prompts: list[str]) -> Tensor:
    """Text embeddings of each prompt, [B, L, D] in the UNet's type; prompts too long for the tokenizer are cut."""
    return model.text_encoder(model.tokens(prompts)).last_hidden_state.to(model.dtype)  # type: ignore[no-any-return]


def guided_condition(
    model: DiffusionModel,
    text: Tensor,
    empty: Tensor,
    guidance: float,
    *,
    mask: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """The condition for the UNet: embeddings of the empty prompt, then the text embeddings with the model's ACE.

    Args:
        model: its `ace` is added, if it has one.
        text: [B, L, D].
        empty: embeddings of the empty prompt, [1, L, D]; they get no ACE.
        guidance: classifier-free guidance scale; with 1 the empty prompt is left out.
        mask: blocks each report gets, [B, K], from `ConditionEmbedding.mask`; None adds nothing.
        shift: sampled around the mean of a `SubspaceEmbedding`, [B, r]; None uses the mean.

    Returns:
        [2B, L, D], unconditional first; [B, L, D] when guidance is 1.
    """
    if model.ace is not None and mask is not None:
        text = model.ace(text, mask.to(text.device), shift)
    return text if guidance == 1.0 else torch.cat([empty.expand(len(text), -1, -1), text])


def make_scheduler(
    model: DiffusionModel, sampler: Sampler, *, steps: int
) -> DDIMScheduler | DPMSolverMultistepScheduler:
    """The model's own noise schedule with the chosen sampler, set to `steps` timesteps.

    Raises:
        ModelError: if the schedule has fewer timesteps than `steps`.
    """
    if sampler is Sampler.DDIM:
        # Latents have no bounds to clip at. Configs of other schedulers lack the setting, and DDIM clips by default.
        scheduler = DDIMScheduler.from_config(model.scheduler_config, clip_sample=False)
    else:
        scheduler = DPMSolverMultistepScheduler.from_config(model.scheduler_config)
    if steps > scheduler.config.num_train_timesteps:
        raise ModelError(f"--steps {steps}: the model's schedule has {scheduler.config.num_train_timesteps} timesteps")
    scheduler.set_timesteps(steps, device=model.device)
    if sampler is Sampler.DDIM:
        # By rounding, some counts of `trailing` steps (61, 103 ...) get one more, at timestep -1.
        scheduler.timesteps = scheduler.timesteps[scheduler.timesteps >= 0]
    return scheduler  # type: ignore[no-any-return]


def predict_noise(
    model: DiffusionModel, latents: Tensor, timestep: Tensor, condition: Tensor, guidance: float
) -> Tensor:
    """Guided prediction of the UNet (noise or velocity, as the model was trained), [B, C, h, w] float32.

    Args:
        model: the networks.
        latents: [B, C, h, w] float32, already scaled by the scheduler.
        timestep: scalar, or one for each latent, [B].
        condition: [2B, L, D], unconditional first; or [B, L, D] when guidance is 1.
        guidance: classifier-free guidance scale; 1 is no guidance.

    Source: Ho and Salimans, arXiv:2207.12598, in the form of Stable Diffusion (scale 1 = conditional alone).
    """
    doubled = torch.cat([latents, latents]) if guidance != 1.0 else latents
    if timestep.dim() and guidance != 1.0:
        timestep = torch.cat([timestep, timestep])
    network_input = doubled.to(model.dtype, memory_format=torch.channels_last)
    with model.forward_context():
        prediction = model.unet(network_input, timestep, condition, return_dict=False)[0].float()
    if guidance == 1.0:
        return prediction  # type: ignore[no-any-return]
    unconditional, conditional = prediction.chunk(2)
    return unconditional + guidance * (conditional - unconditional)  # type: ignore[no-any-return]


@torch.inference_mode()
def sample_images(
    model: DiffusionModel,
    prompts: list[str],
    noise: Tensor,
    *,
    sampler: Sampler,
    steps: int,
    guidance: float,
    conditions: Sequence[Sequence[str]] | None = None,
    stopped: threading.Event | None = None,
) -> Tensor:
    """Sample images of prompts from given noise, without step noise (DDIM eta 0).

    Args:
        model: the networks.
        prompts: B prompts.
        noise: x_T, [B, C, h, w] float32 standard normal.
        sampler: the solver.
        steps: denoising steps.
        guidance: classifier-free guidance scale.
        conditions: of each report, for a model with ACE (`cxrsynth.reports.conditions.conditions_of`).
        stopped: checked before each step and before decoding; once set, sampling ends.

    Returns:
        [B, 1, H, W] float32 in [0, 1] on the CPU.

    Raises:
        SamplingStopped: once `stopped` is set.
    """
    # The empty prompt is the same for all images: it is encoded once per batch.
    encoded = encode_prompts(model, ["", *prompts])
    mask = None if model.ace is None or conditions is None else model.ace.mask(conditions)
    condition = guided_condition(model, encoded[1:], encoded[:1], guidance, mask=mask)
    latents = sample_latents(model, condition, noise, sampler=sampler, steps=steps, guidance=guidance, stopped=stopped)
    _end_if(stopped)
    return decode_latents(model, latents).cpu()


@torch.no_grad()  # not inference mode: what is sampled may be learned from
def sample_latents(
    model: DiffusionModel,
    condition: Tensor,
    noise: Tensor,
    *,
    sampler: Sampler,
    steps: int,
    guidance: float,
    stopped: threading.Event | None = None,
) -> Tensor:
    """Clean latents from given noise, without step noise: [B, C, h, w] float32 on the model's device.

    Args:
        model: the networks.
        condition: from `guided_condition`.
        noise: x_T, [B, C, h, w] float32 standard normal.
        sampler: the solver.
        steps: denoising steps.
        guidance: classifier-free guidance scale.
        stopped: checked before each step; once set, sampling ends.

    Raises:
        SamplingStopped: once `stopped` is set.
    """
    scheduler = make_scheduler(model, sampler, steps=steps)
    latents: Tensor = noise.to(model.device) * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        _end_if(stopped)
        scaled = scheduler.scale_model_input(latents, timestep)
        prediction = predict_noise(model, scaled, timestep, condition, guidance)
        latents = scheduler.step(prediction, timestep, latents, return_dict=False)[0]
    return latents


def _end_if(stopped: threading.Event | None) -> None:
    if stopped is not None and stopped.is_set():
        raise SamplingStopped


@torch.inference_mode()
def decode_latents(model: DiffusionModel, latents: Tensor) -> Tensor:
    """Latents [B, C, h, w] to gray images [B, 1, H, W] float32 in [0, 1]; three channels are averaged.

    The last convolution runs in float32 whatever the precision, so that the result has more than bfloat16's 8 bits.
    """
    scale = float(model.vae.config.scaling_factor)
    dtype = next(model.vae.decoder.conv_in.parameters()).dtype
    scaled = (latents.float() / scale).to(dtype).contiguous(memory_format=torch.channels_last)
    pixels = model.vae.decode(scaled, return_dict=False)[0]
    return (pixels.float().mean(dim=1, keepdim=True) / 2 + 0.5).clamp(0.0, 1.0)  # type: ignore[no-any-return]


@torch.inference_mode()
def encode_images(model: DiffusionModel, images: Tensor) -> Tensor:
    """Gray images [B, 1, H, W] in [0, 1] to latents [B, C, h, w] float32: the means of the autoencoder's posterior.

    The gray channel is repeated for an autoencoder of three channels.
    """
    dtype = next(model.vae.encoder.conv_in.parameters()).dtype
    pixels = (images * 2 - 1).expand(-1, int(model.vae.config.in_channels), -1, -1)
    shown = pixels.to(model.device, dtype).contiguous(memory_format=torch.channels_last)
    found = model.vae.encode(shown).latent_dist.mode()
    return found.float() * float(model.vae.config.scaling_factor)  # type: ignore[no-any-return]
