"""A made-up audit: what summary.json and scores.parquet hold, and images drawn by hand."""

import io
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw, ImageFilter

from cxrsynth.auditing.compare import compare
from cxrsynth.auditing.fail_under import known_metrics
from cxrsynth.auditing.protocol import apply_protocol
from cxrsynth.auditing.reader_study.answers import FORMAT, VERSION, Answered, AnswerFile
from cxrsynth.auditing.reader_study.key import KeyedImage, StudyKey
from cxrsynth.auditing.reader_study.scores import score
from cxrsynth.metrics.membership.attacks import ATTACKS
from cxrsynth.metrics.membership.inference import COMBINED, WITHOUT_MODEL
from cxrsynth.settings import Protocol

HOSTILE = "<img src=x onerror=alert(1)>"
ENDING = "</script><script>alert(2)</script>"
MATHS = "$\\frac{a}{b}$ & 'quoted' \"key\""
FINDINGS = ("Cardiomegaly", "Pleural Effusion", "Edema", "Pneumothorax", "Support Devices")
REASONS = (
    "diagnosis below threshold",
    "duplicate",
    "too near a real image",
    "blank",
    "inverted",
    "text burned in",
)
MEASURES = ("frechet", "frechet_infinity", "kid", "mmd", "precision", "recall", "density", "coverage")
LIKENESS = ("ms_ssim_within", "ms_ssim_real", "ms_ssim_to_real")
REWARDS = ("posture", "diagnosis", "consistency")
_UNITS = (
    "minus units of 5% of width, 10% of scale, 5 degrees (root of the sum of squares)",
    "nats, mean over mentioned findings, present and absent balanced",
    "cosine",
)

_TEXT = pa.list_(pa.string())
SCHEMA = pa.schema(
    [("key", pa.string()), ("source", pa.string()), ("place", pa.int64())]
    + [(name, pa.string()) for name in ("view", "sex", "age_group")]
    + [("present", _TEXT), ("absent", _TEXT)]
    + [(f"reward_{name}", pa.float32()) for name in REWARDS]
    + [("check_blank", pa.float32()), ("checks_failed", _TEXT), ("duplicate_of", pa.string())]
    + [("duplicate_similarity", pa.float32()), ("nearest_real", pa.string()), ("nearest_real_similarity", pa.float32())]
    + [("nearest_patient_score", pa.float32()), ("memorized", pa.bool_()), ("kept", pa.bool_()), ("reasons", _TEXT)]
)


