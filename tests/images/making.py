"""Pictures, tars and DICOM objects made in code, for the tests of images."""

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from cxrsynth.images.collection import Collection
from cxrsynth.images.image import Damaged, Radiograph

Levels = npt.NDArray[Any]


def levels(seed: int, *, side: int = 12) -> Levels:
    """A picture unique to its seed, uint8 [side, side]."""
    return np.random.default_rng(seed).integers(0, 256, (side, side), dtype=np.uint8)


def encoded(picture: Levels | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(buffer, kind, **options)
    return buffer.getvalue()


def as_image(picture: Levels) -> npt.NDArray[np.float32]:
    return picture.astype(np.float32) / np.float32(255)


def member(name: str, content: bytes = b"", **header: Any) -> tuple[tarfile.TarInfo, bytes]:
    """A header and its content; `header` overrides its fields."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in header.items():
        setattr(info, field, value)
    return info, content


def tar_of(members: Iterable[tuple[tarfile.TarInfo, bytes]], *, form: int = tarfile.USTAR_FORMAT) -> bytes:
    """A tar of headers and contents as given, even if they disagree."""
    raw = b""
    for info, content in members:
        raw += info.tobuf(form) + content + bytes(-len(content) % tarfile.BLOCKSIZE)
    return raw + bytes(2 * tarfile.BLOCKSIZE)


def shard_of(count: int, *, side: int = 12) -> bytes:
    """A tar of samples `s0`, `s1`, ... of `levels(0)`, `levels(1)`, ... and a JSON member each."""
    members = []
    for index in range(count):
        members.append(member(f"s{index}.json", b'{"view": "PA", "sex": "F"}'))
        members.append(member(f"s{index}.png", encoded(levels(index, side=side))))
    return tar_of(members)


def write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read_all(collection: Collection, *, workers: int = 2) -> tuple[list[Radiograph], list[Damaged]]:
    """All readable images and all damaged ones."""
    found = [radiograph for unit in collection.units for radiograph in collection.read(unit, workers=workers)]
    return [f for f in found if isinstance(f, Radiograph)], [f for f in found if isinstance(f, Damaged)]


def dicom_of(stored: Levels, *, pixels: bool = True, more: Iterable[DataElement] = (), **elements: Any) -> bytes:
    """A DICOM file of gray stored values; `elements` by keyword, and `more`, are set last."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = SecondaryCaptureImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = "2.25.7"
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = stored.shape[:2]
    dataset.BitsAllocated = dataset.BitsStored = stored.dtype.itemsize * 8
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(stored.dtype.kind == "i")
    if pixels:
        dataset.PixelData = stored.tobytes()
        dataset["PixelData"].VR = "OW" if dataset.BitsAllocated > 8 else "OB"
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    for element in more:
        dataset.add(element)
    buffer = io.BytesIO()
    dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()
