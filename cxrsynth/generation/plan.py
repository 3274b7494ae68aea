"""One `generate` run made ready: inputs checked, choices resolved, the plan drawn up."""

import hashlib
import hmac
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cxrsynth import __version__
from cxrsynth.diffusion.model import (
    DiffusionModel,
    choose_device,
    choose_precision,
    load_model,
)
from cxrsynth.diffusion.resolve import ResolvedModel, resolve_model
from cxrsynth.errors import ModelError, ShardError
from cxrsynth.reports.table.columns import ColumnNames
from cxrsynth.reports.table.table import Table, open_table
from cxrsynth.runtime.processes import ProcessGroup, join_processes, read_launch
from cxrsynth.settings import Device, GenerateSettings, PromptStyle, Sampler
from cxrsynth.shards.encode import DatasetIdentity
from cxrsynth.shards.plan import plan_digest
from cxrsynth.shards.sample import default_id_key, key_fingerprint, load_id_key

# On a CPU small batches go side by side and stay in its caches.
_BATCH_SIZE = {"cpu": 4, "mps": 8, "cuda": 8}
_PACKAGES = ("torch", "diffusers", "transformers", "numpy", "pillow", "pydicom")


@dataclass(frozen=True)
class GenerateRun:
    """What all parts of `generate` share. `plan` is the data set's identity."""

    settings: GenerateSettings
    table: Table
    processes: ProcessGroup
    id_key: bytes = field(repr=False)
    plan: dict[str, Any]
    prompt_style: PromptStyle
    steps: int
    guidance: float
    sampler: Sampler
    batch_size: int
    load_model: Callable[[], DiffusionModel]

    @property
    def identity(self) -> DatasetIdentity:
        """What every DICOM object says of its origin."""
        model = self.plan["model"]
        return DatasetIdentity(plan_digest(self.plan), model["name"], model["digest"], __version__)

    @property
    def common_metadata(self) -> dict[str, Any]:
        """The part of the JSON that all samples share."""
        return {"synthetic": True, "seed": self.settings.seed} | {
            name: self.plan[name] for name in ("model", "sampling", "versions")
        }

    def is_table_unchanged(self) -> bool:
        """Whether the table still has the bytes the plan was drawn up for."""
        return bool(_keyed(self.id_key, self.table) == self.plan["reports"])


def open_generate(settings: GenerateSettings) -> GenerateRun:
    """Check every input that can be checked before work starts, and resolve what was left to `auto`.

    Raises:
        ReportsError, ModelError, ShardError: for what the user can mend.
    """
    table = open_table(settings.reports, columns=ColumnNames(**settings.columns))
    _check_outside(settings.id_map, settings.out, "--id-map")
    if settings.id_map is not None:
        _check_id_map(settings.id_map, settings)
    _check_outside(settings.id_key, settings.out, "--id-key")
    model = resolve_model(settings.model, ace=settings.ace)
    spec = model.spec
    device = choose_device(settings.sampling.device, local_rank=read_launch().local_rank)
    precision = choose_precision(settings.sampling.precision, device)
    id_key = load_id_key(settings.id_key)
    steps = spec.defaults.steps if settings.sampling.steps is None else settings.sampling.steps
    guidance = spec.defaults.guidance if settings.sampling.guidance is None else settings.sampling.guidance
    if not math.isfinite(guidance):
        raise ModelError(f"--guidance {guidance}: expected a number, 0 or above")
    sampler = settings.sampling.sampler or spec.defaults.sampler
    batch_size = settings.sampling.batch_size or _BATCH_SIZE[device.type]
    # An accelerator has none: the key is left out there, for no sample may hold a null.
    threads = {"threads_per_batch": settings.sampling.threads_per_batch} if device.type == "cpu" else {}
    style = settings.prompt or spec.prompt
    shards = settings.shards
    plan = {
        "reports": _keyed(id_key, table),
        "columns": dict(sorted(settings.columns.items())),
        "id_key_fingerprint": key_fingerprint(id_key),
        "limit": settings.limit,
        "images_per_report": settings.images_per_report,
        "seed": settings.seed,
        "prompt": style.value,
        "model": _model_record(model),
        "sampling": {
            "steps": steps,
            "guidance": guidance,
            "sampler": sampler.value,
            "batch_size": batch_size,
            "device": device.type,
            "precision": precision.value,
        }
        | threads,
        "shards": {
            "size": shards.size,
            "format": shards.format.value,
            "image_format": shards.image_format.value,
            "include_text": shards.include_text.value,
            "sop_class": shards.sop_class.value,
            "unpacked": shards.unpacked,
        },
        "versions": {"cxrsynth": __version__} | {package: version(package) for package in _PACKAGES},
    }
    return GenerateRun(
        settings=settings,
        table=table,
        processes=join_processes(cpu=settings.sampling.device is Device.CPU or device.type == "cpu"),
        id_key=id_key,
        plan=plan,
        prompt_style=style,
        steps=steps,
        guidance=guidance,
        sampler=sampler,
        batch_size=batch_size,
        load_model=lambda: load_model(model, device=device, precision=precision),
    )


def _keyed(id_key: bytes, table: Table) -> str:
    """Digest of a table. Keyed: a bare hash would let anyone test whether a table they hold is the one used here."""
    return hmac.new(id_key, table.digest().encode(), hashlib.sha256).hexdigest()


def _model_record(model: ResolvedModel) -> dict[str, str]:
    """The model as plan and metadata name it. DICOM's LO holds 64 printable characters without a backslash."""
    name = re.sub(r"[^\x20-\x5b\x5d-\x7e]", "_", model.name)[:64].strip() or "model"
    revision = {} if model.revision is None else {"revision": model.revision}
    return {"name": name, "digest": model.digest} | revision


def _check_id_map(path: Path, settings: GenerateSettings) -> None:
    """Raises ShardError for a map that would replace another file of the run, or that cannot be written."""
    others = {"the table of reports": settings.reports, "--id-key": settings.id_key or default_id_key()}
    for what, other in others.items():
        if path.resolve() == other.resolve():
            raise ShardError(f"--id-map {path}: is {what}, which it would replace\n  name another file")
    if path.is_dir():
        raise ShardError(f"--id-map {path}: is a folder, expected a file")
    there = next(parent for parent in path.absolute().parents if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ShardError(f"--id-map {path}: cannot be written in {there}\n  name another file")


def _check_outside(path: Path | None, out: Path, option: str) -> None:
    """Files that reveal ids must not lie in the folder that is shared."""
    if path is not None and path.resolve().is_relative_to(out.resolve()):
        raise ShardError(f"{option} {path}: lies inside --out {out}, which is made to be shared\n  put it elsewhere")
