"""Lists for the user alone, outside the shared folder: report ids with sample keys, and rows that were not used."""

import csv
import io
import os
import stat
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from cxrsynth.address import Location
from cxrsynth.errors import ShardError
from cxrsynth.generation.plan import GenerateRun
from cxrsynth.generation.rows import Rows
from cxrsynth.runtime.cells import as_text_cell
from cxrsynth.runtime.files import open_atomically
from cxrsynth.settings import Part
from cxrsynth.shards.sample import sample_key, subject_key

_ID_MAP, _REJECTED = ("report_id", "sample_key"), ("line", "reason")


def check_lists(run: GenerateRun, rows: Rows) -> None:
    """Refuse a list that will be written, and cannot be, or would replace a file of another kind.

    Raises:
        ShardError: naming it.
    """
    if run.settings.id_map is not None:
        _check(run.settings.id_map, _ID_MAP, "--id-map")
    if rows.rejected or run.settings.rejected is not None:
        _check(rejected_list(run), _REJECTED, "--rejected")


def rejected_list(run: GenerateRun) -> Path:
    """The file of rejected rows: what the user named, or `OUT.rejected.csv` beside the folder.

    Their line numbers tell which rows of a table are in the data set, so they are no part of it. For an object store it
    is in the working folder.
    """
    out: Location = run.settings.out
    if run.settings.rejected is not None:
        return run.settings.rejected
    if isinstance(out, Path):
        whole = Path(os.path.abspath(out))
        return whole.parent / f"{whole.name}.rejected.csv"
    return Path(f"{out.name}.rejected.csv")


def write_id_map(run: GenerateRun, rows: Rows) -> None:
    """Write the id map, mode 0600, if the user named a file for it; one line per image.

    Raises:
        ShardError: if it cannot be written.
    """
    if run.settings.id_map is not None:
        _write(run.settings.id_map, _ID_MAP, _keys(run, rows), "--id-map", run.settings.part)


def write_rejected(run: GenerateRun, rows: Rows) -> None:
    """Write line and reason of each rejected row, no text and no id; without such rows, remove a list of before.

    Raises:
        ShardError: if it cannot be written.
    """
    path = rejected_list(run)
    if rows.rejected:
        listed = ([row.line, as_text_cell(row.reason)] for row in rows.rejected_rows())
        _write(path, _REJECTED, listed, "--rejected", run.settings.part)
    elif _is_list(path, _REJECTED):
        with suppress(OSError):
            path.unlink()


def _keys(run: GenerateRun, rows: Rows) -> Iterable[Sequence[object]]:
    # Programs join tables with it: report ids stay as they are, even where a spreadsheet would take one for a formula.
    each = run.settings.images_per_report
    for report in rows.reports():
        subject = subject_key(run.id_key, report.report_id)
        for index in range(each):
            yield report.report_id, sample_key(subject, report.repeat * each + index)


def _write(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]], option: str, part: Part | None) -> None:
    _check(path, header, option)  # again: since the run began, hours ago, another file may have come there
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Parts of a complete set that are run again, which no lock keeps apart, all write the same list.
        own = "" if part is None else f"part-{part.number}-of-{part.count}"
        with open_atomically(path, mode=0o600, writer=own) as raw:
            file = io.TextIOWrapper(raw, newline="", encoding="utf-8", errors="surrogateescape")
            writer = csv.writer(file)
            writer.writerow(header)
            writer.writerows(rows)
            file.detach()  # flushes
    except OSError as error:
        raise ShardError(
            f"{option} {path}: cannot be written ({error.strerror or error})\n  name another file"
        ) from None


def _check(path: Path, header: Sequence[str], option: str) -> None:
    try:
        found = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        found = None
    except OSError as error:
        raise ShardError(f"{option} {path}: cannot be read ({error.strerror})\n  name another file") from None
    if found is not None:
        if stat.S_ISDIR(found.st_mode):
            raise ShardError(f"{option} {path}: is a folder, expected a file")
        if not stat.S_ISREG(found.st_mode) or not _is_list(path, header):
            raise ShardError(
                f"{option} {path}: is there already, and is no list of an earlier run ({','.join(header)})\n"
                "  it would be overwritten: name another file"
            )
    there = next(parent for parent in path.absolute().parents if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ShardError(f"{option} {path}: cannot be written in {there}\n  name another file")


def _is_list(path: Path, header: Sequence[str]) -> bool:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.readline(200).strip() == ",".join(header)
    except OSError:
        return False
