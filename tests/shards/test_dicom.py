"""DICOM objects: pixels, identity, markers; checked by pydicom, dicom3tools and DCMTK."""

import subprocess
import uuid
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import config, dcmread
from pydicom.dataset import Dataset, FileDataset
from pydicom.fileset import FileSet

from cxrsynth.settings import SopClass
from cxrsynth.shards import dicom
from cxrsynth.shards.dicom import DicomSettings, from_dataset, to_dataset
from cxrsynth.shards.dicom_file import to_bytes
from cxrsynth.shards.file_set import write_file_set
from tests.programs import require

# pydicom warns about invalid DICOM, both when our objects are made and when they are read.
pytestmark = pytest.mark.filterwarnings("error::UserWarning")

SETTINGS = DicomSettings("dataset-1", "nano", "0" * 64, "cxrsynth 0.1.0")
# The dictionary of dicom3tools in Debian 12 dates from June 2022; Synthetic Data entered the standard later.
UNKNOWN_TO_DCIODVFY = (
    "Error - Attribute with an even group number is not a recognized standard attribute - (0x0008,0x001c)"
)


def smooth(seed: int, height: int = 24, width: int = 32) -> NDArray[np.float32]:
    """An image-like gradient with noise, [H, W] float32 in [0, 1]."""
    rows, columns = np.mgrid[0:height, 0:width] / max(height, width)
    noise = np.random.default_rng(seed).random((height, width)) / 10
    image: NDArray[np.float32] = np.clip(rows * columns + noise, 0, 1).astype(np.float32)
    return image


def made(
    report: str = "a1",
    index: int = 0,
    settings: DicomSettings = SETTINGS,
    *,
    view: str | None = "PA",
    sex: str | None = None,
) -> FileDataset:
    return to_dataset(
        smooth(index), settings, key=f"{report}-{index}", subject_key=report, image_index=index, view=view, sex=sex
    )


def errors(path: Path) -> list[str]:
    """The errors dciodvfy finds, except that it does not know Synthetic Data."""
    program = require("dciodvfy", "dicom3tools")
    result = subprocess.run([program, str(path)], capture_output=True, text=True, timeout=60)
    lines = (result.stdout + result.stderr).splitlines()
    return [line for line in lines if line.startswith("Error") and not line.startswith(UNKNOWN_TO_DCIODVFY)]


def test_every_stored_value_survives_a_round_trip() -> None:
    values = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    image = (values / 4095).astype(np.float32)
    read = dcmread(BytesIO(to_bytes(to_dataset(image, SETTINGS, key="a-0", subject_key="a", image_index=0))))
    assert np.array_equal(read.pixel_array, values)
    assert np.array_equal(from_dataset(read), image)


def test_pixels_are_within_half_a_step() -> None:
    back = from_dataset(dcmread(BytesIO(to_bytes(made(index=3)))))
    assert back.dtype == np.float32
    assert np.abs(back - smooth(3)).max() <= 0.5 / 4095 + 1e-7


def test_the_window_is_the_full_range() -> None:
    dataset = made()
    center, width = float(dataset.WindowCenter), float(dataset.WindowWidth)
    assert center - 0.5 - (width - 1) / 2 == 0
    assert center - 0.5 + (width - 1) / 2 == 4095


@pytest.mark.parametrize("sop_class", SopClass)
def test_equal_input_gives_equal_bytes(sop_class: SopClass) -> None:
    settings = replace(SETTINGS, sop_class=sop_class)
    assert to_bytes(made(settings=settings)) == to_bytes(made(settings=settings))


@pytest.mark.parametrize("sop_class", SopClass)
def test_every_marker_of_synthesis_is_present(sop_class: SopClass) -> None:
    read = dcmread(BytesIO(to_bytes(made(settings=replace(SETTINGS, sop_class=sop_class)))))
    assert read.SyntheticData == "YES"
    assert read.ImageType == ["DERIVED", "SECONDARY"]
    assert read.ContentQualification == "RESEARCH"
    assert read.BurnedInAnnotation == "NO"
    assert read.get("ConversionType") == ("SYN" if sop_class is SopClass.SC else None)
    assert "SYNTHETIC" in read.ImageComments
    assert "NOT FOR DIAGNOSIS" in read.ImageComments
    assert "Generated" in read.DerivationDescription
    assert read.PatientID == "SYN-a1"
    assert read.PatientName == "Synthetic^a1"
    (equipment,) = read.ContributingEquipmentSequence
    (purpose,) = equipment.PurposeOfReferenceCodeSequence
    assert (purpose.CodeValue, purpose.CodingSchemeDesignator) == ("109100", "DCM")
    for device in (equipment, read):
        assert device.Manufacturer == "cxrsynth"
        assert device.ManufacturerModelName == "nano"
        assert device.SoftwareVersions == ["0" * 64, "cxrsynth 0.1.0"]


