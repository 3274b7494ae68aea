"""A generated image as a DICOM object marked as synthetic throughout."""

import re
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import ComputedRadiographyImageStorage, SecondaryCaptureImageStorage

from cxrsynth.settings import SopClass
from cxrsynth.shards.dicom_file import derived_uid, file_meta, strict_pydicom

MANUFACTURER: Final = "cxrsynth"
BITS_STORED: Final = 12
MAX_VALUE: Final = 2**BITS_STORED - 1

_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")
_MAX_SUBJECT_KEY: Final = 60  # PatientID is LO, 64 characters, and "SYN-" takes four
_VIEW_POSITIONS: Final = {"PA": "PA", "AP": "AP", "LATERAL": "LL"}
_STORAGE: Final = {SopClass.SC: SecondaryCaptureImageStorage, SopClass.CR: ComputedRadiographyImageStorage}


@dataclass(frozen=True)
class DicomSettings:
    """What all DICOM objects of one data set have in common.

    `dataset_uid_seed` is the root of every UID: whatever changes the pixels (model, recipe, seed) must change it too,
    or two different images would claim one identity in an archive. The three texts go into LO elements.

    Raises:
        ValueError: if the seed is empty, or a text is empty, longer than 64 characters, or contains a control character
            or a backslash (it separates values in DICOM).
    """

    dataset_uid_seed: str
    model_name: str
    model_digest: str
    software_version: str
    sop_class: SopClass = SopClass.SC
    study_date: str = ""

    def __post_init__(self) -> None:
        if not self.dataset_uid_seed:
            raise ValueError("dataset_uid_seed: empty, expected a text that identifies the data set")
        for name in ("model_name", "model_digest", "software_version"):
            text = getattr(self, name)
            if not 0 < len(text.strip()) <= len(text) <= 64 or "\\" in text or not text.isprintable():
                raise ValueError(f"{name}: {text!r}, expected 1 to 64 printable characters and no backslash")


def to_dataset(
    image: NDArray[np.float32],
    settings: DicomSettings,
    *,
    key: str,
    subject_key: str,
    image_index: int,
    view: str | None = None,
    sex: str | None = None,
    comment: str = "",
) -> FileDataset:
    """One generated image as a DICOM object, MONOCHROME2, 12 bits stored in 16.

    Equal input gives an equal object: no clock, no random UIDs. Dates stay empty, because no one was ever imaged.

    Args:
        image: [H, W] float32 in [0, 1], 0 black; the stored value is round(image * 4095).
        settings: what all objects of the data set have in common.
        key: sample key; together with the seed and the SOP class it determines the SOP Instance UID.
        subject_key: identifies the synthetic patient, at most 60 characters; all samples of a report share it, and with
            it patient, study and series.
        image_index: position of the sample among those of its report, from 0.
        view: `PA`, `AP`, `LATERAL` or None for unknown.
        sex: `M`, `F` or None for unknown.
        comment: a sentence about this image, added to Image Comments.

    Raises:
        ValueError: if the image is not as above, or DICOM cannot hold the key, index, view or sex.

    Source: DICOM PS3.3 A.8.1 (Secondary Capture), A.2 (Computed Radiography), C.12.1 (SOP Common).
    """
    stored = _stored_values(image)
    _check_identity(key, subject_key, image_index)
    view_position = _lookup("view", view, _VIEW_POSITIONS)
    with strict_pydicom():
        dataset = FileDataset("", {}, preamble=bytes(128), file_meta=file_meta())
        _set_sop_common(dataset, settings, key=key)
        _set_patient_and_study(dataset, settings, subject_key=subject_key)
        dataset.PatientSex = _lookup("sex", sex, {"M": "M", "F": "F"})
        _set_series(dataset, settings, subject_key=subject_key, view_position=view_position)
        _set_image(dataset, settings, image_index=image_index, comment=comment)
        _set_pixels(dataset, stored)
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    return dataset


