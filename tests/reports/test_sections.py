"""Sections of own-written reports, in the layouts of hospitals and public data sets."""

import time

import pytest

from cxrsynth.reports.sections import Kind, section_text, shown_sections, shown_text, split_sections


def kinds(text: str) -> list[tuple[Kind, str]]:
    return [(section.kind, section.text.strip()) for section in split_sections(text)]


MIMIC = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PORTABLE AP)

 INDICATION:  Cough, hypoxia  // infiltrate?

 TECHNIQUE:  Single frontal view

 COMPARISON:  Radiograph of the day before

 FINDINGS:

 Small left effusion.

 The heart is large.

 IMPRESSION:

 Effusion on the left.
"""


def test_the_layout_of_mimic() -> None:
    assert kinds(MIMIC) == [
        (Kind.SHORT_ASIDE, "CHEST (PORTABLE AP)"),
        (Kind.ASIDE, "Cough, hypoxia // infiltrate?"),
        (Kind.SHORT_ASIDE, "Single frontal view"),
        (Kind.SHORT_ASIDE, "Radiograph of the day before"),
        (Kind.FINDINGS, "Small left effusion.\n\n The heart is large."),
        (Kind.IMPRESSION, "Effusion on the left."),
    ]
    assert shown_text(MIMIC) == "Small left effusion.\n\n The heart is large.\n\nEffusion on the left."


def test_sections_of_a_whole_report_by_name() -> None:
    assert section_text(MIMIC, Kind.IMPRESSION) == "Effusion on the left."
    assert section_text(MIMIC, Kind.FINDINGS) == "Small left effusion.\n\n The heart is large."
    assert section_text("The heart is large.", Kind.IMPRESSION) == ""
    assert section_text("FINDINGS AND IMPRESSION: Large heart.", Kind.IMPRESSION) == "Large heart."


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Clinical details: fall, ?rib fracture\nReport: The heart is large.", "The heart is large."),
        ("History - fall. Findings - the heart is large.", "the heart is large."),
        ("reason for study (free text): effusion\nfindings: clear lungs", "clear lungs"),
        ("INDICATION/HISTORY: effusion\nRESULT: clear lungs", "clear lungs"),
        ("Indication\nFall, effusion\nOpinion\nClear lungs.", "Clear lungs."),
        ("INDICATION Fall and effusion. FINDINGS Clear lungs.", "Clear lungs."),
        ("technique portable view\nFindings Clear lungs.", "Clear lungs."),
        ("ORDERING DIAGNOSIS: effusion\nCONCLUSION: clear lungs", "clear lungs"),
        ("R09.1 Pleurisy with effusion\nFINDINGS: clear lungs", "clear lungs"),
        ("CHEST TWO VIEWS INDICATION: effusion. FINDINGS: clear lungs", "CHEST TWO VIEWS\n\nclear lungs"),
        ("FINDINGS: clear lungs\nRECOMMENDATION: CT to exclude a nodule.", "clear lungs"),
        ("INDICATION: edema\nLungs: clear\nHeart: large", "Lungs: clear\n\nHeart: large"),
        ("XR CHEST: Clear lungs.", "Clear lungs."),
        ("INDICATION: edema.\n\nClear lungs.", "Clear lungs."),
        ("INDICATION:\n\nedema\n\nClear lungs.", "Clear lungs."),
        ("COMPARISON: An effusion last week. Clear lungs. Large heart.", "Clear lungs. Large heart."),
        ("Findings consistent with edema.", "Findings consistent with edema."),
        ("Comparison is made with a study of May. Edema.", "Comparison is made with a study of May. Edema."),
        ("HISTORY OF PNEUMONIA. LUNGS ARE CLEAR.", "HISTORY OF PNEUMONIA. LUNGS ARE CLEAR."),
        ("Image taken at 10:45. Clear lungs.", "Image taken at 10:45. Clear lungs."),
    ],
)
def test_what_says_what_the_image_shows(text: str, shown: str) -> None:
    assert shown_text(text) == shown


def test_a_wet_read_counts_only_without_a_report() -> None:
    wet = "WET READ: Edema."
    assert [section.kind for section in shown_sections(wet)] == [Kind.WET_READ]
    assert shown_text(f"{wet}\nFINAL REPORT\nFINDINGS: Clear lungs.") == "Clear lungs."


@pytest.mark.parametrize(
    "text", ["a" + " " * 200_000, "a:" * 20_000, "\n" * 100_000, "A B " * 30_000, "FINDINGS " * 10_000, " - " * 30_000]
)
def test_any_text_is_split_in_linear_time(text: str) -> None:
    started = time.process_time()
    split_sections(text)
    assert time.process_time() - started < 3
