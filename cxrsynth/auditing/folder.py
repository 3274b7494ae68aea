"""The folder an audit writes its results to."""

from pathlib import Path

from cxrsynth.address import refuse_address
from cxrsynth.auditing.reader_study.key import PATTERN
from cxrsynth.auditing.write_kept import lies_inside
from cxrsynth.errors import ShardError
from cxrsynth.runtime.folder import LockedFolder
from cxrsynth.settings import AuditSettings

_STATE = ".cxrsynth-audit"

SCORES, KEEP, SUMMARY, PAGE = "scores.parquet", "keep.csv", "summary.json", "report.html"
SHARED_PAGE = "share/report.html"
# Folders in it that no kept images may go to.
OWN_FOLDERS = (_STATE, SHARED_PAGE.partition("/")[0])
STUDY_PAGE = "reader-study.html"
COMPARISON = "comparison.json"
_DEPICTS = "depicts.json"
_REAL_NAMES = "real-names.csv"


class AuditFolder:
    """An audit's results, and the scores an interrupted audit resumes from."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.parts = path / _STATE
        self.depicts = self.parts / _DEPICTS
        self.real_names = self.parts / _REAL_NAMES
        self.locked = LockedFolder(
            path,
            lock=f"{_STATE}/lock",
            written=(
                SCORES,
                KEEP,
                SUMMARY,
                PAGE,
                SHARED_PAGE,
                STUDY_PAGE,
                f"{_STATE}/*.parquet",
                f"{_STATE}/{COMPARISON}",
                f"{_STATE}/{_DEPICTS}",
                f"{_STATE}/{_REAL_NAMES}",
                f"{_STATE}/{PATTERN}",
            ),
            scratch=(f"{_STATE}/.*.pixels",),
            kept="scores of finished units are kept",
            private=True,  # real images, and patients
            writer="audit",
        )
        self.failure = self.locked.failure
        self.unlock = self.locked.unlock

    def check(self, settings: AuditSettings) -> None:
        """Raise ShardError for a folder that holds something else, or lies inside what is audited."""
        refuse_address(self.path, f"--out {self.path}")
        for option, given in (
            ("SHARDS", settings.shards),
            ("--reference", settings.reference),
            ("--members", settings.members),
            ("--non-members", settings.non_members),
        ):
            if given is not None and lies_inside(self.path, given):
                raise ShardError(f"--out {self.path}: lies inside {option} {given}\n  an audit never touches its input")
        self.locked.refuse_file()
        if not self.parts.is_dir() and self.locked.names():
            raise ShardError(f"--out {self.path}: not empty, and no audit was written there\n  choose a new folder")

    def start(self, *, keep_study: bool = False) -> None:
        """Make the folder, take its lock, and delete what an earlier audit found there.

        An audit that fails leaves no page of another set or of other options, which somebody might hand on. The scores
        stay: the earlier command finds the same again. `keep_study` leaves the page of a reader study whose answers are
        scored. Raises ShardError if the lock is taken.
        """
        self.locked.lock()
        for name in (SUMMARY, SHARED_PAGE, PAGE, KEEP, SCORES, *(() if keep_study else (STUDY_PAGE,))):
            (self.path / name).unlink(missing_ok=True)
