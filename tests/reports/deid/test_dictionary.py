"""Bare names, by dictionary: what goes, and what only looks like a name."""

import pytest

from cxrsynth.reports.deid.lexicon import FOLDER, fold, names, vocabulary
from cxrsynth.reports.deid.sanitize import sanitize


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("Kowalski was informed by pager.", ""),
        ("Deborah's effusion is small.", "Effusion is small."),
        ("Effusion in Deborah Kowalski is small.", "Effusion is small."),
        ("KOWALSKI, DEBORAH. LUNGS ARE CLEAR.", "LUNGS ARE CLEAR."),
        ("the effusion of kowalski is small.", "The effusion is small."),
        ("Seen in Cleveland with a small effusion.", "Seen with a small effusion."),
        ("Small effusion, says Brown.", "Small effusion, says."),
        ("Small effusion (Zzyzxwick).", "Small effusion."),
        ("Lungs are clear in Trần Văn An today.", "Lungs are clear today."),
    ],
)
def test_a_bare_name_goes(text: str, left: str) -> None:
    result = sanitize(text)

    assert result.text == left
    assert result.removed["name"] + result.removed["contact"] + result.removed["place"] >= 1


@pytest.mark.parametrize(
    "text",
    [
        "Guillain-Barre syndrome with low lung volumes.",
        "Fracture after Smith fracture of the wrist.",
        "Klippel-Feil anomaly of the cervical spine.",
        "Wegener granulomatosis with cavities.",
        "A Groshong catheter ends in the SVC.",
        "Amplatzer occluder in place.",
        "Tetralogy of Fallot with a Kowalski shunt.",
        "White-out of the right lung within 24 hours on POD 2.",
        "Boston Scientific lead.",
        "Brown discoloration of the drain.",
        "May reflect atelectasis.",
        "Long bones are osteopenic.",
        "Rose at the apex of the heart, the catheter ends there.",
        "Small Right Pleural Effusion With Brown Fluid.",
        "SMALL RIGHT EFFUSION. NO BROWN FLUID.",
        "Hyperexpanded lungs, infracarinal nodes.",
    ],
)
@pytest.mark.parametrize("strength", ["standard", "strict"])
def test_eponyms_devices_and_words_that_are_names_stay(text: str, strength: str) -> None:
    result = sanitize(text, strength=strength)  # type: ignore[arg-type]

    assert result.text == text
    assert not result.removed


def test_the_lists_are_there_disjoint_and_small() -> None:
    assert len(names()) > 200_000
    assert len(vocabulary()) > 150_000
    assert not names() & vocabulary()
    assert {"kowalski", "deborah"} <= names()
    assert {"effusion", "hemidiaphragm"} <= vocabulary()
    assert sum(path.stat().st_size for path in FOLDER.iterdir() if path.is_file()) < 1_500_000


def test_words_are_looked_up_without_accents() -> None:
    assert fold("Müßig-Đặng") == "mussig-dang"
