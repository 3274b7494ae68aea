"""`generate`: reports in, shards out."""

import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch

from cxrsynth import console
from cxrsynth.console import Advance
from cxrsynth.diffusion.model import DiffusionModel
from cxrsynth.diffusion.noise import sample_noise
from cxrsynth.diffusion.parallel import SamplingPool
from cxrsynth.diffusion.sampler import sample_images
from cxrsynth.errors import ModelError, ReportsError
from cxrsynth.generation.dry_run import describe
from cxrsynth.generation.finalize import finish_dataset
from cxrsynth.generation.id_map import write_id_map
from cxrsynth.generation.plan import Run, open_run
from cxrsynth.reports.request import BuiltPrompt, PromptBuilder
from cxrsynth.reports.table.rows import Rejected, Report
from cxrsynth.reports.table.table import Table
from cxrsynth.runtime.batches import chunks
from cxrsynth.runtime.memory import memory_advice
from cxrsynth.settings import GenerateSettings
from cxrsynth.shards.encode import Encoder
from cxrsynth.shards.folder import OutputFolder
from cxrsynth.shards.plan import samples, shard_count
from cxrsynth.shards.sample import Sample, sample_key, subject_key


@dataclass(frozen=True)
class Generated:
    """What a run left behind, or, for a dry run, would leave."""

    reports: int
    rejected: int
    samples: int
    shards: int
    already_complete: bool = False
    estimate: str | None = None


def generate(settings: GenerateSettings) -> Generated:
    """Make the data set `settings` describes; go on where an earlier run of the same plan stopped.

    Raises:
        ReportsError, ModelError, ShardError: for what the user can mend.
    """
    run = open_run(settings)
    counts = _count_rows(run.table, settings)
    done = Generated(
        reports=counts.usable,
        rejected=counts.rejected,
        samples=counts.usable * settings.images_per_report,
        shards=shard_count(counts.usable, images_per_report=settings.images_per_report, size=settings.shards.size),
    )
    if settings.dry_run:
        folder = OutputFolder(settings.out)
        folder.check(run.plan)
        return replace(done, estimate=describe(run, done.reports, done.rejected))
    folder = OutputFolder(settings.out)
    if run.processes.is_main:
        complete = folder.check(run.plan)
        if not complete:
            folder.start(run.plan)
    run.processes.wait()
    if folder.check(run.plan):
        if run.processes.is_main:
            folder.verify()
            folder.clean(drop_shards=settings.shards.unpacked)
            write_id_map(run)
        return replace(done, already_complete=True)
    try:
        with memory_advice("lower --batch-size; pixels depend on it, so begin anew with another --out"):
            _make_shards(run, folder, total=done.samples)
        run.processes.wait()
        if run.processes.is_main:
            finish_dataset(run, folder, shards=done.shards)
    except OSError as error:
        raise folder.failure(error) from None
    finally:
        folder.unlock()
    return done


@dataclass(frozen=True)
class RowCounts:
    """Rows that can be used and rows that cannot."""

    usable: int
    rejected: int


def _count_rows(table: Table, settings: GenerateSettings) -> RowCounts:
    """Read the table once before any work: a table that cannot be used is told at once."""
    usable = rejected = 0
    for row in table.rows():
        if settings.limit is not None and usable >= settings.limit:
            break
        if isinstance(row, Rejected):
            rejected += 1
            if settings.strict:
                raise ReportsError(
                    f"{settings.reports}: line {row.line}: {row.reason}\n"
                    "  mend the row, or leave out --strict to set such rows aside in rejected.csv"
                )
        else:
            usable += 1
    if not usable:
        raise ReportsError(
            f"{settings.reports}: no usable row ({rejected} rejected)\n  expected: at least one row with report text"
        )
    return RowCounts(usable, rejected)


@dataclass(frozen=True)
class _Batch:
    """Images sampled together; `index` and `record` are of the whole shard they belong to, `last` ends it."""

    index: int
    record: dict[str, Any]
    asked: dict[str, BuiltPrompt]
    members: list[tuple[Report, int]]
    last: bool


def _make_shards(run: Run, folder: OutputFolder, *, total: int) -> None:
    """Batches are sampled side by side, across shards; this thread encodes and writes them in order."""
    model = run.load_model()
    encoder = Encoder(run.settings.shards, run.identity)
    pool = SamplingPool(model, batch_size=run.batch_size, threads_per_batch=run.settings.sampling.threads_per_batch)
    with console.image_progress(total, quiet=not run.processes.is_main) as advance, pool:

        def sample(batch: _Batch) -> list[Sample]:
            return _sample_batch(run, model, batch, pool.stopped)

        try:
            _write_shards(pool.map_in_order(sample, _batches(run, model, folder, advance)), folder, encoder, advance)
        except KeyboardInterrupt:
            console.say("stopping after the denoising step under way")
            raise


