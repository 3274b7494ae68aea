"""The table, read once into temporary files."""

import hashlib
import tempfile
from pathlib import Path

import pytest

from cxrsynth.errors import ReportsError, ShardError
from cxrsynth.generation.rows import read_rows, say_left_out
from cxrsynth.reports.table.rows import Rejected, Report
from cxrsynth.reports.table.table import Table, open_table
from tests.generation.making import write_table

HEADER = ("report_id", "impression", "Edema", "view")


def table_of(folder: Path, count: int) -> Table:
    """Every seventh row has neither text nor label; every fifth a view that is not understood."""
    rows = tuple(
        (f"r{number}", "", "", "")
        if number % 7 == 3
        else (f"r{number}", f"Findings number {number}.", "-1" if number % 3 else "", "PA" if number % 5 else "odd")
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


@pytest.mark.parametrize("at_once", [10, 100, 5000])
def test_any_number_of_rows_is_put_in_order(at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cxrsynth.generation.rows._SORTED_AT_ONCE", at_once)
    table = table_of(tmp_path, 2000)

    def key(report: Report) -> str:
        return hashlib.sha256(report.report_id.encode()).hexdigest()

    with read_rows(table, limit=None, strict=False) as rows:
        expected = sorted(rows.reports(), key=key)
        rows.order_by(key)
        assert rows.usable == len(expected) > 1500
        assert list(rows.reports()) == expected
        assert list(rows.reports(700, 1300)) == expected[700:1300]
        assert rows.rejected > 0


def test_strict_names_the_first_bad_row(tmp_path: Path) -> None:
    table = table_of(tmp_path, 600)
    with pytest.raises(ReportsError, match=r"line 2: view: .*\n.*--strict"):
        read_rows(table, limit=None, strict=True)
    rows = [f"r{number},Clear.,,PA\n" for number in range(4)]
    path = tmp_path / "other.csv"
    path.write_text("report_id,impression,Edema,view\n" + "".join(rows) + "r4,,,\n", encoding="utf-8")
    with pytest.raises(ReportsError, match=r"line 6: empty text\n.*--strict"):
        read_rows(open_table(path), limit=None, strict=True)
    with read_rows(open_table(path), limit=4, strict=True) as found:
        assert found.usable == 4


def test_what_is_left_out_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = [
        "id,impression,view,sex",
        "1,Clear.,odd,M",
        "2,Clear.,odd,?",
        "3,,,",
        "3,Clear.,PA,neither",
        "3,Clear.,,",
    ]
    path = tmp_path / "a.csv"
    path.write_text("\n".join(content), encoding="utf-8")
    table = open_table(path)
    with read_rows(table, limit=None, strict=False) as rows:
        assert rows.reasons == {"empty text": 1, "duplicate id": 1}
        assert rows.unread == {"view": 2, "sex": 1}
        say_left_out(table, rows, None)
    said = " ".join(capsys.readouterr().err.split())
    assert "2 rows rejected: duplicate id 1, empty text 1" in said
    assert "3 cells not understood and left out: view 2, sex 1" in said


def test_a_temporary_file_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = table_of(tmp_path, 5)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(ShardError, match=r"temporary files: cannot write .*\n.*TMPDIR"):
        read_rows(table, limit=None, strict=False)
