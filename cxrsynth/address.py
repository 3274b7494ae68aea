"""Files of object stores, through fsspec: addresses such as `s3://bucket/prefix`, and what is read and written there.

Only what the commands need of pathlib's interface. Whatever a store's library raises comes out as an `OSError` that
names the address, with one line of reason; retries are the library's.
"""

import errno
import io
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import Any, Final, TypeAlias
from urllib.parse import unquote, urlsplit

from cxrsynth.errors import ShardError, in_words

# One letter would be a drive of Windows.
_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_EXTRAS: Final = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure", "abfss": "azure"}
_REASON_CHARS: Final = 200
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
# Digests first: times may be those of the listing. hf:// has the first two.
_VERSION_KEYS: Final = (
    *("blob_id", "xet_hash", "ETag", "etag", "md5Hash", "crc32c"),
    *("LastModified", "last_modified", "mtime", "created"),
)


@dataclass(frozen=True)
class Address:
    """A file, or what starts with a prefix, in an object store. `url` has no final slash."""

    url: str

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> "Address":
        return Address(f"{self.url}/{name}" if name else self.url)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.url.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """The extension, with its dot."""
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> "Address":
        """The address without its last part."""
        return Address(self.url.rpartition("/")[0])

    def is_dir(self) -> bool:
        """Whether anything lies below. Raises OSError."""
        with self.errors() as (system, path):
            return bool(system.isdir(path)) or _kind(system, path) == "directory"

    def exists(self) -> bool:
        """Whether there is such a file, or anything below. Raises OSError."""
        with self.errors() as (system, path):
            return _kind(system, path) is not None

    def read_bytes(self) -> bytes:
        """The whole content. Raises OSError."""
        with self.errors() as (system, path):
            return bytes(system.cat_file(path))

    def write_bytes(self, content: bytes) -> None:
        """Write the whole content at once. Raises OSError."""
        with self.errors() as (system, path):
            system.pipe_file(path, content)

    def upload(self, local: Path) -> None:
        """Copy a local file here; it appears whole. Raises OSError."""
        with self.errors() as (system, path):
            system.put_file(str(local), path)
            system.invalidate_cache()
            size = system.size(path)
        if size != local.stat().st_size:
            raise OSError(errno.EIO, f"{size} bytes there after {local.stat().st_size} were written", self.url)

    def abort_uploads(self, mine: Callable[[str], bool]) -> None:
        """Delete the parts of killed uploads to directly below: no listing shows them, and S3 bills them for ever.

        s3fs sends files of 100 MiB and more in parts. Whoever is still uploading fails. Nothing is done where the store
        has no such uploads, or the key may not list or abort them.

        Args:
            mine: whether a file of this name, directly below, is the caller's.
        """
        with suppress(OSError), self.errors() as (system, path):
            if not hasattr(system, "call_s3"):
                return
            bucket, key, _ = system.split_path(path)
            prefix = f"{key}/" if key else ""
            for upload in _uploads(system, bucket, prefix):
                if mine(upload["Key"].removeprefix(prefix)):
                    with suppress(OSError):  # another process may be doing the same
                        system.abort_mpu(bucket, upload["Key"], upload["UploadId"])

    def delete(self) -> None:
        """Delete the file; do nothing if there is none. Raises OSError."""
        with self.errors() as (system, path):
            try:
                system.rm_file(path)
            except FileNotFoundError:
                return

    def sizes(self) -> dict[str, int | None]:
        """What lies directly below, by name: size in bytes, None for a folder. Asks the store anew. Raises OSError."""
        with self.errors() as (system, path):
            system.invalidate_cache()
            try:
                found = system.ls(path, detail=True)
            except FileNotFoundError as error:
                # s3fs raises this for a prefix without files, and, because of what the store said, without a bucket.
                if error.__cause__ is not None:
                    raise
                return {}
        # Some stores have an empty object in place of a folder, or name a file when asked what is below it.
        names = {_last(one["name"]): one for one in found if one["name"].strip("/") != path.strip("/")}
        return {name: None if one["type"] == "directory" else one["size"] for name, one in names.items()}

    def walk(self) -> list[str]:
        """Relative paths of all files below, sorted; none that is hidden or in a hidden folder. Raises OSError."""
        with self.errors() as (system, path):
            found = system.find(path)
        start = len(path.strip("/")) + 1
        names = (name.strip("/")[start:] for name in found)
        return sorted(name for name in names if name and not any(part.startswith(".") for part in name.split("/")))

    def state(self) -> str:
        """Changes when the file does: its size, and its digest or time as the store gives them. Raises OSError."""
        with self.errors() as (system, path):
            found = system.info(path)
            known = next((found[key] for key in _VERSION_KEYS if found.get(key)), None)
            # What another kind of store says of the file; some name its version in words of their own.
            return f"{found.get('size')} {system.ukey(path) if known is None else known}"

    def fetch(self) -> "Fetched":
        """Copy the file to this machine. Raises OSError.

        Raises:
            ShardError: if there is no room for the copy, which is no fault of the store or the file.
        """
        try:
            return self._fetched()
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise ShardError(
                f"temporary files: no room in {tempfile.gettempdir()} for a copy of {self.url}"
                f" ({os.strerror(error.errno)})\n"
                "  make room, or set TMPDIR to a folder with more, then run the same command again"
            ) from None

    def _fetched(self) -> "Fetched":
        # Without a name once this returns, so that it ends with the process and nobody else can open it.
        descriptor, name = tempfile.mkstemp()
        try:
            with self.errors() as (system, path):
                system.get_file(path, name)
            return Fetched(self.url, os.fdopen(os.open(name, os.O_RDONLY), "rb", buffering=0))
        finally:
            os.close(descriptor)
            os.unlink(name)

    def open(self, mode: str = "r", **text: Any) -> Any:
        """Open a copy of the file for reading, as `pathlib.Path.open` does. Raises OSError."""
        return self.fetch().open(mode, **text)

    @contextmanager
    def errors(self) -> Iterator[tuple[Any, str]]:
        """The file system and the path there; what is raised inside comes out as an OSError.

        Raises:
            ShardError: if nothing installed can open such addresses.
        """
        import fsspec

        try:
            yield fsspec.url_to_fs(self.url)
        except FileNotFoundError as error:
            raise FileNotFoundError(errno.ENOENT, _reason(error) or os.strerror(errno.ENOENT), self.url) from None
        except PermissionError as error:
            raise PermissionError(errno.EACCES, _reason(error), self.url) from None
        except ImportError as error:
            raise ShardError(self._missing(error)) from None
        except Exception as error:  # of each library its own
            # A full disk of this machine comes through here too, and calls for other advice than a store that fails.
            number = error.errno if isinstance(error, OSError) and error.errno in _FULL else errno.EIO
            raise OSError(number, _reason(error), self.url) from None

    def _missing(self, error: ImportError) -> str:
        scheme = _scheme(self.url)
        extra = _EXTRAS.get(scheme)
        install = f"pip install 'cxrsynth[{extra}]'" if extra else str(error)
        return f"{self.url}: the package that opens {scheme}:// is not installed\n  {install}"