def radiograph(key: str, *, side: int = 160) -> bytes:
    """A chest as a child draws it, its own for every key, as JPEG."""
    rng = np.random.default_rng(list(key.encode()))
    unit = side / 100
    image = Image.new("L", (side, side), 12)
    draw = ImageDraw.Draw(image)

    def ellipse(x: float, y: float, wide: float, high: float, grey: int) -> None:
        draw.ellipse([(x - wide) * unit, (y - high) * unit, (x + wide) * unit, (y + high) * unit], fill=grey)

    middle, top = rng.normal(50, 2), rng.normal(45, 2)
    ellipse(middle, 58, 44, 52, 120)
    for sign in (-1, 1):
        ellipse(middle + sign * 20, top + 4, rng.normal(14, 1), rng.normal(31, 2), 42)
    for level in range(18, 76, 8):
        for sign in (-1, 1):
            box = [middle + sign * 20 - 17, level - 6, middle + sign * 20 + 17, level + 12]
            draw.arc([part * unit for part in box], 200, 340, fill=78, width=max(1, round(1.3 * unit)))
    ellipse(middle + 7, 60, rng.normal(15, 2), rng.normal(14, 1), 165)
    draw.rectangle([(middle - 4) * unit, 0, (middle + 4) * unit, side], fill=175)
    ellipse(middle - 20, 95, 22, 18, 170)
    ellipse(middle + 20, 97, 22, 18, 160)
    grey = np.asarray(image.filter(ImageFilter.GaussianBlur(1.5 * unit)), dtype=np.float64)
    noisy = np.clip(grey + rng.normal(0, 4, grey.shape), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noisy).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def example_rows(radiographs: int = 300, *, seed: int = 0) -> pa.Table:
    """Scores of images, a tenth of them rejected; the first three have keys that attack the page."""
    rng = np.random.default_rng(seed)
    rows = [_row(rng, place) for place in range(radiographs)]
    for row, key in zip(rows, (HOSTILE, ENDING, MATHS), strict=False):
        row["key"] = key
    for row in rows:
        if "duplicate" in row["reasons"]:
            row["duplicate_of"] = next(other["key"] for other in rows if other is not row)
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def _row(rng: np.random.Generator, place: int) -> dict[str, Any]:
    rejected = bool(rng.random() < 0.12)
    reasons = rng.choice(REASONS, size=1 + int(rng.random() < 0.3), replace=False).tolist() if rejected else []
    findings = [name for name, share in zip(FINDINGS, (0.4, 0.3, 0.2, 0.05, 0.3), strict=True) if rng.random() < share]
    worse = 0.9 if rejected else 0.0
    duplicate = "duplicate" in reasons
    return {
        "key": f"{rng.integers(16**10):010x}-{place % 4}",
        "source": f"shard-{place // 100:05d}.tar",
        "place": place % 100,
        "view": [None, "PA", "PA", "AP"][rng.integers(4)],
        "sex": [None, "F", "M"][rng.integers(3)],
        "age_group": "child" if rng.random() < 0.06 else "adult",
        "present": findings,
        "absent": [name for name in FINDINGS if name not in findings and rng.random() < 0.3],
        "reward_posture": -abs(rng.normal(0.05 + worse / 10, 0.03)),
        "reward_diagnosis": -abs(rng.normal(0.5 + worse, 0.3)),
        "reward_consistency": rng.normal(0.45 - worse / 5, 0.12),
        "check_blank": rng.random(),
        "checks_failed": [name for name in reasons if name in ("blank", "inverted", "text burned in")],
        "duplicate_of": None,
        "duplicate_similarity": 0.98 if duplicate else None,
        "nearest_real": f"real-{rng.integers(500):04d}",
        "nearest_real_similarity": 0.97 if "too near a real image" in reasons else rng.beta(8, 6),
        "nearest_patient_score": rng.beta(9, 6),
        "memorized": "too near a real image" in reasons,
        "kept": not rejected,
        "reasons": reasons,
    }


def without(rows: pa.Table, *names: str) -> pa.Table:
    """The same rows with nothing in the columns named."""
    for name in names:
        place = rows.column_names.index(name)
        rows = rows.set_column(place, rows.field(place), pa.nulls(len(rows), rows.field(place).type))
    return rows


