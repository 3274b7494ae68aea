"""Atomic files and folders: written under a temporary name, flushed to disk, then renamed.

A file `x` is written as `.x.partial`; a folder that replaces another keeps the old one as `.x.old` for the moment
between two renames. A killed process leaves nothing else behind, and `cxrsynth.runtime.folder` removes both kinds.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from safetensors import SafetensorError

from cxrsynth.address import Location

if TYPE_CHECKING:
    from torch import Tensor

LONGEST_JSON = 1 << 28  # the largest vocabularies have a tenth of it


def partial_path(path: Path) -> Path:
    """The temporary name a file or folder is written under."""
    return path.with_name(f".{path.name}.partial")


def old_path(folder: Path) -> Path:
    """Where a folder waits while its replacement takes its name."""
    return folder.with_name(f".{folder.name}.old")


def remove(path: Path) -> None:
    """Remove a file, a link or a whole folder; do nothing if there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to disk."""
    if sys.platform == "win32":
        return  # neither can be flushed there through a handle that only reads
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(path: Path, partial: Path | None = None) -> None:
    """Give a finished temporary file, `partial_path(path)` or another one beside it, its final name, durably."""
    os.replace(partial or partial_path(path), path)
    sync(path.parent)


@contextmanager
def open_atomically(path: Path, *, mode: int = 0o666, writer: str = "") -> Iterator[IO[bytes]]:
    """A binary file that appears as `path`, whole, once the block ends without an error.

    Args:
        path: final name; a file there is replaced.
        mode: permissions of the new file, before the umask.
        writer: tells apart those who may write the file at the same time: each needs a temporary name of its own.
    """
    partial = partial_path(path.with_name(f"{path.name}.{writer}") if writer else path)
    try:
        partial.unlink(missing_ok=True)  # one that was left open to others keeps its permissions
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY, mode), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        publish(path, partial)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, content: bytes, *, mode: int = 0o666) -> None:
    """Write a file whole or not at all."""
    with open_atomically(path, mode=mode) as file:
        file.write(content)


def write_tensors(path: Path, tensors: "Mapping[str, Tensor]", *, metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file, with texts in its header, whole or not at all.

    Raises:
        OSError: if it cannot be written, also where the library has an error of its own for that.
    """
    from safetensors.torch import save_file  # not above: what encodes images needs no torch

    partial = partial_path(path)
    try:
        with system_errors(partial):
            save_file(dict(tensors), partial, metadata=None if metadata is None else dict(metadata))
        sync(partial)
        publish(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def system_errors(path: Path) -> Iterator[None]:
    """Where a block writes safetensors files to `path`, its failures have the system's number, as of a full disk.

    Raises:
        OSError: in place of the library's own error, which gives the number in its text alone.
    """
    try:
        yield
    except SafetensorError as error:
        number = _SYSTEM_ERROR.search(str(error))
        raise OSError(int(number[1]) if number else errno.EIO, str(error), str(path)) from None


@contextmanager
def folder_atomically(folder: Path) -> Iterator[Path]:
    """A new folder to fill, which takes the place of `folder` once the block ends without an error.

    What stood there before stays until the new folder is complete and on disk.
    """
    partial, old = partial_path(folder), old_path(folder)
    remove(partial)
    try:
        partial.mkdir(parents=True)
        yield partial
        for path in (*partial.rglob("*"), partial):
            sync(path)
        remove(old)
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
        sync(folder.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def stable_json(value: Any) -> bytes:
    """JSON with sorted keys and a final newline: equal values give equal bytes."""
    return (json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def what_it_is(path: Path) -> str:
    """What stands under a name, in words: a file, a folder, a pipe, a socket, a device, a link to nothing, nothing."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return "a link to nothing" if path.is_symlink() else "nothing"
    kinds = {stat.S_IFREG: "a file", stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def is_regular(path: Path) -> bool:
    """Whether a path is a file, and no folder, pipe or device. Raises OSError if there is nothing."""
    return stat.S_ISREG(path.stat().st_mode)


def check_regular(path: Path) -> None:
    """Refuse what is no file: opening a pipe waits for a writer, and a device may never end.

    Raises:
        OSError: as for a file that cannot be opened.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not is_regular(path):
        raise OSError(errno.EINVAL, f"{what_it_is(path)}, not a file", str(path))


def read_json(path: Path, *, longest: int = LONGEST_JSON) -> Any:
    """Content of a JSON file that somebody else may have written.

    Args:
        path: of the file.
        longest: bytes that it may have.

    Raises:
        OSError: if it is no file, or cannot be read.
        ValueError: if it is no JSON, longer than `longest`, or nested too deeply.
    """
    check_regular(path)
    if (size := path.stat().st_size) > longest:
        raise ValueError(f"{size:,} bytes, more than the {longest:,} that such a file may have")
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))  # some editors begin a file with a mark
    except RecursionError:
        raise ValueError("nested too deeply") from None


def file_sha256(path: Location) -> str:
    """SHA-256 of a file's bytes, 64 hex digits. Raises OSError for what is no file, or cannot be read."""
    if isinstance(path, Path):
        check_regular(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def has_sha256(path: Location, expected: object) -> bool:
    """Whether a file exists and has this SHA-256. Raises OSError for one that is there but cannot be read."""
    try:
        return file_sha256(path) == expected
    except FileNotFoundError:
        return False


_SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)")
_BINARY = getattr(os, "O_BINARY", 0)  # Windows would translate line ends
