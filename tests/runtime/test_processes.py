"""What the launcher's environment variables say, or fail to say: one reader, before any work."""

import os
import socket
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from typer.testing import CliRunner

from cxrsynth.cli import app
from cxrsynth.errors import LaunchError
from cxrsynth.runtime.processes import Launch, ProcessGroup, join_processes, read_launch
from tests.generation.making import command, write_table
from tests.tuning.making import recipe, write_recipe

VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")


@pytest.fixture(autouse=True)
def _started_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*VARIABLES, "MASTER_ADDR", "MASTER_PORT", "PMI_SIZE", "PMI_RANK", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def set_to(monkeypatch: pytest.MonkeyPatch, values: str) -> None:
    for name, value in zip(VARIABLES, values.split(","), strict=True):
        if value != "-":
            monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("values", "launch"),
    [
        ("-,-,-,-", Launch()),
        (",,,", Launch()),
        (" , ,\t, ", Launch()),
        ("0,0,1,1", Launch()),
        ("5,1,8,4", Launch(5, 1, 8, 4)),
        ("5,5,8,", Launch(5, 5, 8, 1)),
        (" 1 ,1,2,2", Launch(1, 1, 2, 2)),
    ],
)
def test_what_a_launcher_sets(values: str, launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    set_to(monkeypatch, values)
    monkeypatch.setenv("MASTER_ADDR", "node-1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.setenv("PMI_SIZE", "")
    assert read_launch() == launch
    assert read_launch() == launch
    assert "PMI_SIZE" not in os.environ


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "WORLD_SIZE=2 without MASTER_ADDR and MASTER_PORT\n"),
        (
            {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "here", "MASTER_PORT": ""},
            "WORLD_SIZE=2 without MASTER_PORT",
        ),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "here", "MASTER_PORT": "x"}, "MASTER_PORT='x'\n"),
        (
            {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "here", "MASTER_PORT": "70000"},
            "MASTER_PORT=70000\n  expected: a port, 1 to 65535",
        ),
        ({"PMI_SIZE": "2", "PMI_RANK": "0"}, "PMI_SIZE=2, of an MPI launcher, without WORLD_SIZE\n"),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "OMPI_COMM_WORLD_SIZE=4, of an MPI launcher"),
        ({"PMI_SIZE": "two"}, "PMI_SIZE='two'\n  expected: a whole number"),
    ],
)
def test_processes_that_cannot_meet_are_refused(
    given: dict[str, str], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accelerate reads these, and raised; several separate runs would otherwise share one folder."""
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(LaunchError) as caught:
        read_launch()
    assert reason in str(caught.value)


def test_one_process_of_mpi_is_a_process_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PMI_SIZE": "1", "PMI_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert read_launch() == Launch()
    assert join_processes(cpu=True) == ProcessGroup()


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ("one,-,2,-", "RANK='one'\n  expected: a whole number"),
        ("-1,-,2,-", "RANK='-1'\n"),
        ("1.0,-,2,-", "RANK='1.0'\n"),
        ("²,-,2,-", "RANK='²'\n"),
        ("0,0,2,many", "LOCAL_WORLD_SIZE='many'\n"),
        ("2,0,2,2", "RANK=2\n  expected: a rank below WORLD_SIZE, which is 2"),
        ("1,-,-,-", "RANK=1\n  expected: a rank below WORLD_SIZE, which is 1"),
        ("0,2,4,2", "LOCAL_RANK=2\n  expected: a rank below LOCAL_WORLD_SIZE, which is 2"),
        ("0,4,4,-", "LOCAL_RANK=4\n  expected: a rank below WORLD_SIZE, which is 4"),
        ("0,0,2,3", "LOCAL_WORLD_SIZE=3\n  expected: 1 to WORLD_SIZE, which is 2"),
        ("0,0,2,0", "LOCAL_WORLD_SIZE=0\n"),
        ("0,0,0,-", "WORLD_SIZE=0\n  expected: at least 1"),
        ("-,-,2,-", "WORLD_SIZE=2 without RANK"),
    ],
)
def test_nonsense_is_refused(values: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    set_to(monkeypatch, values)
    with pytest.raises(LaunchError) as caught:
        read_launch()
    assert reason in str(caught.value)
    with pytest.raises(LaunchError):
        join_processes(cpu=True)


@pytest.mark.slow
@pytest.mark.parametrize("values", [",,,", "-,-,-,", ",-,-,-"])
def test_empty_variables_change_nothing(
    values: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`LOCAL_WORLD_SIZE=""` once made all images, then raised; `LOCAL_RANK=""` raised within accelerate."""
    set_to(monkeypatch, values)
    arguments = command(write_table(tmp_path / "few.csv"), tmp_path / "set", tiny_model, "--limit", "1")
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "1 image in 1 shard" in done.output
    set_to(monkeypatch, values)
    path = write_recipe(tmp_path, recipe(tiny_model, iterations=1, rewards={"posture": {}}))
    tuned = CliRunner().invoke(app, ["tune", str(path), "--out", str(tmp_path / "run")])
    assert tuned.exit_code == 0, tuned.output
    assert "tuned; use it with" in tuned.output


@pytest.mark.parametrize("name", ["RANK", "LOCAL_WORLD_SIZE"])
def test_every_command_refuses_nonsense_before_any_work(
    name: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, path = write_table(tmp_path / "few.csv"), write_recipe(tmp_path, recipe(tiny_model, iterations=1))
    monkeypatch.setenv(name, "x")
    for arguments in (
        command(table, tmp_path / "set", tiny_model),
        ["tune", str(path), "--out", str(tmp_path / "run")],
        ["audit", str(tmp_path), "--out", str(tmp_path / "audit")],
    ):
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 2
        assert f"{name}='x'" in done.output.replace("\n", " ")
        assert "Traceback" not in done.output
    assert not [name for name in ("set", "run", "audit") if (tmp_path / name).exists()]


@pytest.mark.parametrize("device", ["cuda", "auto"])
def test_a_process_for_which_there_is_no_gpu_is_refused(
    device: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `torchrun --nproc-per-node 2` starts one on a machine with one GPU; CUDA raised."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    set_to(monkeypatch, "1,1,2,2")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "1")
    content = recipe(tiny_model, iterations=1)
    content["model"]["device"] = device
    path, images = write_recipe(tmp_path, content), tmp_path / "images"
    images.mkdir()
    for option, arguments in (
        ("--device", command(tmp_path / "reports.csv", tmp_path / "set", tiny_model, "--device", device)),
        (f"{path}: model.device", ["tune", str(path), "--out", str(tmp_path / "run")]),
        ("--device", ["audit", str(images), "--out", str(tmp_path / "audit"), "--device", device]),
    ):
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 2, done.output
        assert "error: [rank 1] environment: LOCAL_RANK=1\n" in done.output
        assert "GPUs that this process sees, which is 1\n" in done.output
        assert f"or use: {option} cpu\n" in done.output
    assert not [name for name in ("set", "run", "audit") if (tmp_path / name).exists()]


def test_a_meeting_place_that_is_taken_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    PartialState._reset_state()  # of a test before this one in the same process: it would not meet anybody again
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        set_to(monkeypatch, "0,0,2,2")
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", port)
        with pytest.raises(LaunchError, match=rf"MASTER_PORT={port}: the processes of this run cannot meet there"):
            join_processes(cpu=True)
    PartialState._reset_state()  # it keeps what it had before it failed


def test_a_process_alone_has_all_the_work() -> None:
    alone = join_processes(cpu=True)
    assert alone == ProcessGroup()
    assert alone.is_main
    assert alone.share([1, 2, 3]) == [1, 2, 3]
    assert alone.gather([1, 2]) == [1, 2]
    alone.wait()
    shares = [ProcessGroup(rank, rank, 3).share(range(8)) for rank in range(3)]
    assert sorted(place for share in shares for place in share) == list(range(8))
