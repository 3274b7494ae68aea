"""Images encoded in worker processes: the same bytes, also where a worker or the run is stopped."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from cxrsynth.cli import app
from cxrsynth.generation import encoding
from cxrsynth.generation.encoding import default_workers
from cxrsynth.shards.folder import OutputFolder
from tests.generation.making import command, hashes, write_table
from tests.processes import TIMEOUT_S

FORMATS = {
    "webdataset": ("--include-text", "sanitized"),
    "dicom": ("--format", "dicom"),
}


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return write_table(tmp_path / "reports.csv")


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout + result.stderr


@pytest.mark.parametrize("kind", ["webdataset", "dicom"])
def test_workers_change_no_byte(kind: str, tiny_model: Path, table: Path, tmp_path: Path) -> None:
    for workers in ("0", "2"):
        code, printed = run(*command(table, tmp_path / workers, tiny_model, *FORMATS[kind], "--workers", workers))
        assert code == 0, printed
    assert hashes(tmp_path / "2") == hashes(tmp_path / "0")


def test_images_are_encoded_by_the_workers_alone(
    tiny_model: Path, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def here(*_: Any) -> None:
        raise AssertionError("encoded in this process")

    monkeypatch.setattr("cxrsynth.shards.encode.encode_image", here)
    assert run(*command(table, tmp_path / "out", tiny_model, "--workers", "1", "--limit", "2"))[0] == 0
    with pytest.raises(AssertionError, match="encoded in this process"):
        run(*command(table, tmp_path / "here", tiny_model, "--workers", "0", "--limit", "2"))


def test_the_thread_that_draws_does_not_wait_for_its_images(
    tiny_model: Path, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CUDA device it would leave the card idle: the one that writes waits for them, and reads them only then."""
    drawing: set[int] = set()
    waiting: list[int] = []

    class Late:
        """A copy that holds nothing until it is waited for, as one that a card is still at work on."""

        def __init__(self, tensor: torch.Tensor) -> None:
            drawing.add(threading.get_ident())
            self._whole, self._copied = tensor.clone(), torch.full_like(tensor, torch.nan)

        def wait(self) -> torch.Tensor:
            waiting.append(threading.get_ident())
            with torch.inference_mode():
                return self._copied.copy_(self._whole)

    assert run(*command(table, tmp_path / "plain", tiny_model))[0] == 0
    monkeypatch.setattr("cxrsynth.diffusion.sampler.HostCopy", Late)
    code, printed = run(*command(table, tmp_path / "late", tiny_model))
    assert code == 0, printed
    assert hashes(tmp_path / "late") == hashes(tmp_path / "plain")
    assert set(waiting) == {threading.get_ident()}
    assert threading.get_ident() not in drawing


def test_a_killed_worker_gives_one_message_and_a_folder_to_resume(
    tiny_model: Path, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    ones = ("--shard-size", "1", "--batch-size", "1")
    assert run(*command(table, whole, tiny_model, *ones))[0] == 0
    started: list[encoding.EncodingPool] = []
    enter, publish = encoding.EncodingPool.__enter__, OutputFolder.publish

    def entered(self: encoding.EncodingPool) -> encoding.EncodingPool:
        started.append(self)
        return enter(self)

    def published(self: OutputFolder, *arguments: Any) -> None:
        publish(self, *arguments)
        for worker in started[-1]._processes._started:
            worker._process.kill()

    with monkeypatch.context() as patch:
        patch.setattr(encoding.EncodingPool, "__enter__", entered)
        patch.setattr(OutputFolder, "publish", published)
        code, printed = run(
            *command(table, out, tiny_model, "--workers", "1", "--shard-size", "1", "--batch-size", "1")
        )
    assert code == 2
    assert printed.count("error:") == 1
    assert "--workers: a process that encodes images ended by SIGKILL" in printed
    assert "Traceback" not in printed
    assert list(out.glob("cxr-*.tar"))
    assert not list(out.rglob("*.partial"))
    # Another number of workers resumes: it is not in the plan.
    code, printed = run(*command(table, out, tiny_model, "--workers", "0", *ones))
    assert code == 0, printed
    assert hashes(out) == hashes(whole)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_to_the_whole_group_stops_the_run_as_without_workers(
    name: str, code: int, tiny_model: Path, table: Path, tmp_path: Path
) -> None:
    out, number = tmp_path / "out", signal.Signals[name]
    arguments = command(table, out, tiny_model, "--images-per-report", "9", "--shard-size", "2", "--workers", "2")
    process = subprocess.Popen(
        [sys.executable, "-m", "cxrsynth", *arguments],
        env=os.environ | {"XDG_DATA_HOME": str(tmp_path / "data")},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
        start_new_session=True,
    )
    while not list(out.glob("cxr-000001.tar")):
        assert process.poll() is None, process.communicate()[1]
    os.killpg(process.pid, number)
    stderr = process.communicate(timeout=TIMEOUT_S)[1]
    assert process.returncode == code, stderr
    assert "Run the same command again to resume." in stderr
    assert "Traceback" not in stderr
    assert "--workers" not in stderr
    assert not list(out.rglob("*.partial"))


@pytest.mark.parametrize(("cores", "processes", "expected"), [(1, 1, 0), (3, 1, 1), (64, 1, 4), (16, 8, 0), (24, 8, 1)])
def test_workers_beside_a_card_leave_cores_to_draw_and_write(
    cores: int, processes: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    for name, value in {"RANK": 0, "WORLD_SIZE": processes, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": processes}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    assert default_workers(torch.device("cuda", 0)) == expected
    assert default_workers(torch.device("cpu")) == 0


def test_encoding_imports_no_torch(tmp_path: Path) -> None:
    modules = "cxrsynth.runtime.worker, cxrsynth.shards.encode, cxrsynth.shards.dicom"
    code = f"import sys; sys.path[:] = {sys.path!r}; import {modules}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == "False"
