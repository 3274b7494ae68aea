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
from cxrsynth.metrics.memorization.search import patient_numbers
from cxrsynth.metrics.memorization.verification import Places
from cxrsynth.metrics.proportion import Share
from cxrsynth.metrics.reidentification.identify import (
    FALSE_MATCHES,
    Best,
    Calibration,
    best_matches,
    calibrate,
    check_patients,
    closer_to_source,
    quantiles,
    source_scores,
)
from cxrsynth.shards.plan import as_generated
from cxrsynth.shards.sample import subject_key

_NEAREST = 24
_NO_SOURCE = "no image's report is known to be that of an image in the reference"
_OTHER_KEY = "the data set was made with another id key than this audit's (--id-key)"
_COMPARED = 2000  # images compared with other images like their sources


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
    real, patients = reference.embeddings, patient_numbers(reference.patients)
    known = np.array([bool(patient) for patient in reference.patients])
    try:
        check_patients(patients[known], unknown=int((~known).sum()))
        calibration = calibrate(real[known], patients[known], seed=run.settings.seed)
    except ValueError as error:
        # All images are scored by now: what cannot be measured costs itself alone.
        console.warn(f"re-identification was not examined: {error}")
        return Reidentification(problem=str(error))
    best = best_matches(images.embeddings, real)
    sources = _sources(run, images, reference, patients)
    own = source_scores(images.embeddings, real, sources)
    reports = patient_numbers(_report_names(run, images))  # images of one report are alike
    keys = reference.values("key")
    hidden = [names.hide(keys[place]) for place in best.places]
    columns = {
        "nearest_patient": hidden,
        "nearest_patient_score": best.scores.tolist(),
        "source_score": [None if np.isnan(score) else score for score in own.tolist()],
    }
    matched = _matched_sources(own, reports, calibration)
    if matched:
        matched["latent_distance"] = _latent_distance(images.features, reference.features, sources)
    reason = None if matched else _NO_SOURCE if _has_our_key(run) else _OTHER_KEY
    if reason is not None:
        console.say(f"sources were not examined: {reason}")
    closer = _closer(images.embeddings, reference, sources, patients, seed=run.settings.seed) if matched else None
    summary = {
        "verifier": verifier.embed.as_json() | {"held_out": verifier.held_out},
        "false_match_rate": FALSE_MATCHES,
        "reference": calibration.as_json() | {"patients_unknown": int((~known).sum())},
        **_matches(best, reports, calibration),
        "sources": matched | {"closer": closer} if matched else None,
        "sources_not_measured": reason,
        "nearest": _nearest(images.values("key"), hidden, best, calibration.threshold),
    }
    return Reidentification(columns, summary)


def _sources(run: AuditRun, images: Scored, reference: Scored, patients: Places) -> list[list[int]]:
    """Places of the reference images that each image's report is of; none where no identifier says so.

    A reference image is known by the identifier of its report or by its file's name, an audited one by its report's:
    in a data set of `generate` as the keyed name of its sample, where both have the same key.
    """
    places: dict[str, list[int]] = {}
    for place, (report, key) in enumerate(zip(reference.values("report"), reference.values("key"), strict=True)):
        for name in {report, *_own_names(run, key)} - {""}:
            places.setdefault(name, []).append(place)
    # What images of several patients have in common is no report's identifier; unknown patients count as several.
    known = {name: found for name, found in places.items() if len({patients[place] for place in found}) == 1}
    return [known.get(name, []) for name in _report_names(run, images)]


def _report_names(run: AuditRun, images: Scored) -> list[str]:
    """Keyed name of each image's report, empty where it has none."""
    if images.examined.collection.manifest is not None:
        return [key.rpartition("-")[0] for key in images.values("key")]
    return images.values("report")


def _own_names(run: AuditRun, key: str) -> set[str]:
    """Keyed names of an image's file, with and without its folder and extension."""
    return {subject_key(run.scorer.id_key, name) for name in (key, PurePath(key).stem)}


def _matches(best: Best, reports: Places, calibration: Calibration) -> dict[str, Any]:
    matched = Share.among(best.scores > calibration.threshold, reports)
    return {"matched": matched.caught, "share": asdict(matched), "made_to_real": quantiles(best.scores)}


def _has_our_key(run: AuditRun) -> bool:
    """Whether samples are named by the key of this audit; true where they are named by none."""
    manifest = run.images.collection.manifest
    made = (as_generated(manifest or {}).get("plan") or {}).get("id_key_fingerprint")
    return made in (None, run.scorer.identity["id_key_fingerprint"])


def _matched_sources(scores: Vectors, reports: Places, calibration: Calibration) -> dict[str, Any]:
    """Scores of images with those that their own reports are of; empty where no image has such a one."""
    there = ~np.isnan(scores)
    known = scores[there]
    if not len(known):
        return {}
    share = Share.among(known > calibration.pair_threshold, reports[there])
    return {
        "images": len(known),
        "matched": share.caught,
        "share": asdict(share),
        "mean": float(known.mean()),
        "scores": quantiles(known),
    }


def _latent_distance(made: Vectors, real: Vectors, sources: Sequence[Sequence[int]]) -> float:
    """Root mean squared difference of the features of an image and of its source, mean over the images with a source.

    Source: CheXGenBench, Dutt et al., arXiv 2505.10496 (Latent Distance).
    """
    apart = [
        np.linalg.norm(real[list(own)] - vector, axis=1).mean()
        for vector, own in zip(made, sources, strict=True)
        if len(own)
    ]
    return float(np.mean(apart) / np.sqrt(made.shape[1]))


def _closer(
    made: Vectors, reference: Scored, sources: Sequence[Sequence[int]], patients: Places, *, seed: int
) -> dict[str, float] | None:
    """See `closer_to_source`; of a sample of the images, like images being those of one view, sex and age group."""
    known = np.array([place for place, own in enumerate(sources) if own], np.int64)
    if len(known) > _COMPARED:
        known = np.sort(np.random.default_rng([seed, 5]).choice(known, _COMPARED, replace=False))
    kinds = list(zip(*(reference.values(name) for name in ("view", "sex", "age_group")), strict=True))
    numbers = {kind: number for number, kind in enumerate(dict.fromkeys(kinds))}
    found = closer_to_source(
        made[known],
        reference.embeddings,
        [sources[place] for place in known],
        patients,
        np.array([numbers[kind] for kind in kinds], np.int64),
        seed=seed,
    )
    return None if found is None else asdict(found)


def _nearest(keys: Sequence[str], real: Sequence[str], best: Best, threshold: float) -> list[dict[str, Any]]:
    """The closest pairs."""
    order = sorted(range(len(keys)), key=lambda place: (-best.scores[place], keys[place]))[:_NEAREST]
    return [
        {
            "key": keys[place],
            "real": real[place],
            "similarity": float(best.scores[place]),
            "flagged": bool(best.scores[place] > threshold),
        }
        for place in order
    ]
