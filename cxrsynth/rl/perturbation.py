"""The first action of a trajectory: where its condition is moved to, before any denoising.

The embeddings' mean is what is learned; each trajectory draws its own shift around it, and the denoising steps follow
given that shift. The policy is the product of both, and the gradient of the mean needs no network: it is that of one
Gaussian. A shift drawn with both signs over the same x_T and step noise leaves, in the difference of the two, nothing
but what the shift did. That noise is no action of the embeddings', so sharing it biases nothing.

Source: policy gradients with parameter-based exploration and symmetric sampling (Sehnke et al., Neural Networks 23,
2010), here on the condition alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cxrsynth.diffusion.noise import seeded_noise
from cxrsynth.rl.rollout_spec import RolloutSpec


@dataclass(frozen=True)
class Shifts:
    """What was drawn, [n, r], and its log-probability then, [n]; on the CPU, float32."""

    values: Tensor
    log_probs: Tensor


def draw_shifts(mean: Tensor, std: float, drawn: Sequence[RolloutSpec], *key: object, elements: int) -> Shifts:
    """Shifts of trajectories.

    Args:
        mean: of each, [n, r].
        std: the same in every direction.
        drawn: of each, [n]; mirrored ones get the same draw with opposite signs.
        key: with the draw's stream, what the noise depends on.
        elements: as for `shift_log_prob`.
    """
    mean = mean.detach().cpu()
    drawing = [draw.sign * seeded_noise(tuple(mean.shape[1:]), *key, draw.stream) for draw in drawn]
    values = mean + std * torch.stack(drawing) if drawing else mean
    return Shifts(values, shift_log_prob(values, mean, std, elements=elements))


def shift_log_prob(values: Tensor, mean: Tensor, std: float, *, elements: int) -> Tensor:
    """Log-probability [n] but for a constant, in nats per latent element.

    Args:
        values: that were drawn, [n, r].
        mean: of the policy, [n, r]; carries the gradient.
        std: of the draw.
        elements: latent elements of the model: the denoising steps' log-probabilities are means over them, and one
            clip range serves both.
    """
    return -0.5 * ((values - mean) / std).square().sum(1) / elements


def shift_kl(mean: Tensor, std: float, *, elements: int) -> Tensor:
    """KL divergence from a shift around zero, where the baseline is, [n]; nats per latent element."""
    return 0.5 * (mean / std).square().sum(1) / elements
