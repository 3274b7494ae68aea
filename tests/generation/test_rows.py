"""The table, read once into temporary files."""

import tempfile
from pathlib import Path

import pytest

from cxrsynth.errors import ReportsError, ShardError
from cxrsynth.generation.rows import read_rows
from cxrsynth.reports.table.rows import Rejected, Report
from cxrsynth.reports.table.table import Table, open_table
from tests.generation.making import write_table

HEADER = ("report_id", "impression", "Edema", "view")


def table_of(folder: Path, count: int) -> Table:
    """Every seventh row has a view that is not understood."""
    rows = tuple(
        (f"r{number}", f"Findings number {number}.", "-1" if number % 3 else "", "odd" if number % 7 == 3 else "PA")
        for number in range(count)
    )
    return open_table(write_table(folder / "reports.csv", rows, HEADER))


@pytest.mark.parametrize("count", [1, 255, 256, 299, 700, 2000])
def test_rows_are_those_of_the_table(count: int, tmp_path: Path) -> None:
    table = table_of(tmp_path, count)
    usable = [row for row in table.rows() if isinstance(row, Report)]
    rejected = [row for row in table.rows() if isinstance(row, Rejected)]
    with read_rows(table, limit=None, strict=False) as rows:
        assert (rows.usable, rows.rejected) == (len(usable), len(rejected))
        assert list(rows.reports()) == usable
        assert list(rows.rejected_rows()) == rejected
        for first, last in ((0, 1), (3, 300), (255, 257), (256, 512), (5, 5), (count, count + 9)):
            assert list(rows.reports(first, last)) == usable[first:last]


def test_rows_are_kept_when_the_table_is_gone(tmp_path: Path) -> None:
    table = table_of(tmp_path, 600)
    usable = [row for row in table.rows() if isinstance(row, Report)]
    with read_rows(table, limit=None, strict=False) as rows:
        table.path.unlink()
        one, other = rows.reports(), rows.reports(300)
        assert [next(one), next(other), next(one)] == [usable[0], usable[300], usable[1]]
        assert list(other) == usable[301:]


def test_a_limit_ends_the_reading(tmp_path: Path) -> None:
    with read_rows(table_of(tmp_path, 600), limit=300, strict=False) as rows:
        assert (rows.usable, rows.rejected) == (300, 50)
        assert next(rows.reports(299)).report_id == "r349"


def test_strict_names_the_first_bad_row(tmp_path: Path) -> None:
    table = table_of(tmp_path, 600)
    with pytest.raises(ReportsError, match=r"line 5: view: .*\n.*--strict"):
        read_rows(table, limit=None, strict=True)
    with read_rows(table, limit=3, strict=True) as rows:
        assert rows.usable == 3


def test_a_temporary_file_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = table_of(tmp_path, 5)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(ShardError, match=r"temporary files: cannot write .*\n.*TMPDIR"):
        read_rows(table, limit=None, strict=False)
