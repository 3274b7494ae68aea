"""The benchmarks of speed run: at the smallest size, where their numbers mean nothing."""

import re
import subprocess
import sys

import pytest

SMALL = {
    "generate_speed": ["--rounds", "1", "--steps", "2", "--images-per-report", "1"],
    "tune_speed": ["--rounds", "1", "--reports", "1", "--images", "2", "--batch", "2"],
    "audit_speed": ["--rounds", "1", "--images", "8"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_a_benchmark_prints_its_ratio(name: str) -> None:
    command = [sys.executable, "-m", f"tests.benchmarks.{name}", *SMALL[name]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    ratio = re.search(r"ratio[^\d]*(\d+\.\d+)", done.stdout + done.stderr)
    assert ratio is not None
    assert float(ratio[1]) > 0
