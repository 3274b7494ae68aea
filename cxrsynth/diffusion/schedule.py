"""Noise schedules: x_t = a x_0 + s eps at each level of noise, and what a network's prediction says about x_0 and eps.

A level is an index into the noise levels a model was trained with, from the least noise to the most. Two kinds: the
discrete schedules of diffusion models, a^2 + s^2 = 1, and the straight paths of flow matching, a + s = 1.
"""

from pathlib import Path
from typing import Any, Protocol

import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import compute_snr
from torch import Tensor

from cxrsynth.diffusion.ddim import clean_and_noise
from cxrsynth.errors import ModelError, in_words
from cxrsynth.runtime.files import read_json
from cxrsynth.runtime.pretrained import refuse_own_code

PREDICTIONS = ("epsilon", "v_prediction", "sample")
FLOW = "flow_prediction"
_MOST_TIMESTEPS = 100_000
SCHEDULER_FILE = "scheduler_config.json"
# Where no signal is left, noise says nothing about the clean latents.
_LEAST_ALPHA = 1e-5
# Schedulers of diffusers whose noise levels are known: discrete ones, with betas, and those of flow matching. Others
# have levels of their own kind (EDM), run from image to noise (inverse), or are made for something else than images.
_DISCRETE = (
    "DDIM",
    "DDIMParallel",
    "DDPM",
    "DDPMParallel",
    "DEISMultistep",
    "DPMSolverMultistep",
    "DPMSolverSDE",
    "DPMSolverSinglestep",
    "EulerAncestralDiscrete",
    "EulerDiscrete",
    "HeunDiscrete",
    "KDPM2AncestralDiscrete",
    "KDPM2Discrete",
    "LCM",
    "LMSDiscrete",
    "PNDM",
    "SASolver",
    "TCD",
    "UniPCMultistep",
)
_FLOW = ("FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete", "FlowMatchLCM")
KNOWN_SCHEDULERS = frozenset(f"{name}Scheduler" for name in (*_DISCRETE, *_FLOW))


