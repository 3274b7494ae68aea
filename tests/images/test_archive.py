"""Zip archives of images."""

import io
import stat
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from cxrsynth.errors import ReportsError, ShardError
from cxrsynth.images.collection import open_collection
from cxrsynth.images.image import Radiograph
from tests.images.layouts.test_known import NIH_NAMES, chestxray14, chexpert, labels, mimic, padchest
from tests.images.making import as_image, encoded, levels, read_all, write


def zipped(path: Path, members: dict[str, bytes], **options: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", **options) as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def packed(folder: Path, path: Path) -> Path:
    """All files of a folder in an archive."""
    files = sorted(one for one in folder.rglob("*") if one.is_file())
    return zipped(path, {one.relative_to(folder).as_posix(): one.read_bytes() for one in files}, compression=8)


def read(path: Path, table: Path | None = None) -> dict[str, Radiograph]:
    found, damaged = read_all(open_collection(path, table=table))
    assert damaged == []
    return {one.key: one for one in found}


def test_images_of_an_archive(tmp_path: Path) -> None:
    members = {f"set/{place}.png": encoded(levels(place)) for place in range(3)}
    path = zipped(tmp_path / "set.zip", members | {"__MACOSX/set/._0.png": b"x", "set/notes.txt": b"words"})
    collection = open_collection(path)
    assert collection.kind == "zip"
    found = read(path)
    assert sorted(found) == sorted(members)
    for place, key in enumerate(sorted(found)):
        np.testing.assert_array_equal(found[key].pixels, as_image(levels(place)))
        assert found[key].members == {"png": members[key]}


def test_units_and_their_digests(tmp_path: Path) -> None:
    members = {f"{place:04d}.png": encoded(levels(place, side=2)) for place in range(300)}
    collection = open_collection(zipped(tmp_path / "set.zip", members))
    assert [len(unit.files) for unit in collection.units] == [256, 44]
    before = [collection.digest_of(unit) for unit in collection.units]
    collection = open_collection(zipped(tmp_path / "set.zip", members | {"0299.png": encoded(levels(7, side=2))}))
    after = [collection.digest_of(unit) for unit in collection.units]
    # Of other images only: the archive's own time does not matter.
    assert [one == other for one, other in zip(before, after, strict=True)] == [True, False]


@pytest.mark.parametrize("make", [mimic, chexpert, chestxray14, padchest])
def test_a_layout_in_an_archive_is_read_as_on_disk(tmp_path: Path, make: object) -> None:
    root = make(tmp_path / "CheXpert-v1.0-small")  # type: ignore[operator]
    if make is mimic:
        write(root / "files/p10/p10000032/s50414267.txt", "FINDINGS: Large left pleural effusion.")
    archive = packed(root, tmp_path / "set.zip")
    on_disk, in_archive = read(root), read(archive)
    assert on_disk.keys() == in_archive.keys()
    for key, one in on_disk.items():
        assert (one.report, one.patient, one.sha256) == (
            in_archive[key].report,
            in_archive[key].patient,
            in_archive[key].sha256,
        )
    assert open_collection(root).layout == open_collection(archive).layout
    assert open_collection(root).layout is not None


def test_archives_in_a_folder_with_the_table_beside_them(tmp_path: Path) -> None:
    root = padchest(tmp_path / "padchest")
    expected = read(root)
    for folder in ("0", "1"):
        packed(root / folder, root / f"{folder}.zip")
        for image in (root / folder).iterdir():
            image.unlink()
    found = read(root)
    assert sorted(found) == sorted(key.replace("/", ".zip/", 1) for key in expected)
    assert [labels(found[key]) for key in sorted(found)] == [labels(expected[key]) for key in sorted(expected)]
    collection = open_collection(root)
    assert (collection.kind, collection.described) == ("zip", (3, 3))


def test_a_table_of_the_users(tmp_path: Path) -> None:
    path = zipped(tmp_path / "set.zip", {f"a/{place}.png": encoded(levels(place)) for place in range(2)})
    table = write(tmp_path / "t.csv", "path,Edema\na/1.png,1\n")
    assert [labels(one) for one in read(path, table).values()] == [{}, {"Edema": "present"}]


def test_an_archive_beside_pictures_is_passed_over(tmp_path: Path) -> None:
    write(tmp_path / "a.png", encoded(levels(0)))
    zipped(tmp_path / "b.zip", {"b.png": encoded(levels(1))})
    assert open_collection(tmp_path).passed_over == {".zip": 1}


def test_archives_that_are_read_are_not_passed_over(tmp_path: Path) -> None:
    zipped(tmp_path / "b.zip", {"b.png": encoded(levels(1)), "c.bmp": b"x"})
    collection = open_collection(tmp_path)
    assert (collection.kind, collection.passed_over) == ("zip", {".bmp": 1})


def test_members_that_cannot_be_read_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = encoded(levels(0))
    path = tmp_path / "set.zip"
    link = zipfile.ZipInfo("link.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("good.png", image)
        archive.writestr("../out.png", image)
        archive.writestr("/root.png", image)
        archive.writestr(link, b"/etc/passwd")
        archive.writestr("flipped.png", encoded(levels(1)))
        archive.writestr("secret.png", image)
        archive.writestr("twice.png", image)
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("twice.png", encoded(levels(2)))
        archive.writestr("half.png", image[:60])
        archive.writestr("zeros.png", bytes(2000), compress_type=zipfile.ZIP_DEFLATED)
    content = bytearray(path.read_bytes())
    content[content.index(encoded(levels(1))) + 70] ^= 255
    # The flag of encryption, in the list of members and before the member itself.
    for mark, place in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        start = next(
            at for at in range(len(content)) if content[at : at + 4] == mark and b"secret.png" in content[at : at + 70]
        )
        flags = struct.unpack_from("<H", content, start + place)[0]
        struct.pack_into("<H", content, start + place, flags | 1)
    path.write_bytes(content)
    monkeypatch.setattr("cxrsynth.images.archive.MAX_MEMBER_BYTES", 1000)
    found, damaged = read_all(open_collection(path))
    assert [one.key for one in found] == ["good.png"]
    reasons = {one.member: one.reason for one in damaged}
    assert reasons.pop("flipped.png") == "broken in the archive"
    assert "truncated" in reasons.pop("half.png")
    assert reasons == {
        "../out.png": "a name that leads out of the shard",
        "/root.png": "a name that leads out of the shard",
        "link.png": "a link, expected a file",
        "secret.png": "encrypted; unpack the archive with its password",
        "twice.png": "several members of this name in the archive, none of which is read",
        "zeros.png": "more than 1000 bytes",
    }


def test_a_member_packed_in_an_unknown_way_says_so(tmp_path: Path) -> None:
    path = zipped(tmp_path / "set.zip", {"a.png": encoded(levels(0)), "b.png": encoded(levels(1))}, compression=8)
    content = bytearray(path.read_bytes())
    struct.pack_into("<H", content, content.rindex(b"PK\x01\x02") + 10, 96)  # JPEG, in the list of members
    path.write_bytes(content)
    found, damaged = read_all(open_collection(path))
    assert [one.key for one in found] == ["a.png"]
    assert [one.reason for one in damaged] == ["packed in a way that is not known here; pack it again"]


def test_a_member_that_holds_more_than_it_says_is_not_unpacked(tmp_path: Path) -> None:
    path = zipped(tmp_path / "set.zip", {"a.png": encoded(levels(0)), "b.png": bytes(64 << 20)}, compression=8)
    content = bytearray(path.read_bytes())
    start = content.rindex(b"PK\x01\x02")
    assert b"b.png" in content[start : start + 60]
    struct.pack_into("<I", content, start + 24, 1000)  # its size, in the list of members
    path.write_bytes(content)
    found, damaged = read_all(open_collection(path))
    assert [one.key for one in found] == ["a.png"]
    assert [one.reason for one in damaged] == ["broken in the archive"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "not a zip archive"), (b"PK\x03\x04" + bytes(100), "not a zip archive"), (None, "archive of shards")],
)
def test_archives_that_cannot_be_used(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "set.zip"
    if content is None:
        zipped(path, {"a.tar": b"x", "b.png": encoded(levels(0))})
    else:
        write(path, content)
    with pytest.raises(ShardError, match=reason):
        open_collection(path)


def test_a_truncated_archive_is_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "set.zip", {"a.png": encoded(levels(0))})
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ShardError, match="truncated"):
        open_collection(path)


def test_a_broken_table_in_an_archive_is_named(tmp_path: Path) -> None:
    root = chestxray14(tmp_path / "nih")
    path = zipped(
        tmp_path / "set.zip",
        {
            NIH_NAMES[0]: (root / NIH_NAMES[0]).read_bytes(),
            "Data_Entry_2017.csv": (root / "Data_Entry_2017.csv").read_bytes(),
        },
    )
    content = bytearray(path.read_bytes())
    content[content.index(b"Cardiomegaly")] ^= 255
    path.write_bytes(content)
    with pytest.raises(ReportsError, match=r"set\.zip/Data_Entry_2017\.csv: broken in the archive"):
        open_collection(path)


def test_no_image_in_an_archive(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="no image among 1 file"):
        open_collection(zipped(tmp_path / "set.zip", {"a.txt": b"words"}))
    buffer = io.BytesIO()
    zipfile.ZipFile(buffer, "w").close()
    with pytest.raises(ShardError, match="an empty folder"):
        open_collection(write(tmp_path / "empty.zip", buffer.getvalue()))
