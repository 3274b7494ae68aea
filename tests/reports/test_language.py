"""Whether a report is in English, on own-written reports, and on the Open-i reports as a whole."""

import pytest

from cxrsynth.reports.language import is_english
from tests.benchmarks.findings_openi import archive, read_references


@pytest.mark.parametrize(
    "text",
    [
        "Kein Infiltrat.",
        "Pneumothorax links.",
        "Herz normal, Lunge frei.",
        "Pas d'épanchement.",
        "Coeur de taille normale.",
        "Sin consolidaciones.",
        "Corazón normal.",
        "Nessun versamento pleurico.",
        "Sem consolidação.",
        "Geen infiltraat, hart normaal.",
        "Ingen pneumothorax.",
        "Phổi sáng.",
        "心影不大。",
        "肺炎 pneumonia 疑い",
        "폐렴",
        "Сердце не увеличено.",
    ],
)
def test_other_languages(text: str) -> None:
    assert not is_english(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Normal.",
        "No acute disease.",
        "Small R effusion, no PTX.",
        "ETT, NGT.",
        "Röntgen examination: the heart is normal.",
        "Referred by Dr. de la Cruz. Possible anterior wedging.",
        "38 °C, 5 µm",
        "NAD.",
    ],
)
def test_english(text: str) -> None:
    assert is_english(text)


def test_no_report_of_openi_is_taken_for_another_language() -> None:
    texts = [reference.text for reference in read_references(archive())]
    assert len(texts) > 3000
    assert all(map(is_english, texts))
