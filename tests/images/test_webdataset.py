"""Shards of other programs, broken or hostile: never an exception, never a wrong image."""

import gzip
import io
import json
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from cxrsynth.images.collection import Collection, open_collection
from cxrsynth.images.image import Damaged, Radiograph
from cxrsynth.images.limits import MAX_MEMBER_BYTES
from cxrsynth.images.webdataset import split_name
from tests.images.making import as_image, dicom_of, encoded, levels, member, read_all, shard_of, tar_of, write

PNG = encoded(levels(0))


def opened(tmp_path: Path, content: bytes, name: str = "a.tar") -> Collection:
    return open_collection(write(tmp_path / "set" / name, content).parent)


def read_tar(tmp_path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> tuple[list[Radiograph], list[Damaged]]:
    return read_all(opened(tmp_path, tar_of(members)))


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tgz"])
def test_a_shard_gives_its_images_in_order(tmp_path: Path, name: str) -> None:
    content = shard_of(20)
    radiographs, damaged = read_all(opened(tmp_path, content if name == "a.tar" else gzip.compress(content), name))
    assert not damaged
    assert [radiograph.key for radiograph in radiographs] == [f"a/s{index}" for index in range(20)]
    assert [radiograph.place for radiograph in radiographs] == list(range(20))
    for index, radiograph in enumerate(radiographs):
        np.testing.assert_array_equal(radiograph.pixels, as_image(levels(index)))
        assert radiograph.source == name
        assert radiograph.report is not None
        assert (radiograph.report.view, radiograph.report.sex, radiograph.report.report_id) == (
            "PA",
            "F",
            f"a/s{index}",
        )
        assert dict(radiograph.members) == {"png": encoded(levels(index)), "json": b'{"view": "PA", "sex": "F"}'}


def test_pictures_beside_shards_are_counted(tmp_path: Path) -> None:
    for name in ("a.png", "sub/b.dcm", "c.bmp", "notes.txt"):
        write(tmp_path / "set" / name, PNG)
    assert opened(tmp_path, shard_of(1)).passed_over == {".png": 1, ".dcm": 1, ".bmp": 1}
    assert open_collection(tmp_path / "set" / "a.tar").passed_over == {}


def test_the_line_of_the_table_that_describes_an_image_is_known(tmp_path: Path) -> None:
    opened(tmp_path, shard_of(3))
    table = write(tmp_path / "t.csv", "file,sex\nother,M\ns1,M\n")
    collection = open_collection(tmp_path / "set", table=table)
    found, _ = read_all(collection)
    assert [one.table_line for one in found] == [None, 3, None]
    assert [one.report.sex if one.report else None for one in found] == ["F", "M", "F"]
    assert (collection.rows, collection.matches) == (2, None)


def test_some_images_of_a_shard_are_read_without_the_others(tmp_path: Path) -> None:
    collection = opened(tmp_path, tar_of([member("a.png", PNG), member("b.png", b"broken"), member("c.png", PNG)]))
    found = list(collection.read_only(collection.units[0], {"a/a", "a/b", "a/none"}))
    assert [radiograph.key for radiograph in found] == ["a/a"]


def test_shards_are_sorted_units_and_their_equal_keys_stay_distinct(tmp_path: Path) -> None:
    for name in ("b.tar", "train/a.tar", ".hidden.tar"):
        write(tmp_path / name, shard_of(1))
    write(tmp_path / "preview.png", PNG)
    collection = open_collection(tmp_path)
    assert (collection.kind, collection.manifest) == ("webdataset", None)
    assert [unit.name for unit in collection.units] == ["b.tar", "train/a.tar"]
    assert [radiograph.key for radiograph in read_all(collection)[0]] == ["b/s0", "train/a/s0"]
    one = open_collection(tmp_path / "b.tar")
    assert [radiograph.key for radiograph in read_all(one)[0]] == ["b/s0"]


def test_shards_that_differ_only_in_suffix_keep_their_images_apart(tmp_path: Path) -> None:
    for name in ("a.tar", "b.tar"):
        write(tmp_path / name, shard_of(2))
    write(tmp_path / "a.tgz", gzip.compress(shard_of(1)))
    keys = [radiograph.key for radiograph in read_all(open_collection(tmp_path))[0]]
    assert keys == ["a.tar/s0", "a.tar/s1", "a.tgz/s0", "b/s0", "b/s1"]


def test_the_digest_changes_with_the_file(tmp_path: Path) -> None:
    collection = opened(tmp_path, shard_of(1))
    (unit,) = collection.units
    before = collection.digest_of(unit)
    write(tmp_path / "set" / "a.tar", shard_of(2))
    assert collection.digest_of(unit) != before


def test_names_split_at_the_first_dot_except_in_uids() -> None:
    assert split_name("a/b.c/x.seg.png") == ("a/b.c/x", "seg.png")
    assert split_name("x.JPG") == ("x", "jpg")
    assert split_name("1.2.840.7.dcm") == ("1.2.840.7", "dcm")
    assert split_name("d/1.2.json") == ("d/1.2", "json")
    assert split_name("README") == ("README", "")


def test_every_image_extension_and_text(tmp_path: Path) -> None:
    text = b"Cardiomegaly. No pneumothorax."
    radiographs, damaged = read_tar(
        tmp_path,
        member("./p.png", PNG),
        member("./p.txt", text),
        member("j.jpg", encoded(levels(1), "JPEG")),
        member("j.seg.png", PNG),
        member("w.webp", encoded(levels(2), "WEBP", lossless=True)),
        member("d.dcm", dicom_of(levels(3), PatientSex="M", PatientID="who", ViewPosition="AP")),
        member("d.json", b'{"view": "PA"}'),
        member("__meta.json", b"{}"),
        member("folder", type=tarfile.DIRTYPE),
    )
    assert not damaged
    first, _, third, fourth = radiographs
    assert [radiograph.key for radiograph in radiographs] == ["a/p", "a/j", "a/w", "a/d"]
    assert first.report is not None
    assert {name: label.status.value for name, label in first.report.labels.items()} == {
        "Cardiomegaly": "present",
        "Pneumothorax": "absent",
    }
    assert radiographs[1].report is None
    assert set(radiographs[1].members) == {"jpg", "seg.png"}
    np.testing.assert_array_equal(third.pixels, as_image(levels(2)))
    assert fourth.report is not None
    assert (fourth.report.view, fourth.report.sex, fourth.patient) == ("PA", "M", "who")


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ([member("../x.png", PNG)], "leads out"),
        ([member("/etc/x.png", PNG)], "leads out"),
        ([member("a/../../x.png", PNG)], "leads out"),
        ([member("..\\x.png", PNG)], "leads out"),
        ([member("x\n.png", PNG)], "control characters"),
        ([member("x.png", type=tarfile.SYMTYPE, linkname="good.png")], "a link"),
        ([member("x.png", type=tarfile.LNKTYPE, linkname="good.png")], "a link"),
        ([member("x.png", type=tarfile.CHRTYPE)], "a device"),
        ([member("x.png", b"text")], "not a PNG, JPEG"),
        ([member("x.png", PNG[: len(PNG) // 2])], "broken or truncated"),
        ([member("x.png")], "not a PNG, JPEG"),
        ([member("x.dcm", dicom_of(levels(0), pixels=False))], "without pixels"),
        ([member("x.json", b"{}")], "no image"),
        ([member("x.png", PNG), member("x.jpg", PNG)], "2 images"),
        ([member("x.png", PNG), member("x.json", b"{")], "json or txt"),
        ([member("x.png", PNG), member("x.json", b"[" * 100_000)], "json or txt"),
        ([member("x.png", PNG), member("x.json", b"[]")], "not an object"),
        ([member("x.png", PNG), member("x.txt", b"\xff\xfe\xff")], "json or txt"),
        ([member("x.png", PNG), member("x.txt", b"a" * (1 << 21))], "longer than"),
        ([member("x.png", PNG), member("x.json", type=tarfile.SYMTYPE, linkname="good.json")], "a link"),
        ([member("x.png", PNG), *(member(f"x.{n}", b"1") for n in range(64))], "more than 64 members"),
        ([member("good.png", PNG)], "second sample"),
    ],
)
def test_one_bad_sample_is_reported_and_the_rest_is_read(
    tmp_path: Path, bad: list[tuple[tarfile.TarInfo, bytes]], reason: str
) -> None:
    good, last = member("good.png", encoded(levels(1))), member("last.png", encoded(levels(2)))
    radiographs, damaged = read_tar(tmp_path, good, member("between.png", PNG), *bad, last)
    assert [radiograph.key for radiograph in radiographs] == ["a/good", "a/between", "a/last"]
    np.testing.assert_array_equal(radiographs[0].pixels, as_image(levels(1)))
    np.testing.assert_array_equal(radiographs[2].pixels, as_image(levels(2)))
    (damage,) = damaged
    assert reason in damage.reason
    assert damage.source == "a.tar"
    assert damage.member.isprintable()


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_of_ten_gigabytes_takes_no_memory(tmp_path: Path, kind: bytes) -> None:
    huge = member("x.png", b"some", size=10 << 30, type=kind)
    first, second = member("first.png", PNG), member("second.png", PNG)
    path = write(tmp_path / "a.tar", tar_of([first, second, huge], form=tarfile.GNU_FORMAT))
    with path.open("r+b") as file:
        file.truncate(11 << 30)  # a hole: that many bytes can be read
    tracemalloc.start()
    radiographs, damaged = read_all(open_collection(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # After a broken name header, the next member may belong to the sample before.
    assert [radiograph.key for radiograph in radiographs] == (
        ["a/first", "a/second"] if kind == tarfile.REGTYPE else ["a/first"]
    )
    assert "claims 10737418240 bytes" in damaged[0].reason
    assert peak < 20 << 20
    assert MAX_MEMBER_BYTES < 10 << 30


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "an empty file"),
        (b"not a tar at all" * 100, "not a tar"),
        (bytes(10240), "without members"),
        (shard_of(3)[: 512 * 9], "the rest is not read"),
        (shard_of(3)[:-1024], "without its end mark"),
        (shard_of(2) + shard_of(1), "continues after its end mark"),
        (gzip.compress(shard_of(3))[:-30], "gzip stream"),
        (tar_of([member("s0.png", PNG)]) + b"x", "continues after its end mark"),
    ],
)
def test_a_broken_tar_is_reported_once(tmp_path: Path, content: bytes, reason: str) -> None:
    _, damaged = read_all(opened(tmp_path, content))
    assert len(damaged) == 1
    assert reason in damaged[0].reason


def test_a_sample_that_may_lack_a_member_is_left_out(tmp_path: Path) -> None:
    content = tar_of([member("s0.png", PNG), member("s1.png", PNG), member("s1.json", b"{}")])
    # Cut between the second image and its JSON, at a boundary of members.
    cut = content[: 2 * (512 + -(-len(PNG) // 512) * 512)]
    radiographs, damaged = read_all(opened(tmp_path, cut))
    assert [radiograph.key for radiograph in radiographs] == ["a/s0"]
    assert "without its end mark" in damaged[0].reason


def test_a_broken_tar_names_its_last_sample_apart_from_the_reason(tmp_path: Path) -> None:
    """Audits hide names of real images where a name stands; a reason is printed as it is."""
    content = tar_of([member("p10000032_s50414267.png", PNG), member("p10000032_s50414268.png", PNG)])
    cut = content[: 2 * (512 + -(-len(PNG) // 512) * 512)]
    [damaged] = read_all(opened(tmp_path, cut))[1]
    assert damaged.source == "a.tar"
    assert damaged.member == "p10000032_s50414267"
    assert damaged.reason.endswith("after this sample; the rest is not read")
    assert "p10000032" not in damaged.reason


def test_a_shard_that_is_missing_is_reported(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "b.tar").symlink_to(tmp_path / "nowhere.tar")
    collection = opened(tmp_path, shard_of(1))
    radiographs, damaged = read_all(collection)
    assert len(radiographs) == 1
    assert damaged == [Damaged("b.tar", "", "cannot be read: No such file or directory")]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_in_every_dialect(tmp_path: Path, form: int) -> None:
    buffer = io.BytesIO()
    name = "folder/" * 12 + "x" * 60
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        tar.addfile(*_file(f"{name}.png", PNG))
        tar.addfile(*_file(f"{name}.json", b'{"sex": "F"}'))
    radiographs, damaged = read_all(opened(tmp_path, buffer.getvalue()))
    assert not damaged
    assert [radiograph.key for radiograph in radiographs] == [f"a/{name}"]


def _file(name: str, content: bytes) -> tuple[tarfile.TarInfo, io.BytesIO]:
    info, _ = member(name, content)
    return info, io.BytesIO(content)


def test_random_damage_never_raises_and_never_gives_a_wrong_image(tmp_path: Path) -> None:
    whole = shard_of(6)
    right = {f"a/s{index}": as_image(levels(index)) for index in range(6)}
    rng = np.random.default_rng(0)
    reported = 0
    for _ in range(150):
        content = bytearray(whole)
        if rng.random() < 0.4:
            content = content[: int(rng.integers(0, len(whole)))]
        for _ in range(int(rng.integers(1, 4)) if content else 0):
            content[int(rng.integers(0, len(content)))] ^= int(rng.integers(1, 256))
        radiographs, damaged = read_all(opened(tmp_path, bytes(content)))
        reported += bool(damaged)
        for radiograph in radiographs:
            np.testing.assert_array_equal(radiograph.pixels, right[radiograph.key])
    assert reported > 90


def test_no_reason_or_repr_quotes_a_report(tmp_path: Path) -> None:
    secret = b'{"report": "Zorblattic lungs", "age": "Zorblattic", "patient_id": "Zorblattic"'
    radiographs, damaged = read_tar(
        tmp_path, member("a.json", secret), member("a.png", PNG), member("b.json", secret + b"}"), member("b.png", PNG)
    )
    assert len(radiographs) == len(damaged) == 1
    assert radiographs[0].report is not None
    assert radiographs[0].report.text == "Zorblattic lungs"
    assert "Zorblattic" not in repr(radiographs) + repr(damaged)


def test_a_table_describes_the_samples_of_a_shard(tmp_path: Path) -> None:
    collection = opened(tmp_path, shard_of(2))
    table = write(tmp_path / "t.csv", "id,view,labels,patient_id\ns0,AP,Mass|Effusion,p7\nother,PA,,\n")
    radiographs, damaged = read_all(open_collection(collection.path, table=table))
    assert not damaged
    assert radiographs[0].report is not None
    assert (radiographs[0].report.view, radiographs[0].patient) == ("AP", "p7")
    assert set(radiographs[0].report.labels) == {"Lung Lesion", "Pleural Effusion"}
    assert radiographs[1].report is not None
    assert radiographs[1].report.view == "PA"


def test_labels_joined_by_bars(tmp_path: Path) -> None:
    record = {"labels": "Edema|Effusion|Infiltration|Pleural_Thickening|Hernia|todo", "view": "AP", "age": "1-5"}
    radiographs, _ = read_tar(tmp_path, member("x.json", json.dumps(record).encode()), member("x.png", PNG))
    report = radiographs[0].report
    assert report is not None
    assert {name: label.status.value for name, label in report.labels.items()} == dict.fromkeys(
        ("Edema", "Pleural Effusion", "Lung Opacity", "Pleural Other"), "present"
    )
    assert (report.view, report.age_years, radiographs[0].age_group) == ("AP", None, "child")
