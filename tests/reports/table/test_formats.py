"""Files of tables as people have them: separators, encodings, compression, arrays of JSON, Excel's workbooks."""

import datetime
import gzip
import json
import random
import re
import sys
import zipfile
from pathlib import Path

import openpyxl
import pytest

from cxrsynth.errors import ReportsError
from cxrsynth.reports.table import json_records, table
from cxrsynth.reports.table.columns import ColumnNames
from cxrsynth.reports.table.rows import Rejected, Report
from cxrsynth.reports.table.table import open_table

CSV = 'study_id,report,age,Edema\n17,"Clear lungs, no effusion.",45.5,1\n18,"Left; right\neffusion.",,0\n'
SEMICOLONS = 'study_id;report;age;Edema\n17;"Clear lungs, no effusion.";45,5;1,0\n18;"Left; right\neffusion.";;0\n'
TABS = CSV.replace("lungs, no", "lungs^ no").replace(",", "\t").replace("^", ",")


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def workbook(path: Path) -> Path:
    book = openpyxl.Workbook()
    sheet = book.active
    assert sheet is not None
    rows = [["study_id", "report", "age", "Edema"], [], [17.0, "Clear lungs, no effusion.", 45.5, 1]]
    for row in [*rows, [18, "Left; right\neffusion.", None, 0]]:
        sheet.append(row)
    book.create_sheet("notes").append(["another sheet"])
    book.save(path)
    return path


def rows_of(path: Path) -> list[Report | Rejected]:
    return list(open_table(path).rows())


def without_line(report: Report | Rejected) -> tuple[object, ...]:
    assert isinstance(report, Report), report
    labels = {name: label.status for name, label in report.labels.items()}
    return report.report_id, report.text, report.age_years, labels


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", SEMICOLONS),
        ("a.csv", "sep=;\n" + SEMICOLONS),
        ("a.csv", '"sep=;"\n' + SEMICOLONS),
        ("a.csv", "sep=\t\n" + TABS),
        ("a.csv", "\ufeffsep=;\r\n" + SEMICOLONS),
        ("a.csv", TABS),
        ("a.csv", TABS.replace("\t", "|")),
        ("a.tsv", TABS),
        ("A.TSV", TABS),
        ("a.csv", CSV.encode("utf-16")),
        ("a.csv", TABS.encode("utf-16")),  # Excel's "Unicode text"
        ("a.csv.gz", gzip.compress(CSV.encode())),
        ("a.tsv.gz", gzip.compress(TABS.encode())),
        ("a.csv.gz", gzip.compress(SEMICOLONS.encode("utf-16"))),
    ],
)
def test_every_form_of_csv_gives_the_same_rows(name: str, content: str | bytes, tmp_path: Path) -> None:
    expected = rows_of(write(tmp_path / "plain.csv", CSV))
    assert [without_line(row)[0] for row in expected] == ["17", "18"]
    found = rows_of(write(tmp_path / name, content))
    assert list(map(without_line, found)) == list(map(without_line, expected))


def records() -> list[dict[str, object]]:
    return [
        {"study_id": 17, "report": "Clear lungs, no effusion.", "age": 45.5, "Edema": 1},
        {"study_id": "18", "report": "Left; right\neffusion.", "age": None, "Edema": 0},
    ]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", json.dumps(records())),
        ("a.json", "\ufeff \n" + json.dumps(records(), indent=4)),
        ("a.json", "\n".join(map(json.dumps, records()))),
        ("a.jsonl", "\n".join(map(json.dumps, records()))),
        ("a.json.gz", gzip.compress(json.dumps(records()).encode())),
        ("a.jsonl.gz", gzip.compress("\n".join(map(json.dumps, records())).encode())),
    ],
)
def test_json_in_an_array_or_by_lines_gives_the_same_rows(name: str, content: str | bytes, tmp_path: Path) -> None:
    expected = rows_of(write(tmp_path / "plain.csv", CSV))
    found = rows_of(write(tmp_path / name, content))
    assert list(map(without_line, found)) == list(map(without_line, expected))


