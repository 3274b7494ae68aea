"""A generated film as a DICOM object that says everywhere that it is made, and a folder of them as a file-set."""

import re
import struct
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydicom import config, dcmread, dcmwrite
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    ExplicitVRLittleEndian,
    MediaStorageDirectoryStorage,
    SecondaryCaptureImageStorage,
)

from cxrsynth.settings import SopClass

MANUFACTURER: Final = "cxrsynth"
BITS_STORED: Final = 12
MAX_VALUE: Final = 2**BITS_STORED - 1

# Drawn once, at random; every UID below descends from it. Changing it changes the UIDs of all data sets.
_NAMESPACE: Final = uuid.UUID("5f0c7c1e-8d0a-4d2b-9f57-3b1a6c2e94d7")
_IMPLEMENTATION_CLASS_UID: Final = UID(f"2.25.{_NAMESPACE.int}")
_IMPLEMENTATION_VERSION_NAME: Final = "CXRSYNTH"

_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")
_MAX_SUBJECT_KEY: Final = 60  # PatientID is LO, 64 characters, and "SYN-" takes four
_VIEW_POSITIONS: Final = {"PA": "PA", "AP": "AP", "LATERAL": "LL"}


_STORAGE: Final = {SopClass.SC: SecondaryCaptureImageStorage, SopClass.CR: ComputedRadiographyImageStorage}


@dataclass(frozen=True)
class DicomSettings:
    """What all DICOM objects of one data set have in common.

    `dataset_uid_seed` is the root of every UID: whatever changes the pixels (model, recipe, seed) must
    change it too, or two different films would claim one identity in an archive. The three texts go into
    LO elements.

    Raises:
        ValueError: if the seed is empty, or a text is empty, above 64 characters, or holds a backslash
            (it separates values in DICOM) or a control character.
    """

    dataset_uid_seed: str
    model_name: str
    model_digest: str
    software_version: str
    sop_class: SopClass = SopClass.SC

    def __post_init__(self) -> None:
        if not self.dataset_uid_seed:
            raise ValueError("dataset_uid_seed: empty, expected a text that names the data set")
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
) -> FileDataset:
    """One generated film as a DICOM object of 12 bits in 16, MONOCHROME2.

    Equal input gives an equal object: no clock, no random UID. Dates stay empty, since nothing was ever
    taken of anyone.

    Args:
        image: [H, W] float32 in [0, 1], 0 black; the stored value is round(image * 4095).
        settings: what the data set's objects have in common.
        key: sample key; with the seed and the SOP class it makes the SOP Instance UID.
        subject_key: names the synthetic patient, at most 60 characters; all samples of a report share it,
            and with it patient, study and series.
        image_index: place of the sample among those of its report, from 0.
        view: `PA`, `AP`, `LATERAL` or None for unknown.
        sex: `M`, `F` or None for unknown.

    Raises:
        ValueError: if the image is not as above, or a key, index, view or sex is not one DICOM can hold.

    Source: DICOM PS3.3 A.8.1 (Secondary Capture), A.2 (Computed Radiography), C.12.1 (SOP Common).
    """
    stored = _stored_values(image)
    _check_identity(key, subject_key, image_index)
    view_position = _lookup("view", view, _VIEW_POSITIONS)
    with _strict_pydicom():
        dataset = FileDataset("", {}, preamble=bytes(128), file_meta=_file_meta())
        _set_sop_common(dataset, settings, key=key)
        _set_patient_and_study(dataset, settings, subject_key=subject_key)
        dataset.PatientSex = _lookup("sex", sex, {"M": "M", "F": "F"})
        _set_series(dataset, settings, subject_key=subject_key, view_position=view_position)
        _set_image(dataset, settings, image_index=image_index)
        _set_pixels(dataset, stored)
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    return dataset


def from_dataset(dataset: Dataset) -> NDArray[np.float32]:
    """The film of an object made by `to_dataset`: [H, W] float32 in [0, 1], within half of 1/4095 of the original.

    Raises:
        ValueError: if the object does not hold one 12 bit MONOCHROME2 image.
    """
    found = (dataset.get("SamplesPerPixel"), dataset.get("BitsStored"), dataset.get("PhotometricInterpretation"))
    if found != (1, BITS_STORED, "MONOCHROME2") or "NumberOfFrames" in dataset:
        raise ValueError(f"samples, bits stored, photometric: {found}, expected (1, {BITS_STORED}, 'MONOCHROME2')")
    pixels: NDArray[np.float32] = dataset.pixel_array.astype(np.float32) / np.float32(MAX_VALUE)
    return pixels


