"""`generate --compile`: the same images but for their last bits, made again to the byte, or refused before anything."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters
from typer.testing import CliRunner

from cxrsynth.cli import app
from tests.generation.making import command, hashes, write_table
from tests.gpu.report import pixels

# Seven reports: a batch of three, one of three, and one that is filled up.
OPTIONS = ("--batch-size", "3", "--limit", "7")


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")
    torch._dynamo.reset()
    return write_table(tmp_path / "reports.csv")


def generate(table: Path, out: Path, model: Path, *options: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, command(table, out, model, *OPTIONS, *options))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout + result.stderr


@pytest.mark.slow
def test_compiled_images(tiny_model: Path, table: Path, tmp_path: Path) -> None:
    plain, out, again = (tmp_path / name for name in ("plain", "out", "again"))
    assert generate(table, plain, tiny_model)[0] == 0
    counters.clear()
    code, printed = generate(table, out, tiny_model, "--compile")
    assert code == 0, printed
    assert "compiled in " in printed
    assert counters["stats"]["unique_graphs"] == 1  # nor is the last batch compiled anew, with its one image of three
    counters.clear()
    assert generate(table, again, tiny_model, "--compile")[0] == 0
    assert hashes(again) == hashes(out)
    difference = np.abs(pixels(out).astype(float) - pixels(plain).astype(float))
    assert difference.max() <= 1
    # As another way to draw: the one set does not go on as the other.
    code, printed = generate(table, out, tiny_model)
    assert code == 2
    assert "compiled" in printed


@pytest.mark.slow
def test_the_dry_run_compiles(tiny_model: Path, table: Path, tmp_path: Path) -> None:
    code, printed = generate(table, tmp_path / "out", tiny_model, "--compile", "--dry-run")
    assert code == 0, printed
    assert "before that, compiling: " in printed


@pytest.mark.slow
def test_without_a_compiler_nothing_is_written(tiny_model: Path, table: Path, tmp_path: Path) -> None:
    """In a process of its own: torch looks for a compiler once."""
    arguments = command(table, tmp_path / "out", tiny_model, *OPTIONS, "--compile")
    missing = {"CXX": str(tmp_path / "no-compiler")}
    done = subprocess.run(
        [sys.executable, "-m", "cxrsynth", *arguments], env=os.environ | missing, capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    assert "--compile: torch cannot compile the network here: No working C++ compiler found" in done.stderr
    assert "leave --compile out" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
