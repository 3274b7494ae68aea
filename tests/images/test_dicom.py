"""DICOM bytes -> pixels as a viewer shows them."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.uid import RLELossless

from cxrsynth.images.collection import open_collection
from cxrsynth.images.dicom import read_dicom
from cxrsynth.images.limits import UnreadableError
from tests.images.making import Levels, as_image, dicom_of, levels, read_all

NEEDS_LIBJPEG = pytest.mark.skipif(importlib.util.find_spec("libjpeg") is None, reason="needs the extra dicom")
STORED = levels(0).astype(np.uint16) * 16 + 5


def stretched(stored: Levels) -> Levels:
    """Black and white where half a percent of the pixels are below and above."""
    low, high = np.percentile(stored, (0.5, 99.5))
    return ((stored - low) / (high - low)).clip(0, 1)


def test_eight_bits_keep_their_range_and_deeper_ones_are_stretched() -> None:
    grey = levels(1) // 2
    np.testing.assert_allclose(read_dicom(dicom_of(grey)).pixels, as_image(grey), atol=1e-6)
    np.testing.assert_allclose(read_dicom(dicom_of(STORED)).pixels, stretched(STORED), atol=1e-6)


@pytest.mark.parametrize("level", [0, 65535])
def test_a_broken_pixel_or_a_marker_does_not_darken_the_rest(level: int) -> None:
    smooth = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint16) * 8 + 1000
    spoiled = smooth.copy()
    spoiled[0, :20] = level  # 0.5% of the pixels
    difference = read_dicom(dicom_of(spoiled)).pixels - read_dicom(dicom_of(smooth)).pixels
    assert abs(difference[1:]).max() < 0.06


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(("value", "limit"), [(0, None), (65535, None), (0, 3), (65535, 65000)])
def test_padding_is_black_and_part_of_no_range(photometric: str, value: int, limit: int | None) -> None:
    padded = STORED.copy()
    padded[:3] = value
    elements: dict[str, object] = {"PixelPaddingValue": value, "PhotometricInterpretation": photometric}
    if limit is not None:
        elements["PixelPaddingRangeLimit"] = limit
        padded[0] = limit
    found = read_dicom(dicom_of(padded, **elements)).pixels
    assert (found[:3] == 0).all()
    wanted = stretched(STORED[3:])
    np.testing.assert_allclose(found[3:], 1 - wanted if photometric == "MONOCHROME1" else wanted, atol=1e-6)


@pytest.mark.parametrize("bits", [12, 16])
def test_padding_without_its_sign_is_padding(bits: int) -> None:
    """-2000 stands as 63536 where the value's representation is US in place of SS (PS3.5 6.2)."""
    padded = STORED.astype(np.int16) // 32 - 500
    padded[:3] = -2000
    elements = {"BitsStored": bits, "HighBit": bits - 1}
    wanted = read_dicom(dicom_of(padded, PixelPaddingValue=-2000, **elements)).pixels
    unsigned = DataElement(0x00280120, "US", 63536)
    found = read_dicom(dicom_of(padded, more=[unsigned], **elements)).pixels
    assert (wanted[:3] == 0).all()
    assert wanted[3:].max() == 1
    np.testing.assert_array_equal(found, wanted)


def test_the_first_window_or_table_that_can_be_used_applies() -> None:
    wanted = read_dicom(dicom_of(STORED, WindowCenter=1500, WindowWidth=3000)).pixels
    for centers, widths in ((["", "1500"], ["", "3000"]), (["900", "1500"], ["0", "3000"])):
        found = read_dicom(dicom_of(STORED, WindowCenter=centers, WindowWidth=widths)).pixels
        np.testing.assert_array_equal(found, wanted)
    full = table_of([(255 - entry) * 16 for entry in range(256)], 12)
    wanted = read_dicom(dicom_of(levels(3), VOILUTSequence=[full])).pixels
    found = read_dicom(dicom_of(levels(3), VOILUTSequence=[Dataset(), full])).pixels
    np.testing.assert_array_equal(found, wanted)