@dataclass(frozen=True)
class Fetched(Address):
    """A file of an object store, and a copy of it without a name, which ends with this process."""

    copy: io.FileIO

    def open(self, mode: str = "r", **text: Any) -> Any:
        """Open the copy for reading, from its start and apart from other readers."""
        reader = io.BufferedReader(_Reader(self.copy), buffer_size=1 << 20)
        return reader if "b" in mode else io.TextIOWrapper(reader, **text)

    def fetch(self) -> "Fetched":
        """This file: what it holds does not change."""
        return self


class _Reader(io.RawIOBase):
    """A place of its own in an open file."""

    def __init__(self, file: io.FileIO) -> None:
        self._file, self._at = file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        read = os.preadv(self._file.fileno(), [buffer], self._at) if hasattr(os, "preadv") else self._pread(buffer)
        self._at += read
        return read

    def _pread(self, buffer: Any) -> int:
        content = os.pread(self._file.fileno(), len(buffer), self._at)
        buffer[: len(content)] = content
        return len(content)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: os.fstat(self._file.fileno()).st_size}[whence]
        self._at = start + offset
        return self._at


Location: TypeAlias = Path | Address


def parse_location(text: str | PathLike[str]) -> Location:
    """A path, or the address of an object store. `file://` is a path.

    Raises:
        ShardError: for a kind of address that fsspec does not know.
    """
    found = _SCHEME.match(text) if isinstance(text, str) else None
    if found is None:
        return parse_path(text)
    if found[1].lower() in ("file", "local"):
        return Path(unquote(urlsplit(str(text)).path))
    from fsspec import available_protocols

    if found[1].lower() not in available_protocols():
        raise ShardError(
            f"{text}: no known kind of address\n  expected: a path, or s3://, gs://, az://, hf:// and others of fsspec"
        )
    scheme, rest = found[1].lower(), str(text)[found.end() :].rstrip("/")
    if not rest or (scheme in _EXTRAS and rest.startswith("/")):
        raise ShardError(
            f"{text}: names no bucket\n  expected: {scheme}://BUCKET/PREFIX; is a variable of the script not set?"
        )
    return Address(f"{scheme}://{rest}")  # fsspec takes no capitals there