def test_nothing_claims_a_time_a_person_or_a_length() -> None:
    dataset = made()
    dated = [element for element in dataset.iterall() if element.VR in ("DA", "TM", "DT")]
    assert {element.keyword for element in dated} == {"StudyDate", "StudyTime", "PatientBirthDate"}
    assert all(element.value == "" for element in dated)
    assert not {"PixelSpacing", "PatientIdentityRemoved", "DeidentificationMethod", "PatientAge"} & set(dataset.dir())


def test_uids_are_uuids_and_a_report_shares_its_study() -> None:
    seed = replace(SETTINGS, dataset_uid_seed="dataset-2")
    cr = replace(SETTINGS, sop_class=SopClass.CR)
    objects = [made("a1", 0), made("a1", 1), made("b2", 0), made("a1", 0, seed), made("a1", 0, cr)]
    assert len({item.SOPInstanceUID for item in objects}) == 5
    assert [item.StudyInstanceUID == objects[0].StudyInstanceUID for item in objects] == [
        True,
        True,
        False,
        False,
        True,
    ]
    assert [item.SeriesInstanceUID == objects[0].SeriesInstanceUID for item in objects] == [True, True, *[False] * 3]
    levels = {uid for item in objects for uid in (item.SOPInstanceUID, item.SeriesInstanceUID, item.StudyInstanceUID)}
    assert len(levels) == 5 + 4 + 3
    for uid in [*levels, objects[0].file_meta.ImplementationClassUID]:
        value = uuid.UUID(int=int(uid.removeprefix("2.25.")))
        assert uid.is_valid
        assert len(uid) <= 64
        assert value.variant == uuid.RFC_4122
        assert value.version in (4, 5)


def test_uids_are_the_same_as_in_earlier_versions() -> None:
    # A promise: archives identify an image by this number. It was made with cxrsynth 0.1.0 by this call.
    assert made().SOPInstanceUID == "2.25.85899725064417300424625722567019631159"


def test_text_beyond_ascii_names_its_character_set() -> None:
    dataset = made(settings=replace(SETTINGS, model_name="Röntgen"))
    assert dcmread(BytesIO(to_bytes(dataset))).ManufacturerModelName == "Röntgen"
    assert dataset.SpecificCharacterSet == "ISO_IR 192"
    assert "SpecificCharacterSet" not in made()


def test_a_misspelled_keyword_raises_and_pydicoms_settings_are_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    def misspell(dataset: Dataset, *args: object, **kwargs: object) -> None:
        dataset.PatientsName = "Synthetic"

    before = (config.INVALID_KEYWORD_BEHAVIOR, config.settings.reading_validation_mode)
    monkeypatch.setattr(dicom, "_set_sop_common", misspell)
    with pytest.raises(ValueError, match="PatientsName"):
        made()
    assert (config.INVALID_KEYWORD_BEHAVIOR, config.settings.reading_validation_mode) == before


def test_an_invalid_value_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicom, "MANUFACTURER", "x" * 65)
    with pytest.raises(ValueError, match="64"):
        made()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((1, 4, 4), np.float32), "shape"),
        (np.zeros((0, 4), np.float32), "shape"),
        (np.zeros((4, 4), np.float64), "float64"),
        (np.full((4, 4), np.nan, np.float32), "finite"),
        (np.full((4, 4), np.inf, np.float32), "finite"),
        (np.full((4, 4), 1.01, np.float32), r"in \[0, 1\]"),
        (np.full((4, 4), -0.01, np.float32), r"in \[0, 1\]"),
    ],
)
def test_a_bad_image_is_refused(image: NDArray[np.float32], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_dataset(image, SETTINGS, key="a-0", subject_key="a", image_index=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"key": "a.0"}, "^key"),
        ({"subject_key": "a\\b"}, "^subject_key"),
        ({"subject_key": "a" * 61}, "^subject_key"),
        ({"image_index": -1}, "^image_index"),
        ({"view": "LL"}, "^view"),
        ({"sex": "O"}, "^sex"),
    ],
)
def test_bad_metadata_is_refused(changes: dict[str, str], message: str) -> None:
    arguments = {"key": "a-0", "subject_key": "a", "image_index": 0} | changes
    with pytest.raises(ValueError, match=message):
        to_dataset(smooth(0), SETTINGS, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", " ", "a\\b", "a\nb", "a" * 65])
def test_bad_settings_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="model_name"):
        replace(SETTINGS, model_name=text)


def test_an_object_of_another_program_is_refused() -> None:
    dataset = made()
    dataset.BitsStored = 16
    with pytest.raises(ValueError, match="bits stored"):
        from_dataset(dataset)


