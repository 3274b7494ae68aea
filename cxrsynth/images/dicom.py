"""DICOM bytes -> pixels as a viewer shows them, and the metadata in the header."""

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_modality_lut, apply_voi, apply_windowing
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from cxrsynth.images.limits import DECODER_ERRORS, UnreadableError, refuse_large
from cxrsynth.images.pictures import Pixels
from cxrsynth.shards.sample import sample_key

EXTENSIONS = ("dcm", "dicom")
_METADATA = ("ViewPosition", "PatientSex", "PatientAge", "PatientID")
_OUTLIERS = 0.5  # percent of the pixels at either end
_TABLES = ("ModalityLUTSequence", "VOILUTSequence")
_BITS = (8, 10, 12, 14, 16)
_LUMINANCE = np.array([0.299, 0.587, 0.114])
# `catch_warnings` changes a global: one thread at a time. Pixels are decoded outside of it.
_WARNINGS = threading.Lock()
_PYDICOM_LOG = logging.getLogger("pydicom")
_IMAGE_GROUP = 0x0028


@dataclass(frozen=True, slots=True)
class DicomImage:
    """Pixels [H, W] float32 in [0, 1], and the header's view, sex, age and patient by keyword.

    `gray_range` says what black and white are taken from.
    """

    pixels: Pixels = field(repr=False)
    gray_range: str
    header: dict[str, str] = field(repr=False)


def is_dicom(start: bytes) -> bool:
    """Whether a file that starts with these 132 bytes is a DICOM file (PS3.10 7.1)."""
    return start[128:132] == b"DICM"


def read_dicom(content: bytes) -> DicomImage:
    """Decode a single-frame DICOM object in any transfer syntax for which pydicom has a decoder installed.

    Applies the rescale or modality LUT, then the first VOI LUT or window that can be used, and inverts MONOCHROME1 and
    an inverse presentation LUT. Without a VOI, 8-bit pixels keep their range; of deeper ones, black and white are the
    levels that half a percent of the pixels lie below and above, so that a burned-in marker or a broken detector
    element does not darken the rest. Padding is black, and part of no range. Pixels that are not square are resampled.

    Raises:
        UnreadableError: if there is no complete single-frame image that can be decoded here.

    Source: DICOM PS3.3 C.7.6.3 (Image Pixel), C.7.5.1.1.2 (Pixel Padding Value), C.11.1 (Modality LUT), C.11.2 (VOI
    LUT), C.11.6 (Presentation LUT shape).
    """
    with _parsing():
        dataset = _parsed(content)
        header = {keyword: str(dataset.get(keyword) or "") for keyword in _METADATA}
        _check(dataset)
        _drop_empty(dataset)
        voi = _voi(dataset)
    try:
        pixels, gray_range = _gray(dataset, voi)
    except DECODER_ERRORS:
        raise UnreadableError(f"DICOM pixels that cannot be decoded here{_advice(dataset)}") from None
    if not np.isfinite(pixels).all():
        raise UnreadableError("DICOM pixels or rescaling that are not numbers")
    return DicomImage(pixels, f"DICOM, {gray_range}", header)


def _parsed(content: bytes) -> Dataset:
    """The elements of a file, or of one from before files had a preamble (PS3.10 7.1), as archives still hold them."""
    if is_dicom(content[:132]):
        return dcmread(BytesIO(content))
    dataset = dcmread(BytesIO(content), force=True)
    if "SOPClassUID" not in dataset:
        raise ValueError("no elements")
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    return dataset


def _advice(dataset: Dataset) -> str:
    """What decodes the pixels, where it is known."""
    syntax = dataset.file_meta.TransferSyntaxUID
    is_compressed = syntax.is_transfer_syntax and not syntax.is_private and syntax.is_compressed
    known = is_compressed and syntax != DeflatedExplicitVRLittleEndian
    if not known or get_decoder(syntax).is_available:
        return ""
    return f": {syntax.name} needs a decoder: pip install 'cxrsynth[dicom]'"


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
        except DECODER_ERRORS:
            raise UnreadableError("not a DICOM object, or a broken one") from None
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


def _drop_empty(dataset: Dataset) -> None:
    """Take out lookup tables without content, and fill in half of a rescaling: pydicom would stumble over both."""
    for keyword in _TABLES:
        if keyword in dataset:
            items = [one for one in dataset.get(keyword) or () if one.get("LUTDescriptor") and one.get("LUTData")]
            if items:
                setattr(dataset, keyword, Sequence(items))
            else:
                delattr(dataset, keyword)
    if "RescaleSlope" in dataset or "RescaleIntercept" in dataset:
        for keyword, neutral in (("RescaleSlope", "1"), ("RescaleIntercept", "0")):
            if _first(dataset.get(keyword)) is None:
                setattr(dataset, keyword, neutral)


