"""The HTML report of an audit: one file that needs no network and no server.

Style and script are part of the page, and its Content-Security-Policy names them by their hash: nothing else runs, and
nothing is loaded. Text from outside (keys, file names, reasons) is escaped.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePath
from typing import Any

import jinja2
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from markupsafe import Markup

from cxrsynth.auditing.decide import copied_groups, with_duplicates
from cxrsynth.auditing.page import charts
from cxrsynth.auditing.page.figures import (
    MEASURES,
    attacks,
    compared,
    compared_subgroups,
    count,
    figure,
    flat,
    interval,
    quantile_title,
    quantiles,
    share,
    subgroups,
    utility_table,
    whole_options,
)
from cxrsynth.auditing.page.gallery import Pictures, make_gallery
from cxrsynth.auditing.page.inline import asset, content_policy, environment
from cxrsynth.auditing.page.methods import METHODS
from cxrsynth.auditing.page.privacy import privacy_tests
from cxrsynth.auditing.page.reasons import limits, meaning
from cxrsynth.auditing.page.verdicts import verdicts
from cxrsynth.metrics.membership.inference import FALSE_POSITIVES
from cxrsynth.metrics.utility.cohorts import BOTH, PRETRAINED
from cxrsynth.runtime.files import write_atomically

Thumbnails = Callable[[str], bytes | None]

PAIRS_SHOWN = 24
_HERE = "cxrsynth.auditing.page"
_DETAILS = re.compile(r"findings/|rewards_kept/|utility/(?!mean/)|rewards/.*/(p\d+|unscored)")
_LISTED = 200  # rows of a table of damage
_CURVE_POINTS = 200
_SCORES = ("nearest_real_similarity", "duplicate_similarity", "nearest_patient_score", "source_score")
_LONG_MANIFEST_PARTS = ("shards", "files")  # one entry per file: they stay in the manifest


def write_page(
    path: Path,
    summary: Mapping[str, Any],
    rows: pa.Table,
    thumbnails: Thumbnails,
    *,
    reference_thumbnails: Thumbnails | None = None,
    gallery: int = 400,
    handed_on: bool = False,
) -> None:
    """Write the page of an audit, whole or not at all; equal inputs give equal bytes.

    Args:
        path: the page, replaced where it is there.
        summary: what summary.json holds.
        rows: what scores.parquet holds, one row per image.
        thumbnails: small PNG or JPEG of an audited image by its key, None where there is none.
        reference_thumbnails: the same for a reference image; without it the page shows no real image. With it, only its
            owner can read the page.
        gallery: most images shown, and with duplicates the ones that they repeat. A picture takes at most 32 kB, so
            that the page stays below 1 MB + 32 kB x (1.5 x gallery + 96).
        handed_on: for people who may not see the reference: no picture of a real image, nor of an audited one that is
            a near-duplicate of a real image, or a duplicate of such a one, or in which the verifier recognizes a
            patient.

    Raises:
        ValueError: for a picture that is neither PNG nor JPEG.
    """
    rows = _without_nan(rows)
    pictures = Pictures()
    # What looks like a patient of the reference, and what repeats it; none where nothing was searched.
    withheld = copied_groups(rows) | with_duplicates(rows, _recognizable(summary, rows))
    if handed_on:
        thumbnails = _without(set(rows.filter(pa.array(withheld))["key"].to_pylist()), thumbnails)
        reference_thumbnails = None
    context = _measures(summary, rows) | {
        "handed_on": handed_on,
        "pairs": _pairs(summary["memorization"], pictures, thumbnails, reference_thumbnails),
        "patient_pairs": _pairs(summary["reidentification"], pictures, thumbnails, reference_thumbnails),
        "gallery": make_gallery(
            rows,
            pictures,
            thumbnails,
            rewards=_measured(summary, rows),
            limits=limits(summary),
            count=max(0, gallery),
        ),
        "pictures": pictures,
    }
    shows_patients = reference_thumbnails is not None or not is_synthetic(summary) or withheld.any()
    mode = 0o600 if shows_patients and not handed_on else 0o666  # images of patients are for the owner
    write_atomically(path, _render(context).encode("utf-8", "replace"), mode=mode)


def _measures(summary: Mapping[str, Any], rows: pa.Table) -> dict[str, Any]:
    """Everything on the page except its pictures."""
    rewards = _rewards(summary, rows)
    return {
        "summary": summary,
        "title": PurePath(str(summary["input"]["path"])).name or str(summary["input"]["path"]),
        "synthetic": is_synthetic(summary),
        "rewards": rewards,
        "measures": MEASURES,
        "methods": METHODS,
        "reasons_chart": charts.bars("reasons", _by_count(summary["reasons"]), label="images rejected"),
        "reasons": _by_count(summary["reasons"]),
        "meanings": {reason: meaning(reason) for reason in summary["reasons"]},
        "histograms": {name: _histogram(place, name, summary, rows) for place, name in enumerate(rewards)},
        "fidelity": [*compared(summary, kind="all"), *compared(summary, kind="finding")],
        "fidelity_all": compared(summary, kind="all", of_all=True),
        "fidelity_subgroups": compared_subgroups(summary),
        "fidelity_charts": _fidelity_charts(summary),
        "obedience": summary.get("obedience") or (),
        "obedience_chart": _obedience_chart(summary),
        "obedience_kept": {row["finding"]: row["auroc"] for row in summary.get("obedience_kept") or ()},
        "subgroups": subgroups(rows, rewards=_measured(summary, rows)),
        "similarities": _similarities(summary, rows),
        "verdicts": verdicts(summary),
        **_compared_with(summary),
        "privacy_tests": privacy_tests(summary),
        "recognized": _recognized(summary, rows),
        "attacks": attacks(summary),
        "attack_chart": _attack_chart(summary),
        "false_positives": FALSE_POSITIVES,
        **_utility(summary),
        "reader_chart": _reader_chart(summary),
        "provenance": _provenance(summary),
        "manifest": _short_manifest(summary),
        "listed": _LISTED,
    }


def _render(context: Mapping[str, Any]) -> str:
    style, script = asset(_HERE, "page.css"), asset(_HERE, "page.js")
    policy = content_policy(style, script, images=True)
    return (
        _environment()
        .get_template("report.html.jinja")
        .render({**context, "style": style, "script": script, "policy": policy})
    )


@cache
def _environment() -> jinja2.Environment:
    made = environment(_HERE)
    made.filters |= {
        "count": count,
        "figure": figure,
        "flat": flat,
        "interval": interval,
        "quantile_title": quantile_title,
        "whole_options": whole_options,
    }
    made.globals |= {"share": share}
    return made


def _utility(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What classifiers reached: how far above real images alone, in charts, and everything in tables."""
    utility = summary["utility"] or {}
    means = {row["trained_on"]: row["lift"] for row in utility.get("mean") or () if row["lift"]}
    overall = [row for row in utility.get("lift") or () if row["group"] == "all"]
    by_set = {
        name: {row["finding"]: row for row in overall if row["trained_on"] == name} for name in (BOTH, PRETRAINED)
    }
    lifts = {"mean over findings": means, **by_set}
    return {
        "utility": utility_table(summary, "rows", value="auroc"),
        "utility_means": utility.get("mean") or (),
        "utility_charts": {name: _lift_chart(place, rows) for place, (name, rows) in enumerate(lifts.items()) if rows},
        "lift": utility_table(summary, "lift"),
        "underdiagnosis": utility_table(summary, "underdiagnosis", value="rate"),
        "gaps": utility_table(summary, "gaps"),
        "untrained": utility.get("not_measured") or {},
        "unprobed": utility.get("too_few") or (),
    }


