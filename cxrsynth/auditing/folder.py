"""Where an audit keeps what it writes."""

import fcntl
from pathlib import Path
from typing import IO

from cxrsynth.auditing.write_kept import root_of
from cxrsynth.errors import ShardError
from cxrsynth.runtime.files import writing_failed
from cxrsynth.settings import AuditSettings

_STATE = ".cxrsynth-audit"


SCORES, KEEP, SUMMARY, PAGE = "scores.parquet", "keep.csv", "summary.json", "report.html"


class AuditFolder:
    """Where findings go, and the parts of a stopped run. A folder that holds anything else is refused."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.parts = path / _STATE
        self._lock: IO[str] | None = None

    def check(self, settings: AuditSettings) -> None:
        """Raises ShardError for a folder that is not ours, or lies inside what is audited."""
        for option, given in (("SHARDS", settings.shards), ("--reference", settings.reference)):
            if given is not None and self.path.resolve().is_relative_to(root_of(given).resolve()):
                raise ShardError(f"--out {self.path}: lies inside {option} {given}\n  an audit never touches its input")
        if self.path.exists() and not self.path.is_dir():
            raise ShardError(f"--out {self.path}: is a file, expected a folder")
        if self.path.is_dir() and not self.parts.is_dir() and any(self.path.iterdir()):
            raise ShardError(f"--out {self.path}: not empty, and no audit was written there\n  choose a new folder")

    def start(self) -> None:
        """Make the folder and take its lock. Raises ShardError if that cannot be done."""
        try:
            self.parts.mkdir(parents=True, exist_ok=True)
            self._lock = (self.parts / "lock").open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for leftover in [*self.path.glob(".*.partial"), *self.parts.glob(".*.partial")]:
                leftover.unlink()
        except BlockingIOError:
            raise ShardError(f"--out {self.path}: another audit is writing there\n  wait for it, or stop it") from None
        except OSError as error:
            raise writing_failed(self.path, error) from None

    def unlock(self) -> None:
        """Let another run write here."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None