def _voi(dataset: Dataset) -> str:
    """`lut`, `window`, or empty if neither is usable; a LUT is preferred, as in pydicom."""
    if "VOILUTSequence" in dataset:
        return "lut"
    # PS3.3 C.11.2.1.2.1: the linear function, the default, needs a width of 1 or more.
    linear = str(dataset.get("VOILUTFunction") or "LINEAR").upper() == "LINEAR"
    centers, widths = (_numbers(dataset.get(keyword)) for keyword in ("WindowCenter", "WindowWidth"))
    for center, width in zip(centers, widths, strict=False):
        if center is not None and width is not None and (width >= 1 if linear else width > 0):
            dataset.WindowCenter, dataset.WindowWidth = center, width
            return "window"
    return ""


def _numbers(value: Any) -> list[float | None]:
    """Decimal strings, of which there may be one, several or none; None for an empty one."""
    values = list(value) if isinstance(value, MultiValue) else [value]
    return [None if one is None or one == "" else float(one) for one in values]


def _first(value: Any) -> float | None:
    """A decimal string, or the first of several; None for an empty one."""
    if isinstance(value, MultiValue):
        value = value[0] if value else None
    return None if value is None or value == "" else float(value)


def _gray(dataset: Dataset, voi: str) -> tuple[Pixels, str]:
    """Pixels [H, W], and what their range was taken from."""
    stored = _stored(dataset)
    if stored.ndim == 3 and stored.shape[2] == 3:
        # Already RGB: pydicom converts YBR by itself.
        bits = int(dataset.BitsStored)
        return np.asarray((stored @ _LUMINANCE / (2**bits - 1)).clip(0, 1), dtype=np.float32), f"{bits} bits of color"
    if stored.shape != (dataset.Rows, dataset.Columns):
        raise ValueError(f"{stored.ndim} dimensions")
    padding = _padding(dataset, stored)
    values = _rescaled(dataset, stored)
    low, high, gray_range = _range(dataset, values if padding is None else values[~padding], voi)
    with np.errstate(all="ignore"):
        if voi == "lut":
            values = _looked_up(dataset, values)
        elif voi == "window":
            values = apply_windowing(values, dataset)
        gray = ((values.astype(np.float64) - low) / (high - low)).clip(0, 1)
    # In images for presentation MONOCHROME1 comes with the inverse shape, which says the same again.
    shape = str(dataset.get("PresentationLUTShape") or "").upper()
    if dataset.PhotometricInterpretation == "MONOCHROME1" or shape == "INVERSE":
        gray = 1 - gray
    if padding is not None:
        gray = np.where(padding, 0.0, gray)
    return _square_pixels(dataset, np.asarray(gray, dtype=np.float32)), gray_range


