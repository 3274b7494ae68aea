import csv
import hashlib
import io
import itertools
import json
import os
import re
import tempfile
import tracemalloc
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxrsynth.errors import ReportsError
from cxrsynth.reports.labels import FindingLabel, Status
from cxrsynth.reports.table.columns import ColumnNames
from cxrsynth.reports.table.rows import Rejected, Report, report_text
from cxrsynth.reports.table.summary import describe_columns
from cxrsynth.reports.table.table import open_table
from cxrsynth.reports.template import parse_template

SECRET = "zebulon-quillfeather"


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def rows_of(path: Path, content: str | bytes) -> list[Report | Rejected]:
    return list(open_table(write(path, content)).rows())


def only_rejected(rows: list[Report | Rejected]) -> list[tuple[int, str]]:
    return [(row.line, row.reason) for row in rows if isinstance(row, Rejected)]


def only_reports(rows: list[Report | Rejected]) -> list[tuple[int, str]]:
    return [(row.line, row.report_id) for row in rows if isinstance(row, Report)]


@pytest.mark.parametrize(
    "cell",
    ["NA", "n/a", "nan", "None", "none.", "null", "<NA>", ".", "-", "--", "___", "?", "XXXX", "xxx xxx.", "0", "[]"],
)
def test_a_missing_text_is_missing(cell: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", f'id,report,impression\nx,"{cell}","{cell}"\ny,"{cell}",Edema.\n')
    first, second = open_table(path).rows()
    assert first == Rejected(2, "empty text")
    assert isinstance(second, Report)
    assert (second.text, second.full_text) == ("", "Edema.")


@pytest.mark.parametrize(
    ("earlier", "impression"),
    [
        ("HISTORY: Rule out pneumonia.\nFINDINGS: Heart size is normal.", "Pneumonia."),
        ("Bibasilar opacities may represent pneumonia. No effusion.", "Pneumonia."),
    ],
)
def test_words_of_another_sentence_are_no_repetition(earlier: str, impression: str) -> None:
    """What was asked for, or may be, is said in the impression for the first time."""
    for report in (Report("x", 2, text=earlier, impression=impression), Report("x", 2, "" or earlier, impression)):
        assert report.full_text == f"{earlier}\n\n{impression}"


def test_text_repeated_in_columns_stands_once() -> None:
    whole = "FINDINGS: Clear lungs, large heart.\nIMPRESSION:  Cardiomegaly."
    report = Report("x", line=2, text=whole, findings="Clear lungs,\nlarge heart.", impression="cardiomegaly.")
    assert report.full_text == whole
    assert Report("x", line=2, findings="Edema.", impression="Edema.").full_text == "Edema."
    assert Report("x", line=2, text="Unclear.", findings="Clear.").full_text == "Unclear.\n\nClear."


def test_a_row_becomes_a_report(tmp_path: Path) -> None:
    header = "Study_ID,Report,Findings,IMPRESSION,ViewPosition,PatientSex,Patient Age,pleural_effusion,No Finding,Edema"
    table = open_table(
        write(tmp_path / "a.csv", f'\ufeff{header}\r\ns1,"Whole\nreport",Clear.,Same.,ap,Female,067Y,1.0,,-1\r\n')
    )
    (report,) = table.rows()

    assert report == Report(
        report_id="s1",
        line=2,
        text="Whole\nreport",
        findings="Clear.",
        impression="Same.",
        view="AP",
        sex="F",
        age_years=67.0,
        labels={"Pleural Effusion": FindingLabel(Status.PRESENT), "Edema": FindingLabel(Status.UNCERTAIN)},
    )
    assert report.full_text == "Whole\nreport\n\nClear.\n\nSame."
    assert table.columns[0] == "Study_ID"
    assert table.digest() == hashlib.sha256(table.path.read_bytes()).hexdigest()
    assert list(table.rows()) == [report]


def test_repr_hides_text() -> None:
    report = Report("a", 2, findings=SECRET, impression=SECRET, text=SECRET)

    assert SECRET not in repr(report)


def test_columns_by_name(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "id,report,conclusions,key\n1,whole,Clear.,k7\n")
    (report,) = open_table(path, columns=ColumnNames(impression="conclusions", report_id="key")).rows()

    assert isinstance(report, Report)
    assert (report.report_id, report.impression, report.text) == ("k7", "Clear.", "whole")


def test_without_ids_rows_are_named_by_line(tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "a.csv", "text\nclear\n\nclear\n")

    assert only_reports(rows) == [(2, "row-2"), (4, "row-4")]


def test_an_id_from_a_column_is_told_from_one_made_of_the_line(tmp_path: Path) -> None:
    for text, expected in (("id,text\nrow-2,clear\n", True), ("text\nclear\n", False)):
        (report,) = rows_of(tmp_path / "a.csv", text)
        assert isinstance(report, Report)
        assert (report.report_id, report.has_id) == ("row-2", expected)


def test_patients_are_read_and_not_shown(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,Subject_ID,who\nclear,12.0,a\nclear, p7 ,\nclear,unknown,b\nclear,,c\n")
    found = [row for row in open_table(path).rows() if isinstance(row, Report)]
    assert [report.patient_id for report in found] == ["12", "p7", "", ""]
    assert "p7" not in repr(found[1])
    named = open_table(path, columns=ColumnNames(patient_id="who")).rows()
    assert [row.patient_id for row in named if isinstance(row, Report)] == ["a", "", "b", "c"]


def test_labels_alone_are_enough(tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "a.csv", "id,Cardiomegaly\n1,1\n2,\n3,absent\n4,maybe\n")

    assert only_reports(rows) == [(2, "1"), (4, "3")]
    assert only_rejected(rows)[0] == (3, "empty text")
    assert only_rejected(rows)[1][1].startswith("Cardiomegaly: value not understood")


@pytest.mark.parametrize(
    ("cell", "status"),
    [
        ("1.00", Status.PRESENT),
        ("+1", Status.PRESENT),
        ("-1.000", Status.UNCERTAIN),
        ("0e0", Status.ABSENT),
        ("\u22121", Status.UNCERTAIN),
        ("Y", Status.PRESENT),
        ("neg", Status.ABSENT),
        ("F", Status.ABSENT),
        ("possible", Status.UNCERTAIN),
        ("equivocal", Status.UNCERTAIN),
        ("not documented", None),
        ("n.a.", None),
        *((cell, None) for cell in ("NA", "N/A", "<NA>", "nan", "?", "-", "unknown")),
    ],
)
def test_label_cells(cell: str, status: Status | None, tmp_path: Path) -> None:
    (report,) = rows_of(tmp_path / "a.csv", f"text,Edema\nclear,{cell}\n")

    assert isinstance(report, Report)
    assert report.labels == ({} if status is None else {"Edema": FindingLabel(status)})
    assert report.unread == ()


@pytest.mark.parametrize("cell", ["2", "0.5", "inf", "\u0661", "1 or 0"])
def test_label_cells_that_say_nothing_known_are_left_out(cell: str, tmp_path: Path) -> None:
    (report,) = rows_of(tmp_path / "a.csv", f"text,Edema\nclear,{cell}\n")
    assert isinstance(report, Report)
    assert (report.labels, report.unread) == ({}, ("Edema",))


def test_ids_as_tools_write_them(tmp_path: Path) -> None:
    """A column with gaps becomes one of floating-point numbers; decimals are text to pyarrow."""
    rows = rows_of(tmp_path / "a.csv", "study,section_findings\n50414267.0,clear\n7.5,clear\n")
    assert only_reports(rows) == [(2, "50414267"), (3, "7.5")]
    table = pa.table({"study_id": pa.array([Decimal("12"), Decimal("13")]), "section_impression": ["clear", "clear"]})
    pq.write_table(table, tmp_path / "a.parquet")
    found = [row for row in open_table(tmp_path / "a.parquet").rows() if isinstance(row, Report)]
    assert [(row.report_id, row.impression) for row in found] == [("12", "clear"), ("13", "clear")]


@pytest.mark.parametrize("kind", ["string", "large_string", "binary", "large_binary", "string_view", "binary_view"])
def test_text_in_any_type_of_parquet(kind: str, tmp_path: Path) -> None:
    if not hasattr(pa, kind):
        pytest.skip(f"pyarrow {pa.__version__} has no {kind}")
    given = ["clear", "edema"] if "string" in kind else [b"clear", b"edema"]
    pq.write_table(pa.table({"text": pa.array(given, getattr(pa, kind)())}), tmp_path / "a.parquet")
    found = [row for row in open_table(tmp_path / "a.parquet").rows() if isinstance(row, Report)]
    assert [row.text for row in found] == ["clear", "edema"]


@pytest.mark.parametrize(
    ("view", "expected"),
    [
        ("PA", "PA"),
        ("AP SUPINE", "AP"),
        ("Portable", "AP"),
        ("AP_horizontal", "AP"),
        ("LL", "LATERAL"),
        ("left lateral", "LATERAL"),
        ("unknown", None),
        ("not recorded", None),
        ("", None),
        ("PA and lateral", None),
        ("lateral decubitus", None),
        ("AP (Mobile) Semi-Erect", "AP"),
        ("SUP", "AP"),
        ("XTABLE LATERAL", "LATERAL"),
        ("LA", "LATERAL"),
        ("P.A.", "PA"),
        ("postero-anterior", "PA"),
        ("antero posterior", "AP"),
        ("XR CHEST 1 VIEW", None),
        ("P-A", "PA"),
        ("AP.", "AP"),
        ("LAT.", "LATERAL"),
        ("Posterior-Anterior", "PA"),
        ("Posterior to anterior", "PA"),
        ("AP;supine", "AP"),
        ("Thorax PA digital", "PA"),
        ("DX CHEST PORT 1V", None),
    ],
)
def test_views(tmp_path: Path, view: str, expected: str | None) -> None:
    (report,) = rows_of(tmp_path / "a.csv", f"text,view\nclear,{view}\n")

    assert isinstance(report, Report)
    assert (report.view, report.unread) == (expected, ())


@pytest.mark.parametrize(
    ("age", "expected"),
    [
        ("45", 45),
        ("45.0", 45),
        ("067Y", 67),
        ("006M", 0.5),
        ("52 years", 52),
        (">89", 90),
        ("over 89", 90),
        ("90+", 90),
        ("89+", 90),
        ("45+", 45),
        ("6 months", 0.5),
        ("6 mos", 0.5),
        ("6 months old", 0.5),
        ("52-year-old", 52),
        ("45y 3m", 45.25),
        ("45 years\u00a06 months", 45.5),
        ("newborn", 0),
        (">=90", 90),
        (">=89", 90),
        ("12\u00a0years", 12),
        ("52 years old", 52),
        ("0", 0),
    ],
)
def test_ages(tmp_path: Path, age: str, expected: float) -> None:
    (report,) = rows_of(tmp_path / "a.csv", f"text,age\nclear,{age}\n")

    assert isinstance(report, Report)
    assert report.age_years == expected


@pytest.mark.parametrize(
    ("cells", "name", "reason"),
    [
        ("XYZ,,,", "view", "view: value not understood"),
        (",131,,", "age", "age: over 130"),
        (",-3,,", "age", "age: value not understood"),
        (",1-5,,", "age", "age: value not understood"),
        (",٣,,", "age", "age: value not understood"),
        (",,neither,", "sex", "sex: value not understood"),
        (",,,maybe", "Edema", "Edema: value not understood"),
    ],
)
def test_a_cell_that_is_not_understood_costs_the_cell(tmp_path: Path, cells: str, name: str, reason: str) -> None:
    path = write(tmp_path / "a.csv", f"text,view,age,sex,Edema\nclear,{cells}\n")
    (report,) = open_table(path).rows()
    assert isinstance(report, Report)
    assert report.unread == (name,)
    assert (report.text, report.view, report.age_years, report.sex, report.labels) == ("clear", None, None, None, {})
    (rejected,) = open_table(path).rows(strict=True)
    assert isinstance(rejected, Rejected)
    assert rejected.reason.startswith(reason)


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        (",,,", "empty text"),
        ("1,,,", "empty text"),
        (" ,clear,,", "empty id"),
        ("0,clear,,", "duplicate id"),
        ("1,clear,", "3 fields where the header has 4"),
        ("1,clear,,,,", "6 fields where the header has 4"),
        ("1,cle\0ar,,", "NUL byte in column 'text'"),
        (b"1,cle\xff\xfear,,", "undecodable bytes in column 'text'"),
        ('1,"clear" lungs,,', "a quote is misplaced or never closed"),
        ('1,"clear,,', "a quote is misplaced or never closed"),
        (f"{'i' * 257},clear,,", "id longer than 256"),
        (f"1,{'a' * 200_000},,", "field too long"),
        (f"1,{'a' * 3_000_000},,", "line longer than"),
    ],
)
def test_a_bad_row_is_rejected_and_its_neighbours_are_not(tmp_path: Path, cells: str | bytes, reason: str) -> None:
    bad = cells if isinstance(cells, bytes) else cells.encode()
    rows = rows_of(
        tmp_path / "a.csv", b'id,text,view,age\n0,clear,PA,4\n"8","two\nlines",,\n' + bad + b'\n9,"clear",AP,5\n'
    )
    rejected = only_rejected(rows)
    reports = only_reports(rows)

    assert [line for line, _ in rejected] == [5]
    assert rejected[0][1].startswith(reason)
    assert reports == [(2, "0"), (3, "8"), (6, "9")]


