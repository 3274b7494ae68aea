"""What an audit finds once every image is scored: duplicates, copies, who is kept, evidence, files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from diffusers import AutoencoderKL
from pydantic import TypeAdapter
from torch import Tensor

from cxrsynth import console
from cxrsynth.auditing.decide import decide, thresholds
from cxrsynth.auditing.fail_under import missed
from cxrsynth.auditing.folder import KEEP, PAGE, SCORES, SUMMARY
from cxrsynth.auditing.page.page import write_page
from cxrsynth.auditing.score_table import (
    reward_names,
    reward_values,
    scores_table,
    summaries,
    write_keep_list,
    write_scores,
)
from cxrsynth.auditing.scored import Scored, _Pictures
from cxrsynth.auditing.setup import AuditRun, Examined
from cxrsynth.auditing.write_kept import Origin, write_kept
from cxrsynth.diffusion.resolve import find_model
from cxrsynth.images.image import Damaged
from cxrsynth.metrics.groups import measure_groups
from cxrsynth.metrics.memorization.duplicates import duplicates
from cxrsynth.metrics.memorization.features import CopySpace
from cxrsynth.metrics.memorization.planted import Autoencode
from cxrsynth.metrics.memorization.search import CopySettings, check_reference, find_copies
from cxrsynth.metrics.utility import measure_utility
from cxrsynth.runtime.files import stable_json, write_atomically
from cxrsynth.settings import AuditSettings

_DAMAGED_LISTED = 1000


def conclude(run: AuditRun) -> dict[str, Any]:
    """Everything from scored units to files; returns what summary.json holds.

    Raises:
        ModelError, ShardError: for what the user can mend.
    """
    made = Scored(run.made)
    reference = Scored(run.reference) if run.reference is not None else None
    console.say("comparing images with each other")
    found: dict[str, Any] = dict(_duplicates(made))
    memorization = None
    if reference is not None:
        copies, memorization = _copies(run, made, reference)
        found |= copies
    scores = scores_table([made.rows], found)
    limits = {} if reference is None else _rewards(reference.rows)
    decided = decide(scores, run.rules, limits)
    summary = {
        "version": run.scorer.identity["version"],
        "input": _told(made, run.made) | {"manifest": run.made.collection.manifest},
        "reference": None if reference is None or run.reference is None else _told(reference, run.reference),
        "settings": _settings(run),
        "judges": run.scorer.identity["judges"],
        "features": run.scorer.identity["features"],
        "thresholds": thresholds(run.rules, limits),
        **summaries(decided),
        "fidelity": [],
        "memorization": memorization,
        "utility": None,
        "provenance": {
            "cxrsynth": run.scorer.identity["version"],
            "family": run.scorer.identity["family"],
            "image_size": run.scorer.identity["image_size"],
        },
    }
    if reference is not None:
        summary |= _evidence(run, made, reference)
    summary["failed"] = missed(run.minimums, summary)
    _write(run, made, reference, decided, summary)
    return summary


def _duplicates(made: Scored) -> dict[str, list[Any]]:
    """Columns `duplicate_of` and `duplicate_similarity`."""
    keys = made.texts("key")
    found = duplicates(made.thumbnails, keys, made.texts("sha256"))
    return {
        "duplicate_of": [found[key][0] if key in found else None for key in keys],
        "duplicate_similarity": [found[key][1] if key in found else None for key in keys],
    }


def _copies(run: AuditRun, made: Scored, reference: Scored) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    """Columns about the nearest real image, and the summary's part."""
    seed = run.settings.seed
    real = reference.image_set()
    check_reference(real)  # before features are fitted on it
    found = find_copies(
        made.image_set(),
        real,
        CopySpace.fit(reference.thumbnails, seed=seed),
        register=run.scorer.register,
        probes=reference.probes(run.settings.probes, seed=seed),
        autoencode=_autoencode(run.scorer.device),
        settings=CopySettings(seed=seed),
    )
    columns: dict[str, list[Any]] = {
        "nearest_real": [radiograph.real or None for radiograph in found.radiographs],
        "copy_similarity": [radiograph.similarity if radiograph.real else None for radiograph in found.radiographs],
        "copy": [radiograph.copy for radiograph in found.radiographs],
    }
    return columns, found.summary()