def _looked_up(dataset: Dataset, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    # Rescaling gives floats, even with a slope of 1; a table needs whole numbers.
    return np.asarray(apply_voi(np.rint(values).astype(np.int64), _unpacked(dataset)))


def _stored(dataset: Dataset) -> npt.NDArray[Any]:
    """Stored values: the bits of a pixel that are its value, where others hold an overlay or nothing (PS3.5 8.1.1)."""
    if "PixelData" not in dataset:
        return np.asarray(dataset.pixel_array)  # floating-point numbers
    bits, high, allocated = (int(dataset[name].value) for name in ("BitsStored", "HighBit", "BitsAllocated"))
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated or not bits <= high + 1 <= allocated:
        return np.asarray(dataset.pixel_array)
    # pydicom takes the value for the lowest bits, and would drop those above it.
    dataset.BitsStored = high + 1
    try:
        stored = np.asarray(dataset.pixel_array)
    finally:
        dataset.BitsStored = bits
    if stored.dtype.kind not in "iu":
        return stored
    # Up to the highest bit, then down to the lowest: the sign comes along.
    return (stored << (allocated - 1 - high)) >> (allocated - bits)


def _padding(dataset: Dataset, stored: npt.NDArray[Any]) -> npt.NDArray[np.bool_] | None:
    """Pixels that are no part of the image; None if there are none, or nothing else."""
    kind = next((kind for kind in ("Float", "DoubleFloat") if f"{kind}PixelData" in dataset), "")
    value = dataset.get(f"{kind}PixelPaddingValue")
    if value is None or isinstance(value, MultiValue) or value == "":
        return None
    other = dataset.get(f"{kind}PixelPaddingRangeLimit")
    number = float if kind else partial(_as_stored, dataset)
    low, high = sorted((number(value), number(value if other in (None, "") else other)))
    padding = (stored >= low) & (stored <= high)
    return padding if padding.any() and not padding.all() else None


def _as_stored(dataset: Dataset, value: Any) -> int:
    """A value of a pixel: one that is written without its sign has it (PS3.5 6.2: US or SS), and the reverse."""
    number, span = int(value), 2 ** int(dataset.BitsAllocated)
    if dataset.PixelRepresentation == 1:
        return number - span if number >= span // 2 else number
    return number + span if number < 0 else number


def _rescaled(dataset: Dataset, stored: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Values after the modality LUT; a slope or intercept that is empty does nothing."""
    if "ModalityLUTSequence" in dataset:
        return np.asarray(apply_modality_lut(stored, _unpacked(dataset)))
    slope, intercept = _rescale(dataset)
    return stored if (slope, intercept) == (1.0, 0.0) else stored.astype(np.float64) * slope + intercept


def _rescale(dataset: Dataset) -> tuple[float, float]:
    slope, intercept = (_first(dataset.get(keyword)) for keyword in ("RescaleSlope", "RescaleIntercept"))
    return 1.0 if slope is None else slope, 0.0 if intercept is None else intercept


def _unpacked(dataset: Dataset) -> Dataset:
    """The data set with lookup tables of 8 bits one entry a word: some are packed two in a word (PS3.3 C.11.1.1)."""
    for keyword in _TABLES:
        for item in (dataset.get(keyword) or ())[:1]:
            entries, first, bits = (int(number) for number in item.LUTDescriptor)
            if keyword == "ModalityLUTSequence" and bits not in (8, 16):
                item.LUTDescriptor = [entries, first, 16]  # others are against PS3.3, and found all the same
            data = item["LUTData"]
            if bits != 8 or data.VR != "OW" or len(data.value) not in (entries, entries + entries % 2):
                continue
            packed = np.frombuffer(data.value, dtype=np.uint8)[:entries].astype(np.uint16)
            item.LUTData = packed.tobytes()
            item["LUTData"].VR = "OW"
    return dataset


def _white(item: Dataset, shown: npt.NDArray[Any]) -> float:
    """White of a lookup table: the largest value of the fewest bits that its entries fit in, of those it declares.

    Tables that declare 16 bits and hold 12 are common. Half a percent of the entries may be outliers if they are those
    of no more of the pixels, whose values after the table are `shown`.
    """
    declared = int(item.LUTDescriptor[2])
    data = item.LUTData
    entries = np.frombuffer(data, dtype="<u2") if isinstance(data, bytes) else np.atleast_1d(np.asarray(data))

    def fits(bits: int) -> bool:
        above = [int(np.count_nonzero(values >= 1 << bits)) / values.size for values in (entries, shown)]
        return above[0] == 0 or max(above) < _OUTLIERS / 100

    return 2.0 ** min((bits for bits in _BITS if bits <= declared and fits(bits)), default=declared) - 1


def _square_pixels(dataset: Dataset, gray: Pixels) -> Pixels:
    """The image with as many pixels a length down as across; unchanged where nothing says otherwise."""
    ratio = dataset.get("PixelAspectRatio")
    if not isinstance(ratio, MultiValue) or len(ratio) != 2:
        return gray
    down, across = (float(side) for side in ratio)
    if not (0 < down < np.inf and 0 < across < np.inf) or down == across or not 0.1 <= down / across <= 10:
        return gray
    height, width = gray.shape
    size = (width, max(1, round(height * down / across)))
    refuse_large(*size)
    resized = Image.fromarray(gray).resize(size, Image.Resampling.BILINEAR)
    return np.asarray(resized, dtype=np.float32).clip(0, 1)


def _range(dataset: Dataset, values: npt.NDArray[Any], voi: str) -> tuple[float, float, str]:
    """The values of black and white after the VOI (the range pydicom's windowing maps to), or without one.

    The last part says what they were taken from.
    """
    if voi == "lut":
        return 0.0, _white(dataset.VOILUTSequence[0], _looked_up(dataset, values)), "VOI LUT"
    is_float = "PixelData" not in dataset
    deep = is_float or int(dataset.BitsStored) > 8
    if not voi and deep:
        low, high = (float(level) for level in np.percentile(values, (_OUTLIERS, 100 - _OUTLIERS)))
        if low == high:  # most pixels are of one level
            low, high = float(values.min()), float(values.max())
        if low < high:
            return low, high, f"{_OUTLIERS} to {100 - _OUTLIERS}% of the pixels"
    said = "window" if voi else f"{dataset.get('BitsStored')} bits"
    if "ModalityLUTSequence" in dataset:
        item = dataset.ModalityLUTSequence[0]
        if voi:  # pydicom's windowing maps to all the bits that the table declares, however many its entries fill
            return 0.0, 2.0 ** int(item.LUTDescriptor[2]) - 1, said
        return 0.0, _white(item, values), "modality LUT"
    if is_float:
        return 0.0, max(1.0, float(values.max())), said if voi else "floating-point numbers"
    bits, signed = int(dataset.BitsStored), int(dataset.PixelRepresentation)
    low, high = (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if signed else (0.0, 2.0**bits - 1)
    slope, intercept = _rescale(dataset)
    return low * slope + intercept, high * slope + intercept, said