def to_bytes(dataset: Dataset) -> bytes:
    """The object as a DICOM file (PS3.10), Explicit VR Little Endian; equal objects give equal bytes."""
    buffer = BytesIO()
    with _strict_pydicom():
        dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


@contextmanager
def _strict_pydicom() -> Iterator[None]:
    """Make pydicom refuse misspelt keywords and invalid values, which it otherwise warns of.

    The switches are global to the process: they are put back for the importer's sake, and no two threads
    should be in here at once. pydicom checks an assigned value by the reading mode, hence `strict_reading`.
    """
    keyword_behavior, writing_mode = config.INVALID_KEYWORD_BEHAVIOR, config.settings.writing_validation_mode
    config.INVALID_KEYWORD_BEHAVIOR, config.settings.writing_validation_mode = "RAISE", config.RAISE
    try:
        with config.strict_reading():
            yield
    finally:
        config.INVALID_KEYWORD_BEHAVIOR, config.settings.writing_validation_mode = keyword_behavior, writing_mode


def _derived_uid(seed: str, *path: str) -> UID:
    """A UID made of a name-based UUID, at most 44 characters (PS3.5 B.2); seed and path decide it."""
    return UID(f"2.25.{uuid.uuid5(uuid.uuid5(_NAMESPACE, seed), '/'.join(path)).int}")


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
    """Refuse keys that could not stand in a file name or a PatientID."""
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


def _file_meta() -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = _IMPLEMENTATION_CLASS_UID
    meta.ImplementationVersionName = _IMPLEMENTATION_VERSION_NAME
    return meta


def _set_sop_common(dataset: Dataset, settings: DicomSettings, *, key: str) -> None:
    """SOP Common module: identity, and that the object is synthetic and what made it."""
    dataset.SOPClassUID = _STORAGE[settings.sop_class]
    # The class is part of the name: one sample written as SC and as CR is two objects.
    dataset.SOPInstanceUID = _derived_uid(settings.dataset_uid_seed, settings.sop_class.value, "instance", key)
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
    """Say which software and which weights: PS3.3 C.7.5.1, and again inside Contributing Equipment."""
    dataset.Manufacturer = MANUFACTURER
    dataset.ManufacturerModelName = settings.model_name
    # The digest goes first: the element may be padded at its end, and pydicom counts the padding of a text of
    # 64 characters as a 65th.
    dataset.SoftwareVersions = [settings.model_digest, settings.software_version]


def _set_patient_and_study(dataset: Dataset, settings: DicomSettings, *, subject_key: str) -> None:
    """Patient and General Study modules: one synthetic patient with one study per report."""
    dataset.PatientID = f"SYN-{subject_key}"
    dataset.PatientName = f"Synthetic^{subject_key[:12]}"
    dataset.PatientBirthDate = ""
    dataset.StudyInstanceUID = _derived_uid(settings.dataset_uid_seed, "study", subject_key)
    for keyword in ("StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName"):
        setattr(dataset, keyword, "")
    # Not needed by the module; it is the text that viewers and archives list.
    dataset.StudyDescription = "Synthetic chest radiograph"


def _set_series(dataset: Dataset, settings: DicomSettings, *, subject_key: str, view_position: str) -> None:
    """General Series, General Equipment, and the modules that SC and CR have apart."""
    seed, sop_class = settings.dataset_uid_seed, settings.sop_class
    dataset.SeriesInstanceUID = _derived_uid(seed, sop_class.value, "series", subject_key)
    dataset.SeriesNumber = 1
    dataset.SeriesDescription = "Synthetic, not for diagnosis"
    # Laterality is absent: the chest is not a paired body part.
    dataset.BodyPartExamined = "CHEST"
    _set_equipment(dataset, settings)
    if sop_class is SopClass.SC:
        # CR or DX would name a detector, and none was exposed; OT ("other") is valid and shown by viewers alike.
        dataset.Modality = "OT"
        dataset.ConversionType = "SYN"
        # No attribute of the SC IOD, which may be extended; so it is left out rather than empty when unknown.
        if view_position:
            dataset.ViewPosition = view_position
    else:
        dataset.Modality = "CR"
        dataset.ViewPosition = view_position


