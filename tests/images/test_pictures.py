"""Picture bytes -> pixels, and the square that networks take."""

import io
import struct
import sys
import zlib

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
import torch
from PIL import Image

from cxrsynth.images import pictures
from cxrsynth.images.limits import UnreadableError
from cxrsynth.images.pictures import Pixels, squared
from tests.images.making import as_image, encoded, levels

DEEP = (np.arange(48 * 48).reshape(48, 48) * 27).astype(np.uint16)
pytestmark = pytest.mark.filterwarnings("error")


def read_picture(content: bytes) -> Pixels:
    return pictures.read_picture(content).pixels


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})])
def test_eight_bits_are_kept(kind: str, options: dict[str, bool]) -> None:
    found = read_picture(encoded(levels(1), kind, **options))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, as_image(levels(1)))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_kept(kind: str) -> None:
    np.testing.assert_array_equal(read_picture(encoded(DEEP, kind)), DEEP.astype(np.float32) / np.float32(65535))


def test_a_16_bit_tiff_with_white_as_zero_is_inverted() -> None:
    inverted = read_picture(encoded(DEEP, "TIFF", tiffinfo={262: 0}))
    np.testing.assert_allclose(inverted, 1 - DEEP / 65535, atol=1e-6)


def test_gray_stays_gray_in_every_mode_and_jpeg_comes_close() -> None:
    grey = Image.fromarray(levels(2))
    for mode in ("RGB", "RGBA", "LA", "P"):
        np.testing.assert_array_equal(read_picture(encoded(grey.convert(mode))), as_image(levels(2)))
    smooth = np.add.outer(np.arange(32), np.arange(32)).astype(np.uint8) * 4
    assert abs(read_picture(encoded(smooth, "JPEG", quality=95)) - as_image(smooth)).max() < 0.02


def test_color_is_weighted_as_by_the_eye() -> None:
    green = np.zeros((4, 4, 3), np.uint8)
    green[..., 1] = 255
    assert read_picture(encoded(green)) == pytest.approx(0.587, abs=0.003)


def test_a_picture_is_turned_as_its_exif_orientation_says() -> None:
    exif = Image.Exif()
    exif[274] = 6  # to be shown a quarter turn clockwise
    wide = levels(3)[:5]
    assert read_picture(encoded(wide, "JPEG", exif=exif)).shape == (12, 5)
    turned = np.rot90(as_image(wide), -1)
    np.testing.assert_array_equal(read_picture(encoded(wide, "PNG", exif=exif)), turned)
    deep = wide.astype(np.uint16) * 257
    np.testing.assert_allclose(read_picture(encoded(deep, "PNG", exif=exif)), turned, atol=1e-6)


def test_progressive_and_cmyk_pictures_are_read_as_others() -> None:
    smooth = np.add.outer(np.arange(32), np.arange(32)).astype(np.uint8) * 4
    grey = Image.fromarray(smooth)
    for content in (
        encoded(grey, "JPEG", quality=95, progressive=True),
        encoded(grey.convert("RGB"), "JPEG", quality=95, progressive=True),
        encoded(grey.convert("CMYK"), "JPEG", quality=95),
        encoded(grey.convert("CMYK"), "TIFF"),
    ):
        assert abs(read_picture(content) - as_image(smooth)).max() < 0.02


