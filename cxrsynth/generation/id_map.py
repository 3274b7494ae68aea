"""The mapping of report ids to sample keys, outside the shared folder."""

import csv
import io
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import IO

from cxrsynth.errors import ShardError
from cxrsynth.generation.plan import Run
from cxrsynth.runtime.files import open_atomically
from cxrsynth.shards.sample import sample_key, subject_key


def write_id_map(run: Run) -> None:
    """The id map, where one was asked for, of a data set that is complete already."""
    with _IdMap(run) as id_map:
        for report in run.usable_reports():
            id_map.add(report.report_id)


class _IdMap:
    """CSV of report id and sample key, mode 0600, only where the user named a file."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._path = run.settings.id_map
        self._opened: AbstractContextManager[IO[bytes]] | None = None
        self._file: io.TextIOWrapper | None = None

    def __enter__(self) -> "_IdMap":
        if self._path is not None:
            with self._told():
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._opened = open_atomically(self._path, mode=0o600)
                raw = self._opened.__enter__()
                self._file = io.TextIOWrapper(raw, newline="", encoding="utf-8", errors="surrogateescape")
                csv.writer(self._file).writerow(["report_id", "sample_key"])
        return self

    def add(self, report_id: str) -> None:
        """One line per image of a report."""
        if self._file is not None:
            subject = subject_key(self._run.id_key, report_id)
            rows = ([report_id, sample_key(subject, i)] for i in range(self._run.settings.images_per_report))
            with self._told():
                csv.writer(self._file).writerows(rows)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is None or self._opened is None:
            return
        with self._told():
            try:
                self._file.detach()
            except BaseException as failed:
                self._opened.__exit__(type(failed), failed, failed.__traceback__)
                raise
            self._opened.__exit__(kind, error, trace)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Raises ShardError by the option's name: the folder of the set is not what cannot be written."""
        try:
            yield
        except OSError as error:
            raise ShardError(
                f"--id-map {self._path}: cannot be written ({error.strerror})\n  name another file"
            ) from None
