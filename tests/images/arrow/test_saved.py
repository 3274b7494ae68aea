"""Folders that Hugging Face `datasets` saved."""

import json
from pathlib import Path

import datasets
import numpy as np
import pytest

from cxrsynth.errors import ShardError
from cxrsynth.images.collection import open_collection
from tests.images.arrow.test_parquet import ROWS, dataset, labels, opened
from tests.images.making import as_image, levels, read_all


def saved(root: Path) -> Path:
    made = dataset()
    parts = datasets.DatasetDict(train=made.select(range(3)), test=made.select(range(3, 5)))
    parts.save_to_disk(root)
    return root


def test_a_set_with_splits(tmp_path: Path) -> None:
    collection, found = opened(saved(tmp_path / "set"))
    assert collection.kind == "arrow"
    assert [one.key for one in found] == [
        *(f"test/data-00000-of-00001/{row:06d}" for row in range(2)),
        *(f"train/data-00000-of-00001/{row:06d}" for row in range(3)),
    ]
    for place, one in zip([3, 4, 0, 1, 2], found, strict=True):
        np.testing.assert_array_equal(one.pixels, as_image(levels(place)))
        assert one.report is not None
        assert one.patient == ROWS["subject_id"][place]
        assert (one.report.sex, one.report.age_years) == (ROWS["sex"][place], ROWS["age"][place])
        assert (one.report.view, one.report.full_text) == (ROWS["view"][place], ROWS["findings"][place])
    assert [labels(one) for one in found[2:]] == [{"No Finding": "present"}, {"Pneumonia": "present"}, {}]
    layout = collection.layout
    assert layout is not None
    assert (layout.name, layout.splits) == ("Hugging Face saved folder", {"test": 2, "train": 3})
    assert (layout.without, layout.unknown_kinds, layout.unknown_images) == ({"Emphysema": 1}, 1, 1)
    assert [one.patient for one in opened(tmp_path / "set", split="test")[1]] == ["c", "d"]
    # One of its folders by itself.
    assert len(opened(tmp_path / "set" / "train")[1]) == 3


def test_units_are_batches_and_small_ones_go_together(tmp_path: Path) -> None:
    made = datasets.concatenate_datasets([dataset()] * 120)
    made.save_to_disk(tmp_path / "set", num_shards=2)
    collection, found = opened(tmp_path / "set")
    assert len({one.key for one in found}) == 600
    sizes = [len(list(collection.read(unit))) for unit in collection.units]
    assert sum(sizes) == 600
    assert len(sizes) > 2
    assert all(size <= 256 for size in sizes)
    np.testing.assert_array_equal(found[-1].pixels, as_image(levels(4)))


def test_a_truncated_file_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    datasets.concatenate_datasets([dataset()] * 100).save_to_disk(tmp_path / "set")
    file = tmp_path / "set" / "data-00000-of-00001.arrow"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    found, damaged = read_all(open_collection(tmp_path / "set"))
    assert 0 < len(found) < 500
    assert [(one.source, one.reason) for one in damaged] == [
        ("data-00000-of-00001.arrow", "broken, or truncated; the rest is not read")
    ]


def test_offsets_that_lead_out_of_the_file_are_not_followed(tmp_path: Path) -> None:
    """Arrow takes the offsets of a stream as they are: reading with these would leave the file, or crash."""
    root = tmp_path / "set"
    dataset().save_to_disk(root)
    file = root / "data-00000-of-00001.arrow"
    sizes = np.array([len(one["bytes"]) for one in dataset().with_format("arrow")[:]["image"].to_pylist()])
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
    content = file.read_bytes()
    assert content.count(offsets.tobytes()) == 1
    offsets[2:] = 2**31 - 1
    place = content.index(np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32).tobytes())
    file.write_bytes(content[:place] + offsets.tobytes() + content[place + offsets.nbytes :])
    found, damaged = read_all(open_collection(root))
    assert found == []
    assert [one.reason.partition(",")[0] for one in damaged] == ["broken"]


def test_a_list_that_leads_out_of_its_folder_is_refused(tmp_path: Path) -> None:
    dataset().save_to_disk(tmp_path / "set")
    state = json.loads((tmp_path / "set" / "state.json").read_text())
    state["_data_files"] = [{"filename": "../other.arrow"}]
    (tmp_path / "set" / "state.json").write_text(json.dumps(state))
    with pytest.raises(ShardError, match="lists files outside of its folder"):
        open_collection(tmp_path / "set")


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    dataset().remove_columns("image").save_to_disk(tmp_path / "set")
    with pytest.raises(ShardError, match="no column of images"):
        open_collection(tmp_path / "set")
    (tmp_path / "set" / "data-00000-of-00001.arrow").unlink()
    with pytest.raises(ShardError, match="no such file"):
        open_collection(tmp_path / "set")
