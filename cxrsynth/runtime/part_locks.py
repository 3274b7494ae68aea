"""Parts of one job in one folder at the same time: a lock for each part, and a gate that all pass to start and to end.

Everything is decided inside the gate, one run at a time, so that of parts that end together exactly one is the last.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from cxrsynth.errors import ShardError
from cxrsynth.settings import Part

_GATE: Final = "gate.lock"
_GATE_S: Final = 300.0  # what is done inside takes a second; network file systems and a thousand parts may take more


class PartLocks:
    """The locks of the parts of one folder. They belong to the process: they end with it, however that ends.

    Args:
        state: folder of the lock files; it exists before `gate` is entered.
        name: the folder, for messages.
    """

    def __init__(self, state: Path, name: str) -> None:
        self._state, self._name = state, name
        self._own: FileLock | None = None

    @contextmanager
    def gate(self) -> Iterator[None]:
        """Alone among all runs that start or end in this folder.

        Raises:
            ShardError: if others have been in there for five minutes.
        """
        gate = FileLock(self._state / _GATE, thread_local=False)
        try:
            gate.acquire(timeout=_GATE_S)
        except Timeout:
            raise ShardError(
                f"{self._name}: {gate.lock_file} has been locked for {_GATE_S / 60:.0f} minutes\n"
                "  see whether a run hangs there, or the file system does not release locks"
            ) from None
        try:
            yield
        finally:
            gate.release()

    def take(self, part: Part) -> None:
        """Take the lock of a part; only inside the gate.

        Raises:
            ShardError: if another run makes this part, or a part of another division.
        """
        for other in self.running():
            if other == part:
                raise ShardError(f"{self._name}: another run is making part {part}\n  wait for it, or stop it")
            if other.count != part.count:
                raise ShardError(
                    f"{self._name}: another run is making part {other}, which has shards in common with part {part}\n"
                    "  wait for it, or divide the set alike"
                )
        self._own = FileLock(self._path(part), thread_local=False)
        self._own.acquire(timeout=0)

    def refuse_running(self) -> None:
        """Raise ShardError if any other part is being made; only inside the gate."""
        running = self.running()
        if running:
            raise ShardError(
                f"{self._name}: another run is making part {running[0]}\n  wait for it, or stop it"
                + (f" and {len(running) - 1} more" if len(running) > 1 else "")
            )

    def running(self) -> list[Part]:
        """The parts that other runs are making; only inside the gate, since a lock is tried by taking it."""
        own = None if self._own is None else Path(self._own.lock_file)
        return sorted(
            (part for path, part in self._files() if path != own and is_held(path)),
            key=lambda part: (part.count, part.number),
        )

    def release(self) -> None:
        """Let another run make the part; do nothing without one."""
        if self._own is not None:
            self._own.release(force=True)
            self._own = None

    def _path(self, part: Part) -> Path:
        return self._state / f"part-{part.number}-of-{part.count}.lock"

    def _files(self) -> Iterator[tuple[Path, Part]]:
        for path in self._state.glob("part-*.lock"):
            if found := re.fullmatch(r"part-(\d+)-of-(\d+)\.lock", path.name):
                yield path, Part(int(found[1]), int(found[2]))


def is_held(lock: Path) -> bool:
    """Whether a process holds the lock of this file. It is held for a moment to find out."""
    if not lock.exists():
        return False
    tried = FileLock(lock, thread_local=False)
    try:
        tried.acquire(timeout=0)
    except Timeout:
        return True
    tried.release()
    return False