def test_the_record_beside_an_object_goes_before_its_header(tmp_path: Path) -> None:
    """By meaning, whatever the columns are called; the header says what the record does not."""
    header = {"PatientID": "ANON", "PatientSex": "F", "ViewPosition": "PA", "PatientAge": "067Y"}
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.dcm").write_bytes(dicom_of(STORED, **header))
    for row, expected in (
        ("subject_id,patient_gender,ap/pa,years\n7,M,AP,30", ("7", "M", "AP", 67.0)),
        ("subject_id,patient_gender,ap/pa,age\nunknown,,,30", ("ANON", "F", "PA", 30.0)),
    ):
        names, values = row.split("\n")
        (tmp_path / "t.csv").write_text(f"file,{names}\na.dcm,{values}\n", encoding="utf-8")
        [found], _ = read_all(open_collection(tmp_path / "images", table=tmp_path / "t.csv"))
        assert found.report is not None
        assert (found.patient, found.report.sex, found.report.view, found.report.age_years) == expected


def test_empty_rescaling_and_empty_lookup_tables_do_nothing() -> None:
    plain = read_dicom(dicom_of(STORED)).pixels
    for elements in (
        {"RescaleSlope": None, "RescaleIntercept": None},
        {"RescaleSlope": None, "RescaleIntercept": 5},
        {"VOILUTSequence": [Dataset()]},
        {"ModalityLUTSequence": [Dataset()]},
    ):
        np.testing.assert_allclose(read_dicom(dicom_of(STORED, **elements)).pixels, plain, atol=1e-6)


def table_of(entries: list[int], bits: int, *, first: int = 0) -> Dataset:
    item = Dataset()
    item.add_new(0x00283002, "US", [len(entries), first, bits])
    item.add_new(0x00283006, "US", entries)
    return item


def test_an_empty_table_beside_a_full_one_is_passed_over() -> None:
    gray = levels(3)
    full = table_of([(255 - entry) * 16 for entry in range(256)], 12)
    wanted = read_dicom(dicom_of(gray, ModalityLUTSequence=[full])).pixels
    both = read_dicom(dicom_of(gray, ModalityLUTSequence=[full], VOILUTSequence=[Dataset()])).pixels
    np.testing.assert_array_equal(both, wanted)
    wanted = read_dicom(dicom_of(gray, VOILUTSequence=[full])).pixels
    both = read_dicom(dicom_of(gray, VOILUTSequence=[full], ModalityLUTSequence=[Dataset()])).pixels
    np.testing.assert_array_equal(both, wanted)
    plain = read_dicom(dicom_of(gray)).pixels
    np.testing.assert_array_equal(read_dicom(dicom_of(gray, ModalityLUTSequence=[Dataset()])).pixels, plain)
    window = {"WindowCenter": 100, "WindowWidth": 50}
    windowed = read_dicom(dicom_of(gray, ModalityLUTSequence=[Dataset()], **window)).pixels
    np.testing.assert_array_equal(windowed, read_dicom(dicom_of(gray, **window)).pixels)


def test_half_a_rescaling_goes_with_a_window() -> None:
    window = {"WindowCenter": 1500.5, "WindowWidth": 2001}
    whole = read_dicom(dicom_of(STORED, RescaleSlope=1, RescaleIntercept=-1000, **window)).pixels
    half = read_dicom(dicom_of(STORED, RescaleSlope=None, RescaleIntercept=-1000, **window)).pixels
    np.testing.assert_array_equal(half, whole)


def test_a_table_that_declares_more_bits_than_it_holds_is_not_dark() -> None:
    gray = levels(3)
    found = read_dicom(dicom_of(gray, VOILUTSequence=[table_of([entry * 16 for entry in range(256)], 16)])).pixels
    np.testing.assert_allclose(found, gray.astype(float) * 16 / 4095, atol=1e-6)


def test_floating_point_pixels() -> None:
    content = dicom_of(STORED, pixels=False, BitsAllocated=32, FloatPixelData=STORED.astype(np.float32).tobytes())
    np.testing.assert_allclose(read_dicom(content).pixels, stretched(STORED), atol=1e-6)


@pytest.mark.parametrize(("kind", "dtype"), [("Float", np.float32), ("DoubleFloat", np.float64)])
@pytest.mark.parametrize("limit", [None, -2000.0])
def test_padding_of_floating_point_pixels_is_part_of_no_range(kind: str, dtype: type, limit: float | None) -> None:
    padded = STORED.astype(dtype)
    padded[:3] = -1000
    elements: dict[str, object] = {f"{kind}PixelPaddingValue": -1000.0, "PixelPaddingValue": 5}
    if limit is not None:
        padded[0] = -1500
        elements[f"{kind}PixelPaddingRangeLimit"] = limit
    bits = padded.dtype.itemsize * 8
    elements |= {"BitsAllocated": bits, f"{kind}PixelData": padded.tobytes()}
    found = read_dicom(dicom_of(STORED, pixels=False, **elements)).pixels
    assert (found[:3] == 0).all()
    np.testing.assert_allclose(found[3:], stretched(STORED[3:]), atol=1e-6)


