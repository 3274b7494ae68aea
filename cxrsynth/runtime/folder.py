"""The folder a command writes to: one run at a time, no leftovers, one set of messages when writing fails."""

import errno
import os
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from filelock import FileLock, Timeout

from cxrsynth.errors import ShardError
from cxrsynth.runtime.files import old_path, partial_path, remove
from cxrsynth.runtime.part_locks import is_held

# Files that one process writes for the others to find.
_TOKEN = ".shared-{}.partial"
# Reading never raises these.
_WRITE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}
_FULL = {errno.ENOSPC, errno.EDQUOT}


class LockedFolder:
    """An output folder; `OutputFolder`, `RunFolder` and `AuditFolder` each hold one. `state` is where its lock is.

    Args:
        path: the folder.
        lock: name of the lock file in it. The lock belongs to the process: it ends with it, however that ends.
        option: the option that names the folder, for messages.
        writer: what holds the lock, for messages: `run`, `audit`.
        written: names of all files and folders the command writes atomically, as glob patterns relative to `path`.
            Leftovers of these are removed, and of no others: other files that end in `.partial` may be somebody's.
        scratch: names of files that only a running command has, as glob patterns.
        kept: what survives a failure, for messages.
        private: whether only the owner may enter the folder that holds the lock file (mode 0700).
    """

    def __init__(
        self,
        path: Path,
        *,
        lock: str,
        written: Sequence[str],
        scratch: Sequence[str] = (),
        kept: str,
        private: bool = False,
        option: str = "--out",
        writer: str = "run",
    ) -> None:
        self.path = path
        self.name = f"{option} {path}"
        self.state = (path / lock).parent
        self._lock = FileLock(path / lock, thread_local=False)
        token = Path(lock).with_name(_TOKEN.format("*"))
        self._leftovers = (
            *scratch,
            str(token),
            *(str(left(Path(name))) for name in written for left in (partial_path, old_path)),
        )
        self._kept = kept
        self._private = private
        self._writer = writer

    def refuse_file(self) -> None:
        """Raise ShardError if there is a file in the folder's place."""
        if self.path.exists() and not self.path.is_dir():
            raise ShardError(f"{self.name}: is a file, expected a folder")

    def names(self) -> set[str]:
        """Names in the folder; none if it does not exist. Raises ShardError if it cannot be read."""
        try:
            return {entry.name for entry in self.path.iterdir()} if self.path.exists() else set()
        except OSError as error:
            raise ShardError(f"{self.name}: cannot be read ({error.strerror})") from None

    def lock(self) -> None:
        """Make the folder, take its lock and remove leftovers.

        Raises:
            ShardError: if another run holds the lock, or the folder cannot be written to.
        """
        self.make()
        try:
            self._lock.acquire(timeout=0)
            self.sweep()
        except Timeout:
            raise self._busy() from None
        except OSError as error:
            raise self.failure(error, writing=True) from None

    def make(self) -> None:
        """Make the folder, with the one of its lock. Raises ShardError if that fails."""
        try:
            self.state.mkdir(parents=True, exist_ok=True)
            if self._private:
                self.state.chmod(0o700)
        except OSError as error:
            raise self.failure(error, writing=True) from None

    def token(self, number: int) -> Path:
        """A file that the first process of a run writes for the others to find."""
        return self.state / _TOKEN.format(number)

    def write_token(self, path: Path) -> None:
        """Write such a file, and make the folder for it. Raises ShardError if it cannot be written to."""
        self.make()
        try:
            path.touch()
        except OSError as error:
            raise self.failure(error, writing=True) from None

    def refuse_locked(self) -> None:
        """Raise ShardError if another run holds the lock. It is held for a moment to find out."""
        if is_held(Path(self._lock.lock_file)):
            raise self._busy()

    def _busy(self) -> ShardError:
        return ShardError(f"{self.name}: another {self._writer} is writing there\n  wait for it, or stop it")

    def unlock(self) -> None:
        """Let another run write here; do nothing without the lock."""
        self._lock.release(force=True)

    def sweep(self, *, spare: Callable[[Path], bool] = lambda path: False) -> None:
        """Remove what an interrupted run left half-written, and bring back folders it was replacing.

        Call it only with the lock: without it, half-written files may be another run's. `spare` names those that may be
        another run's all the same.
        """
        for left in self.leftovers():
            if spare(left):
                continue
            if left.name.endswith(".old"):
                replaced = left.with_name(left.name.removeprefix(".").removesuffix(".old"))
                if not replaced.exists():
                    left.rename(replaced)
                    continue
            remove(left)

    def leftovers(self) -> list[Path]:
        """Half-written and half-replaced files and folders that the command itself left here."""
        return sorted({path for pattern in self._leftovers for path in self.path.glob(pattern)})

    def leftover_names(self, names: Iterable[str]) -> set[str]:
        """Those of the names found in the folder that `leftovers` would give.

        By the names alone: where another run is at work, the folder may be another one a moment later.
        """
        return {name for name in names if any(fnmatchcase(name, pattern) for pattern in self._leftovers)}

    def failure(self, error: OSError, *, writing: bool = False) -> ShardError:
        """The message for a full disk, a lost permission, a vanished mount.

        A file that could not be read is named, and not reported as one that could not be written.

        Args:
            error: what happened.
            writing: whether it can only have happened in writing.
        """
        reason = os.strerror(error.errno) if error.errno else str(error)
        todo = "make room" if error.errno in _FULL else "fix this"
        advice = f"  {self._kept}; {todo}, then run the same command again to continue"
        if writing or error.errno in _WRITE_ERRORS or self._is_half_written(error):
            return ShardError(f"{self.name}: cannot write ({reason})\n{advice}")
        if error.filename is not None:
            return ShardError(f"{os.fsdecode(error.filename)}: {reason}\n{advice}")
        return ShardError(f"{self.name}: cannot read or write ({reason})\n{advice}")

    def _is_half_written(self, error: OSError) -> bool:
        """Whether an error is about a temporary file in this folder."""
        if not isinstance(error.filename, str | bytes):
            return False
        path = Path(os.fsdecode(error.filename)).absolute()
        inside = path.relative_to(self.path.absolute()) if path.is_relative_to(self.path.absolute()) else Path()
        return any(part.endswith(".partial") for part in inside.parts)