def test_a_quote_that_never_closes_costs_its_own_line(tmp_path: Path) -> None:
    good = "".join(f"{number},the lungs are clear,\n" for number in range(30_000))
    rows = rows_of(tmp_path / "a.csv", 'id,text,view\na,"never closed,\n' + good)

    assert only_rejected(rows) == [(2, "a quote is misplaced or never closed")]
    assert only_reports(rows)[0] == (3, "0")
    assert len(rows) == 30_001


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "text\nclear\n", "unknown kind of table"),
        ("a.csv", "", "the file is empty"),
        ("a.csv", "\n\n", "no usable header"),
        ("a.csv", "ids,words\n1,clear\n", "no column holds report text"),
        ("a.csv", "text,id,TEXT\n1,2,3\n", "named more than once: text"),
        ("a.csv", b"id,t\xffext\n1,clear\n", "the header is not UTF-8"),
        ("a.csv", "text,lung_opacity,Lung Opacity\n1,2,3\n", "all mean Lung Opacity"),
        ("a.parquet", b"PAR1 and no more", "not a complete Parquet file"),
        ("a.jsonl", "clear\n[1]\n", "none of 2 rows is a JSON object"),
    ],
)
def test_unusable_files(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    path = write(tmp_path / name, content)

    with pytest.raises(ReportsError, match=message) as caught:
        open_table(path)
    assert str(caught.value).startswith(str(path))


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(ReportsError, match="no such file"):
        open_table(tmp_path / "none.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(ReportsError, match="is a folder"):
        open_table(tmp_path / "folder.csv")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text\nclear\n")
    path.chmod(0)
    with pytest.raises(ReportsError, match="cannot be read"):
        open_table(path)


def test_a_column_that_is_not_there_is_refused_with_a_hint(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "id,impresion\n1,clear\n")
    columns = ColumnNames(impression="impression")

    with pytest.raises(ReportsError, match=r"column 'impression' not found\n.*id, impresion\n.*mean: impresion"):
        open_table(path, columns=columns)


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_no_rows(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "a.csv":
        write(path, "id,text\n")
    else:
        pq.write_table(pa.table({"id": pa.array([], pa.string()), "text": pa.array([], pa.string())}), path)

    assert list(open_table(path).rows()) == []


def test_jsonl(tmp_path: Path) -> None:
    lines = [
        b'{"id": 1, "findings": "clear", "age": 45, "sex": null}',
        b"",
        b'{"id": 2, "findings": "cl\xff"}',
        b'{"id": 3, "findings": ',
        b'["findings"]',
        b'{"id": 4, "findings": {"a": 1}}',
        b'{"id": 5, "findings": "\\ud800"}',
        b"[" * 100_000,
        b'{"id": 6, "Edema": 1, "Pneumonia": false}',
        b'{"id": 1, "findings": "again"}',
        b'{"id": 7, "findings": "' + b"a" * 2_000_000 + b'"}',
        b'{"id": 1' + b"0" * 5000 + b', "findings": "clear"}',
        b'{"id": "z", "findings": "last"}',
    ]
    rows = rows_of(tmp_path / "a.ndjson", b"\n".join(lines))

    assert only_reports(rows) == [(1, "1"), (9, "6"), (13, "z")]
    assert [line for line, _ in only_rejected(rows)] == [3, 4, 5, 6, 7, 8, 10, 11, 12]
    six = next(row for row in rows if isinstance(row, Report) and row.report_id == "6")
    assert {name: label.status for name, label in six.labels.items()} == {
        "Edema": Status.PRESENT,
        "Pneumonia": Status.ABSENT,
    }


def test_parquet(tmp_path: Path) -> None:
    dirty = pa.array([b"clear", b"cl\xff", None, b"clear", b"clear"], pa.binary())
    table = pa.table(
        {
            "study_id": [1, 2, 3, 1, 5],
            "impression": pa.StringArray.from_buffers(5, *dirty.buffers()[1:], dirty.buffers()[0]),
            "sex": pa.array(["M", None, "F", "M", "F"]).dictionary_encode(),
            "Edema": [1.0, float("nan"), None, 0.0, -1.0],
            "taken": pa.array([0, 1, 2, 3, 4], pa.timestamp("s")),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    rows = list(open_table(tmp_path / "a.parquet").rows())

    assert only_reports(rows) == [(2, "1"), (6, "5")]
    assert only_rejected(rows) == [
        (3, "undecodable bytes in column 'impression'"),
        (4, "empty text"),
        (5, "duplicate id"),
    ]
    assert isinstance(rows[-1], Report)
    assert (rows[-1].sex, rows[-1].labels) == ("F", {"Edema": FindingLabel(Status.UNCERTAIN)})


def test_damage_in_the_middle_of_a_parquet_file_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"clear {n}" for n in range(5000)]}), path, use_dictionary=False)
    content = bytearray(path.read_bytes())
    content[4:2000] = b"\xff" * 1996
    path.write_bytes(content)
    table = open_table(path)

    with pytest.raises(ReportsError, match=r"damaged after row|cannot be read"):
        list(table.rows())


def big_csv(path: Path, count: int) -> Path:
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "report"])
        rows.writerows((number, "The lungs are clear. " * 100) for number in range(count))
    return path


