"""Output folders: one run at a time, no leftovers of ours, files of others left alone, messages that name the cause."""

import errno
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cxrsynth.auditing.folder import AuditFolder
from cxrsynth.errors import ShardError
from cxrsynth.rl.checkpoint import Learner, save_checkpoint
from cxrsynth.runtime.files import (
    folder_atomically,
    has_sha256,
    open_atomically,
    partial_path,
    write_atomically,
    write_tensors,
)
from cxrsynth.runtime.folder import LockedFolder
from cxrsynth.shards.folder import OutputFolder
from cxrsynth.shards.place import LocalPlace
from cxrsynth.tuning.run_folder import RunFolder
from tests.processes import Warm


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


def touch(folder: Path, *paths: str) -> None:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(b"left")


def locked(path: Path) -> LockedFolder:
    return LockedFolder(path, lock=".lock", written=("a.txt", "below/*.txt", "model"), kept="all is well")


def test_a_file_is_whole_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_atomically(path, b"old")

    def interrupted() -> None:
        with open_atomically(path) as file:
            file.write(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == {"a.txt"}
    with open_atomically(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert has_sha256(path, "11507a0e2f5e69d5dfa40a62a1bd7b6ee57e6bcd85c67c9b8431b36fff21c437")
    assert not has_sha256(tmp_path / "none", "")


@pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")
def test_a_private_file_is_private_from_its_first_byte(tmp_path: Path) -> None:
    touch(tmp_path, ".key.partial")  # of a run that was killed, and open to others
    with open_atomically(tmp_path / "key", mode=0o600) as file:
        assert os.fstat(file.fileno()).st_mode & 0o777 == 0o600
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600


def test_tensors_are_whole_or_absent(tmp_path: Path) -> None:
    write_tensors(tmp_path / "w.safetensors", {"a": torch.ones(2)})
    with pytest.raises(OSError, match="No such file"):
        write_tensors(tmp_path / "none" / "w.safetensors", {"a": torch.ones(2)})
    shared = torch.zeros(4)
    with pytest.raises(RuntimeError, match="share memory"):
        write_tensors(tmp_path / "w.safetensors", {"a": shared, "b": shared})
    assert names(tmp_path) == {"w.safetensors"}
    assert torch.equal(load_file(tmp_path / "w.safetensors")["a"], torch.ones(2))


def test_a_folder_replaces_another_whole_or_not_at_all(tmp_path: Path) -> None:
    touch(tmp_path, "model/old")

    def interrupted() -> None:
        with folder_atomically(tmp_path / "model") as partial:
            touch(partial, "new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert names(tmp_path) == {"model/old"}
    with folder_atomically(tmp_path / "model") as partial:
        touch(partial, "below/new")
        assert names(tmp_path) == {"model/old", ".model.partial/below/new"}
    assert names(tmp_path) == {"model/below/new"}


def test_leftovers_of_ours_go_and_files_of_others_stay(tmp_path: Path) -> None:
    theirs = ("thesis.tex", ".thesis.tex.partial", "a.partial", "below/.b.bin.partial", "deep/below/.c.txt.partial")
    ours = (".a.txt.partial", "below/.b.txt.partial", ".model.partial/unet/config.json")
    touch(tmp_path, *theirs, *ours)
    locked(tmp_path).lock()
    assert names(tmp_path) == {*theirs, ".lock"}


@pytest.mark.parametrize("replaced", [False, True])
def test_a_kill_between_two_renames_loses_nothing(tmp_path: Path, replaced: bool) -> None:
    touch(tmp_path, ".model.old/weights", *(["model/new"] if replaced else []))
    locked(tmp_path).lock()
    assert names(tmp_path) == {".lock", "model/new" if replaced else "model/weights"}


def test_every_leftover_of_a_tuning_run_is_swept(tmp_path: Path) -> None:
    """Found by no sweep before: what lies in sub-folders, and what was named without the leading dot."""
    run = RunFolder(tmp_path / "run")
    run.start("seed: 0\n", {}, {})
    before = names(run.path)
    run.unlock()
    finished = [
        *(run.checkpoint(0, 3), run.best(0), run.model, run.stage_model(0)),
        *(run.metrics, run.curves, run.sheets / "0-000003.png", run.baseline_images / "0.safetensors"),
        run.latents(1) / "0123.safetensors",
    ]
    for path in finished:
        partial_path(path).parent.mkdir(parents=True, exist_ok=True)
        partial_path(path).touch()
    touch(run.path, "metrics.partial", "curves.partial", "checkpoints/baseline/0.partial", "checkpoints/.old.partial")
    run.start("seed: 0\n", {}, {})
    assert names(run.path) == before | {"checkpoints/.old.partial"}
    run.unlock()


def test_pixels_and_scores_of_a_killed_audit_are_swept(tmp_path: Path) -> None:
    audit = AuditFolder(tmp_path)
    touch(tmp_path, ".scores.parquet.partial", ".cxrsynth-audit/.0123.parquet.partial", ".cxrsynth-audit/0123.parquet")
    touch(tmp_path, ".cxrsynth-audit/.made.pixels", ".cxrsynth-audit/.reference.pixels")
    audit.start()
    assert names(tmp_path) == {".cxrsynth-audit/0123.parquet", ".cxrsynth-audit/lock"}
    audit.unlock()


def test_a_data_set_is_not_begun_beside_files_of_others(tmp_path: Path) -> None:
    touch(tmp_path, ".cxrsynth/lock", ".cxr-000000.tar.partial", ".rejected.csv.partial")
    assert not OutputFolder(tmp_path).check({})
    touch(tmp_path, ".thesis.tex.partial")
    with pytest.raises(ShardError, match="not empty"):
        OutputFolder(tmp_path).check({})


def test_a_data_set_that_another_run_is_beginning_is_not_taken_for_somebody_elses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one publishes its first shard between two looks at the folder."""
    half = tmp_path / ".cxr-000000.tar.partial"
    touch(tmp_path, ".cxrsynth/lock", half.name)
    sizes = LocalPlace.sizes

    def then_published(place: LocalPlace, folder: str = "") -> dict[str, int | None]:
        found = sizes(place, folder)
        if folder and half.exists():
            half.rename(tmp_path / "cxr-000000.tar")
        return found

    monkeypatch.setattr(LocalPlace, "sizes", then_published)
    assert not OutputFolder(tmp_path).check({})
    assert not half.exists()


@pytest.mark.parametrize("name", ["manifest.json", ".cxrsynth/plan.json"])
def test_a_plan_that_may_not_be_read_is_told_from_one_that_is_not_ours(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "cxr-000000.tar", name)
    for content in ("", "[]", '{"plan": 1}' if name == "manifest.json" else "1", "[" * 100_000):
        (tmp_path / name).write_text(content)
        with pytest.raises(ShardError, match="not a file cxrsynth wrote"):
            OutputFolder(tmp_path).check({})

    def refused(self: Path) -> bytes:
        if self.name in name:
            raise PermissionError(13, "Permission denied", str(self))
        raise FileNotFoundError(2, "No such file or directory", str(self))

    monkeypatch.setattr(Path, "read_bytes", refused)
    with pytest.raises(ShardError, match=f"{name}: Permission denied\n") as told:
        OutputFolder(tmp_path).check({})
    assert "choose a new" not in str(told.value)
    if name == "manifest.json":
        with pytest.raises(ShardError, match=f"{name}: Permission denied\n"):
            OutputFolder(tmp_path).verify()


def test_a_reader_study_with_real_images_outlives_only_the_scoring_of_its_answers(tmp_path: Path) -> None:
    audit = AuditFolder(tmp_path)
    touch(tmp_path, "reader-study.html", "report.html")
    audit.start(keep_study=True)
    audit.unlock()
    assert (tmp_path / "reader-study.html").exists()
    assert not (tmp_path / "report.html").exists()
    audit.start()
    audit.unlock()
    assert not (tmp_path / "reader-study.html").exists()


@pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")
def test_what_an_audit_knows_of_patients_is_its_owners_alone(tmp_path: Path) -> None:
    (tmp_path / ".cxrsynth-audit").mkdir(mode=0o755)  # of an earlier version
    audit = AuditFolder(tmp_path)
    audit.start()
    assert audit.parts.stat().st_mode & 0o777 == 0o700
    audit.unlock()


@pytest.mark.parametrize("make", [RunFolder, AuditFolder, OutputFolder])
def test_one_run_at_a_time(make: type[RunFolder | AuditFolder | OutputFolder], tmp_path: Path) -> None:
    def start(folder: RunFolder | AuditFolder | OutputFolder) -> None:
        if isinstance(folder, RunFolder):
            folder.start("seed: 0\n", {}, {})
        elif isinstance(folder, OutputFolder):
            folder.start({})
        else:
            folder.start()

    first, second = make(tmp_path), make(tmp_path)
    start(first)
    with pytest.raises(ShardError, match=r"another (run|audit) is writing there\n  wait for it, or stop it"):
        start(second)
    second.unlock()  # one that never had the lock gives up nothing
    with pytest.raises(ShardError, match="is writing there"):
        start(make(tmp_path))
    first.unlock()
    start(second)
    second.unlock()


@pytest.mark.slow
def test_a_killed_process_releases_its_lock(tmp_path: Path) -> None:
    module = "tests.runtime.hold_lock"
    holder = Warm(module, tmp_path / "out", log=tmp_path / "log")
    holder.kill_when(lambda: (tmp_path / "out" / "held").exists() and refused(tmp_path / "out"))
    assert holder.returncode == -9
    locked(tmp_path / "out").lock()


def refused(path: Path) -> bool:
    with pytest.raises(ShardError, match="another run is writing there"):
        locked(path).lock()
    return True


def test_messages_name_the_cause(tmp_path: Path) -> None:
    out = locked(tmp_path / "out")
    full = str(out.failure(OSError(errno.ENOSPC, "x")))
    assert full.startswith(
        f"--out {tmp_path / 'out'}: cannot write (No space left on device)\n  all is well; make room"
    )
    table = str(tmp_path / "reports.csv")
    read = str(out.failure(OSError(errno.EACCES, "x", table)))
    assert read.startswith(f"{table}: Permission denied\n")
    assert "cannot write" not in read
    ours = str(out.failure(OSError(errno.EACCES, "x", str(tmp_path / "out" / ".a.txt.partial"))))
    assert "cannot write (Permission denied)" in ours
    assert "cannot read or write (Input/output error)" in str(out.failure(OSError(errno.EIO, "x")))


def test_a_folder_that_cannot_be_made_is_reported(tmp_path: Path) -> None:
    touch(tmp_path, "file")
    with pytest.raises(ShardError, match=r"cannot write \(Not a directory\)"):
        locked(tmp_path / "file" / "out").lock()
    with pytest.raises(ShardError, match="is a file, expected a folder"):
        locked(tmp_path / "file").refuse_file()


def test_a_checkpoint_that_fails_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = {"w": torch.nn.Parameter(torch.ones(2))}
    learner = Learner(weights, torch.optim.AdamW(weights.values()))
    save_checkpoint(tmp_path / "0-000001", learner, {"iteration": 1})
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}

    def full(path: Path, tensors: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("cxrsynth.rl.checkpoint.write_tensors", full)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(tmp_path / "0-000001", learner, {"iteration": 2})
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before
