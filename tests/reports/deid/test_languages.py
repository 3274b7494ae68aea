# ruff: noqa: RUF001 - other scripts hold letters that look like Latin ones
"""Identifiers in the languages that the rules cover, and reports in those that they do not."""

import pytest

from cxrsynth.reports.deid.language import language_of
from cxrsynth.reports.deid.sanitize import sanitize

REPORTS = {
    "en": "The heart is normal in size. There is no pleural effusion on the left.",
    "de": "Das Herz ist nicht vergrößert. Kein Nachweis eines Pleuraergusses. Keine Infiltrate beidseits.",
    "fr": "Le coeur est de taille normale. Pas d'épanchement pleural. Les poumons sont clairs sans foyer.",
    "es": "El corazón es de tamaño normal. No hay derrame pleural. Los pulmones están sin infiltrados.",
    "it": "Il cuore è di dimensioni normali. Non si osservano versamenti pleurici. Polmoni senza addensamenti.",
    "pt": "O coração tem dimensões normais. Não há derrame pleural. Os pulmões estão sem consolidação.",
    "vi": "Bóng tim không to. Không thấy tràn dịch màng phổi hai bên. Nhu mô phổi bình thường.",
    "cjk": "双肺纹理清晰, 心影大小正常, 双侧肋膈角锐利。",
}
OTHERS = [
    "Het hart is niet vergroot. Geen aanwijzingen voor pleuravocht aan de linker zijde van de thorax.",
    "Serce nie jest powiększone. W obu płucach bez zmian. Nie ma płynu w jamie opłucnej po stronie lewej.",
    "Сердце не увеличено. Легкие без очаговых изменений. Жидкости в плевральной полости нет.",
    "القلب طبيعي الحجم. لا يوجد انصباب جنبي.",
    "Η καρδιά είναι φυσιολογική. Δεν υπάρχει πλευριτική συλλογή.",
    "Kalp boyutu normaldir. Her iki akciğerde infiltrasyon saptanmadı. Plevral efüzyon yok ve sinüsler açık.",
]


@pytest.mark.parametrize("language", REPORTS)
def test_a_covered_language_is_told_and_its_text_stays(language: str) -> None:
    assert language_of(REPORTS[language]) == language
    result = sanitize(REPORTS[language])
    assert result.covered
    assert result.text == REPORTS[language]
    assert not result.removed


@pytest.mark.parametrize("text", OTHERS)
def test_nothing_is_left_of_a_report_in_another_language(text: str) -> None:
    result = sanitize(text)

    assert result.text == ""
    assert not result.covered
    assert result.removed == {"language": 1}


@pytest.mark.parametrize(
    ("language", "planted", "secrets"),
    [
        ("de", "Voraufnahme vom 3. Jänner 2018 um 7.40 Uhr.", ["Jänner", "2018", "7.40"]),
        ("de", "Herr Huber, 94 Jahre, Fallnr. 55123, Zimmer 12.", ["Huber", "94", "55123", "12"]),
        ("de", "Befundet von Oberarzt Huber, Klinikum Musterstadt.", ["Huber", "Musterstadt"]),
        ("de", "Untersucher: Lindqvist. Befunder: Quillfeder.", ["Lindqvist", "Quillfeder"]),
        ("fr", "Examen du 3 janvier 2018 à 7h40.", ["janvier", "2018", "7h40"]),
        ("fr", "Mme Garnier, 94 ans, dossier 55123, chambre 12.", ["Garnier", "94", "55123", "12"]),
        ("es", "Estudio del 3 de enero de 2018 a las 7:40 horas.", ["enero", "2018", "7:40"]),
        ("es", "Paciente: Lucía Ibáñez, 94 años, NHC 55123.", ["Lucía", "Ibáñez", "94", "55123"]),
        ("it", "Esame del 3 gennaio 2018 alle ore 7:40.", ["gennaio", "2018", "7:40"]),
        ("it", "Sig.ra Ferrari, anni 61. Refertato da Ferrari.", ["Ferrari"]),
        ("pt", "Exame de 3 de janeiro de 2018.", ["janeiro", "2018"]),
        ("pt", "Paciente: Inês Queirós, 94 anos, prontuário 55123.", ["Inês", "Queirós", "94", "55123"]),
        ("vi", "Chụp ngày 3 tháng 1 năm 2018 lúc 7 giờ 40.", ["tháng 1", "2018", "7 giờ"]),
        ("vi", "Bệnh nhân Lê Thị Hoa, 94 tuổi, mã số 55123.", ["Thị", "Hoa", "94", "55123"]),
        ("cjk", "检查日期2018年1月3日, 患者王芳, 94岁, 住院号55123。", ["2018", "王芳", "94", "55123"]),
        ("cjk", "撮影日平成30年1月3日。田中医師。", ["30年", "田中"]),
        ("cjk", "환자명: 박지훈, 94세, 등록번호 55123, 2018년 1월 3일.", ["박지훈", "94", "55123", "2018"]),
    ],
)
def test_identifiers_in_other_languages(language: str, planted: str, secrets: list[str]) -> None:
    left = sanitize(f"{REPORTS[language]} {planted}").text

    assert not [secret for secret in secrets if secret in left]
    assert left.startswith(REPORTS[language][:20])


@pytest.mark.parametrize(
    "text",
    [
        "Jan de Vries, geen infiltraat.",
        "Geen infiltraat.",
        "Geen acute pathologie.",
        "Brak zmian.",
        "Serce w normie.",
        "Infiltrasyon yok.",
        "Ingen infiltrat.",
        "Uten infiltrat.",
        "Bez infiltracji.",
        "Nincs infiltr\u00e1tum.",
        "Tidak ada infiltrat.",
        "Het hart is niet vergroot. Er is geen pleuravocht links.",
    ],
)
def test_a_short_text_of_another_language_is_not_taken_for_english(text: str) -> None:
    """With `Geen` taken for a name, `Infiltraat` would be left: the opposite."""
    found = sanitize(text)
    assert not found.covered
    assert found.text == ""


@pytest.mark.parametrize(
    "text", ["Kein Erguss.", "Pas de foyer.", "Sin derrame.", "No effusion.", "Clear.", "Mild edema, no effusion."]
)
def test_a_short_text_of_a_covered_language_stays(text: str) -> None:
    assert sanitize(text).text == text


@pytest.mark.parametrize(
    "text",
    [
        "Parkinson's disease and Alzheimer's dementia.",
        "Kartagener's syndrome. Crohn's disease. Situs inversus. Bronchiectasis.",
        "Parkinson\u2019s disease and Alzheimer\u2019s dementia.",
    ],
)
def test_a_possessive_is_no_word_of_another_language(text: str) -> None:
    assert sanitize(text).text == text