def _lift_chart(place: int, rows: Mapping[str, Mapping[str, float]]) -> Markup:
    ends = {name: (row["value"], row["low"], row["high"]) for name, row in rows.items()}
    return charts.differences(f"lift-{place}", ends, label="AUROC minus that of real images alone")


def _compared_with(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The other audit, and the metrics of both: those of all images, and the many others."""
    compared_with = summary.get("compared")
    rows = compared_with["rows"] if compared_with else []
    return {
        "compared_with": compared_with,
        "compared_rows": [row for row in rows if not _is_detail(row["metric"])],
        "compared_details": [row for row in rows if _is_detail(row["metric"])],
    }


def _is_detail(metric: str) -> bool:
    """Whether a metric is of a finding or a subgroup, or a percentile."""
    return ": " in metric or _DETAILS.match(metric) is not None


def _without_nan(rows: pa.Table) -> pa.Table:
    """Numbers as float64, null for nan: a nan would make every mean nan."""
    for place, name in enumerate(rows.column_names):
        if name.startswith(("reward_", "check_")) or name in _SCORES:
            column = pc.cast(rows[name], pa.float64())
            rows = rows.set_column(place, name, pc.if_else(pc.is_finite(column), column, None))
    return rows


def _rewards(summary: Mapping[str, Any], rows: pa.Table) -> list[str]:
    """Every reward named anywhere, measured or not."""
    columns = [name.removeprefix("reward_") for name in rows.column_names if name.startswith("reward_")]
    return list(dict.fromkeys([*(summary["reward_models"] or {}), *(summary["rewards"] or {}), *columns]))


def _measured(summary: Mapping[str, Any], rows: pa.Table) -> list[str]:
    """Rewards with a column."""
    return [name for name in _rewards(summary, rows) if f"reward_{name}" in rows.column_names]


def _by_count(reasons: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0])))


def _numbers(rows: pa.Table, name: str) -> charts.Numbers:
    return np.asarray(rows[name].drop_null().to_numpy(), dtype=np.float64)


def _histogram(place: int, reward: str, summary: Mapping[str, Any], rows: pa.Table) -> Markup | None:
    """The reward of kept and of rejected images; None if it was not measured."""
    name = f"reward_{reward}"
    if name not in rows.column_names or rows[name].null_count == len(rows):
        return None
    kept = _numbers(rows.filter(rows["kept"]), name)
    rejected = _numbers(rows.filter(pc.invert(rows["kept"])), name)
    # A rule about a share of images does not belong on the axis of a reward.
    lines = [
        rule["value"]
        for rule in summary["thresholds"] or ()
        if rule["on"] == reward and (rule["rule"] == "at least" or rule["rule"].endswith("of reference"))
    ]
    return charts.histogram(
        f"reward-{place}",
        [charts.Series("kept", kept, charts.KEPT), charts.Series("rejected", rejected, charts.REJECTED)],
        label=reward,
        thresholds=lines,
    )


def _similarities(summary: Mapping[str, Any], rows: pa.Table) -> Markup | None:
    """How similar audited images are to real ones, next to how similar real images of different patients are."""
    memorization = summary["memorization"]
    if memorization is None:
        return None
    made, real = _numbers(rows, "nearest_real_similarity"), memorization.get("real_to_real")
    return _cumulative("similarities", made, real, label="similarity", threshold=memorization["threshold"])


def _recognized(summary: Mapping[str, Any], rows: pa.Table) -> Markup | None:
    """Scores of audited images with the patient most like them, next to those of real images with other patients."""
    found = summary.get("reidentification")
    if not found or "nearest_patient_score" not in rows.column_names:
        return None
    made, known = _numbers(rows, "nearest_patient_score"), found["reference"]
    return _cumulative("recognized", made, known["others"], label="score", threshold=known["threshold"])


def _recognizable(summary: Mapping[str, Any], rows: pa.Table) -> npt.NDArray[np.bool_]:
    """Which images are matched to a patient of the reference, or to their own report's image, [N]."""
    matched = np.zeros(len(rows), dtype=bool)
    found = summary.get("reidentification")
    for column, limit in (("nearest_patient_score", "threshold"), ("source_score", "pair_threshold")):
        if found and column in rows.column_names:
            scores = pc.fill_null(rows[column], -np.inf).to_numpy(zero_copy_only=False)
            matched |= scores > found["reference"][limit]
    return matched


def _cumulative(
    name: str, made: charts.Numbers, real: Mapping[str, float | None] | None, *, label: str, threshold: float
) -> Markup | None:
    """Every audited image's value, and quantiles of the real ones'; None without either."""
    curves = []
    if len(made):
        shares = np.linspace(0, 1, min(_CURVE_POINTS, len(made)))
        curves.append(charts.Curve("audited to real", np.quantile(made, shares).tolist(), shares.tolist(), charts.KEPT))
    if ends := quantiles(real):
        curves.append(charts.Curve("real to real", [x for _, x in ends], [y for y, _ in ends], charts.REAL))
    return charts.cumulative(name, curves, label=label, threshold=threshold) if curves else None


def _attack_chart(summary: Mapping[str, Any]) -> Markup | None:
    """AUC of every attack on the model; None without attacks."""
    rows = {
        attack.name: (attack.auc["value"], attack.auc["low"], attack.auc["high"])
        for group in attacks(summary)
        for attack in group
    }
    return charts.intervals("attacks", rows, label="AUC", chance=0.5) if rows else None


def _obedience_chart(summary: Mapping[str, Any]) -> Markup | None:
    """AUROC of every requested finding; None where none was measured."""
    measured = {row["finding"]: row["auroc"] for row in summary.get("obedience") or ()}
    rows = {name: (one["value"], one["low"], one["high"]) for name, one in measured.items() if one}
    return charts.intervals("obedience", rows, label="AUROC", chance=0.5) if rows else None


def _fidelity_charts(summary: Mapping[str, Any]) -> dict[str, Markup]:
    """Of all (kept) images, at the size of the floor: how far they are from real ones, and how well they cover them."""
    overall: Mapping[str, Any] = next((row for row in summary["fidelity"] or () if row["group"] == "all"), {})
    floor = overall.get("floor")
    if not floor:
        return {}
    made = floor["audited"]
    if not floor["frechet"]:  # few images: the kernel distance alone, whose interval may begin below 0
        far = {
            "audited to real": tuple(overall["mmd"][end] for end in ("value", "low", "high")),
            "real to real": tuple(floor["mmd"][end] for end in ("value", "low", "high")),
        }
        return {"Distance of few images": charts.amounts("distance", far, label="MMD by patient")}
    far = {
        "audited to real": (made["frechet"],) * 3,
        "real to real": tuple(floor["frechet"][end] for end in ("value", "low", "high")),
    }
    shares = {}
    for name in ("precision", "recall", "coverage"):
        shares[f"{name}, audited"] = (made[name],) * 3
        shares[f"{name}, real"] = tuple(floor[name][end] for end in ("value", "low", "high"))
    return {
        f"Distance, {floor['images']:,} images each": charts.amounts("distance", far, label="Fréchet distance"),
        f"Precision, recall and coverage, {floor['images']:,} images each": charts.intervals(
            "coverage", shares, label="share"
        ),
    }


def _reader_chart(summary: Mapping[str, Any]) -> Markup | None:
    """How often readers were right about real or synthetic, all together and each; None without answers."""
    scores = (summary["reader_study"] or {}).get("scores")
    if scores is None:
        return None
    named = {"all readers": scores["accuracy"]} | {one["name"]: one["accuracy"] for one in scores["readers"]}
    rows = {name: (one["value"], one["low"], one["high"]) for name, one in named.items()}
    return charts.intervals("readers", rows, label="share right", chance=scores["chance"])


@dataclass(frozen=True, slots=True)
class Pair:
    """An audited image and the real one nearest to it, with a picture of each."""

    made: str
    real: str
    similarity: float
    flagged: bool
    made_picture: str | None
    real_picture: str | None


def is_synthetic(summary: Mapping[str, Any]) -> bool:
    """Whether the manifest of the audited images says that they are synthetic."""
    return bool((summary["input"].get("manifest") or {}).get("synthetic"))


def _without(hidden: Collection[str], thumbnails: Thumbnails) -> Thumbnails:
    return lambda key: None if key in hidden else thumbnails(key)


def _pairs(
    part: Mapping[str, Any] | None, pictures: Pictures, made: Thumbnails, real: Thumbnails | None
) -> Sequence[Pair]:
    return [
        Pair(
            pair["key"],
            pair["real"],
            pair["similarity"],
            pair["flagged"],
            pictures.uri(made(pair["key"])),
            pictures.uri(real(pair["real"])) if real else None,
        )
        for pair in (part or {}).get("nearest", ())[:PAIRS_SHOWN]
        if pair["real"]
    ]


def _provenance(summary: Mapping[str, Any]) -> dict[str, Any]:
    reference = (summary["reference"] or {}).get("path", "none")
    inputs = {"summary version": summary["version"], "audited": summary["input"]["path"], "reference": reference}
    return inputs | dict(summary["provenance"] or {})


def _short_manifest(summary: Mapping[str, Any]) -> dict[str, Any]:
    manifest = summary["input"].get("manifest") or {}
    return {name: value for name, value in manifest.items() if name not in _LONG_MANIFEST_PARTS}
