"""`python -m tests.benchmarks.generate_memory`: peak memory of `generate` at 1,000 and at 10,000 reports.

The model is a few channels wide (built in code by tests/conftest.py), so that what grows would show.
"""

import csv
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from tests.conftest import build_tiny_model

_CODE = """
import resource, sys
from pathlib import Path
from cxrsynth.generation.generate import generate
from cxrsynth.settings import *
generate(GenerateSettings(reports=Path(sys.argv[1]), out=Path(sys.argv[2]), model=sys.argv[3],
    sampling=SamplingSettings(steps=1, guidance=1.0, batch_size=50), shards=ShardSettings(size=250)))
sys.stdout.write(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
"""


def peak_memory_mb(reports: int, folder: Path, model: Path) -> float:
    """Peak resident set of one run over a table of `reports` rows."""
    table = folder / f"reports-{reports}.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["report_id", "report"])
        for row in range(reports):
            writer.writerow([f"id-{row}", f"Nodule of {row} mm in the left lung. No effusion. Heart size is normal."])
    command = [sys.executable, "-c", _CODE, str(table), str(folder / f"out-{reports}"), str(model)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout) / (1024 if sys.platform != "darwin" else 1024**2)


def main() -> None:
    """Print both peaks and their ratio."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = build_tiny_model(folder / "tiny")
        few, many = (peak_memory_mb(count, folder, model) for count in (1_000, 10_000))
    Console().print(f"1,000 reports: {few:.0f} MB; 10,000 reports: {many:.0f} MB; ratio {many / few:.3f}")


if __name__ == "__main__":
    main()