def peak_bytes(path: Path) -> int:
    table = open_table(path)
    tracemalloc.start()
    try:
        for _ in table.rows():
            pass
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    few, many = big_csv(tmp_path / "few.csv", 1000), big_csv(tmp_path / "many.csv", 10_000)

    # 9,000 rows more are 19 MB of text; what may grow is the set of ids.
    assert peak_bytes(many) - peak_bytes(few) < 9_000 * 200


def test_the_first_row_comes_before_the_rest_is_read(tmp_path: Path) -> None:
    table = open_table(big_csv(tmp_path / "a.csv", 10_000))
    rows = table.rows()
    tracemalloc.start()
    first = list(itertools.islice(rows, 3))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert [row.line for row in first] == [2, 3, 4]
    assert peak < 1_000_000


def good_row(number: int) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerow([f"good{number}", 'lungs, "clear"\nhere', "PA"])
    return text.getvalue().encode()


# Anything on one line, quotes left whole: half a quote may rightly take the line after it along.
dirty_line = (
    st.binary(max_size=40)
    .map(lambda line: line.replace(b"\n", b"").replace(b"\r", b"").replace(b'"', b""))
    .map(lambda line: line.replace(b"good", b""))
)
quoted_line = st.lists(st.binary(max_size=10), max_size=5).map(
    lambda cells: b",".join(b'"' + cell.replace(b'"', b'""').replace(b"\r", b"\n") + b'"' for cell in cells)
)


