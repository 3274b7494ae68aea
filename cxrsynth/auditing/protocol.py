"""`--protocol`: what an audit measured under the names of a published benchmark, beside the benchmark's own rows.

A distance means nothing without the features it is measured in. Published values are given only where the audit used
the same network; elsewhere the comparison is refused in words. Values and their source are in `chexgenbench.json`.
"""

import json
from collections.abc import Collection, Mapping
from importlib.resources import files
from typing import Any

import numpy as np

from cxrsynth.metrics.utility.cohorts import SYNTHETIC
from cxrsynth.settings import Protocol

ALIGNMENT, DOWNSTREAM, LATENT = "Alignment Score", "Downstream AUROC", "Avg. Latent Distance"
# The benchmark's metrics in its order, and those of the audit that they are.
_FIDELITY = {
    "FID": "frechet",
    "KID": "kid",
    "Precision": "precision",
    "Recall": "recall",
    "Density": "density",
    "Coverage": "coverage",
}
_METRICS = ("FID", "KID", ALIGNMENT, "Precision", "Recall", "Density", "Coverage", DOWNSTREAM)
# Of each image and the one that its own report is of: what `reidentification` has of them, by the benchmark's names.
_RECOGNIZED = ("Avg. Re-ID Score", "Max. Re-ID Score", "Count Re-ID > δ")
# Named with their network: in the benchmark's tables the first three are, and of the others it differs.
_WITH_NETWORK = ("FID", "KID", ALIGNMENT, LATENT, *_RECOGNIZED)
_NEVER = {
    "Avg. Pixel Distance": "the benchmark subtracts 8-bit gray levels, whose differences wrap around below 0, so that"
    " its values are no distances to compare with",
    "FID, KID and Inception Score of InceptionV3": "the audit measures in one feature space, that of --features",
    "FRD": "radiomic features are not measured",
    "Radiology report generation": "needs LLaVA-Rad to be fine-tuned on the images",
}


def apply_protocol(protocol: Protocol, summary: Mapping[str, Any]) -> dict[str, Any]:
    """The part `protocol` of summary.json.

    Args:
        protocol: the benchmark.
        summary: the other parts, of an audit against a reference. Those of all images are taken, since no published
            model had its images chosen.

    Returns:
        `title`, `paper`, `data` and `sources` of the benchmark; `features` of the audit; how many images were
        `compared` on each side, of how many `images` and `real` ones; `metrics`: by the benchmark's name the `title`
        with the network in it, the `network` measured with, its `digest`, `value`, `low` and `high` (null where there
        is no interval), `warning` where there are too few images (null where not); `pathologies`: FID of each that was
        measured, with `compared` and `warning`; `not_measured`: why, by name; `published`: rows of the benchmark, with
        the metrics that may be compared alone, and `refused`: why others may not, by name; `notes` on what differs.
    """
    found = json.loads(files("cxrsynth.auditing").joinpath(f"{protocol}.json").read_text("utf-8"))
    fidelity = {row["group"]: row for row in summary["fidelity_all"] or summary["fidelity"]}
    overall, features = fidelity["all"], summary["features"]
    missing: dict[str, str] = {}
    metrics = _metrics(summary, overall, missing) | _privacy(summary, missing)
    names = found["pathologies"]["columns"]
    pathologies = _pathologies(fidelity, names, missing)
    refused = _refused(found, metrics, features)
    for name, one in metrics.items():
        one["title"] = f"{name} ({_title(one['network'], found)})" if name in _WITH_NETWORK else name
    comparable = metrics.keys() - {name for several in refused for name in several}
    rows = _published(found["overall"], comparable)
    for model, row in _published(found["privacy"], comparable).items():
        rows[model] = rows.get(model, {}) | row
    enough = [name for name, one in pathologies.items() if not one["warning"]]
    of_pathologies = _published(found["pathologies"], enough if "FID" in comparable else ())
    notes = _notes(found, summary, comparable) + _size_notes(metrics, pathologies)
    return {
        "name": str(protocol),
        **{name: found[name] for name in ("title", "paper", "data")},
        "sources": {name: found[name]["source"] for name in ("overall", "privacy", "pathologies")},
        "features": features,
        **{name: overall[name] for name in ("compared", "images", "real")},
        "metrics": metrics,
        "pathologies": pathologies,
        "not_measured": missing | _NEVER,
        "published": {"overall": rows, "pathologies": of_pathologies},
        "refused": {", ".join(several): why for several, why in refused.items()},
        "notes": notes + (found["pathologies"]["notes"] if of_pathologies else []),
    }


