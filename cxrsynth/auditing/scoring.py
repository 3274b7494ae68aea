"""Every unit of a collection scored, shared out among processes; units scored before are not scored again."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow as pa
import torch

from cxrsynth import console
from cxrsynth.auditing.setup import AuditRun, Examined
from cxrsynth.console import Advance
from cxrsynth.errors import ShardError
from cxrsynth.images.collection import Unit
from cxrsynth.images.image import Damaged, Radiograph
from cxrsynth.runtime.pool import OrderedPool


@dataclass(frozen=True)
class _Batch:
    """Images of one unit, scored together; `last` ends the unit and lists everything in it that cannot be read."""

    unit: Unit
    radiographs: list[Radiograph]
    last: bool = False
    damaged: list[Damaged] = field(default_factory=list)


def score_collection(run: AuditRun, examined: Examined, *, what: str, with_pixels: bool = True) -> None:
    """Score the units of this process; batches run in parallel while the next ones are decoded.

    `with_pixels` False: units whose pixels were deleted count as scored.
    """
    on_cpu = run.scorer.device.type == "cpu"
    threads = torch.get_num_threads()
    pool = OrderedPool(threads if on_cpu else 1, threads=1 if on_cpu else threads)
    total = (examined.collection.manifest or {}).get("counts", {}).get("samples")
    full = examined.full_images_per_unit

    def rows_of(batch: _Batch) -> pa.Table | None:
        return run.scorer(batch.radiographs, keep_image=full > 0) if batch.radiographs else None

    with console.image_progress(total, quiet=not run.processes.is_main, what=what) as advance, pool:
        rows: list[pa.Table] = []
        for batch, scored in pool.map_in_order(rows_of, _batches(run, examined, advance, with_pixels)):
            if scored is not None:
                rows.append(scored)
                advance(scored.num_rows)
            if batch.last:
                examined.cache.write(batch.unit, rows, batch.damaged, run.scorer.schema(), full=full)
                rows = []


def _batches(run: AuditRun, examined: Examined, advance: Advance, with_pixels: bool) -> Iterator[_Batch]:
    """Batches of the units this process has still to score. No batch spans two units."""
    for index, unit in enumerate(examined.collection.units):
        if index % run.processes.count != run.processes.rank:
            continue
        if examined.cache.is_scored(unit, with_pixels=with_pixels):
            for found in examined.cache.damaged_in(unit):
                _stop_if_strict(run, found)
            advance(examined.cache.count(unit), made=False)
        else:
            yield from _batches_of(run, examined, unit)


def _batches_of(run: AuditRun, examined: Examined, unit: Unit) -> Iterator[_Batch]:
    """A unit's images in batches."""
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
        raise ShardError(
            f"{where}: {damaged.reason}\n  repair or remove it, or leave out --strict to count and skip it"
        )
