"""Each public data set in a tiny twin of its layout: what is read of an image against the rows of its own tables."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cxrsynth.errors import ReportsError, ShardError
from cxrsynth.images.collection import Collection, open_collection
from cxrsynth.images.image import Radiograph
from cxrsynth.reports.labels import OBSERVATIONS
from tests.images.making import dicom_of, encoded, levels, member, read_all, tar_of, write


def images_at(root: Path, *names: str) -> None:
    for place, name in enumerate(names):
        is_jpeg = name.endswith(("jpg", "jpeg"))
        picture = levels(place)
        write(root / name, dicom_of(picture) if "." not in name else encoded(picture, "JPEG" if is_jpeg else "PNG"))


def gz(path: Path, *lines: str) -> None:
    write(path, gzip.compress(("\n".join(lines) + "\n").encode()))


def csv(path: Path, *lines: str) -> None:
    write(path, "\n".join(lines) + "\n")


def opened(root: Path, split: str | None = None) -> tuple[Collection, dict[str, Radiograph]]:
    collection = open_collection(root, split=split)
    found, damaged = read_all(collection)
    assert damaged == []
    return collection, {one.key: one for one in found}


def labels(one: Radiograph) -> dict[str, str]:
    return {} if one.report is None else {name: str(label.status) for name, label in one.report.labels.items()}


def subject(one: Radiograph) -> tuple[str, str | None, str | None, float | None]:
    """Patient, view, sex, age."""
    assert one.report is not None
    return one.patient, one.report.view, one.report.sex, one.report.age_years


# MIMIC-CXR-JPG

MIMIC_NAMES = [
    "files/p10/p10000032/s50414267/02aa804e-bde0afdd-112c0b34-7bc16630-4e384014.jpg",
    "files/p10/p10000032/s50414267/174413ec-4ec4c1f7-34ea26b7-c5f994f8-79ef1962.jpg",
    "files/p10/p10000764/s57375967/096052b7-d256dc40-453a102b-fa7d01c6-1b22c6b4.jpg",
    "files/p11/p11000011/s51029426/2dbb57a9-d8f2d1a4-1d0e3ae4-9e4a9d8c-0d4f39a3.jpg",
]
MIMIC_OBSERVATIONS = sorted(OBSERVATIONS)


def chexpert_row(subject_id: str, study: str, **values: str) -> str:
    named = {name.replace("_", " "): value for name, value in values.items()}
    return ",".join([subject_id, study, *(named.get(name, "") for name in MIMIC_OBSERVATIONS)])


def mimic(root: Path) -> Path:
    images_at(root, *MIMIC_NAMES)
    ids = [Path(name).stem for name in MIMIC_NAMES]
    studies = ["50414267", "50414267", "57375967", "51029426"]
    subjects = ["10000032", "10000032", "10000764", "11000011"]
    views = ["PA", "LATERAL", "AP", "LL"]
    splits = ["train", "train", "validate", "test"]
    columns = "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns,StudyDate"
    rows = zip(ids, subjects, studies, views, splits, strict=True)
    described, split = [columns], ["dicom_id,study_id,subject_id,split"]
    for image, patient, study, view, part in rows:
        described.append(f"{image},{patient},{study},CHEST (PA AND LAT),{view},3056,2544,21800506")
        split.append(f"{image},{study},{patient},{part}")
    gz(root / "mimic-cxr-2.0.0-metadata.csv.gz", *described)
    gz(root / "mimic-cxr-2.0.0-split.csv.gz", *split)
    gz(
        root / "mimic-cxr-2.0.0-chexpert.csv.gz",
        ",".join(["subject_id", "study_id", *MIMIC_OBSERVATIONS]),
        chexpert_row("10000032", "50414267", Edema="1.0", Pneumonia="-1.0", Pneumothorax="0.0"),
        chexpert_row("10000764", "57375967", No_Finding="1.0"),
        chexpert_row("11000011", "51029426"),
    )
    return root


def test_mimic(tmp_path: Path) -> None:
    collection, found = opened(mimic(tmp_path / "mimic"))
    first, lateral, ap, third = (found[name] for name in MIMIC_NAMES)
    assert [subject(one)[:2] for one in (first, lateral, ap, third)] == [
        ("10000032", "PA"),
        ("10000032", "LATERAL"),
        ("10000764", "AP"),
        ("11000011", "LATERAL"),
    ]
    assert labels(first) == {"Edema": "present", "Pneumonia": "uncertain", "Pneumothorax": "absent"}
    assert labels(lateral) == labels(first)
    assert labels(ap) == {"No Finding": "present"}
    assert labels(third) == {}  # nothing is mentioned, so nothing is absent
    layout = collection.layout
    assert layout is not None
    assert (layout.name, layout.missing, layout.caveats) == ("MIMIC-CXR-JPG", (), [])
    assert layout.splits == {"test": 1, "train": 2, "val": 1}
    assert list(layout.tables) == [f"mimic-cxr-2.0.0-{part}.csv.gz" for part in ("metadata", "chexpert", "split")]
    assert collection.described == (4, 4)


def test_mimics_reports_lie_beside_its_studies(tmp_path: Path) -> None:
    root = mimic(tmp_path / "mimic")
    text = "FINAL REPORT\n FINDINGS: There is a large left pleural effusion.\n IMPRESSION: Left effusion.\n"
    collection = open_collection(root)
    before = collection.digest_of(collection.units[0])
    write(root / "files/p10/p10000032/s50414267.txt", text)
    collection, found = opened(root)
    first = found[MIMIC_NAMES[0]]
    assert first.report is not None
    assert first.report.full_text == text.strip()
    # The table's labels stay as they are; the text adds what it says besides.
    assert labels(first) | {"Edema": "present", "Pneumonia": "uncertain", "Pneumothorax": "absent"} == labels(first)
    assert labels(first)["Pleural Effusion"] == "present"
    assert found[MIMIC_NAMES[2]].report is not None
    assert found[MIMIC_NAMES[2]].report.full_text == ""  # type: ignore[union-attr]
    assert collection.digest_of(collection.units[0]) != before


def test_negbio_is_read_where_chexperts_labels_are_not_there(tmp_path: Path) -> None:
    root = mimic(tmp_path / "mimic")
    other = root / "mimic-cxr-2.0.0-negbio.csv.gz"
    gz(
        other,
        ",".join(["subject_id", "study_id", *MIMIC_OBSERVATIONS]),
        chexpert_row("10000764", "57375967", Fracture="1.0"),
    )
    assert labels(opened(root)[1][MIMIC_NAMES[2]]) == {"No Finding": "present"}
    (root / "mimic-cxr-2.0.0-chexpert.csv.gz").unlink()
    assert labels(opened(root)[1][MIMIC_NAMES[2]]) == {"Fracture": "present"}


@pytest.mark.parametrize(("split", "places"), [("train", [0, 1]), ("validate", [2]), ("val", [2]), ("test", [3])])
def test_splits(tmp_path: Path, split: str, places: list[int]) -> None:
    collection, found = opened(mimic(tmp_path / "mimic"), split)
    assert sorted(found) == sorted(MIMIC_NAMES[place] for place in places)
    assert collection.layout is not None
    assert collection.layout.splits == {"test": 1, "train": 2, "val": 1}


def test_splits_that_are_not_known_are_refused(tmp_path: Path) -> None:
    root = mimic(tmp_path / "mimic")
    with pytest.raises(ShardError, match="no images of a split holdout\n  its splits: test, train, val"):
        open_collection(root, split="holdout")
    (root / "mimic-cxr-2.0.0-split.csv.gz").unlink()
    with pytest.raises(ShardError, match="no splits are known"):
        open_collection(root, split="train")
    images_at(tmp_path / "own", "a.png")
    with pytest.raises(ShardError, match="no splits are known"):
        open_collection(tmp_path / "own", split="train")


def test_tables_that_are_missing_are_named(tmp_path: Path) -> None:
    root = mimic(tmp_path / "mimic")
    for table in root.glob("*.csv.gz"):
        table.unlink()
    collection, found = opened(root)
    assert found[MIMIC_NAMES[0]].patient == "10000032"
    assert collection.layout is not None
    assert len(collection.layout.caveats) == 3
    assert collection.layout.caveats[1].startswith("MIMIC-CXR-JPG without its table of labels (mimic-cxr-*-chexpert")
    assert collection.described is None


def test_a_table_of_the_users_goes_before_a_layout(tmp_path: Path) -> None:
    root = mimic(tmp_path / "mimic")
    table = write(tmp_path / "own.csv", f"path,sex,Edema\n{MIMIC_NAMES[0]},M,0\n{MIMIC_NAMES[2]},F,1\n")
    collection = open_collection(root, table=table)
    assert collection.layout is None
    assert [labels(one) for one in read_all(collection)[0]] == [{"Edema": "absent"}, {}, {"Edema": "present"}, {}]
    chosen = open_collection(root, table=table, split="val")
    assert [labels(one) for one in read_all(chosen)[0]] == [{"Edema": "present"}]


def test_two_tables_that_could_be_the_same_are_refused(tmp_path: Path) -> None:
    root = mimic(tmp_path / "mimic")
    content = (root / "mimic-cxr-2.0.0-split.csv.gz").read_bytes()
    write(root / "mimic-cxr-2.0.0-split.csv", gzip.decompress(content))  # unpacked, and kept
    assert open_collection(root).layout.tables.keys() >= {"mimic-cxr-2.0.0-split.csv"}  # type: ignore[union-attr]
    write(root / "mimic-cxr-2.1.0-split.csv.gz", content)
    with pytest.raises(ReportsError, match=r"2\.0\.0-split\.csv and .*2\.1\.0-split\.csv\.gz could both be the table"):
        open_collection(root)


def test_lines_of_tables_that_cannot_be_read_are_reported(tmp_path: Path) -> None:
    root = chestxray14(tmp_path / "nih")
    with (root / "Data_Entry_2017.csv").open("a") as file:
        file.write("00000013_005.png,Mass\n")
    found, damaged = read_all(open_collection(root))
    assert len(found) == 4
    assert [(one.source, one.member) for one in damaged] == [("Data_Entry_2017.csv", "line 6")]


def test_what_lies_beside_a_table_is_no_table(tmp_path: Path) -> None:
    root = mimic(tmp_path / "mimic")
    write(root / "mimic-cxr-2.0.0-split.csv.gz.md5", "0" * 32)
    assert opened(root)[0].layout.splits == {"test": 1, "train": 2, "val": 1}  # type: ignore[union-attr]


def test_a_folder_of_two_data_sets_is_refused(tmp_path: Path) -> None:
    mimic(tmp_path / "all" / "mimic")
    chestxray14(tmp_path / "all" / "nih")
    with pytest.raises(ReportsError, match="MIMIC-CXR-JPG and NIH ChestX-ray14"):
        open_collection(tmp_path / "all")


def test_a_table_with_rows_that_differ_is_refused(tmp_path: Path) -> None:
    root = mimic(tmp_path / "mimic")
    image = Path(MIMIC_NAMES[0]).stem
    csv(
        root / "mimic-cxr-2.0.0-split.csv",
        "dicom_id,study_id,subject_id,split",
        f"{image},1,1,train",
        f"{image},1,1,test",
    )
    with pytest.raises(ReportsError, match=r"split\.csv: line 3 says something else of an image"):
        open_collection(root)


def test_values_that_no_label_has_are_counted(tmp_path: Path) -> None:
    root = mimic(tmp_path / "mimic")
    (root / "mimic-cxr-2.0.0-chexpert.csv.gz").unlink()
    header = ",".join(["subject_id", "study_id", *MIMIC_OBSERVATIONS])
    csv(
        root / "mimic-cxr-2.0.0-chexpert.csv", header, chexpert_row("10000032", "50414267", Edema="maybe", Fracture="1")
    )
    collection, found = opened(root)
    assert labels(found[MIMIC_NAMES[0]]) == {"Fracture": "present"}
    assert collection.layout is not None
    assert collection.layout.caveats == ["labels not understood: 1 kind in 2 images"]


# CheXpert

CHEXPERT_ORDER = (
    *("No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema"),
    *("Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture"),
    "Support Devices",
)
CHEXPERT_HEADER = ",".join(["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *CHEXPERT_ORDER])
CHEXPERT_NAMES = [
    "train/patient00001/study1/view1_frontal.jpg",
    "train/patient00002/study2/view1_frontal.jpg",
    "train/patient00002/study2/view2_lateral.jpg",
    "valid/patient64541/study1/view1_frontal.jpg",
]


def chexpert(root: Path) -> Path:
    images_at(root, *CHEXPERT_NAMES)
    above = root.name
    csv(
        root / "train.csv",
        CHEXPERT_HEADER,
        f"{above}/{CHEXPERT_NAMES[0]},Female,68,Frontal,AP,1.0,,,,,,,,,0.0,,,,1.0",
        f"{above}/{CHEXPERT_NAMES[1]},Female,87,Frontal,PA,,,-1.0,1.0,,-1.0,-1.0,,-1.0,,-1.0,,1.0,",
        f"{above}/{CHEXPERT_NAMES[2]},Female,87,Lateral,,,,-1.0,1.0,,-1.0,-1.0,,-1.0,,-1.0,,1.0,",
    )
    csv(
        root / "valid.csv",
        CHEXPERT_HEADER,
        f"{above}/{CHEXPERT_NAMES[3]},Male,73,Frontal,AP,0.0,1.0,1.0,1.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0",
    )
    return root


@pytest.mark.parametrize("moved", [False, True])
def test_chexpert(tmp_path: Path, *, moved: bool) -> None:
    root = chexpert(tmp_path / "CheXpert-v1.0-small")
    root = root.rename(tmp_path / "renamed") if moved else root
    collection, found = opened(root)
    assert [subject(found[name]) for name in CHEXPERT_NAMES] == [
        ("patient00001", "AP", "F", 68.0),
        ("patient00002", "PA", "F", 87.0),
        ("patient00002", "LATERAL", "F", 87.0),
        ("patient64541", "AP", "M", 73.0),
    ]
    assert labels(found[CHEXPERT_NAMES[0]]) == {
        "No Finding": "present",
        "Pneumothorax": "absent",
        "Support Devices": "present",
    }
    uncertain = ("Cardiomegaly", "Edema", "Consolidation", "Atelectasis", "Pleural Effusion")
    assert labels(found[CHEXPERT_NAMES[1]]) == {
        **dict.fromkeys(uncertain, "uncertain"),
        "Lung Opacity": "present",
        "Fracture": "present",
    }
    seen = {"Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity"}
    assert labels(found[CHEXPERT_NAMES[3]]) == {
        name: "present" if name in seen else "absent" for name in CHEXPERT_ORDER
    }
    assert collection.layout is not None
    assert (collection.layout.name, collection.layout.splits) == ("CheXpert", {"train": 3, "val": 1})
    assert collection.layout.caveats == []
    assert list(opened(root, "val")[1]) == [CHEXPERT_NAMES[3]]


def test_another_train_csv_is_none_of_chexperts(tmp_path: Path) -> None:
    images_at(tmp_path, *CHEXPERT_NAMES)
    csv(tmp_path / "train.csv", "id,label", "1,2")
    collection, _ = opened(tmp_path)
    assert collection.layout is not None
    assert (collection.layout.tables, len(collection.layout.missing)) == ({}, 1)


# NIH ChestX-ray14

NIH_HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
NIH_NAMES = [
    "images_001/images/00000001_000.png",
    "images_001/images/00000001_001.png",
    "images_002/images/00000013_005.png",
    "images_002/images/00030805_000.png",
]


def chestxray14(root: Path) -> Path:
    images_at(root, *NIH_NAMES)
    csv(
        root / "Data_Entry_2017.csv",
        NIH_HEADER,
        "00000001_000.png,Cardiomegaly,000,00001,058Y,M,PA,2682,2749,0.143,0.143",
        "00000001_001.png,Cardiomegaly|Emphysema,1,1,58,M,AP,2894,2729,0.143,0.143",
        "00000013_005.png,Mass|Nodule|Pleural_Thickening|Effusion|Hernia,5,13,60,F,PA,2500,2048,0.171,0.171",
        "00030805_000.png,No Finding,0,30805,414,M,PA,2048,2500,0.171,0.171",
    )
    csv(root / "train_val_list.txt", "00000001_000.png", "00000001_001.png", "00000013_005.png")
    csv(root / "test_list.txt", "00030805_000.png")
    csv(root / "BBox_List_2017.csv", "Image Index,Finding Label,Bbox [x,y,w,h],,,", "00000013_005.png,Mass,1,2,3,4,,,")
    return root


def test_nih(tmp_path: Path) -> None:
    collection, found = opened(chestxray14(tmp_path / "nih"))
    assert [subject(found[name]) for name in NIH_NAMES] == [
        ("1", "PA", "M", 58.0),
        ("1", "AP", "M", 58.0),
        ("13", "PA", "F", 60.0),
        ("30805", "PA", "M", None),  # nobody is 414 years old
    ]
    assert [labels(found[name]) for name in NIH_NAMES] == [
        {"Cardiomegaly": "present"},
        {"Cardiomegaly": "present"},
        dict.fromkeys(("Lung Lesion", "Pleural Other", "Pleural Effusion"), "present"),
        {"No Finding": "present"},
    ]
    layout = collection.layout
    assert layout is not None
    assert (layout.name, layout.splits) == ("NIH ChestX-ray14", {"test": 1, "train_val": 3})
    assert layout.without == {"Emphysema": 1, "Hernia": 1}
    assert layout.caveats == [
        "labels that are none of the 14 observations are left out: Emphysema (1), Hernia (1)",
    ]
    assert list(opened(tmp_path / "nih", "test")[1]) == [NIH_NAMES[3]]
    with pytest.raises(ShardError, match="its splits: test, train_val"):
        open_collection(tmp_path / "nih", split="train")


def test_words_that_nih_does_not_have_are_counted_and_not_quoted(tmp_path: Path) -> None:
    root = chestxray14(tmp_path / "nih")
    (root / "Data_Entry_2017.csv").unlink()
    csv(
        root / "Data_Entry_2017_v2020.csv",
        NIH_HEADER,
        "00000001_000.png,Effusion|Zebra,0,1,58,M,PA,1,1,1,1",
        "00000001_001.png,Zebra|Secret,0,1,58,M,PA,1,1,1,1",
    )
    collection, found = opened(root)
    assert labels(found[NIH_NAMES[0]]) == {"Pleural Effusion": "present"}
    assert collection.layout is not None
    assert collection.layout.caveats == ["labels not understood: 2 kinds in 2 images"]
    assert "Zebra" not in str(collection.layout.as_json())
    assert collection.described == (4, 2)


# PadChest

PADCHEST_HEADER = (
    ",ImageID,ImageDir,StudyDate_DICOM,StudyID,PatientID,PatientBirth,PatientSex_DICOM,ViewPosition_DICOM,Projection,"
    "MethodProjection,Pediatric,ReportID,Report,MethodLabel,Labels,Localizations,LabelsLocalizationsBySentence"
)
PADCHEST_NAMES = [
    "0/20536686640136348236148679891455886468_k6ga29.png",
    "0/135803415504923515076821959678074435083-2_fzis7d.png",
    "1/216840111366964012989926673512011074122523403_00-163-058.png",
]


def padchest(root: Path) -> Path:
    images_at(root, *PADCHEST_NAMES)
    ids = [Path(name).name for name in PADCHEST_NAMES]
    sentence = "a sentence that somebody wrote in place of labels"
    words = f"\"['pleural effusion', ' pneumonia', 'kyphosis', 'NSG tube', '', '{sentence}']\""
    gz(
        root / "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv.gz",
        PADCHEST_HEADER,
        f"0,{ids[0]},0,20140915,1,839860488694292331637988235681460987,1930.0,F,POSTEROANTERIOR,PA,x,No,1, sin hallazg,"
        "Physician,['normal'],[],[]",
        f"1,{ids[1]},0,20150914,2,313572750430997347502932654319389875966,1929.0,M,LATERAL,L,x,No,2, neumon .,"
        f"Physician,{words},[],[]",
        f"2,{ids[2]},1,20110714,3,12,,O,nan,AP_horizontal,x,No,3,None,RNN_model,nan,[],[]",
    )
    return root


def test_padchest(tmp_path: Path) -> None:
    collection, found = opened(padchest(tmp_path / "padchest"))
    assert [subject(found[name]) for name in PADCHEST_NAMES] == [
        ("839860488694292331637988235681460987", "PA", "F", 84.0),
        ("313572750430997347502932654319389875966", "LATERAL", "M", 86.0),
        ("12", "AP", None, None),
    ]
    assert [labels(found[name]) for name in PADCHEST_NAMES] == [
        {"No Finding": "present"},
        dict.fromkeys(("Pleural Effusion", "Pneumonia", "Support Devices"), "present"),
        {},
    ]
    # Its reports are Spanish: the findings reader would misread them.
    assert [one.report.full_text for one in found.values() if one.report is not None] == ["", "", ""]
    assert collection.layout is not None
    assert (collection.layout.name, collection.layout.splits) == ("PadChest", {})
    assert collection.layout.without == {"kyphosis": 1}
    assert collection.layout.unknown_kinds == 1


# VinDr-CXR

VINDR_LOCAL = (
    *("Aortic enlargement", "Atelectasis", "Calcification", "Cardiomegaly", "Clavicle fracture", "Consolidation"),
    *("Edema", "Emphysema", "Enlarged PA", "ILD", "Infiltration", "Lung Opacity", "Lung cavity", "Lung cyst"),
    *("Mediastinal shift", "Nodule/Mass", "Pleural effusion", "Pleural thickening", "Pneumothorax"),
    *("Pulmonary fibrosis", "Rib fracture", "Other lesion"),
)
VINDR_GLOBAL = ("COPD", "Lung tumor", "Pneumonia", "Tuberculosis", "Other diseases", "No finding")
VINDR_IDS = ["000434271f63a053c4128a0ba6352c7f", "00053190460d56c53cc3e57321387478", "005e9d3a5e8f4b1c8f0d2a6b7c8d9e0f"]


def vindr_row(image: str, reader: str | None, *present: str) -> str:
    marks = ["1" if name in present else "0" for name in (*VINDR_LOCAL, *VINDR_GLOBAL)]
    return ",".join([image, *([] if reader is None else [reader]), *marks])


def test_vindr(tmp_path: Path) -> None:
    root, (first, second, third) = tmp_path / "vindr", VINDR_IDS
    for place, (name, sex) in enumerate(((f"train/{first}", "F"), (f"train/{second}", "M"), (f"test/{third}", "O"))):
        write(root / f"{name}.dicom", dicom_of(levels(place), PatientSex=sex, PatientAge="040Y"))
    csv(
        root / "annotations" / "image_labels_train.csv",
        ",".join(["image_id", "rad_id", *VINDR_LOCAL, *VINDR_GLOBAL]),
        vindr_row(first, "R10", "No finding"),
        vindr_row(first, "R8", "No finding"),
        vindr_row(first, "R9", "No finding"),
        vindr_row(second, "R9", "Consolidation", "Rib fracture", "Pneumonia", "ILD"),
        vindr_row(second, "R10", "Consolidation", "Clavicle fracture", "Pneumonia"),
        vindr_row(second, "R8", "Consolidation", "Rib fracture"),
    )
    csv(
        root / "annotations" / "image_labels_test.csv",
        ",".join(["image_id", *VINDR_LOCAL, *VINDR_GLOBAL]).replace("Other diseases", "Other disease"),
        vindr_row(third, None, "Nodule/Mass", "Other disease"),
    )
    csv(root / "annotations" / "annotations_train.csv", "image_id,rad_id,class_name,x_min,y_min,x_max,y_max")
    collection, found = opened(root)
    one, two, three = (found[name] for name in (f"train/{first}.dicom", f"train/{second}.dicom", f"test/{third}.dicom"))
    assert [subject(image)[1:] for image in (one, two, three)] == [
        ("PA", "F", 40.0),
        ("PA", "M", 40.0),
        ("PA", None, 40.0),
    ]
    lists = {
        *("Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation", "Pneumonia", "Atelectasis"),
        *("Pneumothorax", "Pleural Effusion", "Fracture"),
    }
    # Pleural thickening is but one kind of Pleural Other: where it is not, another may be.
    assert labels(one) == {**dict.fromkeys(lists, "absent"), "No Finding": "present"}
    assert labels(two) == {
        **dict.fromkeys(lists - {"Lung Opacity"}, "absent"),
        "No Finding": "absent",
        "Consolidation": "present",
        "Fracture": "present",  # every reader saw one of the two kinds
        "Pneumonia": "uncertain",  # two of three readers
    }
    assert labels(three) == {
        **dict.fromkeys(lists - {"Lung Opacity"}, "absent"),
        "No Finding": "absent",
        "Lung Lesion": "present",
    }
    assert collection.layout is not None
    assert (collection.layout.name, collection.layout.splits) == ("VinDr-CXR", {"test": 1, "train": 2})
    assert collection.layout.without == {"ILD": 1}


def test_vinbigdata(tmp_path: Path) -> None:
    first, second, third = VINDR_IDS
    images_at(tmp_path, f"train/{first}.png", f"train/{second}.png", f"test/{third}.png")
    csv(
        tmp_path / "train.csv",
        "image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max",
        *(f"{first},No finding,14,R{reader},,,," for reader in (8, 9, 10)),
        f"{second},Cardiomegaly,3,R8,1.0,2.0,3.0,4.0",
        f"{second},Cardiomegaly,3,R9,1.0,2.0,3.0,4.0",
        f"{second},Aortic enlargement,0,R9,1.0,2.0,3.0,4.0",
        f"{second},Cardiomegaly,3,R10,1.0,2.0,3.0,4.0",
        f"{second},Pleural effusion,10,R10,1.0,2.0,3.0,4.0",
    )
    collection, found = opened(tmp_path)
    seen = labels(found[f"train/{second}.png"])
    assert {name: status for name, status in seen.items() if status != "absent"} == {
        "Cardiomegaly": "present",
        "Pleural Effusion": "uncertain",
    }
    assert "Edema" not in seen  # not one of the competition's classes
    assert labels(found[f"train/{first}.png"])["No Finding"] == "present"
    assert labels(found[f"test/{third}.png"]) == {}
    assert collection.described == (3, 2)
    assert collection.layout is not None
    assert collection.layout.splits == {"test": 1, "train": 2}
    assert collection.layout.without == {"Aortic enlargement": 1}


# RSNA

RSNA_IDS = [
    "0004cfab-14fd-4e49-80ba-63a80b6bddd6",
    "00313ee0-9eaa-42f4-b0ab-c148ed3241cd",
    "00436515-870c-4b36-a041-de91049b9ab4",
    "c1cddc28-2d3a-4fc1-9ab3-5f0a7b1f2d6e",
]


def rsna(root: Path) -> Path:
    for place, name in enumerate(RSNA_IDS):
        part = "test" if place == 3 else "train"
        header = {"PatientID": name, "PatientSex": "FMFM"[place], "PatientAge": f"{40 + place}", "ViewPosition": "PA"}
        write(root / f"stage_2_{part}_images" / f"{name}.dcm", dicom_of(levels(place), **header))
    csv(
        root / "stage_2_train_labels.csv",
        "patientId,x,y,width,height,Target",
        f"{RSNA_IDS[0]},,,,,0",
        f"{RSNA_IDS[1]},,,,,0",
        f"{RSNA_IDS[2]},264.0,152.0,213.0,379.0,1",
        f"{RSNA_IDS[2]},562.0,152.0,256.0,453.0,1",
    )
    return root


def test_rsna(tmp_path: Path) -> None:
    root = rsna(tmp_path / "rsna")
    collection, found = opened(root)
    images = {name: found[key] for key in found for name in RSNA_IDS if name in key}
    opacity = {"Lung Opacity": "present", "Pneumonia": "present"}
    clear = {"Lung Opacity": "absent", "Pneumonia": "absent"}
    assert [labels(images[name]) for name in RSNA_IDS] == [clear, clear, opacity, {}]
    csv(
        root / "stage_2_detailed_class_info.csv",
        "patientId,class",
        f"{RSNA_IDS[0]},No Lung Opacity / Not Normal",
        f"{RSNA_IDS[1]},Normal",
        f"{RSNA_IDS[2]},Lung Opacity",
        f"{RSNA_IDS[2]},Lung Opacity",
    )
    collection, found = opened(root)
    images = {name: found[key] for key in found for name in RSNA_IDS if name in key}
    assert [labels(images[name]) for name in RSNA_IDS] == [
        {"No Finding": "absent", **clear},
        {"No Finding": "present", **clear},
        {"No Finding": "absent", **opacity},
        {},
    ]
    # A patientId is an image's, which the header repeats: patients are unknown.
    assert subject(images[RSNA_IDS[1]]) == ("", "PA", "M", 41.0)
    assert collection.layout is not None
    assert list(collection.layout.tables) == ["stage_2_detailed_class_info.csv"]  # which says what the boxes say
    assert collection.layout.splits == {"test": 1, "train": 3}
    assert collection.described == (4, 3)


# Kermany

KERMANY_NAMES = [
    "chest_xray/train/NORMAL/IM-0115-0001.jpeg",
    "chest_xray/train/PNEUMONIA/person1_bacteria_1.jpeg",
    "chest_xray/val/PNEUMONIA/person1946_bacteria_4874.jpeg",
    "chest_xray/test/NORMAL/NORMAL2-IM-0030-0001.jpeg",
]


def test_kermany(tmp_path: Path) -> None:
    images_at(tmp_path / "set", *KERMANY_NAMES)
    images_at(tmp_path / "set" / "__MACOSX", *[name.replace("/IM", "/._IM") for name in KERMANY_NAMES[:1]])
    collection, found = opened(tmp_path / "set")
    assert sorted(found) == sorted(KERMANY_NAMES)
    assert [labels(found[name]) for name in KERMANY_NAMES] == [
        {"No Finding": "present"},
        {"Pneumonia": "present"},
        {"Pneumonia": "present"},
        {"No Finding": "present"},
    ]
    assert [subject(found[name])[:2] for name in KERMANY_NAMES] == [
        ("", "AP"),
        ("person1", "AP"),
        ("person1946", "AP"),
        ("", "AP"),
    ]
    assert {one.age_group for one in found.values()} == {"child"}
    assert collection.layout is not None
    assert (collection.layout.name, collection.layout.splits) == ("Kermany", {"test": 1, "train": 2, "val": 1})
    assert sorted(opened(tmp_path / "set", "train")[1]) == KERMANY_NAMES[:2]


def test_kermanys_third_release_names_all_patients(tmp_path: Path) -> None:
    names = ["test/NORMAL/NORMAL-1049278-0001.jpeg", "train/PNEUMONIA/VIRUS-1008087-0001.jpeg"]
    images_at(tmp_path, *names)
    found = opened(tmp_path)[1]
    assert [found[name].patient for name in names] == ["1049278", "1008087"]


# CheXGenBench and SynthCheX-75K

SYNTHETIC = ["SyntheticImg_02aa804e-bde0afdd.png", "SyntheticImg_174413ec-4ec4c1f7.png"]


def test_what_synthchex_was_made_with(tmp_path: Path) -> None:
    images_at(tmp_path, *(f"images/{name}" for name in SYNTHETIC))
    csv(
        tmp_path / "generations_with_metadata.csv",
        "synthetic_filename,annotated_prompt,chexpert_labels",
        f"{SYNTHETIC[0]},Large left pleural effusion.,\"{{'Pleural Effusion': 1, 'Edema': 0, 'Fracture': -1.0}}\"",
        f"{SYNTHETIC[1]},No pneumothorax.,\"{{'Edema': 1, 'Zebra': 1, 'Fracture': None}}\"",
    )
    collection, found = opened(tmp_path)
    first, second = (found[f"images/{name}"] for name in SYNTHETIC)
    assert [one.report and one.report.full_text for one in (first, second)] == [
        "Large left pleural effusion.",
        "No pneumothorax.",
    ]
    assert first.report is not None
    assert first.report.given is not None
    # Of 0, nothing is known; the text may still deny the finding.
    assert {name: str(label.status) for name, label in first.report.given.items()} == {
        "Pleural Effusion": "present",
        "Fracture": "uncertain",
    }
    assert (labels(second)["Edema"], labels(second)["Pneumothorax"]) == ("present", "absent")
    assert collection.layout is not None
    assert (collection.layout.name, collection.described) == ("CheXGenBench", (2, 2))
    assert collection.layout.caveats == ["labels not understood: 1 kind in 1 image"]


@pytest.mark.parametrize("column", ["prompt", "annotated_prompt"])
def test_the_inputs_of_chexgenbench(tmp_path: Path, column: str) -> None:
    images_at(tmp_path, *(f"assets/synthetic_images/{name}" for name in SYNTHETIC))
    csv(
        tmp_path / "assets/CSV/prompt_INFO.csv",
        f"{column},img_savename",
        f"Edema.,{SYNTHETIC[0]}",
        f"Mild cardiomegaly.,assets/synthetic_images/{SYNTHETIC[1]}",
    )
    found = opened(tmp_path)[1]
    texts = [found[f"assets/synthetic_images/{name}"].report for name in SYNTHETIC]
    assert [one and one.full_text for one in texts] == ["Edema.", "Mild cardiomegaly."]


# img2dataset

IMG2DATASET_ROWS = [
    {
        "caption": "Large left pleural effusion.",
        "view": "PA",
        "patient_id": "p1",
        "key": "000000000",
        "status": "success",
    },
    {"caption": "normal", "view": "LATERAL", "patient_id": "p2", "key": "000000001", "status": "success"},
]


def test_img2dataset_in_files(tmp_path: Path) -> None:
    for place, row in enumerate(IMG2DATASET_ROWS):
        stem = tmp_path / "00000" / row["key"]
        write(stem.with_suffix(".jpg"), encoded(levels(place), "JPEG"))
        write(stem.with_suffix(".txt"), row["caption"])
        write(stem.with_suffix(".json"), json.dumps(row | {"url": "https://example.org/a", "exif": "{}"}))
    write(tmp_path / "00000_stats.json", "{}")
    pq.write_table(pa.table({"key": [row["key"] for row in IMG2DATASET_ROWS]}), tmp_path / "00000.parquet")
    collection, found = opened(tmp_path)
    assert collection.layout is not None
    assert collection.layout.name == "img2dataset"
    assert [subject(one)[:2] for one in found.values()] == [("p1", "PA"), ("p2", "LATERAL")]
    assert [one.report and one.report.full_text for one in found.values()] == [
        "Large left pleural effusion.",
        "normal",
    ]
    assert set(found["00000/000000000.jpg"].members) == {"jpg", "json", "txt"}
    before = collection.digest_of(collection.units[0])
    write(tmp_path / "00000/000000000.json", "{}")
    assert collection.digest_of(collection.units[0]) != before


def test_img2dataset_in_shards(tmp_path: Path) -> None:
    members = []
    for place, row in enumerate(IMG2DATASET_ROWS):
        members.append(member(f"{row['key']}.jpg", encoded(levels(place), "JPEG")))
        members.append(member(f"{row['key']}.txt", row["caption"].encode()))
        members.append(member(f"{row['key']}.json", json.dumps(row).encode()))
    write(tmp_path / "00000.tar", tar_of(members))
    write(tmp_path / "00000_stats.json", "{}")
    pq.write_table(pa.table({"key": [row["key"] for row in IMG2DATASET_ROWS]}), tmp_path / "00000.parquet")
    collection, found = opened(tmp_path)
    assert (collection.kind, collection.layout and collection.layout.name) == ("webdataset", "img2dataset")
    assert [subject(one)[:2] for one in found.values()] == [("p1", "PA"), ("p2", "LATERAL")]


def test_splits_of_shards_are_those_of_their_names(tmp_path: Path) -> None:
    for name in ("train-000.tar", "train-001.tar", "test-000.tar"):
        write(tmp_path / name, tar_of([member("a.png", encoded(levels(0)))]))
    assert sorted(opened(tmp_path, "train")[1]) == ["train-000/a", "train-001/a"]
    with pytest.raises(ShardError, match="its splits: test, train"):
        open_collection(tmp_path, split="val")


def test_other_folders_have_no_layout(tmp_path: Path) -> None:
    images_at(tmp_path, "NORMAL/a.png", "PNEUMONIA/b.png")
    csv(tmp_path / "train.csv", "a,b", "1,2")
    csv(tmp_path / "broken.csv", "a,a", "1,2")
    layout = opened(tmp_path)[0].layout
    assert layout is not None
    assert (layout.name, layout.tables) == ("folders named after findings", {})
    images_at(tmp_path / "b", "one/a.png", "two/b.png")
    assert opened(tmp_path / "b")[0].layout is None
