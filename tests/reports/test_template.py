"""Prompt templates: how they are read, rendered, and filled from a report."""

from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import cxrsynth.reports.request
from cxrsynth.reports.deid.sanitize import Sanitized
from cxrsynth.reports.findings.reader import FindingsReader
from cxrsynth.reports.labels import FindingLabel, Status
from cxrsynth.reports.prompt import Depicts
from cxrsynth.reports.request import BuiltPrompt, PromptBuilder
from cxrsynth.reports.table.rows import Report
from cxrsynth.reports.template import FIELDS, PRESETS, PromptTemplate, TemplateError, parse_template
from cxrsynth.settings import PromptStyle

V2 = "[[{age} year old ][{race} ]{sex}. ]{impression}"
SIGNS = st.text(alphabet="ab {}[]\\.\n", max_size=30)
LITERALS = st.text(alphabet="ab .,\n", max_size=5)


@pytest.fixture(scope="module", autouse=True)
def _one_reader() -> Iterator[None]:
    """Every builder has one of its own, which takes most of a second to load."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cxrsynth.reports.request, "FindingsReader", cache(FindingsReader))
        yield


def always(_: str) -> bool:
    return True


def built(
    template: str, fits: Callable[[str], bool] = always, *, depicts: Depicts | None = None, **report: Any
) -> BuiltPrompt:
    return PromptBuilder(parse_template(template), depicts, fits).build(Report("r", line=2, **report))


def prompt(template: str, fits: Callable[[str], bool] = always, **report: Any) -> str:
    return built(template, fits, **report).prompt


# Reading


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"empty\n  expected: a preset \(roentgen, "),
        (" \n", "empty"),
        (
            "roentgen-v3",
            r"'roentgen-v3': no preset.*\n  presets: roentgen, .*\n  fields: .*\n  did you mean: roentgen-v2",
        ),
        ("Chest radiograph.", "no preset, and no field in braces"),
        (r"\[chest\]", "no field, so every report would get the same prompt"),
        (
            "{impression",
            r"character 1 of '\{impression': found '\{' that is never closed\n  expected: '\}' after the name",
        ),
        ("a {} b", "character 3 of .*: found a field without a name"),
        ("{ }", "a field without a name"),
        ("{a}}", r"character 4 of .*: found '\}' without '\{'"),
        ("[{a}", r"character 1 of .*: found '\[' that is never closed"),
        ("[{a}][{b} [{c}]", r"character 6 of .*: found '\[' that is never closed"),
        ("{a}]", r"character 4 of .*: found '\]' without '\['"),
        ("[chest] {a}", "character 1 of .*: found a clause without a field"),
        ("[] {a}", "a clause without a field"),
        (r"{a} \n", r"found a backslash before 'n'\n  expected: one of \[ \] \{ \} \\ after it"),
        ("{a} \\", "a backslash before 'the end'"),
        ("[" * 9 + "{a}" + "]" * 9, "more than 8 brackets inside one another"),
        ("{a}" + "b" * 2000, "2003 characters, expected at most 2000"),
    ],
)
def test_what_is_wrong_with_a_template_is_said_at_once(text: str, message: str) -> None:
    with pytest.raises(TemplateError, match=message):
        parse_template(text)


@given(SIGNS)
def test_any_text_is_a_template_or_an_error(text: str) -> None:
    try:
        template = parse_template(text)
    except TemplateError:
        return
    assert template.text == text
    assert template.fields
    assert "x" in template.render(dict.fromkeys(template.fields, "x"))


def test_names_of_fields_in_order() -> None:
    template = parse_template("{sex} [{age}[ {Body part [code]}]] { view } {sex}")
    assert template.fields == ("sex", "age", "Body part [code]", "view")
    assert template.outside == ("sex", "view")
    assert template.columns == ("Body part [code]",)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_templates_of_known_fields_with_a_source(name: str) -> None:
    template = parse_template(name)
    assert template.text == PRESETS[name].text
    assert set(template.fields) <= set(FIELDS)
    assert "arXiv:" in PRESETS[name].source


# Rendering


@given(st.lists(st.tuples(LITERALS, st.booleans()), max_size=6))
def test_a_clause_is_there_exactly_if_its_field_is(clauses: list[tuple[str, bool]]) -> None:
    text = "{end}" + "".join(f"[{literal}{{f{place}}}]" for place, (literal, _) in enumerate(clauses))
    values = {f"f{place}": f"<{place}>" for place, (_, present) in enumerate(clauses) if present} | {"end": "end"}
    expected = "end" + "".join(f"{literal}<{place}>" for place, (literal, present) in enumerate(clauses) if present)
    assert parse_template(text).render(values).split() == expected.split()


@given(st.text(alphabet="ab[]{}\\", max_size=20))
def test_escaped_signs_are_text(text: str) -> None:
    escaped = "".join(f"\\{sign}" if sign in "[]{}\\" else sign for sign in text)
    assert parse_template(f"[{escaped}{{x}}]").render({"x": "!"}) == f"{text}!"


@pytest.mark.parametrize(
    ("values", "rendered"),
    [
        ({"age": "28", "race": "WHITE", "sex": "female", "impression": "Edema."}, "28 year old WHITE female. Edema."),
        ({"age": "28", "sex": "female", "impression": "Edema."}, "28 year old female. Edema."),
        ({"race": "WHITE", "sex": "female", "impression": "Edema."}, "WHITE female. Edema."),
        ({"age": "28", "race": "WHITE", "impression": "Edema."}, "Edema."),
        ({"age": "28", "race": "WHITE", "sex": "female"}, "28 year old WHITE female."),
        ({}, ""),
    ],
)
def test_nested_clauses(values: dict[str, str], rendered: str) -> None:
    assert parse_template(V2).render(values) == rendered


def test_a_clause_of_clauses_goes_with_the_last_of_them() -> None:
    template = parse_template("[Patient: [{sex}][, {age}].] {impression}")
    assert template.render({"sex": "male", "impression": "Edema."}) == "Patient: male. Edema."
    assert template.render({"impression": "Edema."}) == "Edema."


# Filling


@pytest.mark.parametrize(
    "style", [PromptStyle.IMPRESSION, PromptStyle.FINDINGS, PromptStyle.REPORT, PromptStyle.CANONICAL]
)
@pytest.mark.parametrize(
    "report",
    [
        {"impression": "Edema.", "findings": "Heart is  large.\nLungs: edema."},
        {"findings": "Left effusion. No significant change from the prior study."},
        {"text": "Dr. Smith saw edema on 03/14/2019."},
        {"impression": "No significant change.", "findings": "Stable left effusion."},
        {"labels": {"Edema": FindingLabel(Status.PRESENT)}, "sex": "F", "age_years": 40.0},
        {},
    ],
)
def test_a_field_alone_is_the_prompt_format_of_its_name(style: PromptStyle, report: dict[str, Any]) -> None:
    expected = PromptBuilder(style, None, always).build(Report("r", line=2, **report))
    found = built(f"{{{style.value}}}", **report)
    assert found.prompt == expected.prompt
    assert found.metadata == expected.metadata | {"prompt_style": "template"}
    assert (found.text, found.labels, found.sanitized) == (expected.text, expected.labels, expected.sanitized)


def test_roentgen_v2_is_prompted_as_its_demonstration_is() -> None:
    """The first row of demo_data/demo_inference_prompts.csv, without the blank before the full stop."""
    report = {"impression": "No evidence of acute cardiopulmonary disease.", "sex": "F", "age_years": 28.0}
    found = prompt("roentgen-v2", **report, fields={"race": "White - Brazilian"})
    assert found == "28 year old WHITE female. No evidence of acute cardiopulmonary disease."


@pytest.mark.parametrize(
    ("field", "report", "value"),
    [
        ("sex", {"sex": "F"}, "female"),
        ("sex", {"sex": "M"}, "male"),
        ("view", {"view": "LATERAL"}, "lateral"),
        ("view", {"view": "PA"}, "PA"),
        ("age_group", {"age_years": 17.5}, "child"),
        ("age_group", {"age_years": 95.0}, "adult"),
        ("age", {"age_years": 0.5}, None),
        ("age", {"age_years": 1.0}, "1"),
        ("age", {"age_years": 61.9}, "61"),
        ("age", {"age_years": 89.9}, "89"),
        ("age", {"age_years": 90.0}, None),
        ("age", {"age_years": 130.0}, None),
        ("age", {}, None),
        ("race", {"fields": {"race": "BLACK"}}, "BLACK"),
        ("race", {"fields": {"race": "Unknown"}}, None),
        ("race", {"fields": {"race": "UNABLE TO OBTAIN"}}, None),
        ("race_group", {"fields": {"race": "BLACK/AFRICAN AMERICAN"}}, "BLACK"),
        ("race_group", {"fields": {"race": "White - Russian"}}, "WHITE"),
        ("race_group", {"fields": {"race": "HISPANIC/LATINO - PUERTO RICAN"}}, "HISPANIC"),
        ("race_group", {"fields": {"race": "asian - chinese"}}, "ASIAN"),
        ("race_group", {"fields": {"race": "AMERICAN INDIAN/ALASKA NATIVE"}}, None),
        ("race_group", {"fields": {"race": "Black and White"}}, None),
        ("race_group", {"fields": {"race": "Unknown"}}, None),
        ("race_group", {"fields": {"race": "Not Hispanic or Latino"}}, None),
        ("race_group", {"fields": {"race": "Hispanic or Latino"}}, "HISPANIC"),
        ("race_group", {"fields": {"race": "Non-Hispanic White"}}, "WHITE"),
        ("race_group", {"fields": {"race": "White, not of Hispanic/Latino origin"}}, "WHITE"),
        ("race_group", {"fields": {"race": "NON-WHITE"}}, None),
        ("race_group", {"fields": {"race": "Caucasian"}}, "WHITE"),
        ("race_group", {}, None),
        ("kind", {"fields": {"kind": "nan"}}, None),
        ("kind", {"fields": {"kind": "91"}}, "91"),
        ("anchor_age", {"fields": {"anchor_age": "89"}}, "89"),
        ("anchor_age", {"fields": {"anchor_age": "91"}}, None),
        ("PatientAge", {"fields": {"PatientAge": "091Y"}}, None),
        ("AGE YEARS", {"fields": {"AGE YEARS": "90-100"}}, None),
        ("image", {"fields": {"image": "91"}}, "91"),
        ("PATIENTAGE", {"fields": {"PATIENTAGE": "93"}}, None),
        ("stage", {"fields": {"stage": "91"}}, "91"),
    ],
)
def test_values(field: str, report: dict[str, Any], value: str | None) -> None:
    expected = "Edema." if value is None else f"Edema. It is {value}!"
    assert prompt(f"{{impression}}[ It is {{{field}}}!]", impression="Edema.", **report) == expected


@pytest.mark.parametrize("field", ["impression", "findings", "report", "race", "any column"])
def test_every_field_of_free_text_is_sanitized(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "Call Dr. Quibbleton on 03/14/2019. Edema."
    report = {"fields": {field: text}} if field in ("race", "any column") else {field.replace("report", "text"): text}
    found = built(f"<{{{field}}}>", **report)
    assert "Edema" in found.prompt
    assert "Quibbleton" not in found.prompt
    assert "2019" not in found.prompt
    assert found.sanitized["date"] == 1
    assert "prompt" not in found.metadata
    # Without the sanitizer, all of it would be there.
    monkeypatch.setattr(cxrsynth.reports.request, "sanitize_part", lambda text, **_: Sanitized(text, Counter()))
    assert "Quibbleton" in built(f"<{{{field}}}>", **report).prompt


def test_metadata_hold_prompts_of_codes_alone() -> None:
    report: dict[str, Any] = {"sex": "F", "age_years": 40.0, "labels": {"Edema": FindingLabel(Status.PRESENT)}}
    assert built("{view}: {canonical}", **report).metadata["prompt"] == ": Adult woman. Pulmonary edema."
    for template in ("{canonical} {age}", "{canonical}[{race}]", "{canonical}{impression}", "{sex}[{x}]"):
        assert "prompt" not in built(template, **report).metadata
    assert "Quibbleton" not in str(built("[{sex} ]{canonical}", impression="Quibbleton.").metadata)


def test_what_the_model_cannot_show_is_not_requested() -> None:
    depicts = Depicts(views=("PA",), age_groups=("adult",), sexes=("M",), findings={}, sides=False, uncertain=False)
    found = built(
        "[{age} years ][{age_group} ][{sex} ][{view} ]{impression}",
        depicts=depicts,
        impression="Edema.",
        sex="F",
        view="AP",
        age_years=9.0,
    )
    assert found.prompt == "Edema."
    assert {"view AP", "sex F", "age group child"} <= set(found.unsupported_findings)


@pytest.mark.parametrize(
    ("template", "report", "expected"),
    [
        (V2, {"sex": "F", "findings": "Left effusion."}, "female. Left effusion."),
        (
            V2,
            {"sex": "F", "labels": {"Edema": FindingLabel(Status.PRESENT)}},
            "female. Female patient. Pulmonary edema.",
        ),
        ("[F: {findings} ][I: {impression}]", {"impression": "Edema."}, "I: Edema."),
        ("[F: {findings} ][I: {impression}]", {"text": "Edema."}, "F: Edema."),
        ("{annotated}[, {sex}]", {"fields": {"annotated": ""}, "findings": "Edema", "sex": "M"}, "Edema, male"),
        ("[{sex}]", {"impression": "Edema."}, "Pulmonary edema."),
        ("[{race}]", {"impression": "Edema."}, "Edema."),
        ("[{sex} ]{canonical}", {"impression": "Nothing to see."}, "Chest X-ray."),
    ],
)
def test_no_prompt_is_without_the_report(template: str, report: dict[str, Any], expected: str) -> None:
    """As in the other formats: an image of anything would have labels that say otherwise."""
    assert prompt(template, **report) == expected


def test_the_report_is_cut_and_not_what_stands_after_it() -> None:
    def fits(text: str) -> bool:
        return len(text.split()) <= 6

    found = built("{findings}[ {sex}.]", fits, findings="Left effusion. Right edema. No fracture at all.", sex="F")
    assert found.prompt == "Left effusion. Right edema. female."
    assert found.truncated
    assert found.metadata["prompt_truncated"] is True
    alone = built("{findings}", fits, findings="Both lungs are clear without any focal opacity.")
    assert alone.prompt == "Both lungs are clear without any"
    two = built("{findings} {impression}", fits, findings="Left effusion.", impression="Right edema. Big old heart.")
    assert (two.prompt, two.truncated) == ("Left effusion. Right edema.", True)
    long = built("{impression} one two three four five six seven", fits, impression="Edema.")
    assert (fits(long.prompt), long.truncated) == (True, True)


def test_a_template_and_a_preset_of_the_same_text_are_equal() -> None:
    assert parse_template("roentgen") == parse_template("{impression}")
    assert isinstance(parse_template("radedit"), PromptTemplate)