def example_summary(rows: pa.Table) -> dict[str, Any]:
    """The summary of an audit of `rows` against a reference of 512 images, all parts there."""
    radiographs = rows.to_pylist()
    kept = sum(row["kept"] for row in radiographs)
    return {
        "version": 1,
        "input": {
            "path": "sets/winter-2031",
            "kind": "webdataset",
            "images": len(radiographs),
            "units": 1 + (len(radiographs) - 1) // 100,
            "damaged": [
                {"source": "shard-00007.tar", "member": "", "reason": "ends in the middle of a member"},
                {"source": "shard-00009.tar", "member": "../../<b>.png", "reason": "leaves its folder"},
            ],
            "manifest": {
                "synthetic": True,
                "counts": {"samples": len(radiographs), "reports": 75},
                "plan": {"model": {"name": "nano", "digest": "5f" * 32}, "seed": 7, "sampling": {"steps": 30}},
                "shards": [{"name": "shard-00000.tar", "sha256": "00" * 32}],
            },
        },
        "reference": {"path": "images/held-out", "kind": "folder", "images": 512, "digest": "7d" * 32, "damaged": []},
        "settings": {"keep_fraction": None, "min": {"diagnosis": -1.2}, "neighbours": 5, "batch_size": 32},
        "reward_models": {
            name: {"backend": "nano-judge", "digest": f"{place}a" * 32, "unit": unit}
            for place, (name, unit) in enumerate(zip(REWARDS, _UNITS, strict=True))
        },
        "features": {"name": "nano-judge diagnosis", "digest": "c4" * 32, "width": 256},
        "kept": kept,
        "rejected": len(radiographs) - kept,
        "reasons": dict(Counter(reason for row in radiographs for reason in row["reasons"])),
        "rewards": {name: _quantiles(rows[f"reward_{name}"]) for name in REWARDS},
        "rewards_kept": {name: _quantiles(rows.filter(rows["kept"])[f"reward_{name}"]) for name in REWARDS},
        "thresholds": [
            {"rule": "at least", "on": "diagnosis", "value": -1.2},
            {"rule": "best of each finding", "on": "consistency", "value": 0.9},
        ],
        "findings": {finding: _by_finding(radiographs, finding) for finding in FINDINGS},
        "fidelity": _fidelity(len(radiographs)),
        "fidelity_all": None,
        "not_measured": {},
        "caveats": [],
        "memorization": _memorization(radiographs),
        "reidentification": _reidentification(radiographs),
        "utility": {
            "rows": _utility(),
            "lift": [
                {"finding": "Edema", "group": "all", "trained_on": "real + synthetic", **_interval(0.021, 0.018)},
                {"finding": "Edema", "group": "all", "trained_on": "synthetic then real", **_interval(0.032, 0.018)},
            ],
            "mean": [
                {"trained_on": "real", "auroc": _interval(0.8, 0.02), "lift": None, "findings": 3},
                *(
                    {"trained_on": name, "auroc": _interval(0.82, 0.02), "lift": _interval(lift, 0.015), "findings": 3}
                    for name, lift in (("real + synthetic", 0.012), ("synthetic then real", 0.023))
                ),
            ],
            "underdiagnosis": [
                {
                    "finding": "Edema",
                    "group": group,
                    "trained_on": "real",
                    "rate": _interval(rate, 0.08),
                    "images": 41,
                    "others_called_positive": 0.22,
                }
                for group, rate in (("all", 0.31), ("sex: F", 0.37), ("sex: M", 0.25))
            ],
            "gaps": [
                {
                    "finding": "Edema",
                    "trained_on": "real",
                    "kind": "sex",
                    "between": ["sex: F", "sex: M"],
                    **_interval(0.12, 0.08),
                }
            ],
            "not_measured": {"real + balanced synthetic": "3 synthetic images show F, child, expected at least 10"},
            "model": None,
            "too_few": [{"finding": "Pneumothorax", "group": "sex: F", "in": "test", "present": 3, "absent": 90}],
        },
        "reader_study": None,
        "failed": [{"metric": "coverage", "value": 0.6312, "threshold": 0.7, "limit": "at least"}],
        "follow_ups": 0,
        "provenance": {
            "id_key": "1f" * 8,
            "command": "cxrsynth audit sets/winter-2031 --reference real/held-out --out evidence --min-diagnosis=-1.2",
            "packages": {"cxrsynth": "0.1.0", "torch": "2.14.0", "numpy": "2.4.1"},
        },
    }


def everything_measured(rows: pa.Table) -> dict[str, Any]:
    """The example's summary with the parts that it lacks: obedience, an attack, readers, a benchmark, another audit."""
    summary = example_summary(rows)
    summary["obedience"] = [
        {"finding": name, "requested": 90, "not_requested": 210, "auroc": _interval(0.8, 0.05)} for name in FINDINGS[:2]
    ]
    summary["membership"] = _membership()
    summary["reader_study"] = _reader_study()
    summary["settings"]["reader_answers"] = ["Quibble.json", "Roe.json"]
    summary["caveats"] = ["reader Dr. Quibble answered 9 of 12 images: scored on those"]
    for row in summary["rewards"].values():
        row["unscored"] = 0
    summary["provenance"]["image_size"] = 256
    summary["features"]["width"] = 256
    summary["protocol"] = apply_protocol(Protocol.CHEXGENBENCH, summary)
    summary["compared"] = compare(summary, summary, known_metrics(REWARDS, ("shifted",)))
    return summary


def _membership() -> dict[str, Any]:
    of = {"patients": 40, "images": 50, "patients_unknown": 0}
    attack = {"auc": _interval(0.61, 0.05), "true_positives": {"0.01": _interval(0.03, 0.02), "0.001": None}}
    return {
        "model": {"name": "nano", "digest": "5f" * 32},
        "members": of | {"path": "train", "digest": "3a" * 32},
        "non_members": of | {"path": "held-out", "digest": "3b" * 32},
        "left_out": 0,
        "prompted": True,
        "caveats": [],
        "passes_per_image": 26,
        "attacks": dict.fromkeys((*ATTACKS, COMBINED, WITHOUT_MODEL), attack),
    }


