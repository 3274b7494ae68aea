"""What all our DICOM files share: derived UIDs, File Meta Information, strict validation, bytes."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Final

from pydicom import config, dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

# Chosen once, at random; every UID derives from it. Changing it changes the UIDs of all data sets.
_NAMESPACE: Final = uuid.UUID("5f0c7c1e-8d0a-4d2b-9f57-3b1a6c2e94d7")
_IMPLEMENTATION_CLASS_UID: Final = UID(f"2.25.{_NAMESPACE.int}")
# SH, 16 characters at most; also the file-set's own id.
IMPLEMENTATION_VERSION_NAME: Final = "CXRSYNTH"


def derived_uid(seed: str, *path: str) -> UID:
    """A UID from a name-based UUID of seed and path, at most 44 characters (PS3.5 B.2)."""
    return UID(f"2.25.{uuid.uuid5(uuid.uuid5(_NAMESPACE, seed), '/'.join(path)).int}")


def file_meta() -> FileMetaDataset:
    """File Meta Information (PS3.10 7.1), except what identifies the object itself."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = _IMPLEMENTATION_CLASS_UID
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    return meta


@contextmanager
def strict_pydicom() -> Iterator[None]:
    """Make pydicom refuse misspelled keywords and invalid values, about which it otherwise only warns.

    The switches are global to the process: they are restored on leaving, and no two threads should be in here at once.
    pydicom validates assigned values by the reading mode, hence `strict_reading`.
    """
    keyword_behavior, writing_mode = config.INVALID_KEYWORD_BEHAVIOR, config.settings.writing_validation_mode
    config.INVALID_KEYWORD_BEHAVIOR, config.settings.writing_validation_mode = "RAISE", config.RAISE
    try:
        with config.strict_reading():
            yield
    finally:
        config.INVALID_KEYWORD_BEHAVIOR, config.settings.writing_validation_mode = keyword_behavior, writing_mode


def to_bytes(dataset: Dataset) -> bytes:
    """The object as a DICOM file (PS3.10), Explicit VR Little Endian; equal objects give equal bytes."""
    buffer = BytesIO()
    with strict_pydicom():
        dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()