@settings(max_examples=200)
@given(
    dirty=st.lists(dirty_line | quoted_line, max_size=6),
    bom=st.booleans(),
    end=st.sampled_from([b"\n", b"\r\n"]),
)
def test_good_rows_survive_dirty_neighbours(dirty: list[bytes], bom: bool, end: bytes) -> None:
    content = b"\xef\xbb\xbf" * bom + b"id,text,view" + end
    expected = []
    for number, line in enumerate([*dirty, b""]):
        expected.append((content.count(b"\n") + 1, f"good{number}"))
        content += good_row(number) + line + end
    with tempfile.TemporaryDirectory() as folder:
        rows = rows_of(Path(folder) / "a.csv", content)

    assert [entry for entry in only_reports(rows) if entry[1].startswith("good")] == expected


@settings(max_examples=200)
@given(content=st.binary(max_size=300), suffix=st.sampled_from([".csv", ".jsonl", ".parquet"]))
def test_any_bytes_are_a_table_or_a_clear_error(content: bytes, suffix: str) -> None:
    prefix = b"id,text\n" if suffix == ".csv" else b'{"id": 1, "text": "a"}\n' if suffix == ".jsonl" else b""
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / f"a{suffix}", prefix + content)
        try:
            rows = list(open_table(path).rows())
        except ReportsError:
            return
    lines = [row.line for row in rows]
    assert lines == sorted(set(lines))


