"""Files that are whole or absent: written beside their place, synced, renamed."""

import errno
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from cxrsynth.errors import ShardError


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable (POSIX: a folder is a file)."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a small file whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def stable_json(value: Any) -> bytes:
    """JSON with sorted keys and a final newline: equal values give equal bytes."""
    return (json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def file_sha256(path: Path) -> str | None:
    """Hex digest of a file, None if there is none."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None


def writing_failed(path: Path, error: OSError) -> ShardError:
    """One message for a full disk, a lost permission, a vanished mount."""
    return ShardError(
        f"{path}: cannot write ({os.strerror(error.errno) if error.errno else error})\n"
        "  finished shards are whole; make room or mend the permission, then run the same command to go on"
    )


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """A safetensors file; what the library cannot write is an OSError as of any other file."""
    try:
        save_file(dict(tensors), path)
    except SafetensorError as error:
        raise OSError(errno.EIO, str(error)) from None


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