@pytest.mark.parametrize("which", ["VOILUTSequence", "ModalityLUTSequence"])
def test_one_entry_of_a_table_does_not_darken_the_rest(which: str) -> None:
    gray = levels(3, side=48)
    gray[gray > 254] = 254
    entries = [entry * 16 for entry in range(256)]
    item = table_of([*entries[:255], 65535], 16)
    if which == "ModalityLUTSequence":
        item.ModalityLUTType = "US"
    gray[0, 0] = 255
    found = read_dicom(dicom_of(gray, **{which: [item]}))
    np.testing.assert_allclose(found.pixels[1:], gray[1:].astype(float) * 16 / 4095, atol=1e-6)
    assert found.pixels[0, 0] == 1
    gray[:5] = 255  # the entry that many pixels have is white
    found = read_dicom(dicom_of(gray, **{which: [item]}))
    np.testing.assert_allclose(found.pixels[5:], gray[5:].astype(float) * 16 / 65535, atol=1e-6)


def test_what_black_and_white_are_taken_from_is_said() -> None:
    window = {"WindowCenter": 100, "WindowWidth": 50}
    for content, said in (
        (dicom_of(levels(0)), "DICOM, 8 bits"),
        (dicom_of(STORED), "DICOM, 0.5 to 99.5% of the pixels"),
        (dicom_of(STORED, **window), "DICOM, window"),
        (dicom_of(levels(0), VOILUTSequence=[table_of(list(range(256)), 8)]), "DICOM, VOI LUT"),
    ):
        assert read_dicom(content).gray_range == said


@pytest.mark.parametrize("entries", [256, 255])
def test_lookup_tables_of_8_bits_may_be_packed(entries: int) -> None:
    table = np.arange(entries, dtype=np.uint8)[::-1].copy()
    item = Dataset()
    item.add_new(0x00283002, "US", [entries, 0, 8])
    item.add_new(0x00283006, "OW", table.tobytes() + bytes(entries % 2))
    gray = np.minimum(levels(3), entries - 1)
    found = read_dicom(dicom_of(gray, VOILUTSequence=[item])).pixels
    np.testing.assert_allclose(found, as_image(table[gray]), atol=1e-6)


def test_an_inverse_presentation_is_inverted_once() -> None:
    plain = read_dicom(dicom_of(STORED)).pixels
    for photometric in ("MONOCHROME1", "MONOCHROME2"):
        elements = {"PhotometricInterpretation": photometric, "PresentationLUTShape": "INVERSE"}
        np.testing.assert_allclose(read_dicom(dicom_of(STORED, **elements)).pixels, 1 - plain, atol=1e-6)
    same = read_dicom(dicom_of(STORED, PresentationLUTShape="IDENTITY")).pixels
    np.testing.assert_array_equal(same, plain)


@pytest.mark.parametrize("high", [11, 13, 15])
@pytest.mark.parametrize("signed", [False, True])
def test_bits_beside_the_value_are_no_part_of_it(high: int, signed: bool) -> None:
    values = levels(4).astype(np.int32) * 16 - (2048 if signed else 0)
    words = (values << (high - 11)) & 0xFFFF
    if high < 15:
        words = (words & ((1 << (high + 1)) - 1)) | 1 << 15  # an overlay, as old files keep it
    stored = words.astype(np.uint16).view(np.int16 if signed else np.uint16)
    found = read_dicom(dicom_of(stored, BitsStored=12, HighBit=high)).pixels
    np.testing.assert_allclose(found, stretched(values), atol=1e-6)


@pytest.mark.parametrize(
    ("ratio", "shape"), [([2, 1], (24, 12)), ([1, 2], (6, 12)), ([3, 3], (12, 12)), ([0, 1], (12, 12))]
)
def test_pixels_that_are_not_square_are_resampled(ratio: list[int], shape: tuple[int, int]) -> None:
    found = read_dicom(dicom_of(levels(5), PixelAspectRatio=ratio)).pixels
    assert found.shape == shape
    assert abs(found.mean() - as_image(levels(5)).mean()) < 0.02


