"""The two losses: the clipped policy gradient over denoising steps, and that of the forward process. Pure."""

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


@dataclass(frozen=True)
class Guidance:
    """What a guided prediction is made of beside the conditional one, and how long it may become.

    Guidance multiplies what tuning adds to the conditional prediction; longer predictions show as too much contrast.
    """

    scale: float
    bound: float  # of its norm, as a multiple of the baseline's
    weight: float
    old_unconditional: Tensor  # velocity [B, C, h, w] by the policy that sampled, in place of the policy now
    baseline_unconditional: Tensor  # velocity [B, C, h, w]

    def norm_ratio(self, predicted: Tensor, baseline: Tensor) -> Tensor:
        """Norm of the guided prediction over that of the baseline's, [B]."""
        policy, reference = (
            (empty + self.scale * (conditional - empty)).flatten(1).norm(dim=1)
            for conditional, empty in (
                (predicted, self.old_unconditional),
                (baseline, self.baseline_unconditional),
            )
        )
        ratio: Tensor = policy / reference.clamp(min=1e-6)
        return ratio


@dataclass(frozen=True)
class ForwardLoss:
    """Sums over the given pairs of image and noise level. Only `loss` carries a gradient; the others are float64."""

    loss: Tensor
    baseline_distance: float
    norm_ratio: float


def forward_objective(
    predicted: Tensor,
    old: Tensor,
    target: Tensor,
    optimality: Tensor,
    *,
    strength: float = 1.0,
    noise_level: Tensor | None = None,
    baseline: Tensor | None = None,
    kl_weight: float = 0.0,
    guidance: Guidance | None = None,
) -> ForwardLoss:
    """The loss of negative-aware fine-tuning on the forward process, at given noise levels of sampled images.

    Two implicit policies stand around the one that sampled, `positive` towards the prediction now and `negative` away
    from it. Images above one half of optimality train the first, those below the second; at one half both cancel out.

    Args:
        predicted: velocity by the policy now, [B, C, h, w]; carries the gradient.
        old: velocity by the policy that sampled, [B, C, h, w].
        target: velocity between the sampled clean latents and the noise that was added, [B, C, h, w].
        optimality: how good each image is, [B] in [0, 1].
        strength: how far the implicit policies stand from the old one, b in the paper, above 0.
        noise_level: s of each pair, [B], for adaptive weights: the squared error of the clean latents divided by its
            mean absolute value, as in the published code; None takes the squared error of the velocity.
        baseline: velocity by the frozen baseline, [B, C, h, w]; None without the terms that need it.
        kl_weight: weight of the mean squared distance to it.
        guidance: a bound on how much longer the guided prediction may be than the baseline's; needs `baseline`.

    Returns:
        Sums over the B pairs, to be divided by the number of pairs in the whole update.

    Source: DiffusionNFT (Zheng et al., arXiv:2509.16117), eq. 8 to 10, in terms of the velocity; the bound after
        arXiv:2606.27771.
    """
    moved = strength * (predicted - old)  # so that both are the same number before anything is learned
    positive, negative = old + moved - target, old - moved - target
    errors = [_mean(error.square()) for error in (positive, negative)]
    if noise_level is not None:  # an error d of the velocity is an error s d of the clean latents
        errors = [
            noise_level * value / _mean(error.detach().abs()).clamp(min=1e-5)
            for value, error in zip(errors, (positive, negative), strict=True)
        ]
    loss = ((optimality * errors[0] + (1 - optimality) * errors[1]) / strength).sum()
    distance, ratios = 0.0, torch.ones(len(predicted))
    if baseline is not None:
        apart = _mean((predicted - baseline).square())
        loss = loss + kl_weight * apart.sum()
        distance = float(apart.detach().cpu().double().sum())
        if guidance is None:
            ratios = predicted.flatten(1).norm(dim=1) / baseline.flatten(1).norm(dim=1).clamp(min=1e-6)
        else:
            ratios = guidance.norm_ratio(predicted, baseline)
            loss = loss + guidance.weight * (ratios - guidance.bound).clamp(min=0).square().sum()
    return ForwardLoss(loss, distance, float(ratios.detach().cpu().double().sum()))


def _mean(values: Tensor) -> Tensor:
    """Mean over the elements of each latent, [B, C, h, w] -> [B]."""
    return values.flatten(1).mean(1)