def _metrics(
    summary: Mapping[str, Any], overall: Mapping[str, Any], missing: dict[str, str]
) -> dict[str, dict[str, Any]]:
    """What was measured of all images; `missing` is given the reasons for the rest."""
    features, judge = summary["features"], summary["reward_models"].get("consistency")
    of_features = {"network": features["name"], "digest": features["digest"]}
    found: dict[str, dict[str, Any]] = {}
    for name in _METRICS:
        if name == ALIGNMENT:
            mean = summary["rewards"].get("consistency", {}).get("mean")
            if judge is None or mean is None:
                missing[name] = (
                    "the reward `consistency` was not measured"
                    if judge is None
                    else f"no image has a report that {judge['backend']} reads for the reward `consistency`; images of"
                    " `generate` have theirs with --include-text"
                )
            else:
                found[name] = {"network": judge["backend"], "digest": judge["digest"], **_alone(mean)}
        elif name == DOWNSTREAM:
            areas = _downstream(summary["utility"])
            if areas:
                model = summary["utility"].get("model")
                of_model = {"network": model["name"], "digest": model["digest"]} if model else of_features
                found[name] = {**of_model, **_alone(float(np.mean(areas))), "findings": len(areas)}
            else:
                asked = "no finding has enough images" if summary["utility"] else "needs --utility"
                missing[name] = summary["not_measured"].get("utility", asked).replace("\n ", ";")
        elif (measured := overall[_FIDELITY[name]]) is None:
            missing[name] = _reason(overall, _FIDELITY[name])
        else:
            found[name] = of_features | measured | {"warning": _warning(overall, _FIDELITY[name])}
    return found


def _warning(row: Mapping[str, Any], measure: str) -> str | None:
    """Why a value means little at its number of images, None where it does not."""
    found: str | None = (row.get("warnings") or {}).get(measure)
    return found


