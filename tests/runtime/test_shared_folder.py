"""Processes of a run find out whether they write to one folder; here each is a thread."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from cxrsynth.auditing.folder import AuditFolder
from cxrsynth.errors import LaunchError
from cxrsynth.runtime.folder import LockedFolder
from cxrsynth.runtime.processes import ProcessGroup
from cxrsynth.runtime.shared_folder import refuse_folders_apart
from cxrsynth.shards.folder import OutputFolder
from cxrsynth.tuning.run_folder import RunFolder
from tests.generation.making import command, write_table
from tests.processes import Warm, process_group


def _generate(home: Path, out: Path, model: Path) -> list[str]:
    return command(write_table(home / "reports.csv"), out, model)


def _audit(home: Path, out: Path, model: Path) -> list[str]:
    (home / "images").mkdir(exist_ok=True)
    Image.new("L", (64, 64), 128).save(home / "images" / "one.png")
    return ["audit", str(home / "images"), "--out", str(out), "--device", "cpu"]


@dataclass
class Table:
    """Where two threads lay down what they have."""

    barrier: threading.Barrier = field(default_factory=lambda: threading.Barrier(2, timeout=20))
    values: dict[int, Any] = field(default_factory=dict)

    def exchange(self, rank: int, value: Any) -> list[Any]:
        self.values[rank] = value
        self.barrier.wait()
        found = [self.values[one] for one in range(2)]
        self.barrier.wait()
        return found


@dataclass(frozen=True)
class Threads(ProcessGroup):
    table: Table = field(default_factory=Table)

    def add_up(self, tensor: Tensor) -> Tensor:
        return torch.stack(self.table.exchange(self.rank, tensor)).sum(0)

    def of_first(self, tensor: Tensor) -> Tensor:
        found: Tensor = self.table.exchange(self.rank, tensor)[0]
        return found

    def wait(self) -> None:
        self.table.exchange(self.rank, None)


# What `tune`, `audit` and `generate` write to.
_Kind = type[RunFolder] | type[AuditFolder] | type[OutputFolder]
_KINDS = (RunFolder, AuditFolder, OutputFolder)


def said(kind: _Kind, folders: Sequence[Path], *, complete: Sequence[bool] = (False, False)) -> list[str]:
    """What two processes say, each with its own folder."""
    table = Table()

    def one(rank: int) -> str:
        group = Threads(rank, rank, 2, table=table)
        locked = kind(folders[rank]).locked
        assert locked is not None
        try:
            refuse_folders_apart(group, locked, complete=complete[rank])
        except LaunchError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(one, range(2)))


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cxrsynth.runtime.shared_folder._VISIBLE_S", 0.2)


@pytest.mark.parametrize("kind", _KINDS)
@pytest.mark.parametrize("there", [False, True])
def test_a_shared_folder_is_left_as_it_was(there: bool, kind: _Kind, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    if there:
        folder.mkdir()
        (folder / "recipe.yaml").write_text("seed: 0")
    assert said(kind, [folder, folder]) == ["", ""]
    assert [path.name for path in tmp_path.rglob("*")] == (["run", "recipe.yaml"] if there else [])


@pytest.mark.parametrize("kind", _KINDS)
@pytest.mark.parametrize("complete", [(False, False), (True, False), (False, True)])
def test_folders_apart_are_refused_by_both(complete: tuple[bool, bool], kind: _Kind, tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    found = said(kind, folders, complete=complete)
    for folder, message in zip(folders, found, strict=True):
        assert message.startswith(
            f"--out {folder}: 1 process of 2 (rank 1) did not find there what the first one wrote"
        )
    assert not list(tmp_path.iterdir())


def test_a_folder_stays_where_other_parts_may_start(tmp_path: Path) -> None:
    locked = OutputFolder(tmp_path / "set").locked
    assert locked is not None
    table = Table()
    with ThreadPoolExecutor(2) as pool:
        groups = [Threads(rank, rank, 2, table=table) for rank in range(2)]
        list(pool.map(lambda group: refuse_folders_apart(group, locked, complete=False, others=True), groups))
    assert [path.name for path in tmp_path.rglob("*")] == ["set", ".cxrsynth"]


def test_nothing_is_written_where_all_find_the_model(tmp_path: Path) -> None:
    assert said(RunFolder, [tmp_path / "one", tmp_path / "two"], complete=(True, True)) == ["", ""]
    assert not list(tmp_path.iterdir())


def test_nothing_is_refused_where_another_run_has_removed_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever completes a data set removes half-written files of all."""
    monkeypatch.setattr(LockedFolder, "write_token", lambda folder, token: folder.make())
    assert said(OutputFolder, [tmp_path / "set", tmp_path / "set"]) == ["", ""]


@pytest.mark.parametrize("kind", _KINDS)
def test_what_a_killed_run_leaves_is_removed_by_the_next(kind: _Kind, tmp_path: Path) -> None:
    locked = kind(tmp_path / "out").locked
    assert locked is not None
    token = locked.token(1)
    locked.write_token(token)
    locked.lock()
    locked.unlock()
    assert not token.exists()


@pytest.mark.slow
@pytest.mark.parametrize("command_of", [_generate, _audit])
def test_processes_with_folders_of_their_own_end_before_any_work(
    command_of: Callable[[Path, Path, Path], list[str]], tiny_model: Path, tmp_path: Path
) -> None:
    with process_group(2) as environments:
        both = [
            Warm(
                "cxrsynth",
                *command_of(tmp_path, tmp_path / f"out-{rank}", tiny_model),
                log=tmp_path / f"{rank}.log",
                environment=own | {"HF_HUB_OFFLINE": "1"},
            )
            for rank, own in enumerate(environments)
        ]
        assert [process.wait() for process in both] == [2, 2], [process.printed() for process in both]
    assert "(rank 1) did not find there what the first one wrote" in both[0].printed()
    assert not list(tmp_path.glob("out-*"))