def test_a_file_without_a_preamble_is_read() -> None:
    whole = dicom_of(STORED)
    np.testing.assert_array_equal(read_dicom(whole[132:]).pixels, read_dicom(whole).pixels)
    bare = whole[whole.index(b"\x08\x00\x16\x00UI") :]  # without the group of the file itself, too
    np.testing.assert_array_equal(read_dicom(bare).pixels, read_dicom(whole).pixels)


# Small files that come with pydicom, of other modalities: what matters is the transfer syntax.
@pytest.mark.parametrize(
    ("name", "plain", "atol"),
    [
        ("MR_small_jpeg_ls_lossless.dcm", "MR_small.dcm", 0.0),
        ("MR_small_jp2klossless.dcm", "MR_small.dcm", 0.0),
        ("MR_small_RLE.dcm", "MR_small.dcm", 0.0),
        ("MR_small_bigendian.dcm", "MR_small.dcm", 0.0),
        ("JPEGLSNearLossless_16.dcm", None, 0.0),
        ("JPEG2000.dcm", None, 0.0),
        pytest.param("JPGExtended.dcm", None, 0.0, marks=NEEDS_LIBJPEG),
        pytest.param("SC_rgb_jpeg_gdcm.dcm", "SC_rgb_rle.dcm", 0.0, marks=NEEDS_LIBJPEG),  # lossless, 1.2.840...4.70
    ],
)
def test_transfer_syntaxes(name: str, plain: str | None, atol: float) -> None:
    from pydicom.data import get_testdata_file

    def content(file: str) -> bytes:
        path = get_testdata_file(file, download=False)
        assert isinstance(path, str)
        return Path(path).read_bytes()

    found = read_dicom(content(name)).pixels
    assert found.std() > 0.05
    if plain is not None:
        np.testing.assert_allclose(found, read_dicom(content(plain)).pixels, atol=atol)


def test_what_decodes_a_transfer_syntax_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from pydicom.data import get_testdata_file
    from pydicom.pixels.decoders import JPEGExtended12BitDecoder

    path = get_testdata_file("JPEG-lossy.dcm", download=False)
    assert isinstance(path, str)
    monkeypatch.setattr(JPEGExtended12BitDecoder, "_available", {})
    with pytest.raises(UnreadableError, match=r"JPEG Extended.* needs a decoder: pip install 'cxrsynth\[dicom\]'"):
        read_dicom(Path(path).read_bytes())


def test_a_uniform_image_keeps_its_gray_level() -> None:
    radiograph = read_dicom(dicom_of(np.full((4, 4), 1024, np.uint16), BitsStored=12, HighBit=11)).pixels
    assert radiograph == pytest.approx(1024 / 4095, abs=1e-6)


def test_the_window_applies_to_rescaled_values() -> None:
    content = dicom_of(STORED, RescaleSlope=2, RescaleIntercept=-1000, WindowCenter=1500.5, WindowWidth=2001)
    # PS3.3 C.11.2.1.2.1: from c - 0.5 - (w - 1) / 2 to c - 0.5 + (w - 1) / 2.
    wanted = ((STORED * 2.0 - 1000 - 500) / 2000).clip(0, 1)
    np.testing.assert_allclose(read_dicom(content).pixels, wanted, atol=1e-6)


@pytest.mark.parametrize("declared", [12, 16])
def test_the_window_applies_to_what_a_modality_table_gives(declared: int) -> None:
    """Its entries fill 12 bits, whether it declares these or 16."""
    stored = np.arange(0, 256, dtype=np.uint8).reshape(16, 16)
    table = table_of([entry * 16 for entry in range(256)], declared)
    table.ModalityLUTType = "US"
    found = read_dicom(dicom_of(stored, ModalityLUTSequence=[table], WindowCenter=2048, WindowWidth=4096))
    np.testing.assert_allclose(found.pixels, (stored * 16.0 / 4095).clip(0, 1), atol=1e-3)
    assert found.gray_range == "DICOM, window"


def test_the_first_of_several_windows_applies_and_an_unusable_one_is_ignored() -> None:
    first = read_dicom(dicom_of(STORED, WindowCenter=2000, WindowWidth=1000)).pixels
    several = read_dicom(dicom_of(STORED, WindowCenter=[2000, 9], WindowWidth=[1000, 7])).pixels
    np.testing.assert_array_equal(several, first)
    assert not np.array_equal(first, read_dicom(dicom_of(STORED)).pixels)
    for width in (0, None):
        np.testing.assert_array_equal(
            read_dicom(dicom_of(STORED, WindowCenter=2000, WindowWidth=width)).pixels,
            read_dicom(dicom_of(STORED)).pixels,
        )


