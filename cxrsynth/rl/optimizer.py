"""What the optimizer trains, and how fast."""

import math
from typing import Any

import torch
from torch import nn

from cxrsynth.errors import ModelError
from cxrsynth.recipe.schema import TrainSection
from cxrsynth.rl.policy import Policy

ADVICE = (
    "\n  try a lower learning rate, a KL weight, or precision fp32; the last checkpoint is kept\n"
    "  --from-best goes on from the best checkpoint with a lower learning rate, --export writes its model"
)
_EPSILON = 1e-12


def optimizer_groups(policy: Policy, train: TrainSection) -> list[dict[str, Any]]:
    """Parameter groups for AdamW: the UNet's weights and the embeddings, each at its own learning rate.

    Log-probabilities are means over latent elements, so gradients are small: on nano about 1e-9 for most adapter
    weights, 1e-6 for shifts. Adam's epsilon only guards against division by zero and must stay below that; the usual
    1e-8 would slow the adapters down.
    """
    rates = {
        "unet": (policy.unet_weights, train.learning_rate),
        "ace": (policy.ace_weights, train.ace_learning_rate),
    }
    return [
        {"params": list(weights.values()), "lr": rate, "initial_lr": rate, "eps": _EPSILON, "part": part}
        for part, (weights, rate) in rates.items()
        if weights
    ]


def set_learning_rates(optimizer: torch.optim.Optimizer, schedule: str, *, done: float) -> None:
    """Set each group's `lr` from its `initial_lr`, once a share `done` of the iterations is complete.

    Source: cosine annealing (Loshchilov and Hutter, arXiv:1608.03983), without restarts.
    """
    factor = 0.5 * (1 + math.cos(math.pi * done)) if schedule == "cosine" else 1.0
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


def step(optimizer: torch.optim.Optimizer, *, grad_norm: float) -> float:
    """One optimizer step; each parameter group's gradient is clipped by itself. Returns the norm before clipping.

    Raises:
        ModelError: if the gradient is not a number.
    """
    norms = [nn.utils.clip_grad_norm_(group["params"], grad_norm) for group in optimizer.param_groups]
    norm = float(torch.stack(norms).norm())
    if not math.isfinite(norm):
        raise ModelError(f"the gradient is not a number{ADVICE}")
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm
