"""Gradients summed over micro-batches, in an order that does not depend on the threads."""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from cxrsynth.runtime.pool import OrderedPool

Batch = TypeVar("Batch")
Output = TypeVar("Output")


def add_gradients(
    pool: OrderedPool,
    batches: Iterable[Batch],
    loss: Callable[[Batch], tuple[Tensor, Output]],
    weights: Sequence[Tensor],
) -> list[Output]:
    """Add the gradient of each micro-batch's loss to the weights' `grad`, which must exist.

    Args:
        pool: runs the batches in parallel.
        batches: micro-batches.
        loss: scalar loss of a batch, and a result to return (detached: all results are kept).
        weights: the trained weights. A loss that does not depend on a weight adds nothing to it.

    Returns:
        The results, in the order of the batches.
    """
    results = []
    if pool.batches == 1:  # in place: no second set of gradients in memory
        for batch in batches:
            value, one = loss(batch)
            torch.autograd.backward(value, inputs=weights)
            results.append(one)
        return results

    def gradients(batch: Batch) -> tuple[tuple[Tensor, ...], Output]:
        value, one = loss(batch)
        return torch.autograd.grad(value, weights, materialize_grads=True), one

    for _, (parts, one) in pool.map_in_order(gradients, batches):
        for weight, part in zip(weights, parts, strict=True):
            assert weight.grad is not None
            weight.grad += part
        results.append(one)
    return results
