"""A folder of DICOM files as a file-set, with the DICOMDIR that lists them."""

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Final

from pydicom import dcmread
from pydicom.dataset import Dataset, FileDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import MediaStorageDirectoryStorage

from cxrsynth.shards.dicom_file import IMPLEMENTATION_VERSION_NAME, derived_uid, file_meta, strict_pydicom, to_bytes


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of a file-set: its path from the folder of the DICOMDIR, and its SOP Instance UID."""

    path: str
    sop_instance_uid: str


@dataclass(frozen=True)
class _Level:
    """One level of the directory: record type, file ID prefix, identifying keyword, and the keys of a record."""

    record_type: str
    prefix: str
    identity: str
    keys: tuple[str, ...]


@dataclass(frozen=True)
class _Record:
    """A directory record, encoded with its two offsets still zero, and its child records by identity."""

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
# Type 2 in an object but Type 1 in a directory record, so an empty value needs a placeholder (PS3.3 F.5.2); no one can
# mistake this date for a study's.
_PLACEHOLDERS: Final = {"StudyDate": "19000101", "StudyTime": "000000", "StudyID": "1"}
MOST_PATIENTS: Final = 10**6  # or studies of one: a file ID component has 8 characters, two of them the prefix

_ITEM: Final = struct.Struct("<HHI")
_OFFSET: Final = struct.Struct("<I")
# Where the values of a record's first and third elements start: UL (12 bytes), US (10 bytes), UL, each after an 8-byte
# header.
_NEXT_AT: Final = 8
_LOWER_AT: Final = 30


def write_file_set(members: Iterable[bytes], folder: Path, *, uid_seed: str) -> list[StoredFile]:
    """Write DICOM files, and the DICOMDIR that lists them, into an empty folder; equal input gives equal bytes.

    Files lie in `PTnnnnnn/STnnnnnn/SEnnnnnn/IMnnnnnn`, numbered in order of arrival. One member is in memory at a
    time, plus about 2.5 kB of directory records for each. The folder is incomplete until this returns: give it a
    temporary name and rename it (`folder_atomically`).

    `pydicom.fileset.FileSet` would keep a second copy of all files in a temporary folder, and compare each new member
    with all before it (half a minute for 2,000 small files).

    Args:
        members: files of `to_bytes`.
        folder: empty, or does not exist yet; parents are made.
        uid_seed: decides the file-set's UID.

    Returns:
        Path, from the folder, and SOP Instance UID of each member, in order of arrival.

    Raises:
        FileExistsError: if the folder holds something.
        ValueError: if two members are the same SOP instance, or a level of the directory has over a million entries.

    Source: DICOM PS3.10 section 8, PS3.3 annex F.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise FileExistsError(f"{folder}: not empty")
    patients: dict[str, _Record] = {}
    stored = []
    for member in members:
        file_id, uid = _file(member, patients)
        path = folder.joinpath(*file_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(member)
        stored.append(StoredFile("/".join(file_id), uid))
    (folder / "DICOMDIR").write_bytes(_directory(patients, uid_seed))
    return stored


def _file(member: bytes, patients: dict[str, _Record]) -> tuple[list[str], str]:
    """Add a member to the directory; returns the components of its file ID, and its SOP Instance UID."""
    header = dcmread(BytesIO(member), stop_before_pixels=True)
    siblings, file_id, is_new = patients, list[str](), False
    for level in _LEVELS:
        identity = str(header[level.identity].value)
        is_new = identity not in siblings
        if is_new:
            if len(siblings) == MOST_PATIENTS:
                raise ValueError(f"file-set: more than {MOST_PATIENTS} {level.record_type} records side by side")
            name = f"{level.prefix}{len(siblings):06d}"
            siblings[identity] = _Record(name, _encode_record(level, header, [*file_id, name]))
        file_id.append(siblings[identity].name)
        siblings = siblings[identity].children
    if not is_new:
        raise ValueError(f"file-set: SOP instance {header.SOPInstanceUID} appears twice, expected once")
    return file_id, str(header.SOPInstanceUID)


def _encode_record(level: _Level, header: FileDataset, file_id: list[str]) -> bytes:
    with strict_pydicom():
        record = Dataset()
        record.OffsetOfTheNextDirectoryRecord = 0
        record.RecordInUseFlag = 0xFFFF
        record.OffsetOfReferencedLowerLevelDirectoryEntity = 0
        record.DirectoryRecordType = level.record_type
        for keyword in level.keys:
            setattr(record, keyword, header.get(keyword) or _PLACEHOLDERS.get(keyword, ""))
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
    # The sequence of records is the last element, so its length is in the last four bytes of the header.
    _OFFSET.pack_into(header, base - _OFFSET.size, len(records))
    return bytes(header + records)


def _lay_out(siblings: dict[str, _Record], out: bytearray, base: int) -> list[int]:
    """Append records depth first and link them; returns their offsets in the file, where `out` starts at `base`."""
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
    """The DICOMDIR file up to its first record; it ends with an empty sequence of records."""
    with strict_pydicom():
        directory = FileDataset("", {}, preamble=bytes(128), file_meta=file_meta())
        directory.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
        directory.file_meta.MediaStorageSOPInstanceUID = derived_uid(uid_seed, "file-set")
        directory.FileSetID = IMPLEMENTATION_VERSION_NAME
        directory.OffsetOfTheFirstDirectoryRecordOfTheRootDirectoryEntity = first
        directory.OffsetOfTheLastDirectoryRecordOfTheRootDirectoryEntity = last
        directory.FileSetConsistencyFlag = 0
        directory.DirectoryRecordSequence = []
    return to_bytes(directory)