@settings(max_examples=100)
@given(position=st.integers(0, 5), mess=st.sampled_from(["", '"', '""', "\0", ",", "\n", "\udcff"]))
def test_no_reason_contains_a_value(position: int, mess: str) -> None:
    cells = ["1", "clear", "PA", "M", "45", "1"]
    cells[position] = f"{SECRET}{mess}{SECRET}"
    line = ",".join(cells).encode(errors="surrogateescape")
    with tempfile.TemporaryDirectory() as folder:
        rows = rows_of(Path(folder) / "a.csv", b"id,text,view,sex,age,Edema\n" + line + b"\n")
        jsonl = "".join(json.dumps({"text": "a", name: SECRET}) + "\n" for name in ("view", "sex", "age", "Edema"))
        rows += rows_of(Path(folder) / "a.jsonl", jsonl)
        unread = [name for row in rows if isinstance(row, Report) for name in row.unread]
        for name in ("a.csv", "a.jsonl"):
            rows += open_table(Path(folder) / name).rows(strict=True)

    reasons = [reason for _, reason in only_rejected(rows)]
    assert len(reasons) >= 4
    assert len(unread) >= 4
    assert not any("zebulon" in reason or "quill" in reason for reason in reasons + unread)


def test_a_table_without_a_header_shows_nothing_of_its_first_row(tmp_path: Path) -> None:
    path = tmp_path / "headerless.csv"
    path.write_text("Zorblattic Smith MRN 48213,2021-03-04,The heart is large.\nb,c,d\n")
    with pytest.raises(ReportsError) as caught:
        open_table(path)
    assert "3, not shown" in str(caught.value)
    assert not any(word in str(caught.value) for word in ("Zorblattic", "48213", "2021", "heart"))
    path.write_text("Patient Name,remarks\na,b\n")
    with pytest.raises(ReportsError, match="columns: Patient Name, remarks"):
        open_table(path)


