# ruff: noqa: RUF001 - other scripts hold letters that look like Latin ones
"""Identifiers known by their form or label alone, and what must not be left of them."""

import re

import pytest

from cxrsynth.reports.deid.sanitize import STRENGTHS, sanitize

# The text, and what of it may not survive.
IDENTIFIED = [
    ("N° de sécurité sociale : 1 31 03 75 116 005 42.", "31|116|005|42"),
    ("NIR 1 31 03 75 116 005 42.", "31|116|005|42"),
    ("NIR 2 85 07 2A 123 456.", "85|2A|123|456"),
    ("Seen: 1 31 03 75 116 005 42.", "31|116|005|42"),
    ("Card 4111 1111 1111 1111.", "1111"),
    ("Card 4111-2019-1111-1111.", "1111|2019"),
    ("Card 3782 822463 10005.", "3782|822463|10005"),
    ("IBAN DE89 3704 0044 0532 0130 00.", "DE89|3704|0532|00"),
    ("Paid from GB29 NWBK 6016 1331 9268 19.", "GB29|NWBK|6016|19"),
    ("Plate no. B-MX 4711.", "MX|4711"),
    ("Kennzeichen: B-MX 4711.", "MX|4711"),
    ("License plate AB12 CDE.", "AB12|CDE"),
    ("Seen at 42.3601 N, 71.0589 W.", "42|71"),
    ("Seen at 42.3601° N 71.0589° W.", "42|71"),
    ("Position 42.3601, -71.0589.", "42|71"),
    ("Latitude: 42.36.", "42"),
    ("GPS 42°21'36\"N 71°3'32\"W.", "42|71|36"),
    ("Username: jroe.", "jroe"),
    ("Login: HOSP\\jroe.", "jroe|HOSP"),
    ("Logged in as jroe.", "jroe"),
    ("Benutzer: jroe.", "jroe"),
    ("Station: XRAY_RM3.", "XRAY|RM3"),
    ("Station name: XRAYRM.", "XRAYRM"),
    ("AE title: XRAY_RM3.", "XRAY|RM3"),
    ("Workstation: PACS-WS-12.", "PACS|12"),
    ("QUIBBLETON, MBALIZWE  F  45Y.", "QUIBBLETON|MBALIZWE"),
    ("QUIBBLETON MBALIZWE 45Y F.", "QUIBBLETON|MBALIZWE"),
    ("Quibbleton, Mbalizwe (F, 45).", "Quibbleton|Mbalizwe"),
    ("QUIBBLETON, MBALIZWE  F  95Y.", "QUIBBLETON|MBALIZWE|95"),
    ("RVNR 12 140331 M 004.", "12|140331|M|004"),
    ("Rentenversicherungsnummer: 12 140331 M 004.", "12|140331|M|004"),
    ("マイナンバー 1234 5678 9012。", "1234|5678|9012"),
    ("マイナンバー：1234 5678 9012", "1234|5678|9012"),
    ("NINO QQ 12 34 56 C.", "QQ|12|34|56"),
    ("Steuer 123.456.789-09.", "123|789|09"),
    ("Vom 3. bis 5. Mai stationär.", r"\d|Mai"),
    ("Vom 3. bis 5. April stationär.", r"\d|April"),
    ("Am 5. April gesehen.", r"\d|April"),
    ("Du 3 au 5 mai hospitalisé.", r"\d|mai"),
    ("Del 3 al 5 de mayo ingresado.", r"\d|mayo"),
    ("Dal 3 al 5 maggio ricoverato.", r"\d|maggio"),
    ("Inpatient from 3-5 May.", r"\d|May"),
    ("Inpatient May 3 to 5, 2019.", r"\d|May"),
    ("Inpatient March 3-5.", r"\d|March"),
    ("Line placed 03 14 2019.", r"\d"),
    ("M.Q. is a 45 year old.", "Q"),
    ("M.Q., a 45-year-old woman, coughs.", "Q"),
    ("M.Q. is a 95 year old.", "Q|95"),
    ("MQ is a 45-year-old man.", "Q"),
    ("Flat 3, 12 Roe Street, Leeds LS1 4AP", "3|12|Roe|Leeds|LS1|4AP"),
    ("12 Roe Street, Leeds, LS1 4AP.", "12|Roe|Leeds|LS1|4AP"),
    ("PACS ID CXR20190314-0012", "CXR|0012|2019"),
    ("CXR20190314-0012 was read.", "CXR|0012|2019"),
    ("IMG_20190314_120300 was read.", "IMG|2019|12"),
    ("20190314_1203 was read.", "1203|2019"),
    ("Transfer (St. Quibbleton).", "Quibbleton"),
    ("HRN: 5531", "5531"),
    ("ETT placed on 01.12.", "01|12"),
    ("Line inserted on 03.05.", "03|05"),
    ("Intubated on 14.03. in the ward.", "14|03"),
    ("Drainage vom 3.5. liegt ein.", "3|5"),
    ("smith, john; portable chest.", "smith|Smith|john"),
    ("baker, anne. chest pa", "baker|Baker|anne"),
    ("She is ninety one.", "ninety|one"),
    ("He is ninety-four.", "ninety|four"),
    ("The patient is one hundred and two.", "hundred|two"),
    ("Farr 9, portable film.", "Farr|9"),
    ("Telefax 089/123456-7", "089|123456|7"),
    ("Telefon 089/123456-70", "089|123456|70"),
    ("Exam performed on XII/24/2015.", "XII|24|2015"),
    ("SS# 457 55 5462", "457|55|5462"),
    ("SS number 457 55 5462.", "457|55|5462"),
    ("Homeless, found near 5th Avenue and Pine.", "5th|Pine"),
    ("Found on 42nd Street.", "42nd"),
    ("Transferred from Wagga Wagga NSW 2650.", "Wagga|NSW|2650"),
    ("Perth WA 6000.", "Perth|WA|6000"),
    ("Unit: MICU-6", "MICU|6"),
    ("SICU-12 portable.", "SICU|12"),
    ("AHV-Nr. 756.9217.0769.85", r"[\d.]*\d"),
    ("AHV Nr. 756.9217.0769.85", r"[\d.]*\d"),
    ("N.º de processo 55310.", "55310"),
    ("患者氏名:長谷川 千鶴", "長谷川|千鶴"),
    ("患者名:佐藤 花子", "佐藤|花子"),
    ("読影医:東海林 忠", "東海林|忠"),
    ("検査技師:高橋 健", "高橋|健"),
    ("김철수 의사.", "김철수"),
    ("Medicare no. 2123 45670 1.", "2123|45670|1"),
    ("Outside films (Valley Regional) were reviewed.", "Valley"),
    ("Transferred from OSH (Lakeshore General) for care.", "Lakeshore"),
]


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize(("text", "secrets"), IDENTIFIED)
def test_nothing_is_left_of_a_form(text: str, secrets: str, strength: str) -> None:
    for around in ("{}", "The lungs are clear. {} No effusion."):
        left = sanitize(around.format(text), strength=strength).text  # type: ignore[arg-type]
        assert not re.search(rf"(?<![^\W_])(?:{secrets})(?![^\W_])", left), left
        if around != "{}":
            assert left.startswith("The lungs are clear.")


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("Mr. & Mrs. Quibbleton present.", "Present."),
        ("Transfer (St. Mary's).", "Transfer."),
        ("Geb. am 3.4.1950.", ""),
        ("Patient geb. am 3.4.1950. Die Lunge ist frei. Kein Erguss.", "Patient. Die Lunge ist frei. Kein Erguss."),
        ("QUIBBLETON, MBALIZWE  F  45Y.", "F 45Y."),
        ("Inpatient from 3-5 May.", "Inpatient."),
        ("氏名 山田太郎 胸水なし。", "胸水なし。"),
        ("mr. quibbleton could not hold his breath.", "Could not hold his breath."),
        ("肺野は清明である。番号：1234 5678 9012。胸水なし。", "肺野は清明である。番号。胸水なし。"),
    ],
)
def test_what_is_left_is_readable(text: str, left: str) -> None:
    assert sanitize(text).text == left


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize(
    "text",
    [
        "The nodes measure 10 12 14 16 mm.",
        "Nodules of 1.25, 3.75 and 4.50 cm.",
        "Station 4R lymph nodes are calcified.",
        "Growth plate is normal.",
        "Ribs 3-5 and 7 may be fractured.",
        "Ribs 3-5 may be fractured.",
        "St. Jude valve in place.",
        "PT is a 45-year-old woman.",
        "Views 1 to 3 are rotated.",
        "Ribs 3 to 5. May be fractured.",
        "Fracture of rib 5. May be old.",
        "Lesions at levels 3 and 5 of the spine.",
        "Flat 3 cm lesion.",
        "MI was known. CT is needed.",
        "Nil acute.",
        "ETT is at 4.5 cm.",
        "Coin projects over the esophagus.",
        "The zipper projects over the sternum.",
        "A nodule of 2.3 x 1.4 cm.",
        "Nodule grew from 12.10 to 14.10 mm.",
        "He was ninety one percent saturated.",
        "mass, small; portable chest.",
    ],
)
def test_what_only_looks_like_a_form_stays(text: str, strength: str) -> None:
    assert sanitize(text, strength=strength).text == text  # type: ignore[arg-type]
