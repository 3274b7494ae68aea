"""Picture bytes -> pixels, and pixels -> the square a network takes."""

import io
import threading
import warnings
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from cxrsynth.images.limits import DECODER_ERRORS, UnreadableError, refuse_large

EXTENSIONS = ("png", "jpg", "jpeg", "jpe", "jfif", "jif", "webp", "tif", "tiff")
_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF")
_EIGHT_BITS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
_BITS = (8, 10, 12, 14, 16)
_OUTLIERS = 0.005  # share of the pixels
_PNG = b"\x89PNG\r\n\x1a\n"
_SEVERAL_CHANNELS = (2, 4, 6)  # color, gray with transparency, color with transparency
_LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_TIFF_BITS = 258
_TIFF_PHOTOMETRIC = 262
_WHITE_IS_ZERO = 0
# `catch_warnings` changes a global: one thread at a time.
_WARNINGS = threading.Lock()

Pixels = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Picture:
    """Pixels [H, W] float32 in [0, 1], and which values were taken for black and white, as `12 of 16 bits`."""

    pixels: Pixels = field(repr=False)
    gray_range: str


def read_picture(content: bytes, *, is_full_range: bool = False) -> Picture:
    """Decode a PNG, JPEG, WebP or TIFF at native size, of 8 or more bits.

    Color becomes gray (ITU-R 601), a picture is turned as its EXIF orientation says, and transparency is ignored. White
    in a picture of 16 bits is the largest value of the fewest bits, of 8, 10, 12, 14 and 16, that all but half a
    percent of the pixels fit in: detectors have 10 to 14, files say nothing of it, and a burned-in marker or a broken
    detector element must not darken the rest. What is brighter is white. The same holds for whole and floating-point
    numbers; those up to 1 are taken as they are. With `is_full_range`, 16 bits are known to be 16. The checksums of a
    PNG are verified; JPEG and WebP have none, so only a separate hash can reveal flipped bytes.

    Raises:
        UnreadableError: if the bytes are not one complete picture of these kinds, or hold too many pixels.
    """
    try:
        with _open(content) as image:
            refuse_large(*image.size)
            if getattr(image, "n_frames", 1) != 1:
                raise UnreadableError("more than one picture in the file")
            if image.format == "PNG":
                with _open(content) as whole:
                    whole.verify()
            # PIL inverts 8-bit TIFF pictures of this kind itself, but not deeper ones.
            is_inverted = getattr(image, "tag_v2", {}).get(_TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO
            if image.mode in _EIGHT_BITS and max(getattr(image, "tag_v2", {}).get(_TIFF_BITS, (8,))) > 8:
                # PIL would keep the upper 8 of them: a picture of 12 bits would be all but black.
                raise UnreadableError("a color TIFF of more than 8 bits, expected gray, or a PNG")
            if _is_deep_color(content):
                return _deep_color(content, image)
            return _gray(ImageOps.exif_transpose(image), is_inverted=is_inverted, is_full_range=is_full_range)
    except UnidentifiedImageError:
        raise UnreadableError("not a PNG, JPEG, WebP or TIFF picture") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UnreadableError("far too many pixels") from None
    except DECODER_ERRORS:
        raise UnreadableError("a broken or truncated picture") from None


def _open(content: bytes) -> Image.Image:
    """Read only the header. PIL reads what it warns about anyway, or raises later."""
    with _WARNINGS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return Image.open(io.BytesIO(content), formats=_FORMATS)


def _is_deep_color(content: bytes) -> bool:
    """Whether a PNG has 16 bits in several channels: PIL keeps the upper 8 of them."""
    # Bit depth and color type of its first chunk, whose place is fixed (PNG 11.2.1).
    return content.startswith(_PNG) and content[24] == 16 and content[25] in _SEVERAL_CHANNELS


def _deep_color(content: bytes, image: Image.Image) -> Picture:
    """Gray of a PNG with 16 bits in each of several channels, turned as `image` says."""
    channels = _deep_channels(content)
    colors = channels[:3] if len(channels) >= 3 else channels[:1]  # without transparency
    weights = _LUMINANCE if len(colors) == 3 else np.ones(1, dtype=np.float32)
    bits = _bits(colors)
    gray = Image.fromarray((np.tensordot(weights, colors, axes=1) / np.float32(2.0**bits - 1)).clip(0, 1))
    gray.info = {"exif": image.info["exif"]} if "exif" in image.info else {}
    return Picture(np.asarray(ImageOps.exif_transpose(gray), dtype=np.float32), f"{bits} of 16 bits")


def _deep_channels(content: bytes) -> Pixels:
    """[C, H, W] of a PNG with 16 bits a channel."""
    import torch

    try:
        from torchvision.io import ImageReadMode, decode_png
    except ImportError:
        raise UnreadableError("16 bits of color, which this release of torchvision does not decode") from None
    with _WARNINGS, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of 0.29: torchcodec is to take its place
        encoded = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        return np.asarray(decode_png(encoded, mode=ImageReadMode.UNCHANGED).numpy(), dtype=np.float32)


def _gray(image: Image.Image, *, is_inverted: bool, is_full_range: bool) -> Picture:
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        levels = np.asarray(image).astype(np.float32)
        bits = 16 if is_full_range else _bits(levels)
        white, gray_range = 2.0**bits - 1, f"{bits} of {32 if image.mode == 'I' else 16} bits"
        if image.mode == "F":
            gray_range = f"{bits} bits, as floating-point numbers"
            if _fits(levels, 1):
                white, gray_range = 1.0, "floating-point numbers up to 1"
        levels = (levels / np.float32(white)).clip(0, 1)
        return Picture((1 - levels if is_inverted else levels).astype(np.float32), gray_range)
    if image.mode not in _EIGHT_BITS:
        raise UnreadableError(f"pixels of kind {image.mode}, expected 8 or 16 bits, gray or color")
    return Picture(np.asarray(image.convert("L")).astype(np.float32) / np.float32(255), "8 bits")


def _bits(levels: Pixels) -> int:
    """The fewest bits that all but outliers fit in."""
    low, high = float(levels.min()), float(levels.max())
    if not (np.isfinite(low) and np.isfinite(high)) or low < 0:
        raise UnreadableError("pixels that are negative or no numbers, expected gray levels from 0 up")
    if high > 2.0 ** _BITS[-1] - 1:
        raise UnreadableError("pixels above 65,535, expected at most 16 bits")
    return next(bits for bits in _BITS if _fits(levels, 2.0**bits - 1))


def _fits(levels: Pixels, white: float) -> bool:
    """Whether fewer than half a percent of the pixels are brighter."""
    return int(np.count_nonzero(levels > white)) < _OUTLIERS * levels.size


def squared(pixels: Pixels, size: int) -> Pixels:
    """The center square of [H, W] pixels in [0, 1], resized to [size, size] float32 in [0, 1], as by `centered`."""
    return centered(pixels, (size, size))


def centered(pixels: Pixels, shape: tuple[int, int]) -> Pixels:
    """The largest center crop of [H, W] pixels in [0, 1] that has the proportions of `shape`, resized to it, float32.

    Bilinear with antialiasing where it shrinks: the numbers of torch's `interpolate(antialias=True)`, without torch.
    """
    height, width = pixels.shape
    scale = min(height / shape[0], width / shape[1])
    rows, columns = round(shape[0] * scale), round(shape[1] * scale)
    top, left = (height - rows) // 2, (width - columns) // 2
    crop = pixels[top : top + rows, left : left + columns]
    if (rows, columns) == shape:
        return crop.copy()
    # In float32, not in 8 bits: PIL's mode "F".
    resized = Image.fromarray(np.ascontiguousarray(crop)).resize((shape[1], shape[0]), Image.Resampling.BILINEAR)
    return np.asarray(resized, dtype=np.float32).clip(0, 1)
