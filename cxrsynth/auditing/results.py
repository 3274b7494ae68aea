"""The files an audit leaves: scores.parquet, keep.csv, report.html, summary.json, and the kept images written again."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from cxrsynth import console
from cxrsynth.auditing.folder import KEEP, PAGE, SCORES, SHARED_PAGE, SUMMARY
from cxrsynth.auditing.page.page import PAIRS_SHOWN, is_synthetic, write_page
from cxrsynth.auditing.reader_study.numbered import number_readers
from cxrsynth.auditing.real_names import RealNames
from cxrsynth.auditing.score_table import write_keep_list, write_scores
from cxrsynth.auditing.scored import Previews, Scored
from cxrsynth.auditing.setup import AuditRun
from cxrsynth.auditing.write_kept import Origin, write_kept
from cxrsynth.runtime.files import stable_json, write_atomically


def write_results(
    run: AuditRun,
    images: Scored,
    reference: Scored | None,
    decided: pa.Table,
    summary: Mapping[str, Any],
    names: RealNames,
) -> None:
    """Write all files. The summary comes last: where it is, the others are whole and the real pixels are deleted.

    The kept images follow. If they cannot be written, the findings are there, and the same command writes them.
    """
    folder = run.folder.path
    write_scores(folder / SCORES, decided)
    write_keep_list(folder / KEEP, decided)
    console.say("writing the report")
    shown = reference if run.settings.show_real else None
    previews = None if shown is None else Previews(shown, map(names.name, _real_keys(summary)))
    write_page(
        folder / PAGE,
        summary,
        decided,
        Previews(images).get,
        reference_thumbnails=None if previews is None else lambda hidden: previews.get(names.name(hidden)),
    )
    _write_shared(run, images, decided, summary)
    if reference is not None:
        names.write(run.folder.real_names)
    _tidy(run)
    write_atomically(folder / SUMMARY, stable_json(number_readers(summary)))
    if run.settings.write_kept is not None:
        _write_kept(run, images, decided, summary, run.settings.write_kept)


def _write_shared(run: AuditRun, images: Scored, decided: pa.Table, summary: Mapping[str, Any]) -> None:
    """Write the page that may be handed on. There is none of images that no manifest calls synthetic."""
    page = run.folder.path / SHARED_PAGE
    if is_synthetic(summary):
        page.parent.mkdir(exist_ok=True)
        write_page(page, number_readers(summary), decided, Previews(images).get, handed_on=True)
    else:
        console.say(
            f"{SHARED_PAGE} was not written: no manifest of cxrsynth says that these images are synthetic, and"
            " report.html shows them"
        )


def _real_keys(summary: Mapping[str, Any]) -> list[str]:
    """The real images that the page shows, by their keyed names."""
    parts = (summary["memorization"], summary["reidentification"])
    return [pair["real"] for part in parts for pair in (part or {}).get("nearest", ())[:PAIRS_SHOWN] if pair["real"]]


def _tidy(run: AuditRun) -> None:
    """Delete scores that are no longer asked for, and the pixels of real images unless they are to be kept."""
    attacked = () if run.membership is None else (run.membership.members, run.membership.others)
    examined = [one for one in (run.images, run.reference, *attacked) if one is not None]
    run.images.cache.delete_others({one.cache.path(unit) for one in examined for unit in one.collection.units})
    if run.reference is not None and not run.settings.keep_reference_pixels:
        run.reference.cache.delete_pixels()


def _write_kept(run: AuditRun, images: Scored, decided: pa.Table, summary: Mapping[str, Any], out: Path) -> None:
    collection = run.images.collection
    # The digest of any other kind of unit holds file times; the images' own hashes tie the plan to them instead.
    ours = {unit.name: collection.content_of(unit) for unit in collection.units if collection.kind == "cxrsynth"}
    # Digests only: a backend may be a path.
    models = {name: model["digest"] for name, model in summary["reward_models"].items()}
    origin = Origin(
        path=collection.path,
        source={"kind": collection.kind, "units": ours},
        rules=run.rules.as_json(),
        audit={name: summary[name] for name in ("version", "kept", "rejected", "reasons", "thresholds")}
        | {"reward_models": models},
        manifest=collection.manifest,
    )
    with_hashes = decided.append_column("sha256", images.rows["sha256"])
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
