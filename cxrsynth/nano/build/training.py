"""Shared by the training stages: gradients, learning-rate schedule, seeds by step, checkpoints."""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cxrsynth.diffusion.model import choose_precision
from cxrsynth.runtime.files import open_atomically
from cxrsynth.settings import Precision

log = logging.getLogger("cxrsynth.nano.build")


def cores() -> int:
    """Number of CPU cores that torch uses: `OMP_NUM_THREADS`, or all of the machine."""
    return torch.get_num_threads()


def forward_context() -> torch.autocast:
    """Context for forward passes on this thread: autocast to bfloat16 where the CPU is faster with it, otherwise none.

    A CPU that does not takes a hundred times as long in bfloat16. Networks trained in float32 differ slightly.
    """
    fast = choose_precision(Precision.AUTO, torch.device("cpu")) is Precision.BF16
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=fast)


def warmup_stable_decay(step: int, *, steps: int, warmup: int = 200, decay: float = 0.3) -> float:
    """Factor on the learning rate: linear warm-up, plateau, linear decay over the last `decay` of `steps`.

    With a plateau, a run can be shortened or extended after it has started: only the decay moves.
    """
    return min(1.0, (step + 1) / warmup, max(0.0, (steps - step) / (decay * steps)))


class PartGradients:
    """Mean loss and gradients over the parts of a batch, each part on one CPU core.

    For small networks, parallel parts are faster than splitting every operation over the cores, and suffer less from
    other processes. The result depends on the number of parts, not on the number of cores.
    """

    def __init__(self, parts: int) -> None:
        self.parts = parts
        self._pool = ThreadPoolExecutor(min(parts, cores()), initializer=torch.set_num_threads, initargs=(1,))

    def __call__(
        self, loss: Callable[..., Tensor], batch: Sequence[Tensor], parameters: Sequence[nn.Parameter]
    ) -> float:
        """Set every parameter's `.grad` and return the loss. `batch` holds tensors [B, ...], B a multiple of parts."""

        def one(part: tuple[Tensor, ...]) -> tuple[float, tuple[Tensor, ...]]:
            value = loss(*part)
            return value.item(), torch.autograd.grad(value, parameters, materialize_grads=True)

        done = list(self._pool.map(one, zip(*(tensor.chunk(self.parts) for tensor in batch), strict=True)))
        for index, parameter in enumerate(parameters):
            parameter.grad = sum((grads[index] for _, grads in done[1:]), done[0][1][index]) / self.parts
        return sum(value for value, _ in done) / self.parts


def step_generator(seed: int, step: int) -> torch.Generator:
    """Random generator of one training step; it depends on (seed, step) only, so a resumed run is the same run."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def save_state(path: Path, *, step: int, optimizer: torch.optim.Optimizer, **modules: nn.Module) -> None:
    """Write a checkpoint atomically."""
    state: dict[str, Any] = {"step": step, "optimizer": optimizer.state_dict()}
    state |= {name: module.state_dict() for name, module in modules.items()}
    with open_atomically(path) as file:
        torch.save(state, file)


def load_state(path: Path, *, optimizer: torch.optim.Optimizer, **modules: nn.Module) -> int:
    """Restore a checkpoint of `save_state`; returns the number of completed steps (0 without a file)."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    optimizer.load_state_dict(state["optimizer"])
    for name, module in modules.items():
        module.load_state_dict(state[name])
    return int(state["step"])
