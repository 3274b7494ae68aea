"""Parquet files of images: written by Hugging Face `datasets`, and by others."""

import os
import tracemalloc
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cxrsynth.errors import ShardError
from cxrsynth.images.collection import Collection, open_collection
from cxrsynth.images.image import Radiograph
from tests.images.making import as_image, encoded, levels, read_all, write

CLASSES = ["NORMAL", "PNEUMONIA", "Emphysema", "Zebra"]
ROWS: dict[str, list[Any]] = {
    "label": [0, 1, 2, 3, -1],
    "sex": ["F", "M", "F", "M", "F"],
    "age": [40, 50, 60, 7, 80],
    "view": ["PA", "AP", "LATERAL", "PA", "PA"],
    "subject_id": ["a", "a", "b", "c", "d"],
    "findings": ["", "", "", "", "Large left pleural effusion."],
}


def dataset() -> datasets.Dataset:
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=CLASSES),
            **{name: datasets.Value("string") for name in ("sex", "view", "subject_id", "findings")},
            "age": datasets.Value("int64"),
            "embedding": datasets.Sequence(datasets.Value("float32")),
        }
    )
    pictures = [Image.fromarray(levels(place)) for place in range(5)]
    made: datasets.Dataset = datasets.Dataset.from_dict(
        {"image": pictures, "embedding": [[0.5, 0.25]] * 5, **ROWS}, features=features
    )
    return made


def repository(root: Path) -> Path:
    """As `push_to_hub` lays it out."""
    (root / "data").mkdir(parents=True)
    made = dataset()
    made.select(range(3)).to_parquet(root / "data" / "train-00000-of-00001.parquet")
    made.select(range(3, 5)).to_parquet(root / "data" / "validation-00000-of-00001.parquet")
    write(root / "README.md", "# a card")
    write(root / "preview.png", encoded(levels(9)))
    return root


def opened(root: Path, **options: Any) -> tuple[Collection, list[Radiograph]]:
    collection = open_collection(root, **options)
    found, damaged = read_all(collection)
    assert damaged == []
    return collection, found


def labels(one: Radiograph) -> dict[str, str]:
    return {} if one.report is None else {name: str(label.status) for name, label in one.report.labels.items()}


def test_what_datasets_wrote(tmp_path: Path) -> None:
    collection, found = opened(repository(tmp_path / "set"))
    assert collection.kind == "parquet"
    assert [one.key for one in found] == [
        *(f"data/train-00000-of-00001/{row:06d}" for row in range(3)),
        *(f"data/validation-00000-of-00001/{row:06d}" for row in range(2)),
    ]
    for place, one in enumerate(found):
        np.testing.assert_array_equal(one.pixels, as_image(levels(place)))
        assert one.report is not None
        assert one.patient == ROWS["subject_id"][place]
        assert (one.report.sex, one.report.age_years) == (ROWS["sex"][place], ROWS["age"][place])
        assert (one.report.view, one.report.full_text) == (ROWS["view"][place], ROWS["findings"][place])
    assert [labels(one) for one in found[:4]] == [{"No Finding": "present"}, {"Pneumonia": "present"}, {}, {}]
    assert labels(found[4])["Pleural Effusion"] == "present"
    layout = collection.layout
    assert layout is not None
    assert (layout.name, layout.splits) == ("Hugging Face Parquet", {"train": 3, "val": 2})
    assert layout.caveats == [
        "labels that are none of the 14 observations are left out: Emphysema (1)",
        "labels not understood: 1 kind in 1 image",
    ]


def test_one_split(tmp_path: Path) -> None:
    root = repository(tmp_path / "set")
    collection, found = opened(root, split="validation")
    assert [one.patient for one in found] == ["c", "d"]
    assert collection.layout is not None
    assert (collection.layout.split, collection.layout.without) == ("validation", {})
    with pytest.raises(ShardError, match="its splits: train, val"):
        open_collection(root, split="test")


def test_lists_of_classes_and_structs_of_labels(tmp_path: Path) -> None:
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "labels": datasets.Sequence(datasets.ClassLabel(names=["Edema", "Mass"])),
            "marks": {"Fracture": datasets.Value("int64"), "Cardiomegaly": datasets.Value("int64")},
        }
    )
    rows = {
        "image": [Image.fromarray(levels(0)), Image.fromarray(levels(1))],
        "labels": [[0, 1], []],
        "marks": [{"Fracture": 1, "Cardiomegaly": -1}, {"Fracture": 0, "Cardiomegaly": None}],
    }
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "x.parquet")
    _, found = opened(tmp_path)
    assert [labels(one) for one in found] == [
        {"Edema": "present", "Lung Lesion": "present", "Fracture": "present", "Cardiomegaly": "uncertain"},
        {"Fracture": "absent"},
    ]


