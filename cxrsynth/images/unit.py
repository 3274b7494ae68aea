"""Units of a collection: processes share them, and a resumed run skips finished ones."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from cxrsynth.address import Address, Location, unreachable
from cxrsynth.runtime.batches import chunks

if TYPE_CHECKING:
    from cxrsynth.images.decode import RawImage
    from cxrsynth.images.image import Damaged

UNIT_FILES = 256


@dataclass(frozen=True, slots=True)
class Unit:
    """A shard, named by its path in the collection, or a chunk of files with their paths."""

    name: str
    files: tuple[str, ...] = field(default=(), repr=False)


class Source(Protocol):
    """One kind of collection."""

    @property
    def units(self) -> tuple[Unit, ...]:
        """Sorted by name; the same for the same files."""
        ...

    def raw_images(self, unit: Unit) -> "Iterator[RawImage | Damaged]":
        """The raw images of a unit, and what cannot be read of it."""
        ...

    def digest_of(self, unit: Unit) -> str:
        """Changes when the unit does; computed without reading it. Raises ShardError if a store cannot be reached."""
        ...


def file_units(names: Iterable[str]) -> tuple[Unit, ...]:
    """Sorted files in chunks of 256: `files-000000`, `files-000001`."""
    return tuple(Unit(f"files-{i:06d}", tuple(chunk)) for i, chunk in enumerate(chunks(sorted(names), UNIT_FILES)))


def stat_digest(root: Location, names: Iterable[str]) -> str:
    """SHA-256 of the files' names, sizes in bytes and times in nanoseconds, not of their content.

    In an object store, the store's own digest of a file takes the place of its time, if it has one.

    Raises:
        ShardError: if a store cannot be reached: that says nothing of the file.
    """
    digest = hashlib.sha256()
    for name in names:
        path = root / name
        try:
            state = _state(path)
        except OSError as error:
            if isinstance(path, Address) and not isinstance(error, FileNotFoundError):
                raise unreachable(path, error) from None
            state = type(error).__name__
        digest.update(f"{name}\0{state}\0".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _state(path: Location) -> str:
    if isinstance(path, Address):
        return path.state()
    found = path.stat()
    return f"{found.st_size} {found.st_mtime_ns}"
