"""An image as bytes, and how it is decoded."""

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
    """One image before it is decoded; `extension` names the member with the image, `member` where it came from.

    `row` is what a table tells of it; with one the JSON and text members are not looked at. `patient` is set where the
    key tells it.
    """

    key: str
    source: str
    place: int
    member: str
    extension: str
    members: Mapping[str, bytes] = field(repr=False)
    row: Row | None = field(default=None, repr=False)
    patient: str = field(default="", repr=False)


def decode(raw: RawImage | Damaged, teller: MetadataReader) -> Radiograph | Damaged:
    """Pixels and report of an image; what cannot be read is told of, never replaced."""
    if isinstance(raw, Damaged):
        return raw
    content = raw.members[raw.extension]
    try:
        header: Mapping[str, Any] = {}
        if raw.extension in dicom.EXTENSIONS:
            radiograph = dicom.read_dicom(content)
            pixels, header = radiograph.pixels, radiograph.told
        else:
            pixels = pictures.read_picture(content)
        row = raw.row or Row(raw.place + 1, _record(raw.members))
        # What stands beside a DICOM object comes first: of columns that say the same, the first is read.
        told = teller.tell({**row.record, **header, **row.record}, key=raw.key, line=row.line)
    except UnreadableError as error:
        return Damaged(raw.source, shown(raw.member), str(error))
    return Radiograph(
        key=raw.key,
        source=raw.source,
        place=raw.place,
        pixels=pixels,
        sha256=hashlib.sha256(content).hexdigest(),
        report=told.report,
        age_group=told.age_group,
        patient=raw.patient or told.patient,
        members=raw.members,
    )


def _record(members: Mapping[str, bytes]) -> dict[str, Any]:
    """The JSON member, and the text where it has none of its own.

    Raises:
        UnreadableError: if one of them is too long or not what its name says.
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
