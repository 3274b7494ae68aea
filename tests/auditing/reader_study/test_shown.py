"""What readers see is made the same way for both kinds."""

import numpy as np

from cxrsynth.auditing.reader_study.shown import MOST_SIDE, Source, common_side, common_text, gray_levels, texts_of
from cxrsynth.reports.labels import FindingLabel, Side, Status
from cxrsynth.reports.table.rows import Report


def source(side: int, report: str = "", findings: str = "") -> Source:
    return Source(side, "0" * 64, {"report": report, "findings": findings})


def test_no_image_is_enlarged_and_the_page_is_bounded() -> None:
    assert common_side([source(2048), source(512), source(3000)]) == 512
    assert common_side([source(4096)] * 4) == MOST_SIDE
    side = common_side([source(4096)] * 500)
    assert 256 < side < 512
    assert 500 * side**2 <= 48_000_000 < 500 * (side + 1) ** 2


def test_all_are_asked_about_a_text_or_none() -> None:
    assert common_text([source(1, "Clear lungs.", "No Finding"), source(1, "Edema.", "Edema")]) == "report"
    assert common_text([source(1, "Clear lungs.", "No Finding"), source(1, "", "Edema")]) == "findings"
    assert common_text([source(1, "Clear lungs.", ""), source(1, "", "Edema")]) is None


def test_a_report_is_de_identified_and_has_no_headings_or_lines() -> None:
    text = (
        "INDICATION: Cough, seen by Dr. Miller.\nFINDINGS: Heart size normal. Zorblattic lungs.\n\n"
        "IMPRESSION: No edema.\nSigned John Smith MD 03/04/2019"
    )
    found = texts_of(Report(report_id="1", line=1, text=text))["report"]
    assert "Heart size normal." in found
    assert "No edema." in found
    for word in ("Miller", "Zorblattic", "Smith", "2019", "FINDINGS", "Cough", "\n"):
        assert word not in found


def test_findings_are_those_stated_as_present_whatever_else_is_known() -> None:
    """Tables of real images seldom name absent findings, sides or doubts: they would give synthetic ones away."""
    labels = {
        "Pleural Effusion": FindingLabel(Status.PRESENT, Side.LEFT),
        "Edema": FindingLabel(Status.PRESENT),
        "Fracture": FindingLabel(Status.ABSENT),
        "Pneumonia": FindingLabel(Status.UNCERTAIN),
    }
    plain = {name: FindingLabel(Status.PRESENT) for name in ("Edema", "Pleural Effusion")}
    for given in (labels, plain):
        assert texts_of(Report(report_id="1", line=1, labels=given))["findings"] == "Edema, Pleural Effusion"
    normal = {"No Finding": FindingLabel(Status.PRESENT), "Fracture": FindingLabel(Status.ABSENT)}
    assert texts_of(Report(report_id="1", line=1, labels=normal))["findings"] == "No Finding"
    assert texts_of(Report(report_id="1", line=1, labels={"Fracture": FindingLabel(Status.ABSENT)}))["findings"] == ""
    assert texts_of(None) == {"report": "", "findings": ""}


def test_levels_are_the_center_square_in_eight_bits() -> None:
    ramp = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    assert gray_levels(ramp, 16) == bytes(range(256))
    wide = np.concatenate([np.ones((16, 8), np.float32), ramp, np.ones((16, 8), np.float32)], axis=1)
    assert gray_levels(wide, 16) == bytes(range(256))
    assert len(gray_levels(ramp, 8)) == 64
