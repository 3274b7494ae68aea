"""The clipped policy-gradient loss over denoising steps. Pure."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PolicyLoss:
    """Sums over the given steps, to be divided by the number of steps in the whole update.

    Only `loss` carries a gradient; the others are float64 scalars.
    """

    loss: Tensor
    clipped: float
    approx_kl: float
    baseline_kl: float
    ratio_error: float


def clipped_objective(
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantage: Tensor,
    *,
    clip_range: float,
    kl: Tensor | None = None,
    kl_weight: float = 0.0,
) -> PolicyLoss:
    """The negative clipped surrogate of proximal policy optimization, plus the KL divergence to the baseline.

    Args:
        log_prob: of each step under the policy now, [B]; carries the gradient.
        old_log_prob: of the same steps when they were sampled, [B].
        advantage: of the trajectory each step belongs to, [B].
        clip_range: how far the ratio may move from 1 before the surrogate stops rewarding it.
        kl: divergence of each step from the baseline's, [B].
        kl_weight: weight of that divergence.

    Source: PPO (arXiv:1707.06347), eq. 7, over denoising steps as in DDPO (arXiv:2305.13301), eq. 5.
    """
    difference = log_prob - old_log_prob
    ratio = difference.exp()
    surrogate = torch.minimum(advantage * ratio, advantage * ratio.clamp(1 - clip_range, 1 + clip_range))
    loss = -surrogate.sum()
    if kl is not None:
        loss = loss + kl_weight * kl.sum()
    with torch.no_grad():
        apart = (ratio - 1).abs()
        return PolicyLoss(
            loss,
            clipped=int((apart > clip_range).sum()),
            approx_kl=float((ratio - 1 - difference).cpu().double().sum()),  # Schulman's k3 estimator
            baseline_kl=0.0 if kl is None else float(kl.cpu().double().sum()),
            ratio_error=float(apart.max()),
        )
