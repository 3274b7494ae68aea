"""The supervised denoising loss, for the stage before reinforcement learning: tensors in, loss out."""

from typing import Any

import torch
from diffusers import DDIMScheduler
from diffusers.training_utils import compute_snr
from torch import Tensor
from torch.nn import functional as F

from cxrsynth.errors import ModelError

_PREDICTIONS = ("epsilon", "v_prediction", "sample")


def training_schedule(config: dict[str, Any]) -> DDIMScheduler:
    """The noise schedule of a model folder, whichever sampler its config names.

    Raises:
        ModelError: if the model predicts something that is not known.
    """
    scheduler = DDIMScheduler.from_config(config)
    if scheduler.config.prediction_type not in _PREDICTIONS:
        raise ModelError(
            f"scheduler: prediction_type {scheduler.config.prediction_type!r}\n  expected: {', '.join(_PREDICTIONS)}"
        )
    return scheduler


def denoising_target(scheduler: DDIMScheduler, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """The target for `add_noise(clean, noise, timesteps)`: noise, velocity or clean latents.

    Source: velocity as in Salimans and Ho, arXiv:2202.00512, appendix D.
    """
    kind = scheduler.config.prediction_type
    if kind == "v_prediction":
        return scheduler.get_velocity(clean, noise, timesteps)  # type: ignore[no-any-return]
    return noise if kind == "epsilon" else clean


def denoising_loss(
    scheduler: DDIMScheduler,
    predicted: Tensor,
    clean: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    *,
    min_snr: float | None = None,
) -> Tensor:
    """Squared error of a prediction, averaged over the elements of each latent.

    Args:
        scheduler: of the model, see `training_schedule`.
        predicted: output of the network, [B, C, h, w] float32.
        clean: latents without noise, [B, C, h, w].
        noise: standard normal, [B, C, h, w].
        timesteps: int64 [B].
        min_snr: gamma of the min-SNR weights; None gives all timesteps the same weight.

    Returns:
        [B] float32.
    """
    target = denoising_target(scheduler, clean, noise, timesteps)
    loss = F.mse_loss(predicted.float(), target.float(), reduction="none").mean(dim=(1, 2, 3))
    if min_snr is None:
        return loss
    return loss * snr_weights(scheduler, timesteps, gamma=min_snr)


def snr_weights(scheduler: DDIMScheduler, timesteps: Tensor, *, gamma: float) -> Tensor:
    """Min-SNR weights [B]: min(SNR, gamma) on the error of the clean latents, converted to what the model predicts.

    Where the signal is zero (the last timestep of `rescale_betas_zero_snr`) the weight of noise is 1, its limit, and
    that of velocity is 0.

    Source: Hang et al., arXiv:2303.09556, section 3.4.
    """
    snr = compute_snr(scheduler, timesteps)
    kept = snr.clamp(max=gamma)
    match scheduler.config.prediction_type:
        case "epsilon":
            return torch.where(snr > gamma, gamma / snr, 1.0)
        case "v_prediction":
            return kept / (snr + 1)  # type: ignore[no-any-return]
        case _:
            return kept  # type: ignore[no-any-return]
