"""FindingsReader on own-written sentences, on arbitrary text, and on the Open-i reference as a whole."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxrsynth.reports.findings.reader import FindingsReader, read_findings
from cxrsynth.reports.labels import OBSERVATIONS, FindingLabel, Side, Status
from tests.benchmarks.findings_openi import archive, macro_f1, observations, positives, read_references, score, stated

READER = FindingsReader()

PRESENT, ABSENT, UNCERTAIN = Status.PRESENT, Status.ABSENT, Status.UNCERTAIN


@pytest.mark.parametrize(
    ("text", "name", "status"),
    [
        ("Moderate pulmonary edema.", "Edema", PRESENT),
        ("No pneumothorax - large effusion.", "Pleural Effusion", PRESENT),
        ("No pneumothorax \u2013 large left effusion.", "Pneumothorax", ABSENT),
        ("No pneumothorax (small effusion).", "Pleural Effusion", PRESENT),
        ("No focal consolidation (pneumonia).", "Pneumonia", ABSENT),
        ("No consolidations (bilateral) or effusions.", "Pleural Effusion", ABSENT),
        ("Negative for pneumothorax, positive for effusion.", "Pleural Effusion", PRESENT),
        ("Negative for pneumothorax, positive for effusion.", "Pneumothorax", ABSENT),
        ("Effusion? Y", "Pleural Effusion", PRESENT),
        ("Effusion? Small, left.", "Pleural Effusion", PRESENT),
        ("Right base ? consolidation.", "Consolidation", UNCERTAIN),
        ("RLL PNA cannot be r/o'd.", "Pneumonia", UNCERTAIN),
        ("Early pneumonia could have this appearance.", "Pneumonia", UNCERTAIN),
        ("Infection should be considered.", "Pneumonia", UNCERTAIN),
        ("Old healed rib #s on the right.", "Fracture", PRESENT),
        ("# left clavicle.", "Fracture", PRESENT),
        ("Mod R pl eff.", "Pleural Effusion", PRESENT),
        ("Costophrenic recesses are free.", "Pleural Effusion", ABSENT),
        ("The CTR is not increased.", "Cardiomegaly", ABSENT),
        ("Coin lesion in the left upper zone.", "Lung Lesion", PRESENT),
        ("White-out of the left hemithorax.", "Lung Opacity", PRESENT),
        ("Not much pleural fluid is left.", "Pleural Effusion", PRESENT),
        ("ICD with leads in RA and RV.", "Support Devices", PRESENT),
        ("FINAL REPORT: Pneumothorax.", "Pneumothorax", PRESENT),
        ("Neg CXR.", "No Finding", PRESENT),
        ("Provisional diagnosis - edema. Findings - no edema.", "Edema", ABSENT),
        ("WET READ: Likely pneumonia.\nFINAL REPORT\nIMPRESSION: No pneumonia.", "Pneumonia", ABSENT),
        ("Question: pneumonia?\nAnswer: no consolidation.", "Consolidation", ABSENT),
        ("REASON FOR EXAMINATION: Pain.\nPortable AP radiograph was reviewed.\nNo edema.", "Edema", ABSENT),
        ("Compared with the prior film with right effusion. No effusion today.", "Pleural Effusion", ABSENT),
        (
            "Comparison is made to the film of yesterday, when there was a pneumothorax. No pneumothorax.",
            "Pneumothorax",
            ABSENT,
        ),
        ("Compared with the prior film with effusion, it is gone.", "Pleural Effusion", ABSENT),
        ("As compared to the prior film, which had edema, it persists.", "Edema", PRESENT),
        ("Compared to the prior film with interval increase in the effusion.", "Pleural Effusion", PRESENT),
        ("Compared to the prior film with worsening edema.", "Edema", PRESENT),
        ("Heart is enlarged, compared to the prior film with small effusion.", "Pleural Effusion", PRESENT),
        ("Effusion? N. Cardiomegaly? Yes", "Pleural Effusion", ABSENT),
        ("Effusion? N. Cardiomegaly? Yes", "Cardiomegaly", PRESENT),
        ("Effusion? No change from prior.", "Pleural Effusion", UNCERTAIN),
        ("Pneumothorax: [ ] yes [x] no", "Pneumothorax", ABSENT),
        ("[x] Cardiomegaly [ ] Effusion [x] Edema", "Edema", PRESENT),
        ("\u2612 Effusion \u2610 Pneumothorax", "Pleural Effusion", PRESENT),
        ("It would be wrong to say that there is no effusion.", "Pleural Effusion", PRESENT),
        ("PICC has been pulled; no lines remain.", "Support Devices", ABSENT),
        ("The PICC has been pulled back 2 cm.", "Support Devices", PRESENT),
        ("It is not possible to exclude pneumonia.", "Pneumonia", UNCERTAIN),
        ("The left lung is collapsed.", "Atelectasis", PRESENT),
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
        # Abbreviations and British spelling.
        ("Basal PTX, unchanged.", "Pneumothorax", PRESENT),
        ("RLL PNA.", "Pneumonia", PRESENT),
        ("Bibasilar atx.", "Atelectasis", PRESENT),
        ("Impella and ECMO cannulas unchanged.", "Support Devices", PRESENT),
        ("IABP tip at the aortic knob.", "Support Devices", PRESENT),
        ("OGT tip in the stomach.", "Support Devices", PRESENT),
        ("The CTR is 0.61.", "Cardiomegaly", PRESENT),
        ("CTR 48%.", "Cardiomegaly", ABSENT),
        ("Raised CTR.", "Cardiomegaly", PRESENT),
        ("Mild pulmonary oedema.", "Edema", PRESENT),
        ("No sign of CCF.", "Edema", ABSENT),
        ("Renal failure. Clear lungs.", "Lung Opacity", ABSENT),
        ("Septal Kerley lines.", "Edema", PRESENT),
        ("Haemopneumothorax.", "Pneumothorax", PRESENT),
        ("Haemopneumothorax.", "Pleural Effusion", PRESENT),
        ("Air-space shadowing in both bases.", "Lung Opacity", PRESENT),
        ("Appearances in keeping with a lung tumour.", "Lung Lesion", PRESENT),
        ("Shadowing c/w infection.", "Pneumonia", PRESENT),
        ("Lungs w/o consolidation.", "Consolidation", ABSENT),
        # Hedges, and what they are about.
        ("Query nodule at the apex.", "Lung Lesion", UNCERTAIN),
        ("? small effusion", "Pleural Effusion", UNCERTAIN),
        ("Effusion? Cardiomegaly.", "Pleural Effusion", UNCERTAIN),
        ("Effusion? Cardiomegaly.", "Cardiomegaly", PRESENT),
        ("Right basal shadowing ?pneumonia.", "Lung Opacity", PRESENT),
        ("Right basal shadowing ?pneumonia.", "Pneumonia", UNCERTAIN),
        ("Basal opacity, edema vs. pneumonia.", "Lung Opacity", PRESENT),
        ("Basal opacity, edema vs. pneumonia.", "Edema", UNCERTAIN),
        ("Edema or pneumonia is possible.", "Edema", UNCERTAIN),
        ("Effusion with underlying pneumonia cannot be ruled out.", "Pleural Effusion", PRESENT),
        ("Consolidation is not completely excluded.", "Consolidation", UNCERTAIN),
        ("We cannot entirely exclude a fracture.", "Fracture", UNCERTAIN),
        ("An edema is most likely.", "Edema", UNCERTAIN),
        ("Infection is favoured over edema.", "Pneumonia", UNCERTAIN),
        # Two negations, and changes.
        ("The absence of consolidation cannot be established.", "Consolidation", UNCERTAIN),
        ("The lungs are not free of consolidation.", "Consolidation", PRESENT),
        ("Nearly complete clearing of the edema.", "Edema", PRESENT),
        ("The effusion has not increased.", "Pleural Effusion", PRESENT),
        ("No interval appearance of an effusion.", "Pleural Effusion", ABSENT),
        ("The nodule is gone.", "Lung Lesion", ABSENT),
        ("The heart cannot be assessed due to an effusion.", "Pleural Effusion", PRESENT),
        ("No effusion, moderate cardiomegaly.", "Cardiomegaly", PRESENT),
        ("Lungs are overinflated but clear.", "Consolidation", ABSENT),
        ("No acute bony injury.", "Fracture", ABSENT),
        # Lines of templates and tables.
        ("Edema: None. Fracture: Yes.", "Edema", ABSENT),
        ("Edema: None. Fracture: Yes.", "Fracture", PRESENT),
        ("Consolidation: no\nCardiomegaly: moderate", "Consolidation", ABSENT),
        ("Consolidation: no\nCardiomegaly: moderate", "Cardiomegaly", PRESENT),
        ("| Pneumothorax | negative |\n| Edema | positive |", "Pneumothorax", ABSENT),
        ("| Pneumothorax | negative |\n| Edema | positive |", "Edema", PRESENT),
        ("Edema\tno\nEffusion\tyes", "Edema", ABSENT),
        ("Edema\tno\nEffusion\tyes", "Pleural Effusion", PRESENT),
        ("Fracture: no displaced fracture", "Fracture", ABSENT),
        ("Edema: no change", "Edema", PRESENT),
        ("Edema (-), effusion (+)", "Edema", ABSENT),
        ("Edema (-), effusion (+)", "Pleural Effusion", PRESENT),
        ("Lines and tubes: none", "Support Devices", ABSENT),
        ("Lines and tubes: ETT", "Support Devices", PRESENT),
        ("Consolidation - absent; Effusion - present (R)", "Pleural Effusion", PRESENT),
        ("Pneumothorax: indeterminate", "Pneumothorax", UNCERTAIN),
        ("Pneumothorax: ?", "Pneumothorax", UNCERTAIN),
        ("Effusion: limited evaluation; no large effusion", "Pleural Effusion", ABSENT),
        ("Effusion: not assessed, edema: yes", "Edema", PRESENT),
        # Boxes for both answers.
        ("Pneumothorax \u2610 Yes \u2612 No", "Pneumothorax", ABSENT),
        ("Pneumothorax \u2612 Yes \u2610 No", "Pneumothorax", PRESENT),
        ("Pneumothorax [ ] Yes [x] No", "Pneumothorax", ABSENT),
        ("Pneumothorax Yes \u2610 No \u2612", "Pneumothorax", ABSENT),
        ("Effusion yes ( ) no (x)", "Pleural Effusion", ABSENT),
        ("Effusion \u2610 Yes \u2612 No Edema \u2612 Yes \u2610 No", "Pleural Effusion", ABSENT),
        ("Effusion \u2610 Yes \u2612 No Edema \u2612 Yes \u2610 No", "Edema", PRESENT),
        ("Edema \u2612 Yes \u2612 No", "Edema", UNCERTAIN),
        # Doubt.
        ("Doubt pneumonia.", "Pneumonia", UNCERTAIN),
        ("I doubt that this is pneumonia.", "Pneumonia", UNCERTAIN),
        ("Pneumonia is doubted.", "Pneumonia", UNCERTAIN),
        ("Doubtful pneumonia.", "Pneumonia", UNCERTAIN),
        ("No doubt this is pneumonia.", "Pneumonia", PRESENT),
        ("Without any doubt pneumonia.", "Pneumonia", PRESENT),
        ("Unlikely pneumonia.", "Pneumonia", ABSENT),
        ("Opacity unlikely to represent pneumonia.", "Pneumonia", ABSENT),
        ("Opacity unlikely to represent pneumonia.", "Lung Opacity", PRESENT),
        # One clause is over, another begins.
        ("The effusion has resolved, the pneumothorax has increased.", "Pneumothorax", PRESENT),
        ("The effusion has resolved, the pneumothorax has increased.", "Pleural Effusion", ABSENT),
        ("The effusion has resolved, as has the pneumothorax.", "Pneumothorax", ABSENT),
        ("Effusion and edema have resolved and consolidation remains.", "Consolidation", PRESENT),
        # Headings without a colon, on one line.
        ("Indication Pneumonia Findings Clear lungs.", "Lung Opacity", ABSENT),
        ("History Cough Comparison None Findings Clear lungs Impression Small effusion.", "Pleural Effusion", PRESENT),
        ("INDICATION COUGH FINDINGS THE LUNGS ARE CLEAR IMPRESSION NORMAL", "Lung Opacity", ABSENT),
        # What was, and what is now.
        ("In comparison to the old study that showed a fracture, none is seen.", "Fracture", ABSENT),
        ("The last radiograph had shown edema, which persists.", "Edema", PRESENT),
        ("A large effusion has developed compared to the prior study.", "Pleural Effusion", PRESENT),
        # An addendum corrects the report.
        ("FINDINGS: No fracture. Edema.\nADDENDUM: There is a rib fracture.", "Fracture", PRESENT),
        ("FINDINGS: No fracture. Edema.\nADDENDUM: There is a rib fracture.", "Edema", PRESENT),
        ("Addendum: no fracture.\nFINDINGS: Rib fracture.", "Fracture", ABSENT),
        ("WET READ: Edema.", "Edema", PRESENT),
        ("Preliminary: right effusion. Final: no effusion.", "Pleural Effusion", ABSENT),
        ("PRELIM: Edema.\nFINAL READ: No edema.", "Edema", ABSENT),
        ("Preliminary: Edema. Attending over-read: No edema.", "Edema", ABSENT),
        ("Preliminary: Edema.", "Edema", PRESENT),
        # A structure that may be enlarged.
        *(
            (text, "Cardiomegaly", UNCERTAIN)
            for text in (
                *("The heart may be enlarged.", "Heart is possibly enlarged.", "Cardiac silhouette might be enlarged."),
                *("Heart size may be mildly increased.", "Heart size is hard to judge, but may be enlarged."),
                "Heart is difficult to assess but it is probably enlarged.",
            )
        ),
        ("The mediastinum may be widened.", "Enlarged Cardiomediastinum", UNCERTAIN),
        ("Heart is enlarged, which may be due to technique.", "Cardiomegaly", PRESENT),
        ("Heart size is hard to judge, but appears enlarged.", "Cardiomegaly", PRESENT),
        # Denied in other words.
        ("Absent pneumothorax.", "Pneumothorax", ABSENT),
        ("Absent lung markings on the right with a large pneumothorax.", "Pneumothorax", PRESENT),
        ("Effusion absent, pneumothorax present.", "Pneumothorax", PRESENT),
        ("I do not think there is an effusion.", "Pleural Effusion", ABSENT),
        ("We don't believe that this represents pneumonia.", "Pneumonia", ABSENT),
        ("I do not think there is any change in the effusion.", "Pleural Effusion", PRESENT),
        ("I do not believe the effusion has resolved.", "Pleural Effusion", PRESENT),
        ("Small effusion; I do not think there is edema.", "Pleural Effusion", PRESENT),
        ("Nothing to suggest pneumonia.", "Pneumonia", ABSENT),
        ("There is nothing to indicate edema.", "Edema", ABSENT),
        ("Nothing suspicious for infection; small effusion.", "Pneumonia", ABSENT),
        ("Nothing suspicious for infection; small effusion.", "Pleural Effusion", PRESENT),
        ("No consolid. or effusion.", "Consolidation", ABSENT),
        ("No consolid. or effusion.", "Pleural Effusion", ABSENT),
        ("No eff. and no ptx.", "Pneumothorax", ABSENT),
        ("No eff. Small pneumothorax.", "Pneumothorax", PRESENT),
        ("No pl. eff. or atelect.", "Pleural Effusion", ABSENT),
        ("The question of an effusion was raised; none is seen.", "Pleural Effusion", ABSENT),
        ("There is concern for fracture, but none is identified.", "Fracture", ABSENT),
        ("Pneumothorax was suspected; none is seen.", "Pneumothorax", ABSENT),
        ("Suspected effusion on the right; none is seen on the left.", "Pleural Effusion", UNCERTAIN),
        ("Devices - none.", "Support Devices", ABSENT),
        ("Medical devices: none", "Support Devices", ABSENT),
        # One of two.
        ("Findings represent either edema or infection.", "Edema", UNCERTAIN),
        ("Findings represent either edema or infection.", "Pneumonia", UNCERTAIN),
        ("The opacity is either atelectasis or pneumonia.", "Lung Opacity", PRESENT),
        ("No evidence of either edema or pneumonia.", "Edema", ABSENT),
        ("Effusion in either base with atelectasis or collapse.", "Atelectasis", PRESENT),
        # Gone, and not gone.
        ("The left effusion has been drained; no residual fluid.", "Pleural Effusion", ABSENT),
        ("The pneumothorax seen on the prior has been evacuated.", "Pneumothorax", ABSENT),
        ("The effusion has been partially drained.", "Pleural Effusion", PRESENT),
        ("The effusion has been drained with a small amount remaining.", "Pleural Effusion", PRESENT),
        ("The effusion has been drained, leaving atelectasis.", "Atelectasis", PRESENT),
        ("An effusion was present yesterday but is gone now.", "Pleural Effusion", ABSENT),
        ("A nodule was present on the prior film but is no longer visible.", "Lung Lesion", ABSENT),
        ("The pneumothorax persists but is no longer under tension.", "Pneumothorax", PRESENT),
        ("Cavitating lesion at the apex.", "Lung Lesion", PRESENT),
    ],
)
def test_status(text: str, name: str, status: Status) -> None:
    assert READER.read(text)[name].status is status


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("[x] Cardiomegaly [ ] Effusion [x] Edema", "Pleural Effusion"),
        ("\u2612 Effusion \u2610 Pneumothorax", "Pneumothorax"),
        ("", "No Finding"),
        ("Pericardial effusion.", "Pleural Effusion"),
        ("History of pneumonia.", "Pneumonia"),
        ("CT is more sensitive for detecting nodules.", "Lung Lesion"),
        ("INDICATION: pneumonia. FINDINGS: Pacemaker.", "Pneumonia"),
        ("COMPARISON: film with effusion.\nIMPRESSION: Pacemaker.", "Pleural Effusion"),
        ("Wet read: effusion.\nFindings: Pacemaker.", "Pleural Effusion"),
        ("A nodule was seen on the prior study.", "Lung Lesion"),
        ("Compared with the exam of May that demonstrated edema, a pacemaker is new.", "Edema"),
        ("Nodular opacities at the bases are nipple shadows.", "Lung Lesion"),
        ("Kein Pneumothorax.", "Pneumothorax"),
        ("Pneumonia? Nein.", "Pneumonia"),
        ("If edema is suspected, repeat the study.", "Edema"),
        *(
            (f"Pneumothorax{said}", "Pneumothorax")
            for said in (
                *(": not assessed.", ": N/A", ": n.a.", ": cannot be assessed", ": unknown", ": not well evaluated"),
                *(": unable to assess", ": not reported", ": pending", ": ___", ":", " cannot be assessed."),
                *(" is not assessed.", ": [ ] Yes [ ] No", " \u2610 Yes \u2610 No", ": limited assessment"),
            )
        ),
        ("Lines and tubes: not assessed", "Support Devices"),
        ("Pneumothorax or effusion cannot be assessed.", "Pneumothorax"),
        ("Indication Pneumonia Findings Clear lungs.", "Pneumonia"),
        ("INDICATION ABNORMAL FINDINGS ON CT PNEUMONIA", "Pneumonia"),
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
        ("LLL consolidation.", "Consolidation", Side.LEFT),
        ("Atelectasis in keeping with collapse in the left base.", "Atelectasis", Side.LEFT),
        ("Blunting of the right costophrenic angle, likely effusion.", "Pleural Effusion", Side.RIGHT),
        ("Small R effusion.", "Pleural Effusion", Side.RIGHT),
        ("Atelectasis (L).", "Atelectasis", Side.LEFT),
        ("Compression of L1, effusion.", "Pleural Effusion", None),
        ("Left opacity more extensive than right.", "Lung Opacity", Side.BILATERAL),
        ("Fluid in the right fissure.", "Pleural Effusion", Side.RIGHT),
        ("Effusion: yes, left.", "Pleural Effusion", Side.LEFT),
        ("Effusion: small, right", "Pleural Effusion", Side.RIGHT),
        ("Left basal volume loss in keeping with collapse.", "Atelectasis", Side.LEFT),
        ("Consolidation - absent; Effusion - present (R)", "Pleural Effusion", Side.RIGHT),
        ("Effusion - present on the left", "Pleural Effusion", Side.LEFT),
        ("Effusion (R): present", "Pleural Effusion", Side.RIGHT),
        ("The previously seen right effusion has resolved, the left has increased.", "Pleural Effusion", Side.LEFT),
        ("The right effusion has increased, the left has resolved.", "Pleural Effusion", Side.RIGHT),
        ("The left effusion has resolved and the right one is unchanged.", "Pleural Effusion", Side.RIGHT),
        ("The left effusion is small and the right is large.", "Pleural Effusion", Side.BILATERAL),
        ("No effusion on the left, but there is a small one on the right.", "Pleural Effusion", Side.RIGHT),
        ("No pneumothorax on the right; however, a small one is now seen on the left.", "Pneumothorax", Side.LEFT),
        ("No nodule on the left; one is seen on the right.", "Lung Lesion", Side.RIGHT),
        ("No left effusion; there is a moderate-sized one on the right.", "Pleural Effusion", Side.RIGHT),
        ("Small right effusion but none is seen on the left.", "Pleural Effusion", Side.RIGHT),
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
        ("Nil acute.", PRESENT),
        ("NAD", PRESENT),
        ("Unremarkable CXR.", PRESENT),
        ("Lungs clear. Nipple shadows.", PRESENT),
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


@pytest.mark.parametrize(
    "text",
    [
        "effusion" + " " * 300_000 + "left",
        "no left effusion and " * 10_000,
        "effusion: none " * 10_000,
        "effusion," * 20_000,
        "absence of " * 10_000,
        "prior study was " * 10_000,
        "?" * 100_000,
        "effusion [ ] yes " * 10_000,
        "effusion (r): present (" * 10_000,
        "the left effusion has resolved, the right " * 10_000,
        "pneumothorax or effusion, " * 10_000,
        "indication a findings " * 10_000,
        "effusion has been drained " * 10_000,
        "question of effusion, none " * 10_000,
        "heart may be but enlarged " * 10_000,
        "either mild edema either " * 10_000,
        "do not think the effusion " * 10_000,
        "Indication A Findings B " * 10_000,
    ],
)
def test_time_is_linear_in_the_length(text: str) -> None:
    started = time.process_time()
    READER.read(text)
    assert time.process_time() - started < 3


def test_a_report_in_another_language_is_said_to_be_not_read() -> None:
    with pytest.warns(UserWarning, match="not in English"):
        assert read_findings("Kein Pneumothorax.") == {}


def test_headings_map_to_observations() -> None:
    assert observations(["Opacity/lung/base/left", "Cardiomegaly/mild"]) == {"Lung Opacity", "Cardiomegaly"}
    assert observations(["Density/breast", "Granuloma/lung"]) == frozenset()


@pytest.mark.slow
def test_openi_macro_f1() -> None:
    references = read_references(archive())
    assert len(references) > 3000
    labels = list(READER.read_many(report.text for report in references))
    # Just under what docs/findings.md prints for all reports, in either definition.
    assert macro_f1(score(references, [positives(one) for one in labels])) >= 0.860
    assert macro_f1(score(references, [stated(one) for one in labels])) >= 0.907


@pytest.mark.parametrize("sentence", ["Kein Pneumothorax.", "Ohne Pneumothorax.", "Pas de pneumothorax.", "Sin edema."])
def test_a_denial_of_another_language_in_an_english_report(sentence: str) -> None:
    name = "Edema" if "edema" in sentence else "Pneumothorax"
    label = read_findings(f"The lungs are clear. {sentence} The heart is normal in size.").get(name)
    assert label is None or label.status is Status.ABSENT


@pytest.mark.parametrize(
    ("text", "name", "side"),
    [
        ("Lobar consolidation, RUL.", "Consolidation", Side.RIGHT),
        ("Effusion, on the left.", "Pleural Effusion", Side.LEFT),
        ("Bilat. lower lobe infiltrates.", "Lung Opacity", Side.BILATERAL),
        ("Effusion on the left has resolved, a small one on the right persists.", "Pleural Effusion", Side.RIGHT),
    ],
)
def test_sides_that_follow_or_are_cut_short(text: str, name: str, side: Side) -> None:
    assert READER.read(text)[name] == FindingLabel(PRESENT, side)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "FINDINGS:\nNo pneumothorax\nLarge right effusion\nHeart size normal",
            {"Pneumothorax": ABSENT, "Pleural Effusion": PRESENT, "Cardiomegaly": ABSENT},
        ),
        ("No pneumothorax\nCardiomegaly\nLeft effusion", {"Cardiomegaly": PRESENT, "Pleural Effusion": PRESENT}),
        ("Possible pneumonia\n  Large right effusion", {"Pneumonia": UNCERTAIN, "Pleural Effusion": PRESENT}),
        ("NO PNEUMOTHORAX\nLARGE RIGHT EFFUSION", {"Pneumothorax": ABSENT, "Pleural Effusion": PRESENT}),
        # A phrase goes on in the next line.
        ("No evidence of\nPneumothorax or effusion", {"Pneumothorax": ABSENT, "Pleural Effusion": ABSENT}),
        ("NO PNEUMOTHORAX OR\nPLEURAL EFFUSION", {"Pneumothorax": ABSENT, "Pleural Effusion": ABSENT}),
        ("No consolidation, effusion\nor pneumothorax", {"Pleural Effusion": ABSENT, "Pneumothorax": ABSENT}),
        ("Heart\nEnlarged\nLungs\nClear", {"Cardiomegaly": PRESENT}),
        # Lines of running text are long.
        (
            "There is no radiographic evidence today of a focal consolidation, edema\nPneumothorax or effusion.",
            {"Edema": ABSENT, "Pneumothorax": ABSENT, "Pleural Effusion": ABSENT},
        ),
    ],
)
def test_a_finding_a_line_without_full_stops(text: str, expected: dict[str, Status]) -> None:
    found = READER.read(text)
    assert {name: found[name].status for name in expected} == expected


_SIGNS = {PRESENT: "+", ABSENT: "-", UNCERTAIN: "?"}


def signed(text: str) -> set[str]:
    """All labels of a text but No Finding, as `-Pneumothorax` and `+Pleural Effusion left`."""
    labels = {name: label for name, label in READER.read(text).items() if name != "No Finding"}
    return {f"{_SIGNS[one.status]}{name}{f' {one.side.value}' if one.side else ''}" for name, one in labels.items()}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1.No pneumothorax.", {"-Pneumothorax"}),
        ("Lungs clear.No effusion.", {"-Lung Opacity", "-Consolidation", "-Pleural Effusion"}),
        ("Lungs are clear.No effusion.", {"-Consolidation", "-Lung Opacity", "-Pleural Effusion"}),
        ("Small effusion.No PTX.", {"-Pneumothorax", "+Pleural Effusion"}),
        ("\u2022No pneumothorax", {"-Pneumothorax"}),
        ("\u2022 No pneumothorax", {"-Pneumothorax"}),
        ("1.Normal heart.\n2.Clear lungs.", {"-Cardiomegaly", "-Lung Opacity", "-Consolidation"}),
        ("2.Left effusion.", {"+Pleural Effusion left"}),
        ("\u2022 No pneumothorax \u2022 Left effusion", {"-Pneumothorax", "+Pleural Effusion left"}),
        ("No effusion;no pneumothorax", {"-Pneumothorax", "-Pleural Effusion"}),
        ("1.No pneumothorax.2.Left effusion.", {"-Pneumothorax", "+Pleural Effusion left"}),
        ("IMPRESSION: 1.Left pneumothorax. 2.No effusion.", {"+Pneumothorax left", "-Pleural Effusion"}),
        ("IMPRESSION:1.Left pneumothorax 2.No effusion", {"+Pneumothorax left", "-Pleural Effusion"}),
        ("1)No pneumothorax 2)Left effusion", {"-Pneumothorax", "+Pleural Effusion left"}),
        ("(1)No pneumothorax", {"-Pneumothorax"}),
        ("No PTX.L effusion.", {"-Pneumothorax", "+Pleural Effusion left"}),
        (
            "Heart normal.No pneumothorax.No effusion.No consolidation.",
            {"-Cardiomegaly", "-Pneumothorax", "-Pleural Effusion", "-Consolidation"},
        ),
        (
            "Lungs clear.  No effusion.Heart normal in size.ETT in place.",
            {"-Cardiomegaly", "-Lung Opacity", "-Consolidation", "-Pleural Effusion", "+Support Devices"},
        ),
        ("Nodule of 1.5 cm in the left lung.", {"+Lung Lesion left"}),
        ("Left nodule measures 8 mm.No effusion.", {"+Lung Lesion left", "-Pleural Effusion"}),
        ("A 2.5 cm left nodule.", {"+Lung Lesion left"}),
        ("1.5 cm nodule in the right upper lobe.", {"+Lung Lesion right"}),
        ("Left effusion 3.5 cm deep, no pneumothorax.", {"+Pleural Effusion left", "-Pneumothorax"}),
        (".No pneumothorax", {"-Pneumothorax"}),
        ("1 .No effusion.", {"-Pleural Effusion"}),
        ("Nodule in segment 3.No effusion.", {"+Lung Lesion", "-Pleural Effusion"}),
        ("\u25aa Left effusion \u25aa No edema", {"+Pleural Effusion left", "-Edema"}),
        ("1. No pneumothorax, 2. Left effusion", {"-Pneumothorax", "+Pleural Effusion left"}),
    ],
)
def test_what_stands_without_a_blank_is_read(text: str, expected: set[str]) -> None:
    assert signed(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("No pneumothorax after right subclavian line placement.", {"-Pneumothorax", "+Support Devices right"}),
        ("No pneumothorax, PICC line in SVC.", {"-Pneumothorax", "+Support Devices"}),
        ("No pneumothorax with left pigtail catheter in place.", {"-Pneumothorax", "+Support Devices left"}),
        ("Pneumothorax resolved after chest tube placement.", {"-Pneumothorax", "+Support Devices"}),
        ("No pneumothorax, pacemaker leads in place.", {"-Pneumothorax", "+Support Devices"}),
        ("Without pneumothorax, the right chest tube remains in place.", {"-Pneumothorax", "+Support Devices right"}),
        ("No pneumothorax or other complication following PICC placement.", {"-Pneumothorax", "+Support Devices"}),
        (
            "There is no pneumothorax following placement of a left chest tube.",
            {"-Pneumothorax", "+Support Devices left"},
        ),
        ("No pneumothorax, effusion, or PICC line.", {"-Pneumothorax", "-Pleural Effusion", "-Support Devices"}),
        ("No pneumothorax or chest tube.", {"-Pneumothorax", "-Support Devices"}),
        ("No pneumothorax, chest tube, or effusion.", {"-Pneumothorax", "-Support Devices", "-Pleural Effusion"}),
        ("No pneumothorax following removal of chest tube.", {"-Pneumothorax", "-Support Devices"}),
        ("No pneumothorax after chest tube removal.", {"-Pneumothorax", "-Support Devices"}),
        ("No pneumothorax, chest tube has been removed.", {"-Pneumothorax", "-Support Devices"}),
        ("No pneumothorax status post chest tube removal.", {"-Pneumothorax", "-Support Devices"}),
        (
            "No focal consolidation, effusion, support device.",
            {"-Consolidation", "-Pleural Effusion", "-Support Devices"},
        ),
        ("No consolidation, pacemaker or effusion.", {"-Consolidation", "-Pleural Effusion", "-Support Devices"}),
        ("No pneumothorax and no chest tube.", {"-Pneumothorax", "-Support Devices"}),
        ("No pneumothorax, no chest tube.", {"-Pneumothorax", "-Support Devices"}),
        ("No effusion, no pneumothorax, no PICC.", {"-Pneumothorax", "-Pleural Effusion", "-Support Devices"}),
        (
            "No evidence of effusion, pneumothorax, fracture or catheter.",
            {"-Pleural Effusion", "-Pneumothorax", "-Fracture", "-Support Devices"},
        ),
        ("No chest tube, pneumothorax.", {"-Pneumothorax", "-Support Devices"}),
        ("No pneumothorax with chest tube clamped.", {"-Pneumothorax", "+Support Devices"}),
        ("No pneumothorax and no line.", {"-Pneumothorax"}),
        ("Small pneumothorax after chest tube removal.", {"+Pneumothorax", "-Support Devices"}),
        ("Right chest tube removal with small effusion.", {"-Support Devices", "+Pleural Effusion"}),
        (
            "No pneumothorax or effusion with right PICC in place.",
            {"-Pneumothorax", "-Pleural Effusion", "+Support Devices right"},
        ),
        ("No complication after pacemaker placement.", {"+Support Devices"}),
        ("No acute disease. Pacemaker in place.", {"+Support Devices"}),
        ("No acute process, PICC in the SVC.", {"+Support Devices"}),
        ("No PICC line in place.", {"-Support Devices"}),
        ("No pneumothorax and no chest tube in place.", {"-Pneumothorax", "-Support Devices"}),
        ("No pneumothorax, without chest tube in place.", {"-Pneumothorax", "-Support Devices"}),
        ("No pneumothorax or chest tube in place.", {"-Pneumothorax", "-Support Devices"}),
        ("No pneumothorax after placement of PICC and chest tube.", {"-Pneumothorax", "+Support Devices"}),
        (
            "No pneumothorax or effusion, with no chest tube in place.",
            {"-Pneumothorax", "-Pleural Effusion", "-Support Devices"},
        ),
        ("Pneumothorax is absent after PICC placement.", {"-Pneumothorax", "+Support Devices"}),
        ("Absence of a chest tube in place.", {"-Support Devices"}),
    ],
)
def test_a_device_beside_a_denied_finding_is_there(text: str, expected: set[str]) -> None:
    assert signed(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("No pneumothorax, possible small effusion.", {"-Pneumothorax", "?Pleural Effusion"}),
        ("No consolidation, likely atelectasis at left base.", {"-Consolidation", "?Atelectasis left"}),
        ("Unlikely to represent pneumonia, more likely atelectasis.", {"-Pneumonia", "?Atelectasis"}),
        ("No pneumothorax, instead a large effusion.", {"-Pneumothorax", "+Pleural Effusion"}),
        ("No acute findings besides small effusion.", {"+Pleural Effusion"}),
        ("No pneumothorax, cannot exclude small effusion.", {"-Pneumothorax", "?Pleural Effusion"}),
        ("No edema, only small effusions.", {"-Edema", "+Pleural Effusion"}),
        ("No edema, just atelectasis.", {"-Edema", "+Atelectasis"}),
        ("No pneumothorax, probable left effusion.", {"-Pneumothorax", "?Pleural Effusion left"}),
        ("No consolidation, suspected nodule in the left lung.", {"-Consolidation", "?Lung Lesion left"}),
        ("No likely pneumonia.", {"-Pneumonia"}),
        ("No consolidation to suggest pneumonia.", {"-Consolidation", "-Pneumonia"}),
        ("No findings suspicious for pneumonia.", {"-Pneumonia"}),
        ("No suspected pneumonia.", {"-Pneumonia"}),
        ("No pneumonia or possible effusion.", {"-Pneumonia", "-Pleural Effusion"}),
        ("No evidence of probable pneumonia.", {"-Pneumonia"}),
        ("No acute or chronic fracture.", {"-Fracture"}),
        ("No edema or persistent effusion.", {"-Edema", "-Pleural Effusion"}),
        ("No persistent pneumothorax.", {"-Pneumothorax"}),
        ("Without persistent effusion.", {"-Pleural Effusion"}),
        ("No evidence of persistent pneumothorax.", {"-Pneumothorax"}),
        ("No mild or moderate edema.", {"-Edema"}),
        ("No residual or persistent pneumothorax.", {"-Pneumothorax"}),
        ("No stable or new nodule.", {"-Lung Lesion"}),
        ("No definite persistent pneumothorax.", {"-Pneumothorax"}),
        ("No pneumothorax, stable cardiomegaly.", {"-Pneumothorax", "+Cardiomegaly"}),
        ("No new consolidation, mild edema.", {"-Consolidation", "+Edema"}),
        ("No effusion and only mild atelectasis.", {"-Pleural Effusion", "+Atelectasis"}),
        ("No acute process, likely chronic interstitial opacities.", {"?Lung Opacity"}),
        ("No acute fracture, old rib fractures.", {"+Fracture"}),
        ("No pneumothorax identified, likely resolved.", {"-Pneumothorax"}),
        ("No focal opacity, suspected infection not excluded.", {"-Lung Opacity", "?Pneumonia"}),
        ("No pneumothorax or effusion, likely due to resolution.", {"-Pneumothorax", "-Pleural Effusion"}),
        ("Not only an effusion, but a pneumothorax.", {"+Pleural Effusion", "+Pneumothorax"}),
        ("There is no pneumothorax, only a skin fold.", {"-Pneumothorax"}),
        ("No change, likely pneumonia.", {"?Pneumonia"}),
        ("No chronic fracture.", {"-Fracture"}),
        ("No old fractures.", {"-Fracture"}),
        ("No healed rib fracture.", {"-Fracture"}),
        ("Pneumothorax is not seen, possible small effusion.", {"-Pneumothorax", "?Pleural Effusion"}),
        (
            "Lungs are clear, no effusion is seen, likely mild cardiomegaly.",
            {"-Lung Opacity", "-Consolidation", "-Pleural Effusion", "?Cardiomegaly"},
        ),
        ("The effusion has likely resolved.", {"-Pleural Effusion"}),
        ("Suspected pneumothorax is not seen.", {"-Pneumothorax"}),
        (
            "No effusion, edema, or pneumothorax, possible nodule.",
            {"-Pleural Effusion", "-Edema", "-Pneumothorax", "?Lung Lesion"},
        ),
        ("No effusion or possible pneumonia.", {"-Pleural Effusion", "-Pneumonia"}),
        ("No effusion and no likely pneumonia.", {"-Pleural Effusion", "-Pneumonia"}),
        ("No pneumonia to likely explain symptoms, no effusion.", {"-Pneumonia", "-Pleural Effusion"}),
        ("Pneumothorax is not seen, small left effusion.", {"-Pneumothorax", "+Pleural Effusion left"}),
        ("Pneumothorax has resolved, small left effusion.", {"-Pneumothorax", "+Pleural Effusion left"}),
        ("Pneumothorax is not seen, persistent effusion or edema", {"-Pneumothorax", "+Pleural Effusion", "+Edema"}),
        ("Pneumothorax is no longer seen, with small effusion.", {"-Pneumothorax", "+Pleural Effusion"}),
        ("Effusion is not seen in the left, right or both lungs.", {"-Pleural Effusion"}),
        ("The chest tube has been removed, small pneumothorax.", {"-Support Devices", "+Pneumothorax"}),
        ("The edema has cleared, the effusion has cleared.", {"-Edema", "-Pleural Effusion"}),
        ("The edema has cleared, large effusion has also resolved.", {"-Edema", "-Pleural Effusion"}),
    ],
)
def test_what_a_denial_extends_over(text: str, expected: set[str]) -> None:
    assert signed(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Pneumonia may be present.", {"?Pneumonia"}),
        ("Small effusion could be present.", {"?Pleural Effusion"}),
        ("A trace left effusion may persist.", {"?Pleural Effusion left"}),
        ("Left effusion might be seen.", {"?Pleural Effusion left"}),
        ("Pneumothorax is not definitely seen.", {"-Pneumothorax"}),
        ("Pneumothorax is not clearly identified.", {"-Pneumothorax"}),
        ("Left effusion not definitely seen.", {"-Pleural Effusion"}),
        ("Fracture is not definitively identified.", {"-Fracture"}),
        ("Previously described pneumothorax is not clearly visualized on the current study.", {"-Pneumothorax"}),
        ("Left effusion is smaller, the right is not clearly seen.", {"+Pleural Effusion bilateral"}),
        ("The pneumothorax is not as well seen.", {"+Pneumothorax"}),
        ("The effusion has decreased and is not definitely seen.", {"+Pleural Effusion"}),
        ("The tip of the PICC is not clearly seen.", {"+Support Devices"}),
        ("The left heart border is not clearly seen.", set()),
        ("Edema may have increased.", {"?Edema"}),
        ("Small left effusion may be present. Heart is enlarged.", {"?Pleural Effusion left", "+Cardiomegaly"}),
        (
            "Effusion may also be present in the right lung, no pneumothorax.",
            {"?Pleural Effusion right", "-Pneumothorax"},
        ),
        ("No pneumothorax may be seen.", {"-Pneumothorax"}),
        ("Cardiomegaly and edema may be present.", {"?Cardiomegaly", "?Edema"}),
        ("Effusions may be due to edema.", {"+Pleural Effusion", "?Edema"}),
        ("The left hemidiaphragm is not clearly seen, possibly due to effusion.", {"?Pleural Effusion left"}),
        ("The left costophrenic angle is not clearly seen due to effusion.", {"+Pleural Effusion left"}),
        ("The left base is not well seen because of effusion.", {"+Pleural Effusion left"}),
    ],
)
def test_may_be_present_and_not_clearly_seen(text: str, expected: set[str]) -> None:
    assert signed(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "Interval removal of right chest tube with small residual apical pneumothorax.",
            {"-Support Devices", "+Pneumothorax"},
        ),
        (
            "After removal of the right pigtail catheter, small pneumothorax is present.",
            {"-Support Devices", "+Pneumothorax"},
        ),
        (
            "Interval resolution of left pneumothorax and new right effusion.",
            {"-Pneumothorax", "+Pleural Effusion right"},
        ),
        ("Edema has resolved, with small effusions remaining.", {"-Edema", "+Pleural Effusion"}),
        ("Resolved left pneumonia with residual scarring and small effusion.", {"-Pneumonia", "+Pleural Effusion"}),
        (
            "Following removal of the chest tube, there is a small right pneumothorax.",
            {"-Support Devices", "+Pneumothorax right"},
        ),
        ("Removal of the NG tube and ET tube.", {"-Support Devices"}),
        ("Removal of the chest tube, and resolution of the effusion.", {"-Support Devices", "-Pleural Effusion"}),
        ("Resolution of edema and effusions.", {"-Edema", "-Pleural Effusion"}),
        ("Resolution of edema with small effusions remaining.", {"-Edema", "+Pleural Effusion"}),
        ("Interval removal of the chest tube without pneumothorax.", {"-Support Devices", "-Pneumothorax"}),
        ("After removal of the chest tube, no pneumothorax.", {"-Support Devices", "-Pneumothorax"}),
        ("Since removal of the chest tube, pneumothorax has increased.", {"-Support Devices", "+Pneumothorax"}),
        ("Interval removal of right chest tube, with no residual pneumothorax.", {"-Support Devices", "-Pneumothorax"}),
        ("Removal of the left and right chest tubes.", {"-Support Devices"}),
        ("Status post removal of the PICC, no pneumothorax.", {"-Support Devices", "-Pneumothorax"}),
        ("Edema has cleared and small effusions are gone.", {"-Edema", "-Pleural Effusion"}),
        ("Resolution of pneumothorax and increasing effusion.", {"-Pneumothorax", "+Pleural Effusion"}),
    ],
)
def test_what_a_removal_or_resolution_extends_over(text: str, expected: set[str]) -> None:
    assert signed(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Atelectasis at the right base and effusion on the left.", {"+Atelectasis right", "+Pleural Effusion left"}),
        ("Opacity in the right lung and effusion on the left.", {"+Lung Opacity right", "+Pleural Effusion left"}),
        ("Nodule in the left lung and right effusion.", {"+Lung Lesion left", "+Pleural Effusion right"}),
        ("Left effusion and atelectasis at the right base.", {"+Pleural Effusion left", "+Atelectasis right"}),
        ("Left effusion and right atelectasis.", {"+Pleural Effusion left", "+Atelectasis right"}),
        ("Atelectasis and effusion on the left.", {"+Atelectasis left", "+Pleural Effusion left"}),
        (
            "Atelectasis in the right and left base and effusion.",
            {"+Atelectasis bilateral", "+Pleural Effusion bilateral"},
        ),
        ("Effusion at the right and opacity at the left lung base.", {"+Pleural Effusion right", "+Lung Opacity left"}),
        ("Opacity at the left base and small effusion.", {"+Lung Opacity left", "+Pleural Effusion left"}),
        ("Effusion on the right and left.", {"+Pleural Effusion bilateral"}),
        (
            "Consolidation within the left upper lobe and nodule in the right lower lobe.",
            {"+Consolidation left", "+Lung Lesion right"},
        ),
        (
            "Opacity of the left base and right apex and effusion.",
            {"+Lung Opacity bilateral", "+Pleural Effusion bilateral"},
        ),
        ("Opacity on the left and pneumothorax.", {"+Lung Opacity left", "+Pneumothorax left"}),
    ],
)
def test_sides_across_and(text: str, expected: set[str]) -> None:
    assert signed(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "Clinical history: cough.\nModerate cardiomegaly. Large left effusion.",
            {"+Cardiomegaly", "+Pleural Effusion left"},
        ),
        (
            "Clinical history: cough.\nThe heart is normal. The lungs are clear. No effusion.",
            {"-Cardiomegaly", "-Lung Opacity", "-Consolidation", "-Pleural Effusion"},
        ),
        ("Clinical details: SOB\nHeart enlarged. Small left effusion.", {"+Cardiomegaly", "+Pleural Effusion left"}),
        (
            "INDICATION: Cough.\nPA and lateral chest. Lungs are clear. Heart is enlarged.",
            {"-Lung Opacity", "-Consolidation", "+Cardiomegaly"},
        ),
        (
            "XR CHEST PA AND LATERAL\nHISTORY: Cough.\nThe lungs are clear. The heart is enlarged.",
            {"-Lung Opacity", "-Consolidation", "+Cardiomegaly"},
        ),
        (
            "COMPARISON: CT from 3/4/21\nINDICATION: Cough\nThe lungs are clear.  The heart is enlarged.",
            {"-Lung Opacity", "-Consolidation", "+Cardiomegaly"},
        ),
        (
            "Reason: dyspnea.\nModerate cardiomegaly. Bilateral effusions.",
            {"+Cardiomegaly", "+Pleural Effusion bilateral"},
        ),
        ("INDICATION: 60 year old man with known effusion and\nPneumonia.", set()),
        ("INDICATION: Effusion, edema,\nPneumonia.", set()),
        ("INDICATION: evaluate for\neffusion.", set()),
        ("Clinical history:\nEffusion.", set()),
        ("Lungs are clear.\nHISTORY: Cough.\nEffusion.", {"-Lung Opacity", "-Consolidation"}),
        ("HISTORY: Cough.\nEffusion.\nIMPRESSION: Edema.", {"+Edema"}),
        ("FINDINGS: No edema.\nRECOMMENDATION: CT.\nEffusion at follow-up.", {"-Edema"}),
        ("INDICATION: cough; pneumonia\n60 year old with effusion", set()),
    ],
)
def test_an_aside_that_nothing_ends_is_one_line(text: str, expected: set[str]) -> None:
    assert signed(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("small effusion\nno pneumothorax\ncardiomegaly", {"+Pleural Effusion", "-Pneumothorax", "+Cardiomegaly"}),
        (
            "lungs clear\nno effusion\nheart enlarged",
            {"-Lung Opacity", "-Consolidation", "-Pleural Effusion", "+Cardiomegaly"},
        ),
        ("no effusion\nheart enlarged\npacemaker in place", {"-Pleural Effusion", "+Cardiomegaly", "+Support Devices"}),
        ("no pneumothorax\nleft effusion", {"-Pneumothorax", "+Pleural Effusion left"}),
        ("no acute disease\nleft rib fractures", {"+Fracture left"}),
        (
            "No pneumothorax or consolidation\nleft effusion small",
            {"-Pneumothorax", "-Consolidation", "-Pleural Effusion"},
        ),
        ("no focal consolidation\nor effusion", {"-Consolidation", "-Pleural Effusion"}),
        ("no evidence of\npneumothorax", {"-Pneumothorax"}),
        ("no pneumothorax,\neffusion or edema", {"-Pneumothorax", "-Pleural Effusion", "-Edema"}),
        ("no focal\nconsolidation", {"-Consolidation"}),
        ("no pneumothorax or large\neffusion", {"-Pneumothorax", "-Pleural Effusion"}),
        ("no consolidation, effusion\npneumothorax", {"-Consolidation", "-Pleural Effusion", "+Pneumothorax"}),
        ("possible pneumonia\nsmall effusion", {"?Pneumonia", "+Pleural Effusion"}),
        (
            "there is no focal consolidation, effusion or evidence of acute\npneumothorax",
            {"-Consolidation", "-Pleural Effusion", "-Pneumothorax"},
        ),
        (
            "no acute consolidation, effusion or\npneumothorax. the heart is\nenlarged.",
            {"-Consolidation", "-Pleural Effusion", "-Pneumothorax", "+Cardiomegaly"},
        ),
        ("no consolidation. small left\neffusion.", {"-Consolidation", "+Pleural Effusion left"}),
        ("no pleural\neffusion.", {"-Pleural Effusion"}),
        ("no pneumothorax\nis seen", {"-Pneumothorax"}),
    ],
)
def test_a_finding_a_line_without_capitals(text: str, expected: set[str]) -> None:
    assert signed(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Right IJ line in place.", {"+Support Devices right"}),
        ("Right IJ in standard position.", {"+Support Devices right"}),
        ("Left IJ with tip in SVC.", {"+Support Devices left"}),
        ("Lines: Right IJ.", {"+Support Devices right"}),
        ("Trach in place.", {"+Support Devices"}),
        ("PPM in situ.", {"+Support Devices"}),
        ("Left sided PPM.", {"+Support Devices left"}),
        ("Right internal jugular introducer sheath.", {"+Support Devices right"}),
        ("Right IJ Cordis.", {"+Support Devices right"}),
        ("Dialysis line with tip in the right atrium.", {"+Support Devices"}),
        ("Biventricular device.", {"+Support Devices"}),
        ("Prominent superior vena cava.", set()),
        ("SVC syndrome.", set()),
        ("Superior vena cava syndrome.", set()),
        ("The superior vena cava is prominent.", set()),
        ("Dilated SVC.", set()),
        ("PICC tip in the SVC.", {"+Support Devices"}),
        ("Tip in the superior vena cava.", {"+Support Devices"}),
        ("Right sided line terminating in the SVC.", {"+Support Devices right"}),
        ("Tip projects over the lower SVC.", {"+Support Devices"}),
        ("Multiorgan failure.", set()),
        ("Nasal congestion.", set()),
        ("Nasal congestion and cough, no pneumonia.", {"-Pneumonia"}),
        ("Congestion.", {"+Edema"}),
        ("Urinary tract infection.", set()),
        ("UTI.", set()),
        ("Atelectasis instead of pneumonia.", {"+Atelectasis", "-Pneumonia"}),
        ("Atelectasis as opposed to pneumonia.", {"+Atelectasis", "-Pneumonia"}),
        ("Tracheostomy in place.", {"+Support Devices"}),
        ("Hepatic failure.", set()),
        ("Multi-organ failure.", set()),
        ("Right IJ has been removed.", {"-Support Devices"}),
        ("No IJ line.", {"-Support Devices"}),
        ("Muscle mass is low.", set()),
    ],
)
def test_devices_and_what_is_none(text: str, expected: set[str]) -> None:
    assert signed(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("History of CHF, now with pulmonary edema.", {"+Edema"}),
        ("History of COPD presenting with new left pneumothorax.", {"+Pneumothorax left"}),
        ("History of breast cancer, with small right effusion.", {"+Pleural Effusion right"}),
        ("History of pneumonia.", set()),
        ("History of CHF with edema.", set()),
        ("History of CHF and pneumonia.", set()),
        ("Patient with history of CHF, now with worsening effusion.", {"+Pleural Effusion"}),
        ("History of pneumonia, now resolved.", set()),
        ("History of pneumothorax, rule out effusion.", set()),
        ("History of lung cancer, now presenting with cough, rule out pneumonia.", set()),
        ("History of effusion now with cough.", set()),
        ("Evaluate for effusion, now with cough and pneumonia.", set()),
        ("Pneumonia: unlikely.", {"-Pneumonia"}),
        ("Pneumothorax, none.", {"-Pneumothorax"}),
        ("Effusion, small left. PTX, none.", {"+Pleural Effusion left", "-Pneumothorax"}),
        ("No persistent pneumothorax.", {"-Pneumothorax"}),
        ("Pleural effusion: none on the left, small on the right", {"+Pleural Effusion right"}),
        ("Pleural effusion: none on the right, small on the left.", {"+Pleural Effusion left"}),
        ("PTX: Not seen on right, small on left.", {"+Pneumothorax left"}),
        ("Effusion: small on right, none on left", {"+Pleural Effusion right"}),
        ("Edema +, effusion -", {"+Edema", "-Pleural Effusion"}),
        ("Pneumonia: unlikely. Edema: likely.", {"-Pneumonia", "?Edema"}),
        ("PTX: not definitely seen", {"-Pneumothorax"}),
        ("Effusion +.", {"+Pleural Effusion"}),
        ("Pneumothorax -, effusion +, consolidation -", {"-Pneumothorax", "+Pleural Effusion", "-Consolidation"}),
        ("Effusion: none, PTX: none", {"-Pleural Effusion", "-Pneumothorax"}),
        ("Pleural effusion: none.", {"-Pleural Effusion"}),
        ("Edema +/- effusion.", {"+Edema", "?Pleural Effusion"}),
        ("Opacities +/- atelectasis.", {"+Lung Opacity", "?Atelectasis"}),
        ("Effusion, none large.", {"+Pleural Effusion"}),
        ("Pneumothorax; none.", {"-Pneumothorax"}),
        ("Pneumothorax - small.", {"+Pneumothorax"}),
        ("PTX no", {"-Pneumothorax"}),
        ("Effusion none, pneumothorax none", {"-Pleural Effusion", "-Pneumothorax"}),
        ("Pleural effusion: none on the left, none on the right.", {"-Pleural Effusion"}),
        ("Pleural effusion: none on the left.", {"-Pleural Effusion"}),
        ("No effusion, none.", {"-Pleural Effusion"}),
        ("No effusion or pneumothorax, none.", {"-Pleural Effusion", "-Pneumothorax"}),
        ("Fracture, no displaced rib.", {"+Fracture"}),
    ],
)
def test_history_with_something_new_and_short_answers(text: str, expected: set[str]) -> None:
    assert signed(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "Bibasilar opacities most likely reflect atelectasis, with small bilateral effusions.",
            {"+Lung Opacity bilateral", "?Atelectasis bilateral", "+Pleural Effusion bilateral"},
        ),
        ("There may be a small left effusion, and there is cardiomegaly.", {"?Pleural Effusion left", "+Cardiomegaly"}),
        (
            "Possible left lower lobe pneumonia with small right effusion.",
            {"?Pneumonia left", "+Pleural Effusion right"},
        ),
        (
            "Mild pulmonary edema, likely cardiogenic, with bilateral effusions and cardiomegaly.",
            {"+Edema", "+Pleural Effusion bilateral", "+Cardiomegaly"},
        ),
        ("Possible pneumonia with new effusion.", {"?Pneumonia", "+Pleural Effusion"}),
        ("Likely mild edema with small effusions.", {"?Edema", "+Pleural Effusion"}),
        ("Question of pneumonia with unchanged cardiomegaly.", {"?Pneumonia", "+Cardiomegaly"}),
        ("Possible effusion, and there are left rib fractures.", {"?Pleural Effusion", "+Fracture left"}),
        ("Possible effusion with mild atelectasis.", {"?Pleural Effusion", "+Atelectasis"}),
        ("Suspicious for pneumonia with large effusion or empyema.", {"?Pneumonia", "?Pleural Effusion"}),
        ("This may be edema with superimposed pneumonia.", {"?Edema", "?Pneumonia"}),
        ("It is possible that there is a pneumothorax.", {"?Pneumothorax"}),
        ("It is suspected that there are effusions.", {"?Pleural Effusion"}),
        (
            "There may be atelectasis or pneumonia with small effusion.",
            {"?Atelectasis", "?Pneumonia", "+Pleural Effusion"},
        ),
        ("Cannot exclude that there is a small pneumothorax.", {"?Pneumothorax"}),
        ("Question whether there is edema.", {"?Edema"}),
    ],
)
def test_what_a_hedge_extends_over(text: str, expected: set[str]) -> None:
    assert signed(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Pneumothorax has resolved, small left effusion is seen.", {"-Pneumothorax", "+Pleural Effusion left"}),
        (
            "Lungs clear.No effusion.Dr Smith informed.No PTX.",
            {"-Lung Opacity", "-Consolidation", "-Pleural Effusion", "-Pneumothorax"},
        ),
        ("Edema +, effusion -, ptx -", {"+Edema", "-Pleural Effusion", "-Pneumothorax"}),
        ("No pneumothorax or pleural effusion.", {"-Pneumothorax", "-Pleural Effusion"}),
        (
            "There is no evidence of pneumothorax, pneumonia, pleural effusion, or edema.",
            {"-Pneumothorax", "-Pneumonia", "-Pleural Effusion", "-Edema"},
        ),
        (
            "No focal consolidation, pleural effusion, or pneumothorax is definitely seen.",
            {"-Consolidation", "-Pleural Effusion", "-Pneumothorax"},
        ),
        ("No pneumothorax is clearly seen.", {"-Pneumothorax"}),
        ("No acute cardiopulmonary process, mild cardiomegaly.", {"+Cardiomegaly"}),
        (
            "The lungs are clear without effusion, pneumothorax or likely infection.",
            {"-Lung Opacity", "-Consolidation", "-Pleural Effusion", "-Pneumothorax", "-Pneumonia"},
        ),
        ("No acute pulmonary disease is suspected.", set()),
        ("No pneumonia suspected.", {"-Pneumonia"}),
        ("No effusion likely.", {"-Pleural Effusion"}),
        ("Pneumonia is not likely.", {"-Pneumonia"}),
        ("Heart size is likely normal.", {"-Cardiomegaly"}),
        ("No pulmonary edema, only borderline heart size.", {"-Edema", "?Cardiomegaly"}),
        ("Only small effusions.", {"+Pleural Effusion"}),
        ("Possible small pneumothorax, no effusion.", {"?Pneumothorax", "-Pleural Effusion"}),
        ("No pneumothorax with the left lung base excluded.", {"-Pneumothorax"}),
        ("Effusion may be present but is not clearly seen.", {"?Pleural Effusion"}),
        ("Lungs are clear with mild cardiomegaly.", {"-Lung Opacity", "-Consolidation", "+Cardiomegaly"}),
        ("There are no effusions and there is no pneumothorax.", {"-Pleural Effusion", "-Pneumothorax"}),
        ("No effusion, there is cardiomegaly.", {"-Pleural Effusion", "+Cardiomegaly"}),
        ("If there is pneumonia, there is no effusion.", {"-Pleural Effusion"}),
        ("No evidence of pneumothorax, status post placement of a chest tube.", {"-Pneumothorax", "+Support Devices"}),
        (
            "No pneumothorax after removal of the left chest tube and right chest tube in place.",
            {"-Pneumothorax", "+Support Devices right"},
        ),
        ("The tube has been removed, left PICC remains.", {"+Support Devices left"}),
        ("Nodule on the left, and the right lung is clear.", {"+Lung Lesion left", "-Lung Opacity", "-Consolidation"}),
        ("No consolidation in the left lung and no effusion on the right.", {"-Consolidation", "-Pleural Effusion"}),
        ("Atelectasis at the bases and left effusion.", {"+Atelectasis bilateral", "+Pleural Effusion left"}),
        ("Opacity in the right upper lobe and left lower lobe.", {"+Lung Opacity bilateral"}),
        (
            "Opacities in the right upper lobe and left lower lobe, and effusion on the left.",
            {"+Lung Opacity bilateral", "+Pleural Effusion left"},
        ),
        ("Right upper lobe opacity and left effusion.", {"+Lung Opacity right", "+Pleural Effusion left"}),
        (
            "Consolidation in the left lower lobe and small adjacent effusion.",
            {"+Consolidation left", "+Pleural Effusion left"},
        ),
        (
            "Consolidation in the left lower lobe and bilateral effusions.",
            {"+Consolidation left", "+Pleural Effusion bilateral"},
        ),
        ("Findings may represent edema with small bilateral effusions.", {"?Edema", "+Pleural Effusion bilateral"}),
        ("Possible infiltrate with small effusion cannot be excluded.", {"?Lung Opacity", "?Pleural Effusion"}),
        (
            "Hazy opacity may represent effusion with persistent atelectasis or pneumonia.",
            {"+Lung Opacity", "?Pleural Effusion", "?Atelectasis", "?Pneumonia"},
        ),
        ("Removal of the right IJ catheter and placement of a left PICC.", {"+Support Devices left"}),
        ("Interval removal of NG tube with ET tube unchanged.", {"+Support Devices"}),
        ("Interval removal of endotracheal tube with new right IJ catheter.", {"+Support Devices right"}),
        ("Resolution of the right effusion with persistent left effusion.", {"+Pleural Effusion left"}),
        ("No effusion, consolidation - heart normal.", {"-Pleural Effusion", "-Consolidation", "-Cardiomegaly"}),
        ("History of asthma, now has pneumonia.", {"+Pneumonia"}),
        ("Prior history of effusion with new cough.", set()),
        ("Cardiomegaly no, effusion no.", {"-Cardiomegaly", "-Pleural Effusion"}),
        ("Right hip fracture, none in the chest.", {"+Fracture right"}),
        ("Possible left pneumonia with mild edema.", {"?Pneumonia left", "?Edema left"}),
        ("Left opacity with small effusion.", {"+Lung Opacity left", "+Pleural Effusion left"}),
        ("No consolidation with small effusion.", {"-Consolidation", "+Pleural Effusion"}),
        ("No pneumothorax with small effusion or edema.", {"-Pneumothorax", "-Pleural Effusion", "-Edema"}),
        ("Pneumothorax is unlikely with small effusion.", {"-Pneumothorax", "+Pleural Effusion"}),
        ("No evidence of CHF with bilateral effusions.", {"-Edema", "+Pleural Effusion bilateral"}),
    ],
)
def test_sentences_like_these(text: str, expected: set[str]) -> None:
    assert signed(text) == expected
