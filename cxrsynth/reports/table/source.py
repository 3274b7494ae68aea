"""Files of tables: which kinds there are, how they are opened, and what is said of one that cannot be read."""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import IO, TextIO, cast

from cxrsynth.address import Address, Location
from cxrsynth.errors import ReportsError
from cxrsynth.runtime.files import is_regular, what_it_is

# Longest CSV record in characters, and longest JSON object in characters or bytes. A longer one is rejected without
# being held in memory.
MAX_RECORD_CHARS = 1 << 20
_GZIP = ".gz"


class Kind(Enum):
    """How the rows of a table are written."""

    CSV = "csv"
    JSON_LINES = "jsonl"
    JSON = "json"
    PARQUET = "parquet"
    EXCEL = "xlsx"


_KINDS = {
    **dict.fromkeys((".csv", ".tsv"), Kind.CSV),
    **dict.fromkeys((".jsonl", ".ndjson"), Kind.JSON_LINES),
    ".json": Kind.JSON,
    ".parquet": Kind.PARQUET,
    ".xlsx": Kind.EXCEL,
}
# Kinds of files that may be compressed with gzip; Parquet and Excel's files are compressed already.
_COMPRESSIBLE = (Kind.CSV, Kind.JSON_LINES, Kind.JSON)


def kind_of(path: Location) -> Kind:
    """The kind of a table, by the end of its name.

    Raises:
        ReportsError: for any other.
    """
    name = path.name.lower()
    plain = name.removesuffix(_GZIP)
    kind = next((kind for suffix, kind in _KINDS.items() if plain.endswith(suffix)), None)
    if kind is None or (plain != name and kind not in _COMPRESSIBLE):
        raise ReportsError(
            f"{path}: unknown kind of table\n  expected: a file ending in {', '.join(_KINDS)}; CSV and JSON also with"
            f" {_GZIP}"
        )
    return kind


def checked(path: Location) -> Location:
    """A table that is there, is no folder, and is of a kind that is read; one of an object store is copied.

    Raises:
        ReportsError: if it is none.
    """
    kind = kind_of(path)
    with reading(path):
        is_folder = path.is_dir()
    if is_folder:
        raise ReportsError(f"{path}: is a folder\n  expected: one file; name a table inside it")
    if isinstance(path, Path):
        with reading(path):
            is_file = is_regular(path)
        if not is_file:
            raise ReportsError(
                f"{path}: {what_it_is(path)}\n  expected: a file, which is read more than once; write the table to one"
            )
    path = _fetched(path)
    with reading(path), path.open("rb") as file:
        start = file.read(4)
    if not start:
        raise ReportsError(f"{path}: the file is empty\n  expected: a table of reports")
    if is_utf16(start) and kind in (Kind.JSON_LINES, Kind.JSON):
        raise ReportsError(f"{path}: the file is UTF-16\n  expected: UTF-8; save it again as UTF-8")
    return path


def is_utf16(start: bytes) -> bool:
    """Whether a file that starts so has the byte order mark of UTF-16, as Excel's "Unicode text" does."""
    return start[:2] in (b"\xff\xfe", b"\xfe\xff")


def is_compressed(path: Location) -> bool:
    """Whether a table is compressed with gzip, by its name."""
    return path.name.lower().endswith(_GZIP)


@contextmanager
def reading(path: Location) -> Iterator[None]:
    """Turn errors in opening or reading a file into a `ReportsError` that names it."""
    try:
        yield
    except FileNotFoundError:
        if isinstance(path, Path) and path.is_symlink():
            raise ReportsError(f"{path}: a link to {path.readlink()}, which is not there\n  mend the link") from None
        raise ReportsError(f"{path}: no such file\n  check the path") from None
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise ReportsError(f"{path}: damaged, or not compressed with gzip\n  copy it again, or decompress it") from None
    except OSError as error:
        raise ReportsError(f"{path}: cannot be read: {error.strerror or 'input error'}") from None


@contextmanager
def open_bytes(path: Location) -> Iterator[IO[bytes]]:
    """The file's bytes, decompressed. Errors are those of `reading`."""
    with reading(path), path.open("rb") as file:
        if is_compressed(path):
            with gzip.GzipFile(fileobj=file) as plain:
                yield cast(IO[bytes], plain)
        else:
            yield file


@contextmanager
def open_text(path: Location) -> Iterator[TextIO]:
    """The file's text: UTF-8, with bytes that are none as lone surrogates, or UTF-16 where it has that mark."""
    with open_bytes(path) as file:
        start = file.read(2)
        file.seek(0)
        encoding, errors = ("utf-16", "replace") if is_utf16(start) else ("utf-8-sig", "surrogateescape")
        with io.TextIOWrapper(file, encoding=encoding, errors=errors, newline="") as text:
            yield text


def is_text(text: str) -> bool:
    """False if bytes that are not UTF-8 were kept as lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _fetched(path: Location) -> Location:
    """A table of an object store, copied to this machine, since it is read more than once; another as it is."""
    if not isinstance(path, Address):
        return path
    with reading(path):
        return path.fetch()
