"""Raw images, and how they are decoded."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cxrsynth.images import dicom, pictures
from cxrsynth.images.image import Damaged, Radiograph
from cxrsynth.images.limits import MAX_TEXT_BYTES, UnreadableError, shown
from cxrsynth.images.metadata import MetadataReader
from cxrsynth.images.table import Row

IMAGE_EXTENSIONS = (*pictures.EXTENSIONS, *dicom.EXTENSIONS)


@dataclass(frozen=True, slots=True)
class RawImage:
    """One image before decoding; `extension` names the member with the image, `member` where it came from.

    `row` is its row in a table; with one, the JSON and text members are ignored. `patient` is set if the key identifies
    the patient, `is_full_range` if white is the largest value of all bits.
    """

    key: str
    source: str
    place: int
    member: str
    extension: str
    members: Mapping[str, bytes] = field(repr=False)
    row: Row | None = field(default=None, repr=False)
    patient: str = field(default="", repr=False)
    is_full_range: bool = False


def decode(raw: RawImage | Damaged, metadata: MetadataReader) -> Radiograph | Damaged:
    """Pixels and report of an image; what cannot be read becomes a `Damaged`, never a replacement."""
    if isinstance(raw, Damaged):
        return raw
    content = raw.members[raw.extension]
    try:
        header: Mapping[str, Any] = {}
        if raw.extension in dicom.EXTENSIONS:
            found: dicom.DicomImage | pictures.Picture = (opened := dicom.read_dicom(content))
            header = opened.header
        else:
            found = pictures.read_picture(content, is_full_range=raw.is_full_range)
        row = raw.row or Row(raw.place + 1, _record(raw.members))
        record = metadata.with_header(row.record, header) if header else row.record
        known = metadata.read(record, key=raw.key, line=row.line, path=raw.member)
    except UnreadableError as error:
        return Damaged(raw.source, shown(raw.member), str(error))
    return Radiograph(
        key=raw.key,
        source=raw.source,
        place=raw.place,
        pixels=found.pixels,
        sha256=hashlib.sha256(content).hexdigest(),
        report=known.report,
        age_group=known.age_group,
        patient=raw.patient or known.patient,
        report_id=known.report_id,
        members=raw.members,
        gray_range=found.gray_range,
        table_line=row.line if row.is_of_table else None,
    )


def identify(raw: RawImage | Damaged, metadata: MetadataReader) -> tuple[str, str] | None:
    """SHA-256 and patient of an image, as `decode` gives them; pixels are decoded for DICOM only. None if damaged."""
    if isinstance(raw, Damaged):
        return None
    if raw.extension in dicom.EXTENSIONS:  # the patient may be in the header
        found = decode(raw, metadata)
        return None if isinstance(found, Damaged) else (found.sha256, found.patient)
    try:
        row = raw.row or Row(raw.place + 1, _record(raw.members))
        known = metadata.read(row.record, key=raw.key, line=row.line, path=raw.member)
    except UnreadableError:
        return None
    return hashlib.sha256(raw.members[raw.extension]).hexdigest(), raw.patient or known.patient


def _record(members: Mapping[str, bytes]) -> dict[str, Any]:
    """The JSON member, with the text member added as `txt`.

    Raises:
        UnreadableError: if one of them is too long, or is not what its name says.
    """
    for extension in ("json", "txt"):
        if len(members.get(extension, b"")) > MAX_TEXT_BYTES:
            raise UnreadableError(f"its {extension} is longer than {MAX_TEXT_BYTES} bytes")
    try:
        record = json.loads(members.get("json", b"{}").decode("utf-8-sig"))
        text = members.get("txt", b"").decode("utf-8-sig")
    except (ValueError, RecursionError):
        raise UnreadableError("its json or txt is not what the name says") from None
    if not isinstance(record, dict):
        raise UnreadableError("its json is not an object")
    return {**record, "txt": text} if text.strip() else record
