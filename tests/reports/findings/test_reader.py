"""FindingsReader on own-written sentences, on arbitrary text, and on the Open-i reference as a whole."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxrsynth.reports.findings.reader import FindingsReader
from cxrsynth.reports.labels import OBSERVATIONS, FindingLabel, Side, Status
from tests.benchmarks.findings_openi import archive, macro_f1, observations, positives, read_references, score

READER = FindingsReader()

PRESENT, ABSENT, UNCERTAIN = Status.PRESENT, Status.ABSENT, Status.UNCERTAIN


@pytest.mark.parametrize(
    ("text", "name", "status"),
    [
        ("Moderate pulmonary edema.", "Edema", PRESENT),
        ("No pleural effusion or pneumothorax.", "Pleural Effusion", ABSENT),
        ("No pleural effusion or pneumothorax.", "Pneumothorax", ABSENT),
        ("The lungs show no sign of pneumonia, edema, or mass.", "Lung Lesion", ABSENT),
        ("Lungs free of consolidation.", "Consolidation", ABSENT),
        ("Pneumothorax is not seen.", "Pneumothorax", ABSENT),
        ("The earlier effusion is no longer visible.", "Pleural Effusion", ABSENT),
        ("The effusion has resolved.", "Pleural Effusion", ABSENT),
        ("Edema has nearly resolved.", "Edema", PRESENT),
        ("No pneumothorax, stable cardiomegaly.", "Cardiomegaly", PRESENT),
        ("Mild cardiomegaly but no edema.", "Cardiomegaly", PRESENT),
        ("Mild cardiomegaly but no edema.", "Edema", ABSENT),
        ("No change in the right effusion.", "Pleural Effusion", PRESENT),
        ("Possible left lower lobe pneumonia.", "Pneumonia", UNCERTAIN),
        ("Pneumonia cannot be excluded.", "Pneumonia", UNCERTAIN),
        ("Pneumonia cannot be ruled out.", "Pneumonia", UNCERTAIN),
        ("An opacity that may represent mild edema.", "Edema", UNCERTAIN),
        ("An opacity that may represent mild edema.", "Lung Opacity", PRESENT),
        ("Findings suspicious for pneumothorax.", "Pneumothorax", UNCERTAIN),
        ("Atelectasis versus pneumonia.", "Atelectasis", UNCERTAIN),
        ("Atelectasis versus pneumonia.", "Pneumonia", UNCERTAIN),
        ("Questionable nodule.", "Lung Lesion", UNCERTAIN),
        ("Borderline heart size.", "Cardiomegaly", UNCERTAIN),
        ("The heart is mildly enlarged.", "Cardiomegaly", PRESENT),
        ("The heart is not enlarged.", "Cardiomegaly", ABSENT),
        ("Cardiac silhouette normal, mediastinum widened.", "Cardiomegaly", ABSENT),
        ("Cardiac silhouette normal, mediastinum widened.", "Enlarged Cardiomediastinum", PRESENT),
        ("Normal cardiomediastinal silhouette.", "Enlarged Cardiomediastinum", ABSENT),
        ("Heart size is normal.", "Cardiomegaly", ABSENT),
        ("Lungs are clear.", "Lung Opacity", ABSENT),
        ("Lungs are clear.", "Consolidation", ABSENT),
        ("Costophrenic angles are sharp.", "Pleural Effusion", ABSENT),
        ("Biapical pleural thickening.", "Pleural Other", PRESENT),
        ("Old healed rib fracture.", "Fracture", PRESENT),
        ("Hydropneumothorax on the left.", "Pleural Effusion", PRESENT),
        ("Tip of the PICC in the SVC.", "Support Devices", PRESENT),
        ("Interval removal of the chest tube.", "Support Devices", ABSENT),
        ("A 2.5 cm nodule, was 1.5 cm.", "Lung Lesion", PRESENT),
        ("THERE IS A LARGE EFFUSION.", "Pleural Effusion", PRESENT),
        ("XXXX effusion since ___.", "Pleural Effusion", PRESENT),
        ("Heart: normal. Lungs: clear. Pleura: no effusion.", "Cardiomegaly", ABSENT),
        ("Heart: normal. Lungs: clear. Pleura: no effusion.", "Lung Opacity", ABSENT),
        ("INDICATION: cough, edema?\n\nSmall effusion.", "Pleural Effusion", PRESENT),
        ("In comparison with the prior film, there is edema.", "Edema", PRESENT),
        ("findings:\n- no edema\n- effusion", "Pleural Effusion", PRESENT),
        ("Upper lobe collapse without\npneumothorax.", "Pneumothorax", ABSENT),
    ],
)
def test_status(text: str, name: str, status: Status) -> None:
    assert READER.read(text)[name].status is status


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("", "No Finding"),
        ("Pericardial effusion.", "Pleural Effusion"),
        ("History of pneumonia.", "Pneumonia"),
        ("CT is more sensitive for detecting nodules.", "Lung Lesion"),
        ("INDICATION: pneumonia. FINDINGS: Pacemaker.", "Pneumonia"),
        ("COMPARISON: film with effusion.\nIMPRESSION: Pacemaker.", "Pleural Effusion"),
    ],
)
def test_not_mentioned(text: str, name: str) -> None:
    assert name not in READER.read(text)


@pytest.mark.parametrize(
    ("text", "name", "side"),
    [
        ("Left pleural effusion.", "Pleural Effusion", Side.LEFT),
        ("Effusion, and a fracture of the right clavicle.", "Pleural Effusion", None),
        ("Pneumothorax at the right apex.", "Pneumothorax", Side.RIGHT),
        ("Left effusion and right basilar atelectasis.", "Pleural Effusion", Side.LEFT),
        ("Left effusion and right basilar atelectasis.", "Atelectasis", Side.RIGHT),
        ("Small left effusion and atelectasis.", "Atelectasis", Side.LEFT),
        ("Bibasilar atelectasis.", "Atelectasis", Side.BILATERAL),
        ("Opacities in both lungs.", "Lung Opacity", Side.BILATERAL),
        ("Effusions, L>R.", "Pleural Effusion", Side.BILATERAL),
        ("Effusions, right greater than left.", "Pleural Effusion", Side.BILATERAL),
        ("Left effusion. Right effusion.", "Pleural Effusion", Side.BILATERAL),
        ("No left effusion. Right effusion.", "Pleural Effusion", Side.RIGHT),
        ("Effusion on the right, clear left lung.", "Pleural Effusion", Side.RIGHT),
        ("Opacities at the lung bases.", "Lung Opacity", Side.BILATERAL),
        ("Right basilar opacity, likely atelectasis.", "Atelectasis", Side.RIGHT),
        ("Left effusion and cardiomegaly.", "Cardiomegaly", None),
        ("Effusion.", "Pleural Effusion", None),
        ("No left effusion.", "Pleural Effusion", None),
    ],
)
def test_side(text: str, name: str, side: Side | None) -> None:
    assert READER.read(text)[name].side is side


def test_present_beats_uncertain_beats_absent() -> None:
    assert READER.read("No edema. Possible edema.")["Edema"].status is UNCERTAIN
    assert READER.read("Edema. Possible edema. No edema.")["Edema"].status is PRESENT


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("Heart size is normal. The lungs are clear. No acute disease.", PRESENT),
        ("FINDINGS: Normal chest. IMPRESSION: No active disease.", PRESENT),
        ("Lungs clear. Pacemaker in place.", PRESENT),
        ("Lungs clear. Possible effusion.", ABSENT),
        ("Lungs clear. Tortuous aorta.", ABSENT),
    ],
)
def test_no_finding(text: str, status: Status) -> None:
    assert READER.read(text)["No Finding"].status is status


def test_devices_alone_say_nothing_of_the_rest() -> None:
    assert READER.read("Pacemaker.") == {"Support Devices": FindingLabel(PRESENT)}


def test_read_many_keeps_order() -> None:
    texts = ["Left effusion.", "", "No effusion."]
    assert list(READER.read_many(texts)) == [READER.read(text) for text in texts]


@settings(max_examples=200)
@given(
    st.one_of(
        st.text(),
        st.lists(
            st.sampled_from(
                ["no", "left", "right", "effusion", "heart", "normal", "may", ",", ".", ":", "\n", "L>R", "?"]
            )
        ).map(" ".join),
    )
)
def test_any_text_is_read(text: str) -> None:
    labels = READER.read(text)
    assert set(labels) <= set(OBSERVATIONS)
    assert all(label.side is None or label.status is not ABSENT for label in labels.values())


def test_headings_map_to_observations() -> None:
    assert observations(["Opacity/lung/base/left", "Cardiomegaly/mild"]) == {"Lung Opacity", "Cardiomegaly"}
    assert observations(["Density/breast", "Granuloma/lung"]) == frozenset()


@pytest.mark.slow
def test_openi_macro_f1() -> None:
    references = read_references(archive())
    assert len(references) > 3000
    scores = score(references, [positives(labels) for labels in READER.read_many(r.text for r in references)])
    assert macro_f1(scores) >= 0.80
