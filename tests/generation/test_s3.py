"""Data sets on a real S3 server: killed, refused, overloaded, and byte for byte what a local folder holds."""

import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.csv
import pyarrow.parquet
import pytest
from typer.testing import CliRunner

from cxrsynth import open_dataset
from cxrsynth.cli import app
from cxrsynth.errors import ShardError
from tests.generation.making import command, hashes, write_table
from tests.processes import Warm
from tests.s3_server import KEYS, S3Server, s3_server

pytestmark = pytest.mark.slow
if os.environ.get("CI") != "true":
    for module in ("s3fs", "moto.server"):
        pytest.importorskip(module)

# 14 images in 7 shards of two batches.
OPTIONS = ("--images-per-report", "2", "--shard-size", "2", "--batch-size", "1")
OUT = "s3://bucket/some/set"


class Store:
    """A command, with its table, model and key, that writes to the server."""

    def __init__(self, home: Path, model: Path, server: S3Server) -> None:
        self.home, self.model, self.server = home, model, server
        self.table = write_table(home / "reports.csv")
        self.key = home / "id.key"
        self.key.write_text("0123456789abcdef" * 2)
        self.key.chmod(0o600)

    @property
    def system(self) -> Any:
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()
        key, secret = KEYS.values()
        return s3fs.S3FileSystem(key=key, secret=secret, endpoint_url=self.server.url, use_listings_cache=False)

    def arguments(self, out: str, *options: str, table: str | None = None) -> list[str]:
        arguments = command(self.table, Path("x"), self.model, *OPTIONS, "--id-key", str(self.key), *options)
        arguments[1], arguments[3] = table or str(self.table), out
        return arguments

    def run(self, out: str, *options: str, table: str | None = None) -> tuple[int, str]:
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()
        result = CliRunner().invoke(app, self.arguments(out, *options, table=table))
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        assert "Traceback" not in result.output
        return result.exit_code, result.stdout + result.stderr

    def start(self, *options: str, log: Path) -> Warm:
        environment = self.server.environment | {"HF_HUB_OFFLINE": "1"}
        return Warm("cxrsynth", *self.arguments(OUT, *options), log=log, environment=environment)

    def has(self, *names: str) -> Callable[[], bool]:
        """Whether any of these objects is there."""
        system = self.system
        return lambda: any(system.exists(f"{OUT}/{name}") for name in names)

    def copy(self, to: Path) -> dict[str, str]:
        self.system.get(OUT, str(to), recursive=True)
        return hashes(to)


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, server: S3Server) -> tuple[Store, dict[str, str]]:
    home = tmp_path_factory.mktemp("s3")
    store = Store(home, tiny_model, server)
    code, printed = store.run(str(home / "set"))
    assert code == 0, printed
    return store, hashes(home / "set")


@pytest.fixture
def store(local: tuple[Store, dict[str, str]], monkeypatch: pytest.MonkeyPatch) -> Store:
    """An empty bucket."""
    for name, value in local[0].server.environment.items():
        monkeypatch.setenv(name, value)
    local[0].server.reset()
    local[0].system.mkdir("bucket")
    return local[0]


@pytest.fixture
def expected(local: tuple[Store, dict[str, str]]) -> dict[str, str]:
    return local[1]


def test_a_run_gives_the_bytes_of_a_local_one(store: Store, expected: dict[str, str], tmp_path: Path) -> None:
    store.system.put_file(str(store.table), "s3://bucket/reports.csv")
    code, printed = store.run(OUT, table="s3://bucket/reports.csv")
    assert code == 0, printed
    assert store.copy(tmp_path / "copy") == expected
    assert "already complete" in store.run(OUT)[1]
    assert len(list(open_dataset(OUT))) == 14


