"""Data sets of `generate`: read back in every format, and damaged."""

import errno
import hashlib
import json
import shutil
from pathlib import Path

import fsspec
import numpy as np
import pytest
from typer.testing import CliRunner

from cxrsynth.address import Address, Fetched, parse_location
from cxrsynth.cli import app
from cxrsynth.errors import ShardError
from cxrsynth.images import own as ours
from cxrsynth.images.collection import Collection, open_collection
from cxrsynth.images.image import Damaged, Radiograph
from cxrsynth.reports.labels import Status
from cxrsynth.shards.encode import decode_member
from cxrsynth.shards.folder import FILE_SET, METADATA
from tests.generation.making import ROWS, command, manifest, members, metadata, write_table
from tests.images.making import encoded, levels, member, read_all, tar_of, write

FORMATS = {
    "png": ("--image-format", "png", "--include-text", "sanitized"),
    "png16": ("--image-format", "png16"),
    "jpg": ("--image-format", "jpg"),
    "dicom": ("--format", "dicom"),
    "unpacked": ("--format", "dicom", "--unpacked"),
}


@pytest.fixture(scope="session")
def made(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One data set of the same reports in each format."""
    root = tmp_path_factory.mktemp("made")
    table = write_table(root / "reports.csv")
    write(root / "id.key", "0123456789abcdef0123456789abcdef")
    (root / "id.key").chmod(0o600)
    for name, options in FORMATS.items():
        arguments = command(table, root / name, tiny_model, "--id-key", str(root / "id.key"), *options)
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
    return {name: root / name for name in FORMATS}


@pytest.fixture
def copy(made: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(made["png"], tmp_path / "copy"))


def test_only_what_generate_did_not_write_is_passed_over(made: dict[str, Path], copy: Path) -> None:
    for name in FORMATS:
        assert open_collection(made[name]).passed_over == {}
    write(copy / "more" / "a.png", b"x")
    assert open_collection(copy).passed_over == {".png": 1}


def test_a_dark_image_of_16_bits_stays_dark(made: dict[str, Path], tmp_path: Path) -> None:
    """What `generate` writes in 16 bits has 16, and its manifest says that it is the one who wrote it."""
    assert {one.gray_range for one in read_all(open_collection(made["png16"]))[0]} == {"16 of 16 bits"}
    dark = np.arange(144, dtype=np.uint16).reshape(12, 12)
    write(tmp_path / "a.tar", tar_of([member("a-1.png", encoded(dark))]))
    sha256 = hashlib.sha256((tmp_path / "a.tar").read_bytes()).hexdigest()
    says = {"synthetic": True, "plan": {}, "files": {}, "shards": [{"name": "a.tar", "sha256": sha256}]}
    write(tmp_path / "manifest.json", json.dumps(says))
    (found,), damaged = read_all(open_collection(tmp_path))
    assert not damaged
    np.testing.assert_allclose(found.pixels, dark / 65535, atol=1e-6)


@pytest.mark.parametrize("name", ["png", "png16", "jpg", "dicom"])
def test_every_sample_comes_back(made: dict[str, Path], name: str) -> None:
    folder = made[name]
    collection = open_collection(folder)
    assert (collection.kind, collection.manifest) == ("cxrsynth", manifest(folder))
    shards = manifest(folder)["shards"]
    assert [unit.name for unit in collection.units] == [shard["name"] for shard in shards]
    assert [collection.content_of(unit) for unit in collection.units] == [shard["sha256"] for shard in shards]
    radiographs, damaged = read_all(collection)
    assert not damaged
    written = members(folder)
    assert len(radiographs) == len(ROWS)
    assert {
        f"{radiograph.key}.{extension}": raw
        for radiograph in radiographs
        for extension, raw in radiograph.members.items()
    } == written
    for radiograph in radiographs:
        (image,) = (
            f"{radiograph.key}.{extension}" for extension in ("png", "jpg", "dcm") if extension in radiograph.members
        )
        wanted = decode_member(image, written[image])
        assert wanted is not None
        np.testing.assert_allclose(radiograph.pixels, wanted, atol=1e-6)
        assert radiograph.sha256 == hashlib.sha256(written[image]).hexdigest()
        _check_metadata(radiograph, metadata(folder)[radiograph.key])


def _check_metadata(radiograph: Radiograph, expected: dict[str, object]) -> None:
    report = radiograph.report
    assert report is not None
    assert (report.view or "", report.sex or "", radiograph.age_group or "") == (
        expected["view"],
        expected["sex"],
        expected["age_group"],
    )
    assert report.stated_age_group == radiograph.age_group
    assert radiograph.patient
    assert radiograph.key.startswith(f"{radiograph.patient}-")
    findings = expected["findings"]
    assert isinstance(findings, dict)
    for name, fact in findings.items():
        label = report.labels.get(name)
        assert (label.status.value if label else "not mentioned") == fact["status"]
        assert (label.side.value if label and label.side else "") == fact["side"]


def test_text_is_read_if_it_was_written(made: dict[str, Path]) -> None:
    texts = [radiograph.report.text for radiograph in read_all(open_collection(made["png"]))[0] if radiograph.report]
    assert sum("Left pleural effusion" in text for text in texts) == 1
    assert {
        radiograph.report.text for radiograph in read_all(open_collection(made["jpg"]))[0] if radiograph.report
    } == {""}


def test_an_unpacked_file_set_has_the_same_metadata_as_its_shards(made: dict[str, Path]) -> None:
    collection = open_collection(made["unpacked"])
    assert collection.kind == "cxrsynth"
    radiographs, damaged = read_all(collection)
    assert not damaged
    packed = {radiograph.key: radiograph for radiograph in read_all(open_collection(made["dicom"]))[0]}
    assert packed.keys() == {radiograph.key for radiograph in radiographs}
    for radiograph in radiographs:
        twin = packed[radiograph.key]
        np.testing.assert_array_equal(radiograph.pixels, twin.pixels)
        assert radiograph.report is not None
        assert twin.report is not None
        assert radiograph.report.labels == twin.report.labels
        assert (radiograph.patient, radiograph.age_group) == (twin.patient, twin.age_group)
        assert {**radiograph.members, "dcm": b""} == {
            **twin.members,
            "dcm": b"",
        }  # kept images lose no metadata
    bare, damaged = read_all(open_collection(made["unpacked"] / FILE_SET))
    assert (len(bare), damaged) == (len(radiographs), [])
    assert {radiograph.report.sex for radiograph in bare if radiograph.report} <= {"F", "M", None}


def test_one_shard_or_the_manifest_may_be_given(made: dict[str, Path]) -> None:
    by_manifest = open_collection(made["png"] / "manifest.json")
    assert by_manifest.units == open_collection(made["png"]).units
    one = open_collection(made["png"] / "cxr-000001.tar")
    assert (one.kind, [unit.name for unit in one.units]) == ("cxrsynth", ["cxr-000001.tar"])
    assert len(read_all(one)[0]) == 3


def test_the_number_of_workers_changes_nothing(made: dict[str, Path]) -> None:
    one, four = (read_all(open_collection(made["png"]), workers=workers)[0] for workers in (1, 4))
    assert [(radiograph.key, radiograph.sha256, radiograph.report) for radiograph in one] == [
        (f.key, f.sha256, f.report) for f in four
    ]


@pytest.mark.parametrize("kind", ["flipped", "cut", "longer", "gone"])
def test_a_shard_that_does_not_match_the_manifest_is_not_read_at_all(copy: Path, kind: str) -> None:
    path = copy / "cxr-000001.tar"
    content = bytearray(path.read_bytes())
    if kind == "flipped":
        # In the last sample: those before it must not be yielded either.
        content[-3000] ^= 1
    path.write_bytes({"cut": content[:-512], "longer": content + bytes(512)}.get(kind, content))
    if kind == "gone":
        path.unlink()
    collection = open_collection(copy)
    radiographs, damaged = read_all(collection)
    assert {radiograph.source for radiograph in radiographs} == {"cxr-000000.tar", "cxr-000002.tar"}
    assert [(damage.source, damage.member) for damage in damaged] == [("cxr-000001.tar", "")]
    assert ("No such file" if kind == "gone" else "sha256") in damaged[0].reason


def test_a_shard_missing_from_the_manifest_is_reported(copy: Path) -> None:
    shutil.copy(copy / "cxr-000000.tar", copy / "cxr-000009.tar")
    radiographs, damaged = read_all(open_collection(copy))
    assert len(radiographs) == len(ROWS)
    assert damaged == [Damaged("cxr-000009.tar", "", "not listed in manifest.json")]


def test_random_damage_to_a_data_set_never_gives_a_wrong_image(copy: Path) -> None:
    right = {radiograph.key: radiograph for radiograph in read_all(open_collection(copy))[0]}
    path = copy / "cxr-000000.tar"
    whole = path.read_bytes()
    rng = np.random.default_rng(1)
    for _ in range(40):
        content = bytearray(whole[: int(rng.integers(0, len(whole)))] if rng.random() < 0.5 else whole)
        if content:
            content[int(rng.integers(0, len(content)))] ^= int(rng.integers(1, 256))
        path.write_bytes(content)
        radiographs, damaged = read_all(open_collection(copy))
        assert [damage.source for damage in damaged] == ["cxr-000000.tar"]
        assert len(radiographs) == len(ROWS) - 3
        for radiograph in radiographs:
            assert (radiograph.sha256, radiograph.report) == (
                right[radiograph.key].sha256,
                right[radiograph.key].report,
            )


def test_a_store_that_refuses_the_metadata_of_a_file_set_is_no_damage(
    made: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Audits remember damage; this ends with the next token."""
    store = fsspec.filesystem("memory")
    store.put(str(made["unpacked"]), "memory://file-set", recursive=True)
    address = parse_location("memory://file-set")
    assert len(read_all(open_collection(address))[0]) == len(read_all(open_collection(made["unpacked"]))[0])
    fetch = Address.fetch

    def refuse(asked: Address) -> Fetched:
        if asked.name == METADATA:
            raise PermissionError(errno.EACCES, "the token has expired", asked.url)
        return fetch(asked)

    monkeypatch.setattr(Address, "fetch", refuse)
    with pytest.raises(ShardError, match=rf"{METADATA}: cannot be read \(the token has expired"):
        open_collection(address)
    store.rm("memory://file-set", recursive=True)


def test_files_and_metadata_of_a_file_set_are_checked_against_the_manifest(
    made: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(made["unpacked"], tmp_path / "copy"))
    whole = open_collection(folder)
    name = whole.units[0].files[0]
    content = bytearray((folder / name).read_bytes())
    content[-9] ^= 1
    (folder / name).write_bytes(content)
    radiographs, damaged = read_all(open_collection(folder))
    assert len(radiographs) == len(ROWS) - 1
    assert [(damage.member, damage.reason) for damage in damaged] == [(name, ours.CHANGED)]
    with (folder / METADATA).open("a") as file:
        file.write("{}\n")
    radiographs, damaged = read_all(open_collection(folder))
    assert [damage.member for damage in damaged] == [METADATA, name]
    assert all(radiograph.report is None or not radiograph.report.labels for radiograph in radiographs)


def test_manifests_of_other_programs_and_broken_ones(copy: Path) -> None:
    path = copy / "manifest.json"
    content = json.loads(path.read_text())
    path.write_text('{"name": "a web app"}')
    collection: Collection = open_collection(copy)
    assert collection.kind == "webdataset"
    radiographs, _ = read_all(collection)
    assert {
        label.status for radiograph in radiographs if radiograph.report for label in radiograph.report.labels.values()
    } >= {Status.PRESENT}
    content["shards"][0]["name"] = "../cxr-000000.tar"
    for broken in (path.read_text()[:9], json.dumps(content), json.dumps({**content, "shards": [], "files": {}})):
        path.write_text(broken)
        with pytest.raises(ShardError, match="copy it again"):
            open_collection(copy)


def test_a_data_set_without_images_is_refused(copy: Path) -> None:
    """As an audit writes that rejected all."""
    path = copy / "manifest.json"
    content = json.loads(path.read_text())
    for shard in content["shards"]:
        (copy / shard["name"]).unlink()
    path.write_text(json.dumps(content | {"shards": [], "files": {"rejected.csv": "0" * 64}}))
    with pytest.raises(ShardError, match="a data set without images"):
        open_collection(copy)


def test_a_table_for_a_cxrsynth_data_set_is_refused(made: dict[str, Path], tmp_path: Path) -> None:
    table = write(tmp_path / "t.csv", "path,sex\nx,F\n")
    with pytest.raises(ShardError, match="carries its own metadata"):
        open_collection(made["png"], table=table)


def test_a_picture_beside_the_shards_is_not_an_image(made: dict[str, Path]) -> None:
    assert levels(0).any()
    assert (made["png"] / "preview.png").exists()
    assert not any("preview" in radiograph.key for radiograph in read_all(open_collection(made["png"]))[0])
