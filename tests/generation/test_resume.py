"""Runs that are killed, stopped, damaged, out of disk space or shared, in processes of their own."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from typer.testing import CliRunner

from cxrsynth.cli import app
from cxrsynth.errors import ModelError
from cxrsynth.generation import plan
from cxrsynth.generation.draw import Drawer
from tests.generation.making import command, hashes, known_schedulers, manifest, write_table
from tests.processes import TIMEOUT_S, Warm

# 14 images in 7 shards of two batches: enough that a kill lands between two of either.
OPTIONS = ("--images-per-report", "2", "--shard-size", "2", "--batch-size", "1")


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> "Job":
    home = tmp_path_factory.mktemp("resume")
    return Job(home, write_table(home / "reports.csv"), tiny_model)


@pytest.fixture(scope="module")
def reference(job: "Job") -> dict[str, str]:
    """Hashes of the folder that the same command makes without interruption."""
    with pytest.MonkeyPatch.context() as patched:
        code, printed = job.run_here(job.home / "reference", patched)
    assert code == 0, printed
    return hashes(job.home / "reference")


class Job:
    """One `generate` command with its table, model and user data, run in processes."""

    def __init__(self, home: Path, table: Path, model: Path) -> None:
        self.home, self.table, self.model = home, table, model
        # One batch at a time: what a signal interrupts is then known. More are a test of their own.
        self.environment = os.environ | {"XDG_DATA_HOME": str(home / "data"), "OMP_NUM_THREADS": "1"}
        self.environment |= {"HF_HUB_OFFLINE": "1"}

    def arguments(self, out: Path, *options: str) -> list[str]:
        return command(self.table, out, self.model, *OPTIONS, *options)

    def warm(self, out: Path, *launcher: str) -> Warm:
        """Run in a process that has already imported everything, directly or through a launcher module."""
        module, *given = launcher or ("cxrsynth",)
        log = out.with_name(f"{out.name}.log")
        return Warm(module, *given, *self.arguments(out), log=log, environment=self.environment)

    def start(self, out: Path, *, before: Callable[[], Any] | None = None) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "cxrsynth", *self.arguments(out)],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=before,
            start_new_session=True,
        )

    def run(self, out: Path, *, before: Callable[[], None] | None = None) -> subprocess.CompletedProcess[str]:
        process = self.start(out, before=before)
        try:
            stdout, stderr = process.communicate(timeout=TIMEOUT_S)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(timeout=60)
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    def run_here(self, out: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> tuple[int, str]:
        """Run the same command in this process, which saves five seconds of imports: exit code and output."""
        monkeypatch.setenv("XDG_DATA_HOME", str(self.home / "data"))
        result = CliRunner().invoke(app, self.arguments(out, *options))
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, result.stdout + result.stderr


def interrupt_when(
    process: subprocess.Popen[str], seen: Callable[[], bool], number: signal.Signals = signal.SIGINT
) -> None:
    """Send a signal as soon as a condition holds; fail if the process ends before."""
    deadline = time.monotonic() + TIMEOUT_S
    while not seen():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.0005)
    process.send_signal(number)


def half_made(reference: Path, out: Path, shards: int) -> None:
    """The folder that a killed run leaves: some shards with their records, and the plan."""
    (out / ".cxrsynth").mkdir(parents=True)
    says = manifest(reference)
    (out / ".cxrsynth" / "plan.json").write_text(json.dumps(says["plan"]), encoding="utf-8")
    for shard in says["shards"][:shards]:
        shutil.copy(reference / shard["name"], out)
        counts = {"sanitized": {}, "prompts_truncated": 0, "unsupported_findings": {}} | {
            "reports_not_in_english": 0,
            "label_contradictions": {},
        }
        record = out / ".cxrsynth" / f"{shard['name']}.json"
        record.write_text(json.dumps(shard | counts), encoding="utf-8")


def identities(out: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in out.glob("cxr-*.tar")}


MOMENTS: dict[str, Callable[[Path], bool]] = {
    "plan": lambda out: (out / ".cxrsynth" / "plan.json").exists(),
    "partial": lambda out: any(out.glob(".cxr-000001.tar.partial")),
    "shard": lambda out: (out / "cxr-000002.tar").exists(),
    "finish": lambda out: any(out.glob("*preview.png*")),
}


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["shard", "plan", "partial", "finish"])
def test_a_killed_run_resumes_to_the_same_bytes(
    moment: str, job: Job, reference: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    process = job.warm(out)
    process.kill_when(lambda: MOMENTS[moment](out))
    assert process.returncode == -signal.SIGKILL
    assert not (out / "manifest.json").exists()
    finished = identities(out)
    assert all(hashes(out)[name] == reference[name] for name in finished)
    assert len(finished) >= {"plan": 0, "partial": 1, "shard": 3, "finish": 7}[moment]

    code, printed = job.run_here(out, monkeypatch)
    assert code == 0, printed
    assert hashes(out) == reference
    assert {name: identities(out)[name] for name in finished} == finished


@pytest.mark.slow
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_ctrl_c_and_its_like_say_how_to_resume(
    name: str, code: int, job: Job, reference: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    # Of a script in the background the signal would be ignored, here too.
    number = signal.Signals[name]
    process = job.start(out, before=lambda: signal.signal(number, signal.SIG_DFL))
    interrupt_when(process, lambda: MOMENTS["partial"](out), number)
    stderr = process.communicate(timeout=TIMEOUT_S)[1]
    assert process.returncode == code
    assert "Run the same command again to resume." in stderr
    assert "Traceback" not in stderr
    assert "ignored" not in stderr
    assert not list(out.rglob("*.partial"))
    assert job.run_here(out, monkeypatch)[0] == 0
    assert hashes(out) == reference


@pytest.mark.slow
@pytest.mark.parametrize("named", sorted(known_schedulers()))
def test_every_scheduler_resumes_to_the_same_bytes(
    named: str, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What noise one draws comes from each image's own, so it does not matter which images were made before."""
    model = tmp_path / "model"
    shutil.copytree(job.model, model)
    for file, key, value in (
        ("scheduler/scheduler_config.json", "_class_name", named),
        ("model_index.json", "scheduler", ["diffusers", named]),
    ):
        path = model / file
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    own = Job(job.home, job.table, model)
    whole, cut, options = tmp_path / "whole", tmp_path / "cut", ("--sampler", "model", "--steps", "5")
    code, printed = own.run_here(whole, monkeypatch, *options)
    if named == "DPMSolverSDEScheduler":
        assert code == 2
        assert "draws its noise from a generator of its own" in printed
        return
    assert code == 0, printed
    half_made(whole, cut, shards=3)
    torch.manual_seed(1)
    assert own.run_here(cut, monkeypatch, *options)[0] == 0
    shards = [name for name in hashes(whole) if name.endswith(".tar")]
    assert [hashes(cut)[name] for name in shards] == [hashes(whole)[name] for name in shards]
    if named == "EulerAncestralDiscreteScheduler":
        assert own.run_here(tmp_path / "plain", monkeypatch, "--sampler", "ddim", "--steps", "5")[0] == 0
        assert hashes(tmp_path / "plain")["cxr-000000.tar"] != hashes(whole)["cxr-000000.tar"]


