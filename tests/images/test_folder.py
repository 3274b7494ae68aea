"""Folders of pictures and DICOM files, with and without a table."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cxrsynth.errors import ReportsError, ShardError
from cxrsynth.images import folder as images_folder
from cxrsynth.images.collection import open_collection
from cxrsynth.images.decode import IMAGE_EXTENSIONS
from cxrsynth.images.folder import Listing, passed_over
from cxrsynth.images.image import Damaged
from cxrsynth.reports.table.columns import ColumnNames
from tests.images.making import as_image, dicom_of, encoded, levels, read_all, shard_of, write


def folder(tmp_path: Path) -> Path:
    for index, name in enumerate(("b/x.png", "b/y.jpeg", "a/x.tif", "z.webp")):
        kind = {"png": "PNG", "jpeg": "JPEG", "tif": "TIFF", "webp": "WEBP"}[name.rpartition(".")[2]]
        write(tmp_path / "images" / name, encoded(levels(index), kind))
    for name in ("notes.txt", "t.csv", "b/.hidden.png", ".git/x.png"):
        write(tmp_path / "images" / name, encoded(levels(9)))
    return tmp_path / "images"


def test_pictures_of_all_folders_by_path(tmp_path: Path) -> None:
    collection = open_collection(folder(tmp_path))
    assert collection.kind == "folder"
    radiographs, damaged = read_all(collection)
    assert not damaged
    assert [radiograph.key for radiograph in radiographs] == ["a/x.tif", "b/x.png", "b/y.jpeg", "z.webp"]
    assert [radiograph.place for radiograph in radiographs] == [0, 1, 2, 3]
    assert {radiograph.report for radiograph in radiographs} == {None}
    np.testing.assert_array_equal(radiographs[1].pixels, as_image(levels(0)))
    assert radiographs[1].members == {"png": encoded(levels(0))}


def test_as_many_images_of_each_unit_as_give_so_many_in_all(tmp_path: Path) -> None:
    for place in range(300):
        write(tmp_path / "images" / f"{place:03d}.png", encoded(levels(0)))
    collection = open_collection(tmp_path / "images")
    sizes = [len(unit.files) for unit in collection.units]
    assert sizes == [256, 44]
    for count in (1, 2, 3, 88, 89, 100, 299, 300):
        each = collection.per_unit(count)
        assert sum(min(size, each) for size in sizes) >= count
        assert each == 1 or sum(min(size, each - 1) for size in sizes) < count
    assert collection.per_unit(1000) == 256


def test_shards_of_unknown_sizes_are_taken_of_evenly(tmp_path: Path) -> None:
    for place in range(3):
        write(tmp_path / f"{place}.tar", shard_of(3))
    assert [open_collection(tmp_path).per_unit(count) for count in (1, 3, 4, 9)] == [1, 1, 2, 3]


def test_a_shards_name_of_undecodable_bytes_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "p.tar", shard_of(1))
    os.rename(tmp_path / "p.tar", os.fsencode(tmp_path) + b"/p\xff.tar")
    with pytest.raises(ShardError, match=r"a file 'p\\udcff.tar', whose name has undecodable bytes"):
        open_collection(tmp_path)
    os.rename(os.fsencode(tmp_path) + b"/p\xff.tar", tmp_path / "p\u202f1.tar")  # a narrow space, as macOS writes
    assert [unit.name for unit in open_collection(tmp_path).units] == ["p\u202f1.tar"]


def test_some_pictures_are_read_without_opening_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collection = open_collection(folder(tmp_path))
    opened: list[str] = []
    plain = images_folder.open_plain
    monkeypatch.setattr(images_folder, "open_plain", lambda path: (opened.append(path.name), plain(path))[1])
    found = list(collection.read_only(collection.units[0], {"b/y.jpeg", "z.webp"}))
    assert [radiograph.key for radiograph in found] == ["b/y.jpeg", "z.webp"]
    assert opened == ["y.jpeg", "z.webp"]


def test_pictures_are_known_by_their_start_where_names_do_not_say(tmp_path: Path) -> None:
    names = {"scan1": encoded(levels(0)), "scan2": encoded(levels(1), "TIFF"), "scan3": encoded(levels(2), "JPEG")}
    for name, content in {**names, "notes": b"words", "scan4": dicom_of(levels(3))}.items():
        write(tmp_path / name, content)
    write(tmp_path / "scan5", encoded(levels(4), "WEBP"))
    collection = open_collection(tmp_path)
    assert collection.kind == "folder"
    radiographs, damaged = read_all(collection)
    assert not damaged
    assert [radiograph.key for radiograph in radiographs] == ["scan1", "scan2", "scan3", "scan4", "scan5"]
    np.testing.assert_array_equal(radiographs[1].pixels, as_image(levels(1)))


def test_images_that_are_passed_over_are_counted(tmp_path: Path) -> None:
    write(tmp_path / "a.png", encoded(levels(0)))
    for name in ("b.bmp", "c.BMP", "d.npy", "e.txt", "f.csv"):
        write(tmp_path / "sub" / name, b"x")
    assert open_collection(tmp_path).passed_over == {".bmp": 2, ".npy": 1}
    assert open_collection(tmp_path / "a.png").passed_over == {}


def test_images_of_unknown_extensions_are_counted(tmp_path: Path) -> None:
    for name in ("a.png", "a.png.bak", "IM.final"):
        write(tmp_path / name, encoded(levels(0)))
    write(tmp_path / "notes.bak", b"words")
    collection = open_collection(tmp_path)
    assert collection.passed_over == {".bak": 1, ".final": 1}
    assert [one.key for one in read_all(collection)[0]] == ["a.png"]


@pytest.mark.parametrize(
    "name", ["a.ima", "a.dcm.gz", "a.nii.gz", "a.PNG.gz", "a.j2c", "a.jpx", "a.jls", "a.mat", "a.h5", "a.tga", "a.apng"]
)
def test_each_kind_that_is_passed_over_is_counted(name: str, tmp_path: Path) -> None:
    write(tmp_path / "b.png", encoded(levels(0)))
    write(tmp_path / name, b"x")
    write(tmp_path / "t.csv.gz", b"x")
    assert open_collection(tmp_path).passed_over == {name.lower().removeprefix("a"): 1}


def test_every_kind_that_pillow_knows_is_read_or_counted() -> None:
    others = {".mpg", ".mpeg", ".ps"}  # films, and pages
    known = {name for name in Image.registered_extensions() if name not in others}
    left = {name for name in known if name.removeprefix(".") not in IMAGE_EXTENSIONS}
    assert {name for name in left if not passed_over(Listing([f"a{name}"]))} == set()


def test_jpeg_under_its_other_names_is_read(tmp_path: Path) -> None:
    smooth = np.linspace(0, 255, 32 * 32).reshape(32, 32).astype(np.uint8)
    for name in ("a.jfif", "b.jpe", "c.JIF", "d.jpeg"):
        write(tmp_path / name, encoded(smooth, "JPEG", quality=95))
    table = write(tmp_path / "t.csv", "path,sex\na,F\n")
    collection = open_collection(tmp_path, table=table)
    found, damaged = read_all(collection)
    assert (damaged, collection.passed_over) == ([], {})
    assert [one.key for one in found] == ["a.jfif", "b.jpe", "c.JIF", "d.jpeg"]
    assert all(abs(one.pixels - as_image(smooth)).max() < 0.02 for one in found)
    assert found[0].report is not None


def test_linked_folders_are_counted_and_named_where_there_is_nothing_else(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere" / "x.png", encoded(levels(0)))
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ShardError, match=r"nothing but 1 linked folder.*\n  name the folder that a link leads to"):
        open_collection(tmp_path / "set")
    write(tmp_path / "set" / "a.png", encoded(levels(1)))
    collection = open_collection(tmp_path / "set")
    assert collection.passed_over == {"linked folder": 1}
    assert [one.key for one in read_all(collection)[0]] == ["a.png"]


def test_how_many_rows_match_is_known(tmp_path: Path) -> None:
    table = write(tmp_path / "t.csv", "path,sex\nz.webp,F\nb/x.png,F\nother.png,M\n")
    collection = open_collection(folder(tmp_path), table=table)
    assert collection.matches is not None
    assert str(collection.matches) == "2 of 4 images have a row; 1 of 3 rows match no image"
    assert open_collection(tmp_path / "images").matches is None


def test_files_come_in_chunks_of_256(tmp_path: Path) -> None:
    content = encoded(levels(0, side=2))
    for index in range(300):
        write(tmp_path / f"{index:04d}.png", content)
    collection = open_collection(tmp_path)
    assert [(unit.name, len(unit.files)) for unit in collection.units] == [("files-000000", 256), ("files-000001", 44)]
    assert collection.units == open_collection(tmp_path).units
    before = [collection.digest_of(unit) for unit in collection.units]
    os.utime(tmp_path / "0299.png", ns=(1, 1))
    after = [collection.digest_of(unit) for unit in collection.units]
    assert before[0] == after[0]
    assert before[1] != after[1]
    assert next(iter(collection.read(collection.units[1]))).source == "files-000001"


def test_a_dicom_tree_also_without_extensions(tmp_path: Path) -> None:
    content = dicom_of(levels(0), PatientID="p1", PatientAge="030Y", ViewPosition="LL", PatientSex="F")
    for name in ("PT0/IM0", "PT0/1.2.840.99", "one.dcm", "DICOMDIR", "LICENSE"):
        write(tmp_path / name, content if name != "LICENSE" else b"words")
    collection = open_collection(tmp_path)
    assert collection.kind == "dicom"
    radiographs, damaged = read_all(collection)
    assert not damaged
    assert [radiograph.key for radiograph in radiographs] == ["PT0/1.2.840.99", "PT0/IM0", "one.dcm"]
    report = radiographs[0].report
    assert report is not None
    assert (report.view, report.sex, report.age_years, radiographs[0].patient) == ("LATERAL", "F", 30.0, "p1")
    assert radiographs[0].age_group == "adult"
    assert radiographs[0].members == {"dcm": content}


TABLE = "name,view,Edema,subject_id\n{}\n".format
KNOWN = [("b/x.png", "AP", 1, "p1"), ("a/x.tif", "PA", 0, "p2"), ("z.webp", "LATERAL", "", "p3")]


@pytest.mark.parametrize("column", ["path", "filename", "file_name", "image", "image_id", "dicom_id", "id"])
@pytest.mark.parametrize("shape", ["{}", "./{}", "images/{}", "no-extension"])
def test_rows_are_found_by_path(tmp_path: Path, column: str, shape: str) -> None:
    names = [n.rpartition(".")[0] if shape == "no-extension" else shape.format(n) for n, *_ in KNOWN]
    rows = "\n".join(f"{n},{view},{edema},{who}" for n, (_, view, edema, who) in zip(names, KNOWN, strict=True))
    table = write(tmp_path / "t.csv", TABLE(rows).replace("name", column))
    radiographs, damaged = read_all(open_collection(folder(tmp_path), table=table))
    assert not damaged
    found = {
        radiograph.key: (radiograph.patient, radiograph.report.view if radiograph.report else None)
        for radiograph in radiographs
    }
    assert found == {
        "a/x.tif": ("p2", "PA"),
        "b/x.png": ("p1", "AP"),
        "b/y.jpeg": ("", None),
        "z.webp": ("p3", "LATERAL"),
    }


def test_every_kind_of_table(tmp_path: Path) -> None:
    radiographs = folder(tmp_path)
    lines = '{"image": "z", "Edema": 1, "labels": ["Mass"]}\nbroken\n{"Edema": 1}\n'
    found, damaged = read_all(open_collection(radiographs, table=write(tmp_path / "t.jsonl", lines)))
    assert found[3].report is not None
    assert found[3].report.labels.keys() == {"Edema", "Lung Lesion"}
    assert damaged == [Damaged("t.jsonl", "line 2", "broken JSON"), Damaged("t.jsonl", "line 3", "no image")]
    pq.write_table(pa.table({"image": ["z.webp"], "Edema": [1.0], "sex": ["F"]}), tmp_path / "t.parquet")
    found, damaged = read_all(open_collection(radiographs, table=tmp_path / "t.parquet"))
    assert found[3].report is not None
    assert (found[3].report.sex, found[3].report.line, len(found[3].report.labels), damaged) == ("F", 2, 1, [])
    table = write(tmp_path / "named.csv", "path,words\nz.webp,Edema.\n")
    found, _ = read_all(open_collection(radiographs, table=table, columns=ColumnNames(report="words")))
    assert found[3].report is not None
    assert found[3].report.labels.keys() == {"Edema", "No Finding"} - {"No Finding"}


def test_a_row_of_another_folder_does_not_match(tmp_path: Path) -> None:
    radiographs = folder(tmp_path)
    table = write(tmp_path / "t.csv", "path,sex\nc/x.png,F\nfar/away/z.webp,M\n")
    found, _ = read_all(open_collection(radiographs, table=table))
    assert [radiograph.report.sex if radiograph.report else None for radiograph in found] == [None, None, None, "M"]


def test_a_row_whose_name_fits_several_files_describes_none(tmp_path: Path) -> None:
    """A table of `train` must not label files of `test` that have the same names."""
    for place, name in enumerate(("1.png", "train/1.png", "train/2.png", "test/2.png", "test/3.png")):
        write(tmp_path / "images" / name, encoded(levels(place)))
    table = write(tmp_path / "t.csv", "filename,sex,patient_id\n1.png,F,a\n2.png,M,b\n3.png,M,c\n")
    collection = open_collection(tmp_path / "images", table=table)
    found = {one.key: one for one in read_all(collection)[0]}
    assert {key for key, one in found.items() if one.report is not None} == {"1.png", "test/3.png"}
    assert [found[key].patient for key in ("1.png", "train/1.png", "test/2.png")] == ["a", "", ""]
    assert collection.matches is not None
    assert not collection.matches.is_whole
    assert str(collection.matches) == (
        "2 of 5 images have a row; 1 of 3 rows match no image; 3 images are left without, for names that fit several:"
        " give paths"
    )


def test_two_rows_with_one_stem_match_nothing(tmp_path: Path) -> None:
    radiographs = folder(tmp_path)
    table = write(tmp_path / "t.csv", "path,sex\nz.png,F\nz.jpg,M\nb/x.png,F\n")
    found, _ = read_all(open_collection(radiographs, table=table))
    assert [radiograph.report.sex if radiograph.report else None for radiograph in found] == [None, "F", None, None]


def test_unreadable_lines_are_reported_once_with_the_first_unit(tmp_path: Path) -> None:
    for index in range(257):
        write(tmp_path / "images" / f"{index:04d}.png", encoded(levels(0, side=2)))
    table = write(tmp_path / "t.jsonl", '{"path": "0000.png", "sex": "F"}\nbroken\n')
    collection = open_collection(tmp_path / "images", table=table)
    first, second = (list(collection.read(unit)) for unit in collection.units)
    assert first[0] == Damaged("t.jsonl", "line 2", "broken JSON")
    assert (len(first), len(second)) == (257, 1)


def test_a_changed_table_changes_the_digest(tmp_path: Path) -> None:
    radiographs = folder(tmp_path)
    digests = []
    for sex in ("F", "M", "FF"):
        collection = open_collection(radiographs, table=write(tmp_path / "t.csv", f"path,sex\nz.webp,{sex}\n"))
        os.utime(tmp_path / "t.csv", ns=(len(sex), len(sex)))
        digests.append(collection.digest_of(collection.units[0]))
    bare = open_collection(radiographs)
    assert len({*digests, bare.digest_of(bare.units[0])}) >= 3


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ("sex,view\nF,PA\n", "no column of image file names"),
        ("path,sex\nz.webp,F\nz.webp,M\n", "lines 2 and 3 describe the same image"),
        ("path,sex\nother.png,F\n", "no row matches an image"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path: Path, table: str, reason: str) -> None:
    path = write(tmp_path / "t.csv", table)
    with pytest.raises(ReportsError, match=reason):
        open_collection(folder(tmp_path), table=path)


def test_unreadable_files_are_reported(tmp_path: Path) -> None:
    radiographs = folder(tmp_path)
    (radiographs / "gone.png").symlink_to(tmp_path / "nowhere")
    os.mkfifo(radiographs / "pipe.png")
    write(radiographs / "half.png", encoded(levels(0))[:60])
    (radiographs / "folder.png").mkdir()
    with (radiographs / "huge.png").open("wb") as file:
        file.truncate(200 << 20)
    found, damaged = read_all(open_collection(radiographs))
    assert len(found) == 4
    reasons = {damage.member: damage.reason for damage in damaged}
    assert reasons.keys() == {"gone.png", "pipe.png", "half.png", "huge.png"}
    assert "No such file" in reasons["gone.png"]
    assert "pipe" in reasons["pipe.png"]
    assert "more than" in reasons["huge.png"]


def test_a_missing_permission_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    radiographs = folder(tmp_path)
    real = Path.open

    def refusing(self: Path, *arguments: object, **options: object) -> object:
        if self.name == "z.webp":
            raise PermissionError(13, "Permission denied")
        return real(self, *arguments, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", refusing)  # root can read everything, so file modes would not do
    found, damaged = read_all(open_collection(radiographs))
    assert len(found) == 3
    assert damaged == [Damaged("files-000000", "z.webp", "cannot be read: Permission denied")]


@pytest.mark.skipif(os.geteuid() == 0, reason="root lists every folder")
def test_a_folder_that_cannot_be_listed_is_reported(tmp_path: Path) -> None:
    radiographs = folder(tmp_path)
    (radiographs / "b").chmod(0)
    found, damaged = read_all(open_collection(radiographs))
    (radiographs / "b").chmod(0o755)
    assert len(found) == 2
    assert [damage.member for damage in damaged] == ["b/"]


def test_nothing_to_read(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write(tmp_path / "words" / "a.txt", "words")
    for name, reason in (
        ("nowhere", "no such file"),
        ("empty", "an empty folder"),
        ("words", "no image among 1 file\n"),
    ):
        with pytest.raises(ShardError, match=reason):
            open_collection(tmp_path / name)
    with pytest.raises(ShardError, match="no image among 1 file\n"):
        open_collection(tmp_path / "words" / "a.txt")


def test_one_image(tmp_path: Path) -> None:
    radiographs, _ = read_all(open_collection(folder(tmp_path) / "z.webp"))
    assert [radiograph.key for radiograph in radiographs] == ["z.webp"]
