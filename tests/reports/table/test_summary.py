"""The line that says which columns of a table are read."""

from pathlib import Path

import pytest

from cxrsynth.reports.table.columns import ColumnNames
from cxrsynth.reports.table.summary import describe_columns
from cxrsynth.reports.table.table import open_table


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("study_id,text,ViewPosition", "report from text, report_id from study_id, view from ViewPosition"),
        ("text;Edema;Pneumonia", "report from text; 2 label columns; separated by semicolons"),
        ("Edema\tFracture", "2 label columns; separated by tabs"),
        (
            "text,Projection,Accession Number,notes",
            "report from text; not read, though named alike: Projection (view? --view-column), Accession Number"
            " (report_id? --report-id-column)",
        ),
        ("Edema,Reports", "1 label column; not read, though named alike: Reports (report? --report-column)"),
        ("text,view,Projection", "report from text, view from view"),
    ],
)
def test_columns_that_are_read_and_those_that_are_not(header: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"{header}\n", encoding="utf-8")
    assert describe_columns(open_table(path)) == said


def test_nothing_of_a_first_row_in_place_of_a_header_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("Jane Projection 2019,text,view\n", encoding="utf-8")
    assert describe_columns(open_table(path, columns=ColumnNames())) == "report, view"