def _size_notes(metrics: Mapping[str, Mapping[str, Any]], pathologies: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Which values mean little for lack of images."""
    by_warning: dict[str, list[str]] = {}
    for name, one in metrics.items():
        if one.get("warning"):
            by_warning.setdefault(one["warning"], []).append(name)
    notes = [f"{', '.join(names)}: {warning}" for warning, names in by_warning.items()]
    few = [name for name, one in pathologies.items() if one["warning"]]
    if few:
        notes.append(
            f"FID of {', '.join(few)}: so few images for the number of features that most of the value may come from"
            " their number; published values are not given beside it"
        )
    return notes


def _privacy(summary: Mapping[str, Any], missing: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Scores and distances of images and their own sources; `missing` is given the reason where there are none."""
    found, features = summary["reidentification"], summary["features"]
    sources = (found or {}).get("sources")
    if not sources:
        why = summary["not_measured"].get("reidentification", "it was not examined")
        why = found["sources_not_measured"] if found else why.replace("\n ", ";")
        missing |= dict.fromkeys((*_RECOGNIZED, LATENT), f"re-identification: {why}")
        return {}
    verifier = {"network": found["verifier"]["name"], "digest": found["verifier"]["digest"]}
    values = (sources["mean"], sources["scores"]["p100"], float(sources["matched"]))
    measured = {name: verifier | _alone(value) for name, value in zip(_RECOGNIZED, values, strict=True)}
    distance = {"network": features["name"], "digest": features["digest"], **_alone(sources["latent_distance"])}
    return {**measured, LATENT: distance}


def _alone(value: float) -> dict[str, float | None]:
    return {"value": value, "low": None, "high": None}


def _downstream(utility: Mapping[str, Any] | None) -> list[float]:
    """AUROC of each finding on all held-out real images, after training on synthetic ones; the benchmark's macro mean
    is that of these.
    """
    return [
        row["auroc"]["value"]
        for row in (utility or {}).get("rows", ())
        if row["group"] == "all" and row["trained_on"] == SYNTHETIC
    ]


def _learner(utility: Mapping[str, Any]) -> str:
    model = utility.get("model")
    return f"{model['name']}, from {model['starts_from']}" if model else "a linear probe on the features of this audit"


def _reason(row: Mapping[str, Any], measure: str) -> str:
    reasons: Mapping[str, str] = row["not_measured"]
    return reasons.get(measure) or reasons.get("all", "too few images")


def _pathologies(
    fidelity: Mapping[str, Mapping[str, Any]], names: list[str], missing: dict[str, str]
) -> dict[str, dict[str, Any]]:
    """FID by pathology; `missing` is given the reasons for the rest."""
    found = {}
    for name in names:
        row = fidelity.get(f"finding: {name}")
        if row is not None and row["frechet"] is not None:
            found[name] = {**row["frechet"], "compared": row["compared"], "warning": _warning(row, "frechet")}
        else:
            missing[f"FID of {name}"] = "no image states it" if row is None else _reason(row, "frechet")
    return found


def _refused(
    found: Mapping[str, Any], metrics: Mapping[str, Mapping[str, Any]], features: Mapping[str, Any]
) -> dict[tuple[str, ...], str]:
    """Why published values of measured metrics are not given, by metrics."""
    refused = {}
    in_features = tuple(name for name in metrics if name in _FIDELITY)
    same = _is(features["name"], found["features"]) and features["width"] == found["features"]["width"]
    if in_features and not same:
        refused[in_features] = _across(in_features, found["features"], _network(features)) + (
            f": run again with --features {found['features']['names'][0]}@REVISION, or a folder named"
            f" {found['features']['names'][-1]}"
        )
    if LATENT in metrics and not same:
        refused[(LATENT,)] = _across((LATENT,), found["features"], _network(features))
    if _RECOGNIZED[0] in metrics:
        refused[_RECOGNIZED] = (
            f"published {', '.join(_RECOGNIZED)} are of a network published as pickled weights, which cxrsynth never"
            f" loads; this audit used {metrics[_RECOGNIZED[0]]['network']}"
        )
    if ALIGNMENT in metrics and not _is(metrics[ALIGNMENT]["network"], found["alignment"]):
        refused[(ALIGNMENT,)] = _across((ALIGNMENT,), found["alignment"], metrics[ALIGNMENT]["network"]) + (
            f": convert it to a folder named {found['alignment']['names'][-1]}, and run again with --judge"
            " consistency=FOLDER"
        )
    if DOWNSTREAM in metrics:
        refused[(DOWNSTREAM,)] = (
            f"published {DOWNSTREAM} is not included: no table of it was found beside the benchmark's others"
        )
    return refused


def _is(name: str, network: Mapping[str, Any]) -> bool:
    """Whether a network loaded by a name is a published one, at any revision of the hub or in a folder so named."""
    return name.partition("@")[0] in network["names"]


def _title(name: str, found: Mapping[str, Any]) -> str:
    """A network by the benchmark's name for it, where it has one."""
    known = (network for network in (found["features"], found["alignment"]) if _is(name, network))
    return next((str(network["title"]) for network in known), name)


def _across(metrics: tuple[str, ...], theirs: Mapping[str, Any], ours: str) -> str:
    network = _network({"name": f"{theirs['title']}: {theirs['names'][0]}", "width": theirs["width"]})
    return f"published {', '.join(metrics)} {'is' if len(metrics) == 1 else 'are'} of {network}, this audit used {ours}"


def _network(features: Mapping[str, Any]) -> str:
    return str(features["name"]) + ("" if features["width"] is None else f" ({features['width']} numbers per image)")


def _published(table: Mapping[str, Any], names: Collection[str]) -> dict[str, dict[str, float]]:
    """Model -> column -> value, of some columns; empty where there are none."""
    chosen = [name for name in table["columns"] if name in names]
    if not chosen:
        return {}
    rows = {model: dict(zip(table["columns"], values, strict=True)) for model, values in table["rows"].items()}
    return {model: {name: row[name] for name in chosen} for model, row in rows.items()}


def copies_counted(summary: Mapping[str, Any]) -> str | None:
    """What a reader must know where copies of real images are among those measured; None where none were found."""
    flagged = (summary["memorization"] or summary.get("copies") or {}).get("flagged")
    if not flagged:
        return None
    images = (
        "1 near-duplicate of a real image is" if flagged == 1 else f"{flagged:,} near-duplicates of real images are"
    )
    return f"{images} counted here, since all images are: copies make a set look better than it is"


def _notes(found: Mapping[str, Any], summary: Mapping[str, Any], comparable: Collection[str]) -> list[str]:
    """What a reader who compares must know."""
    notes, named = [], []
    copies = copies_counted(summary)
    if copies is not None:
        notes.append(copies)
    side = summary["provenance"]["image_size"]
    if summary["utility"]:
        notes.append(
            f"{DOWNSTREAM}: {_learner(summary['utility'])}, trained on the kept images; the benchmark trains a network"
            " on 20,000 images"
        )
    if (patients := summary["reidentification"]) and patients["sources"]:
        notes.append(
            f"Re-ID: cosines of {patients['verifier']['name']}, of {patients['sources']['images']:,} images and"
            " the real ones that their own reports are of; the benchmark has probabilities, of ten images for each of"
            f" 2,000 prompts. δ is {patients['reference']['pair_threshold']:.3f}, which 1% of pairs of two patients"
            " reach"
        )
    if LATENT in comparable:
        notes.append(f"published {LATENT}: {found['privacy']['preparation']}")
    if "FID" in comparable:
        named.append(summary["features"]["name"])
        notes.append(
            f"published features: {found['features']['preparation']}; this audit: the center square at {side} x {side}"
        )
    if ALIGNMENT in comparable:
        named.append(summary["reward_models"]["consistency"]["backend"])
        notes.append(
            f"published {ALIGNMENT}: {found['alignment']['preparation']}; this audit: the center square at"
            f" {side} x {side}, and the impression of a report, or all of it where it has none"
        )
    if named:
        notes += [
            f"published values are of {found['data']}; other reference images, prompts or numbers of images give other"
            " values for the same model",
            "a published network is recognized by its name, and width of features, alone: make sure that"
            f" {' and '.join(named)} {'holds' if len(named) == 1 else 'hold'} the released weights",
        ]
    return notes
