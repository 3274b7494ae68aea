"""Preparation of a `generate` run: inputs are checked, defaults are filled in, and the plan is made."""

import hashlib
import hmac
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from cxrsynth import __version__
from cxrsynth.address import Address, Location, refuse_address
from cxrsynth.diffusion.model import DiffusionModel, load_model
from cxrsynth.diffusion.notices import tell_additions
from cxrsynth.diffusion.resolve import ResolvedModel, resolve_model
from cxrsynth.diffusion.sampler import check_scheduler
from cxrsynth.diffusion.spec import SPEC_FILE
from cxrsynth.errors import ModelError, ReportsError, ShardError
from cxrsynth.generation.accept import Acceptor, acceptance_plan, load_acceptor
from cxrsynth.generation.machine import Machine, choose_machine
from cxrsynth.reports.deid.entity_model import EntityModel, entity_model_digest
from cxrsynth.reports.findings.labeler import labeler_record, load_labeler
from cxrsynth.reports.request import Reader
from cxrsynth.reports.table.columns import ColumnNames
from cxrsynth.reports.table.table import Table, open_table
from cxrsynth.reports.template import PromptFormat, PromptTemplate, TemplateError, parse_template
from cxrsynth.runtime.processes import ProcessGroup, join_processes
from cxrsynth.settings import (
    Device,
    GenerateSettings,
    Part,
    PromptStyle,
    Sampler,
    ShardFormat,
    ShardSettings,
)
from cxrsynth.shards.encode import DatasetIdentity
from cxrsynth.shards.plan import plan_digest
from cxrsynth.shards.sample import default_id_key, key_fingerprint, load_id_key

# On a CPU small batches go side by side and stay in its caches.
_BATCH_SIZE = {"cpu": 4, "mps": 8, "cuda": 8}
_PACKAGES = ("torch", "diffusers", "transformers", "numpy", "pillow", "pydicom")


@dataclass(frozen=True)
class GenerateRun:
    """What all parts of a run share. `plan` identifies the data set."""

    settings: GenerateSettings
    table: Table
    processes: ProcessGroup
    id_key: bytes = field(repr=False)
    plan: dict[str, Any]
    prompt_format: PromptFormat
    negative_prompt: str = field(repr=False)
    steps: int
    guidance: float
    sampler: Sampler
    batch_size: int
    load_model: Callable[[], DiffusionModel]
    load_acceptor: Callable[[], Acceptor | None]
    load_reader: Callable[[], Reader | None]
    load_entities: Callable[[], EntityModel | None]

    @property
    def identity(self) -> DatasetIdentity:
        """The origin that every DICOM object states."""
        model = self.plan["model"]
        # How samples are written decides no identity: as SC and as CR, an image belongs to one study. But how many are
        # in a shard decides which are drawn in one batch, and so their last bits.
        size = {"shards": {"size": self.plan["shards"]["size"]}}
        seed = plan_digest({name: value for name, value in self.plan.items() if name != "shards"} | size)
        return DatasetIdentity(seed, model["name"], model["digest"], __version__)

    @property
    def common_metadata(self) -> dict[str, Any]:
        """The part of the JSON metadata that all samples share."""
        return {"synthetic": True, "seed": self.settings.seed} | {
            name: self.plan[name] for name in ("model", "sampling", "versions")
        }

    def is_of_part(self, shard: int) -> bool:
        """Whether a shard is of the part of the set that this run makes."""
        return (self.settings.part or Part(1, 1)).has(shard)

    def makes(self, shard: int) -> bool:
        """Whether this process makes a shard: one of its part, divided over the processes that a launcher started."""
        part = self.settings.part or Part(1, 1)
        return self.is_of_part(shard) and shard // part.count % self.processes.count == self.processes.rank

    def is_table_unchanged(self) -> bool:
        """Whether the table still has the bytes the plan was made for."""
        return bool(_keyed(self.id_key, self.table) == self.plan["reports"])