def _reader_study() -> dict[str, Any]:
    """Two readers' answers to twelve images."""
    images = {
        f"{place:02d}": KeyedImage(
            kind="real" if place % 2 else "synthetic", key=f"k{place}", sha256=f"{place:064x}", present=("Edema",),
            absent=(),
        )
        for place in range(12)
    }  # fmt: skip
    key = StudyKey(
        study="0" * 16, seed=0, side=256, text="findings", matched={"view": 6, "present": 6}, images=images
    )  # fmt: skip
    files = [
        AnswerFile.model_validate(
            {
                "format": FORMAT,
                "version": VERSION,
                "study": key.study,
                "reader": {"name": name, "role": "radiologist", "years": 17.0},
                "answers": [
                    {
                        "image": image,
                        "origin": "real" if int(image) % step else "synthetic",
                        "quality": 1 + int(image) % 5,
                        "findings": ["Edema"],
                        "match": "yes",
                        "seconds": 7.0,
                    }
                    for image in images
                ],
            }
        )
        for name, step in (("Dr. Quibble", 2), ("Dr. Roe", 3))
    ]
    return key.described() | {"scores": score(Answered(key, tuple(files))), "readers": "9e" * 32}


def _quantiles(column: pa.ChunkedArray) -> dict[str, float | int]:
    values = column.to_numpy().astype(np.float64)
    at = {f"p{percent}": float(np.percentile(values, percent)) for percent in (5, 25, 50, 75, 95)}
    return {"mean": float(values.mean()), "std": float(values.std()), **at, "unscored": 0}


def _by_finding(radiographs: list[dict[str, Any]], finding: str) -> dict[str, float | int]:
    having = [row for row in radiographs if finding in row["present"]]
    means = {name: float(np.mean([row[f"reward_{name}"] for row in having])) for name in REWARDS if having}
    return {"images": len(having), "kept": sum(row["kept"] for row in having)} | means


def _interval(value: float, width: float) -> dict[str, float]:
    return {"value": value, "low": value - width, "high": value + width}


def _fidelity(radiographs: int) -> list[dict[str, Any]]:
    groups = ["all", *(f"finding: {name}" for name in FINDINGS)]
    groups += ["view: PA", "view: AP", "sex: F", "sex: M", "age group: adult", "age group: child"]
    values = (14.213, 8.041, 0.00213, 0.00201, 0.8123, 0.6312, 0.951, 0.6312, 0.3412, 0.2913, 0.2502)
    widths = (1.9, 2.2, 0.0021, 0.0022, 0.031, 0.042, 0.06, 0.042, 0.011, 0.012, 0.008)
    measured: dict[str, Any] = {
        name: _interval(value, width) for name, value, width in zip((*MEASURES, *LIKENESS), values, widths, strict=True)
    }
    measured["compared"] = 80
    floors = {"frechet": _interval(6.12, 0.9), "kid": _interval(0.00001, 0.0004), "mmd": _interval(0.00001, 0.0004)}
    floors |= {name: _interval(0.9, 0.03) for name in ("precision", "recall", "density", "coverage")}
    measured["floor"] = floors | {
        "images": 80, "patients": 300, "splits": 10, "frechet_ratio": 2.3,
        "audited": {name: measured[name]["value"] for name in floors},
    }  # fmt: skip
    measured |= {"not_measured": {}, "warnings": {"frechet": "80 images for 256 features: mostly bias"}}
    few: dict[str, Any] = dict.fromkeys(("compared", *MEASURES, *LIKENESS, "floor"))
    few |= {"not_measured": {"all": "too few"}, "warnings": {}}
    return [
        {"group": group, "images": 7, "real": 9, **few}
        if group in ("finding: Pneumothorax", "age group: child")
        else {"group": group, "images": radiographs if group == "all" else 80, "real": 512, **measured}
        for group in groups
    ]


