"""Every unit of a collection scored, shared out among processes; units scored before are not scored again."""

import hashlib
import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import pyarrow as pa
import torch

from cxrsynth import console
from cxrsynth.auditing.examined import Examined
from cxrsynth.auditing.read import Reading
from cxrsynth.auditing.setup import AuditRun
from cxrsynth.console import Advance, counted
from cxrsynth.errors import ShardError
from cxrsynth.images.collection import Unit
from cxrsynth.images.image import Damaged, Radiograph
from cxrsynth.runtime.pool import OrderedPool


@dataclass(frozen=True)
class _Batch:
    """Images of one unit, scored together; `last` ends the unit and lists everything in it that cannot be read.

    `reading` then counts how the unit was read.
    """

    unit: Unit
    radiographs: list[Radiograph]
    last: bool = False
    damaged: list[Damaged] = field(default_factory=list)
    reading: Reading = field(default_factory=Reading)


class RowScorer(Protocol):
    """Makes one row of each image."""

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        ...

    def schema(self) -> pa.Schema:
        """Columns of the rows."""
        ...

    def __call__(self, radiographs: Sequence[Radiograph], *, keep_image: bool = False) -> pa.Table:
        """One row per image, in order."""
        ...


def score_collection(
    run: AuditRun, examined: Examined, *, what: str, with_pixels: bool = True, scorer: RowScorer | None = None
) -> None:
    """Score the units of this process; batches run in parallel while the next ones are decoded.

    Args:
        run: of the audit.
        examined: what is scored, and where the scores go.
        what: the images, for the line of progress.
        with_pixels: False counts units whose pixels were deleted as scored.
        scorer: makes the rows; None for the audit's.
    """
    scorer = run.scorer if scorer is None else scorer
    on_cpu = scorer.device.type == "cpu"
    threads = torch.get_num_threads()
    pool = OrderedPool(threads if on_cpu else 1, threads=1 if on_cpu else threads)
    total = _expected(examined)
    full = examined.full_images_per_unit

    def rows_of(batch: _Batch) -> pa.Table | None:
        return scorer(batch.radiographs, keep_image=full > 0) if batch.radiographs else None

    with console.image_progress(total, quiet=not run.processes.is_main, what=what) as advance, pool:
        rows: list[pa.Table] = []
        for batch, scored in pool.map_in_order(rows_of, _batches(run, examined, advance, with_pixels)):
            if scored is not None:
                rows.append(scored)
                advance(scored.num_rows)
            if batch.last:
                examined.cache.write(batch.unit, rows, batch.damaged, scorer.schema(), reading=batch.reading, full=full)
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


def _expected(examined: Examined) -> int | None:
    """How many images will be scored, where that is known."""
    if examined.most_per_unit is not None:
        return None
    samples: int | None = (examined.collection.manifest or {}).get("counts", {}).get("samples")
    return samples


def _batches_of(run: AuditRun, examined: Examined, unit: Unit) -> Iterator[_Batch]:
    """A unit's images in batches."""
    radiographs: list[Radiograph] = []
    damaged: list[Damaged] = []
    reading = Reading()

    def readable() -> Iterator[Radiograph]:
        for found in examined.collection.read(unit, workers=run.settings.workers):
            if isinstance(found, Damaged):
                _stop_if_strict(run, found)
                damaged.append(found)
            else:
                reading.add(found)
                yield found

    most = examined.most_per_unit
    for found in readable() if most is None else _chosen(readable(), most):
        radiographs.append(found)
        if len(radiographs) == run.settings.batch_size:
            yield _Batch(unit, radiographs)
            radiographs = []
    _warn_of_no_match(examined, unit, reading)
    yield _Batch(unit, radiographs, last=True, damaged=damaged, reading=reading)


def _warn_of_no_match(examined: Examined, unit: Unit, reading: Reading) -> None:
    """Say at the first unit what is an error if it holds of all, while there is time to stop."""
    collection = examined.collection
    first = len(collection.units) > 1 and unit == collection.units[0]
    if (
        first
        and collection.table is not None
        and collection.matches is None
        and reading.images
        and not reading.with_row
    ):
        console.warn(
            f"{collection.table}: no row matches any of {counted(reading.images, 'image')} in {unit.name}\n"
            "  if none matches any other, the audit ends with an error: check the file names, or stop now"
        )


def _chosen(radiographs: Iterator[Radiograph], most: int) -> list[Radiograph]:
    """At most `most` images, by a hash of their content: the same ones in whatever order they come."""
    kept: list[tuple[int, int, Radiograph]] = []  # a heap; the largest hash is first, as the least of negative ones
    for place, radiograph in enumerate(radiographs):
        rank = -int.from_bytes(hashlib.sha256(f"chosen {radiograph.sha256}".encode()).digest()[:8], "big")
        if len(kept) < most:
            heapq.heappush(kept, (rank, -place, radiograph))
        else:
            heapq.heappushpop(kept, (rank, -place, radiograph))
    return [radiograph for _, _, radiograph in sorted(kept, key=lambda one: -one[1])]


def _stop_if_strict(run: AuditRun, damaged: Damaged) -> None:
    if run.settings.strict:
        where = f"{damaged.source}: {damaged.member}" if damaged.member else damaged.source
        raise ShardError(
            f"{where}: {damaged.reason}\n  repair or remove it, or leave out --strict to count and skip it"
        )
