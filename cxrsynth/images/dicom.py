"""DICOM objects in bytes -> pixels as a viewer shows them, and what the header tells of the image."""

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
_TOLD = ("ViewPosition", "PatientSex", "PatientAge", "PatientID")
_LUMINANCE = np.array([0.299, 0.587, 0.114])
# `catch_warnings` changes a global: one thread at a time. Pixels are decoded outside of it.
_WARNINGS = threading.Lock()
_PYDICOM_LOG = logging.getLogger("pydicom")
_IMAGE_GROUP = 0x0028


@dataclass(frozen=True, slots=True)
class DicomImage:
    """Pixels [H, W] float32 in [0, 1], and the header's view, sex, age and patient by keyword."""

    pixels: Pixels = field(repr=False)
    told: dict[str, str] = field(repr=False)


def is_dicom(start: bytes) -> bool:
    """Whether a file that starts with these 132 bytes is a DICOM file (PS3.10 7.1)."""
    return start[128:132] == b"DICM"


def read_dicom(content: bytes) -> DicomImage:
    """Decode one DICOM object of one frame, in any transfer syntax pydicom has a decoder for here.

    Rescale or modality LUT, then the first VOI LUT or window; MONOCHROME1 is inverted. Without a VOI, 8-bit pixels keep
    their range and deeper ones are stretched to their least and greatest value, as viewers do.

    Raises:
        UnreadableError: if there is no whole image of one frame that can be decoded here.

    Source: DICOM PS3.3 C.7.6.3 (Image Pixel), C.11.1 (Modality LUT), C.11.2 (VOI LUT).
    """
    with _parsing():
        dataset = dcmread(BytesIO(content))
        told = {keyword: str(dataset.get(keyword) or "") for keyword in _TOLD}
        _check(dataset)
        voi = _voi(dataset)
    try:
        pixels = _grey(dataset, voi)
    except DECODER_ERRORS as error:
        raise UnreadableError(f"DICOM pixels that cannot be decoded here ({type(error).__name__})") from None
    if not np.isfinite(pixels).all():
        raise UnreadableError("DICOM pixels or rescaling that are no numbers")
    return DicomImage(pixels, told)


def key_of_ours(content: bytes) -> str:
    """Sample key of an object of a file-set of ours: its patient names the report, its number the image.

    Raises:
        UnreadableError: if the bytes are no such object.
    """
    with _parsing():
        dataset = dcmread(BytesIO(content), stop_before_pixels=True)
        subject, number = str(dataset.PatientID), int(dataset.InstanceNumber)
    return sample_key(subject.removeprefix("SYN-"), number - 1)


@contextmanager
def _parsing() -> Iterator[None]:
    """Turn what a broken header raises into an UnreadableError; what pydicom warns of and logs quotes the header."""
    with _WARNINGS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        was_disabled, _PYDICOM_LOG.disabled = _PYDICOM_LOG.disabled, True
        try:
            yield
        except DECODER_ERRORS as error:
            raise UnreadableError(f"no DICOM object, or a broken one ({type(error).__name__})") from None
        finally:
            _PYDICOM_LOG.disabled = was_disabled


def _check(dataset: Dataset) -> None:
    """Refuse what is no single frame, before its pixels are decoded."""
    if not any(keyword in dataset for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise UnreadableError("a DICOM object without pixels")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames != 1:
        raise UnreadableError(f"a DICOM object of {frames} frames, expected one")
    kind = str(dataset.PhotometricInterpretation)
    if kind == "PALETTE COLOR":
        raise UnreadableError("a DICOM object of palette colours, expected grey, RGB or YBR")
    refuse_large(int(dataset.Columns), int(dataset.Rows))
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_private or not syntax.is_transfer_syntax:
        raise UnreadableError("an unknown transfer syntax")
    for tag in list(dataset.keys()):
        # pydicom reads a value when it is asked for: what it says of a bad one is to be said in here.
        if tag.group == _IMAGE_GROUP:
            dataset[tag]


def _voi(dataset: Dataset) -> str:
    """`lut`, `window`, or nothing where there is neither, or no usable one; a LUT is preferred, as pydicom does."""
    sequence = dataset.get("VOILUTSequence")
    if sequence and "LUTDescriptor" in sequence[0] and "LUTData" in sequence[0]:
        return "lut"
    center, width = (_first(dataset.get(keyword)) for keyword in ("WindowCenter", "WindowWidth"))
    # PS3.3 C.11.2.1.2.1: the linear function, which is the default, needs a width of 1 or more.
    linear = str(dataset.get("VOILUTFunction") or "LINEAR").upper() == "LINEAR"
    usable = center is not None and width is not None and (width >= 1 if linear else width > 0)
    return "window" if usable else ""


def _first(value: Any) -> float | None:
    """A decimal string, or the first of several; None for an empty one."""
    if isinstance(value, MultiValue):
        value = value[0] if value else None
    return None if value is None or value == "" else float(value)


def _grey(dataset: Dataset, voi: str) -> Pixels:
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
            # Rescaling gives floats, even by a slope of 1; a table is looked up by whole numbers.
            values = apply_voi(np.rint(values).astype(np.int64), dataset)
        elif voi == "window":
            values = apply_windowing(values, dataset)
        grey = ((values.astype(np.float64) - low) / (high - low)).clip(0, 1)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        grey = 1 - grey
    return np.asarray(grey, dtype=np.float32)


def _range(dataset: Dataset, values: npt.NDArray[Any], voi: str) -> tuple[float, float]:
    """What is black and what is white after the VOI (what pydicom's windowing maps to), or without one."""
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