def few_images(summary: dict[str, Any]) -> None:
    """Leave of the fidelity of all images what is measured of few."""
    [overall, *_] = summary["fidelity"]
    left = [name for name in (*MEASURES, *LIKENESS) if name not in ("kid", "mmd")]
    floor = overall["floor"] | {"images": 24, "frechet_ratio": None}
    for part in (floor, floor["audited"]):
        part |= {name: None for name in left if name in part}
    why = "24 audited and 512 real images, expected at least 50 of each"
    overall |= dict.fromkeys(left) | {"compared": 24, "floor": floor}
    overall |= {"not_measured": dict.fromkeys(left, why), "warnings": {"kid": "24 images: wide intervals"}}


def _reidentification(radiographs: list[dict[str, Any]]) -> dict[str, Any]:
    def share(caught: int, of: int) -> dict[str, float]:
        return {"caught": caught, "of": of, "low": 0.8 * caught / of, "high": min(1.0, 1.2 * caught / of)}

    nearest = sorted(radiographs, key=lambda row: -row["nearest_real_similarity"])[12:24]
    quantiles = {"p5": 0.41, "p50": 0.62, "p95": 0.81, "p100": 0.93}
    return {
        "verifier": {
            "name": "nano",
            "digest": "6c" * 32,
            "width": 128,
            "held_out": {"auc": _interval(0.912, 0.031), "patients": 37, "images": 209},
        },
        "false_match_rate": 0.01,
        "matched": 7,
        "share": share(7, len(radiographs)),
        "made_to_real": quantiles,
        "reference": {
            "threshold": 0.83,
            "pair_threshold": 0.71,
            "false_matches": share(6, 512),
            "found": share(31, 140),
            "auc": _interval(0.884, 0.022),
            "others": quantiles,
            "same": {"p5": 0.31, "p50": 0.78, "p95": 0.94, "p100": 0.97},
        },
        "sources": {
            "images": 60,
            "matched": 2,
            "share": share(2, 60),
            "mean": 0.42,
            "scores": quantiles,
            "latent_distance": 0.61,
            "closer": _interval(0.71, 0.04),
        },
        "sources_not_measured": None,
        "nearest": [
            {
                "key": row["key"],
                "real": row["nearest_real"],
                "similarity": row["nearest_real_similarity"],
                "flagged": row["nearest_real_similarity"] > 0.83,
            }
            for row in nearest
        ],
    }


def _memorization(radiographs: list[dict[str, Any]]) -> dict[str, Any]:
    nearest = sorted(radiographs, key=lambda row: -row["nearest_real_similarity"])[:12]
    return {
        "flagged": sum(bool(row["memorized"]) for row in radiographs),
        "threshold": 0.92,
        "features": "correlation of fine detail",
        "autoencoder": {"model": "nano", "digest": "5f" * 32, "is_generator": True},
        "made_to_real": {"p5": 0.33, "p50": 0.58, "p95": 0.82, "p99": 0.95, "max": 0.97},
        "real_to_real": {"p5": 0.36, "p50": 0.61, "p95": 0.80, "p99": 0.87, "max": 0.91},
        "sensitivity": {
            "shifted": {"caught": 196, "of": 200, "low": 0.95, "high": 0.992},
            "rotated": {"caught": 190, "of": 200, "low": 0.911, "high": 0.973},
            "blended": {"caught": 131, "of": 200, "low": 0.587, "high": 0.717},
        },
        "false_alarms": {"caught": 1, "of": 400, "low": 0.0004, "high": 0.014},
        "nearest": [
            {
                "key": row["key"],
                "real": row["nearest_real"],
                "similarity": row["nearest_real_similarity"],
                "flagged": row["memorized"],
            }
            for row in nearest
        ],
    }


def _utility() -> list[dict[str, Any]]:
    reached = {"real": 0.81, "synthetic": 0.74, "real + synthetic": 0.83}
    return [
        {"finding": finding, "group": group, "trained_on": name, "auroc": _interval(value, 0.031), "images": 160}
        for finding in FINDINGS[:3]
        for group in ("all", "sex: F")
        for name, value in reached.items()
        if not (finding == "Edema" and group == "sex: F" and name == "synthetic")
    ]
