"""DICOM bytes -> pixels as a viewer shows them, and the metadata in the header."""

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.pixels.processing import apply_modality_lut, apply_voi, apply_windowing

from cxrsynth.images.limits import DECODER_ERRORS, UnreadableError, refuse_large
from cxrsynth.images.pictures import Pixels
from cxrsynth.shards.sample import sample_key

EXTENSIONS = ("dcm", "dicom")
_METADATA = ("ViewPosition", "PatientSex", "PatientAge", "PatientID")
_LUMINANCE = np.array([0.299, 0.587, 0.114])
# `catch_warnings` changes a global: one thread at a time. Pixels are decoded outside of it.
_WARNINGS = threading.Lock()
_PYDICOM_LOG = logging.getLogger("pydicom")
_IMAGE_GROUP = 0x0028


@dataclass(frozen=True, slots=True)
class DicomImage:
    """Pixels [H, W] float32 in [0, 1], and the header's view, sex, age and patient by keyword."""

    pixels: Pixels = field(repr=False)
    header: dict[str, str] = field(repr=False)


def is_dicom(start: bytes) -> bool:
    """Whether a file that starts with these 132 bytes is a DICOM file (PS3.10 7.1)."""
    return start[128:132] == b"DICM"


def read_dicom(content: bytes) -> DicomImage:
    """Decode a single-frame DICOM object in any transfer syntax for which pydicom has a decoder installed.

    Applies the rescale or modality LUT, then the first VOI LUT or window, and inverts MONOCHROME1. Without a VOI, 8-bit
    pixels keep their range and deeper ones are stretched between their smallest and largest value, as viewers do.

    Raises:
        UnreadableError: if there is no complete single-frame image that can be decoded here.

    Source: DICOM PS3.3 C.7.6.3 (Image Pixel), C.11.1 (Modality LUT), C.11.2 (VOI LUT).
    """
    with _parsing():
        dataset = dcmread(BytesIO(content))
        header = {keyword: str(dataset.get(keyword) or "") for keyword in _METADATA}
        _check(dataset)
        voi = _voi(dataset)
    try:
        pixels = _gray(dataset, voi)
    except DECODER_ERRORS as error:
        raise UnreadableError(f"DICOM pixels that cannot be decoded here ({type(error).__name__})") from None
    if not np.isfinite(pixels).all():
        raise UnreadableError("DICOM pixels or rescaling that are not numbers")
    return DicomImage(pixels, header)


def key_of_ours(content: bytes) -> str:
    """Sample key of an object that cxrsynth wrote: its patient identifies the report, its number the image.

    Raises:
        UnreadableError: if the bytes are not such an object.
    """
    with _parsing():
        dataset = dcmread(BytesIO(content), stop_before_pixels=True)
        subject, number = str(dataset.PatientID), int(dataset.InstanceNumber)
    return sample_key(subject.removeprefix("SYN-"), number - 1)


@contextmanager
def _parsing() -> Iterator[None]:
    """Turn errors of a broken header into UnreadableError, and silence pydicom: its warnings quote the header."""
    with _WARNINGS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        was_disabled, _PYDICOM_LOG.disabled = _PYDICOM_LOG.disabled, True
        try:
            yield
        except DECODER_ERRORS as error:
            raise UnreadableError(f"not a DICOM object, or a broken one ({type(error).__name__})") from None
        finally:
            _PYDICOM_LOG.disabled = was_disabled


def _check(dataset: Dataset) -> None:
    """Refuse anything but a single frame, before its pixels are decoded."""
    if not any(keyword in dataset for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise UnreadableError("a DICOM object without pixels")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames != 1:
        raise UnreadableError(f"a DICOM object of {frames} frames, expected one")
    kind = str(dataset.PhotometricInterpretation)
    if kind == "PALETTE COLOR":
        raise UnreadableError("a DICOM object of palette colors, expected gray, RGB or YBR")
    refuse_large(int(dataset.Columns), int(dataset.Rows))
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_private or not syntax.is_transfer_syntax:
        raise UnreadableError("an unknown transfer syntax")
    for tag in list(dataset.keys()):
        # pydicom parses a value on first access: a bad one must fail here.
        if tag.group == _IMAGE_GROUP:
            dataset[tag]


def _voi(dataset: Dataset) -> str:
    """`lut`, `window`, or empty if neither is usable; a LUT is preferred, as in pydicom."""
    sequence = dataset.get("VOILUTSequence")
    if sequence and "LUTDescriptor" in sequence[0] and "LUTData" in sequence[0]:
        return "lut"
    center, width = (_first(dataset.get(keyword)) for keyword in ("WindowCenter", "WindowWidth"))
    # PS3.3 C.11.2.1.2.1: the linear function, the default, needs a width of 1 or more.
    linear = str(dataset.get("VOILUTFunction") or "LINEAR").upper() == "LINEAR"
    usable = center is not None and width is not None and (width >= 1 if linear else width > 0)
    return "window" if usable else ""


def _first(value: Any) -> float | None:
    """A decimal string, or the first of several; None for an empty one."""
    if isinstance(value, MultiValue):
        value = value[0] if value else None
    return None if value is None or value == "" else float(value)


def _gray(dataset: Dataset, voi: str) -> Pixels:
    stored = dataset.pixel_array
    if stored.ndim == 3 and stored.shape[2] == 3:
        # Already RGB: pydicom converts YBR by itself.
        return np.asarray((stored @ _LUMINANCE / (2 ** int(dataset.BitsStored) - 1)).clip(0, 1), dtype=np.float32)
    if stored.shape != (dataset.Rows, dataset.Columns):
        raise ValueError(f"{stored.ndim} dimensions")
    values = apply_modality_lut(stored, dataset)
    low, high = _range(dataset, values, voi)
    with np.errstate(all="ignore"):
        if voi == "lut":
            # Rescaling gives floats, even with a slope of 1; a table needs whole numbers.
            values = apply_voi(np.rint(values).astype(np.int64), dataset)
        elif voi == "window":
            values = apply_windowing(values, dataset)
        gray = ((values.astype(np.float64) - low) / (high - low)).clip(0, 1)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        gray = 1 - gray
    return np.asarray(gray, dtype=np.float32)


def _range(dataset: Dataset, values: npt.NDArray[Any], voi: str) -> tuple[float, float]:
    """The values of black and white after the VOI (the range pydicom's windowing maps to), or without one."""
    if voi == "lut":
        return 0.0, 2.0 ** int(dataset.VOILUTSequence[0].LUTDescriptor[2]) - 1
    deep = int(dataset.BitsStored) > 8
    if not voi and deep and values.min() < values.max():
        return float(values.min()), float(values.max())
    if dataset.get("ModalityLUTSequence"):
        return 0.0, 2.0 ** int(dataset.ModalityLUTSequence[0].LUTDescriptor[2]) - 1
    bits, signed = int(dataset.BitsStored), int(dataset.PixelRepresentation)
    low, high = (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if signed else (0.0, 2.0**bits - 1)
    slope, intercept = (_first(dataset.get(keyword)) for keyword in ("RescaleSlope", "RescaleIntercept"))
    if slope is None or intercept is None:
        return low, high
    return low * slope + intercept, high * slope + intercept
