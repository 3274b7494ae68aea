"""The batches of a data set: which reports each shard holds, and their prompts."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from cxrsynth import console
from cxrsynth.address import Location
from cxrsynth.console import Advance
from cxrsynth.diffusion.model import DiffusionModel
from cxrsynth.generation.plan import GenerateRun
from cxrsynth.generation.rows import Rows
from cxrsynth.reports.request import BuiltPrompt, PromptBuilder
from cxrsynth.reports.table.rows import Report
from cxrsynth.runtime.memory import LOADING_ADVICE, memory_advice
from cxrsynth.shards.folder import OutputFolder
from cxrsynth.shards.plan import samples

PromptKey: TypeAlias = tuple[str, int]

_MOST_LINES = 10  # of a table, that a warning names


@dataclass(frozen=True)
class Shard:
    """One shard to make: its number, the counts of its reports, and the prompt of each row by `prompt_key`."""

    index: int
    record: dict[str, Any]
    prompts: dict[PromptKey, BuiltPrompt]


@dataclass(frozen=True)
class Batch:
    """Images of one shard that are sampled together: reports with image indices. `last` ends the shard."""

    shard: Shard
    members: list[tuple[Report, int]]
    last: bool


def batches_to_make(
    run: GenerateRun, model: DiffusionModel, folder: OutputFolder, rows: Rows, advance: Advance
) -> Iterator[Batch]:
    """The batches of the shards that this process still has to make. No batch spans two shards."""
    prompt_builder = prompt_builder_of(run, model)
    warned: set[str] = set()
    size, each = run.settings.shards.size, run.settings.images_per_report
    images = rows.usable * each
    for index, first in enumerate(range(0, images, size)):
        last = min(first + size, images)
        if not run.is_of_part(index):
            continue
        if not run.makes(index) or folder.is_finished(index):
            advance(last - first, made=False)
            continue
        members = _members(rows, first, last, images_per_report=each)
        reports = {prompt_key(report): report for report, _ in members}
        prompts = {key: prompt_builder.build(report) for key, report in reports.items()}
        _warn_unsupported(prompts.values(), warned, model.name)
        _warn_languages(run.settings.reports, reports, prompts)
        shard = Shard(index, _shard_record(members, prompts, images_per_report=each), prompts)
        for start in range(0, len(members), run.batch_size):
            end = start + run.batch_size
            yield Batch(shard, members[start:end], last=end >= len(members))


def prompt_key(report: Report) -> PromptKey:
    """What distinguishes the rows of a table: their id, and their number among those with the same."""
    return report.report_id, report.repeat


def prompt_builder_of(run: GenerateRun, model: DiffusionModel) -> PromptBuilder:
    """What makes the prompts of a run."""
    with memory_advice(LOADING_ADVICE):
        reader, entities = run.load_reader(), run.load_entities()
    return PromptBuilder(
        run.prompt_format,
        model.spec.depicts,
        model.fits,
        classes=model.spec.classes,
        deid=run.settings.strength,
        reader=reader,
        entities=entities,
    )


def _members(rows: Rows, first: int, last: int, *, images_per_report: int) -> list[tuple[Report, int]]:
    """Images number `first` to `last` of the data set: for each its report, and its index among those of its id."""
    report = first // images_per_report
    reports = rows.reports(report, -(-last // images_per_report))
    start = report * images_per_report
    members = list(samples(reports, images_per_report))[first - start : last - start]
    return [(report, report.repeat * images_per_report + index) for report, index in members]


def _warn_unsupported(prompts: Iterable[BuiltPrompt], warned: set[str], model_name: str) -> None:
    """Warn once, by name, of each finding the model never saw in training."""
    new = {name for prompt in prompts for name in prompt.unsupported_findings} - warned
    if new:
        console.warn(
            f"{model_name} never saw in training: {', '.join(sorted(new))}. Requests for these are listed under"
            " unsupported_findings in the JSON of each sample, and counted in the manifest."
        )
    warned |= new


def _warn_languages(
    table: Location, reports: Mapping[PromptKey, Report], prompts: Mapping[PromptKey, BuiltPrompt]
) -> None:
    """Name the reports in a language that de-identification does not cover."""
    lines = [str(reports[name].line) for name, prompt in prompts.items() if prompt.sanitized["language"]]
    if lines:
        more = f" and {len(lines) - _MOST_LINES:,} more" if len(lines) > _MOST_LINES else ""
        named = f"line{'s' * (len(lines) > 1)} {', '.join(lines[:_MOST_LINES])}{more}"
        console.warn(
            f"{table}: {named}: in a language that de-identification does not"
            " cover: nothing of the text is used or stored, the prompt is made of the labels"
        )


def _shard_record(
    members: list[tuple[Report, int]], prompts: dict[PromptKey, BuiltPrompt], *, images_per_report: int
) -> dict[str, Any]:
    """Counts of one shard that concern its reports: each counts in the shard with its first image."""
    first = [prompts[prompt_key(report)] for report, index in members if index == report.repeat * images_per_report]
    sanitized: Counter[str] = sum((prompt.sanitized for prompt in first), Counter())
    contradictions: Counter[str] = sum((prompt.contradictions for prompt in first), Counter())
    return {
        "sanitized": dict(sanitized),
        "prompts_truncated": sum(prompt.truncated for prompt in first),
        "reports_not_in_english": sum(prompt.unread for prompt in first),
        "label_contradictions": dict(contradictions),
    }