@pytest.mark.parametrize("moment", [".cxrsynth/plan.json", "cxr-000002.tar", "preview.png"])
def test_a_killed_run_resumes(moment: str, store: Store, expected: dict[str, str], tmp_path: Path) -> None:
    process = store.start(log=tmp_path / "log")
    process.kill_when(store.has(moment))
    if moment != "preview.png":  # the manifest follows at once
        assert not store.has("manifest.json")()
    there = {one["name"]: one["LastModified"] for one in store.system.ls(OUT, detail=True) if "tar" in one["name"]}
    code, printed = store.run(OUT)
    assert code == 0, printed
    assert store.copy(tmp_path / "copy") == expected
    after = {one["name"]: one["LastModified"] for one in store.system.ls(OUT, detail=True)}
    records = {name for name in there if after[name] == there[name]}
    # A shard whose upload was under way when its record was written may be made again.
    assert len(records) >= len(there) - 1


def test_parts_of_killed_uploads_are_deleted_once_the_set_is_complete(store: Store) -> None:
    system = store.system

    def unfinished() -> set[str]:
        store.server.uploads_a_page = 1000
        found = system.call_s3("list_multipart_uploads", Bucket="bucket")
        store.server.uploads_a_page = 2
        assert not found["IsTruncated"]
        return {upload["Key"] for upload in found.get("Uploads", ())}

    def begin(key: str) -> None:
        upload = system.call_s3("create_multipart_upload", Bucket="bucket", Key=key)["UploadId"]
        system.call_s3("upload_part", Bucket="bucket", Key=key, PartNumber=1, UploadId=upload, Body=b"0" * 100)

    of_others = {"some/set-2/cxr-000000.tar", "some/other.tar", "some/set/another/cxr-000000.tar"}
    of_others |= {"some/set/archive.tar"}
    for key in {"some/set/cxr-000000.tar", "some/set/cxr-000003.tar"} | of_others:
        begin(key)
    code, printed = store.run(OUT, "--part", "1/2")
    assert code == 0, printed
    assert len(unfinished()) == 6  # another part may be uploading; on three pages
    code, printed = store.run(OUT, "--part", "2/2")
    assert code == 0, printed
    assert unfinished() == of_others
    begin("some/set/cxr-000005.tar")
    assert "already complete" in store.run(OUT)[1]
    assert unfinished() == of_others


def test_parts_killed_at_random(store: Store, expected: dict[str, str], tmp_path: Path) -> None:
    seed = int(os.environ.get("CXRSYNTH_TEST_SEED", random.randrange(1 << 30)))
    print(f"CXRSYNTH_TEST_SEED={seed}")  # noqa: T201 - pytest shows it with a failure
    draw, kills = random.Random(seed), 0
    for attempt in range(3):
        numbers = draw.sample((1, 2), 2)
        running = [
            (number, store.start("--part", f"{number}/2", log=tmp_path / f"{attempt}-{number}")) for number in numbers
        ]
        if attempt < 2:
            own = [f"cxr-{index:06d}.tar" for index in range(numbers[0] - 1, 7, 2)]
            kills += running[0][1].kill_soon(store.has(*own), draw.uniform(0, 0.3) * attempt)  # the first at once
        for _, process in running:
            assert process.wait() in (0, -signal.SIGKILL), process.printed()
    assert kills >= 1
    assert store.copy(tmp_path / "copy") == expected


def test_an_overloaded_server(store: Store, tmp_path: Path) -> None:
    """Here the table is a Parquet file, and on the server as well."""
    table = tmp_path / "reports.parquet"
    pyarrow.parquet.write_table(pyarrow.csv.read_csv(store.table), table)
    assert store.run(str(tmp_path / "set"), "--limit", "2", table=str(table))[0] == 0
    store.system.put_file(str(table), "s3://bucket/reports.parquet")
    store.server.fail_every = 3
    code, printed = store.run(OUT, "--limit", "2", table="s3://bucket/reports.parquet")
    assert code == 0, printed
    assert store.server.failed > 10
    store.server.fail_every = 0
    assert store.copy(tmp_path / "copy") == hashes(tmp_path / "set")