def open_generate(settings: GenerateSettings) -> GenerateRun:
    """Check all inputs before work starts, and fill in what the user left open.

    Raises:
        ReportsError, ModelError, ShardError: for what the user can fix.
    """
    table = open_table(settings.reports, columns=ColumnNames(**settings.columns))
    asked_format = _asked_format(settings)
    if settings.shards.unpacked and isinstance(settings.out, Address):
        raise ShardError(
            f"--unpacked: --out {settings.out} is an object store, and a DICOM file-set replaces a folder as a whole\n"
            "  write tars of DICOM objects there (--format dicom alone), or the file-set into a local folder"
        )
    for path, option in ((settings.id_map, "--id-map"), (settings.rejected, "--rejected")):
        _check_outside(path, settings.out, option)
        if path is not None:
            _check_list(path, settings, option)
    _check_outside(settings.id_key, settings.out, "--id-key")
    if (
        settings.id_key is not None
        and isinstance(settings.reports, Path)
        and _is_same(settings.id_key, settings.reports)
    ):
        raise ShardError(f"--id-key {settings.id_key}: is the table of reports, expected a file with a secret key")
    _refuse_ignored(settings)
    machine = choose_machine(settings)
    device = machine.device
    guidance = settings.sampling.guidance
    if guidance is not None and not math.isfinite(guidance):
        raise ModelError(f"--guidance {guidance}: expected a number, 0 or above")
    id_key = load_id_key(settings.id_key, create=not settings.dry_run)
    model = resolve_model(settings.model, ace=settings.ace, additions=settings.additions)
    defaults = model.spec.defaults
    prompt_format = model.spec.prompt_format if asked_format is None else asked_format
    negative_prompt = model.spec.negative_prompt if settings.negative_prompt is None else settings.negative_prompt
    run = GenerateRun(
        settings=settings,
        table=table.for_prompts(prompt_format),
        processes=join_processes(cpu=settings.sampling.device is Device.CPU or device.type == "cpu"),
        id_key=id_key,
        plan={},
        prompt_format=prompt_format,
        negative_prompt=negative_prompt,
        steps=defaults.steps if settings.sampling.steps is None else settings.sampling.steps,
        guidance=defaults.guidance if guidance is None else guidance,
        sampler=settings.sampling.sampler or defaults.sampler,
        batch_size=settings.sampling.batch_size or _BATCH_SIZE[machine.device_type],
        load_model=lambda: load_model(
            model, device=device, precision=machine.precision, negative_prompt=negative_prompt
        ),
        load_acceptor=lambda: None if settings.accept is None else load_acceptor(settings.accept, device=device),
        load_reader=cache(lambda: load_labeler(settings.labeler, device=device)),
        load_entities=cache(lambda: _entity_model(settings.deid_model, device)),
    )
    if run.negative_prompt and run.guidance == 1.0:
        raise ModelError(_negative_without_guidance(settings, model))
    check_scheduler(model, run.sampler, steps=run.steps)
    _check_request(run, model)
    tell_additions(model)
    return replace(run, plan=_plan(run, model, machine))


def _entity_model(name: Path | None, device: torch.device) -> EntityModel | None:
    return None if name is None else EntityModel(name, device=device)


def refuse_changed(run: GenerateRun) -> None:
    """Raise ReportsError if the table has changed since the plan was made: other rows may have been read.

    What is read once is kept until the end of the run, so that later changes are of no consequence.
    """
    if not run.is_table_unchanged():
        raise ReportsError(f"{run.settings.reports}: changed while it was read\n  run the same command again")


def _asked_format(settings: GenerateSettings) -> PromptFormat | None:
    """The prompt format that the user asks for, None for the model's.

    Raises:
        ModelError: for a template that cannot be read, or two formats.
    """
    if settings.prompt_template is None:
        return settings.prompt
    if settings.prompt is not None:
        raise ModelError(
            f"--prompt {settings.prompt.value} and --prompt-template: found both\n  expected: one prompt format"
        )
    try:
        return parse_template(settings.prompt_template)
    except TemplateError as error:
        raise ModelError(f"--prompt-template: {error}") from None


def _negative_without_guidance(settings: GenerateSettings, model: ResolvedModel) -> str:
    asked = settings.negative_prompt is not None
    where = "--negative-prompt" if asked else f"{model.folder / SPEC_FILE}: negative_prompt"
    without = "leave it out" if asked else "leave it out with --negative-prompt ''"
    if not model.family.has_text:
        return f"{where}: {model.family.title} has no guidance\n  {without}"
    return (
        f"{where}: does nothing at guidance 1, which uses the report's prompt alone\n  raise --guidance, or {without}"
    )


def _check_request(run: GenerateRun, model: ResolvedModel) -> None:
    """Refuse a prompt format or guidance that the model does not have.

    Raises:
        ModelError: naming the option.
    """
    if not model.family.has_text and run.guidance != 1.0:
        raise ModelError(f"--guidance {run.guidance:g}: {model.family.title} has no guidance\n  use: --guidance 1")
    style = run.prompt_format
    given = {"--prompt": run.settings.prompt, "--prompt-template": run.settings.prompt_template}
    for option, value in given.items():
        if value is not None and not _is_conditioned(model):
            raise ModelError(f"{option}: {model.family.title} takes no prompt\n  leave the option out")
    if model.spec.classes and style is not PromptStyle.CLASS:
        asked = f"--prompt {style.value}" if isinstance(style, PromptStyle) else "--prompt-template"
        raise ModelError(f"{asked}: the model takes a class, no text\n  use: --prompt class")
    if style is PromptStyle.CLASS and not model.spec.classes:
        raise ModelError("--prompt class: the model has no classes\n  use: another prompt format")


def _is_conditioned(model: ResolvedModel) -> bool:
    """Whether images depend on what a report says."""
    return model.family.has_text or bool(model.spec.classes)