def _autoencode(device: torch.device) -> Autoencode:
    """Images through nano's autoencoder: what a latent diffusion model's copy of an image looks like."""
    vae = AutoencoderKL.from_pretrained(find_model("nano") / "vae", use_safetensors=True, torch_dtype=torch.float32)
    vae = vae.eval().requires_grad_(False).to(device)

    @torch.inference_mode()
    def autoencode(images: Tensor) -> Tensor:
        decoded: Tensor = vae.decode(vae.encode(images.to(device) * 2 - 1).latent_dist.mean).sample
        return (decoded.cpu() / 2 + 0.5).clamp(0, 1)

    return autoencode


def _settings(run: AuditRun) -> dict[str, Any]:
    """What the command said, defaults and the device found included; paths as given."""
    # Not where the findings go: there they lie, and may be moved.
    told = TypeAdapter(AuditSettings).dump_python(run.settings, mode="json", exclude={"out", "rules"})
    return dict(told) | {"device": run.scorer.device.type, "rules": run.rules.facts()}


def _rewards(rows: pa.Table) -> dict[str, npt.NDArray[np.float32]]:
    return {name: reward_values(rows, name) for name in reward_names(rows)}


def _told(scored: Scored, examined: Examined) -> dict[str, Any]:
    damaged = examined.parts.damaged()
    return {
        "path": examined.collection.path.name,
        "kind": examined.collection.kind,
        "images": scored.rows.num_rows,
        "units": len(examined.collection.units),
        "damaged_count": len(damaged),
        "damaged": [_damage(one) for one in damaged[:_DAMAGED_LISTED]],
    }


def _damage(one: Damaged) -> dict[str, str]:
    return {"source": one.source, "member": one.member, "reason": one.reason}


def _evidence(run: AuditRun, made: Scored, reference: Scored) -> dict[str, Any]:
    """Fidelity, diversity and, where asked for, utility."""
    console.say("measuring fidelity and diversity")
    files = [run.folder.parts / f".{side}.pixels" for side in ("made", "reference")]
    try:
        tables = [one.table(one.pixels(path)) for one, path in zip((made, reference), files, strict=True)]
        found: dict[str, Any] = {"fidelity": measure_groups(*tables, seed=run.settings.seed)}
        if run.settings.utility:
            console.say("training on synthetic and on real images")
            found["utility"] = measure_utility(*tables, seed=run.settings.seed)
        return found
    finally:
        for path in files:
            path.unlink(missing_ok=True)


def _write(
    run: AuditRun, made: Scored, reference: Scored | None, decided: pa.Table, summary: Mapping[str, Any]
) -> None:
    """All files; the summary comes last and says that they are whole."""
    folder = run.folder.path
    (folder / SUMMARY).unlink(missing_ok=True)
    write_scores(folder / SCORES, decided)
    write_keep_list(folder / KEEP, decided)
    if run.settings.write_kept is not None:
        _write_kept(run, made, decided, summary, run.settings.write_kept)
    console.say("writing the report")
    pictures = _Pictures(made)
    real = _Pictures(reference) if reference is not None else None
    write_page(folder / PAGE, summary, decided, pictures.get, reference_thumbnails=real.get if real else None)
    write_atomically(folder / SUMMARY, stable_json(summary))
    asked = [examined for examined in (run.made, run.reference) if examined is not None]
    run.made.parts.drop_others({one.parts.path(unit) for one in asked for unit in one.collection.units})


def _write_kept(run: AuditRun, made: Scored, decided: pa.Table, summary: Mapping[str, Any], out: Path) -> None:
    collection = run.made.collection
    # Of other kinds a unit's digest holds file times; the images' own hashes tie the plan to them.
    ours = {unit.name: collection.content_of(unit) for unit in collection.units if collection.kind == "cxrsynth"}
    judges = {name: judge["digest"] for name, judge in summary["judges"].items()}  # a backend may be a path
    origin = Origin(
        path=collection.path,
        source={"kind": collection.kind, "units": ours},
        rules=run.rules.facts(),
        audit={name: summary[name] for name in ("version", "kept", "rejected", "reasons", "thresholds")}
        | {"judges": judges},
        manifest=collection.manifest,
    )
    with_hashes = decided.append_column("sha256", made.rows["sha256"])
    with console.image_progress(summary["kept"], what="images written") as advance:
        write_kept(
            collection,
            with_hashes,
            out,
            origin=origin,
            size=run.settings.shard_size,
            workers=run.settings.workers,
            advance=advance,
        )
