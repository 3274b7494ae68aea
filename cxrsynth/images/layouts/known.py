"""The layouts that are recognized, each as its data set is published."""

import re
from collections.abc import Mapping
from typing import Any, Final

from cxrsynth.images.layouts.labels import Labels, Rows, boxed, cell_text, in_words, listed, marked, observed, voted
from cxrsynth.images.layouts.layout import Layout, Table
from cxrsynth.images.layouts.paths import PICTURE, view_of
from cxrsynth.images.layouts.vocabulary import KERMANY, NIH, PADCHEST, RSNA, RSNA_OBSERVATIONS, VINBIGDATA, VINDR
from cxrsynth.reports.labels import Status
from cxrsynth.reports.table.rows import status_of


def _path(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(?:^|/){pattern}{PICTURE}", re.IGNORECASE)


# Johnson et al. 2019 (arXiv:1901.07042); reports are those of MIMIC-CXR, unpacked in the same tree.
MIMIC: Final = Layout(
    "MIMIC-CXR-JPG",
    _path(r"(?P<folder>p\d{2}/p(?P<patient>\d{8}))/s(?P<study>\d{8})/(?P<image>[^/]+)"),
    (
        Table("views", ("mimic-cxr-*-metadata.csv*",), "dicom_id", columns={"view": "ViewPosition"}, is_needed=True),
        Table(
            "labels",
            ("mimic-cxr-*-chexpert.csv*", "mimic-cxr-*-negbio.csv*"),
            "study_id",
            by="study",
            labels=observed,
            is_needed=True,
        ),
        Table("splits", ("mimic-cxr-*-split.csv*",), "dicom_id", columns={"split": "split"}, is_needed=True),
    ),
    is_distinctive=True,
    report=lambda found: f"{found.string[: found.start('folder')]}{found['folder']}/s{found['study']}.txt",
)

# Irvin et al. 2019 (arXiv:1901.07031), whole or small, also in folders of batches.
_CHEXPERT_TABLES: Final = tuple(
    Table(
        f"labels, views, sexes, ages of {split}",
        (f"{file}.csv*",),
        "Path",
        columns={"view": view_of, "sex": "Sex", "age": "Age"},
        labels=observed,
        constants={"split": split},
        has=("Path", "Frontal/Lateral"),
        is_needed=split == "train",
    )
    for file, split in (("train", "train"), ("valid", "val"), ("test", "test"))
)
CHEXPERT: Final = Layout(
    "CheXpert",
    _path(r"(?P<image>(?P<patient>patient\d{4,6})/study\d+/[^/]+)"),
    _CHEXPERT_TABLES,
    is_distinctive=True,
)

# Wang et al. 2017 (arXiv:1705.02315). Its patients have numbers below 31,000: a date has eight digits, too.
CHESTXRAY14: Final = Layout(
    "NIH ChestX-ray14",
    _path(r"(?:nih[_-])?(?P<image>(?=000[0-3]\d{4}_)0*(?P<patient>[1-9]\d*)_\d{3})"),
    (
        Table(
            "labels, views, sexes, ages",
            ("Data_Entry_2017*.csv*",),
            "Image Index",
            columns={
                "view": "View Position",
                "sex": lambda row: row.get("Patient Gender") or row.get("Patient Sex") or "",
                "age": "Patient Age",
            },
            labels=listed("Finding Labels", NIH),
            is_needed=True,
        ),
        Table("the split train_val", ("train_val_list*.txt",), "", constants={"split": "train_val"}),
        Table("the split test", ("test_list*.txt",), "", constants={"split": "test"}),
    ),
    is_distinctive=True,
)


def _padchest_age(row: Mapping[str, Any]) -> str:
    """Years between birth and study, which are known by year."""
    born, taken = (re.match(r"\d{4}", str(row.get(name) or "")) for name in ("PatientBirth", "StudyDate_DICOM"))
    return str(int(taken[0]) - int(born[0])) if born and taken and taken[0] >= born[0] else ""


# Bustos et al. 2019 (arXiv:1901.07441). Its reports are Spanish, and stemmed.
PADCHEST_LAYOUT: Final = Layout(
    "PadChest",
    _path(r"(?P<image>\d{20,}[_-][a-z0-9_-]+)"),
    (
        Table(
            "labels, views, sexes, ages, patients",
            ("PADCHEST_chest_x_ray_images_labels_160K*.csv*",),
            "ImageID",
            columns={
                "view": "Projection",
                "sex": "PatientSex_DICOM",
                "age": _padchest_age,
                "patient_id": "PatientID",
            },
            labels=listed("Labels", PADCHEST, open_ended=True),
            is_needed=True,
        ),
    ),
    is_distinctive=True,
)

# Nguyen et al. 2022 (arXiv:2012.15029): all images are PA. The competition's images have readers' boxes alone.
VINDR_LAYOUT: Final = Layout(
    "VinDr-CXR",
    _path(r"(?:(?P<split>train|test)/)?(?P<image>[0-9a-f]{32})"),
    (
        Table(
            "labels of train",
            ("image_labels_train.csv*",),
            "image_id",
            labels=voted(VINDR),
            constants={"split": "train"},
            many=True,
        ),
        Table(
            "labels of test",
            ("image_labels_test.csv*",),
            "image_id",
            labels=voted(VINDR),
            constants={"split": "test"},
            many=True,
        ),
        Table(
            "labels of train",
            ("train.csv*",),
            "image_id",
            labels=boxed("class_name", "rad_id", VINBIGDATA),
            constants={"split": "train"},
            has=("image_id", "class_name", "rad_id"),
            many=True,
            unless="image_labels_*.csv*",
        ),
    ),
    constants={"view": "PA"},
)


def _rsna_classes(rows: Rows) -> Labels:
    """The class; an image that is not `Normal` is not free of findings."""
    found = in_words([cell_text(rows[0].get("class"))], RSNA)
    if not found.unknown:
        found = Labels({name: found.statuses.get(name, Status.ABSENT) for name in RSNA_OBSERVATIONS})
    return found


def _rsna_target(rows: Rows) -> Labels:
    """Boxes: 1 is an opacity that suggests pneumonia."""
    status = status_of(cell_text(rows[0].get("Target")))
    return Labels({} if status is None else {"Lung Opacity": status, "Pneumonia": status})


# Shih et al. 2019. A `patientId` is one image's: who has several images in the set cannot be known.
RSNA_LAYOUT: Final = Layout(
    "RSNA Pneumonia Detection Challenge",
    _path(r"stage_2_(?P<split>train|test)_images/(?P<image>[0-9a-f-]{36})"),
    (
        Table(
            "labels",
            ("stage_2_detailed_class_info.csv*",),
            "patientId",
            labels=_rsna_classes,
            many=True,
        ),
        Table(
            "labels",
            ("stage_2_train_labels.csv*",),
            "patientId",
            labels=_rsna_target,
            many=True,
            unless="stage_2_detailed_class_info.csv*",
        ),
    ),
    constants={"patient_id": "", "PatientID": ""},
    is_distinctive=True,
)

# Kermany et al. 2018: AP images of children of one to five years. Its second and third release name files in two ways.
KERMANY_LAYOUT: Final = Layout(
    "Kermany",
    _path(
        r"(?P<split>train|val|test)/(?P<label>NORMAL|PNEUMONIA)/(?P<image>(?P<patient>person\d+)_(?:bacteria|virus)_\d+"
        r"|(?:NORMAL2-)?IM-\d+-\d+(?:-\d+)?|(?:NORMAL|BACTERIA|VIRUS)-(?P<subject>\d+)-\d+)"
    ),
    constants={"view": "AP", "age_group": "child"},
    labels=lambda word: in_words([word], KERMANY),
    is_distinctive=True,
)

# Dutt et al. 2025 (arXiv:2505.10496): tables of the benchmark's inputs, and the one that SynthCheX-75K was made with.
CHEXGENBENCH: Final = Layout(
    "CheXGenBench",
    _path(r"(?P<image>[^/]+)"),
    (
        Table(
            "prompts",
            ("*.csv",),
            "img_savename",
            columns={"report": lambda row: cell_text(row.get("annotated_prompt") or row.get("prompt"))},
            labels=marked("chexpert_labels"),
            has=("img_savename",),
        ),
        Table(
            "prompts, labels",
            ("*.csv",),
            "synthetic_filename",
            columns={"report": "annotated_prompt"},
            labels=marked("chexpert_labels"),
            has=("synthetic_filename", "annotated_prompt"),
        ),
    ),
)

# Its output in files; what it writes as shards is a WebDataset.
IMG2DATASET: Final = Layout(
    "img2dataset",
    _path(r"\d{5,}/(?P<image>\d{9,})"),
    is_distinctive=True,
    beside=("json", "txt"),
)

LAYOUTS: Final = (
    MIMIC,
    CHEXPERT,
    CHESTXRAY14,
    PADCHEST_LAYOUT,
    VINDR_LAYOUT,
    RSNA_LAYOUT,
    KERMANY_LAYOUT,
    CHEXGENBENCH,
    IMG2DATASET,
)