class NoiseSchedule(Protocol):
    """Noise levels of a model. Tensors of levels are int64 [B]; latents are [B, C, h, w]."""

    count: int
    end: int  # levels from here on hold no signal
    prediction_type: str

    def noise_std(self, levels: Tensor) -> Tensor:
        """s, the standard deviation of the noise in x_t, [B] float32."""
        ...

    def timesteps(self, levels: Tensor) -> Tensor:
        """What the network is given as its timestep, [B]."""
        ...

    def noisy(self, clean: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
        """x_t."""
        ...

    def target(self, clean: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
        """What a perfect network predicts."""
        ...

    def velocity(self, noisy: Tensor, prediction: Tensor, levels: Tensor) -> Tensor:
        """A prediction as a velocity, in which an error d of the clean latents is an error d / s."""
        ...

    def velocity_target(self, clean: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
        """The velocity of a perfect prediction."""
        ...

    def clean_and_noise(self, noisy: Tensor, velocity: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
        """The clean latents and the noise that a velocity says x_t consists of."""
        ...

    def snr_weights(self, levels: Tensor, *, gamma: float) -> Tensor:
        """Min-SNR weights [B] for errors of what the network predicts.

        Source: Hang et al., arXiv:2303.09556, section 3.4.
        """
        ...


class DiscreteSchedule:
    """x_t = a x_0 + s eps with a^2 = alpha-bar and s^2 = 1 - alpha-bar; the velocity is a eps - s x_0.

    Args:
        scheduler: of the model, with its betas.
        device: where levels and latents are.

    Source: velocity as in Salimans and Ho, arXiv:2202.00512, appendix D.
    """

    def __init__(self, scheduler: DDIMScheduler, device: torch.device) -> None:
        self.scheduler = scheduler
        self.prediction_type = str(scheduler.config.prediction_type)
        self.count = len(scheduler.alphas_cumprod)
        self.end = int((scheduler.alphas_cumprod > _LEAST_ALPHA).sum())
        self._alpha = scheduler.alphas_cumprod.to(device)

    def noise_std(self, levels: Tensor) -> Tensor:
        """As in `NoiseSchedule`."""
        std: Tensor = (1 - self._alpha[levels]).sqrt().float()
        return std

    def timesteps(self, levels: Tensor) -> Tensor:
        """The levels themselves."""
        return levels

    def noisy(self, clean: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
        """As in `NoiseSchedule`."""
        return self.scheduler.add_noise(clean, noise, levels)  # type: ignore[no-any-return]

    def target(self, clean: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
        """Noise, velocity or clean latents."""
        if self.prediction_type == "v_prediction":
            return self.velocity_target(clean, noise, levels)
        return noise if self.prediction_type == "epsilon" else clean

    def velocity(self, noisy: Tensor, prediction: Tensor, levels: Tensor) -> Tensor:
        """As in `NoiseSchedule`, float32."""
        if self.prediction_type == "v_prediction":
            return prediction
        alpha = self._alpha[levels].float()[:, None, None, None]
        clean, noise = clean_and_noise(self.prediction_type, noisy, prediction, alpha)
        return torch.sqrt(alpha) * noise - torch.sqrt(1 - alpha) * clean

    def velocity_target(self, clean: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
        """As in `NoiseSchedule`."""
        return self.scheduler.get_velocity(clean, noise, levels)  # type: ignore[no-any-return]

    def clean_and_noise(self, noisy: Tensor, velocity: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
        """As in `NoiseSchedule`, float32."""
        return clean_and_noise("v_prediction", noisy, velocity, self._alpha[levels].float()[:, None, None, None])

    def snr_weights(self, levels: Tensor, *, gamma: float) -> Tensor:
        """min(SNR, gamma) on the error of the clean latents, converted to what the model predicts.

        Where the signal is zero (the last level of `rescale_betas_zero_snr`) the weight of noise is 1, its limit, and
        that of velocity is 0.
        """
        snr = compute_snr(self.scheduler, levels)
        kept = snr.clamp(max=gamma)
        match self.prediction_type:
            case "epsilon":
                return torch.where(snr > gamma, gamma / snr, 1.0)
            case "v_prediction":
                return kept / (snr + 1)  # type: ignore[no-any-return]
            case _:
                return kept  # type: ignore[no-any-return]


class FlowSchedule:
    """x_t = (1 - s) x_0 + s eps; the network predicts the velocity eps - x_0.

    Levels are the noise levels s of training, shifted as the model's scheduler shifts them: more of them are spent
    where there is much noise.

    Args:
        scheduler: of the model, with its shift.
        device: where levels and latents are.

    Source: Lipman et al., arXiv:2210.02747; the shift: Esser et al., arXiv:2403.03206, eq. 23.
    """

    prediction_type = FLOW

    def __init__(self, scheduler: FlowMatchEulerDiscreteScheduler, device: torch.device) -> None:
        # The scheduler's own are in descending order, and its step index would be state.
        self._std: Tensor = scheduler.sigmas[: scheduler.config.num_train_timesteps].flip(0).float().to(device)
        self._timesteps_per_std = float(scheduler.config.num_train_timesteps)
        self.count = len(self._std)
        self.end = int((self._std < 1 - _LEAST_ALPHA).sum())

    def noise_std(self, levels: Tensor) -> Tensor:
        """As in `NoiseSchedule`."""
        return self._std[levels]

    def timesteps(self, levels: Tensor) -> Tensor:
        """Noise levels times the number of training timesteps, float32."""
        return self._std[levels] * self._timesteps_per_std

    def noisy(self, clean: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
        """As in `NoiseSchedule`."""
        std = self._std[levels][:, None, None, None]
        return (1 - std) * clean + std * noise

    def target(self, clean: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
        """The velocity."""
        return noise - clean

    def velocity(self, noisy: Tensor, prediction: Tensor, levels: Tensor) -> Tensor:
        """The prediction itself."""
        return prediction

    def velocity_target(self, clean: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
        """As in `NoiseSchedule`."""
        return noise - clean

    def clean_and_noise(self, noisy: Tensor, velocity: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
        """As in `NoiseSchedule`."""
        std = self._std[levels][:, None, None, None]
        return noisy - std * velocity, noisy + (1 - std) * velocity

    def snr_weights(self, levels: Tensor, *, gamma: float) -> Tensor:
        """min(SNR, gamma) on the error of the clean latents, s times that of the velocity."""
        std = self._std[levels].clamp(min=1e-4)
        snr = ((1 - std) / std).square()
        return snr.clamp(max=gamma) * std.square()


def noise_schedule(config: dict[str, Any], device: torch.device) -> NoiseSchedule:
    """The noise schedule of a model folder, whichever sampler its `scheduler_config.json` names.

    Raises:
        ModelError: for a schedule or prediction that is not known.
    """
    if is_flow(config):
        return FlowSchedule(flow_scheduler(config), device)
    kind = config.get("prediction_type", "epsilon")
    if kind not in PREDICTIONS:
        raise ModelError(f"scheduler: prediction_type {kind!r}\n  expected: {', '.join((*PREDICTIONS, FLOW))}")
    return DiscreteSchedule(DDIMScheduler.from_config(with_known_betas(config)), device)


def read_scheduler_config(folder: Path, *, named: str | None = None) -> dict[str, Any]:
    """Content of a scheduler's `scheduler_config.json`.

    Args:
        folder: of the scheduler.
        named: the scheduler's class; None for the one in the configuration.

    Raises:
        ModelError: if it cannot be read, or describes a schedule that is not known.
    """
    path = folder / SCHEDULER_FILE
    try:
        config = read_json(path)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be loaded: {in_words(error)}") from None
    if not isinstance(config, dict):
        raise ModelError(f"{path}: not a scheduler's configuration, expected an object")
    refuse_own_code(path)
    own = str(config.get("_class_name", "DDIMScheduler"))
    for one in (own, named or own):
        if one not in KNOWN_SCHEDULERS:
            raise ModelError(
                f"{path}: {one} is not supported: its noise levels are of their own kind\n"
                f"  expected: a schedule of betas, or flow matching: one of {', '.join(sorted(KNOWN_SCHEDULERS))}"
            )
    if named is not None:
        taken = {**config, "_class_name": named}
        if is_flow(taken) != is_flow(config):
            raise ModelError(
                f"{path}: for {own}, but model_index.json names {named}: one is of flow matching, the other is not\n"
                "  expected: the same class in both files, the one that the model was trained with"
            )
        config = taken
    kind = config.get("prediction_type", "epsilon")
    if kind not in (*PREDICTIONS, FLOW):
        raise ModelError(f"{path}: prediction_type {kind!r}, expected {', '.join((*PREDICTIONS, FLOW))}")
    count = config.get("num_train_timesteps", 1000)
    if isinstance(count, int) and count > _MOST_TIMESTEPS:  # each has a number in memory
        raise ModelError(
            f"{path}: num_train_timesteps {count:,}\n  expected: at most {_MOST_TIMESTEPS:,}; most models have 1,000"
        )
    try:
        schedule = noise_schedule(config, torch.device("cpu"))  # may reject its betas
    except Exception as error:  # whatever diffusers raises for values of the wrong type
        raise ModelError(f"{path}: cannot be loaded: {in_words(error)}") from None
    _check_levels(path, config, schedule)
    return config


def _check_levels(path: Path, config: dict[str, Any], schedule: NoiseSchedule) -> None:
    """Refuse noise levels that are none: diffusers takes any numbers. Raises ModelError."""
    wanted = config.get("num_train_timesteps", 1000)
    if schedule.count < max(1, int(wanted)):
        raise ModelError(
            f"{path}: noise levels of {schedule.count} timesteps, but num_train_timesteps is {wanted}\n"
            "  expected: 1 or more, and as many trained_betas, if there are any"
        )
    levels = schedule.noise_std(torch.arange(schedule.count))
    if not levels.isfinite().all() or not levels.any():
        raise ModelError(
            f"{path}: its noise levels are zero or not finite\n"
            "  expected: betas (beta_start, beta_end, trained_betas) between 0 and 1, and a shift above 0"
        )


def with_known_betas(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration that every discrete scheduler reads: sigmoid betas, which only DDPM's knows, as numbers."""
    if config.get("beta_schedule") != "sigmoid":
        return config
    betas = DDPMScheduler.from_config(config).betas
    return {**config, "beta_schedule": "linear", "trained_betas": betas.tolist()}


def is_flow(config: dict[str, Any]) -> bool:
    """Whether a scheduler's configuration is one of flow matching."""
    named = str(config.get("_class_name", ""))
    return named.startswith("FlowMatch") or config.get("prediction_type") == FLOW or bool(config.get("use_flow_sigmas"))


def flow_scheduler(config: dict[str, Any]) -> FlowMatchEulerDiscreteScheduler:
    """Flow matching's Euler scheduler with the shift of any scheduler's configuration."""
    given = dict(config)
    if "shift" not in given and "flow_shift" in given:
        given["shift"] = given["flow_shift"]
    # Training is not shifted by the number of tokens; samplers are, see `sampler.make_scheduler`.
    return FlowMatchEulerDiscreteScheduler.from_config(given, use_dynamic_shifting=False)
