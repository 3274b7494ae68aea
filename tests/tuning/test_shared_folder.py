"""Processes of a run find out whether they write to one folder; here each is a thread."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cxrsynth.errors import LaunchError
from cxrsynth.runtime.processes import ProcessGroup
from cxrsynth.tuning.run_folder import RunFolder
from cxrsynth.tuning.shared_folder import refuse_folders_apart


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


def said(folders: Sequence[Path], *, complete: Sequence[bool] = (False, False)) -> list[str]:
    """What two processes say, each with its own folder."""
    table = Table()

    def one(rank: int) -> str:
        group = Threads(rank, rank, 2, table=table)
        try:
            refuse_folders_apart(group, RunFolder(folders[rank]), complete=complete[rank])
        except LaunchError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(one, range(2)))


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cxrsynth.tuning.shared_folder._VISIBLE_S", 0.2)


@pytest.mark.parametrize("there", [False, True])
def test_a_shared_folder_is_left_as_it_was(there: bool, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    if there:
        folder.mkdir()
        (folder / "recipe.yaml").write_text("seed: 0")
    assert said([folder, folder]) == ["", ""]
    assert [path.name for path in tmp_path.rglob("*")] == (["run", "recipe.yaml"] if there else [])


@pytest.mark.parametrize("complete", [(False, False), (True, False), (False, True)])
def test_folders_apart_are_refused_by_both(complete: tuple[bool, bool], tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    found = said(folders, complete=complete)
    for folder, message in zip(folders, found, strict=True):
        assert message.startswith(
            f"--out {folder}: 1 process of 2 (rank 1) did not find there what the first one wrote"
        )
    assert not list(tmp_path.iterdir())


def test_nothing_is_written_where_all_find_the_model(tmp_path: Path) -> None:
    assert said([tmp_path / "one", tmp_path / "two"], complete=(True, True)) == ["", ""]
    assert not list(tmp_path.iterdir())