def test_structs_of_label_words_and_columns_that_are_not_read(tmp_path: Path) -> None:
    words = [{"Effusion": 1, "Emphysema": 1, "Mass": 0}, {"Effusion": 0, "Emphysema": 0, "Mass": 0}]
    scored = [{"Edema": 1, "score": 0.5}, {"Edema": 0, "score": 0.5}]
    columns = {
        "marks": words,
        "labels": scored,
        "target": [0, 1],
        "kg": [70.5, 80.5],
        "disease": [1, 0],
        "sex": ["F", "M"],
    }
    bare(tmp_path / "x.parquet", 2, group=9, embedding=[[0.5], [0.25]], **columns)
    collection, found = opened(tmp_path)
    assert [labels(one) for one in found] == [
        {"Pleural Effusion": "present", "Edema": "present"},
        {"Pleural Effusion": "absent", "Edema": "absent"},
    ]
    layout = collection.layout
    assert layout is not None
    assert set(layout.read) == {"marks", "labels", "sex"}
    assert set(layout.left) == {"embedding", "target", "kg", "disease"}
    assert [caveat for caveat in layout.caveats if "disease" in caveat] == [
        "the column disease names no observation, and is not read: write names in it, or, where 1 and 0 mark one"
        " observation, give the column that name"
    ]
    assert layout.as_json()["columns_not_read"] == list(layout.left)


def test_rows_that_a_table_does_not_describe_keep_what_the_file_says(tmp_path: Path) -> None:
    root = repository(tmp_path / "set")
    table = write(tmp_path / "t.csv", "file,sex,subject_id\ndata/train-00000-of-00001/000001,F,z\nnone,F,y\n")
    collection, found = opened(root, table=table)
    assert [one.patient for one in found] == ["a", "z", "b", "c", "d"]
    assert [one.report.sex if one.report else None for one in found] == ["F", "F", "F", "M", "F"]
    assert [one.table_line for one in found] == [None, 2, None, None, None]
    assert labels(found[0]) == {"No Finding": "present"}
    assert collection.passed_over == {".png": 1}


def bare(path: Path, count: int, *, group: int, side: int = 4, **columns: list[Any]) -> Path:
    """A file of bytes of images, without anything of `datasets`."""
    table = pa.table({"jpg": [encoded(levels(place, side=side)) for place in range(count)], **columns})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=group)
    return path


def test_a_column_of_bytes(tmp_path: Path) -> None:
    """As img2dataset writes them: a caption, and much besides."""
    bare(tmp_path / "00000.parquet", 2, group=9, caption=["Edema.", "normal"], status=["success"] * 2)
    collection, found = opened(tmp_path)
    assert collection.layout is not None
    assert collection.layout.name == "Parquet of images"
    assert [labels(one).get("Edema") for one in found] == ["present", None]


def test_units_are_row_groups_and_small_ones_go_together(tmp_path: Path) -> None:
    bare(tmp_path / "a.parquet", 700, group=100)
    bare(tmp_path / "b.parquet", 300, group=300)
    collection = open_collection(tmp_path)
    read = {unit.name: [one.key for one in collection.read(unit)] for unit in collection.units}  # type: ignore[union-attr]
    assert {name: len(keys) for name, keys in read.items()} == {
        "a.parquet#000000": 200,
        "a.parquet#000002": 200,
        "a.parquet#000004": 200,
        "a.parquet#000006": 100,
        "b.parquet#000000": 300,
    }
    assert [key for name in sorted(read) for key in read[name]][:700] == [f"a/{row:06d}" for row in range(700)]
    before = {unit.name: collection.digest_of(unit) for unit in collection.units}
    os.utime(tmp_path / "b.parquet", ns=(1, 1))
    after = {unit.name: collection.digest_of(unit) for unit in collection.units}
    assert [name for name in before if before[name] != after[name]] == ["b.parquet#000000"]


def test_a_unit_is_not_held_in_memory(tmp_path: Path) -> None:
    """Of a row group of 80 MB a fraction is allocated at once, by Arrow and by Python."""
    noise = np.random.default_rng(0).bytes(1 << 20)
    picture = encoded(levels(0))
    table = pa.table({"image": [picture + noise for _ in range(80)]})
    pq.write_table(table, tmp_path / "x.parquet", data_page_size=1 << 16, write_batch_size=1, use_dictionary=False)
    del table
    collection = open_collection(tmp_path)
    assert len(collection.units) == 1
    tracemalloc.start()
    highest = 0
    number = 0
    for _ in collection.read(collection.units[0], workers=1):
        number += 1
        highest = max(highest, pa.total_allocated_bytes())
    python_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert number == 80
    assert highest + python_bytes < 40 << 20


