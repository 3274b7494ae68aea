"""The images compared with the reference: memorization and fidelity, kept so that real pixels need not be.

A comparison is all that needs the pixels of the reference. Once it is written they can be deleted, and the same command
with other rules or thresholds still runs. Another seed, other probes, other kinds of near-duplicates or other images
need the pixels again: the reference is then read and scored anew.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cxrsynth import console
from cxrsynth.auditing.examined import Examined
from cxrsynth.auditing.folder import COMPARISON
from cxrsynth.auditing.scored import Scored
from cxrsynth.auditing.setup import AuditRun
from cxrsynth.errors import ShardError
from cxrsynth.metrics.groups import measure_groups
from cxrsynth.metrics.memorization.copies import LEAST_SIMILAR, find_copies
from cxrsynth.metrics.memorization.features import MatchSpace
from cxrsynth.metrics.memorization.planted import ALTERATIONS
from cxrsynth.metrics.memorization.search import (
    Match,
    SearchReport,
    SearchSettings,
    check_reference,
    find_near_duplicates,
)
from cxrsynth.runtime.files import stable_json, write_atomically

# Number of the set of measures: a comparison with other ones is made anew.
_FIDELITY = 6


@dataclass(frozen=True)
class Comparison:
    """`columns` are those of scores.parquet about the nearest real image, `memorization` that part of summary.json.

    `fidelity` is of all images, whether they are kept or not: rules may change without the pixels of the reference.
    Where the reference is too small for the search, `memorization` is None, `problem` says why, and `copies` is what
    was found of images that are copies by any threshold: `memorized` is then null, not false, of all others.
    """

    columns: dict[str, list[Any]]
    memorization: dict[str, Any] | None
    fidelity: list[dict[str, Any]]
    problem: str | None = None
    copies: dict[str, Any] | None = None


def read_comparison(run: AuditRun) -> Comparison | None:
    """The comparison made before of just these images by just these settings, None where there is none."""
    key = _key(run)
    try:
        kept = json.loads((run.folder.parts / COMPARISON).read_bytes())
        return Comparison(**kept["comparison"]) if key is not None and kept["key"] == key else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def needs_reference_pixels(run: AuditRun, reference: Examined) -> bool:
    """Whether the comparison has still to be made, once the images are scored."""
    return read_comparison(run) is None or not all(map(reference.cache.is_scored, reference.collection.units))


def compare_with_reference(run: AuditRun, images: Scored, reference: Scored) -> Comparison:
    """The comparison kept before, else a new one, which is then kept."""
    kept = read_comparison(run)
    if kept is not None:
        return kept
    columns: dict[str, list[Any]] = {}
    memorization: dict[str, Any] | None = None
    problem, copies = None, None
    try:
        found = _search(run, images, reference)
    except ShardError as error:
        # All images are scored by now: what cannot be measured costs itself alone.
        problem = str(error)
        matches = _copies(run, images, reference)
        columns = _nearest(matches) | {"memorized": [match.flagged or None for match in matches]}
        flagged = sum(match.flagged for match in matches)
        copies = {"flagged": flagged, "threshold": LEAST_SIMILAR, "real": reference.rows.num_rows}
        console.warn(
            f"memorization was not examined: {error}\n"
            f"  only copies that need no such comparison were looked for: {flagged:,} found"
        )
    else:
        columns = _nearest(found.matches) | {"memorized": [match.flagged for match in found.matches]}
        memorization = found.summary() | {"autoencoder": None if run.autoencoder is None else run.autoencoder.as_json()}
    comparison = Comparison(columns, memorization, _fidelity(run, images, reference), problem, copies)
    content = {"key": _key(run), "comparison": asdict(comparison)}
    # Keys keep their order, which is that of the page.
    write_atomically(run.folder.parts / COMPARISON, json.dumps(content, allow_nan=False).encode())
    return comparison


def fidelity_of_kept(
    run: AuditRun, images: Scored, reference: Scored, comparison: Comparison, kept: npt.NDArray[np.int64]
) -> list[dict[str, Any]]:
    """Fidelity and diversity of the kept images by group; that of all where all are kept.

    The pixels of the reference may be gone by now. How alike its images are is taken from the comparison; how alike
    kept and real images are is not measured then.

    Args:
        run: of the audit.
        images: all that were audited.
        reference: the real ones.
        comparison: of all images.
        kept: places of the kept ones.
    """
    if len(kept) == images.rows.num_rows:
        return comparison.fidelity
    console.say("measuring fidelity and diversity of the kept images")
    file = run.folder.parts / ".images.pixels"
    try:
        made = images.image_table(images.pixels(file)).take(kept)
        rows = measure_groups(made, reference.image_table(), seed=run.settings.seed)
    finally:
        file.unlink(missing_ok=True)
    of_all = {row["group"]: row for row in comparison.fidelity}
    # Beside nothing that was measured, it would be the only number of its row.
    return [
        row | {"ms_ssim_real": of_all.get(row["group"], {}).get("ms_ssim_real")}
        if row["ms_ssim_within"] is not None
        else row
        for row in rows
    ]


def _key(run: AuditRun) -> str | None:
    """Identity of everything the comparison depends on; None while an image has still to be scored."""
    if run.reference is None or run.autoencoder is None:
        return None
    parts = {
        "fidelity": _FIDELITY,
        "images": run.images.cache.fingerprint(),
        "reference": run.reference.cache.fingerprint(),
        "seed": run.settings.seed,
        "probes": run.settings.probes,
        "planted": ALTERATIONS,
        "autoencoder": run.autoencoder.as_json(),
    }
    return None if None in parts.values() else hashlib.sha256(stable_json(parts)).hexdigest()


def _nearest(matches: Sequence[Match]) -> dict[str, list[Any]]:
    """The columns of scores.parquet about the nearest real image."""
    return {
        "nearest_real": [match.real or None for match in matches],
        "nearest_real_similarity": [match.similarity if match.real else None for match in matches],
    }


def _copies(run: AuditRun, images: Scored, reference: Scored) -> tuple[Match, ...]:
    """Where near-duplicates cannot be searched for: which images are copies by any threshold."""
    real = reference.image_set()
    if not real.keys:
        return tuple(Match(key, "", -1.0, -1.0, mirrored=False, flagged=False) for key in images.values("key"))
    return find_copies(
        images.image_set(),
        real,
        made_digests=images.values("sha256"),
        digests=reference.values("sha256"),
        seed=run.settings.seed,
    )


def _search(run: AuditRun, images: Scored, reference: Scored) -> SearchReport:
    """The nearest real image of each image, and how well the search works."""
    console.say("searching for near-duplicates of real images")
    seed = run.settings.seed
    real = reference.image_set()
    check_reference(real.groups())  # before features are fitted on it
    return find_near_duplicates(
        images.image_set(),
        real,
        MatchSpace.fit(reference.thumbnails, seed=seed),
        register=run.scorer.register,
        probes=reference.probes(run.settings.probes, seed=seed),
        autoencode=run.autoencoder,
        settings=SearchSettings(seed=seed),
    )


def _fidelity(run: AuditRun, images: Scored, reference: Scored) -> list[dict[str, Any]]:
    """Fidelity and diversity by group."""
    console.say("measuring fidelity and diversity")
    # The folder sweeps files of this name, which a killed run leaves.
    files = [run.folder.parts / f".{side}.pixels" for side in ("images", "reference")]
    try:
        tables = [one.image_table(one.pixels(path)) for one, path in zip((images, reference), files, strict=True)]
        return measure_groups(*tables, seed=run.settings.seed)
    finally:
        for path in files:
            path.unlink(missing_ok=True)