@pytest.mark.parametrize(
    "first",
    [
        "Jane Roe,123456,Jane Roe,Clear lungs.",
        "Roe,Jane,F,Clear",
        "Jane Roe,Jane Roe,F",
        "Roe,Jane,Edema,No effusion",
        "Roe,Roe,PA,M",
        "Impression: Roe has edema,Roe,Jane",
    ],
)
@pytest.mark.parametrize("asked", [ColumnNames(), ColumnNames(report="Jane Ro"), ColumnNames(report="Roee")])
def test_nothing_of_a_first_row_is_shown(first: str, asked: ColumnNames, tmp_path: Path) -> None:
    path = write(tmp_path / "headerless.csv", f"{first}\na,b,c,d\n")
    shown = []
    try:
        table = open_table(path, columns=asked)
        shown.append(describe_columns(table))
        table.for_prompts(parse_template("{Roee}"))
    except ReportsError as error:
        shown.append(str(error).replace("'Jane Ro'", "").replace("'Roee'", "").replace("{Roee}", ""))
    assert shown
    assert not any(
        word in text for text in shown for word in ("Roe", "Jane", "jane", "roe", "123456", "lungs", "Clear")
    )


def test_a_long_name_is_not_shown_in_part(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "date,path,Roe-Jane-" + "x" * 60 + "\n")
    with pytest.raises(ReportsError, match=r"columns: date, path, \(69 characters\)\n"):
        open_table(path)


@pytest.mark.parametrize(
    ("header", "hint"),
    [("study_id,Reports", "Reports (report? --report-column)"), ("id,Projection", "Projection (view? --view-column)")],
)
def test_columns_named_alike_are_named_when_none_can_be_read(header: str, hint: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", f"{header}\na,b\n")
    with pytest.raises(ReportsError, match=re.escape(f"  named alike: {hint}\n")):
        open_table(path)


@pytest.mark.parametrize("cell", ["<NA>", "NA", "nan", "N/A", "?"])
def test_what_stands_for_a_missing_value_is_understood(cell: str, tmp_path: Path) -> None:
    (row,) = rows_of(
        tmp_path / "a.csv", f"text,view,sex,age,Edema,patient_id\nclear,{cell},{cell},{cell},{cell},{cell}\n"
    )
    assert isinstance(row, Report)
    assert (row.view, row.sex, row.age_years, row.labels, row.patient_id, row.unread) == (None, None, None, {}, "", ())


@pytest.mark.parametrize("cell", ["NA", "nan", "<NA>", "None", "null", "N/A"])
def test_an_id_that_stands_for_a_missing_one_is_none(cell: str, tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "a.csv", f"id,text\n{cell},clear\n{cell},clear\n7,clear\n")
    assert only_rejected(rows) == [(2, "empty id"), (3, "empty id")]
    assert only_reports(rows)[0][1] == "7"


def test_a_large_whole_number_is_an_id_with_all_its_digits(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [1e16, 50414267.0], "text": ["a", "b"]}), tmp_path / "a.parquet")
    rows = [*open_table(tmp_path / "a.parquet").rows(), *rows_of(tmp_path / "a.jsonl", '{"id": 1e17, "text": "a"}\n')]
    ids = [entry[1] for entry in only_reports(rows)]
    assert ids == ["10000000000000000", "50414267", "100000000000000000"]


