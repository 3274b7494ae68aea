"""`python -m tests.benchmarks.audit_speed`: scoring against bare forward passes of the same networks, within one run.

Bare: the same batches, already decoded and in memory, through the same networks in parallel on the same cores, and
nothing else. Scored: everything `cxrsynth audit` does with a shard of PNGs, from reading to the rows on disk, with
decoding, quality checks, thumbnails and previews. Where the cores are busy all the time, the ratio of CPU times is the
most that moving work to other processes could reach. `--judge` may name heavier networks, as on the command line: with
nano's tiny ones everything else dominates.
"""

import argparse
import io
import tarfile
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from cxrsynth.auditing.scorer import IMAGE_SIZE
from cxrsynth.auditing.scoring import score_collection
from cxrsynth.auditing.setup import open_audit
from cxrsynth.options import parse_judges
from cxrsynth.reports.table.rows import Report
from cxrsynth.runtime.pool import OrderedPool
from cxrsynth.settings import AuditSettings


def main() -> None:
    """Print both speeds and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--judge", action="append", default=[])
    parser.add_argument("--features", default="nano-judge")
    options = parser.parse_args()
    bare, scored = [], []
    with tempfile.TemporaryDirectory() as folder:
        shard = _shard(Path(folder) / "images.tar", options.images)
        for turn in range(options.rounds):
            settings = AuditSettings(
                shards=shard,
                out=Path(folder) / f"out-{turn}",
                judges=parse_judges(options.judge),
                features=options.features,
                batch_size=options.batch_size,
            )
            run = open_audit(settings)
            run.folder.start()
            scored.append(_timed(lambda run=run: score_collection(run, run.images, what="images"), options.images))
            radiographs = [
                radiograph.pixels for radiograph in run.images.collection.read(run.images.collection.units[0])
            ]
            images = torch.from_numpy(np.stack(radiographs))[:, None]
            bare.append(_timed(lambda run=run, images=images: _bare(run, images, options.batch_size), options.images))
            run.folder.unlock()
    table = Table("measure", "value")
    for name, costs in {"bare forward passes": bare, "audit's scoring": scored}.items():
        table.add_row(f"{name}, images/s", ", ".join(f"{cost.rate:.1f}" for cost in costs))
        table.add_row(f"{name}, CPU ms an image", ", ".join(f"{cost.cpu_ms:.1f}" for cost in costs))
        table.add_row(f"{name}, cores busy", ", ".join(f"{cost.busy:.2f}" for cost in costs))
    rates, times = [cost.rate for cost in scored], [cost.cpu_ms for cost in scored]
    table.add_row("ratio (best of each)", f"{max(rates) / max(cost.rate for cost in bare):.2f}")
    table.add_row("the same of CPU times", f"{min(cost.cpu_ms for cost in bare) / min(times):.2f}")
    table.add_row("threads", str(torch.get_num_threads()))
    Console().print(table)


@dataclass(frozen=True)
class Cost:
    """Images a second, CPU time an image of all threads, and how many cores were busy on average."""

    rate: float
    cpu_ms: float
    busy: float


def _timed(work: object, radiographs: int) -> Cost:
    wall, cpu = time.perf_counter(), time.process_time()
    work()  # type: ignore[operator]
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return Cost(radiographs / wall, 1000 * cpu / radiographs, cpu / wall)


def _bare(run: object, images: torch.Tensor, batch_size: int) -> None:
    """Every network the scorer has, on batches in memory."""
    scorer = run.scorer  # type: ignore[attr-defined]
    reports = [Report(report_id=str(place), line=0) for place in range(batch_size)]

    def forward(batch: torch.Tensor) -> None:
        with torch.inference_mode():
            for reward in scorer.suite.rewards.values():
                reward(batch, reports[: len(batch)])
            scorer.extractor(batch)
            scorer.register(batch)

    with OrderedPool(torch.get_num_threads(), threads=1) as pool:
        for _ in pool.map_in_order(forward, images.split(batch_size)):
            pass


def _shard(path: Path, radiographs: int) -> Path:
    """PNGs of 256 pixels, smooth with some grain: they compress about as images do."""
    rng = np.random.default_rng(0)
    with tarfile.open(path, "w") as tar:
        for place in range(radiographs):
            coarse = Image.fromarray(rng.integers(30, 220, (12, 12), dtype=np.uint8))
            smooth = np.asarray(coarse.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC), dtype=np.float64)
            grain = np.clip(smooth + rng.normal(0, 3, smooth.shape), 0, 255).astype(np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(grain).save(buffer, "PNG")
            info = tarfile.TarInfo(f"{place:06d}.png")
            info.size = len(buffer.getvalue())
            tar.addfile(info, io.BytesIO(buffer.getvalue()))
    return path


if __name__ == "__main__":
    main()
