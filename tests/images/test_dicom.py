"""DICOM bytes -> pixels as a viewer shows them."""

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import RLELossless

from cxrsynth.images.dicom import read_dicom
from cxrsynth.images.limits import UnreadableError
from tests.images.making import as_image, dicom_of, levels

STORED = levels(0).astype(np.uint16) * 16 + 5


def test_eight_bits_keep_their_range_and_deeper_ones_are_stretched() -> None:
    grey = levels(1) // 2
    np.testing.assert_allclose(read_dicom(dicom_of(grey)).pixels, as_image(grey), atol=1e-6)
    wanted = (STORED - STORED.min()) / np.ptp(STORED)
    np.testing.assert_allclose(read_dicom(dicom_of(STORED)).pixels, wanted, atol=1e-6)


def test_a_uniform_image_keeps_its_gray_level() -> None:
    radiograph = read_dicom(dicom_of(np.full((4, 4), 1024, np.uint16), BitsStored=12, HighBit=11)).pixels
    assert radiograph == pytest.approx(1024 / 4095, abs=1e-6)


def test_the_window_applies_to_rescaled_values() -> None:
    content = dicom_of(STORED, RescaleSlope=2, RescaleIntercept=-1000, WindowCenter=1500.5, WindowWidth=2001)
    # PS3.3 C.11.2.1.2.1: from c - 0.5 - (w - 1) / 2 to c - 0.5 + (w - 1) / 2.
    wanted = ((STORED * 2.0 - 1000 - 500) / 2000).clip(0, 1)
    np.testing.assert_allclose(read_dicom(content).pixels, wanted, atol=1e-6)


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
    wanted = (signed - signed.min()) / np.ptp(signed)
    np.testing.assert_allclose(read_dicom(dicom_of(signed)).pixels, wanted, atol=1e-6)
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
