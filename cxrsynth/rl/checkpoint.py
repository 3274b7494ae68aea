"""Save and resume: weights, optimizer, prompt statistics, averaged weights, baseline rewards. No pickles.

Every file is checked against its digest before it is used.

All randomness comes from the seed and the iteration, so there is no generator to save.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from cxrsynth.errors import ModelError, in_words
from cxrsynth.runtime.files import file_sha256, folder_atomically, write_tensors
from cxrsynth.runtime.memory import is_out_of_memory

_WEIGHTS, _OPTIMIZER, _AVERAGED, _BESIDE, _STATE = (
    "weights.safetensors",
    "optimizer.safetensors",
    "ema.safetensors",
    "beside.safetensors",
    "state.json",
)
_DIGESTS = "digests.json"  # SHA-256 of each other file: a flipped bit would train on unnoticed


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
        digests = {path.name: file_sha256(path) for path in sorted(partial.iterdir())}
        (partial / _DIGESTS).write_text(json.dumps(digests, indent=1), encoding="utf-8")


def load_checkpoint(folder: Path, learner: Learner) -> dict[str, Any]:
    """Restore weights and optimizer in place; returns the plain state.

    Raises:
        ModelError: if the checkpoint is damaged, or not one of these weights.
    """
    wanted = {_WEIGHTS, _OPTIMIZER, _STATE}
    wanted |= {_AVERAGED} if learner.averaged is not None else set()
    wanted |= {_BESIDE} if learner.beside else set()
    with explain_damage(folder):
        _check_digests(folder, wanted, _ADVICE)
        state: dict[str, Any] = json.loads((folder / _STATE).read_text(encoding="utf-8"))
        _copy(load_file(folder / _WEIGHTS), learner.weights)
        _load_optimizer(load_file(folder / _OPTIMIZER), learner)
        if learner.averaged is not None:
            _copy(load_file(folder / _AVERAGED), learner.averaged)
        if learner.beside:
            _copy(load_file(folder / _BESIDE), learner.beside)
    return state


def load_best(folder: Path, weights: Mapping[str, Tensor], *, averaged: bool) -> int:
    """Copy a checkpoint's weights; returns its iteration.

    Args:
        folder: of the checkpoint.
        weights: parameters by name, which are overwritten.
        averaged: whether the averaged weights are wanted.

    Raises:
        ModelError: if the checkpoint is damaged, or not one of these weights.
    """
    name = _AVERAGED if averaged else _WEIGHTS
    with explain_damage(folder, _ADVICE_BEST):
        _check_digests(folder, {name, _STATE}, _ADVICE_BEST)
        iteration = int(json.loads((folder / _STATE).read_text(encoding="utf-8"))["iteration"])
        _copy(load_file(folder / name), weights)
    return iteration


def check_whole(folder: Path) -> int:
    """Check all digests of a checkpoint that is to be copied; returns its iteration.

    Raises:
        ModelError: if it is damaged.
    """
    with explain_damage(folder, _ADVICE_BEST):
        _check_digests(folder, {_WEIGHTS, _OPTIMIZER, _STATE}, _ADVICE_BEST)
        return int(json.loads((folder / _STATE).read_text(encoding="utf-8"))["iteration"])


_ADVICE = "remove this checkpoint to go on from the one before, or start again in a new folder"
_ADVICE_BEST = "remove this checkpoint to take the last iteration's weights, or start again in a new folder"


def _check_digests(folder: Path, wanted: Collection[str], advice: str) -> None:
    """Refuse a checkpoint of which a file is missing or not as it was written."""
    try:
        digests: dict[str, str] = dict(json.loads((folder / _DIGESTS).read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ModelError(f"{folder}: no {_DIGESTS}, so it is not whole or of an earlier version\n  {advice}") from None
    for name in sorted(digests.keys() | wanted):
        path = folder / name
        if not path.is_file():
            raise ModelError(f"{folder}: not whole, {name} is missing\n  {advice}")
        if name not in digests or file_sha256(path) != digests[name]:
            raise ModelError(f"{path}: damaged, its SHA-256 is not the one that {_DIGESTS} records\n  {advice}")


@contextmanager
def explain_damage(folder: Path, advice: str = _ADVICE) -> Iterator[None]:
    """What reading a damaged or foreign checkpoint raises, as ModelError; one that cannot be read now may be whole."""
    try:
        yield
    except OSError as error:
        if not isinstance(error, FileNotFoundError):
            raise ModelError(f"{folder}: cannot be read ({error.strerror})\n  run the same command again") from None
        raise ModelError(f"{folder}: not whole, a file is missing\n  {advice}") from None
    except (ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(
            f"{folder}: not a checkpoint of this recipe, or of another version ({in_words(error)})\n  {advice}"
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
