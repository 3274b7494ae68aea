"""Members of a tar of unknown origin, streamed: nothing is written to disk, and nothing ends unnoticed."""

import gzip
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, cast

from cxrsynth.images.limits import MAX_MEMBER_BYTES, bad_name

_GZIP = b"\x1f\x8b"
# Long names and pax records come as members of their own, which tarfile reads whole.
_HEADER_TYPES = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
_MAX_HEADER_BYTES = 64 << 10
# Writers pad a tar to a multiple of their record, at most 255 blocks of 512 bytes and seldom above 20.
_MAX_PADDING_BYTES = 1 << 20


class BrokenTarError(Exception):
    """Why a tar cannot be read on. Says nothing of the members' content."""


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file of a tar, or the reason why it is refused (then without content)."""

    name: str
    content: bytes = field(default=b"", repr=False)
    refused: str = ""


class _Header(tarfile.TarInfo):
    """tarfile takes a header that is broken or cut off for the end of the tar, silently; here it is an error."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Header":
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if len(buf) == tarfile.BLOCKSIZE and not any(buf):
                raise  # the end mark
            raise BrokenTarError(_header_fault(buf)) from error
        if header.size < 0 or (header.type in _HEADER_TYPES and header.size > _MAX_HEADER_BYTES):
            raise BrokenTarError(f"a header claims {header.size} bytes for a name or its like")
        return header


def _header_fault(buf: bytes | bytearray) -> str:
    if not buf:
        return "ends without its end mark"
    return "a broken header" if len(buf) == tarfile.BLOCKSIZE else "ends within a header"


def read_tar(file: IO[bytes]) -> Iterator[Member]:
    """Members in order, plain tar or gzip; folders are passed over, links and other kinds refused.

    Python's tarfile reads the headers, one after the other and never back; what is refused is passed over by a seek,
    where its stream mode would read it all. A member of more than `MAX_MEMBER_BYTES` is refused by its header, before
    memory is taken.

    Raises:
        BrokenTarError: where the tar is broken, cut short, empty, or goes on after its end mark; members before that
            have been given out.
    """
    with _telling():
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
        raise BrokenTarError(f"no tar, or one that is broken at its start: {error}") from None


@contextmanager
def _telling() -> Iterator[None]:
    """Turn what tarfile and gzip raise for broken bytes into a BrokenTarError."""
    try:
        yield
    except tarfile.ReadError as error:
        cut = "end of data" in str(error)
        raise BrokenTarError("ends within a member" if cut else "no tar, or a broken one") from None
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise BrokenTarError("its gzip stream is broken or cut short") from None
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
        return "a device, a sparse file or its like, expected a plain file"
    if info.size > MAX_MEMBER_BYTES:
        return f"claims {info.size} bytes, more than {MAX_MEMBER_BYTES}"
    return ""


def _check_end(stream: IO[bytes]) -> None:
    """After the end mark only zeros may follow: a zeroed block in the middle, or a second tar, is not to be missed."""
    rest = stream.read(_MAX_PADDING_BYTES)
    if any(rest) or stream.read(1):
        raise BrokenTarError("goes on after its end mark")
