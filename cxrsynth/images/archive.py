"""Zip archives read as folders: members are read one at a time within limits, and never unpacked by name."""

import io
import os
import stat
import tempfile
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from zipfile import BadZipFile, LargeZipFile, ZipFile, ZipInfo

from cxrsynth.address import Address, Fetched, Location
from cxrsynth.errors import ReportsError, ShardError
from cxrsynth.images.limits import MAX_MEMBER_BYTES, UnreadableError, bad_name

SUFFIX: Final = ".zip"
# Tables are copied, since they are read more than once: those of MIMIC-CXR have 100 MB.
_LARGEST_TABLE_BYTES: Final = 2 << 30
_CHUNK_BYTES: Final = 1 << 20
_ENCRYPTED: Final = 1
# `zipfile` raises RuntimeError for a password, NotImplementedError for methods it does not know.
_BROKEN: Final = (BadZipFile, LargeZipFile, EOFError, zlib.error, RuntimeError, ValueError, OSError)


class Archive:
    """A zip archive, held open, and its members by name."""

    def __init__(self, path: Location) -> None:
        """Read the list of members. Raises ShardError if there is none that can be read."""
        self.path = path
        try:
            self._zip = ZipFile(path) if isinstance(path, Path) else ZipFile(path.open("rb"))
            members = [one for one in self._zip.infolist() if not one.is_dir()]
        except _BROKEN:
            raise ShardError(f"{path}: not a zip archive, or a broken or truncated one\n  copy it again") from None
        counts = Counter(one.filename for one in members)
        self._twice = {name for name, count in counts.items() if count > 1}
        self.members = {one.filename: one for one in members}

    def read(self, name: str) -> bytes:
        """The content of a member, its checksum verified. Raises UnreadableError."""
        if self._checked(name).file_size > MAX_MEMBER_BYTES:
            raise UnreadableError(f"more than {MAX_MEMBER_BYTES} bytes")
        try:
            # What is unpacked ends at the size that the archive states, whatever the compressed bytes hold.
            return self._zip.read(name)
        except NotImplementedError:
            raise UnreadableError("packed in a way that is not known here; pack it again") from None
        except _BROKEN:
            raise UnreadableError("broken in the archive") from None

    def copy(self, name: str) -> io.FileIO:
        """A copy of a member in a file without a name. Raises ReportsError."""
        where = f"{self.path}/{name}"
        try:
            if self._checked(name).file_size > _LARGEST_TABLE_BYTES:
                raise ReportsError(f"{where}: more than {_LARGEST_TABLE_BYTES} bytes\n  unpack the archive")
            descriptor, path = tempfile.mkstemp()
            try:
                with self._zip.open(name) as source, os.fdopen(descriptor, "wb") as target:
                    while chunk := source.read(_CHUNK_BYTES):
                        target.write(chunk)
                return os.fdopen(os.open(path, os.O_RDONLY), "rb", buffering=0)
            finally:
                os.unlink(path)
        except (*_BROKEN, UnreadableError) as error:
            reason = str(error) if isinstance(error, UnreadableError) else "broken in the archive"
            raise ReportsError(f"{where}: {reason}\n  pack it again") from None

    def _checked(self, name: str) -> ZipInfo:
        """A member that can be read. Raises UnreadableError."""
        member = self.members.get(name)
        if member is None:
            raise FileNotFoundError(2, os.strerror(2), f"{self.path}/{name}")
        if reason := bad_name(name):
            raise UnreadableError(reason)
        if name in self._twice:
            raise UnreadableError("several members of this name in the archive, none of which is read")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise UnreadableError("a link, expected a file")
        if member.flag_bits & _ENCRYPTED:
            raise UnreadableError("encrypted; unpack the archive with its password")
        return member


@dataclass(frozen=True)
class Zipped(Address):
    """A member of an archive, or what lies below a name there."""

    archive: Archive = field(compare=False, repr=False)

    @classmethod
    def root(cls, path: Location) -> "Zipped":
        """All of an archive. Raises ShardError if it cannot be read."""
        return cls(str(path), Archive(path))

    @property
    def _inner(self) -> str:
        return self.url[len(str(self.archive.path)) + 1 :]

    def __truediv__(self, name: str) -> "Zipped":
        return Zipped(f"{self.url}/{name}" if name else self.url, self.archive)

    def is_dir(self) -> bool:
        """Whether anything lies below."""
        return not self._inner or any(name.startswith(f"{self._inner}/") for name in self.archive.members)

    def exists(self) -> bool:
        """Whether there is such a member, or anything below."""
        return self._inner in self.archive.members or self.is_dir()

    def walk(self) -> list[str]:
        """Names of all members, sorted; none that is hidden or in a hidden folder."""
        return sorted(name for name in self.archive.members if not any(map(_is_hidden, name.split("/"))))

    def state(self) -> str:
        """Size and checksum."""
        member = self.archive.members.get(self._inner)
        if member is None:
            raise FileNotFoundError(2, os.strerror(2), self.url)
        return f"{member.file_size} {member.CRC:08x}"

    def read_bytes(self) -> bytes:
        """The whole content. Raises UnreadableError."""
        return self.archive.read(self._inner)

    def fetch(self) -> Fetched:
        """A copy that can be read more than once. Raises ReportsError."""
        return Fetched(self.url, self.archive.copy(self._inner))

    def open(self, mode: str = "r", **text: Any) -> Any:
        """Open for reading. Raises UnreadableError."""
        content = io.BytesIO(self.read_bytes())
        return content if "b" in mode else io.TextIOWrapper(content, **text)


@dataclass(frozen=True)
class ZipFolder(Address):
    """A folder with archives in it: `0.zip/a.png` is the member `a.png` of the archive `0.zip`."""

    folder: Location
    archives: Mapping[str, Archive] = field(compare=False, repr=False)

    @classmethod
    def of(cls, folder: Location, names: list[str]) -> "ZipFolder":
        """A folder and its archives by relative path. Raises ShardError if one cannot be read."""
        return cls(str(folder), folder, {name: Archive(folder / name) for name in names})

    def __truediv__(self, name: str) -> Location:  # type: ignore[override]  # files beside the archives are plain paths
        for archive, opened in self.archives.items():
            if name.startswith(f"{archive}/"):
                return Zipped(f"{opened.path}/{name[len(archive) + 1 :]}", opened)
        return self.folder / name

    def members(self) -> list[str]:
        """Names of all members of all archives."""
        return [
            f"{name}/{one}" for name, opened in self.archives.items() for one in Zipped(str(opened.path), opened).walk()
        ]


def _is_hidden(part: str) -> bool:
    return part.startswith(".") and part not in (".", "..")
