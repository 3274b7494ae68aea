"""Patients of the reference who are recognized in the audited images, by the verifier's embeddings."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import PurePath
from typing import Any

import numpy as np

from cxrsynth import console
from cxrsynth.auditing.real_names import RealNames
from cxrsynth.auditing.scored import Scored
from cxrsynth.auditing.setup import AuditRun
from cxrsynth.metrics.memorization.features import Vectors
from cxrsynth.metrics.memorization.search import Share, patient_numbers
from cxrsynth.metrics.reidentification.identify import (
    FALSE_MATCHES,
    Best,
    Calibration,
    best_matches,
    calibrate,
    closer_to_source,
    quantiles,
    source_scores,
)
from cxrsynth.shards.sample import subject_key

_NEAREST = 24


@dataclass(frozen=True)
class Reidentification:
    """Columns of scores.parquet, and `reidentification` of summary.json: None where `problem` says why not."""

    columns: Mapping[str, list[Any]] = field(default_factory=dict)
    summary: dict[str, Any] | None = None
    problem: str | None = None


def reidentify(run: AuditRun, images: Scored, reference: Scored, names: RealNames) -> Reidentification:
    """Compare each audited image with the reference, and with the images that its own report is of.

    All it needs is in the scored rows: no pixels.
    """
    verifier = run.scorer.verifier
    if verifier is None or not images.rows.num_rows:
        return Reidentification()
    console.say("comparing patients")
    real = reference.embeddings
    try:
        calibration = calibrate(real, patient_numbers(reference.patients), seed=run.settings.seed)
    except ValueError as error:
        # All images are scored by now: what cannot be measured costs itself alone.
        console.warn(f"re-identification was not examined: {error}")
        return Reidentification(problem=str(error))
    best = best_matches(images.embeddings, real)
    sources = _sources(run, images, reference)
    own = source_scores(images.embeddings, real, sources)
    keys = reference.values("key")
    hidden = [names.hide(keys[place]) for place in best.places]
    columns = {
        "nearest_patient": hidden,
        "nearest_patient_score": best.scores.tolist(),
        "source_score": [None if np.isnan(score) else score for score in own.tolist()],
    }
    summary = {
        "verifier": verifier.embed.as_json() | {"held_out": verifier.held_out},
        "false_match_rate": FALSE_MATCHES,
        "reference": calibration.as_json(),
        **_matches(best, calibration),
        "sources": _of_sources(images.embeddings, real, sources, own, calibration, seed=run.settings.seed),
        "nearest": _nearest(images.values("key"), hidden, best, calibration.threshold),
    }
    return Reidentification(columns, summary)


def _sources(run: AuditRun, images: Scored, reference: Scored) -> list[list[int]]:
    """Places of the reference images that each image's report is of; none where no identifier says so.

    A reference image is known by the identifier of its report or by its file's name, an audited one by its report's:
    in a data set of `generate` as the keyed name of its sample, where both have the same key.
    """
    places: dict[str, list[int]] = {}
    for place, (report, key) in enumerate(zip(reference.values("report"), reference.values("key"), strict=True)):
        for name in {report, *_own_names(run, key)} - {""}:
            places.setdefault(name, []).append(place)
    return [places.get(name, []) for name in _report_names(run, images)]


def _report_names(run: AuditRun, images: Scored) -> list[str]:
    """Keyed name of each image's report, empty where it has none but that of the image itself."""
    keys = images.values("key")
    if images.examined.collection.manifest is not None:
        return [key.rpartition("-")[0] for key in keys]
    named = zip(images.values("report"), keys, strict=True)
    return ["" if report in _own_names(run, key) else report for report, key in named]


def _own_names(run: AuditRun, key: str) -> set[str]:
    """Keyed names of an image's file, with and without its folder and extension."""
    return {subject_key(run.scorer.id_key, name) for name in (key, PurePath(key).stem)}


def _matches(best: Best, calibration: Calibration) -> dict[str, Any]:
    matched = Share.among(best.scores >= calibration.threshold)
    return {"matched": matched.caught, "share": asdict(matched), "made_to_real": quantiles(best.scores)}


def _of_sources(
    made: Vectors,
    real: Vectors,
    sources: Sequence[Sequence[int]],
    scores: Vectors,
    calibration: Calibration,
    *,
    seed: int,
) -> dict[str, Any] | None:
    """How close images are to those that their own reports are of; None where no image has such a one."""
    known = [place for place, score in enumerate(scores) if not np.isnan(score)]
    if not known:
        return None
    share = Share.among(scores[known] >= calibration.pair_threshold)
    return {
        "images": len(known),
        "matched": share.caught,
        "share": asdict(share),
        "scores": quantiles(scores[known]),
        "closer": asdict(closer_to_source(made[known], real, [sources[place] for place in known], seed=seed)),
    }


def _nearest(keys: Sequence[str], real: Sequence[str], best: Best, threshold: float) -> list[dict[str, Any]]:
    """The closest pairs."""
    order = sorted(range(len(keys)), key=lambda place: (-best.scores[place], keys[place]))[:_NEAREST]
    return [
        {
            "key": keys[place],
            "real": real[place],
            "similarity": float(best.scores[place]),
            "flagged": bool(best.scores[place] >= threshold),
        }
        for place in order
    ]
