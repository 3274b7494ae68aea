"""`python -m tests.benchmarks.scale`: what grows from 10,000 rows to a million, in time and in memory.

`plan`: all that `generate` does before the first image: it reads the table, checks every row, draws up the plan, orders
the rows by their keys and loads the model, which is a few channels wide (built in code by tests/conftest.py). `short`
reports have 67 characters, `usual` ones findings and an impression of 670 together.

`dry run`: all of `generate --dry-run`, on usual reports.

`decide`: what an audit does with the scores of a set (rules, summary, scores.parquet, keep.csv), on scores made up
here.

Each measurement is a process of its own; memory is its peak resident set, less that of the same process with 100 rows.
"""

import argparse
import csv
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from tests.conftest import build_tiny_model

_FEW = 100
_SENTENCES = (
    "The heart is mildly enlarged.",
    "There is a small left pleural effusion with adjacent atelectasis.",
    "No pneumothorax is seen.",
    "The lungs are otherwise clear without focal consolidation.",
    "Degenerative changes of the thoracic spine are noted.",
    "A right internal jugular catheter ends in the superior vena cava.",
    "Mediastinal contours are within normal limits.",
    "Low lung volumes accentuate the bronchovascular markings.",
)
_MEASURE = """
def measured(work):
    import resource, sys, time
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sys.stdout.write(f"{time.perf_counter() - wall} {time.process_time() - cpu} {peak}")
"""
_PLAN = """
import sys
from pathlib import Path
from cxrsynth.generation import generate
from cxrsynth.settings import Device, GenerateSettings, SamplingSettings
settings = GenerateSettings(reports=Path(sys.argv[1]), out=Path(sys.argv[2]), model=sys.argv[3],
    id_key=Path(sys.argv[4]), sampling=SamplingSettings(steps=2, device=Device.CPU))
class Planned(Exception):
    pass
def stop(*arguments):
    raise Planned
generate._make_shards = stop
def work():
    try:
        generate.generate(settings)
    except Planned:
        return
    raise AssertionError("generate made no shards, or elsewhere")
measured(work)
"""
_DRY_RUN = """
import sys
from dataclasses import replace
from pathlib import Path
from cxrsynth.generation import generate
from cxrsynth.settings import Device, GenerateSettings, SamplingSettings
settings = GenerateSettings(reports=Path(sys.argv[1]), out=Path(sys.argv[2]), model=sys.argv[3],
    id_key=Path(sys.argv[4]), sampling=SamplingSettings(steps=2, device=Device.CPU), dry_run=True)
measured(lambda: generate.generate(settings))
"""
_DECIDE = """
import sys
from pathlib import Path
import numpy as np
import pyarrow as pa
from cxrsynth.auditing.decide import Rules, decide
from cxrsynth.auditing.score_table import scores_table, summaries, write_keep_list, write_scores
count, out = int(sys.argv[1]), Path(sys.argv[2])
rng = np.random.default_rng(0)
findings = [["Edema"], ["Cardiomegaly", "Edema"], ["Pneumonia"], []]
def scores(first, count):
    columns = {f"reward_{name}": rng.normal(size=count).astype(np.float32) for name in ("posture", "diagnosis")}
    columns |= {"check_blank": np.zeros(count, np.float32)}
    columns |= {"key": [f"{first + row:020x}-00" for row in range(count)], "source": ["x.tar"] * count}
    columns |= {"place": np.arange(count), "present": [findings[row % 4] for row in range(count)]}
    columns |= {"absent": [[]] * count, "checks_failed": [["blank"] if row % 50 == 0 else [] for row in range(count)]}
    return pa.table({name: pa.array(column) for name, column in columns.items()})
def work():
    table = scores_table([scores(first, min(1000, count - first)) for first in range(0, count, 1000)])
    decided = decide(table, Rules(at_least={"posture": -2.0}, keep_fraction=0.5))
    summaries(decided)
    write_scores(out / "scores.parquet", decided)
    write_keep_list(out / "keep.csv", decided)
measured(work)
"""


@dataclass(frozen=True)
class Cost:
    """What some rows took. `memory_mb` is the peak of the process."""

    wall_s: float
    cpu_s: float
    memory_mb: float


def _run(code: str, *arguments: object) -> Cost:
    command = [sys.executable, "-W", "ignore", "-c", _MEASURE + code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    wall, cpu, peak = done.stdout.split()[-3:]
    return Cost(float(wall), float(cpu), int(peak) / (1024 if sys.platform != "darwin" else 1024**2))


def _write_reports(path: Path, count: int, *, usual: bool) -> Path:
    rng = np.random.default_rng(0)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["report_id", "findings", "impression", "view", "sex", "age"])
        for row in range(count):
            findings = " ".join(_SENTENCES[place] for place in rng.integers(len(_SENTENCES), size=12)) if usual else ""
            impression = f"Nodule of {row % 30} mm in the left lung. No effusion. Heart size is normal."
            writer.writerow([f"id-{row}", findings, impression, ("PA", "AP")[row % 2], "FM"[row % 2], 20 + row % 60])
    return path


def _generate(code: str, count: int, folder: Path, *, usual: bool) -> Cost:
    model, key = folder / "tiny", folder / "id.key"
    if not model.exists():
        build_tiny_model(model)
        key.write_text("0123456789abcdef" * 2)
        key.chmod(0o600)
    table = _write_reports(folder / "reports.csv", count, usual=usual)
    return _run(code, table, folder / "out", model, key)


def plan_short(count: int, folder: Path) -> Cost:
    """Planning of a table with so many short reports."""
    return _generate(_PLAN, count, folder, usual=False)


def plan_usual(count: int, folder: Path) -> Cost:
    """Planning of a table with so many reports of usual length."""
    return _generate(_PLAN, count, folder, usual=True)


def dry_run(count: int, folder: Path) -> Cost:
    """A dry run on so many reports of usual length."""
    return _generate(_DRY_RUN, count, folder, usual=True)


def decide(count: int, folder: Path) -> Cost:
    """Decisions on so many scored images."""
    return _run(_DECIDE, count, folder)


def main() -> None:
    """Print time, memory and how both grow."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    kinds = {"plan, short": plan_short, "plan, usual": plan_usual, "dry run": dry_run, "decide": decide}
    parser.add_argument("--only", choices=list(kinds))
    options = parser.parse_args()
    shown = Table("what", "rows", "time", "CPU time", "memory above 100 rows", "bytes a row")
    ratios = []
    with tempfile.TemporaryDirectory() as name:
        for what, measure in kinds.items():
            if options.only not in (None, what):
                continue
            costs = {count: measure(count, Path(name)) for count in options.rows}
            # Of one count nothing can grow.
            few = measure(_FEW, Path(name)) if len(costs) > 1 else next(iter(costs.values()))
            for count, cost in costs.items():
                more = cost.memory_mb - few.memory_mb
                shown.add_row(
                    what,
                    f"{count:,}",
                    f"{cost.wall_s:.1f} s",
                    f"{cost.cpu_s:.1f} s",
                    f"{more:.0f} MB of {cost.memory_mb:.0f}",
                    f"{more * 2**20 / count:.0f}",
                )
            first, *_, last = costs.values() if len(costs) > 1 else (few, *costs.values())
            ratios.append(f"{what}: memory, largest to smallest: ratio {last.memory_mb / first.memory_mb:.2f}")
    console = Console()
    console.print(shown)
    console.print("\n".join(ratios))


if __name__ == "__main__":
    main()
