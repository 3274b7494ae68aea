"""Names that one part of a report introduces, in prompts made of another part."""

from dataclasses import replace

import pytest

from cxrsynth.auditing.reader_study.shown import texts_of
from cxrsynth.reports.request import BuiltPrompt, PromptBuilder
from cxrsynth.reports.table.rows import Report
from cxrsynth.reports.template import PromptFormat, parse_template
from cxrsynth.rewards.consistency import text_of
from cxrsynth.settings import Deid, PromptStyle

# In no dictionary: only the header says that it is a name.
HEADER = "Patient: Mbalizwe Zyxkowitz."
FINDINGS, IMPRESSION = "Mbalizwe has a left effusion.", "Mbalizwe has pneumonia."
WHOLE = Report("a", 2, text=f"{HEADER}\n\nFINDINGS: {FINDINGS}\n\nIMPRESSION: {IMPRESSION}")
# The header is in one column, sections are in others.
COLUMNS = [
    Report("a", 2, text=HEADER, findings=FINDINGS, impression=IMPRESSION),
    Report("a", 2, findings=f"{HEADER} {FINDINGS}", impression=IMPRESSION),
    Report("a", 2, findings=FINDINGS, impression=f"{IMPRESSION} Signed by Mbalizwe Zyxkowitz."),
]
LAYOUTS = [WHOLE, *COLUMNS]
FORMATS: list[PromptFormat] = [
    *PromptStyle,
    *map(
        parse_template,
        ("{impression}", "{findings}", "{report}", "{findings} And: {impression}", "[{history}. ]{impression}"),
    ),
]


def built(report: Report, prompt_format: PromptFormat, deid: Deid = Deid.STANDARD) -> BuiltPrompt:
    return PromptBuilder(prompt_format, None, lambda text: True, deid=deid).build(report)


@pytest.mark.parametrize("deid", Deid)
@pytest.mark.parametrize("prompt_format", FORMATS, ids=str)
@pytest.mark.parametrize("layout", range(len(LAYOUTS)))
def test_no_prompt_has_a_name_that_another_part_introduces(
    layout: int, prompt_format: PromptFormat, deid: Deid
) -> None:
    report = replace(LAYOUTS[layout], fields={"history": "Mbalizwe fell"})
    made = built(report, prompt_format, deid)

    for text in (made.prompt, made.text):
        assert "Mbalizwe" not in text
        assert "Zyxkowitz" not in text


def test_the_rest_of_the_section_stays() -> None:
    assert [built(report, PromptStyle.IMPRESSION).prompt for report in LAYOUTS] == ["Has pneumonia."] * len(LAYOUTS)
    assert [built(report, PromptStyle.FINDINGS).prompt for report in LAYOUTS] == ["Has a left effusion."] * len(LAYOUTS)


def test_a_column_of_the_template_introduces_names_too() -> None:
    report = Report("a", 2, impression=IMPRESSION, findings=FINDINGS, fields={"history": HEADER})
    made = built(report, parse_template("{history} {impression}"))

    assert made.prompt.strip() == "Has pneumonia."
    assert made.text == "Has a left effusion.\n\nHas pneumonia."


def test_a_name_that_nothing_introduces_stays_in_all_parts() -> None:
    report = Report("a", 2, text=f"FINDINGS: {FINDINGS}\n\nIMPRESSION: {IMPRESSION}")
    assert built(report, PromptStyle.IMPRESSION).prompt == IMPRESSION


def test_what_rewards_and_readers_see_has_no_such_name_either() -> None:
    for report in LAYOUTS:
        assert text_of(lambda text: True)(report) == "Has pneumonia."
        assert "Mbalizwe" not in texts_of(report)["report"]