def deep_png(channels: npt.NDArray[np.uint16], color: int, exif: bytes = b"") -> bytes:
    """A PNG of 16 bits a channel, [H, W, C], which PIL does not write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width = channels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in channels)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, color, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n" + header + (chunk(b"eXIf", exif) if exif else b"") + chunk(b"IDAT", zlib.compress(rows))
    ) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("color", "colors", "alpha"), [(2, 3, 0), (6, 3, 1), (4, 1, 1)])
def test_all_16_bits_of_color_and_transparent_pngs_are_read(color: int, colors: int, alpha: int) -> None:
    clear = [np.full_like(DEEP, 65535)] * alpha
    found = read_picture(deep_png(np.stack([DEEP] * colors + clear, axis=-1), color))
    np.testing.assert_allclose(found, DEEP / 65535, atol=1e-6)
    # 12 bits of them: with the upper 8 alone, this picture would be almost black.
    found = read_picture(deep_png(np.stack([DEEP >> 4] * colors + clear, axis=-1), color))
    np.testing.assert_allclose(found, (DEEP >> 4) / 4095, atol=1e-6)


def test_deep_color_is_weighted_and_turned_as_other_pictures_are() -> None:
    green = np.zeros((4, 6, 3), np.uint16)
    green[:2, :, 1] = 65535
    exif = Image.Exif()
    exif[274] = 6
    found = read_picture(deep_png(green, 2, exif.tobytes().removeprefix(b"Exif\0\0")))
    assert found.shape == (6, 4)
    np.testing.assert_allclose(found[:, 2:], 0.587, atol=1e-6)
    assert not found[:, :2].any()


def test_deep_color_is_refused_where_nothing_decodes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.io", None)
    with pytest.raises(UnreadableError, match="16 bits of color"):
        read_picture(deep_png(np.stack([DEEP] * 3, axis=-1), 2))


def test_a_color_tiff_of_16_bits_is_refused() -> None:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, np.stack([DEEP] * 3, axis=-1), photometric="rgb")
    with pytest.raises(UnreadableError, match="a color TIFF of more than 8 bits"):
        read_picture(buffer.getvalue())


def test_a_broken_deep_picture_is_refused() -> None:
    content = deep_png(np.stack([DEEP] * 3, axis=-1), 2)
    for broken in (content[:-30], content[: len(content) // 2]):
        with pytest.raises(UnreadableError):
            read_picture(broken)


@pytest.mark.parametrize(("bits", "white"), [(8, 255), (10, 1023), (12, 4095), (14, 16383), (16, 65535)])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_values_of_fewer_bits_in_16_are_as_bright_as_they_were(kind: str, bits: int, white: int) -> None:
    wanted = as_image(levels(1))
    stored = np.rint(wanted * white).astype(np.uint16)
    stored[0, 0] = white - 2  # a detector's brightest pixel is seldom white itself
    found = read_picture(encoded(stored, kind))
    np.testing.assert_allclose(found.ravel()[1:], wanted.ravel()[1:], atol=0.51 / 255 if bits == 8 else 1 / 1023)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize(("bits", "white"), [(8, 255), (10, 1023), (12, 4095), (14, 16383)])
def test_a_marker_or_a_broken_pixel_does_not_darken_the_rest(kind: str, bits: int, white: int) -> None:
    wanted = as_image(levels(1, side=48))
    stored = np.rint(wanted * white).astype(np.uint16)
    stored[0, :11] = 65535  # 11 of 2,304 pixels: less than half a percent
    stored[1, 0] = white
    found = pictures.read_picture(encoded(stored, kind))
    np.testing.assert_allclose(found.pixels[1:], np.where(stored == white, 1, wanted)[1:], atol=1 / white)
    assert (found.pixels[0, :11] == 1).all()
    assert found.gray_range == f"{bits} of 16 bits"
    stored[0, :12] = 65535
    assert pictures.read_picture(encoded(stored, kind)).gray_range == "16 of 16 bits"


def test_a_marker_in_deep_color_or_floating_point_does_not_darken_the_rest() -> None:
    stored = np.stack([levels(1, side=48).astype(np.uint16) * 16] * 3, axis=-1)
    stored[0, 0] = 65535
    found = pictures.read_picture(deep_png(stored, 2))
    assert found.gray_range == "12 of 16 bits"
    assert float(found.pixels.max()) == 1
    np.testing.assert_allclose(found.pixels[1:], stored[1:, :, 0] / 4095, atol=1e-6)
    wanted = as_image(levels(1, side=48))
    wanted[0, 0] = 9
    found = pictures.read_picture(encoded(wanted, "TIFF"))
    assert found.gray_range == "floating-point numbers up to 1"
    np.testing.assert_array_equal(found.pixels, wanted.clip(0, 1))


def test_floating_point_pictures() -> None:
    wanted = as_image(levels(1))
    np.testing.assert_array_equal(read_picture(encoded(wanted, "TIFF")), wanted)
    np.testing.assert_allclose(read_picture(encoded(wanted * 4095, "TIFF")), wanted, atol=1e-6)
    np.testing.assert_allclose(read_picture(encoded((wanted * 4095).astype(np.int32), "TIFF")), wanted, atol=1 / 4095)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_a_truncated_picture_is_whole_or_refused(kind: str) -> None:
    content = encoded(levels(4, side=24), kind)
    whole = read_picture(content)
    refused = 0
    for length in range(0, len(content), 5):
        try:
            found = read_picture(content[:length])
        except UnreadableError:
            refused += 1
        else:
            np.testing.assert_array_equal(found, whole)
    assert refused > len(content) / 5 - 3


@pytest.mark.parametrize("side", [24, 400])
def test_flipped_bytes_of_a_png_are_noticed(side: int) -> None:
    # 400 x 400 pixels need several IDAT chunks.
    content = encoded(levels(5, side=side))
    whole = read_picture(content)
    for place in np.random.default_rng(0).integers(0, len(content), 150):
        flipped = bytearray(content)
        flipped[place] ^= 0x10
        try:
            found = read_picture(bytes(flipped))
        except UnreadableError:
            continue
        np.testing.assert_array_equal(found, whole)


def test_the_checksum_of_every_chunk_counts() -> None:
    content = bytearray(encoded(levels(5)))
    content[-13] ^= 1  # the last byte of IDAT's checksum, before the 12 bytes of IEND
    with pytest.raises(UnreadableError, match="broken or truncated"):
        read_picture(bytes(content))


def bomb(width: int, height: int) -> bytes:
    """A PNG header that claims that many pixels, with almost no data."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(bytes(1000))), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("side", [8193, 10_000, 60_000])
