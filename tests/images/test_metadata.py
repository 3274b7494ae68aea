"""What is told of an image -> a Report."""

from typing import Any

import pytest

from cxrsynth.images.metadata import ImageMetadata, MetadataReader
from cxrsynth.reports.labels import FindingLabel, Side, Status
from cxrsynth.reports.table.columns import ColumnNames

PRESENT, ABSENT = FindingLabel(Status.PRESENT), FindingLabel(Status.ABSENT)


def tell(record: dict[str, Any], columns: ColumnNames | None = None) -> ImageMetadata:
    return MetadataReader(columns).read(record, key="k", line=3)


def labels(record: dict[str, Any]) -> dict[str, FindingLabel]:
    report = tell(record).report
    assert report is not None
    return report.labels


def test_nothing_told_is_no_report() -> None:
    assert tell({}) == ImageMetadata()
    assert tell({"width": 3, "view": "", "labels": "todo", "patient_id": 7}) == ImageMetadata(patient="7")


def test_a_whole_number_in_a_column_of_floats_is_the_patient_it_was() -> None:
    """A table's maker turns a column of numbers into floats when one is missing."""
    assert tell({"patient_id": 10000032.0, "subject_id": "other"}).patient == "10000032"
    assert tell({"patient_id": "", "subject_id": "7"}).patient == "7"
    assert [tell({"patient_id": value}).patient for value in (float("nan"), 1.5, "\ud800")] == ["", "", ""]


def test_usual_columns() -> None:
    told = tell({"study_id": "s9", "ViewPosition": "AP", "gender": "female", "age": 12, "subject_id": 10000032})
    assert told.report is not None
    assert (told.report.report_id, told.report.line) == ("s9", 3)
    assert (told.report.view, told.report.sex, told.report.age_years) == ("AP", "F", 12.0)
    assert (told.age_group, told.patient) == ("child", "10000032")


def test_a_value_that_is_not_understood_costs_itself_alone() -> None:
    told = tell({"view": "from above", "sex": "F", "age": "old", "Edema": "maybe so", "edema": 1, "Fracture": 0})
    assert told.report is not None
    assert (told.report.view, told.report.sex, told.report.age_years) == (None, "F", None)
    assert told.report.labels == {"Edema": PRESENT, "Fracture": ABSENT}


def test_labels_of_columns_win_over_a_list_and_both_over_text() -> None:
    text = "Edema. Right pneumothorax. Cardiomegaly."
    found = labels({"report": text, "labels": "Edema|Mass", "Edema": 0})
    assert found["Edema"] == ABSENT
    assert found["Lung Lesion"] == PRESENT
    assert found["Pneumothorax"] == FindingLabel(Status.PRESENT, Side.RIGHT)
    assert "No Finding" not in found


def test_a_list_denies_nothing_and_knows_both_vocabularies() -> None:
    assert labels({"labels": ["Nodule", "no finding", "lung_opacity"]}).keys() == {
        "Lung Lesion",
        "No Finding",
        "Lung Opacity",
    }
    assert labels({"Finding Labels": "Effusion|Infiltration"}) == {"Pleural Effusion": PRESENT, "Lung Opacity": PRESENT}


def test_facts_of_a_sample_of_ours_are_taken_as_they_are() -> None:
    facts = {
        "Edema": {"status": "uncertain", "side": "left", "source": "report"},
        "Fracture": {"status": "not mentioned", "side": "", "source": ""},
        "No Finding": {"status": "absent", "side": "", "source": "report"},
    }
    told = tell({"findings": facts, "age_group": "child", "txt": "Pneumonia."})
    assert told.report is not None
    assert told.report.labels == {"Edema": FindingLabel(Status.UNCERTAIN, Side.LEFT), "No Finding": ABSENT}
    assert (told.report.stated_age_group, told.age_group, told.report.text) == ("child", "child", "Pneumonia.")


@pytest.mark.parametrize("name", ["caption", "txt", "report", "text"])
def test_every_name_of_a_text(name: str) -> None:
    assert labels({name: "Left pleural effusion."})["Pleural Effusion"] == FindingLabel(Status.PRESENT, Side.LEFT)


def test_a_json_text_comes_before_the_txt_member_and_named_columns_first() -> None:
    told = tell({"txt": "Edema.", "caption": "Fracture."})
    assert told.report is not None
    assert told.report.text == "Fracture."
    told = tell({"txt": "Edema.", "report": "Fracture.", "mine": "Pneumonia."}, ColumnNames(report="mine"))
    assert told.report is not None
    assert told.report.text == "Pneumonia."
    told = tell({"report": "Fracture."}, ColumnNames(report="mine"))
    assert told.report is not None
    assert told.report.text == "Fracture."


@pytest.mark.parametrize(
    ("record", "group"),
    [
        ({"age": "1-5"}, "child"),
        ({"age": "20-30"}, "adult"),
        ({"age": "10-30"}, None),
        ({"age": "006M"}, "child"),
        ({"age_group": "Adult", "age": 3}, "adult"),
        ({"age_group": "pensioner"}, None),
    ],
)
def test_age_groups(record: dict[str, Any], group: str | None) -> None:
    assert tell(record).age_group == group
