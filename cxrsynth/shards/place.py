"""Where a data set is written: a folder of this machine, with locks and renames, or a prefix of an object store.

Both have the same methods. They take file names relative to the place, and each file appears whole. What fails raises
OSError, which `failure` explains.
"""

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeAlias, cast

from cxrsynth.address import Address
from cxrsynth.errors import ShardError
from cxrsynth.runtime.files import has_sha256, open_atomically, partial_path, publish, write_atomically
from cxrsynth.runtime.folder import LockedFolder
from cxrsynth.runtime.part_locks import PartLocks
from cxrsynth.settings import Part
from cxrsynth.shards.plan import shard_index

_KEPT = "finished shards are whole"


class LocalPlace:
    """A folder. Messages call it the value of `option`; `written` are patterns of all files, `state` a folder in it."""

    def __init__(self, path: Path, *, option: str, state: str, written: Sequence[str]) -> None:
        self.path = path
        self.locked = LockedFolder(path, lock=f"{state}/lock", written=written, kept=_KEPT, option=option)
        self._parts = PartLocks(path / state, self.locked.name)
        self.name = self.locked.name
        self.failure = self.locked.failure
        self.refuse_file = self.locked.refuse_file
        self.sweep = self.locked.sweep

    def sizes(self, folder: str = "") -> dict[str, int | None]:
        """Size in bytes of what is in a folder, by name; None for a folder.

        Raises:
            ShardError: if it cannot be read.
        """
        try:
            with os.scandir(self.path / folder) as entries:
                return {entry.name: None if entry.is_dir() else _size(entry) for entry in entries}
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except OSError as error:
            raise ShardError(f"{self.name}: cannot be read ({error.strerror})") from None

    def names(self, folder: str = "") -> set[str]:
        """Names of what is in a folder; none if there is no such folder."""
        try:
            return set(os.listdir(self.path / folder))
        except (FileNotFoundError, NotADirectoryError):
            return set()

    def leftovers(self, names: Iterable[str]) -> set[str]:
        """Those of the names found here that a run leaves half-written."""
        return self.locked.leftover_names(names)

    @contextmanager
    def starting(self, part: Part | None) -> Iterator[bool]:
        """Make the folder and take its lock, or that of a part; the context gives whether others are at work.

        Raises:
            ShardError: if that fails, or another run is at the same work.
        """
        self.locked.make()
        with self._parts.gate():
            others = bool(self._parts.running())
            if part is None:
                self._parts.refuse_running()
                self.locked.lock()
            else:
                self.locked.refuse_locked()
                self._parts.take(part)
                self.locked.sweep(spare=lambda left: not _may_be_of(part, left))
            yield others

    def is_last(self, all_there: Any) -> bool:
        """At the end of a part: whether no other is at work, and all that `all_there()` looks for is there.

        If so, the folder is this run's alone; if not, it has let go of its part.
        """
        with self._parts.gate():
            if self._parts.running() or not all_there():
                self._parts.release()
                return False
            self.locked.lock()
            return True

    def leave(self) -> None:
        """Let another run write here; do nothing without a lock."""
        self._parts.release()
        self.locked.unlock()

    def read(self, name: str) -> bytes:
        """The content of a file."""
        return (self.path / name).read_bytes()

    def open(self, name: str) -> IO[bytes]:
        """A file, to read."""
        return (self.path / name).open("rb")

    def has(self, name: str, sha256: object) -> bool:
        """Whether there is a file with this SHA-256."""
        return has_sha256(self.path / name, sha256)

    def write(self, name: str, content: bytes) -> None:
        """Write a file."""
        write_atomically(self.path / name, content)

    @contextmanager
    def new_file(self, name: str) -> Iterator[IO[bytes]]:
        """A file to write, which appears once the block ends without an error."""
        with open_atomically(self.path / name) as file:
            yield file

    def staged(self, name: str) -> Path:
        """Under which name to write a file; `put` gives it its own."""
        return partial_path(self.path / name)

    def put(self, name: str) -> None:
        """Give a staged file, which is on disk, its name."""
        publish(self.path / name)

    def delete(self, names: Iterable[str]) -> None:
        """Delete files, as far as they are there: of a complete set, which has no lock, others may delete the same."""
        for name in names:
            (self.path / name).unlink(missing_ok=True)

    def delete_folder(self, name: str) -> None:
        """Delete a folder with all that is in it, as far as that is possible."""
        shutil.rmtree(self.path / name, ignore_errors=True)

    def delete_unfinished(self) -> None:
        """Nothing: `leave` has deleted it."""


