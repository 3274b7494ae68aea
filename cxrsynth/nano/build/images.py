"""Training images and their metadata; only images of licence tier `open` load."""

import csv
import hashlib
import io
import random
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cxrsynth.reports.labels import OBSERVATIONS, OPACITY_KINDS, FindingLabel, Status
from cxrsynth.reports.prompt import Subject, age_group, canonical_prompt

GROUPS = ("nih", "nih_more", "hannover", "kermany_ped", "cohen_open")
# 64 x 64 pixels: too blurred to generate from, but with findings that are rare elsewhere.
SMALL_GROUPS = ("nih64",)
# Groups labelled with the NIH's fourteen findings: what is not listed is absent.
_FULLY_LABELLED = ("nih", "nih_more", "nih64")

SOURCE_LABELS = {
    "no finding": "No Finding",
    "cardiomegaly": "Cardiomegaly",
    "infiltration": "Lung Opacity",
    "mass": "Lung Lesion",
    "nodule": "Lung Lesion",
    "edema": "Edema",
    "consolidation": "Consolidation",
    "pneumonia": "Pneumonia",
    "atelectasis": "Atelectasis",
    "pneumothorax": "Pneumothorax",
    "effusion": "Pleural Effusion",
    "pleural_thickening": "Pleural Other",
}
# Observations that have an NIH label, and so can be known to be absent.
_DENIABLE = tuple(o for o in OBSERVATIONS if o in SOURCE_LABELS.values() and o != "No Finding")


@dataclass(frozen=True, slots=True)
class Radiograph:
    """One training image. `present` and `absent` are observations; the rest is unknown."""

    image_id: str
    patient_id: str
    group: str
    subject: Subject
    present: tuple[str, ...]
    absent: tuple[str, ...]
    padded: bool


def load_images(
    data: Path, *, size: int, split: str = "train", groups: tuple[str, ...] = GROUPS, resample: bool = False
) -> tuple[list[Radiograph], Tensor]:
    """Images of `split` and their pixels, uint8 [N, 1, size, size], gray levels normalized per image.

    Raises:
        FileNotFoundError: if a group's tar or manifest is missing.
        ValueError: if an image is not of licence tier `open`, or of another size unless `resample`.
    """
    radiographs: list[Radiograph] = []
    pixels: list[Tensor] = []
    for group in groups:
        images = dict(_jpegs(data / "images" / f"{group}.tar"))
        with (data / "manifests" / f"{group}.csv").open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if row["licence_tier"] != "open":
                    raise ValueError(f"{row['id']}: licence tier {row['licence_tier']!r}, only 'open' may train")
                if row["split"] == split:
                    radiographs.append(_radiograph(row, group))
                    pixels.append(_normalize(images[f"{row['id']}.jpg"], size, resample=resample))
    return radiographs, torch.stack(pixels)


def patient_half(radiograph: Radiograph) -> int:
    """0 or 1, by patient: the two reward families are trained on different patients."""
    return hashlib.sha256(radiograph.patient_id.encode()).digest()[0] % 2


def caption(radiograph: Radiograph, rng: random.Random, *, whole: bool = False) -> str:
    """One canonical prompt that is true of the image; parts are left out at random unless `whole`.

    This teaches the model to follow prompts that state only part of what an image shows.
    """
    if whole:
        return canonical_prompt(radiograph.subject, {o: FindingLabel(Status.PRESENT) for o in radiograph.present})
    subject = Subject(
        view=radiograph.subject.view if rng.random() > 0.15 else None,
        age_group=radiograph.subject.age_group if rng.random() > 0.1 else None,
        sex=radiograph.subject.sex if rng.random() > 0.15 else None,
    )
    denied = rng.sample(radiograph.absent, min(len(radiograph.absent), rng.choice((0, 0, 1, 2, 3, 5))))
    # Reports often state only findings the model does not support: a prompt of view and person alone must work too.
    stated = radiograph.present if rng.random() > 0.2 else ()
    opacities = [o for o in stated if o in OPACITY_KINDS]
    if opacities and rng.random() < 0.3:
        # Any kind of opacity is a lung opacity: stated beside the kind, or instead of it.
        others = stated if rng.random() < 0.5 else tuple(o for o in stated if o not in opacities)
        stated = tuple(o for o in OBSERVATIONS if o in {*others, "Lung Opacity"})
    labels = {o: FindingLabel(Status.PRESENT) for o in stated}
    labels |= {o: FindingLabel(Status.ABSENT) for o in denied}
    return canonical_prompt(subject, labels)


def _jpegs(path: Path) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(path) as tar:
        for member in tar:
            handle = tar.extractfile(member) if member.name.endswith(".jpg") else None
            if handle is not None:
                yield member.name, handle.read()


def _normalize(jpeg: bytes, size: int, *, resample: bool) -> Tensor:
    """Stretch the 0.5th to 99.5th percentile to full range: sources differ in contrast, not in meaning."""
    with Image.open(io.BytesIO(jpeg)) as image:
        radiograph = image.convert("L")
        if resample and radiograph.size != (size, size):
            radiograph = radiograph.resize((size, size), Image.Resampling.BICUBIC)
        gray = np.asarray(radiograph, dtype=np.float32)
    if gray.shape != (size, size):
        raise ValueError(f"image of {gray.shape} pixels, expected {size} x {size}")
    low, high = np.percentile(gray[gray > 4] if (gray > 4).any() else gray, (0.5, 99.5))
    stretched = np.clip((gray - low) / max(high - low, 1.0), 0.0, 1.0)
    return torch.from_numpy((stretched * 255).round().astype(np.uint8))[None]  # [1, H, W]


def _radiograph(row: dict[str, str], group: str) -> Radiograph:
    named = {SOURCE_LABELS.get(label.strip().lower()) for label in row["labels"].split("|")}
    present = tuple(o for o in OBSERVATIONS if o in named)
    normal = present == ("No Finding",)
    absent: tuple[str, ...] = ()
    if group in _FULLY_LABELLED or normal:
        opacity = any(o in OPACITY_KINDS for o in present)
        absent = tuple(o for o in _DENIABLE if o not in present and not (opacity and o == "Lung Opacity"))
    years = 3.0 if group == "kermany_ped" else float(row["age"]) if row["age"] else None
    subject = Subject(
        view=row["view"] if row["view"] in ("PA", "AP") else None,
        age_group=age_group(years),
        sex=row["sex"] or None,
    )
    if group == "hannover" and subject.age_group is None:
        subject = Subject(view=subject.view, age_group="adult", sex=subject.sex)
    return Radiograph(row["id"], row["patient_id"], group, subject, present, absent, padded=row["fit"] == "pad")