def _write_shards(
    made: Iterator[tuple[_Batch, list[Sample]]], folder: OutputFolder, encoder: Encoder, advance: Advance
) -> None:
    for index, batches in groupby(made, key=lambda one: one[0].index):
        record: dict[str, Any] = {}
        try:
            with folder.writer(index) as writer:
                for batch, ready in batches:
                    for one in ready:
                        writer.write(one.key, encoder.members(one))
                    advance(len(ready))
                    record = batch.record
                    if batch.last:
                        break  # publish before the next shard's first batch is waited for: it may fail
                folder.publish(index, writer, record)
        except BaseException:
            folder.drop_partial(index)  # Ctrl-C may come between the opening of the file and the context
            raise


def _batches(run: Run, model: DiffusionModel, folder: OutputFolder, advance: Advance) -> Iterator[_Batch]:
    """The batches of the shards this process has still to make. No batch spans two shards."""
    prompt_builder = PromptBuilder(run.prompt_style, model.spec.depicts, model.fits)
    warned: set[str] = set()
    shards = chunks(samples(run.usable_reports(), run.settings.images_per_report), run.settings.shards.size)
    for index, shard in enumerate(shards):
        if index % run.processes.count != run.processes.rank or folder.is_finished(index):
            advance(len(shard), made=False)
        else:
            asked = _build_prompts(prompt_builder, shard)
            _warn_unsupported(asked.values(), warned, model.name)
            record = _shard_record(shard, asked)
            for first in range(0, len(shard), run.batch_size):
                members = shard[first : first + run.batch_size]
                yield _Batch(index, record, asked, members, last=first + run.batch_size >= len(shard))


def _build_prompts(prompt_builder: PromptBuilder, shard: list[tuple[Report, int]]) -> dict[str, BuiltPrompt]:
    """Each report of a shard once, by report id."""
    asked: dict[str, BuiltPrompt] = {}
    for report, _ in shard:
        if report.report_id not in asked:
            asked[report.report_id] = prompt_builder.build(report)
    return asked


def _warn_unsupported(asked: Iterable[BuiltPrompt], warned: set[str], model_name: str) -> None:
    """Tell what the model was never shown, each kind once and by name."""
    new = {name for one in asked for name in one.unsupported_findings} - warned
    if new:
        console.warn(
            f"{model_name} was never shown: {', '.join(sorted(new))}. Such requests are listed under"
            " unsupported_findings in the JSON of each sample; the manifest counts them."
        )
    warned |= new


def _sample_batch(run: Run, model: DiffusionModel, batch: _Batch, stopped: threading.Event) -> list[Sample]:
    members, asked = batch.members, batch.asked
    subjects = [subject_key(run.id_key, report.report_id) for report, _ in members]
    keys = [sample_key(subject, index) for subject, (_, index) in zip(subjects, members, strict=True)]
    noise = torch.stack([sample_noise(run.settings.seed, key, model.latent_shape) for key in keys])  # [B, C, h, w]
    images = sample_images(
        model,
        [asked[report.report_id].prompt for report, _ in members],
        noise,
        sampler=run.sampler,
        steps=run.steps,
        guidance=run.guidance,
        conditions=[asked[report.report_id].conditions for report, _ in members],
        stopped=stopped,
    )  # [B, 1, H, W]
    for (report, _), image in zip(members, images, strict=True):
        if not image.isfinite().all():
            raise ModelError(
                f"{run.settings.reports}: line {report.line}: the model gave pixels that are not numbers"
                f" ({model.precision.value} on {model.device.type})\n  try --precision fp32, or another --guidance"
            )
    return [
        Sample(
            key=key,
            subject_key=subject,
            image_index=index,
            image=image[0].numpy(),
            metadata=run.common_metadata | asked[report.report_id].facts | {"image_index": index},
            # An archive goes by these: never a view or sex that was not asked for because the model cannot show it.
            view=asked[report.report_id].subject.view,
            sex=asked[report.report_id].subject.sex,
            text=asked[report.report_id].text,
        )
        for key, subject, (report, index), image in zip(keys, subjects, members, images, strict=True)
    ]


def _shard_record(shard: list[tuple[Report, int]], asked: dict[str, BuiltPrompt]) -> dict[str, Any]:
    """Counts of one shard; what concerns a report is counted with its first image."""
    first = [asked[report.report_id] for report, image_index in shard if image_index == 0]
    sanitized: Counter[str] = sum((one.sanitized for one in first), Counter())
    return {
        "samples": len(shard),
        "sanitized": dict(sanitized),
        "prompts_truncated": sum(one.truncated for one in first),
        "unsupported_findings": dict(
            Counter(name for report, _ in shard for name in asked[report.report_id].unsupported_findings)
        ),
    }
