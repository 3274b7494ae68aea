"""Pretrained folders of transformers and diffusers, loaded safely: local safetensors, no code from the folder."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from cxrsynth.errors import ModelError

# What the libraries raise, depending on what is wrong with the files of a folder.
LOADING_ERRORS = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    RuntimeError,
    ImportError,
    SafetensorError,
)
_HUB_ID = re.compile(r"(?P<repository>[\w-][\w.-]*/[\w-][\w.-]*)@(?P<revision>(?!sha256:)[^@\s]+)")
# Settings, weights and vocabularies; never pickles, never code.
_DOWNLOADED = ["*.json", "*.safetensors", "*.txt", "*.model"]


def load_pretrained(
    kind: Any, folder: Path, *, role: str, may_miss: Sequence[str] = (), ignore_extra: bool = False
) -> tuple[Any, frozenset[str]]:
    """Load a network of transformers or diffusers from a local folder, on the CPU, in float32 and eval mode.

    Only local safetensors are read, code in the folder is never run, and the weights must match the network: a tensor
    that the file lacks would otherwise keep its random values.

    Args:
        kind: the class with `from_pretrained`, such as `AutoModel` or `AutoencoderKL`.
        folder: its `config.json` and weights.
        role: what it is to be, for messages: "an image encoder".
        may_miss: the weights may lack tensors whose name contains one of these.
        ignore_extra: the weights may hold further tensors, as those of a classifier do when only its encoder is used.

    Returns:
        The network, and the names of the tensors that its weights lack, which hold random values.

    Raises:
        ModelError: if the folder cannot be loaded, asks for its own code, or its weights do not match.
    """
    _check_folder(folder, role)
    # diffusers has no remote code for a class that is named.
    own_code = {"trust_remote_code": False} if kind.__module__.startswith("transformers") else {}
    try:
        network, loading = kind.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True, **own_code
        )
    except LOADING_ERRORS as error:
        raise _unusable(folder, role, error) from None
    missing = frozenset(loading["missing_keys"])
    refused = [name for name in missing if not any(part in name for part in may_miss)]
    _refuse_tensors(folder, role, "missing from its weights", refused)
    _refuse_tensors(folder, role, "of another shape than the network's", loading["mismatched_keys"])
    if not ignore_extra:
        _refuse_tensors(folder, role, "in its weights that the network does not have", loading["unexpected_keys"])
    # By hand: the argument that asks for a type has another name before transformers 4.56.
    return network.float().eval(), missing


def load_processor(kind: Any, folder: Path, *, role: str, **settings: Any) -> Any:
    """Load a tokenizer or image processor of transformers from a local folder; code in the folder is never run.

    Args:
        kind: the class with `from_pretrained`, such as `AutoTokenizer`.
        folder: its files.
        role: what the folder is to be, for messages.
        settings: further arguments of `from_pretrained`.

    Raises:
        ModelError: if it cannot be loaded, or the folder asks for its own code.
    """
    _check_folder(folder, role)
    try:
        return kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **settings)
    except LOADING_ERRORS as error:
        raise _unusable(folder, role, error) from None


def hub_folder(name: str) -> Path | None:
    """Local snapshot of a hub repository `owner/name@revision`, downloaded if necessary; None for any other name.

    The revision (a commit, better than a tag, much better than a branch) is required: results that name a repository
    alone cannot be reproduced. Only settings, safetensors and vocabularies are downloaded.

    Raises:
        ModelError: if there is no such repository or revision, or it cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    match = _HUB_ID.fullmatch(name)
    if match is None:
        return None
    try:
        return Path(snapshot_download(match["repository"], revision=match["revision"], allow_patterns=_DOWNLOADED))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"{name}: no such folder, and cannot be downloaded from the hub ({type(error).__name__})\n"
            "  expected: a folder, or a hub id owner/name@revision that can be reached"
        ) from None


def _check_folder(folder: Path, role: str) -> None:
    """Raises ModelError for what is no folder (the libraries would look for it at a hub) or asks for its own code."""
    if not folder.is_dir():
        raise _unusable(folder, role, "no such folder")
    for path in sorted(folder.glob("*.json")):
        if path.name.endswith("config.json") and _asks_for_own_code(path):
            raise ModelError(
                f"{path}: asks for Python code of its own (auto_map), which cxrsynth never runs\n"
                "  expected: a model that transformers implements; if it does, remove auto_map in a copy of the folder"
            )


def _asks_for_own_code(config: Path) -> bool:
    try:
        settings = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False  # the library says so better
    return isinstance(settings, dict) and bool(settings.get("auto_map"))


def _refuse_tensors(folder: Path, role: str, problem: str, names: Any) -> None:
    """Raises ModelError if there are any; a mismatched tensor comes as (name, shape, shape)."""
    refused = sorted(name if isinstance(name, str) else str(name[0]) for name in names)
    if refused:
        raise _unusable(folder, role, f"{len(refused)} tensors are {problem}, such as {refused[0]}")


def _unusable(folder: Path, role: str, problem: object) -> ModelError:
    return ModelError(
        f"{folder}: cannot be loaded as {role}: {problem}\n"
        "  expected: a folder of transformers or diffusers with config.json and weights in safetensors"
    )