def parse_path(text: str | PathLike[str]) -> Path:
    """A path.

    Raises:
        ShardError: for an empty text, and for `~` that no shell has expanded: it would be a folder of that name.
    """
    if text == "":
        raise ShardError("an empty text in place of a path\n  expected: a path; is a variable of the script not set?")
    path = Path(text)
    if path.parts[:1] and path.parts[0].startswith("~") and not Path(path.parts[0]).exists():
        raise ShardError(
            f"{path}: {path.parts[0]} is no folder here, and was not expanded\n"
            f"  expected: the whole path, or ./{path} for a folder of that name"
        )
    return path


def file_size(location: Location) -> int:
    """Size in bytes. Raises OSError."""
    if isinstance(location, Path):
        return location.stat().st_size
    with location.errors() as (system, path):
        return int(system.size(path))


def unreachable(address: Location, error: OSError) -> ShardError:
    """The message for what cannot be read from an object store."""
    return ShardError(
        f"{address}: cannot be read ({error.strerror or error})\n"
        "  check the bucket's name, the credentials and the network, then run the same command again to continue"
    )


def refuse_address(path: Path, name: str) -> None:
    """Raise ShardError for a path that was meant as an address, where only a local folder or file will do."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path)):
        raise ShardError(f"{name}: is an address, expected a path on this machine")


def _kind(system: Any, path: str) -> str | None:
    """`file`, `directory`, or None for nothing.

    `isdir` and `exists` of some libraries say no where the store refuses to answer, or cannot be reached.
    """
    try:
        return str(system.info(path)["type"])
    except FileNotFoundError:
        return None


def _uploads(system: Any, bucket: str, prefix: str) -> Iterator[Any]:
    """Uploads to S3 that are not complete. A page of the list ends after 1,000; s3fs gives the first alone."""
    after: dict[str, str] = {}
    seen: list[dict[str, str]] = []  # a store that ignores the markers gives the same pages for ever
    while after not in seen:
        seen.append(after)
        page = system.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=prefix, **after)
        yield from page.get("Uploads", ())
        if not page.get("IsTruncated"):
            return
        after = {"KeyMarker": page["NextKeyMarker"]}
        if page.get("NextUploadIdMarker"):
            after["UploadIdMarker"] = page["NextUploadIdMarker"]


def _scheme(url: str) -> str:
    return url.partition("://")[0].lower()


def _last(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2]


def _reason(error: Exception) -> str:
    """One line, without the name of the file, which the caller gives."""
    return in_words(error)[:_REASON_CHARS]
