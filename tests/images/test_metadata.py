"""Image metadata as a Report."""

import json
from typing import Any

import pytest

from cxrsynth.images.metadata import ImageMetadata, MetadataReader
from cxrsynth.reports.labels import FindingLabel, Side, Status
from cxrsynth.reports.table.columns import ColumnNames
from cxrsynth.reports.template import parse_template

PRESENT, ABSENT = FindingLabel(Status.PRESENT), FindingLabel(Status.ABSENT)


def read(record: dict[str, Any], columns: ColumnNames | None = None) -> ImageMetadata:
    return MetadataReader(columns).read(record, key="k", line=3)


def test_fields_of_a_prompt_template_are_kept_as_they_are() -> None:
    template = parse_template("{impression} {race} {kind} {kg} {bmi} {none} {note} {study_id} {patientage}")
    record = {
        "study_id": "s9",
        "patientage": "91",
        "Ethnicity": "WHITE",
        "kind": " portable ",
        "kg": 70.0,
        "bmi": 23.5,
        "note": "\ud800",
        "impression": "Edema.",
    }
    report = MetadataReader(None, template).read(record, key="k", line=3).report
    assert report is not None
    fields = {name: value for name, value in report.fields.items() if value}
    assert fields == {"race": "WHITE", "kind": "portable", "kg": "70", "bmi": "23.5"}
    assert not {"study_id", "patientage"} & set(report.fields)
    without = read(record).report
    assert without is not None
    assert without.fields == {}


def labels(record: dict[str, Any]) -> dict[str, FindingLabel]:
    report = read(record).report
    assert report is not None
    return report.labels


def test_no_metadata_gives_no_report() -> None:
    assert read({}) == ImageMetadata()
    assert read({"width": 3, "view": "", "labels": "todo", "patient_id": 7}) == ImageMetadata(patient="7")


def test_a_patient_id_in_a_column_of_floats_is_a_whole_number() -> None:
    """Many tools turn a column of whole numbers into floats if one is missing."""
    assert read({"patient_id": 10000032.0, "subject_id": "other"}).patient == "10000032"
    assert read({"patient_id": "", "subject_id": "7"}).patient == "7"
    assert read({"pid": 3, "patient_id": 9}).patient == "9"
    assert [read({name: 3}).patient for name in ("pid", "MRN", "person_id")] == ["3", "3", "3"]
    assert [read({"patient_id": value}).patient for value in (float("nan"), 1.5, "\ud800")] == ["", "", ""]


def test_a_placeholder_is_no_patient() -> None:
    """Else all images with it would be of one person."""
    for word in ("unknown", "N/A", "nan", "None", "-"):
        assert read({"patient_id": word}).patient == ""
        assert read({"patient_id": word, "subject_id": "7"}).patient == "7"
        found = MetadataReader().read({"pid": word}, key="k", line=3, path="p10/p10000032/s50414267/a.jpg")
        assert found.patient == "10000032"
    assert read({"patient_id": "12.0"}).patient == "12"


def test_a_patient_stands_in_a_column_of_paths() -> None:
    record = {"source_path": "CheXpert-v1.0-small\\train\\patient00001\\study1\\view1_frontal.jpg"}
    assert read(record).patient == "patient00001"
    assert read({"Path": "train/patient00001/study1/view1_frontal.jpg"}).patient == "patient00001"
    assert read({"patient_id": "9", "Path": "train/patient00001/study1/view1_frontal.jpg"}).patient == "9"


@pytest.mark.parametrize(
    "caption", ["No Finding", "no finding.", "Chest X-ray showing no finding", "healthy", "Healthy chest", "nofindings"]
)
def test_captions_of_normal_images(caption: str) -> None:
    assert labels({"caption": caption})["No Finding"].status is Status.PRESENT


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("{'Edema': 1, 'Mass': True}", {"Edema": PRESENT, "Lung Lesion": PRESENT}),
        ("{'Edema': 1, 'Mass': 'present'}", {"Edema": PRESENT, "Lung Lesion": PRESENT}),
        ("{'Edema': True, 'Fracture': False}", {"Edema": PRESENT, "Fracture": ABSENT}),
        ("{'Edema': 1.0, 'Fracture': nan}", {"Edema": PRESENT}),
        ('{"Edema": true, "Fracture": 0}', {"Edema": PRESENT, "Fracture": ABSENT}),
    ],
)
def test_objects_of_marks_written_as_text(cell: str, expected: dict[str, FindingLabel]) -> None:
    assert labels({"labels": cell}) == expected


def test_code_in_an_object_of_marks_is_not_run() -> None:
    assert read({"labels": "{'Edema': __import__('os').getcwd()}"}).report is None


def test_the_column_of_patients_can_be_named() -> None:
    found = read({"study_id": "s9", "person": 12.0, "patient": "other"}, ColumnNames(patient_id="person"))
    assert found.patient == "12"


def test_an_id_that_looks_like_a_line_is_an_id() -> None:
    """Only an image without an id is named by its key; this one is on line 3."""
    for record, expected in (({"report_id": "row-3", "view": "AP"}, "row-3"), ({"view": "AP"}, "k")):
        found = read(record).report
        assert found is not None
        assert found.report_id == expected


