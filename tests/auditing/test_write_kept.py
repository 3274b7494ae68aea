"""Kept images written again: bytes as they were, twice the same, from shards and from plain pictures."""

import csv
import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import webdataset as wds
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cxrsynth.auditing import write_kept as reshard
from cxrsynth.auditing.write_kept import Origin, refuse_target, write_kept
from cxrsynth.errors import ShardError
from cxrsynth.images.collection import Collection, Unit, open_collection
from cxrsynth.images.image import Damaged, Radiograph
from cxrsynth.runtime.files import stable_json
from cxrsynth.settings import ImageFormat
from cxrsynth.shards.folder import OutputFolder
from cxrsynth.shards.sample import fit_keys
from cxrsynth.shards.tar import ShardWriter, encode_image
from tests.generation.making import hashes, manifest, members

NOTE = "Synthetic images made by a generative model, of no patient. Not for diagnosis."
PLAN = {"seed": 7, "model": {"name": "tiny", "digest": "ab" * 32}}
PER_SHARD = (3, 4, 3)


def picture(seed: int) -> bytes:
    """A picture of noise; that of seed 0 is larger than a preview."""
    image = np.random.default_rng(seed).random((24, 20) if seed else (384, 384), dtype=np.float32)
    return encode_image(image, ImageFormat.PNG)[1]


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    """A data set laid out as `generate` leaves it: ten images in three shards."""
    folder = tmp_path / "made"
    folder.mkdir()
    shards, number = [], 0
    for index, count in enumerate(PER_SHARD):
        with ShardWriter(folder / f"cxr-{index:06d}.tar") as writer:
            for _ in range(count):
                content = stable_json({"synthetic": True, "labels": {"Edema": "present"}})
                writer.write(f"{number:020x}-00", {"png": picture(number), "json": content, "cls": b"3"})
                number += 1
            sha256, size = writer.close()
        shards.append({"name": writer.path.name, "sha256": sha256, "bytes": size, "samples": count})
    content = {"synthetic": True, "note": NOTE, "plan": PLAN, "shards": shards, "files": {}}
    (folder / "manifest.json").write_bytes(stable_json(content))
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of pictures, some of whose names a shard cannot hold."""
    folder = tmp_path / "pictures"
    for number, name in enumerate(("a.png", "b.c.png", "sub/a.png", "sub_a.png", "ä ö.png", f"{'long' * 30}.png")):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number))
    return folder


def images_of(collection: Collection) -> list[Radiograph]:
    found = [radiograph for unit in collection.units for radiograph in collection.read(unit)]
    assert all(isinstance(radiograph, Radiograph) for radiograph in found)
    return [radiograph for radiograph in found if isinstance(radiograph, Radiograph)]


def decide_on(collection: Collection, kept: str, *, hashed: bool = True) -> Any:
    """A decided table: one letter an image, k kept, r rejected."""
    radiographs = images_of(collection)
    assert len(radiographs) == len(kept)
    columns = {
        "key": [radiograph.key for radiograph in radiographs],
        "source": [radiograph.source for radiograph in radiographs],
        "kept": [letter == "k" for letter in kept],
        "reasons": pa.array(
            [[] if letter == "k" else ["memorized", "posture<-2.0"] for letter in kept], pa.list_(pa.string())
        ),
    }
    return pa.table(columns | ({"sha256": [radiograph.sha256 for radiograph in radiographs]} if hashed else {}))


def origin_of(collection: Collection, **changes: Any) -> Origin:
    identity = {
        "rules": {"at_least": {"posture": -2.0}},
        "audit": {"kept": 6, "reward_models": {"posture": "nano-judge"}},
    }
    return Origin(collection.path, {"kind": collection.kind}, manifest=collection.manifest, **(identity | changes))


def write(path: Path, kept: str, out: Path, *, size: int = 2, **changes: Any) -> reshard.Kept:
    collection = open_collection(path)
    return write_kept(collection, decide_on(collection, kept), out, origin=origin_of(collection, **changes), size=size)


KEPT = "krkkrkkrrk"


def test_kept_images_are_byte_for_byte_what_they_were(ours: Path, tmp_path: Path) -> None:
    before = hashes(ours)
    done = write(ours, KEPT, tmp_path / "kept")
    assert (done.samples, done.rejected, done.shards, done.renamed, done.already_complete) == (6, 4, 3, 0, False)
    there, here = members(ours), members(tmp_path / "kept")
    wanted = {f"{place:020x}-00" for place, letter in enumerate(KEPT) if letter == "k"}
    assert here == {name: content for name, content in there.items() if name.split(".")[0] in wanted}
    assert [shard["samples"] for shard in manifest(tmp_path / "kept")["shards"]] == [2, 2, 2]
    assert hashes(ours) == before
    assert sorted(hashes(tmp_path / "kept")) == [
        *("README.md", "cxr-000000.tar", "cxr-000001.tar", "cxr-000002.tar", "manifest.json", "preview.png"),
        "rejected.csv",
    ]
    assert not (tmp_path / "kept" / ".cxrsynth").exists()


def test_the_manifest_records_input_rules_and_audit(ours: Path, tmp_path: Path) -> None:
    out = tmp_path / "kept"
    write(ours, KEPT, out)
    listed, files = manifest(out), hashes(out)
    assert (listed["synthetic"], listed["note"]) == (True, NOTE)
    assert listed["source"] == {"kind": "cxrsynth", "plan": PLAN}
    assert listed["plan"]["rules"] == {"at_least": {"posture": -2.0}}
    assert listed["audit"] == {"kept": 6, "reward_models": {"posture": "nano-judge"}}
    assert listed["counts"] == {"samples": 6, "rejected": 4, "renamed": 0}
    assert {shard["name"]: shard["sha256"] for shard in listed["shards"]} == {
        name: sha256 for name, sha256 in files.items() if name.endswith(".tar")
    }
    assert all(shard["bytes"] == (out / shard["name"]).stat().st_size for shard in listed["shards"])
    assert listed["files"] == {"rejected.csv": files["rejected.csv"]}
    assert str(tmp_path) not in (out / "manifest.json").read_text(encoding="utf-8")
    with (out / "rejected.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows[:2] == [["key", "source", "reasons"], [f"{1:020x}-00", "cxr-000000.tar", "memorized; posture<-2.0"]]
    assert len(rows) == 5
    card = (out / "README.md").read_text(encoding="utf-8")
    assert f"**{NOTE}**" in card
    assert "6 images in 3 shards, of 10 audited" in card
    assert "wds.WebDataset(['cxr-000000.tar', 'cxr-000001.tar', 'cxr-000002.tar'], shardshuffle=False)" in card
    assert "a new key" not in card
    assert "tiny" in card
    with Image.open(out / "preview.png") as preview:
        assert preview.size == (6 * 192, 192)
        first = np.asarray(Image.open(io.BytesIO(picture(0))).resize((192, 192), Image.Resampling.BOX))
        assert np.abs(np.asarray(preview)[:, :192].astype(int) - first).max() <= 1


def test_a_kept_set_can_be_audited_and_kept_from_again(ours: Path, tmp_path: Path) -> None:
    write(ours, KEPT, tmp_path / "kept")
    again = open_collection(tmp_path / "kept")
    assert again.kind == "cxrsynth"
    assert [radiograph.key for radiograph in images_of(again)] == [
        f"{p:020x}-00" for p, letter in enumerate(KEPT) if letter == "k"
    ]
    write(tmp_path / "kept", "rkkkkk", tmp_path / "kept2")
    source = manifest(tmp_path / "kept2")["source"]
    assert source["source"]["plan"] == PLAN
    assert source["audit"] == {"kept": 6, "reward_models": {"posture": "nano-judge"}}


def test_a_selection_before_the_audit_is_not_forgotten(ours: Path, tmp_path: Path) -> None:
    rates = {"total": {"images": 14, "accepted_at_first": 5, "accepted": 9}, "by_finding": {}}
    path = ours / "manifest.json"
    path.write_bytes(stable_json(json.loads(path.read_text()) | {"acceptance": rates}))
    write(ours, KEPT, tmp_path / "kept")
    assert manifest(tmp_path / "kept")["source"]["acceptance"] == rates
    write(tmp_path / "kept", "rkkkkk", tmp_path / "kept2")
    assert manifest(tmp_path / "kept2")["source"]["source"]["acceptance"] == rates
    for kept in ("kept", "kept2"):
        card = (tmp_path / kept / "README.md").read_text(encoding="utf-8")
        assert "no unfiltered sample of the model" in card
        assert "of 14 images, 5 passed at once, 9 in the end" in card


def test_the_same_audit_gives_the_same_bytes_on_any_number_of_workers(ours: Path, tmp_path: Path) -> None:
    write(ours, KEPT, tmp_path / "one")
    collection = open_collection(ours)
    write_kept(
        collection, decide_on(collection, KEPT), tmp_path / "two", origin=origin_of(collection), size=2, workers=3
    )
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two")


def test_pictures_become_samples_with_keys_a_shard_can_hold(pictures: Path, tmp_path: Path) -> None:
    done = write(pictures, "kkkkkk", tmp_path / "kept", size=4)
    assert done.renamed == 6  # the key of a picture is its path, with a dot in it
    with (tmp_path / "kept" / "keys.csv").open(newline="", encoding="utf-8") as file:
        back = {row["key"]: row["input_key"] for row in csv.DictReader(file)}
    assert manifest(tmp_path / "kept")["files"]["keys.csv"] == hashes(tmp_path / "kept")["keys.csv"]
    assert "note" not in manifest(tmp_path / "kept")
    assert manifest(tmp_path / "kept")["counts"]["renamed"] == 6
    card = (tmp_path / "kept" / "README.md").read_text(encoding="utf-8")
    assert "does not say whether they are synthetic" in card
    assert "6 images with a new key, see keys.csv" in card
    shards = sorted(str(path) for path in (tmp_path / "kept").glob("*.tar"))
    samples = list(wds.WebDataset(shards, shardshuffle=False, empty_check=False))
    assert len(samples) == 6
    for sample in samples:
        assert sample["png"] == (pictures / back[sample["__key__"]]).read_bytes()
    assert len({sample["png"] for sample in samples}) == 6


def test_images_of_other_shards_keep_all_their_members(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    for name in ("x", "y"):
        with ShardWriter(folder / f"{name}.tar") as writer:
            writer.write(
                "0001", {"png": picture(ord(name)), "seg.npy": b"\0\1", "json": b'{"caption": "q"}', "cls": b"3"}
            )
            writer.close()
    write(folder, "kk", tmp_path / "kept")
    found = members(tmp_path / "kept")
    assert sorted(name.partition(".")[2] for name in found) == [
        "cls",
        "cls",
        "json",
        "json",
        "png",
        "png",
        "seg.npy",
        "seg.npy",
    ]
    assert {content for name, content in found.items() if name.endswith(".png")} == {
        picture(ord("x")),
        picture(ord("y")),
    }
    assert {content for name, content in found.items() if name.endswith(".seg.npy")} == {b"\0\1"}


class Stopping:
    """A collection that is stopped after so many images, and remembers the units that were read."""

    def __init__(self, inner: Collection, *, after: int, error: type[BaseException] = KeyboardInterrupt) -> None:
        self.inner, self.left, self.error = inner, after, error
        self.units = inner.units
        self.units_read: list[str] = []

    def read(self, unit: Unit, *, workers: int) -> Iterator[Radiograph | Damaged]:
        self.units_read.append(unit.name)
        for radiograph in self.inner.read(unit, workers=workers):
            if self.left == 0:
                raise self.error
            self.left -= 1
            yield radiograph


@pytest.mark.parametrize("after", [0, 2, 3, 5, 6, 9, 10])
def test_a_stopped_run_goes_on_to_the_same_bytes(ours: Path, tmp_path: Path, after: int) -> None:
    write(ours, KEPT, tmp_path / "whole")
    collection, out = open_collection(ours), tmp_path / "kept"
    decided, origin = decide_on(collection, KEPT), origin_of(collection)
    if after < len(KEPT):
        with pytest.raises(KeyboardInterrupt):
            write_kept(Stopping(collection, after=after), decided, out, origin=origin, size=2)
        assert not (out / "manifest.json").exists()
        assert not list(out.rglob(".*.partial"))
        finished = {name: sha256 for name, sha256 in hashes(out).items() if name.endswith(".tar")}
        assert finished.items() <= hashes(tmp_path / "whole").items()
        # Kept are the images at 0, 2, 3, 5, 6, 9: a shard is there as soon as its second image was read.
        assert len(finished) == sum(after > last for last in (2, 5, 9))
    write_kept(collection, decided, out, origin=origin, size=2)
    assert hashes(out) == hashes(tmp_path / "whole")


def test_ctrl_c_as_a_shard_is_opened_leaves_nothing(
    ours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = OutputFolder.writer

    def interrupted(self: OutputFolder, index: int) -> ShardWriter:
        writer = opened(self, index)
        assert list(self.path.glob(".*.partial"))
        if index == 1:
            raise KeyboardInterrupt
        return writer

    monkeypatch.setattr(OutputFolder, "writer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(ours, KEPT, tmp_path / "kept")
    assert not list((tmp_path / "kept").rglob(".*.partial"))


def test_going_on_reads_only_what_is_missing(ours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reshard, "_PREVIEW_IMAGES", 1)
    collection, out = open_collection(ours), tmp_path / "kept"
    decided, origin = decide_on(collection, "kkkrrrrkkk"), origin_of(collection)
    write_kept(collection, decided, tmp_path / "whole", origin=origin, size=3)
    first = Stopping(collection, after=5)
    with pytest.raises(KeyboardInterrupt):
        write_kept(first, decided, out, origin=origin, size=3)
    assert first.units_read == ["cxr-000000.tar", "cxr-000002.tar"]  # nothing of the second is kept
    (out / "cxr-000000.tar").touch()
    advanced: list[int] = []
    second = Stopping(collection, after=99)
    write_kept(second, decided, out, origin=origin, size=3, advance=advanced.append)
    assert second.units_read == first.units_read  # the first for its preview
    assert advanced == [3, 1, 1, 1]
    assert hashes(out) == hashes(tmp_path / "whole")


def test_units_of_finished_shards_are_not_read_again(
    ours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reshard, "_PREVIEW_IMAGES", 1)
    collection, out = open_collection(ours), tmp_path / "kept"
    decided, origin = decide_on(collection, "kkkkkkrkkk"), origin_of(collection)  # a shard of each unit
    with pytest.raises(KeyboardInterrupt):
        write_kept(Stopping(collection, after=8), decided, out, origin=origin, size=3)
    again = Stopping(collection, after=99)
    write_kept(again, decided, out, origin=origin, size=3)
    assert again.units_read == ["cxr-000000.tar", "cxr-000002.tar"]  # the first for its preview


def test_a_damaged_shard_of_a_stopped_run_is_written_anew(ours: Path, tmp_path: Path) -> None:
    write(ours, KEPT, tmp_path / "whole")
    collection, out = open_collection(ours), tmp_path / "kept"
    decided, origin = decide_on(collection, KEPT), origin_of(collection)
    with pytest.raises(KeyboardInterrupt):
        write_kept(Stopping(collection, after=9), decided, out, origin=origin, size=2)
    (out / "cxr-000000.tar").write_bytes(b"damaged")
    write_kept(collection, decided, out, origin=origin, size=2)
    assert hashes(out) == hashes(tmp_path / "whole")


def test_a_complete_folder_is_hashed_again(ours: Path, tmp_path: Path) -> None:
    write(ours, KEPT, tmp_path / "kept")
    before = hashes(tmp_path / "kept")
    # As left by a run that was killed right after it wrote the manifest.
    (tmp_path / "kept" / ".cxrsynth").mkdir()
    (tmp_path / "kept" / ".cxrsynth" / "lock").touch()
    assert write(ours, KEPT, tmp_path / "kept").already_complete
    assert hashes(tmp_path / "kept") == before
    (tmp_path / "kept" / "rejected.csv").unlink()
    with pytest.raises(ShardError, match=r"^--write-kept .* 1 of 4 files are missing .* rejected.csv"):
        write(ours, KEPT, tmp_path / "kept")


@pytest.mark.parametrize(
    "other",
    [
        {"kept": "k" * 10},
        {"size": 3},
        {"rules": {"at_least": {"posture": -1.0}}},
        {"audit": {"kept": 6, "reward_models": {"posture": "xrv"}}},
    ],
)
def test_another_audit_is_refused_in_the_same_folder(ours: Path, tmp_path: Path, other: dict[str, Any]) -> None:
    write(ours, KEPT, tmp_path / "kept")
    before = hashes(tmp_path / "kept")
    with pytest.raises(ShardError, match=r"^--write-kept .*: holds a data set of another plan"):
        write(ours, **({"kept": KEPT} | other), out=tmp_path / "kept")
    assert hashes(tmp_path / "kept") == before


def test_other_images_of_the_same_names_are_another_plan(pictures: Path, tmp_path: Path) -> None:
    write(pictures, "kkkkkk", tmp_path / "kept")
    (pictures / "a.png").write_bytes(picture(77))
    with pytest.raises(ShardError, match="another plan"):
        write(pictures, "kkkkkk", tmp_path / "kept")


def test_the_input_is_never_written_into(ours: Path, tmp_path: Path) -> None:
    before = hashes(ours)
    (tmp_path / "link").symlink_to(ours)
    for out in (ours, ours / "kept", tmp_path / "link" / "kept", tmp_path / "made" / ".." / "made" / "kept"):
        with pytest.raises(ShardError, match=r"--write-kept .*lies inside .*never written to"):
            write(ours, KEPT, out)
    with pytest.raises(ShardError, match="lies inside"):
        write(ours / "manifest.json", KEPT, ours / "kept")
    assert hashes(ours) == before
    refuse_target(tmp_path / "made-kept", ours)


def test_a_folder_with_anything_else_is_refused(ours: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("x", encoding="utf-8")
    (tmp_path / "empty").mkdir()
    for name, message in (("file", "is a file"), ("full", "not empty"), (".", "not empty")):
        with pytest.raises(ShardError, match=f"--write-kept .*{message}"):
            write(ours, KEPT, tmp_path / name)
    refuse_target(tmp_path / "empty", ours)
    write(ours, KEPT, tmp_path / "empty")


def test_two_runs_at_once_are_refused(ours: Path, tmp_path: Path) -> None:
    (tmp_path / "kept" / ".cxrsynth").mkdir(parents=True)
    lock = FileLock(tmp_path / "kept" / ".cxrsynth" / "lock")
    with lock, pytest.raises(ShardError, match="another run is writing"):
        write(ours, KEPT, tmp_path / "kept")
    write(ours, KEPT, tmp_path / "kept")


def test_a_full_disk_is_reported_and_the_run_goes_on_later(
    ours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(ShardWriter):
        def write(self, key: str, members: dict[str, bytes]) -> None:
            if self.path.name == ".cxr-000001.tar.partial":
                raise OSError(28, "No space left on device")
            super().write(key, members)

    with monkeypatch.context() as patch:
        patch.setattr(OutputFolder, "writer", lambda self, index: Full(self.path / f".cxr-{index:06d}.tar.partial"))
        with pytest.raises(
            ShardError, match=r"kept: cannot write \(No space left on device\)\n.*same command"
        ) as caught:
            write(ours, KEPT, tmp_path / "kept")
    assert not list((tmp_path / "kept").rglob(".*.partial"))
    write(ours, KEPT, tmp_path / "kept")
    write(ours, KEPT, tmp_path / "whole")
    assert hashes(tmp_path / "kept") == hashes(tmp_path / "whole")
    assert caught.tb is not None  # the failed run is still at hand: it gave up its lock by itself


def test_an_input_that_cannot_be_read_is_unscored_as_a_full_disk(ours: Path, tmp_path: Path) -> None:
    class Gone(OSError):
        def __init__(self) -> None:
            super().__init__(5, "Input/output error")

    collection = open_collection(ours)
    broken = Stopping(collection, after=4, error=Gone)
    with pytest.raises(ShardError, match=r"made: cxr-000001.tar: cannot be read \(Input/output error\)"):
        write_kept(broken, decide_on(collection, KEPT), tmp_path / "kept", origin=origin_of(collection), size=2)


@pytest.mark.parametrize("hashed", [True, False])
def test_an_input_that_changed_since_its_audit_is_refused(pictures: Path, tmp_path: Path, hashed: bool) -> None:
    collection = open_collection(pictures)
    decided = decide_on(collection, "kkkkkk", hashed=hashed)
    (pictures / "b.c.png").write_bytes(picture(77) if hashed else b"no picture")
    with pytest.raises(ShardError, match=r"b.c.png: changed since it was audited\n  audit the input again"):
        write_kept(collection, decided, tmp_path / "kept", origin=origin_of(collection), size=2)
    assert not list((tmp_path / "kept").glob("*.tar"))


def test_an_image_without_bytes_is_refused(pictures: Path, tmp_path: Path) -> None:
    class Bare(Stopping):
        def read(self, unit: Unit, *, workers: int) -> Iterator[Radiograph | Damaged]:
            for radiograph in super().read(unit, workers=workers):
                yield replace(radiograph, members={}) if isinstance(radiograph, Radiograph) else radiograph

    collection = open_collection(pictures)
    with pytest.raises(ShardError, match="changed since it was audited"):
        write_kept(
            Bare(collection, after=9), decide_on(collection, "kkkkkk"), tmp_path / "kept", origin=origin_of(collection)
        )


def test_an_image_that_comes_twice_is_refused(pictures: Path, tmp_path: Path) -> None:
    class Twice(Stopping):
        def read(self, unit: Unit, *, workers: int) -> Iterator[Radiograph | Damaged]:
            for radiograph in super().read(unit, workers=workers):
                yield from (radiograph, radiograph)

    collection = open_collection(pictures)
    decided, origin = decide_on(collection, "rrrrrk"), origin_of(collection)
    with pytest.raises(ShardError, match="more images than were audited"):
        write_kept(Twice(collection, after=9), decided, tmp_path / "kept", origin=origin)


def test_a_last_image_that_is_gone_and_rows_in_another_order_are_refused(pictures: Path, tmp_path: Path) -> None:
    collection = open_collection(pictures)
    decided = decide_on(collection, "kkkkkk")
    with pytest.raises(ShardError, match="changed since it was audited"):
        write_kept(
            collection, decided.take([1, 0, 2, 3, 4, 5]), tmp_path / "other", origin=origin_of(collection), size=2
        )
    last = decided["key"].to_pylist()[-1]
    (pictures / last).unlink()
    with pytest.raises(ShardError, match=f"{last}: changed since it was audited"):
        write_kept(collection, decided, tmp_path / "kept", origin=origin_of(collection), size=2)
    assert not (tmp_path / "kept" / "manifest.json").exists()


def test_where_nothing_is_kept_the_manifest_says_so(ours: Path, tmp_path: Path) -> None:
    done = write(ours, "r" * 10, tmp_path / "kept")
    assert (done.samples, done.shards) == (0, 0)
    assert sorted(hashes(tmp_path / "kept")) == ["README.md", "manifest.json", "rejected.csv"]
    assert manifest(tmp_path / "kept")["counts"] == {"samples": 0, "rejected": 10, "renamed": 0}


def test_a_member_no_header_can_name_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    with ShardWriter(folder / "x.tar") as writer:
        writer.write("k", {"png": picture(0), "e" * 90: b"1"})
        writer.close()
    with pytest.raises(ShardError, match=r"x.tar: image x/k: member 'eee.*' cannot be named in a shard"):
        write(folder, "k", tmp_path / "kept")


_KEYS = st.sets(st.one_of(st.text(max_size=60), st.text("ab./_-", max_size=6), st.text("a", min_size=78, max_size=90)))


@settings(max_examples=40)
@given(_KEYS)
def test_keys_are_made_fit_without_collision_whatever_their_order(keys: set[str]) -> None:
    names = fit_keys(keys)
    assert set(names) == keys
    assert len(set(names.values())) == len(keys)
    for key, name in names.items():
        assert name.isascii()
        assert len(name) <= 80
        assert name.replace("-", "").replace("_", "").isalnum() or set(name) <= set("-_")
        if len(key) <= 80 and key and key.isascii() and key.replace("-", "a").replace("_", "a").isalnum():
            assert name == key
    assert fit_keys(reversed(sorted(keys))) == names


def test_a_name_that_is_taken_is_not_given_again() -> None:
    digest = hashlib.sha256(b"a/b").hexdigest()
    taken = f"a_b-{digest[:12]}"
    assert fit_keys(["a/b"]) == {"a/b": taken}
    assert fit_keys(["a" * 48 + "b" * 48])["a" * 48 + "b" * 48].startswith("b" * 48 + "-")
    assert [name.split("-")[0] for name in fit_keys(["/a/", "..."]).values()] == ["image", "a"]
    assert fit_keys(["a/b", taken]) == {"a/b": f"a_b-{digest[:13]}", taken: taken}
