"""Names that a report introduces in full, and goes on with a part of."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxrsynth.reports.deid.dictionary import Kind, kind_of, words_of_name
from cxrsynth.reports.deid.sanitize import STRENGTHS, sanitize

# In no dictionary, so that only their introduction says what they are.
GIVEN, SURNAME = "Mbalizwe", "Zyxkowitz"
INTRODUCTIONS = [
    "Patient: Mbalizwe Zyxkowitz.",
    "PATIENT NAME: ZYXKOWITZ, MBALIZWE.",
    "Name: Zyxkowitz, Mbalizwe. Room 417.",
    "Patient name is Mbalizwe Zyxkowitz.",
    "ZYXKOWITZ^MBALIZWE^^ 860242154.",
    "Referring physician: Mbalizwe Zyxkowitz.",
    "Dictated by: Mbalizwe Zyxkowitz.",
    "Electronically signed on 3/14/2019 by Mbalizwe K. Zyxkowitz.",
    "Signed by Mbalizwe Zyxkowitz on 3/14/2019.",
    "Dear Mbalizwe Zyxkowitz,",
    "Mr. Mbalizwe Zyxkowitz was seen.",
    "Mbalizwe Smith-Zyxkowitz, MD.",
    "Mbalizwe Zyxkowitz was notified at 16:13 by Smith.",
]
SENTENCES = [
    "Mbalizwe has had a cough.",
    "Zyxkowitz lies supine.",
    "MBALIZWE HAS SMALL EFFUSIONS.",
    "Mbalizwe's heart is normal.",
    "Smith-Zyxkowitz fell.",
    "The lungs are clear.",
    "Brown sputum, as Mr. Brown coughs.",
    "No pneumothorax, Mbalizwe.",
    "12:30 Zyxkowitz, small effusion.",
]


def test_the_names_are_in_no_list() -> None:
    assert {kind_of(GIVEN), kind_of(SURNAME)} == {Kind.UNKNOWN}


@pytest.mark.parametrize("introduction", INTRODUCTIONS)
def test_a_name_goes_wherever_it_has_a_capital(introduction: str) -> None:
    before, after = "Mbalizwe has had a cough. The lungs are clear.", "No effusion. Mbalizwe lies supine."

    text = sanitize(f"{before} {introduction} {after}").text

    assert text.startswith("Has had a cough. The lungs are clear.")
    assert text.endswith("No effusion. Lies supine.")
    assert sanitize(before).text == before


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("Mr. Hill. The left hilum is full. Hill-shaped opacity.", "The left hilum is full. Hill-shaped opacity."),
        ("Patient: James Brown. Brown sputum. No brown fluid.", "Brown sputum. No brown fluid."),
        ("Patient: Mary Hampton. Hampton hump at the base.", "Hampton hump at the base."),
        ("Dr. Catheter. Catheter ends in the SVC.", "Catheter ends in the SVC."),
        ("Dr. Mbalizwe. No mbalizwe sign.", "No mbalizwe sign."),
    ],
)
def test_clinical_and_common_words_stay(text: str, left: str) -> None:
    assert sanitize(text).text == left


def test_a_name_of_another_paragraph_or_language_goes() -> None:
    german = "Die Lunge ist frei. Kein Erguss. Mbalizwe hat seit Wochen Husten.\n\nBefundet von Mbalizwe Zyxkowitz."
    assert GIVEN not in sanitize(german).text
    assert sanitize(f"{GIVEN} has a cough.\n\nThe lungs are clear.\n\nCC: {GIVEN} Smith").text == (
        "Has a cough.\n\nThe lungs are clear."
    )


def test_words_of_a_name() -> None:
    name = "Kowalski-Zyxkowitz, Mbalizwe's K. MD Brown"
    assert set(words_of_name(name)) == {"kowalski-zyxkowitz", "kowalski", "zyxkowitz", "mbalizwe"}


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.sampled_from([*INTRODUCTIONS, *SENTENCES]), max_size=6),
    st.sampled_from([" ", "\n", "\n\n"]),
    st.sampled_from(STRENGTHS),
)
def test_no_introduced_name_is_left_and_a_second_time_changes_nothing(
    passages: list[str], between: str, strength: str
) -> None:
    text = sanitize(between.join(passages), strength=strength).text  # type: ignore[arg-type]

    assert sanitize(text, strength=strength).text == text  # type: ignore[arg-type]
    if set(passages) & set(INTRODUCTIONS):
        assert not re.search(f"{GIVEN}|{SURNAME}", text)
