"""Canonical prompts, the limit to what a model saw in training, and the cut to what fits its tokenizer."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxrsynth.reports.findings.reader import FindingsReader
from cxrsynth.reports.labels import OBSERVATIONS, FindingLabel, Side, Status
from cxrsynth.reports.prompt import (
    Depicts,
    Subject,
    age_group,
    canonical_prompt,
    cut_at_sentence,
    every_canonical_sentence,
    limit_to_supported,
)
from cxrsynth.reports.request import PromptBuilder
from cxrsynth.reports.table.rows import Report
from cxrsynth.reports.template import parse_template
from cxrsynth.settings import Deid, PromptStyle

PRESENT, ABSENT, UNCERTAIN = Status.PRESENT, Status.ABSENT, Status.UNCERTAIN
LABELS = st.dictionaries(
    st.sampled_from(OBSERVATIONS),
    st.builds(FindingLabel, st.sampled_from(Status), st.none() | st.sampled_from(Side)),
)
SUBJECTS = st.builds(
    Subject,
    view=st.sampled_from((None, "PA", "AP", "LATERAL")),
    age_group=st.sampled_from((None, "adult", "child")),
    sex=st.sampled_from((None, "F", "M")),
)


def depicts(*findings: str, sides: bool = False, uncertain: bool = False) -> Depicts:
    """A model of adult PA radiographs."""
    return Depicts(
        views=("PA",),
        age_groups=("adult",),
        sexes=("F", "M"),
        findings=dict.fromkeys(findings, 1),
        sides=sides,
        uncertain=uncertain,
    )


@pytest.mark.parametrize(
    ("subject", "labels", "prompt"),
    [
        (Subject(), {}, ""),
        (Subject(view="LATERAL"), {}, "Lateral view."),
        (Subject("PA", "adult", "F"), {"No Finding": FindingLabel(PRESENT)}, "PA view. Adult woman. Normal chest."),
        (Subject(sex="M"), {}, "Male patient."),
        (Subject(age_group="child"), {}, "Child."),
        (Subject(age_group="child", sex="F"), {}, "Girl."),
        (
            Subject("AP", "adult", "M"),
            {
                "Pneumothorax": FindingLabel(ABSENT),
                "Pneumonia": FindingLabel(UNCERTAIN, Side.RIGHT),
                "Pleural Effusion": FindingLabel(PRESENT, Side.LEFT),
                "Cardiomegaly": FindingLabel(PRESENT),
            },
            "AP view. Adult man. Cardiomegaly. Left pleural effusion. Possible right pneumonia. No pneumothorax.",
        ),
        (Subject(), {"Edema": FindingLabel(PRESENT, Side.BILATERAL)}, "Bilateral pulmonary edema."),
        (Subject(), {"Edema": FindingLabel(ABSENT, Side.LEFT)}, "No pulmonary edema."),
        (Subject(), {"No Finding": FindingLabel(ABSENT)}, ""),
        (Subject(), {"No Finding": FindingLabel(UNCERTAIN)}, ""),
    ],
)
def test_canonical_prompts(subject: Subject, labels: dict[str, FindingLabel], prompt: str) -> None:
    assert canonical_prompt(subject, labels) == prompt


@given(SUBJECTS, LABELS)
def test_a_canonical_prompt_is_made_of_known_sentences_only(subject: Subject, labels: dict[str, FindingLabel]) -> None:
    prompt = canonical_prompt(subject, labels)
    sentences = [f"{part}." for part in prompt.rstrip(".").split(". ")] if prompt else []
    assert set(sentences) <= set(every_canonical_sentence())
    assert len(set(sentences)) == len(sentences)
    # The order labels were read in says nothing.
    assert canonical_prompt(subject, dict(reversed(labels.items()))) == prompt


@pytest.mark.parametrize(
    ("age_years", "group"), [(None, None), (0.0, "child"), (17.99, "child"), (18.0, "adult"), (90.0, "adult")]
)
def test_age_groups(age_years: float | None, group: str | None) -> None:
    assert age_group(age_years) == group


@given(SUBJECTS, LABELS)
def test_a_model_without_a_description_gets_every_request(subject: Subject, labels: dict[str, FindingLabel]) -> None:
    request = limit_to_supported(subject, labels, None)
    assert (request.subject, request.labels, request.unsupported_findings) == (subject, labels, ())


@pytest.mark.parametrize(
    ("label", "kept", "missing"),
    [
        (FindingLabel(PRESENT), FindingLabel(PRESENT), ()),
        (FindingLabel(ABSENT), FindingLabel(ABSENT), ()),
        (FindingLabel(PRESENT, Side.LEFT), FindingLabel(PRESENT), ("Edema (side)",)),
        (FindingLabel(ABSENT, Side.LEFT), FindingLabel(ABSENT), ()),
        (FindingLabel(UNCERTAIN), None, ("Edema (uncertain)",)),
        (FindingLabel(UNCERTAIN, Side.LEFT), None, ("Edema (uncertain)",)),
    ],
)
def test_a_supported_finding_keeps_what_the_model_can_show(
    label: FindingLabel, kept: FindingLabel | None, missing: tuple[str, ...]
) -> None:
    request = limit_to_supported(Subject(), {"Edema": label}, depicts("Edema"))
    assert request.labels.get("Edema") == kept
    assert request.unsupported_findings == missing


@pytest.mark.parametrize(
    ("label", "missing"),
    [
        (FindingLabel(PRESENT), ("Fracture",)),
        (FindingLabel(PRESENT, Side.LEFT), ("Fracture",)),
        (FindingLabel(UNCERTAIN), ("Fracture",)),
        (FindingLabel(ABSENT), ()),
    ],
)
def test_an_unsupported_finding_is_never_requested(label: FindingLabel, missing: tuple[str, ...]) -> None:
    request = limit_to_supported(Subject(), {"Fracture": label}, depicts("Edema", sides=True, uncertain=True))
    assert request.labels == {}
    assert request.unsupported_findings == missing


def test_side_and_doubt_stay_where_they_were_shown() -> None:
    labels = {"Edema": FindingLabel(UNCERTAIN, Side.LEFT)}
    request = limit_to_supported(Subject(), labels, depicts("Edema", sides=True, uncertain=True))
    assert request.labels == labels
    assert request.unsupported_findings == ()


def test_a_subject_never_shown_is_left_out_and_named() -> None:
    request = limit_to_supported(Subject("LATERAL", "child", "F"), {}, depicts("Edema"))
    assert request.subject == Subject(sex="F")
    assert request.unsupported_findings == ("view LATERAL", "age group child")


@given(SUBJECTS, LABELS)
def test_everything_is_either_requested_or_named(subject: Subject, labels: dict[str, FindingLabel]) -> None:
    request = limit_to_supported(subject, labels, depicts("Edema", "Fracture"))
    named = {name.partition(" (")[0] for name in request.unsupported_findings}
    for observation, label in labels.items():
        if label.status is not ABSENT:
            assert (request.labels.get(observation) == label) != (observation in named)
    assert set(request.labels) <= {"Edema", "Fracture"}


def fits_words(limit: int) -> Callable[[str], bool]:
    return lambda text: len(text.split()) <= limit


@pytest.mark.parametrize(
    ("text", "limit", "kept", "cut"),
    [
        ("", 0, "", False),
        ("One two. Three.", 3, "One two. Three.", False),
        ("One two. Three four. Five.", 4, "One two. Three four.", True),
        ("One two. Three four. Five.", 3, "One two.", True),
        ("One two! Three?", 2, "One two!", True),
        ("One two three. Four.", 2, "One two", True),
        ("Tip 2.5 cm above. Then more.", 4, "Tip 2.5 cm above.", True),
    ],
)
def test_a_text_is_cut_after_a_sentence(text: str, limit: int, kept: str, cut: bool) -> None:
    assert cut_at_sentence(text, fits_words(limit)) == (kept, cut)


@pytest.mark.parametrize(
    ("text", "limit", "kept"),
    [
        ("Pneumothorax. No effusion.", 7, "Pneumot"),
        ("Pneumothorax right", 12, "Pneumothorax"),
        ("  Pneumothorax right", 5, "Pneum"),
        ("Word.", 0, "W"),
    ],
)
def test_a_first_word_that_does_not_fit_is_cut_inside(text: str, limit: int, kept: str) -> None:
    assert cut_at_sentence(text, lambda part: len(part) <= limit) == (kept, True)


@given(st.text(alphabet="ab .!?\n", max_size=60), st.integers(0, 30))
def test_a_cut_text_is_a_prefix_that_fits_and_is_never_empty(text: str, limit: int) -> None:
    kept, cut = cut_at_sentence(text, lambda part: len(part.strip()) <= limit)
    assert cut == (len(text.strip()) > limit)
    assert " ".join(text.split()).startswith(" ".join(kept.split()))
    assert bool(kept.strip()) == bool(text.strip())
    assert len(kept.strip()) <= max(1, limit)


@given(st.text(alphabet="ab .!?\n", max_size=60), st.integers(1, 12))
def test_a_cut_text_is_made_of_whole_words_where_one_fits(text: str, limit: int) -> None:
    kept, cut = cut_at_sentence(text, fits_words(limit))
    assert len(kept.split()) <= limit
    assert text.split()[: len(kept.split())] == kept.split()
    assert cut == (len(text.split()) > limit)


@pytest.mark.parametrize("text", ["Short sentence here. " * 20_000, "word " * 50_000], ids=["sentences", "words"])
def test_a_very_long_text_is_cut_without_trying_every_beginning(text: str) -> None:
    tried = []

    def fits(part: str) -> bool:
        tried.append(part)
        return len(part.split()) <= 40

    kept, cut = cut_at_sentence(text, fits)
    assert cut
    assert 37 < len(kept.split()) <= 40
    assert len(tried) < 60


@pytest.mark.parametrize("style", [PromptStyle.IMPRESSION, PromptStyle.FINDINGS, PromptStyle.REPORT])
def test_no_prompt_is_empty_if_there_are_findings(style: PromptStyle) -> None:
    """An empty prompt would give any image at all, with labels that say otherwise."""
    prompt_builder = PromptBuilder(style, None, lambda _: True)
    labels = {"Pneumonia": FindingLabel(PRESENT), "Edema": FindingLabel(ABSENT)}
    assert prompt_builder.build(Report("a", line=1, labels=labels)).prompt == "Pneumonia. No pulmonary edema."
    emptied = Report(
        "b",
        line=2,
        findings="Large left pleural effusion.",
        impression="No significant change from the prior study.",
    )
    assert prompt_builder.build(emptied).prompt == "Large left pleural effusion."


WHOLE = (
    "FINAL REPORT\nEXAMINATION: CHEST (PORTABLE AP)\n\nINDICATION: Edema?\n\nTECHNIQUE: One view\n\n"
    "FINDINGS: Cardiomegaly.\n\nIMPRESSION: Left effusion."
)


@pytest.mark.parametrize(
    ("style", "report", "prompt"),
    [
        (PromptStyle.IMPRESSION, {"text": WHOLE}, "Left effusion."),
        (PromptStyle.FINDINGS, {"text": WHOLE}, "Cardiomegaly."),
        (PromptStyle.FINDINGS, {"text": WHOLE, "findings": "Fracture."}, "Fracture."),
        (PromptStyle.IMPRESSION, {"text": WHOLE.partition("IMPRESSION")[0]}, "Cardiomegaly."),
        (PromptStyle.IMPRESSION, {"text": "INDICATION: Edema?", "view": "PA"}, "PA view."),
    ],
)
def test_a_section_is_taken_from_a_whole_report(style: PromptStyle, report: dict[str, str], prompt: str) -> None:
    assert PromptBuilder(style, None, lambda _: True).build(Report("a", line=2, **report)).prompt == prompt


LOST = "A large left pneumothorax has developed compared to the prior study. Right effusion. No fracture."


@pytest.mark.parametrize("style", [style for style in PromptStyle if style is not PromptStyle.CLASS])
def test_labels_come_from_the_text_of_the_prompt(style: PromptStyle) -> None:
    built = PromptBuilder(style, None, lambda _: True).build(Report("a", line=2, text=LOST))
    assert "pneumothorax" not in built.prompt.lower()
    assert set(built.labels) == {"Pleural Effusion", "Fracture"}


def test_what_was_cut_or_stands_in_another_section_is_no_label() -> None:
    report = Report("a", line=2, findings="Cardiomegaly.", impression="Right effusion. No fracture.")
    builder = PromptBuilder(PromptStyle.IMPRESSION, None, fits_words(2))
    assert set(builder.build(report).labels) == {"Pleural Effusion"}
    template = PromptBuilder(parse_template("[{sex}. ]{impression}"), None, fits_words(2))
    assert set(template.build(report).labels) == {"Pleural Effusion"}
    canonical = PromptBuilder(PromptStyle.CANONICAL, None, fits_words(2))
    assert set(canonical.build(report).labels) == {"Pleural Effusion", "Cardiomegaly", "Fracture"}


@pytest.mark.parametrize("style", list(PromptStyle))
@pytest.mark.parametrize("text", ["Kein Pneumothorax.", "Unchanged.", "No significant change since the prior study."])
def test_no_prompt_is_empty(style: PromptStyle, text: str) -> None:
    built = PromptBuilder(style, None, lambda _: True, classes=("Pneumothorax",)).build(Report("a", line=2, text=text))
    assert built.prompt.strip()
    assert built.labels == {}
    assert built.is_any == (built.prompt == "Chest X-ray.")


def test_a_report_that_is_not_in_english_is_counted_unless_columns_have_its_findings() -> None:
    builder = PromptBuilder(PromptStyle.CANONICAL, None, lambda _: True)
    german = Report("a", line=2, text="Kein Pneumothorax.")
    assert builder.build(german).unread
    labelled = builder.build(replace(german, labels={"Pneumothorax": FindingLabel(ABSENT)}))
    assert not labelled.unread
    assert labelled.prompt == "No pneumothorax."
    assert not builder.build(replace(german, text="No pneumothorax.")).unread


@pytest.mark.parametrize(
    ("style", "text", "times"),
    [
        (PromptStyle.IMPRESSION, "No edema.", 1),
        (PromptStyle.CANONICAL, "FINDINGS: No edema.\nIMPRESSION: Effusion.", 1),
        (PromptStyle.IMPRESSION, "FINDINGS: No edema.\nIMPRESSION: Effusion.", 2),
        (PromptStyle.CANONICAL, "Kein Pneumothorax.", 0),
    ],
)
def test_each_text_of_a_report_is_read_once(style: PromptStyle, text: str, times: int) -> None:
    rules, seen = FindingsReader(), []

    class Counting:
        def read(self, text: str) -> dict[str, FindingLabel]:
            seen.append(text)
            return rules.read(text)

    PromptBuilder(style, None, lambda _: True, reader=Counting()).build(Report("a", line=2, text=text))
    assert len(seen) == len(set(seen)) == times


def test_contradictions_are_settled_and_counted() -> None:
    builder = PromptBuilder(PromptStyle.CANONICAL, None, lambda _: True)
    normal = {"No Finding": FindingLabel(PRESENT)}
    both = builder.build(Report("a", line=2, labels=normal | {"Pneumonia": FindingLabel(UNCERTAIN)}))
    assert both.labels == {"Pneumonia": FindingLabel(UNCERTAIN)}
    assert both.contradictions == {"columns": 1}
    read = builder.build(Report("a", line=2, labels=normal, text="Edema. Pacemaker. No fracture."))
    assert set(read.labels) == {"No Finding", "Support Devices", "Fracture"}
    assert read.contradictions == {"text": 1}
    fine = normal | {"Support Devices": FindingLabel(PRESENT), "Edema": FindingLabel(ABSENT)}
    assert builder.build(Report("a", line=2, labels=fine)).labels == fine
    assert not builder.build(Report("a", line=2, labels=fine)).contradictions


def test_a_new_finding_that_is_compared_away_leaves_no_normal_chest() -> None:
    """The sentence is no part of the prompt, so that its finding is not asked for; nor is a chest without findings."""
    text = "As compared to the previous radiograph, there is a newly appeared left pneumothorax. The heart is normal."
    built = PromptBuilder(PromptStyle.CANONICAL, None, lambda _: True).build(Report("a", 2, text=text))
    assert {name: label.status for name, label in built.labels.items()} == {"Cardiomegaly": ABSENT}
    assert built.prompt == "No cardiomegaly."
    same = "As compared to the previous radiograph, there is no relevant change. The heart and lungs are normal."
    built = PromptBuilder(PromptStyle.CANONICAL, None, lambda _: True).build(Report("a", 2, text=same))
    assert built.labels["No Finding"].status is PRESENT


def test_a_column_that_agrees_with_the_text_leaves_its_side() -> None:
    builder = PromptBuilder(PromptStyle.CANONICAL, None, lambda _: True)
    report = Report("a", 2, text="No pneumothorax. Left effusion.", labels={"Pleural Effusion": FindingLabel(PRESENT)})
    built = builder.build(report)
    assert built.prompt == "Left pleural effusion. No pneumothorax."
    assert built.metadata["findings"]["Pleural Effusion"] == {"status": "present", "side": "left", "source": "column"}
    built = builder.build(replace(report, labels={"Pleural Effusion": FindingLabel(ABSENT)}))
    assert built.labels == {"Pneumothorax": FindingLabel(ABSENT), "Pleural Effusion": FindingLabel(ABSENT)}


@pytest.mark.parametrize(
    "impression",
    [
        *("No significant change.", "No significant interval change.", "Stable chest.", "Interval worsening."),
        *("See above.", "As above.", "See findings."),
    ],
)
@pytest.mark.parametrize("style", [PromptStyle.IMPRESSION, parse_template("{impression}")])
def test_an_impression_that_says_nothing_of_the_image_is_none(impression: str, style: PromptStyle) -> None:
    report = Report("a", 2, findings="Large left pneumothorax.", impression=impression)
    built = PromptBuilder(style, None, lambda _: True).build(report)
    assert "Large left pneumothorax." in built.prompt
    assert built.labels["Pneumothorax"] == FindingLabel(PRESENT, Side.LEFT)


def test_a_clause_that_is_left_out_states_no_subject() -> None:
    template = parse_template("[{view} view of a {age} year old {sex}. ]{impression}")
    builder = PromptBuilder(template, None, lambda _: True)
    old = Report("a", 2, impression="Left effusion.", view="AP", sex="F", age_years=93.0)
    assert builder.build(old).stated == Subject()
    assert builder.build(replace(old, age_years=61.0)).stated == Subject("AP", "adult", "F")


@pytest.mark.parametrize(
    ("text", "deid", "prompt"),
    [
        ("Dr. Lee was informed of a large left pneumothorax. No effusion.", Deid.STANDARD, "No pleural effusion."),
        ("Large left pneumothorax with IMG 88123-B. No effusion.", Deid.STRICT, "No pleural effusion."),
        ("Dr. Lee was informed. No effusion.", Deid.STANDARD, "Normal chest. No pleural effusion."),
        ("No acute process, stable cardiomegaly.", Deid.STANDARD, "Cardiomegaly."),
    ],
)
def test_what_deidentification_removed_leaves_no_normal_chest(text: str, deid: Deid, prompt: str) -> None:
    builder = PromptBuilder(PromptStyle.CANONICAL, None, lambda text: True, deid=deid)
    assert builder.build(Report("1", 2, text)).prompt == prompt