def _set_image(dataset: Dataset, settings: DicomSettings, *, image_index: int) -> None:
    """General Image module, with the markers that outlive a de-identification that drops Synthetic Data."""
    dataset.InstanceNumber = image_index + 1
    dataset.ImageType = ["DERIVED", "SECONDARY"]
    # Empty is "unknown": the view was asked of the model, but no one checked which way the film lies.
    dataset.PatientOrientation = ""
    dataset.BurnedInAnnotation = "NO"
    dataset.LossyImageCompression = "00"
    dataset.ContentQualification = "RESEARCH"
    dataset.DerivationDescription = "Generated from the text of a radiology report; derived from no image"
    dataset.ImageComments = (
        f"SYNTHETIC IMAGE, NOT FOR DIAGNOSIS. It shows no patient. Made by {MANUFACTURER} "
        f"{settings.software_version} with model {settings.model_name}, digest {settings.model_digest}."
    )


def _set_pixels(dataset: Dataset, stored: NDArray[np.uint16]) -> None:
    """Image Pixel and VOI LUT modules. Pixel spacing is absent: nothing measured one."""
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


@dataclass(frozen=True)
class _Level:
    """One level of the directory: record type, file id prefix, identifying keyword, and the keys a record holds."""

    record_type: str
    prefix: str
    identity: str
    keys: tuple[str, ...]


@dataclass(frozen=True)
class _Record:
    """A directory record, encoded with its two offsets still zero, and the records below it by identity."""

    name: str
    encoded: bytes
    children: "dict[str, _Record]" = field(default_factory=dict)


_STUDY_KEYS: Final = ("StudyDate", "StudyTime", "AccessionNumber", "StudyDescription", "StudyInstanceUID", "StudyID")
_LEVELS: Final = (
    _Level("PATIENT", "PT", "PatientID", ("PatientName", "PatientID")),
    _Level("STUDY", "ST", "StudyInstanceUID", _STUDY_KEYS),
    _Level("SERIES", "SE", "SeriesInstanceUID", ("Modality", "SeriesInstanceUID", "SeriesNumber")),
    _Level("IMAGE", "IM", "SOPInstanceUID", ("InstanceNumber",)),
)
# Type 2 in an object but Type 1 in a directory record, so that an empty value must be made up (PS3.3 F.5.2);
# a date no one can take for that of a study.
_INVENTED: Final = {"StudyDate": "19000101", "StudyTime": "000000", "StudyID": "1"}
_MAX_SIBLINGS: Final = 10**6  # a file id component has 8 characters, two of them the prefix

_ITEM: Final = struct.Struct("<HHI")
_OFFSET: Final = struct.Struct("<I")
# Values of the first and third element of a record: UL (12 bytes), US (10 bytes), UL, each after an 8 byte header.
_NEXT_AT: Final = 8
_LOWER_AT: Final = 30


def write_file_set(members: Iterable[bytes], folder: Path, *, uid_seed: str) -> None:
    """Write DICOM files and the DICOMDIR that lists them into a fresh folder; equal input gives equal bytes.

    Files lie in `PTnnnnnn/STnnnnnn/SEnnnnnn/IMnnnnnn`, numbered in order of arrival. One member is in memory
    at a time, and beside it about 2.5 kB for the directory records of each. The folder is not complete before
    this returns: write to a temporary name and rename.

    Not `pydicom.fileset.FileSet`: it holds a second copy of all files in a temporary folder, and compares each
    new member with all before it (2,000 small files: half a minute).

    Args:
        members: files of `to_bytes`.
        folder: does not exist yet; parents are made.
        uid_seed: decides the file-set's UID.

    Raises:
        FileExistsError: if the folder exists.
        ValueError: if two members are one SOP instance, or a level of the directory has above a million entries.

    Source: DICOM PS3.10 section 8, PS3.3 annex F.
    """
    folder.mkdir(parents=True)
    patients: dict[str, _Record] = {}
    for member in members:
        path = folder.joinpath(*_file(member, patients))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(member)
    (folder / "DICOMDIR").write_bytes(_directory(patients, uid_seed))


