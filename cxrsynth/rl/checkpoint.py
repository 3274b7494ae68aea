"""Save and resume: weights, optimizer, prompt statistics, averaged weights, baseline rewards. No pickles.

All randomness comes from the seed and the iteration, so there is no generator to save.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from cxrsynth.errors import ModelError
from cxrsynth.runtime.files import folder_atomically, write_tensors

_WEIGHTS, _OPTIMIZER, _AVERAGED, _BESIDE, _STATE = (
    "weights.safetensors",
    "optimizer.safetensors",
    "ema.safetensors",
    "beside.safetensors",
    "state.json",
)


@dataclass(frozen=True)
class Learner:
    """The tensors of a checkpoint.

    `weights` are the parameters by name, `averaged` copies of them or None. `beside` are further tensors: a
    basis that another machine could compute with other rounding, the weights that sample.
    """

    weights: Mapping[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    averaged: Mapping[str, Tensor] | None = None
    beside: Mapping[str, Tensor] = field(default_factory=dict)


def save_checkpoint(folder: Path, learner: Learner, state: dict[str, Any]) -> None:
    """Write a checkpoint whole or not at all; what stood there before stays until the new one is complete.

    Raises:
        OSError: if it cannot be written; the previous checkpoint is untouched.
    """
    with folder_atomically(folder) as partial:
        write_tensors(partial / _WEIGHTS, {name: _kept(weight) for name, weight in learner.weights.items()})
        write_tensors(partial / _OPTIMIZER, _optimizer_tensors(learner))
        if learner.averaged is not None:
            write_tensors(partial / _AVERAGED, {name: _kept(weight) for name, weight in learner.averaged.items()})
        if learner.beside:
            write_tensors(partial / _BESIDE, {name: _kept(tensor) for name, tensor in learner.beside.items()})
        (partial / _STATE).write_text(json.dumps(state), encoding="utf-8")


def load_checkpoint(folder: Path, learner: Learner) -> dict[str, Any]:
    """Restore weights and optimizer in place; returns the plain state.

    Raises:
        ModelError: if the checkpoint is not one of these weights.
    """
    with explain_damage(folder):
        state: dict[str, Any] = json.loads((folder / _STATE).read_text(encoding="utf-8"))
        _copy(load_file(folder / _WEIGHTS), learner.weights)
        _load_optimizer(load_file(folder / _OPTIMIZER), learner)
        if learner.averaged is not None:
            _copy(load_file(folder / _AVERAGED), learner.averaged)
        if learner.beside:
            _copy(load_file(folder / _BESIDE), learner.beside)
    return state


def load_best(folder: Path, weights: Mapping[str, Tensor]) -> int:
    """Copy a checkpoint's weights, averaged ones where it has them; returns its iteration.

    Raises:
        ModelError: if the checkpoint is not one of these weights.
    """
    path = folder / _AVERAGED
    with explain_damage(folder, "remove it to take the last iteration's weights, or start again in a new folder"):
        iteration = int(json.loads((folder / _STATE).read_text(encoding="utf-8"))["iteration"])
        _copy(load_file(path if path.is_file() else folder / _WEIGHTS), weights)
    return iteration


_ADVICE = "remove it to go on from the one before, or start again in a new folder"


@contextmanager
def explain_damage(folder: Path, advice: str = _ADVICE) -> Iterator[None]:
    """What reading a damaged or foreign checkpoint raises, as ModelError; one that cannot be read now may be whole."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except OSError as error:
        if not isinstance(error, FileNotFoundError):
            raise ModelError(f"{folder}: cannot be read ({error.strerror})\n  run the same command again") from None
        raise ModelError(f"{folder}: not whole, a file is missing\n  {advice}") from None
    except (ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"{folder}: not a checkpoint of this recipe, or of another version ({type(error).__name__})\n  {advice}"
        ) from None


def _copy(found: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    if set(found) != set(weights):
        raise ValueError("other names")
    with torch.no_grad():
        for name, weight in weights.items():
            if found[name].shape != weight.shape:
                raise ValueError("another shape")
            weight.copy_(found[name])


def _kept(weight: Tensor) -> Tensor:
    return weight.detach().cpu().contiguous()


def _optimizer_tensors(learner: Learner) -> dict[str, Tensor]:
    """AdamW's state by parameter name: steps taken, both moments."""
    return {
        f"{name}/{key}": _kept(torch.as_tensor(value))
        for name, weight in learner.weights.items()
        for key, value in learner.optimizer.state.get(weight, {}).items()
    }


def _load_optimizer(found: Mapping[str, Tensor], learner: Learner) -> None:
    for name, weight in learner.weights.items():
        own = {key.rsplit("/", 1)[1]: value for key, value in found.items() if key.rsplit("/", 1)[0] == name}
        if own:
            # The step count stays where the optimizer keeps it: on the CPU.
            learner.optimizer.state[weight] = {
                key: value if key == "step" else value.to(weight, memory_format=torch.preserve_format)
                for key, value in own.items()
            }