def _plan(run: GenerateRun, model: ResolvedModel, machine: Machine) -> dict[str, Any]:
    """Everything the bytes of the data set depend on."""
    settings, shards = run.settings, run.settings.shards
    # Accelerators have no such setting: the key is omitted there, since no sample may hold a null.
    threads = {"threads_per_batch": settings.sampling.threads_per_batch} if machine.device_type == "cpu" else {}
    # Keys of choices that most runs do not make are there only with them: plans of older data sets stay as they are.
    negative = {"negative_prompt": run.negative_prompt} if run.negative_prompt else {}
    compiled = {"compiled": True} if settings.sampling.compiled else {}
    accepted = {} if settings.accept is None else {"acceptance": acceptance_plan(settings.accept)}
    asked = run.prompt_format
    prompt = (
        {"prompt": "template", "prompt_template": asked.text}
        if isinstance(asked, PromptTemplate)
        else {"prompt": asked.value}
    )
    return {
        "reports": _keyed(run.id_key, run.table),
        "columns": dict(sorted(settings.columns.items())),
        "id_key_fingerprint": key_fingerprint(run.id_key),
        "limit": settings.limit,
        "order": "table" if settings.keep_order else "key",
        **({"per_image": True} if settings.per_image else {}),
        "images_per_report": settings.images_per_report,
        "seed": settings.seed,
        **prompt,
        "model": _model_record(model),
        **({} if _is_conditioned(model) else {"conditioned": False}),
        "sampling": {
            "steps": run.steps,
            "guidance": run.guidance,
            "sampler": run.sampler.value,
            "batch_size": run.batch_size,
            "device": machine.device_type,
            "precision": machine.precision.value,
        }
        | threads
        | negative
        | compiled,
        "shards": {
            "size": shards.size,
            "format": shards.format.value,
            "image_format": shards.image_format.value,
            "include_text": shards.include_text.value,
            "sop_class": shards.sop_class.value,
            "unpacked": shards.unpacked,
            **({"study_date": shards.study_date} if shards.study_date else {}),
        },
        **accepted,
        **labeler_record(settings.labeler),
        "deid": run.settings.strength.value,
        **({} if settings.deid_model is None else {"deid_model": entity_model_digest(settings.deid_model)}),
        "versions": {"cxrsynth": __version__} | {package: version(package) for package in _PACKAGES},
    }


def _keyed(id_key: bytes, table: Table) -> str:
    """Keyed digest of a table: with a plain hash, anyone could test whether a table they hold is the one used here."""
    return hmac.new(id_key, table.digest().encode(), hashlib.sha256).hexdigest()


def _model_record(model: ResolvedModel) -> dict[str, str]:
    """The model as recorded in plan and metadata. DICOM's LO holds 64 printable characters and no backslash."""
    name = re.sub(r"[^\x20-\x5b\x5d-\x7e]", "_", model.name)[:64].strip() or "model"
    revision = {} if model.revision is None else {"revision": model.revision}
    return {"name": name, "digest": model.digest} | revision


def _check_list(path: Path, settings: GenerateSettings, option: str) -> None:
    """Raise ShardError for a list that would replace another file of the run."""
    others = {"the table of reports": settings.reports, "--id-key": settings.id_key or default_id_key()}
    for what, other in others.items():
        if isinstance(other, Path) and path.resolve() == other.resolve():
            raise ShardError(f"{option} {path}: is {what}, which would be overwritten\n  name another file")


def _is_same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()


def _is_date(text: str) -> bool:
    try:
        return text.isascii() and text.isdigit() and len(text) == 8 and bool(datetime.strptime(text, "%Y%m%d"))
    except ValueError:
        return False


def _refuse_ignored(settings: GenerateSettings) -> None:
    """Raise ShardError for an option that the format has no use for."""
    shards, usual = settings.shards, ShardSettings()
    if shards.study_date is not None:
        if shards.format is not ShardFormat.DICOM:
            raise ShardError("--study-date: WebDataset shards hold no DICOM objects\n  leave it out, or --format dicom")
        if not _is_date(shards.study_date):
            raise ShardError(f"--study-date {shards.study_date}: expected a day as YYYYMMDD, such as 19000101")
    if shards.format is ShardFormat.DICOM and shards.image_format is not usual.image_format:
        raise ShardError(
            f"--image-format {shards.image_format.value}: DICOM objects hold no such files\n"
            "  leave it out, or --format webdataset"
        )
    if shards.format is ShardFormat.WEBDATASET and shards.sop_class is not usual.sop_class:
        raise ShardError(
            f"--sop-class {shards.sop_class.value}: WebDataset shards hold no DICOM objects\n"
            "  leave it out, or --format dicom"
        )


def _check_outside(path: Path | None, out: Location, option: str) -> None:
    """Raise ShardError for a secret file inside the folder that will be shared, or one that is not of this machine."""
    if path is not None:
        refuse_address(path, f"{option} {path}")
    if path is not None and isinstance(out, Path) and path.resolve().is_relative_to(out.resolve()):
        raise ShardError(f"{option} {path}: lies inside --out {out}, which is meant to be shared\n  put it elsewhere")
