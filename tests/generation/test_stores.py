"""Data sets in object stores: the bytes of a local folder, and messages in place of tracebacks. Here, in memory."""

import errno
import hashlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.csv
import pyarrow.parquet
import pytest
import torch
from typer.testing import CliRunner

from cxrsynth import api, open_dataset
from cxrsynth.address import Address, parse_location
from cxrsynth.auditing.score_cache import ScoreCache
from cxrsynth.cli import app
from cxrsynth.errors import ShardError
from cxrsynth.generation import finalize, generate
from cxrsynth.images.collection import open_collection
from cxrsynth.shards.folder import OutputFolder
from tests.generation.making import command, hashes, write_table

OPTIONS = ("--images-per-report", "2", "--shard-size", "3")
OUT = "memory://bucket/set"


class Store:
    """A command, with its table, model and key, that writes to a store in this process's memory."""

    def __init__(self, home: Path, model: Path) -> None:
        self.home, self.model, self.table = home, model, write_table(home / "reports.csv")
        self.key = home / "id.key"
        self.key.write_text("0123456789abcdef" * 2)
        self.key.chmod(0o600)
        self.system = fsspec.filesystem("memory")

    def run(self, out: str, *options: str, table: str | None = None) -> tuple[int, str]:
        arguments = command(self.table, Path("x"), self.model, *OPTIONS, "--id-key", str(self.key), *options)
        arguments[1], arguments[3] = table or str(self.table), out
        result = CliRunner().invoke(app, arguments)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, result.stdout + result.stderr

    def copy(self, to: Path, out: str = OUT) -> dict[str, str]:
        """Hashes of all that is below the prefix."""
        self.system.get(out, str(to), recursive=True)
        return hashes(to)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[Store, dict[str, str]]:
    """The command, and the hashes of the folder that it makes on this machine."""
    home = tmp_path_factory.mktemp("stores")
    store = Store(home, tiny_model)
    code, printed = store.run(str(home / "set"))
    assert code == 0, printed
    return store, hashes(home / "set")


@pytest.fixture
def store(local: tuple[Store, dict[str, str]]) -> Iterator[Store]:
    """An empty store."""
    system = local[0].system

    def empty() -> None:
        if system.ls("/"):
            system.rm("/", recursive=True)

    empty()  # other tests of this process may have left something in it
    yield local[0]
    empty()


@pytest.fixture
def expected(local: tuple[Store, dict[str, str]]) -> dict[str, str]:
    return local[1]


def test_a_store_holds_the_bytes_of_a_local_folder(store: Store, expected: dict[str, str], tmp_path: Path) -> None:
    code, printed = store.run(f"{OUT}/", "--id-map", str(tmp_path / "ids.csv"))
    assert code == 0, printed
    assert f"{OUT}/: 14 images in 5 shards" in printed
    assert store.copy(tmp_path / "copy") == expected
    assert (tmp_path / "ids.csv").read_text().count("\n") == 15
    code, printed = store.run(OUT)
    assert (code, "already complete" in printed) == (0, True)


def test_parts_meet_in_a_store(store: Store, expected: dict[str, str], tmp_path: Path) -> None:
    for number in (2, 3, 1):
        assert not store.system.exists(f"{OUT}/manifest.json")
        code, printed = store.run(OUT, "--part", f"{number}/3")
        assert code == 0, printed
    assert store.copy(tmp_path / "copy") == expected