@pytest.mark.parametrize("sex", [None, "M", "F"])
@pytest.mark.parametrize("view", [None, "PA", "AP", "LATERAL"])
@pytest.mark.parametrize("sop_class", SopClass)
def test_dciodvfy_finds_no_error(tmp_path: Path, sop_class: SopClass, view: str | None, sex: str | None) -> None:
    path = tmp_path / "image.dcm"
    path.write_bytes(to_bytes(made(settings=replace(SETTINGS, sop_class=sop_class), view=view, sex=sex)))
    assert errors(path) == []


@pytest.mark.parametrize("sop_class", SopClass)
@pytest.mark.parametrize("keyword", ["Rows", "PatientID", "BitsStored", "CodeMeaning"])
def test_dciodvfy_finds_what_is_missing(tmp_path: Path, sop_class: SopClass, keyword: str) -> None:
    dataset = made(settings=replace(SETTINGS, sop_class=sop_class))
    holder = (
        dataset if keyword in dataset else dataset.ContributingEquipmentSequence[0].PurposeOfReferenceCodeSequence[0]
    )
    delattr(holder, keyword)
    path = tmp_path / "image.dcm"
    path.write_bytes(to_bytes(dataset))
    assert errors(path) != []


@pytest.mark.parametrize("sop_class", SopClass)
def test_dcmdump_reads_it(tmp_path: Path, sop_class: SopClass) -> None:
    path = tmp_path / "image.dcm"
    path.write_bytes(to_bytes(made(settings=replace(SETTINGS, sop_class=sop_class))))
    result = subprocess.run([require("dcmdump", "dcmtk"), str(path)], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")
    assert "SYNTHETIC IMAGE" in result.stdout


def members() -> list[bytes]:
    """Two reports with their images interleaved, as several shards would give them."""
    return [to_bytes(made(report, index)) for index in range(3) for report in ("a1", "b2")]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_file_set_lists_every_instance(tmp_path: Path) -> None:
    write_file_set(iter(members()), tmp_path / "set", uid_seed="dataset-1")
    instances = list(FileSet(tmp_path / "set" / "DICOMDIR"))
    assert sorted(to_bytes(instance.load()) for instance in instances) == sorted(members())
    assert {instance.PatientID for instance in instances} == {"SYN-a1", "SYN-b2"}
    for instance in instances:
        assert instance.ReferencedSOPInstanceUIDInFile == instance.load().SOPInstanceUID
        assert all(len(part) <= 8 and part.isupper() and part.isalnum() for part in Path(instance.FileID).parts)


def test_a_file_set_is_what_pydicom_would_link(tmp_path: Path) -> None:
    write_file_set(iter(members()), tmp_path / "set", uid_seed="dataset-1")
    # pydicom lays out a copy itself: it has the same records with the same offsets.
    FileSet(tmp_path / "set" / "DICOMDIR").copy(tmp_path / "copy")
    ours, theirs = (dcmread(tmp_path / name / "DICOMDIR") for name in ("set", "copy"))
    assert len(ours.DirectoryRecordSequence) == 2 * (3 + 3)
    first = "OffsetOfTheFirstDirectoryRecordOfTheRootDirectoryEntity"
    shift = ours[first].value - theirs[first].value
    for keyword in ("OffsetOfTheNextDirectoryRecord", "OffsetOfReferencedLowerLevelDirectoryEntity"):
        linked = [[record[keyword].value for record in item.DirectoryRecordSequence] for item in (ours, theirs)]
        assert linked[0] == [offset and offset + shift for offset in linked[1]]


def test_a_file_set_is_deterministic(tmp_path: Path) -> None:
    for name, seed in (("one", "s"), ("two", "s"), ("other", "t")):
        write_file_set(iter(members()), tmp_path / name, uid_seed=seed)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert contents(tmp_path / "one")["DICOMDIR"] != contents(tmp_path / "other")["DICOMDIR"]


@pytest.mark.parametrize("count", [0, 1, 6])
def test_other_programs_read_the_directory(tmp_path: Path, count: int) -> None:
    write_file_set(members()[:count], tmp_path / "set", uid_seed="dataset-1")
    path = tmp_path / "set" / "DICOMDIR"
    assert errors(path) == []
    result = subprocess.run([require("dcmdump", "dcmtk"), str(path)], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.count('"Directory Record" IMAGE') == count


def test_a_file_set_refuses_a_second_copy_and_a_used_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="twice"):
        write_file_set(members()[:1] * 2, tmp_path / "set", uid_seed="s")
    with pytest.raises(FileExistsError):
        write_file_set([], tmp_path / "set", uid_seed="s")
