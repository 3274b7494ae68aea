"""The batches of a data set: which reports each shard holds, their prompts, and their images."""

import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from cxrsynth import console
from cxrsynth.console import Advance
from cxrsynth.diffusion.model import DiffusionModel
from cxrsynth.diffusion.noise import seeded_noise
from cxrsynth.diffusion.sampler import sample_images
from cxrsynth.errors import ModelError
from cxrsynth.generation.plan import GenerateRun
from cxrsynth.generation.rows import Rows
from cxrsynth.reports.request import BuiltPrompt, PromptBuilder
from cxrsynth.reports.table.rows import Report
from cxrsynth.shards.folder import OutputFolder
from cxrsynth.shards.plan import samples
from cxrsynth.shards.sample import Sample, sample_key, subject_key


@dataclass(frozen=True)
class Shard:
    """One shard to make: its number, its record for the output folder, and the prompt of each report by report id."""

    index: int
    record: dict[str, Any]
    prompts: dict[str, BuiltPrompt]


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
    prompt_builder = PromptBuilder(run.prompt_format, model.spec.depicts, model.fits, classes=model.spec.classes)
    warned: set[str] = set()
    size, images = run.settings.shards.size, rows.usable * run.settings.images_per_report
    for index, first in enumerate(range(0, images, size)):
        last = min(first + size, images)
        if index % run.processes.count != run.processes.rank or folder.is_finished(index):
            advance(last - first, made=False)
            continue
        members = _members(rows, first, last, images_per_report=run.settings.images_per_report)
        reports = {report.report_id: report for report, _ in members}
        prompts = {report_id: prompt_builder.build(report) for report_id, report in reports.items()}
        _warn_unsupported(prompts.values(), warned, model.name)
        shard = Shard(index, _shard_record(members, prompts), prompts)
        for start in range(0, len(members), run.batch_size):
            end = start + run.batch_size
            yield Batch(shard, members[start:end], last=end >= len(members))


def _members(rows: Rows, first: int, last: int, *, images_per_report: int) -> list[tuple[Report, int]]:
    """Images number `first` to `last` of the data set: for each its report, and its index among the report's images."""
    report = first // images_per_report
    reports = rows.reports(report, -(-last // images_per_report))
    start = report * images_per_report
    return list(samples(reports, images_per_report))[first - start : last - start]


def _warn_unsupported(prompts: Iterable[BuiltPrompt], warned: set[str], model_name: str) -> None:
    """Warn once, by name, of each finding the model never saw in training."""
    new = {name for prompt in prompts for name in prompt.unsupported_findings} - warned
    if new:
        console.warn(
            f"{model_name} never saw in training: {', '.join(sorted(new))}. Requests for these are listed under"
            " unsupported_findings in the JSON of each sample, and counted in the manifest."
        )
    warned |= new


def sample_batch(run: GenerateRun, model: DiffusionModel, batch: Batch, stopped: threading.Event) -> list[Sample]:
    """Sample the images of a batch.

    Raises:
        ModelError: if the model produces pixels that are not finite.
        SamplingStopped: once `stopped` is set.
    """
    prompts = [batch.shard.prompts[report.report_id] for report, _ in batch.members]
    subjects = [subject_key(run.id_key, report.report_id) for report, _ in batch.members]
    keys = [sample_key(subject, index) for subject, (_, index) in zip(subjects, batch.members, strict=True)]
    images = sample_images(
        model,
        [prompt.prompt for prompt in prompts],
        torch.stack([seeded_noise(model.latent_shape, run.settings.seed, key) for key in keys]),  # [B, C, h, w]
        sampler=run.sampler,
        steps=run.steps,
        guidance=run.guidance,
        conditions=[prompt.conditions for prompt in prompts],
        stopped=stopped,
    )  # [B, 1, H, W]
    for (report, _), image in zip(batch.members, images, strict=True):
        if not image.isfinite().all():
            raise ModelError(
                f"{run.settings.reports}: line {report.line}: the model produced pixels that are not finite"
                f" ({model.precision.value} on {model.device.type})\n  try --precision fp32, or another --guidance"
            )
    return [
        Sample(
            key=key,
            subject_key=subject,
            image_index=index,
            image=image[0].numpy(),
            metadata=run.common_metadata | prompt.metadata | {"image_index": index},
            # Archives sort by these: a view or sex that the model cannot show was not requested, and is not stated.
            view=prompt.subject.view,
            sex=prompt.subject.sex,
            text=prompt.text,
        )
        for key, subject, prompt, (_, index), image in zip(keys, subjects, prompts, batch.members, images, strict=True)
    ]


def _shard_record(members: list[tuple[Report, int]], prompts: dict[str, BuiltPrompt]) -> dict[str, Any]:
    """Counts of one shard. What concerns a report is counted in the shard with the report's first image."""
    first = [prompts[report.report_id] for report, image_index in members if image_index == 0]
    sanitized: Counter[str] = sum((prompt.sanitized for prompt in first), Counter())
    contradictions: Counter[str] = sum((prompt.contradictions for prompt in first), Counter())
    return {
        "samples": len(members),
        "sanitized": dict(sanitized),
        "prompts_truncated": sum(prompt.truncated for prompt in first),
        "reports_not_in_english": sum(prompt.unread for prompt in first),
        "label_contradictions": dict(contradictions),
        "unsupported_findings": dict(
            Counter(name for report, _ in members for name in prompts[report.report_id].unsupported_findings)
        ),
    }
