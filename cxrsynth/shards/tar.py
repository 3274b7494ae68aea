"""One shard as a tar: members in order, fixed header fields, whole or absent."""

import hashlib
import io
import os
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, cast

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from cxrsynth.settings import ImageFormat

SYNTHETIC_NOTE = "Synthetic chest X-ray made by cxrsynth. Not a patient, not for diagnosis."


class ShardWriter:
    """Writes a file that has a temporary name; `close` flushes it to disk.

    The bytes depend only on the members: owner, mode and time in the headers are fixed. Samples are written in the
    order given, the members of each sorted by name.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("wb")
        self._hash = _HashingFile(self._file)
        stream = cast(IO[bytes], self._hash)
        self._tar = tarfile.open(fileobj=stream, mode="w|", format=tarfile.USTAR_FORMAT)  # noqa: SIM115 (closed by close)

    def write(self, key: str, members: dict[str, bytes]) -> None:
        """Add `<key>.<extension>` for each member."""
        for extension in sorted(members):
            info = tarfile.TarInfo(f"{key}.{extension}")
            info.size = len(members[extension])
            info.mode = 0o644
            self._tar.addfile(info, io.BytesIO(members[extension]))

    def close(self) -> tuple[str, int]:
        """Finish and flush the file; returns its SHA-256 and its size in bytes."""
        self._tar.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return self._hash.hexdigest(), self._hash.size

    def discard(self) -> None:
        """Delete the file."""
        # On a full disk, buffered data cannot be written: each close would raise again.
        for close in (self._tar.close, self._file.close):
            with suppress(OSError):
                close()
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.discard()


class _HashingFile:
    """A write-only file that hashes what passes through it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        self.size += len(data)
        return self._file.write(data)

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def encode_image(image: npt.NDArray[np.float32], kind: ImageFormat) -> tuple[str, bytes]:
    """Encode [H, W] float32 in [0, 1]; returns file extension and bytes.

    PNG is 8-bit gray, png16 is 16-bit gray, JPG has quality 95. A comment in the file says that it is synthetic.
    """
    buffer = io.BytesIO()
    if kind is ImageFormat.JPG:
        Image.fromarray(np.rint(image * 255).astype(np.uint8)).save(
            buffer, "JPEG", quality=95, comment=SYNTHETIC_NOTE.encode()
        )
        return "jpg", buffer.getvalue()
    note = PngInfo()
    note.add_text("Comment", SYNTHETIC_NOTE)
    wide = kind is ImageFormat.PNG16
    levels = np.rint(image * (65535 if wide else 255)).astype(np.uint16 if wide else np.uint8)
    Image.fromarray(levels).save(buffer, "PNG", pnginfo=note)
    return "png", buffer.getvalue()


def read_members(file: IO[bytes]) -> Iterator[tuple[str, bytes]]:
    """Members of a shard, in order."""
    with tarfile.open(fileobj=file, mode="r|") as tar:
        for info in tar:
            handle = tar.extractfile(info)
            if handle is not None:
                yield info.name, handle.read()