@pytest.mark.parametrize(
    "damage", ["changed", *(pytest.param(how, marks=pytest.mark.slow) for how in ("cut", "removed", "record removed"))]
)
def test_a_damaged_shard_is_made_again(
    damage: str, job: Job, reference: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    half_made(job.home / "reference", out, shards=4)
    shard = out / "cxr-000001.tar"
    content = shard.read_bytes()
    if damage == "cut":
        shard.write_bytes(content[:-512])
    elif damage == "changed":
        shard.write_bytes(content[:600] + bytes([content[600] ^ 1]) + content[601:])
    elif damage == "removed":
        shard.unlink()
    else:
        (out / ".cxrsynth" / "cxr-000001.tar.json").unlink()
    whole = {name: identity for name, identity in identities(out).items() if name != shard.name}
    code, printed = job.run_here(out, monkeypatch)
    assert code == 0, printed
    ours = hashes(out)
    assert {name: ours[name] for name in ours if name.endswith(".tar")} == {
        name: reference[name] for name in reference if name.endswith(".tar")
    }
    assert {name: identities(out)[name] for name in whole} == whole


def test_another_plan_is_refused_in_a_half_made_folder(
    job: Job, reference: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    half_made(job.home / "reference", out, shards=2)
    plan = json.loads((out / ".cxrsynth" / "plan.json").read_text())
    plan["sampling"]["guidance"] = 1.5
    (out / ".cxrsynth" / "plan.json").write_text(json.dumps(plan))
    before = hashes(out)
    code, printed = job.run_here(out, monkeypatch)
    assert code == 2
    assert "sampling.guidance: 1.5 there, 4.0 now" in printed
    assert hashes(out) == before


def test_a_second_run_at_the_same_time_is_refused(
    job: Job, reference: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    half_made(job.home / "reference", out, shards=2)
    partial = out / ".cxr-000002.tar.partial"
    partial.write_bytes(b"of the run that holds the lock")
    before = hashes(out)
    with FileLock(out / ".cxrsynth" / "lock"):
        code, printed = job.run_here(out, monkeypatch)
        assert code == 2
        assert "another run is writing there" in printed
        assert {name: digest for name, digest in hashes(out).items() if not name.endswith("lock")} == before
    assert job.run_here(out, monkeypatch)[0] == 0
    assert not partial.exists()


def test_a_folder_that_another_run_takes_while_the_model_loads_is_left_alone(
    job: Job, reference: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, load = tmp_path / "out", plan.load_model

    def slowly(*args: Any, **further: Any) -> Any:
        half_made(job.home / "reference", out, shards=2)
        begun = json.loads((out / ".cxrsynth" / "plan.json").read_text())
        begun["seed"] += 1
        (out / ".cxrsynth" / "plan.json").write_text(json.dumps(begun))
        return load(*args, **further)

    monkeypatch.setattr(plan, "load_model", slowly)
    code, printed = job.run_here(out, monkeypatch)
    assert code == 2
    assert "holds a data set of another plan" in printed
    assert json.loads((out / ".cxrsynth" / "plan.json").read_text())["seed"] == 1


@pytest.mark.parametrize("there", ["nothing", "an empty folder", "an unfinished run"])
def test_a_model_that_does_not_load_leaves_the_folder_as_it_was(
    there: str, job: Job, reference: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    if there == "an empty folder":
        out.mkdir()
    if there == "an unfinished run":
        half_made(job.home / "reference", out, shards=2)
    before = hashes(out) if out.exists() else None

    def load(*_: Any, **__: Any) -> None:
        raise ModelError("unet: cannot be loaded")

    monkeypatch.setattr(plan, "load_model", load)
    code, printed = job.run_here(out, monkeypatch)
    assert (code, printed) == (2, "error: unet: cannot be loaded\n")
    assert (hashes(out) if out.exists() else None) == before
    assert there == "an unfinished run" or not list(out.glob(".*"))


@pytest.mark.slow
def test_two_processes_make_the_same_bytes(job: Job, reference: dict[str, str], tmp_path: Path) -> None:
    # `accelerate launch` starts a single process where there is no accelerator.
    launcher = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    done = job.warm(tmp_path / "out", *launcher, "-m", "cxrsynth")
    assert done.wait() == 0, done.printed()
    assert hashes(tmp_path / "out") == reference
    assert done.printed().count("14 images in 7 shards") == 1


@pytest.mark.slow
def test_the_number_of_cores_does_not_change_the_bytes(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = torch.get_num_threads()
    made = []
    for cores in (1, 3):
        out = tmp_path / str(cores)
        torch.set_num_threads(cores)
        try:
            # 16 bits: 8 would hide the rounding that depends on threads.
            code, printed = job.run_here(out, monkeypatch, "--image-format", "png16")
            assert torch.get_num_threads() == cores
        finally:
            torch.set_num_threads(threads)
        assert code == 0, printed
        made.append(hashes(out))
    assert made[0] == made[1]


def test_a_failure_leaves_the_shards_before_it_whole(
    job: Job, reference: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = Drawer.draw

    def draw_until_shard_three(self: Drawer, batch: Any, stopped: Any) -> Any:
        if batch.shard.index == 3:
            raise ModelError("shard 3")
        return draw(self, batch, stopped)

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(Drawer, "draw", draw_until_shard_three)
        code, printed = job.run_here(out, monkeypatch)
    assert code == 2
    assert "shard 3" in printed
    assert sorted(identities(out)) == [f"cxr-00000{index}.tar" for index in range(3)]
    assert not list(out.rglob("*.partial"))
    assert job.run_here(out, monkeypatch)[0] == 0
    assert hashes(out) == reference


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for about three shards."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48k", "none", str(path)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


def remount(path: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(path)], check=True)


def refused_for_writing(code: int, printed: str, reason: str) -> None:
    assert code == 2, printed
    assert printed.count("error:") == 1
    assert f"cannot write ({reason})" in printed
    assert "finished shards are whole" in printed
    assert "Traceback" not in printed
    assert "ignored" not in printed


@pytest.mark.slow
def test_a_full_disk_is_reported_and_survived(
    job: Job, reference: dict[str, str], small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = small_disk / "out"
    done = job.run(out)
    refused_for_writing(done.returncode, done.stderr, "No space left on device")
    finished = identities(out)
    assert 0 < len(finished) < 7
    assert all(hashes(out)[name] == reference[name] for name in finished)
    assert not list(out.rglob("*.partial"))

    remount(small_disk, "size=4m")
    assert job.run_here(out, monkeypatch)[0] == 0
    assert hashes(out) == reference
    assert {name: identities(out)[name] for name in finished} == finished


def test_a_disk_full_at_the_end_is_reported_and_survived(
    job: Job, reference: dict[str, str], small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Room for all shards, not for the preview.
    remount(small_disk, "size=152k")
    out = small_disk / "out"
    refused_for_writing(*job.run_here(out, monkeypatch), "No space left on device")
    assert len(identities(out)) == 7
    assert not list(out.rglob("*.partial"))
    assert not (out / "manifest.json").exists()
    remount(small_disk, "size=4m")
    assert job.run_here(out, monkeypatch)[0] == 0
    assert hashes(out) == reference


def test_a_lost_permission_is_reported_and_survived(
    job: Job, reference: dict[str, str], small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remount(small_disk, "size=4m")
    out = small_disk / "out"
    half_made(job.home / "reference", out, shards=2)
    before = hashes(out)
    remount(small_disk, "ro")
    refused_for_writing(*job.run_here(out, monkeypatch), "Read-only file system")
    assert hashes(out) == before
    remount(small_disk, "rw")
    assert job.run_here(out, monkeypatch)[0] == 0
    assert {name for name in hashes(out) if name.endswith(".tar")} == {n for n in reference if n.endswith(".tar")}


@pytest.mark.slow
def test_a_file_too_large_is_reported(
    job: Job, reference: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same without root: files are limited to 8 kB, and a shard of two images has 10 kB."""
    out = tmp_path / "out"
    half_made(job.home / "reference", out, shards=2)
    done = job.run(out, before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192)))
    refused_for_writing(done.returncode, done.stderr, "File too large")
    assert sorted(identities(out)) == ["cxr-000000.tar", "cxr-000001.tar"]
    assert not list(out.rglob("*.partial"))
    assert job.run_here(out, monkeypatch)[0] == 0
    ours = hashes(out)
    assert [ours[name] for name in identities(out)] == [reference[name] for name in identities(out)]