def _file(member: bytes, patients: dict[str, _Record]) -> list[str]:
    """Enter a member into the directory; the components of its file id."""
    header = dcmread(BytesIO(member), stop_before_pixels=True)
    siblings, file_id, is_new = patients, list[str](), False
    for level in _LEVELS:
        identity = str(header[level.identity].value)
        is_new = identity not in siblings
        if is_new:
            if len(siblings) == _MAX_SIBLINGS:
                raise ValueError(f"file-set: above {_MAX_SIBLINGS} {level.record_type} records side by side")
            name = f"{level.prefix}{len(siblings):06d}"
            siblings[identity] = _Record(name, _encode_record(level, header, [*file_id, name]))
        file_id.append(siblings[identity].name)
        siblings = siblings[identity].children
    if not is_new:
        raise ValueError(f"file-set: SOP instance {header.SOPInstanceUID} twice, expected each once")
    return file_id


def _encode_record(level: _Level, header: FileDataset, file_id: list[str]) -> bytes:
    with _strict_pydicom():
        record = Dataset()
        record.OffsetOfTheNextDirectoryRecord = 0
        record.RecordInUseFlag = 0xFFFF
        record.OffsetOfReferencedLowerLevelDirectoryEntity = 0
        record.DirectoryRecordType = level.record_type
        for keyword in level.keys:
            setattr(record, keyword, header.get(keyword) or _INVENTED.get(keyword, ""))
        if level.record_type == "IMAGE":
            record.ReferencedFileID = file_id
            record.ReferencedSOPClassUIDInFile = header.SOPClassUID
            record.ReferencedSOPInstanceUIDInFile = header.SOPInstanceUID
            record.ReferencedTransferSyntaxUIDInFile = header.file_meta.TransferSyntaxUID
        buffer = DicomBytesIO()
        buffer.is_little_endian, buffer.is_implicit_VR = True, False
        write_dataset(buffer, record)
    return buffer.getvalue()


def _directory(patients: dict[str, _Record], uid_seed: str) -> bytes:
    """The DICOMDIR file."""
    base = len(_directory_header(uid_seed, first=0, last=0))
    records = bytearray()
    starts = _lay_out(patients, records, base)
    first, last = (starts[0], starts[-1]) if starts else (0, 0)
    header = bytearray(_directory_header(uid_seed, first=first, last=last))
    # The sequence of records is the file's last element: its length stands in the last four bytes.
    _OFFSET.pack_into(header, base - _OFFSET.size, len(records))
    return bytes(header + records)


def _lay_out(siblings: dict[str, _Record], out: bytearray, base: int) -> list[int]:
    """Append records depth first and link them; their offsets from the start of the file, `base` before `out`."""
    starts: list[int] = []
    for record in siblings.values():
        start = len(out)
        if starts:
            _OFFSET.pack_into(out, starts[-1] - base + _ITEM.size + _NEXT_AT, base + start)
        starts.append(base + start)
        out += _ITEM.pack(0xFFFE, 0xE000, len(record.encoded)) + record.encoded
        children = _lay_out(record.children, out, base)
        if children:
            _OFFSET.pack_into(out, start + _ITEM.size + _LOWER_AT, children[0])
    return starts


def _directory_header(uid_seed: str, *, first: int, last: int) -> bytes:
    """The DICOMDIR file up to its first record: an empty sequence of records at the end."""
    with _strict_pydicom():
        directory = FileDataset("", {}, preamble=bytes(128), file_meta=_file_meta())
        directory.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
        directory.file_meta.MediaStorageSOPInstanceUID = _derived_uid(uid_seed, "file-set")
        directory.FileSetID = _IMPLEMENTATION_VERSION_NAME
        directory.OffsetOfTheFirstDirectoryRecordOfTheRootDirectoryEntity = first
        directory.OffsetOfTheLastDirectoryRecordOfTheRootDirectoryEntity = last
        directory.FileSetConsistencyFlag = 0
        directory.DirectoryRecordSequence = []
    return to_bytes(directory)
