"""The gradient of the first action, the shift of the condition; it needs no network."""

import math

import torch
from torch import Tensor

from cxrsynth.rl.experience import Conditioning
from cxrsynth.rl.objective import clipped_objective
from cxrsynth.rl.perturbation import shift_kl, shift_log_prob
from cxrsynth.rl.policy import Policy


def add_shift_gradients(
    policy: Policy,
    sampled: Conditioning,
    advantage: Tensor,
    places: set[int],
    *,
    clip_range: float,
    kl_weight: float,
) -> tuple[Tensor, float]:
    """Add the gradient of the shifts at `places` to the embeddings' `grad`; nothing if the policy shifts nothing.

    Args:
        policy: the model being tuned.
        sampled: this process's share.
        advantage: of all N images of the iteration, [N].
        places: the minibatch, indices among the N on all processes.
        clip_range: how far a ratio may move from 1.
        kl_weight: weight of the KL divergence to a mean shift of zero, unless the policy has its own.

    Returns:
        Sums over this process's shifts: clipped, approximate KL, KL to the baseline, and their number; and the largest
        |ratio - 1|.
    """
    ace, shifts, mask = policy.shifts, sampled.shifts, sampled.mask
    rows = [row for row, place in enumerate(sampled.places) if place in places]
    if ace is None or shifts is None or mask is None or not rows:
        return torch.zeros(4, dtype=torch.float64), 0.0
    mean, std = ace.mean(mask[rows]), policy.exploration_std
    device, elements = mean.device, math.prod(policy.model.latent_shape)
    log_prob = shift_log_prob(shifts.values[rows].to(device), mean, std, elements=elements)
    loss = clipped_objective(
        log_prob,
        shifts.log_probs[rows].to(device),
        advantage[[sampled.places[row] for row in rows]].to(device),
        clip_range=clip_range,
        kl=shift_kl(mean, std, elements=elements),
        kl_weight=kl_weight if policy.shift_kl_weight is None else policy.shift_kl_weight,
    )
    torch.autograd.backward(loss.loss / len(places), inputs=[ace.coordinates])
    found = [loss.clipped, loss.approx_kl, loss.baseline_kl, len(rows)]
    return torch.tensor(found, dtype=torch.float64), loss.ratio_error
