"""Released torchxrayvision weights: downloaded by name, verified, and read without running code from the file."""

import contextlib
import hashlib
import io
import pickle
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torchxrayvision.utils import download, get_cache_dir

from cxrsynth.errors import ModelError, in_words
from cxrsynth.runtime.files import check_regular

_PIN = "@sha256:"


@dataclass(frozen=True)
class ReleasedName:
    """Name of released weights, and the SHA-256 that the user states for their file, if any."""

    name: str
    sha256: str | None = None

    @classmethod
    def parse(cls, backend: str) -> "ReleasedName":
        """`densenet121-res224-all` or `densenet121-res224-all@sha256:<64 hexadecimal digits>`.

        Raises:
            ModelError: if what follows `@sha256:` is no SHA-256.
        """
        name, pin, sha256 = backend.partition(_PIN)
        if pin and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
            raise ModelError(f"{backend}: not a SHA-256\n  expected: {name}{_PIN}<64 hexadecimal digits>")
        return cls(name, sha256.lower() if pin else None)


def cached_file(url: str, cache: Path | None = None) -> Path:
    """Where torchxrayvision keeps the file that it downloads from a URL; in its own cache where `cache` is None."""
    return (cache or Path(get_cache_dir())) / url.rsplit("/", 1)[-1]


def released_state(released: ReleasedName, url: str, *, cache: Path | None = None) -> dict[str, Tensor]:
    """State dict of released weights, on the CPU in float32; downloaded first where the cache does not hold them.

    Plain weights are read with `weights_only`. torchxrayvision releases its DenseNets as pickled Python objects, which
    can run any code when they are loaded: those are read only if the user states the SHA-256 of the file, after it has
    been compared with the file's.

    Raises:
        ModelError: if the file cannot be downloaded or read, has another SHA-256 than stated, or is pickled and none is
            stated.
    """
    file = cached_file(url, cache)
    if not file.is_file():
        _download(released.name, url, file)
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ModelError(f"{file}: cannot be read: {error.strerror}\n  expected: a readable file") from None
    found = hashlib.sha256(content).hexdigest()
    if released.sha256 not in (None, found):
        raise ModelError(
            f"{file}: SHA-256 is {found}\n  expected: {released.sha256}, as stated with {released.name}\n"
            "  delete the file to download it again, or correct the stated SHA-256"
        )
    return network_state(_unpickled(content, file, released, found))


def network_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights in float32, named as in the network that torchxrayvision's class holds."""
    # Its ResNet and PSPNet keep theirs as `model`. Operating points come from the configuration.
    state = {
        key.removeprefix("module.").removeprefix("model."): value for key, value in state.items() if key != "op_threshs"
    }
    return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}


def folder_state(folder: Path) -> dict[str, Tensor]:
    """Weights from a folder's `model.safetensors`, as `network_state` names them; OSError if it is no file."""
    check_regular(folder / "model.safetensors")
    return network_state(load_file(folder / "model.safetensors"))


def _download(name: str, url: str, file: Path) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.redirect_stdout(sys.stderr):  # the library draws its progress bar on stdout
            download(url, str(file))
    except Exception as error:  # whatever a failed download raises
        raise ModelError(
            f"{name}: cannot be downloaded ({in_words(_origin(error))}) from {url}\n"
            f"  expected: a way to download it, the file itself at {file}, or a folder with safetensors\n"
            f"  a file that holds a pickled object, as the DenseNets do, is read only with its SHA-256: {name}{_PIN}..."
        ) from None


def _origin(error: BaseException) -> BaseException:
    """What the network's library stumbled over first: its own text is Python."""
    while (before := error.__cause__ or error.__context__) is not None:
        error = before
    return error


def _unpickled(content: bytes, file: Path, released: ReleasedName, sha256: str) -> dict[str, Tensor]:
    loaded = None
    with contextlib.suppress(pickle.UnpicklingError, RuntimeError, EOFError, ValueError):
        loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    if loaded is None and released.sha256 is None:
        raise ModelError(
            f"{file}: not plain weights but a pickled Python object, which can run any code when it is loaded (or the"
            f" file is damaged)\n"
            "  expected: a folder with config.json and model.safetensors, converted on a machine you can spare; or, if"
            " you trust the origin of this file,\n"
            f"  its SHA-256 after the name: {released.name}{_PIN}{sha256}"
        )
    try:
        if loaded is None:  # the user vouches for these very bytes
            loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=False)
        state = loaded.state_dict() if isinstance(loaded, nn.Module) else loaded
        if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
            raise TypeError("no tensors by name")
    except Exception as error:  # whatever a damaged pickle raises
        raise ModelError(
            f"{file}: cannot be read as weights of {released.name} ({in_words(error)})\n"
            "  expected: the file that torchxrayvision releases; delete it to download it again"
        ) from None
    return dict(state)