def test_a_workbook_gives_the_same_rows(tmp_path: Path) -> None:
    expected = rows_of(write(tmp_path / "plain.csv", CSV))
    found = rows_of(workbook(tmp_path / "a.xlsx"))
    assert list(map(without_line, found)) == list(map(without_line, expected))
    assert [row.line for row in found] == [3, 4]  # as Excel numbers them


def test_rows_beyond_the_size_that_a_sheet_states_are_read(tmp_path: Path) -> None:
    """Some programs write it wrong."""
    path, wrong = workbook(tmp_path / "a.xlsx"), tmp_path / "wrong.xlsx"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(wrong, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("sheet1.xml"):
                content, count = re.subn(rb'<dimension ref="[^"]+"', b'<dimension ref="A1:B2"', content)
                assert count == 1
            new.writestr(name, content)
    assert rows_of(wrong) == rows_of(path)


def test_a_date_in_a_workbook_is_not_read(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    assert book.active is not None
    book.active.append(["report", "age"])
    book.active.append(["Clear.", datetime.date(1961, 2, 3)])
    book.active.append(["Clear.", 5, "beyond the header"])
    book.save(tmp_path / "a.xlsx")
    dated, too_long = rows_of(tmp_path / "a.xlsx")
    assert isinstance(dated, Report)
    assert (dated.age_years, dated.unread) == (None, ("age",))
    assert isinstance(too_long, Rejected)
    assert too_long.reason == "3 fields where the header has 2"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
def test_elements_of_an_array_are_found_wherever_a_chunk_ends(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_records, "_CHUNK_CHARS", size)
    content = [{"report": 'a ] [ { \\ " ,'}, 1234567, "text", None, {"report": "é", "id": "2"}, [{"x": 1}]]
    path = write(tmp_path / "a.json", json.dumps(content, ensure_ascii=False))
    found = list(json_records.read_records(path))
    wrong = "not a JSON object"
    assert found == list(enumerate([content[0], wrong, wrong, wrong, content[4], wrong], 1))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", '[{"report": "Clear."}, {"report": "no end', "the array is broken after row 1"),
        ("a.json", '[{"report": "Clear."} {report: 1}]', "the array is broken after row 1"),
        ("a.json", '[{"report": "Clear."},', "the array is broken after row 1"),
        (
            "a.json",
            '[{"report": "Clear."}]\n[{"report": "Edema."}]',
            "more text after the array, which ends after row 1",
        ),
        ("a.json", '[{"report": "' + "x" * (3 << 20) + '"}]', "a row is longer than 1048576"),
        ("a.json", "[]", "none of 0 rows is a JSON object"),
        ("a.json", "[[1, 2], 3]", "none of 2 rows is a JSON object"),
        ("a.csv.gz", b"study_id,report\n", "damaged, or not compressed with gzip"),
        ("a.csv.gz", gzip.compress(CSV.encode() * 4000)[:200], "damaged, or not compressed with gzip"),
        ("a.xlsx", b"PK\x03\x04 no workbook", "not a complete Excel workbook"),
        ("a.xlsx", CSV, "not a complete Excel workbook"),
        ("a.xlsx.gz", b"", "unknown kind of table"),
        ("a.xls", b"x", "unknown kind of table"),
        ("a.jsonl", '{"report": "Clear."}'.encode("utf-16"), "the file is UTF-16"),
    ],
)
def test_files_that_are_damaged_or_of_another_kind_are_refused(
    name: str, content: str | bytes, said: str, tmp_path: Path
) -> None:
    with pytest.raises(ReportsError, match=f"{name}: .*{said}"):
        rows_of(write(tmp_path / name, content))


def test_a_file_that_breaks_off_late_is_refused_when_it_is_read(tmp_path: Path) -> None:
    draw = random.Random(0)
    lines = "".join(f"{number},Clear {draw.random()}.\n" for number in range(100_000))
    content = gzip.compress(("id,report\n" + lines).encode())
    path = write(tmp_path / "a.csv.gz", content[: len(content) // 2])
    found = open_table(path, columns=ColumnNames())
    with pytest.raises(ReportsError, match="damaged, or not compressed"):
        list(found.rows())


def test_without_openpyxl_a_workbook_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = workbook(tmp_path / "a.xlsx")
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(ReportsError, match=r"pip install 'cxrsynth\[excel\]'"):
        table.open_table(path)
