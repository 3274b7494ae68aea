"""Members of an untrusted tar, streamed: nothing is written to disk, and no truncation goes unnoticed."""

import gzip
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, cast

from cxrsynth.images.limits import MAX_MEMBER_BYTES, bad_name

_GZIP = b"\x1f\x8b"
# Long names and pax records are members of their own, which tarfile reads whole.
_HEADER_TYPES = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
_MAX_HEADER_BYTES = 64 << 10
# Writers pad a tar to a multiple of their record size: at most 255 blocks of 512 bytes, rarely over 20.
_MAX_PADDING_BYTES = 1 << 20


class BrokenTarError(Exception):
    """Why a tar cannot be read further. Quotes nothing from its members."""


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file in a tar, or the reason it was refused (then without content)."""

    name: str
    content: bytes = field(default=b"", repr=False)
    refused: str = ""


class _Header(tarfile.TarInfo):
    """tarfile silently takes a broken or truncated header for the end of the tar; here it is an error."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Header":
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if len(buf) == tarfile.BLOCKSIZE and not any(buf):
                raise  # the end mark
            raise BrokenTarError(_header_fault(buf)) from error
        if header.size < 0 or (header.type in _HEADER_TYPES and header.size > _MAX_HEADER_BYTES):
            raise BrokenTarError(f"a header claims {header.size} bytes for a name or similar record")
        return header


def _header_fault(buf: bytes | bytearray) -> str:
    if not buf:
        return "ends without its end mark"
    return "a broken header" if len(buf) == tarfile.BLOCKSIZE else "ends within a header"


def read_tar(file: IO[bytes]) -> Iterator[Member]:
    """Members in order, from a plain or gzipped tar; folders are skipped, links and other kinds refused.

    Python's tarfile reads the headers one after another, never backwards; refused members are skipped by a seek, where
    its stream mode would read them. A member larger than `MAX_MEMBER_BYTES` is refused by its header, before memory is
    allocated.

    Raises:
        BrokenTarError: if the tar is broken, truncated, empty, or continues after its end mark; members before that
            have been yielded.
    """
    with _explaining():
        start = file.read(len(_GZIP))
        file.seek(0)
        stream = cast(IO[bytes], gzip.GzipFile(fileobj=file)) if start == _GZIP else file
        if not start:
            raise BrokenTarError("an empty file")
        with _opened(stream) as tar:
            count = 0
            while (info := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # it would remember every header
                if not info.isdir():
                    count += 1
                    yield _member(tar, info)
            if not count:
                raise BrokenTarError("a tar without members")
            _check_end(cast(IO[bytes], tar.fileobj))


def _opened(stream: IO[bytes]) -> tarfile.TarFile:
    """The tar, its first header read."""
    try:
        return tarfile.open(fileobj=stream, mode="r:", tarinfo=_Header)
    except BrokenTarError as error:
        raise BrokenTarError(f"not a tar, or broken at its start: {error}") from None


@contextmanager
def _explaining() -> Iterator[None]:
    """Turn the errors of tarfile and gzip for broken bytes into BrokenTarError."""
    try:
        yield
    except tarfile.ReadError as error:
        cut = "end of data" in str(error)
        raise BrokenTarError("ends within a member" if cut else "not a tar, or a broken one") from None
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise BrokenTarError("its gzip stream is broken or truncated") from None
    except (tarfile.TarError, ArithmeticError, LookupError, RecursionError, TypeError, ValueError):
        raise BrokenTarError("a broken header") from None


def _member(tar: tarfile.TarFile, info: tarfile.TarInfo) -> Member:
    name = info.name.removeprefix("./")
    refused = bad_name(name) or _bad_kind(info)
    if refused:
        return Member(name, refused=refused)
    handle = tar.extractfile(info)
    content = handle.read() if handle is not None else b""
    if len(content) != info.size:
        raise BrokenTarError("ends within a member")
    return Member(name, content)


def _bad_kind(info: tarfile.TarInfo) -> str:
    if info.issym() or info.islnk():
        return "a link, expected a file"
    if not info.isreg() or info.issparse():
        return "a device, sparse file or similar, expected a plain file"
    if info.size > MAX_MEMBER_BYTES:
        return f"claims {info.size} bytes, more than {MAX_MEMBER_BYTES}"
    return ""


def _check_end(stream: IO[bytes]) -> None:
    """Only zeros may follow the end mark: otherwise a zeroed block or a second tar would go unnoticed."""
    rest = stream.read(_MAX_PADDING_BYTES)
    if any(rest) or stream.read(1):
        raise BrokenTarError("continues after its end mark")
