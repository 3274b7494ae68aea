"""Limits on untrusted files, and the error for a file that cannot be read."""

import re
import struct
import zlib
from io import BufferedReader
from typing import cast

from PIL import Image
from pydicom.errors import InvalidDicomError

from cxrsynth.address import Address, Location, unreachable
from cxrsynth.runtime.files import is_regular

# A current detector gives 4280 x 3520 pixels of 16 bits: 30 MB, 15 million pixels.
MAX_MEMBER_BYTES = 128 << 20
MAX_SAMPLE_BYTES = 256 << 20
MAX_SAMPLE_MEMBERS = 64
MAX_TEXT_BYTES = 1 << 20
MAX_PIXELS = 1 << 26
MAX_NAME_CHARS = 1024

# What decoders raise for malformed bytes; on hostile input they raise almost anything.
DECODER_ERRORS: tuple[type[Exception], ...] = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    Image.DecompressionBombError,
    InvalidDicomError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)


class UnreadableError(Exception):
    """Why one file or member cannot be read: the reason of a `Damaged`. Quotes nothing from the file."""


def refuse_large(width: int, height: int) -> None:
    """Raise UnreadableError for more than `MAX_PIXELS` pixels, before any memory is allocated for them."""
    if width * height > MAX_PIXELS:
        raise UnreadableError(f"{width} x {height} pixels, more than {MAX_PIXELS}")


def bad_name(name: str) -> str:
    """Why a member's name cannot be used, or empty: it points outside, or cannot be printed."""
    if name.startswith("/") or "\\" in name or re.match(r"[A-Za-z]:", name) or ".." in name.split("/"):
        return "a name that leads out of the shard"
    if not name or not name.isprintable():
        return "no name, or one with control characters or undecodable bytes"
    return f"a name of {len(name)} characters" if len(name) > MAX_NAME_CHARS else ""


def shown(name: str) -> str:
    """A name for a message: printable, 200 characters at most."""
    return (name if name.isprintable() else name.encode("unicode_escape").decode())[:200]


def open_plain(path: Location) -> BufferedReader:
    """Open a file for reading, but not a pipe or device, which could block forever.

    Raises:
        UnreadableError: if it is not a plain file.
        OSError: if it cannot be read.
        ShardError: if it is in an object store that cannot be reached: nothing is said of the file then.
    """
    if isinstance(path, Address):
        try:
            return cast(BufferedReader, path.open("rb"))
        except FileNotFoundError:
            raise
        except OSError as error:
            raise unreachable(path, error) from None
    if not is_regular(path):
        raise UnreadableError("a folder, pipe or device, expected a file")
    return path.open("rb")
