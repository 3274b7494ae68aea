"""What a table gives to prompt templates: races and columns by name."""

from pathlib import Path

import pytest

from cxrsynth.errors import ReportsError
from cxrsynth.reports.table.columns import ColumnNames
from cxrsynth.reports.table.rows import Rejected, Report
from cxrsynth.reports.table.table import open_table
from cxrsynth.reports.template import parse_template
from cxrsynth.settings import PromptStyle

ROWS = "study_id,subject_id,impression,Age,Ethnicity,Body part,kg\ns1,p1,Edema.,61,WHITE, chest ,70.0\n"


def table_of(folder: Path, content: str = ROWS, name: str = "a.csv") -> Path:
    path = folder / name
    path.write_text(content, encoding="utf-8")
    return path


def fields_of(path: Path, template: str, columns: ColumnNames | None = None) -> list[dict[str, str]]:
    rows = open_table(path, columns=columns).for_prompts(parse_template(template)).rows()
    return [row.fields for row in rows if isinstance(row, Report)]


def test_fields_are_read_from_their_columns(tmp_path: Path) -> None:
    path = table_of(tmp_path)
    expected = {"race": "WHITE", "Body part": "chest", "kg": "70"}
    assert fields_of(path, "{impression} {race} {Body part} {kg}") == [expected]
    for field in ("race", "race_group"):
        assert fields_of(path, f"{{impression}}[{{{field}}}]", ColumnNames(race="Body part")) == [{"race": "chest"}]
    lines = '{"text": "Edema.", "kg": 70.0, "race": "ASIAN"}\n{"text": "Edema."}\n'
    expected_lines = [{"kg": "70", "race": "ASIAN"}, {"kg": "", "race": ""}]
    assert fields_of(table_of(tmp_path, lines, "a.jsonl"), "{kg}[{race}]") == expected_lines


def test_parquet_columns_are_read_for_templates_alone(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["Edema."], "race": [{"code": 1}], "kg": [70.5]}), path)
    (row,) = open_table(path).rows()
    assert isinstance(row, Report)
    assert row.fields == {}
    assert fields_of(path, "{report} {kg}") == [{"kg": "70.5"}]
    (row,) = open_table(path).for_prompts(parse_template("{report}[{race}]")).rows()
    assert isinstance(row, Rejected)
    assert "'race'" in row.reason


def test_nothing_more_is_read_without_a_template(tmp_path: Path) -> None:
    path = table_of(tmp_path)
    plain = open_table(path)
    assert plain.for_prompts(PromptStyle.IMPRESSION) is plain
    assert [row.fields for row in plain.rows() if isinstance(row, Report)] == [{}]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{impression}[{Body prt}]",
            r"has \{Body prt\}, but there is no such column\n.*\n.*\n.*did you mean: Body part",
        ),
        ("{impresion}", r"no such column\n  columns: .*\n  other fields: impression, .*\n  did you mean: impression"),
        ("{study_id}", "a column of ids"),
        ("{subject_id}[{x}]", "a column of ids"),
        ("[{Age} ]{impression}", r"the column of ages\n  use: \{age\}"),
        ("{sex} {impression}", r"has \{sex\} outside of brackets, but no column holds the sex\n.*\n.*--sex-column"),
        ("{view}", "no column holds the view"),
    ],
)
def test_what_a_table_cannot_give_is_refused(template: str, message: str, tmp_path: Path) -> None:
    table = open_table(table_of(tmp_path))
    with pytest.raises(ReportsError, match=f"a.csv: the prompt template .*{message}"):
        table.for_prompts(parse_template(template))


def test_ids_are_known_by_their_names_too(tmp_path: Path) -> None:
    """A table with ids of studies and of reports has one column more than roles."""
    table = open_table(table_of(tmp_path, "study_id,report_id,patient,subject_id,text\ns,r,p,q,Edema.\n"))
    for name in ("study_id", "report_id", "patient", "subject_id"):
        with pytest.raises(ReportsError, match="a column of ids"):
            table.for_prompts(parse_template(f"{{{name}}}"))


def test_ages_and_races_may_be_missing_in_clauses(tmp_path: Path) -> None:
    path = table_of(tmp_path, "text\nEdema.\n")
    assert fields_of(path, "[[{age} year old ][{race} ]{sex}. ]{impression}") == [{}]
    with pytest.raises(ReportsError, match="no column holds the age"):
        fields_of(path, "{age_group} {report}")
    with pytest.raises(ReportsError, match="column 'nope' not found"):
        open_table(path, columns=ColumnNames(race="nope"))


def test_a_report_with_fields_does_not_show_them() -> None:
    assert "secret" not in repr(Report("a", line=2, fields={"kind": "secret"}))


@pytest.mark.parametrize(
    "column",
    [
        *("AccessionNumber", "accession", "exam_id", "image_id", "StudyInstanceUID", "csn", "encounter_id", "case id"),
        *("path", "filename"),
    ],
)
def test_columns_of_other_ids_are_refused(column: str, tmp_path: Path) -> None:
    table = open_table(table_of(tmp_path, f"study_id,impression,{column}\n1,Clear.,48213\n"))
    with pytest.raises(ReportsError, match="a column of ids"):
        table.for_prompts(parse_template(f"{{impression}} {{{column}}}"))


@pytest.mark.parametrize(
    "column",
    [
        *("PatientName", "patient_name", "reading_physician", "Home Address", "HOSPITAL"),
        *("patientname", "referringmd", "initials", "dob", "postcode"),
    ],
)
def test_columns_that_name_people_or_places_are_refused(column: str, tmp_path: Path) -> None:
    """Names there are bare, and some are in no dictionary."""
    path = tmp_path / "a.csv"
    path.write_text(f"study_id,impression,{column}\n1,Clear.,x\n")
    with pytest.raises(ReportsError, match=r"a\.csv: the prompt template has .*a column that names people or places"):
        open_table(path).for_prompts(parse_template(f"[{{{column}}} ]{{impression}}"))