def test_what_is_there_is_not_made_again_unless_it_is_damaged(
    store: Store, expected: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(generate, "finish_dataset", _stopped)
        with pytest.raises(KeyboardInterrupt):
            api.generate(**_arguments(store))
    files = store.system.store
    assert "/bucket/set/manifest.json" not in files
    before = {name: file.modified for name, file in files.items() if name.endswith(".tar")}
    assert len(before) == 5
    damaged = bytearray(files["/bucket/set/cxr-000001.tar"].getvalue())
    damaged[700] ^= 1
    store.system.pipe_file(f"{OUT}/cxr-000001.tar", bytes(damaged))
    store.system.rm_file(f"{OUT}/cxr-000003.tar")
    [record] = (name for name in files if "/.cxrsynth/cxr-000004.tar" in name)
    store.system.rm_file(f"memory:/{record}")
    assert store.run(OUT)[0] == 0
    after = {name: file.modified for name, file in store.system.store.items() if name.endswith(".tar")}
    assert [name[-10:] for name in before if after[name] == before[name]] == ["000000.tar", "000002.tar"]
    assert store.copy(tmp_path / "copy") == expected


def _stopped(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def _arguments(store: Store) -> dict[str, Any]:
    return {
        "reports": store.table,
        "out": OUT,
        "model": str(store.model),
        "keep_order": True,
        "id_key": store.key,
        "images_per_report": 2,
        "shard_size": 3,
        "batch_size": 2,
        "steps": 2,
        "device": "cpu",
        "precision": "fp32",
    }


def test_parts_that_are_both_the_last_do_not_fail(
    store: Store, expected: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One completes the set, and removes the records, as another one begins to."""
    finish = finalize.finish_dataset

    def twice(*arguments: Any, **further: Any) -> None:
        finish(*arguments, **further)
        monkeypatch.setattr(generate, "finish_dataset", finish)
        finish(*arguments, **further)

    monkeypatch.setattr(generate, "finish_dataset", twice)
    code, printed = store.run(OUT)
    assert code == 0, printed
    assert store.copy(tmp_path / "copy") == expected


def test_a_shard_of_another_plan_is_made_again(store: Store, expected: dict[str, str], tmp_path: Path) -> None:
    """Nothing keeps two runs from beginning in a store at once; what they made apart is not mixed."""
    assert store.run(OUT, "--seed", "1", "--part", "1/2")[0] == 0
    plan = json.loads((store.home / "set" / "manifest.json").read_text())["plan"]
    store.system.pipe_file(f"{OUT}/.cxrsynth/plan.json", json.dumps(plan).encode())
    assert store.run(OUT)[0] == 0
    assert store.copy(tmp_path / "copy") == expected


def _record_name(store: Store, index: int) -> str:
    [name] = (name for name in store.system.store if f"/.cxrsynth/cxr-{index:06d}.tar" in name)
    return name


def _other_run(store: Store, index: int) -> tuple[bytes, bytes, str]:
    """What a run on another machine makes of a shard: equal but for a byte; its record, and the record's name."""
    shard = bytearray(store.system.store[f"/bucket/set/cxr-{index:06d}.tar"].getvalue())
    shard[700] ^= 1
    name = _record_name(store, index)
    digest = hashlib.sha256(shard).hexdigest()
    record = json.loads(store.system.store[name].getvalue()) | {"sha256": digest, "hardware": "another"}
    named = re.sub(r"\.[0-9a-f]{16}\.json$", f".{digest[:16]}.json", name)
    assert named != name
    return bytes(shard), json.dumps(record).encode(), f"memory:/{named}"


@pytest.mark.parametrize("stays", ["the first", "the second"])
def test_of_two_runs_of_a_part_the_record_of_the_shard_that_stays_counts(
    stays: str, store: Store, expected: dict[str, str], tmp_path: Path
) -> None:
    """On other hardware the same shard may differ in its last bits, and be as long."""
    assert store.run(OUT, "--part", "1/2")[0] == 0
    shard, record, name = _other_run(store, 2)
    store.system.pipe_file(name, record)
    if stays == "the second":
        store.system.pipe_file(f"{OUT}/cxr-000002.tar", shard)
    code, printed = store.run(OUT, "--part", "2/2")
    assert code == 0, printed
    made = store.copy(tmp_path / "copy")
    listed = json.loads((tmp_path / "copy" / "manifest.json").read_text())
    assert {one["name"]: one["sha256"] for one in listed["shards"]}.items() <= made.items()
    assert (made == expected) == (stays == "the first")
    assert ("another: 1 shard" in printed) == (stays == "the second")


def test_a_shard_that_another_run_finished_first_stays(
    store: Store, expected: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish, moved = OutputFolder.publish, []

    def later(self: OutputFolder, index: int, *given: Any) -> None:
        publish(self, index, *given)
        if index == 1:
            shard, record, name = _other_run(store, 1)
            store.system.rm_file(f"memory:/{_record_name(store, 1)}")
            store.system.pipe_file(name, record)
            store.system.pipe_file(f"{OUT}/cxr-000001.tar", shard)
            # This run comes late with its own.
            with self.writer(1) as writer:
                writer.write("x", {"txt": b"late"})
                publish(self, 1, writer, {"samples": 3})
            moved.append(store.system.cat_file(f"{OUT}/cxr-000001.tar") == shard)

    monkeypatch.setattr(OutputFolder, "publish", later)
    assert store.run(OUT)[0] == 0
    assert moved == [True]


def test_a_plan_without_a_shard_binds_nobody(store: Store, expected: dict[str, str], tmp_path: Path) -> None:
    """A run that failed before its first shard has left it."""
    plan = json.loads((store.home / "set" / "manifest.json").read_text())["plan"]
    store.system.pipe_file(f"{OUT}/.cxrsynth/plan.json", json.dumps(plan | {"seed": 1}).encode())
    code, printed = store.run(OUT)
    assert code == 0, printed
    assert store.copy(tmp_path / "copy") == expected


def test_a_run_whose_plan_is_replaced_ends_before_it_writes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    write = OutputFolder.writer

    def begun(self: OutputFolder, index: int) -> Any:
        if index == 1:
            plan = json.loads(store.system.cat_file(f"{OUT}/.cxrsynth/plan.json"))
            store.system.pipe_file(f"{OUT}/.cxrsynth/plan.json", json.dumps(plan | {"seed": 1}).encode())
        return write(self, index)

    monkeypatch.setattr(OutputFolder, "writer", begun)
    code, printed = store.run(OUT)
    assert code == 2
    assert "holds a data set of another plan" in printed
    assert "seed: 1 there, 0 now" in printed
    assert [name[-14:] for name in store.system.store if name.endswith(".tar")] == ["cxr-000000.tar"]


@pytest.mark.parametrize("name", ["manifest.json", ".cxrsynth/plan.json", "cxr-000000.tar"])
def test_what_may_not_be_read_is_no_foreign_file(name: str, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rights to list, but not to read: the set is good, and nobody is told to leave it."""
    assert store.run(OUT, *(("--part", "1/2") if name.startswith(".") else ()))[0] == 0
    get = type(store.system).cat_file

    def refuse(self: Any, path: str, *given: Any, **further: Any) -> Any:
        if path.endswith(name):
            raise PermissionError(errno.EACCES, "Access Denied", path)
        return get(self, path, *given, **further)

    monkeypatch.setattr(type(store.system), "cat_file", refuse)
    monkeypatch.setattr(type(store.system), "get_file", lambda self, path, to: Path(to).write_bytes(refuse(self, path)))
    code, printed = store.run(OUT)
    assert code == 2
    assert "Access Denied" in printed
    assert "not a file cxrsynth wrote" not in printed
    assert "choose a new" not in printed


def test_what_the_store_refuses_to_show_is_not_said_to_be_absent(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library for hf:// takes it for a no when asked whether there is a file or folder."""

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("Forbidden: you lack the right to list")

    for name, said in {"isdir": lambda *_: False, "exists": lambda *_: False, "info": refuse}.items():
        monkeypatch.setattr(type(store.system), name, said)
    with pytest.raises(ShardError, match=rf"{OUT}: cannot be read \(Forbidden: you lack the right"):
        open_dataset(OUT)
    with pytest.raises(ShardError, match=rf"{OUT}: cannot be read \(Forbidden: you lack the right"):
        open_collection(parse_location(OUT))


def test_a_full_disk_while_reading_is_told_from_a_store_that_fails(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.system.put_file(str(store.table), "memory://bucket/reports.csv")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(type(store.system), "get_file", full)
    code, printed = store.run(str(tmp_path / "out"), table="memory://bucket/reports.csv")
    assert code == 2
    assert "for a copy of memory://bucket/reports.csv (No space left on device)" in printed
    assert "make room, or set TMPDIR" in printed
    with pytest.raises(OSError, match="No space") as raised, Address(OUT).errors():
        full()
    assert raised.value.errno == errno.ENOSPC


@pytest.mark.parametrize("pages", [1, 3])
def test_a_store_that_gives_the_same_pages_of_uploads_again_is_not_asked_for_ever(
    pages: int, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one does that ignores S3's markers, or mistakes them."""
    asked, aborted = [], []

    def page(self: Any, method: str, **given: str) -> dict[str, Any]:
        asked.append(given)
        assert len(asked) < 20
        number = str(len(asked) % pages)
        upload = {"Key": f"set/cxr-00000{number}.tar", "UploadId": number}
        return {"Uploads": [upload], "IsTruncated": True, "NextKeyMarker": number, "NextUploadIdMarker": number}

    kind = type(store.system)
    monkeypatch.setattr(kind, "split_path", lambda self, path: ("bucket", "set", None), raising=False)
    monkeypatch.setattr(kind, "call_s3", page, raising=False)
    monkeypatch.setattr(kind, "abort_mpu", lambda self, *upload: aborted.append(upload[2]), raising=False)
    Address(OUT).abort_uploads(lambda name: True)
    assert len(asked) == pages + 1
    assert set(aborted) == {str(number) for number in range(pages)}


@pytest.mark.parametrize("key", ["blob_id", "xet_hash", "ETag", "in words of its own"])
def test_the_state_of_a_file_of_equal_size_changes_with_it(
    key: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """hf:// gives no time, and digests under names of its own."""
    states = []
    for version in ("a", "b", "b"):
        info = {"name": "x", "size": 3, "type": "file", "last_commit": None, key: version}
        monkeypatch.setattr(type(store.system), "info", lambda *_, info=info, **__: info)
        states.append(Address("memory://bucket/x").state())
    assert states[0] != states[1] == states[2]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--seed", "1"), "seed: 0 there, 1 now"),
        (("--format", "dicom", "--unpacked"), "write tars of DICOM objects there"),
        (("--id-map", "s3://bucket/ids.csv"), "is an address, expected a path on this machine"),
        (("--part", "3/3", "--dry-run"), "part 3/3: 1 shard"),
    ],
)
def test_what_a_store_refuses(options: tuple[str, ...], said: str, store: Store) -> None:
    assert store.run(OUT, "--part", "1/3")[0] == 0
    before = {name: file.modified for name, file in store.system.store.items()}
    code, printed = store.run(OUT, *options)
    assert code == (0 if "--dry-run" in options else 2)
    assert said in printed
    assert {name: file.modified for name, file in store.system.store.items()} == before


@pytest.mark.parametrize("there", ["notes.txt", "below/notes.txt", ""])
def test_a_foreign_prefix_is_left_alone(there: str, store: Store) -> None:
    store.system.pipe_file(f"{OUT}/{there}".rstrip("/"), b"mine")
    code, printed = store.run(OUT)
    assert code == 2
    assert ("is a file, expected a prefix" if not there else "not empty, and not a data set") in printed
    assert len(store.system.store) == 1


def test_dicom_tars_in_a_store(store: Store, tmp_path: Path) -> None:
    dicom = ("--format", "dicom", "--limit", "1")
    assert store.run(OUT, *dicom)[0] == 0
    assert store.run(str(tmp_path / "local"), *dicom)[0] == 0
    assert store.copy(tmp_path / "copy") == hashes(tmp_path / "local")


@pytest.mark.parametrize("suffix", ["csv", "parquet", "jsonl"])
def test_a_table_in_a_store(suffix: str, store: Store, tmp_path: Path) -> None:
    table = tmp_path / f"reports.{suffix}"
    if suffix == "csv":
        table.write_bytes(store.table.read_bytes())
    elif suffix == "parquet":
        pyarrow.parquet.write_table(pyarrow.csv.read_csv(store.table), table)
    else:
        rows = pyarrow.csv.read_csv(store.table).to_pylist()
        table.write_text("".join(f"{json.dumps(row, default=str)}\n" for row in rows))
    store.system.put_file(str(table), f"memory://bucket/{table.name}")
    assert store.run(OUT, "--limit", "2", table=f"memory://bucket/{table.name}")[0] == 0
    assert store.run(str(tmp_path / "local"), "--limit", "2", table=str(table))[0] == 0
    assert store.copy(tmp_path / "copy") == hashes(tmp_path / "local")


def test_a_table_that_is_not_there(store: Store) -> None:
    code, printed = store.run(OUT, table="memory://bucket/reports.csv")
    assert code == 2
    assert "memory://bucket/reports.csv: no such file" in printed
    assert not store.system.store


def test_a_data_set_in_a_store_is_read_as_a_local_one(store: Store, tmp_path: Path) -> None:
    assert store.run(OUT)[0] == 0
    there, here = list(open_dataset(OUT)), list(open_dataset(store.home / "set"))
    assert len(there) == 14
    for (image, labels, metadata), (same, their_labels, their_metadata) in zip(there, here, strict=True):
        assert torch.equal(image, same)
        assert torch.equal(labels, their_labels) or labels.isnan().any()
        assert metadata == their_metadata
    store.system.pipe_file(f"{OUT}/cxr-000002.tar", b"damaged")
    with pytest.raises(ShardError, match=r"memory://bucket/set/cxr-000002.tar: its bytes do not match"):
        list(open_dataset(OUT))


def test_images_and_shards_of_others_in_a_store(store: Store, tmp_path: Path) -> None:
    from tests.generation.making import members

    pictures = {name: content for name, content in members(store.home / "set").items() if name.endswith(".png")}
    for name, content in pictures.items():
        store.system.pipe_file(f"memory://bucket/pictures/below/{name}", content)
    store.system.pipe_file("memory://bucket/pictures/.hidden/x.png", b"")
    store.system.put_file(str(store.home / "set" / "cxr-000000.tar"), "memory://bucket/shards/x.tar")
    for path, images in (("pictures", 14), ("pictures/below", 14), ("shards", 3), ("shards/x.tar", 3)):
        collection = open_collection(parse_location(f"memory://bucket/{path}"))
        assert sum(1 for unit in collection.units for _ in collection.read(unit)) == images
    unit = collection.units[0]
    digest = collection.digest_of(unit)
    assert collection.digest_of(unit) == digest
    store.system.pipe_file("memory://bucket/shards/x.tar", b"another")
    assert collection.digest_of(unit) != digest


def test_a_failed_request_is_not_the_state_of_a_file(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """An expired token would make each unit another one, which has not been scored."""
    store.system.put_file(str(store.home / "set" / "cxr-000000.tar"), "memory://bucket/shards/x.tar")
    collection = open_collection(parse_location("memory://bucket/shards"))
    [unit] = collection.units

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "the token has expired")

    with monkeypatch.context() as patched:
        patched.setattr(type(store.system), "info", refuse)
        with pytest.raises(ShardError, match=r"memory://bucket/shards/x.tar: cannot be read \(the token has expired"):
            collection.digest_of(unit)
    before = collection.digest_of(unit)
    store.system.rm("memory://bucket/shards/x.tar")
    assert collection.digest_of(unit) != before


def test_an_audit_asks_once_what_a_unit_is(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.system.put_file(str(store.home / "set" / "cxr-000000.tar"), "memory://bucket/shards/x.tar")
    collection = open_collection(parse_location("memory://bucket/shards"))
    [unit] = collection.units
    asked, state = [], Address.state

    def count(address: Address) -> str:
        asked.append(address.name)
        return state(address)

    monkeypatch.setattr(Address, "state", count)
    cache = ScoreCache(tmp_path, collection, {})
    path = cache.path(unit)
    store.system.pipe_file("memory://bucket/shards/x.tar", b"another")
    assert cache.path(unit) == path
    assert asked == ["x.tar"]
    assert ScoreCache(tmp_path, collection, {}).path(unit) != path  # in the next run


def test_nothing_at_an_address(store: Store) -> None:
    with pytest.raises(ShardError, match="memory://bucket/set: nothing there"):
        open_dataset(OUT)


@pytest.mark.parametrize(
    ("scheme", "package", "install"),
    [
        ("s3", "s3fs", "pip install 'cxrsynth[s3]'"),
        ("gs", "gcsfs", "pip install 'cxrsynth[gcs]'"),
        ("gcs", "gcsfs", "pip install 'cxrsynth[gcs]'"),
        ("az", "adlfs", "pip install 'cxrsynth[azure]'"),
        ("abfs", "adlfs", "pip install 'cxrsynth[azure]'"),
        ("oci", "ocifs", "Install ocifs"),  # as fsspec says of stores for which there is no extra
    ],
)
def test_a_missing_package_is_named(
    scheme: str, package: str, install: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    # Where another test has opened one.
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, scheme, raising=False)
    for out, table in ((OUT.replace("memory", scheme), None), (OUT, f"{scheme}://bucket/reports.csv")):
        code, printed = store.run(out, table=table)
        assert code == 2
        assert f"the package that opens {scheme}:// is not installed\n  {install}" in printed
    result = CliRunner().invoke(app, ["audit", f"{scheme}://bucket/set"])
    assert result.exit_code == 2
    assert f"\n  {install}" in result.stderr
    assert not store.system.store


def test_addresses_and_paths(store: Store, tmp_path: Path) -> None:
    assert parse_location(f"file://{tmp_path}/a%20b") == tmp_path / "a b"
    assert parse_location("set") == Path("set")
    assert parse_location("s3://bucket/set/") == Address("s3://bucket/set")
    assert parse_location("S3://Bucket/Set") == Address("s3://Bucket/Set")
    for nameless in ("s3://", "s3:///set", "gs://", "memory://"):
        code, printed = store.run(nameless)
        assert code == 2
        assert f"{nameless}: names no bucket" in printed
    code, printed = store.run("no-such-kind://bucket/set")
    assert code == 2
    assert "no known kind of address" in printed


def test_what_only_writes_to_this_machine_refuses_addresses(store: Store, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["audit", str(store.home / "set"), "--out", "s3://bucket/audit"])
    assert result.exit_code == 2
    assert "is an address, expected a path on this machine" in result.stderr
