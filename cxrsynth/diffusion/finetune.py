"""The supervised denoising loss, for the stage before reinforcement learning: tensors in, loss out."""

from torch import Tensor
from torch.nn import functional as F

from cxrsynth.diffusion.schedule import NoiseSchedule


def denoising_loss(
    schedule: NoiseSchedule,
    predicted: Tensor,
    clean: Tensor,
    noise: Tensor,
    levels: Tensor,
    *,
    min_snr: float | None = None,
) -> Tensor:
    """Squared error of a prediction, averaged over the elements of each latent.

    Args:
        schedule: of the model.
        predicted: output of the network for `schedule.noisy(clean, noise, levels)`, [B, C, h, w] float32.
        clean: latents without noise, [B, C, h, w].
        noise: standard normal, [B, C, h, w].
        levels: noise levels, int64 [B].
        min_snr: gamma of the min-SNR weights; None gives all levels the same weight.

    Returns:
        [B] float32.
    """
    target = schedule.target(clean, noise, levels)
    loss = F.mse_loss(predicted.float(), target.float(), reduction="none").mean(dim=(1, 2, 3))
    return loss if min_snr is None else loss * schedule.snr_weights(levels, gamma=min_snr)