def test_a_server_that_always_fails_is_named(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    store.server.fail_every = 1
    code, printed = store.run(OUT)
    assert code == 2
    assert f"--out {OUT}: cannot be read (" in printed
    assert "low down" in printed


def test_a_server_that_is_not_there(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    code, printed = store.run(OUT)
    assert code == 2
    assert "cannot be read (" in printed
    with pytest.raises(ShardError, match="cannot be read"):
        open_dataset(OUT)


def test_a_wrong_key_is_refused_before_the_model_is_loaded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from cxrsynth.generation import plan

    monkeypatch.setattr(plan, "load_model", None)
    store.server.check_keys()
    code, printed = store.run(OUT)
    assert code == 2
    assert f"--out {OUT}: cannot be read (" in printed
    assert "check the bucket's name, the credentials" in printed
    assert not any(key in printed for key in KEYS.values())
    code, printed = store.run(str(store.home / "none"), table="s3://bucket/reports.csv")
    assert code == 2
    assert "s3://bucket/reports.csv: cannot be read" in printed


def test_a_missing_bucket_is_refused_before_the_model_is_loaded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from cxrsynth.generation import plan

    monkeypatch.setattr(plan, "load_model", None)
    code, printed = store.run("s3://no-such-bucket/set")
    assert code == 2
    assert "no-such-bucket" in printed
    assert "bucket" in printed.split("no-such-bucket/set", 1)[1]


def test_rights_that_end_during_a_run(store: Store, tmp_path: Path) -> None:
    process = store.start(log=tmp_path / "log")
    while not store.has("cxr-000001.tar")():
        assert process.returncode is None, process.printed()
    store.server.check_keys()
    assert process.wait() == 2
    assert f"--out {OUT}: " in process.printed()
    assert "finished shards are whole" in process.printed()
    assert "Traceback" not in process.printed()


def test_an_audit_reads_from_the_server(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("--steps", "1", "--limit", "4")
    home = tmp_path / "local"
    assert store.run(OUT, *options)[0] == 0
    assert store.run(str(home), *options)[0] == 0
    monkeypatch.chdir(tmp_path)
    results = []
    for images in (OUT, str(home)):
        result = CliRunner().invoke(app, ["audit", images, "--device", "cpu", "--id-key", str(store.key)])
        assert result.exit_code == 0, result.output
        results.append((tmp_path / f"{Path(images).name}-audit" / "keep.csv").read_bytes())
    assert results[0] == results[1]


@pytest.fixture(scope="module")
def audited(local: tuple[Store, dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an audit of the local folder finds."""
    out = tmp_path_factory.mktemp("audited") / "out"
    store, _ = local
    result = CliRunner().invoke(app, _audit(store, str(store.home / "set"), out))
    assert result.exit_code == 0, result.output
    return _found(out)


def _audit(store: Store, images: str, out: Path) -> list[str]:
    return ["audit", images, "--out", str(out), "--device", "cpu", "--id-key", str(store.key)]


def _found(out: Path) -> dict[str, bytes]:
    """The decisions, and all scores."""
    return {name: (out / name).read_bytes() for name in ("keep.csv", "scores.parquet")}


def test_an_audit_of_an_overloaded_server(store: Store, audited: dict[str, bytes], tmp_path: Path) -> None:
    store.system.put(str(store.home / "set"), OUT, recursive=True)
    store.server.fail_every = 3
    result = CliRunner().invoke(app, _audit(store, OUT, tmp_path / "out"))
    assert result.exit_code == 0, result.output
    assert store.server.failed > 3
    assert _found(tmp_path / "out") == audited


def test_a_killed_audit_resumes(store: Store, audited: dict[str, bytes], tmp_path: Path) -> None:
    store.system.put(str(store.home / "set"), OUT, recursive=True)
    arguments, environment = _audit(store, OUT, tmp_path / "out"), store.server.environment | {"HF_HUB_OFFLINE": "1"}

    def scored() -> dict[str, int]:
        return {part.name: part.stat().st_mtime_ns for part in (tmp_path / "out" / ".cxrsynth-audit").glob("*.parquet")}

    process = Warm("cxrsynth", *arguments, log=tmp_path / "log", environment=environment)
    process.kill_when(lambda: len(scored()) >= 2)
    before = scored()
    assert len(before) < 7
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert scored().items() >= before.items(), "what was scored is scored again"
    assert _found(tmp_path / "out") == audited
