"""Weights in any file that holds tensors alone, read without running what a pickle asks for, written as safetensors."""

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from cxrsynth.errors import ModelError, in_words
from cxrsynth.runtime.files import write_tensors

PICKLED = (".bin", ".ckpt", ".pt", ".pth")
SUFFIXES = (*PICKLED, ".safetensors")
_INNER = ("state_dict", "model_state_dict")
_GLOBAL = re.compile(r"GLOBAL (\S+)")


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, in the file's own types, on the CPU.

    Training checkpoints keep them under `state_dict` or `model_state_dict`; what else they hold (optimizer, counters)
    is left out.

    Raises:
        ModelError: if the file cannot be read, or needs more than tensors, which would run code of its own.
    """
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _unpickle_tensors(path)
    while isinstance(content, Mapping) and (inner := [n for n in _INNER if isinstance(content.get(n), Mapping)]):
        content = content[inner[0]]
    found = {}
    if isinstance(content, Mapping):
        found = {name: one for name, one in content.items() if isinstance(name, str) and isinstance(one, Tensor)}
    if not found:
        raise ModelError(f"{path}: no weights in it\n  expected: tensors by name, or a checkpoint with a state_dict")
    return found


def write_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors. Raises OSError if the file cannot be written."""
    seen: set[int] = set()
    written = {}
    for name, tensor in weights.items():
        # Tied weights share their memory, and safetensors has no way to say so.
        shared = tensor.untyped_storage().data_ptr() in seen
        seen.add(tensor.untyped_storage().data_ptr())
        written[name] = tensor.clone(memory_format=torch.contiguous_format) if shared else tensor.contiguous()
    # transformers refuses files that do not say which library's tensors they hold.
    write_tensors(path, written, metadata={"format": "pt"})


def _read_safetensors(path: Path) -> Any:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read as safetensors: {in_words(error)}") from None


def _unpickle_tensors(path: Path) -> Any:
    try:
        # Files of before PyTorch 1.6 are no zip files and cannot be mapped into memory.
        return torch.load(path, weights_only=True, map_location="cpu", mmap=zipfile.is_zipfile(path))
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror or error})") from None
    except pickle.UnpicklingError as error:
        named = _GLOBAL.search(str(error))
        raise ModelError(
            f"{path}: holds more than tensors{f' ({named[1]})' if named else ''}, or is damaged; reading that would run"
            " code of the file's own, so it is refused\n"
            "  expected: weights alone; on a machine you can spare, load it and save its state_dict as safetensors"
        ) from None
    except Exception as error:  # whatever a damaged pickle raises
        raise ModelError(f"{path}: cannot be read as weights of PyTorch ({in_words(error)})") from None