def test_the_path_of_an_image_may_name_its_patient_and_class(tmp_path: Path) -> None:
    paths = ["train/PNEUMONIA/person3_virus_16.jpeg", "../../etc/passwd"]
    image = [{"bytes": encoded(levels(place)), "path": path} for place, path in enumerate(paths)]
    pq.write_table(pa.table({"image": image}), tmp_path / "x.parquet")
    _, found = opened(tmp_path)
    assert (found[0].patient, labels(found[0])) == ("person3", {"Pneumonia": "present"})
    assert (found[1].key, found[1].patient) == ("x/000001", "")


def test_a_table_of_the_users_goes_first(tmp_path: Path) -> None:
    image = [{"bytes": encoded(levels(place)), "path": f"{place}.png"} for place in range(2)]
    (tmp_path / "set").mkdir()
    pq.write_table(pa.table({"image": image, "label": ["Edema", "Edema"]}), tmp_path / "set" / "x.parquet")
    table = write(tmp_path / "t.csv", "path,label\n0.png,Fracture\n")
    _, found = opened(tmp_path / "set", table=table)
    assert [labels(one) for one in found] == [{"Fracture": "present"}, {"Edema": "present"}]


def test_rows_that_cannot_be_read_are_reported(tmp_path: Path) -> None:
    image = [
        {"bytes": None, "path": "a.png"},
        {"bytes": b"words", "path": "b.txt"},
        {"bytes": encoded(levels(0))[:50], "path": None},
        None,
        {"bytes": encoded(levels(1)), "path": None},
        {"bytes": encoded(levels(2)), "path": None},
    ]
    text = pa.array([b"a", b"b", b"c", b"d", b"\xff\xfe", b"f"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"image": image, "text": text}), tmp_path / "x.parquet")
    found, damaged = read_all(open_collection(tmp_path))
    assert [one.key for one in found] == ["x/000005"]
    reasons = [one.reason for one in damaged]
    assert reasons[0] == "no bytes of an image, only its path"
    assert reasons[1].startswith("no image of a kind that is read")
    assert "truncated" in reasons[2]
    assert reasons[3] == "no bytes of an image"
    assert "not UTF-8" in reasons[4]


def test_broken_files_are_reported(tmp_path: Path) -> None:
    whole = bare(tmp_path / "a.parquet", 3, group=9)
    write(tmp_path / "b.parquet", whole.read_bytes()[:-30])
    other = bare(tmp_path / "c.parquet", 300, group=100)
    start = pq.read_metadata(other).row_group(2).column(0).data_page_offset
    content = bytearray(other.read_bytes())
    content[start : start + 40] = bytes(40)
    write(other, bytes(content))
    found, damaged = read_all(open_collection(tmp_path))
    assert [one.key for one in found] == [f"a/{row:06d}" for row in range(3)] + [f"c/{row:06d}" for row in range(200)]
    assert [(one.source, one.reason) for one in damaged] == [
        ("b.parquet", "broken, or not a complete Parquet file"),
        ("c.parquet#000002", "broken, or truncated; the rest is not read"),
    ]


def test_a_file_that_grows_too_much_is_not_read(tmp_path: Path) -> None:
    content = [encoded(levels(0)) + bytes(32 << 20)] * 3
    pq.write_table(pa.table({"image": content}), tmp_path / "x.parquet", compression="zstd", use_dictionary=False)
    before = pa.total_allocated_bytes()
    found, damaged = read_all(open_collection(tmp_path))
    assert (found, len(damaged)) == ([], 1)
    assert "more than images do" in damaged[0].reason
    assert pa.total_allocated_bytes() - before < 1 << 20


def test_an_image_larger_than_any_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cxrsynth.images.arrow.rows.MAX_MEMBER_BYTES", 100)
    bare(tmp_path / "x.parquet", 2, group=9, side=20)
    _, damaged = read_all(open_collection(tmp_path))
    assert ["more than 100" in one.reason for one in damaged] == [True, True]


def test_which_column_holds_the_images(tmp_path: Path) -> None:
    pictures = [encoded(levels(0))]
    pq.write_table(pa.table({"image": pictures, "mask": pictures, "hash": [b"x"]}), tmp_path / "x.parquet")
    np.testing.assert_array_equal(opened(tmp_path)[1][0].pixels, as_image(levels(0)))
    pq.write_table(pa.table({"one": pictures, "two": pictures}), tmp_path / "x.parquet")
    with pytest.raises(ShardError, match=r"x\.parquet: columns one, two all hold images"):
        open_collection(tmp_path)


def test_a_table_beside_pictures_is_no_set_of_images(tmp_path: Path) -> None:
    write(tmp_path / "a.png", encoded(levels(0)))
    pq.write_table(pa.table({"path": ["a.png"], "Edema": [1]}), tmp_path / "metadata.parquet")
    assert open_collection(tmp_path).kind == "folder"
