"""`audit`: images in, evidence out: who is kept and why."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from cxrsynth import console
from cxrsynth.auditing.conclude import conclude
from cxrsynth.auditing.setup import AuditRun, Examined, open_audit
from cxrsynth.console import Advance
from cxrsynth.errors import ShardError
from cxrsynth.images.collection import Unit
from cxrsynth.images.image import Damaged, Radiograph
from cxrsynth.runtime.memory import memory_advice
from cxrsynth.runtime.pool import OrderedPool
from cxrsynth.settings import AuditSettings


@dataclass(frozen=True)
class AuditReport:
    """What an audit found; `summary` is summary.json. `passed` decides the exit code."""

    out: Path
    summary: dict[str, Any]

    @property
    def passed(self) -> bool:
        """Whether every stated minimum was reached."""
        return not self.summary["failed"]


def audit(settings: AuditSettings) -> AuditReport | None:
    """Score every image, decide, and write the findings; units scored before are not scored again.

    None in every process but the main one.

    Raises:
        RecipeError, ReportsError, ModelError, ShardError: for what the user can mend.
    """
    run = open_audit(settings)
    try:
        if run.processes.is_main:
            run.folder.start()
        run.processes.wait()
        with memory_advice("lower --batch-size"):
            score_collection(run, run.made, what="images")
            if run.reference is not None:
                score_collection(run, run.reference, what="reference images")
        run.processes.wait()
        return AuditReport(run.folder.path, conclude(run)) if run.processes.is_main else None
    except OSError as error:
        raise run.folder.failure(error) from None
    finally:
        run.folder.unlock()


@dataclass(frozen=True)
class _Batch:
    """Images scored together, of one unit; `last` ends it, with all that could not be read of it."""

    unit: Unit
    radiographs: list[Radiograph]
    last: bool = False
    damaged: list[Damaged] = field(default_factory=list)


def score_collection(run: AuditRun, examined: Examined, *, what: str) -> None:
    """Score the units that fall to this process; batches go side by side, decoding runs ahead of them."""
    on_cpu = run.scorer.device.type == "cpu"
    threads = torch.get_num_threads()
    pool = OrderedPool(threads if on_cpu else 1, threads=1 if on_cpu else threads)
    total = (examined.collection.manifest or {}).get("counts", {}).get("samples")
    with console.image_progress(total, quiet=not run.processes.is_main, what=what) as advance, pool:
        whole = probes_of_a_unit(run.settings.probes, examined) if examined is run.reference else 0

        def rows_of(batch: _Batch) -> pa.Table | None:
            return run.scorer(batch.radiographs, whole=whole > 0) if batch.radiographs else None

        rows: list[pa.Table] = []
        for batch, scored in pool.map_in_order(rows_of, _batches(run, examined, advance)):
            if scored is not None:
                rows.append(scored)
                advance(scored.num_rows)
            if batch.last:
                examined.parts.write(batch.unit, rows, batch.damaged, run.scorer.schema(), whole=whole)
                rows = []


def probes_of_a_unit(probes: int, examined: Examined) -> int:
    """Images of each unit kept whole, to plant near-duplicates of: enough for `probes` in all, in uneven units too."""
    return math.ceil(2 * probes / len(examined.collection.units))


def _batches(run: AuditRun, examined: Examined, advance: Advance) -> Iterator[_Batch]:
    """The batches of the units this process has still to score. No batch spans two units."""
    for index, unit in enumerate(examined.collection.units):
        if index % run.processes.count != run.processes.rank:
            continue
        if examined.parts.is_scored(unit):
            advance(examined.parts.count(unit), made=False)
            continue
        radiographs: list[Radiograph] = []
        damaged: list[Damaged] = []
        for found in examined.collection.read(unit, workers=run.settings.workers):
            if isinstance(found, Damaged):
                _stop_if_strict(run, found)
                damaged.append(found)
                continue
            radiographs.append(found)
            if len(radiographs) == run.settings.batch_size:
                yield _Batch(unit, radiographs)
                radiographs = []
        yield _Batch(unit, radiographs, last=True, damaged=damaged)


def _stop_if_strict(run: AuditRun, damaged: Damaged) -> None:
    if run.settings.strict:
        where = f"{damaged.source}: {damaged.member}" if damaged.member else damaged.source
        raise ShardError(f"{where}: {damaged.reason}\n  mend or remove it, or leave out --strict to count and skip it")
