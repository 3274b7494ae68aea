"""What the optimizer trains, and how fast."""

from typing import Any

from cxrsynth.policy.policy import Policy
from cxrsynth.recipe import TrainSection

_EPSILON = 1e-12


def optimizer_groups(policy: Policy, train: TrainSection) -> list[dict[str, Any]]:
    """Parameter groups for AdamW: the UNet's weights and the embeddings, each at its own learning rate.

    Log-probabilities are means over latent elements, so gradients are small: on nano about 1e-9 for most weights of
    adapters, 1e-6 for shifts. Adam's epsilon only guards against division by zero and must stay below that; its usual
    1e-8 would slow the adapters down.
    """
    rates = ((policy.unet_weights, train.learning_rate), (policy.ace_weights, train.ace_learning_rate))
    return [{"params": list(weights.values()), "lr": rate, "eps": _EPSILON} for weights, rate in rates if weights]
