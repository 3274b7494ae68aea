"""`cxrsynth generate`, top to bottom: reports in, shards out."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

from cxrsynth import console
from cxrsynth.console import Advance
from cxrsynth.diffusion.compiled import compile_denoiser
from cxrsynth.diffusion.model import DiffusionModel, hardware_name
from cxrsynth.diffusion.parallel import SamplingPool
from cxrsynth.errors import ShardError
from cxrsynth.generation.accept import Acceptor
from cxrsynth.generation.accept_counts import ShardCounts
from cxrsynth.generation.batches import Batch, batches_to_make
from cxrsynth.generation.draw import Drawer, Drawn
from cxrsynth.generation.dry_run import describe
from cxrsynth.generation.encoding import Encoded, EncodingPool, default_workers
from cxrsynth.generation.finalize import finish_dataset, missing_shards, refuse_missing
from cxrsynth.generation.lists import check_lists, rejected_list, write_id_map, write_rejected
from cxrsynth.generation.plan import GenerateRun, open_generate, refuse_changed
from cxrsynth.generation.rows import Rows, read_rows, refuse_unusable, say_left_out
from cxrsynth.reports.table.summary import describe_columns
from cxrsynth.runtime.memory import LOADING_ADVICE, memory_advice
from cxrsynth.runtime.shared_folder import refuse_folders_apart
from cxrsynth.settings import GenerateSettings
from cxrsynth.shards.encode import Encoder
from cxrsynth.shards.file_set import MOST_PATIENTS
from cxrsynth.shards.folder import OutputFolder
from cxrsynth.shards.plan import shard_count
from cxrsynth.shards.sample import subject_key


@dataclass(frozen=True)
class Generated:
    """The data set that a run made, or, for a dry run, would make.

    `finished`: whether it is complete; `missing`: after a part, how many shards are not there yet; `accepted`: how many
    of the images passed, where they were judged, and `left_out` how many are not in the set because they did not. The
    main process knows these. A dry run has its `estimate`, and the `first_prompt`, de-identified, as the model would
    get it; it may hold words of the report, so keep it out of logs.
    """

    reports: int
    rejected: int
    samples: int
    shards: int
    already_complete: bool = False
    finished: bool = True
    missing: int = 0
    estimate: str | None = None
    accepted: int | None = None
    left_out: int = 0
    first_prompt: str | None = field(default=None, repr=False)


def generate(settings: GenerateSettings) -> Generated:
    """Make the data set that `settings` describes, or the rest of it if an earlier run of the same plan was stopped.

    Raises:
        ReportsError, ModelError, ShardError: for what the user can fix.
    """
    run = open_generate(settings)
    folder = OutputFolder(settings.out)
    with (
        read_rows(run.table, limit=settings.limit, strict=settings.strict, per_image=settings.per_image) as rows,
        run.processes.ending_with_main(),
    ):
        check_lists(run, rows)
        _refuse_unusable(run, rows)
        made = Generated(
            reports=rows.usable,
            rejected=rows.rejected,
            samples=rows.usable * settings.images_per_report,
            shards=shard_count(rows.usable, images_per_report=settings.images_per_report, size=settings.shards.size),
        )
        refuse_changed(run)
        if settings.shards.unpacked and not settings.per_image and rows.usable > MOST_PATIENTS:
            raise ShardError(
                f"--unpacked: {rows.usable:,} reports, expected at most {MOST_PATIENTS:,} in a DICOM file-set\n"
                "  write tars of DICOM objects (--format dicom alone), or divide the table"
            )
        if settings.dry_run:
            folder.check(run.plan)
            say_left_out(run.table, rows, None)
            if settings.finish:
                return replace(made, estimate=_describe_finish(folder, made.shards))
            with memory_advice("lower --batch-size"):
                estimate, prompt = describe(run, rows)
                return replace(made, estimate=estimate, first_prompt=prompt)
        if not settings.keep_order:
            # Whoever holds a public table could line up its rows with images in its order, without any key.
            rows.order_by(lambda report: subject_key(run.id_key, report.report_id))
        complete = _is_complete(run, folder)
        if folder.locked is not None:
            # Before the model is loaded, which takes a while.
            refuse_folders_apart(run.processes, folder.locked, complete=complete, others=settings.part is not None)
        try:
            if complete or _work(run, folder, rows, shards=made.shards):
                return replace(_check_complete(run, folder, rows, made), already_complete=True)
            return _conclude(run, folder, rows, made) if run.processes.is_main else made
        except OSError as error:
            raise folder.failure(error) from None
        finally:
            folder.unlock()


def _refuse_unusable(run: GenerateRun, rows: Rows) -> None:
    """Raise ReportsError if no row can be used; the list of them is written all the same, to see why."""
    listed = None if run.settings.dry_run else rejected_list(run)
    if not rows.usable and listed is not None and run.processes.is_main:
        write_rejected(run, rows)
    refuse_unusable(run.table, rows, listed)


def _describe_finish(folder: OutputFolder, shards: int) -> str:
    """What a dry run with `--finish` prints, which makes no image and so takes no time worth estimating."""
    try:
        missing = missing_shards(folder, shards)
    except OSError as error:
        raise folder.failure(error) from None
    return f"{folder.name}: {missing or f'all of {shards} shards are there'}; --finish would make no image"


def _work(run: GenerateRun, folder: OutputFolder, rows: Rows, *, shards: int) -> bool:
    """Make the shards of this process; True if others have completed the data set in the meantime."""
    if run.settings.finish:
        if run.processes.is_main:
            refuse_missing(folder, shards, finish=True)  # before the folder is made
        return _begin(run, folder)
    with memory_advice(LOADING_ADVICE):
        # Before the folder is made: what does not load leaves none behind.
        model, acceptor = run.load_model(), run.load_acceptor()
    with memory_advice("lower --batch-size; it changes the pixels, so start again with another --out"):
        _compile(run, model)
        if _begin(run, folder):
            return True
        if run.processes.is_main:
            console.say(f"{run.settings.reports}: {describe_columns(run.table)}")
            say_left_out(run.table, rows, rejected_list(run))
        _make_shards(run, model, acceptor, folder, rows)
    run.processes.wait()
    return False


def _compile(run: GenerateRun, model: DiffusionModel) -> None:
    """Compile the network where that is asked for. Raises ModelError if that is not possible."""
    if not run.settings.sampling.compiled:
        return
    with _pool(run, model) as pool:
        seconds = compile_denoiser(
            model, pool, batch_size=run.batch_size, sampler=run.sampler, steps=run.steps, guidance=run.guidance
        )
    if run.processes.is_main:
        console.say(f"compiled in {seconds:.0f} s")


def _pool(run: GenerateRun, model: DiffusionModel) -> SamplingPool:
    return SamplingPool(model, batch_size=run.batch_size, threads_per_batch=run.settings.sampling.threads_per_batch)


def _conclude(run: GenerateRun, folder: OutputFolder, rows: Rows, made: Generated) -> Generated:
    """Complete the data set, unless this is a part, and others are at work or have yet to be made."""
    if run.settings.part is not None and not folder.is_last(made.shards):
        return replace(made, finished=False, missing=len(folder.missing(made.shards)))
    try:
        return _counted(made, finish_dataset(run, folder, rows, shards=made.shards))
    except ShardError:
        # In an object store, another part may have been the last as well, and have removed what this one reads.
        if not folder.check(run.plan):
            raise
        return _counted(made, folder.verify())


def _is_complete(run: GenerateRun, folder: OutputFolder) -> bool:
    """Whether the folder holds the whole data set already."""
    if run.processes.is_main:
        folder.check(run.plan)  # alone at first, so that a refusal is said once
    run.processes.wait()
    return folder.check(run.plan)


def _begin(run: GenerateRun, folder: OutputFolder) -> bool:
    """The main process makes the folder and writes the plan there; True if the data set is complete by now."""
    if run.processes.is_main:
        folder.start(run.plan, part=run.settings.part)
    run.processes.wait()
    return folder.check(run.plan, begun=True)  # not after the first shard: that of another plan is work for nothing


def _counted(made: Generated, manifest: dict[str, Any]) -> Generated:
    """With the counts of a complete data set: images that were not accepted may have been left out."""
    judged = manifest.get("acceptance", {}).get("total", {})
    accepted = judged.get("accepted")
    left_out = judged.get("images", 0) - manifest["counts"]["samples"] if judged else 0
    # A file-set has no shards; of those that were made, empty ones are not listed.
    shards = len(manifest["shards"]) or made.shards
    return replace(made, samples=manifest["counts"]["samples"], shards=shards, accepted=accepted, left_out=left_out)


def _check_complete(run: GenerateRun, folder: OutputFolder, rows: Rows, made: Generated) -> Generated:
    """Verify the files of a complete data set, and write the lists that are asked for."""
    if run.processes.is_main:
        manifest = folder.verify()
        made = _counted(made, manifest)
        folder.clean(manifest)
        if run.settings.rejected is not None:
            write_rejected(run, rows)
        write_id_map(run, rows)
    return made


def _make_shards(
    run: GenerateRun, model: DiffusionModel, acceptor: Acceptor | None, folder: OutputFolder, rows: Rows
) -> None:
    """Sample batches side by side, across shards, while images are encoded, and written in order by this thread."""
    settings = run.settings
    encoder = Encoder(settings.shards, run.identity)
    drawer = Drawer(run, model, acceptor, encoder)
    encoding = EncodingPool(
        encoder,
        workers=default_workers(model.device) if settings.workers is None else settings.workers,
        only_accepted=settings.accept is not None and settings.accept.only_accepted,
    )
    pool = _pool(run, model)
    images, size = rows.usable * settings.images_per_report, settings.shards.size
    # Those of its part, if it is one: the log of a job must not say that all are there.
    total = sum(
        min(size, images - first) for index, first in enumerate(range(0, images, size)) if run.is_of_part(index)
    )
    # Sampling is left first, so that it stops while the last images are encoded.
    with console.image_progress(total, quiet=not run.processes.is_main) as advance, encoding, pool:

        def draw(batch: Batch) -> Callable[[], list[Drawn]]:
            return drawer.draw(batch, pool.stopped)

        started = pool.map_in_order(draw, batches_to_make(run, model, folder, rows, advance))
        try:
            _write_shards(
                # This thread waits for the images, so that the one that draws keeps a GPU busy.
                encoding.encode((batch, images()) for batch, images in started),
                folder,
                advance,
                # Not in the plan: where machines differ, a run must be able to go on with those that there are.
                made_on={"hardware": hardware_name(model.device)},
            )
        except KeyboardInterrupt:
            console.say("stopping after the current denoising step")
            raise


def _write_shards(
    encoded: Iterator[Encoded], folder: OutputFolder, advance: Advance, *, made_on: dict[str, str]
) -> None:
    """Write each shard under a temporary name, and publish it with its record once its last batch is in."""
    for index, batches in groupby(encoded, key=lambda one: one.batch.shard.index):
        try:
            with folder.writer(index) as writer:
                counts = ShardCounts()
                for one in batches:
                    for image, members in zip(one.images, one.members, strict=True):
                        if members is not None:
                            writer.write(image.sample.key, members)
                        counts.add(image, written=members is not None)
                    advance(len(one.images))
                    if one.batch.last:
                        break  # publish before waiting for the next shard's first batch, which may fail
                folder.publish(index, writer, one.batch.shard.record | counts.record() | made_on)
        except BaseException:
            folder.drop_partial(index)  # Ctrl-C may come between opening the file and entering the context
            raise