def test_usual_columns() -> None:
    found = read({"study_id": "s9", "ViewPosition": "AP", "gender": "female", "age": 12, "subject_id": 10000032})
    assert found.report is not None
    assert (found.report.report_id, found.report.line) == ("s9", 3)
    assert (found.report.view, found.report.sex, found.report.age_years) == ("AP", "F", 12.0)
    assert (found.age_group, found.patient) == ("child", "10000032")


def test_a_value_that_is_not_understood_costs_nothing_else() -> None:
    found = read({"view": "from above", "sex": "F", "age": "old", "Edema": "maybe so", "edema": 1, "Fracture": 0})
    assert found.report is not None
    assert (found.report.view, found.report.sex, found.report.age_years) == (None, "F", None)
    assert found.report.labels == {"Edema": PRESENT, "Fracture": ABSENT}


def test_label_columns_take_precedence_over_a_list_and_both_over_text() -> None:
    text = "Edema. Right pneumothorax. Cardiomegaly."
    found = labels({"report": text, "labels": "Edema|Mass", "Edema": 0})
    assert found["Edema"] == ABSENT
    assert found["Lung Lesion"] == PRESENT
    assert found["Pneumothorax"] == FindingLabel(Status.PRESENT, Side.RIGHT)
    assert "No Finding" not in found


def test_a_list_denies_no_finding_and_may_use_either_vocabulary() -> None:
    assert labels({"labels": ["Nodule", "no finding", "lung_opacity"]}).keys() == {
        "Lung Lesion",
        "No Finding",
        "Lung Opacity",
    }
    assert labels({"Finding Labels": "Effusion|Infiltration"}) == {"Pleural Effusion": PRESENT, "Lung Opacity": PRESENT}


def test_marks_in_one_cell_are_labels_as_columns_are() -> None:
    marks = {"Edema": 1, "Fracture": 0, "Pneumonia": -1, "Effusion": 1, "Mass": None}
    expected = {
        "Edema": PRESENT,
        "Fracture": ABSENT,
        "Pneumonia": FindingLabel(Status.UNCERTAIN),
        "Pleural Effusion": PRESENT,
    }
    for record in ({"labels": marks}, {"label": json.dumps(marks)}, {"findings": marks}, {"target": marks}):
        assert labels(record) == expected
    # A column of its own goes first, and a probability is no mark.
    assert labels({"Edema": 0, "labels": marks})["Edema"] == ABSENT
    assert labels({"view": "AP", "labels": {"Edema": 0.87}}) == {}
    assert labels({"view": "AP", "labels": "{broken"}) == {}


def test_the_first_cell_that_names_a_finding_is_read() -> None:
    assert labels({"label": 1, "class": "Pneumonia", "tags": "Edema"}) == {"Pneumonia": PRESENT}


def test_columns_named_after_the_words_of_nih_are_labels() -> None:
    found = labels({"Effusion": 1, "Mass": 0, "Nodule": "1.0", "Infiltration": 0, "Pleural_Thickening": 0, "Edema": 0})
    assert found == {"Pleural Effusion": PRESENT, "Lung Lesion": PRESENT, "Edema": ABSENT}
    # No nodule is not yet no mass, and no infiltration not yet no opacity.
    assert labels({"Nodule": 0, "Effusion": 0, "Infiltration": True}) == {
        "Pleural Effusion": ABSENT,
        "Lung Opacity": PRESENT,
    }
    assert labels({"Mass": 0, "Nodule": 0, "Effusion": "", "Fibrosis": 1}) == {"Lung Lesion": ABSENT}
    # CheXpert's own column goes first; a number that is no mark, as of kilograms, says nothing.
    assert labels({"Effusion": 1, "Pleural Effusion": 0, "Mass": 72}) == {"Pleural Effusion": ABSENT}


def test_findings_written_by_generate_are_taken_as_they_are() -> None:
    facts = {
        "Edema": {"status": "uncertain", "side": "left", "source": "report"},
        "Fracture": {"status": "not mentioned", "side": "", "source": ""},
        "No Finding": {"status": "absent", "side": "", "source": "report"},
    }
    found = read({"findings": facts, "age_group": "child", "txt": "Pneumonia."})
    assert found.report is not None
    assert found.report.labels == {"Edema": FindingLabel(Status.UNCERTAIN, Side.LEFT), "No Finding": ABSENT}
    assert (found.report.stated_age_group, found.age_group, found.report.text) == ("child", "child", "Pneumonia.")


@pytest.mark.parametrize("name", ["caption", "txt", "report", "text"])
def test_every_name_for_a_text(name: str) -> None:
    assert labels({name: "Left pleural effusion."})["Pleural Effusion"] == FindingLabel(Status.PRESENT, Side.LEFT)


def test_given_columns_come_first_then_the_json_text_then_the_txt_member() -> None:
    found = read({"txt": "Edema.", "caption": "Fracture."})
    assert found.report is not None
    assert found.report.text == "Fracture."
    found = read({"txt": "Edema.", "report": "Fracture.", "mine": "Pneumonia."}, ColumnNames(report="mine"))
    assert found.report is not None
    assert found.report.text == "Pneumonia."
    found = read({"report": "Fracture."}, ColumnNames(report="mine"))
    assert found.report is not None
    assert found.report.text == "Fracture."


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
    assert read(record).age_group == group
