"""The first action of a trajectory: a random shift of its condition, before any denoising.

What is learned is the mean shift. Each trajectory samples its own shift around the mean, and its denoising steps are
conditioned on it. The policy is the product of both, so the gradient of the mean needs no network: it is that of one
Gaussian. Two trajectories with opposite shifts and the same x_T and step noise differ by the effect of the shift alone.
That noise is not an action of the embeddings, so sharing it introduces no bias.

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
    """Sampled shifts, [n, r], and their log-probabilities when sampled, [n]; on the CPU, float32."""

    values: Tensor
    log_probs: Tensor


def sample_shifts(mean: Tensor, std: float, specs: Sequence[RolloutSpec], *key: object, elements: int) -> Shifts:
    """Sample the shifts of trajectories.

    Args:
        mean: of each, [n, r].
        std: the same in every direction.
        specs: of each, [n]; mirrored trajectories get the same noise with opposite signs.
        key: what the noise depends on, beside a trajectory's stream.
        elements: as for `shift_log_prob`.
    """
    mean = mean.detach().cpu()
    unit = [spec.sign * seeded_noise(tuple(mean.shape[1:]), *key, spec.stream) for spec in specs]
    values = mean + std * torch.stack(unit) if unit else mean
    return Shifts(values, shift_log_prob(values, mean, std, elements=elements))


def shift_log_prob(values: Tensor, mean: Tensor, std: float, *, elements: int) -> Tensor:
    """Log-probability [n] up to a constant, in nats per latent element.

    Args:
        values: sampled shifts, [n, r].
        mean: of the policy, [n, r]; carries the gradient.
        std: of the samples.
        elements: latent elements of the model. Log-probabilities of denoising steps are means over them, so the same
            clip range serves both.
    """
    return -0.5 * ((values - mean) / std).square().sum(1) / elements


def shift_kl(mean: Tensor, std: float, *, elements: int) -> Tensor:
    """KL divergence to the baseline, whose mean shift is zero, [n]; nats per latent element."""
    return 0.5 * (mean / std).square().sum(1) / elements
