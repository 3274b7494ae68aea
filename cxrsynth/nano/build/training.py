"""What both training stages share: the learning-rate schedule, seeds by step, checkpoints."""

import logging
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

log = logging.getLogger("cxrsynth.nano.build")


def warmup_stable_decay(step: int, *, steps: int, warmup: int = 200, decay: float = 0.3) -> float:
    """Factor on the learning rate: linear warm-up, plateau, linear decay over the last `decay` of `steps`.

    A plateau lets a run be made shorter or longer after it started: only the decay moves.
    """
    return min(1.0, (step + 1) / warmup, max(0.0, (steps - step) / (decay * steps)))


def step_generator(seed: int, step: int) -> torch.Generator:
    """Randomness of one training step: depends on (seed, step) alone, so a resumed run is the same run."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def save_state(path: Path, *, step: int, optimizer: torch.optim.Optimizer, **modules: nn.Module) -> None:
    """Write a checkpoint whole or not at all."""
    state: dict[str, Any] = {"step": step, "optimizer": optimizer.state_dict()}
    state |= {name: module.state_dict() for name, module in modules.items()}
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def load_state(path: Path, *, optimizer: torch.optim.Optimizer, **modules: nn.Module) -> int:
    """Restore a checkpoint made by `save_state`; returns the number of steps done (0 without a file)."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    optimizer.load_state_dict(state["optimizer"])
    for name, module in modules.items():
        module.load_state_dict(state[name])
    return int(state["step"])