def test_a_voi_lut_applies_after_rescaling() -> None:
    item = Dataset()
    item.add_new(0x00283002, "US", [256, 100, 16])
    item.add_new(0x00283006, "US", [(255 - entry) * 257 for entry in range(256)])
    grey = levels(3).astype(np.uint16)
    content = dicom_of(grey, RescaleSlope=1, RescaleIntercept=100, VOILUTSequence=[item])
    np.testing.assert_allclose(read_dicom(content).pixels, 1 - as_image(levels(3)), atol=1e-6)


def test_monochrome1_is_inverted() -> None:
    elements = {"WindowCenter": 2000, "WindowWidth": 3000}
    plain = read_dicom(dicom_of(STORED, **elements)).pixels
    inverted = read_dicom(dicom_of(STORED, PhotometricInterpretation="MONOCHROME1", **elements)).pixels
    np.testing.assert_allclose(inverted, 1 - plain, atol=1e-6)


def test_signed_values_and_color() -> None:
    signed = STORED.astype(np.int16) - 2000
    np.testing.assert_allclose(read_dicom(dicom_of(signed)).pixels, stretched(signed), atol=1e-6)
    grey = levels(2)
    rgb = np.repeat(grey[..., None], 3, axis=2)
    colour = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
    np.testing.assert_allclose(read_dicom(dicom_of(rgb, **colour)).pixels, as_image(grey), atol=1e-6)


def test_a_compressed_transfer_syntax_is_decoded() -> None:
    import io

    from pydicom import dcmread

    dataset = dcmread(io.BytesIO(dicom_of(STORED)))
    dataset.compress(RLELossless)
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    np.testing.assert_array_equal(read_dicom(buffer.getvalue()).pixels, read_dicom(dicom_of(STORED)).pixels)


def test_the_header_provides_metadata() -> None:
    header = {"ViewPosition": "PA", "PatientSex": "F", "PatientAge": "067Y", "PatientID": "p-1"}
    assert read_dicom(dicom_of(STORED, **header)).header == header
    assert set(read_dicom(dicom_of(STORED)).header.values()) == {""}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a DICOM object"),
        (bytes(200), "not a DICOM object"),
        (dicom_of(STORED, pixels=False), "without pixels"),
        (dicom_of(STORED, NumberOfFrames=3), "3 frames"),
        (dicom_of(STORED, PhotometricInterpretation="PALETTE COLOR"), "palette"),
        (dicom_of(STORED, Rows=60000, Columns=60000), "60000 x 60000 pixels, more than"),
        (dicom_of(STORED, Rows=13), "cannot be decoded here"),
        (dicom_of(STORED)[:-20], "DICOM"),
        (dicom_of(STORED, RescaleSlope=0, RescaleIntercept=0, WindowCenter=1, WindowWidth=9), "not numbers"),
    ],
)
def test_anything_but_a_single_image_is_refused(content: bytes, reason: str) -> None:
    with pytest.raises(UnreadableError, match=reason):
        read_dicom(content)


@pytest.mark.filterwarnings("error")
def test_no_warning_or_log_quotes_the_header(caplog: pytest.LogCaptureFixture) -> None:
    content = dicom_of(STORED, PatientAge="067Y", PatientID="p", WindowCenter=2000, WindowWidth=3000)
    bad = content.replace(b"067Y", b"Zorb").replace(b"2.25.7", b"Q.Zorb")
    assert read_dicom(bad).header["PatientAge"] == "Zorb"
    with pytest.raises(UnreadableError, match="transfer syntax"):
        read_dicom(content.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.Zorb"))
    with pytest.raises(UnreadableError):
        read_dicom(content.replace(b"2000", b"Zorb"))
    assert not caplog.text


def test_a_truncated_or_corrupted_file_raises_nothing_else() -> None:
    content = dicom_of(STORED, WindowCenter=2000, WindowWidth=3000, PatientID="p")
    rng = np.random.default_rng(0)
    for length in range(0, len(content) - 1, 7):
        with pytest.raises(UnreadableError):
            read_dicom(content[:length])
    for place in rng.integers(0, len(content), 200):
        flipped = bytearray(content)
        flipped[place] ^= int(rng.integers(1, 256))
        try:
            radiograph = read_dicom(bytes(flipped)).pixels
        except UnreadableError:
            continue
        assert 0 <= radiograph.min() <= radiograph.max() <= 1
