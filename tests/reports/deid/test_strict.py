"""The strict strength, and what both strengths promise."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cxrsynth
from cxrsynth.reports.deid.sanitize import KINDS, sanitize


@pytest.mark.parametrize(
    "sentence",
    [
        "The tube was checked by the Wexlorp team.",  # a capital that nothing explains
        "The opacity is qwxzzy.",  # in no vocabulary
        "Effusion 48215.",  # a long number without a unit
        "Effusion AB12.",
        "The XQ is large.",
        "2.The opacity is qwxzzy.",
        "患者左侧胸腔积液。",  # no vocabulary
    ],
)
def test_strict_drops_a_sentence_with_what_is_not_known_to_be_clinical(sentence: str) -> None:
    result = sanitize(f"FINDINGS: {sentence} The lungs are clear.", strength="strict")

    assert result.text.endswith("The lungs are clear.")
    assert sentence.rstrip(".。").split()[-1] not in result.text
    assert sum(result.removed.values()) >= 1
    assert set(result.removed) <= set(KINDS)


@pytest.mark.parametrize(
    "text",
    [
        "Effusion of 1500 mL. BNP of 4821. Platelets 210,000.",
        "A 2.3 x 1.4 cm nodule at T8-T9, and the 4th rib.",
        "PA and lateral views. ETT ends 4.5 cm above the carina.",
        "SVC, RA and RV leads; COPD with 26mm bullae.",
        "A 45-year-old woman. SpO2 of 92% on 4 L.",
        "1. Cardiomegaly.\n2. Small effusion (left).",
        "1.Small effusion. 2.No pneumothorax.",
        "Cardiothoracic ratio of 16.2/24.7.",
        "T-spine is intact.",
        "A 3-day history of fever. BP 140/90.",
        "SMALL LEFT EFFUSION. NO PNEUMOTHORAX.",
    ],
)
def test_strict_leaves_clinical_sentences(text: str) -> None:
    assert sanitize(text, strength="strict").text == text


def test_strict_removes_no_less() -> None:
    text = "Dr. Quibbleton saw cardiomegaly. Effusion of 3/4/2019. Signed: JQX."
    assert set(sanitize(text, strength="strict").text.split()) <= set(sanitize(text).text.split())


def test_sanitize_is_public_and_refuses_another_strength() -> None:
    assert cxrsynth.sanitize is sanitize
    assert cxrsynth.sanitize("Clear.") == cxrsynth.Sanitized("Clear.", cxrsynth.sanitize("Clear.").removed)
    with pytest.raises(ValueError, match="strength: 'lax', expected one of standard, strict"):
        sanitize("Clear.", strength="lax")  # type: ignore[arg-type]


_PIECES = st.sampled_from(
    [
        *(
            "Dr. Smith",
            "Smith",
            "smith",
            "Jane Roe",
            "on 3/14/2019",
            "14:32",
            "MRN 12345",
            "room 4",
            "signed by",
            "seen",
        ),
        *(
            "the lungs are clear",
            "Kerley B lines",
            "No",
            "compared to",
            "prior",
            "stable",
            "unchanged",
            "new",
            "and",
            "of",
        ),
        *(".", ",", ":", "(", ")", "\n", "\n\n", "1.", "FINDINGS:", "cc:", "St.", "A.", "'s", "-", "/", "12", "3.5 cm"),
        *(
            "Herr",
            "Frau Müller",
            "le 14 mars",
            "患者李娜",
            "93岁",
            "Bệnh nhân",
            "___",
            "XXXX",
            "[**Name**]",
            "&nbsp;",
            "%",
        ),
    ]
)


@settings(max_examples=150, deadline=None)
@given(st.lists(_PIECES, max_size=25).map(" ".join) | st.text(max_size=120), st.sampled_from(["standard", "strict"]))
def test_what_is_sanitized_stays_as_it_is(text: str, strength: str) -> None:
    once = sanitize(text, strength=strength)  # type: ignore[arg-type]
    twice = sanitize(once.text, strength=strength)  # type: ignore[arg-type]

    assert twice.text == once.text