def test_too_many_pixels_are_refused_by_the_header(side: int) -> None:
    with pytest.raises(UnreadableError, match=r"pixels, more than|too many pixels"):
        read_picture(bomb(side, side))


def test_other_formats_are_refused() -> None:
    frames = [Image.fromarray(levels(seed)) for seed in (1, 2)]
    twice = encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:])
    gif = encoded(levels(1), "GIF")
    for content, reason in ((b"", "not a PNG"), (b"text", "not a PNG"), (gif, "not a PNG"), (twice, "more than one")):
        with pytest.raises(UnreadableError, match=reason):
            read_picture(content)
    for value, reason in ((-1, "negative or no numbers"), (np.nan, "negative or no numbers"), (1e6, "above 65,535")):
        with pytest.raises(UnreadableError, match=reason):
            read_picture(encoded(np.full((4, 4), value, np.float32), "TIFF"))


@pytest.mark.parametrize(("height", "width", "size"), [(40, 30, 16), (31, 31, 64), (90, 17, 17), (200, 300, 32)])
def test_squared_is_the_center_with_torchs_numbers(height: int, width: int, size: int) -> None:
    radiograph = np.random.default_rng(0).random((height, width), dtype=np.float32)
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    centre = torch.from_numpy(radiograph[top : top + side, left : left + side].copy())[None, None]
    wanted = torch.nn.functional.interpolate(centre, (size, size), mode="bilinear", antialias=True)[0, 0]
    found = squared(radiograph, size)
    assert found.dtype == np.float32
    assert found.shape == (size, size)
    np.testing.assert_allclose(found, wanted.numpy(), atol=2e-6)
    assert 0 <= found.min() <= found.max() <= 1