def from_dataset(dataset: Dataset) -> NDArray[np.float32]:
    """The image of an object made by `to_dataset`: [H, W] float32 in [0, 1], within half of 1/4095 of the original.

    Raises:
        ValueError: if the object does not hold one 12 bit MONOCHROME2 image.
    """
    found = (dataset.get("SamplesPerPixel"), dataset.get("BitsStored"), dataset.get("PhotometricInterpretation"))
    if found != (1, BITS_STORED, "MONOCHROME2") or "NumberOfFrames" in dataset:
        raise ValueError(f"samples, bits stored, photometric: {found}, expected (1, {BITS_STORED}, 'MONOCHROME2')")
    pixels: NDArray[np.float32] = dataset.pixel_array.astype(np.float32) / np.float32(MAX_VALUE)
    return pixels


def as_stored(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """An image [H, W] in [0, 1] as `from_dataset` reads it back.

    Raises:
        ValueError: if the image is not as above.
    """
    return (_stored_values(image).astype(np.float32) / np.float32(MAX_VALUE)).astype(np.float32)


def _stored_values(image: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The checked image as 12 bit values, [H, W]."""
    if image.ndim != 2 or not all(0 < side < 2**16 for side in image.shape):
        raise ValueError(f"image: shape {image.shape}, expected [H, W] with sides of 1 to 65535")
    if image.dtype != np.float32:
        raise ValueError(f"image: {image.dtype}, expected float32")
    # A NaN makes the minimum NaN and every comparison with it false.
    if not (image.min() >= 0 and image.max() <= 1):
        raise ValueError(f"image: values in [{image.min()}, {image.max()}], expected finite ones in [0, 1]")
    stored: NDArray[np.uint16] = np.rint(image * np.float32(MAX_VALUE)).astype("<u2")
    return stored


def _check_identity(key: str, subject_key: str, image_index: int) -> None:
    """Refuse keys that do not fit in a file name or a PatientID."""
    for name, text in (("key", key), ("subject_key", subject_key)):
        if not _KEY.fullmatch(text):
            raise ValueError(f"{name}: {text!r}, expected characters of [A-Za-z0-9_-]")
    if len(subject_key) > _MAX_SUBJECT_KEY:
        raise ValueError(f"subject_key: {len(subject_key)} characters, expected at most {_MAX_SUBJECT_KEY}")
    if image_index < 0:
        raise ValueError(f"image_index: {image_index}, expected 0 or more")


def _lookup(name: str, value: str | None, known: dict[str, str]) -> str:
    """The DICOM code of a value, empty for None."""
    if value is not None and value not in known:
        raise ValueError(f"{name}: {value!r}, expected None or one of {', '.join(known)}")
    return "" if value is None else known[value]


def _set_sop_common(dataset: Dataset, settings: DicomSettings, *, key: str) -> None:
    """SOP Common module: identity, the synthetic marker, and the software that made the object."""
    dataset.SOPClassUID = _STORAGE[settings.sop_class]
    # The class is part of the identity: one sample written as SC and as CR is two objects.
    dataset.SOPInstanceUID = derived_uid(settings.dataset_uid_seed, settings.sop_class.value, "instance", key)
    if not (settings.model_name + settings.model_digest + settings.software_version).isascii():
        dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.SyntheticData = "YES"

    purpose = Dataset()
    purpose.CodeValue = "109100"
    purpose.CodingSchemeDesignator = "DCM"
    purpose.CodeMeaning = "Synthesizing Equipment"
    equipment = Dataset()
    equipment.PurposeOfReferenceCodeSequence = [purpose]
    _set_equipment(equipment, settings)
    equipment.ContributionDescription = "Synthesized every pixel with a generative model; no X-ray was taken"
    dataset.ContributingEquipmentSequence = [equipment]


def _set_equipment(dataset: Dataset, settings: DicomSettings) -> None:
    """Record software and weights: PS3.3 C.7.5.1, and again inside Contributing Equipment."""
    dataset.Manufacturer = MANUFACTURER
    dataset.ManufacturerModelName = settings.model_name
    # The digest goes first: the element may be padded at its end, and pydicom counts the padding of a 64-character
    # text as a 65th character.
    dataset.SoftwareVersions = [settings.model_digest, settings.software_version]


def _set_patient_and_study(dataset: Dataset, settings: DicomSettings, *, subject_key: str) -> None:
    """Patient and General Study modules: one synthetic patient with one study per report."""
    dataset.PatientID = f"SYN-{subject_key}"
    dataset.PatientName = f"Synthetic^{subject_key[:12]}"
    dataset.PatientBirthDate = ""
    dataset.StudyInstanceUID = derived_uid(settings.dataset_uid_seed, "study", subject_key)
    for keyword in ("StudyID", "AccessionNumber", "ReferringPhysicianName"):
        setattr(dataset, keyword, "")
    # Type 2: empty unless the user has an archive that needs a date, which then is the same for all.
    dataset.StudyDate = settings.study_date
    dataset.StudyTime = "000000" if settings.study_date else ""
    # The module does not need it, but viewers and archives list this text.
    dataset.StudyDescription = "Synthetic chest radiograph"


def _set_series(dataset: Dataset, settings: DicomSettings, *, subject_key: str, view_position: str) -> None:
    """General Series, General Equipment, and the modules in which SC and CR differ."""
    seed, sop_class = settings.dataset_uid_seed, settings.sop_class
    dataset.SeriesInstanceUID = derived_uid(seed, sop_class.value, "series", subject_key)
    dataset.SeriesNumber = 1
    dataset.SeriesDescription = "Synthetic, not for diagnosis"
    # Laterality is absent: the chest is not a paired body part.
    dataset.BodyPartExamined = "CHEST"
    _set_equipment(dataset, settings)
    if sop_class is SopClass.SC:
        # CR or DX would imply a detector, and none was exposed; OT ("other") is valid, and viewers show it too.
        dataset.Modality = "OT"
        dataset.ConversionType = "SYN"
        # The SC IOD lacks this attribute but may be extended, so it is absent rather than empty when unknown.
        if view_position:
            dataset.ViewPosition = view_position
    else:
        dataset.Modality = "CR"
        dataset.ViewPosition = view_position


def _set_image(dataset: Dataset, settings: DicomSettings, *, image_index: int, comment: str) -> None:
    """General Image module, with markers that survive a de-identification that drops Synthetic Data."""
    dataset.InstanceNumber = image_index + 1
    dataset.ImageType = ["DERIVED", "SECONDARY"]
    # Empty means unknown: the view was requested, but no one checked the image's orientation.
    dataset.PatientOrientation = ""
    dataset.BurnedInAnnotation = "NO"
    dataset.LossyImageCompression = "00"
    dataset.ContentQualification = "RESEARCH"
    dataset.DerivationDescription = "Generated from the text of a radiology report; derived from no image"
    dataset.ImageComments = (
        f"SYNTHETIC IMAGE, NOT FOR DIAGNOSIS. It shows no patient. Made by {MANUFACTURER} "
        f"{settings.software_version} with model {settings.model_name}, digest {settings.model_digest}."
    ) + (f" {comment}" if comment else "")


def _set_pixels(dataset: Dataset, stored: NDArray[np.uint16]) -> None:
    """Image Pixel and VOI LUT modules. Pixel spacing is absent, because none was measured."""
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = stored.shape
    dataset.BitsAllocated = 16
    dataset.BitsStored = BITS_STORED
    dataset.HighBit = BITS_STORED - 1
    dataset.PixelRepresentation = 0
    # Exactly the full range: the linear function puts black at c - 0.5 - (w - 1) / 2 = 0 and white at 4095
    # (PS3.3 C.11.2.1.2.1).
    dataset.WindowCenter = 2 ** (BITS_STORED - 1)
    dataset.WindowWidth = 2**BITS_STORED
    dataset.PixelData = stored.tobytes()