class StorePlace:
    """A prefix of an object store, which has no locks: runs that write the same file write the same bytes.

    A shard is written to a temporary folder of this machine and then uploaded whole.
    """

    def __init__(self, address: Address, *, option: str) -> None:
        self.address = address
        self.name = f"{option} {address}"
        self._staging: tempfile.TemporaryDirectory[str] | None = None

    def failure(self, error: OSError, *, writing: bool = False) -> ShardError:
        """The message for a store that refuses, or cannot be reached, and for a full disk of this machine."""
        where = self.name if error.filename is None or str(self.address) in str(error.filename) else error.filename
        what = "cannot write" if writing else "failed"
        reason = error.strerror or str(error)
        todo = "make room, or set TMPDIR" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "fix this"
        return ShardError(f"{where}: {what} ({reason})\n  {_KEPT}; {todo}, then run the same command again to continue")

    def refuse_file(self) -> None:
        """Raise ShardError if there is a file of this name, or the bucket cannot be listed."""
        try:
            with self.address.errors() as (system, path):
                system.invalidate_cache()
                is_file = system.isfile(path)
        except OSError as error:
            raise self._unreadable(error) from None
        if is_file:
            raise ShardError(f"{self.name}: is a file, expected a prefix")

    def sizes(self, folder: str = "") -> dict[str, int | None]:
        """Size in bytes of what is below a prefix, by name; None for what has more below it.

        Raises:
            ShardError: if it cannot be listed.
        """
        try:
            return (self.address / folder).sizes()
        except OSError as error:
            raise self._unreadable(error) from None

    def names(self, folder: str = "") -> set[str]:
        """Names of what is below a prefix; asks the store anew."""
        return set((self.address / folder).sizes())

    def leftovers(self, names: Iterable[str]) -> set[str]:
        """None: what is interrupted leaves nothing in a store that can be seen."""
        return set()

    @contextmanager
    def starting(self, part: Part | None) -> Iterator[bool]:
        """Begin a run. Whether others are at work cannot be seen: a plan without a shard may be that of a failed run.

        So it does not count; a run whose plan is replaced ends when it would publish a shard.
        """
        yield False

    def is_last(self, all_there: Any) -> bool:
        """At the end of a part: whether all that `all_there()` looks for is there. Several parts may be the last."""
        return bool(all_there())

    def leave(self) -> None:
        """Remove the temporary folder."""
        self.sweep()

    def sweep(self) -> None:
        """Remove what is half-written."""
        if self._staging is not None:
            self._staging.cleanup()
            self._staging = None

    def read(self, name: str) -> bytes:
        """The content of a file."""
        return (self.address / name).read_bytes()

    def open(self, name: str) -> IO[bytes]:
        """A file, to read."""
        return cast(IO[bytes], (self.address / name).open("rb"))

    def has(self, name: str, sha256: object) -> bool:
        """Whether there is a file with this SHA-256. All of it is read."""
        try:
            with self.open(name) as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == sha256  # type: ignore[arg-type]
        except FileNotFoundError:
            return False

    def write(self, name: str, content: bytes) -> None:
        """Write a file."""
        (self.address / name).write_bytes(content)

    @contextmanager
    def new_file(self, name: str) -> Iterator[IO[bytes]]:
        """A file to write, which appears once the block ends without an error."""
        staged = self.staged(name)
        with staged.open("wb") as file:
            yield file
        self.put(name)

    def staged(self, name: str) -> Path:
        """Under which name to write a file; `put` uploads it."""
        if self._staging is None:
            self._staging = tempfile.TemporaryDirectory(prefix="cxrsynth-", ignore_cleanup_errors=True)
        return Path(self._staging.name, name)

    def put(self, name: str) -> None:
        """Upload a staged file."""
        staged = self.staged(name)
        (self.address / name).upload(staged)
        staged.unlink()

    def delete(self, names: Iterable[str]) -> None:
        """Delete files."""
        for name in names:
            (self.address / name).delete()

    def delete_folder(self, name: str) -> None:
        """Delete all that is directly below a prefix."""
        self.delete(f"{name}/{below}" for below, size in self.sizes(name).items() if size is not None)

    def delete_unfinished(self) -> None:
        """Delete what killed uploads of shards have left, where the store shows it; for a set that is complete."""
        self.address.abort_uploads(lambda name: shard_index(name) is not None)

    def _unreadable(self, error: OSError) -> ShardError:
        return ShardError(
            f"{self.name}: cannot be read ({error.strerror or error})\n"
            "  check the bucket's name, the credentials and their rights to list, read and write there"
        )


Place: TypeAlias = LocalPlace | StorePlace


def _size(entry: os.DirEntry[str]) -> int:
    """Size in bytes; -1 for what another run has renamed in the meantime, and for a link to nowhere."""
    try:
        return entry.stat().st_size
    except FileNotFoundError:
        return -1


def _may_be_of(part: Part, left: Path) -> bool:
    """Whether no other part of the same division writes this file."""
    index = shard_index(left.name)
    return index is None or part.has(index)