@pytest.mark.parametrize(
    ("cell", "years"),
    [
        ("3 mths", 0.25),
        ("1 month 3 days", 1 / 12 + 3 / 365.25),
        ("2 weeks and 1 day", 15 / 365.25),
        ("1 yr 6 mos", 1.5),
        ("72 y.o", 72),
        ("72 y.o.", 72),
        ("45 ans", 45),
        ("45 Jahre", 45),
        ("6 Monate", 0.5),
        ("30 a\u00f1os", 30),
        ("72 yrs.", 72),
        ("72 years of age", 72),
        ("45 J", 45),
        ("45\u6b73", 45),
        ("45\uc138", 45),
        ("45 tu\u1ed5i", 45),
        ("24 hours", 24 / 8766),
    ],
)
def test_ages_as_tables_have_them(cell: str, years: float, tmp_path: Path) -> None:
    (row,) = rows_of(tmp_path / "a.csv", f"text,age\nclear,{cell}\n")
    assert isinstance(row, Report)
    assert row.age_years == pytest.approx(years)
    assert row.unread == ()


@pytest.mark.parametrize("cell", ["3 days 1 month", "1 month 3 months", "45 moons", "1 year 2"])
def test_ages_that_are_none(cell: str, tmp_path: Path) -> None:
    (row,) = rows_of(tmp_path / "a.csv", f"text,age\nclear,{cell}\n")
    assert isinstance(row, Report)
    assert (row.age_years, row.unread) == (None, ("age",))


@pytest.mark.parametrize(("cell", "sex"), [("m.", "M"), ("w", "F"), ("weiblich", "F"), ("\u7537", "M"), ("X", None)])
def test_sexes(cell: str, sex: str | None, tmp_path: Path) -> None:
    (row,) = rows_of(tmp_path / "a.csv", f"text,sex\nclear,{cell}\n")
    assert isinstance(row, Report)
    assert (row.sex, row.unread) == (sex, ())


@pytest.mark.parametrize("name", ["AP/PA", "ap_pa"])
def test_the_view_of_a_frontal_image_in_tables_of_chexpert(name: str, tmp_path: Path) -> None:
    (row,) = rows_of(tmp_path / "a.csv", f"Path,{name},section_findings\na,AP,clear\n")
    assert isinstance(row, Report)
    assert row.view == "AP"


def test_lateral_images_in_tables_of_chexpert(tmp_path: Path) -> None:
    rows = rows_of(
        tmp_path / "a.csv",
        "Path,Frontal/Lateral,AP/PA,section_findings\na,Frontal,PA,clear\nb,Lateral,,clear\nc,Frontal,,clear\n",
    )
    assert [row.view for row in rows if isinstance(row, Report)] == ["PA", "LATERAL", None]


@pytest.mark.parametrize(
    "cell",
    [
        *("No report available", "Report not available.", "\\N", "not yet dictated", "pending", "[report missing]"),
        f"{'-' * 300}\nnot available\n{'=' * 300}",
        "XXXX XXXX. " * 40,
        "_ " * 300,
    ],
)
def test_words_that_stand_for_a_missing_text(cell: str) -> None:
    assert report_text(cell) == ""


@pytest.mark.parametrize(
    "cell", ["No findings.", "NAD", "Findings reported by phone.", "Nil acute.", f"{'XXXX ' * 50}clear."]
)
def test_a_short_text_is_not_missing(cell: str) -> None:
    assert report_text(cell) == cell
