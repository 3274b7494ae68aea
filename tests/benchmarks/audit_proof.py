"""`python -m tests.benchmarks.audit_proof --data DIR --work DIR`: what an audit finds in images whose faults are known.

Makes 260 images with nano from the labels of real images of split `val` and audits them against those real images
(`--utility` trains on half of these patients and tests on the other half). Then plants faults in 60 of them, ten of
each kind, and audits all of them against images of split `train`; ten of these are planted too.
`DIR` holds images/*.tar and manifests/*.csv (see the README, "Building nano"). Prints tables in Markdown.
"""

import csv
import io
import json
import random
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow.parquet as pq
import typer
from PIL import Image

from cxrsynth.metrics.utility.cohorts import TRAINED_ON
from cxrsynth.nano.build.images import GROUPS, Radiograph, load_images
from cxrsynth.reports.labels import OBSERVATIONS

GOOD, EACH = 200, 10
IMAGES = GOOD + 6 * EACH  # a planted image is made of one that is not among the good ones
_SEED = 0


def main(
    data: Annotated[Path, typer.Option(help="Folder with images/ and manifests/.")],
    work: Annotated[Path, typer.Option(help="New folder for everything made here.")],
) -> None:
    """Make, audit, plant, audit again."""
    work.mkdir(parents=True, exist_ok=True)
    val, _ = load_images(data, size=256, split="val")
    train, _ = load_images(data, size=256)
    rng = random.Random(_SEED)
    labeled = [radiograph for radiograph in val if radiograph.present]
    requested = [rng.choice(labeled) for _ in range(IMAGES)]
    write_table(work / "reports.csv", requested)
    for split, radiographs in (("val", val), ("train", train)):
        write_images(data, radiographs, work / f"real-{split}")
    run_command("generate", work / "reports.csv", "--out", work / "made", "--id-key", id_key(work))
    run_command(
        "audit", work / "made", "--out", work / "audit", "--reference", work / "real-val",
        "--reference-table", work / "real-val.csv", "--utility",
    )  # fmt: skip
    found = json.loads((work / "audit" / "summary.json").read_text())
    _print_fidelity(found)
    _print_utility(found["utility"])
    kinds = _plant(work, [radiograph.image_id for radiograph in train], rng)
    run_command(
        "audit", work / "planted", "--out", work / "audit-planted", "--reference", work / "real-train",
        "--reference-table", work / "real-train.csv",
        "--min-posture", "-4", "--beat-reference", "diagnosis=1", "--beat-reference", "consistency=1",
    )  # fmt: skip
    _print_recall(kinds, work / "audit-planted" / "scores.parquet")


def run_command(*arguments: object) -> None:
    """Run a command as a user would; print it."""
    typer.echo("cxrsynth " + " ".join(map(str, arguments)))
    subprocess.run([sys.executable, "-m", "cxrsynth", *map(str, arguments)], check=True)


def id_key(work: Path) -> Path:
    path = work / "id.key"
    path.write_text("0123456789abcdef" * 4 + "\n")
    path.chmod(0o600)
    return path


def write_table(path: Path, radiographs: list[Radiograph], *, file_names: bool = False) -> None:
    """Label columns of images, and who was imaged how; no text, for these images have none."""
    first = "filename" if file_names else "report_id"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([first, "patient_id", "view", "sex", "age", *OBSERVATIONS])
        for place, radiograph in enumerate(radiographs):
            labels = [
                "1" if name in radiograph.present else "0" if name in radiograph.absent else "" for name in OBSERVATIONS
            ]
            age = {"child": "4", "adult": "50"}.get(radiograph.subject.age_group or "", "")
            name = f"{radiograph.image_id}.jpg" if file_names else str(place)
            writer.writerow(
                [name, radiograph.patient_id, radiograph.subject.view or "", radiograph.subject.sex or "", age, *labels]
            )


def write_images(data: Path, radiographs: list[Radiograph], folder: Path) -> None:
    """The images as their sources have them, in a folder with a table beside it."""
    folder.mkdir(exist_ok=True)
    wanted = {f"{radiograph.image_id}.jpg" for radiograph in radiographs}
    for group in GROUPS:
        for name, content in tar_members(data / "images" / f"{group}.tar"):
            if name in wanted:
                (folder / name).write_bytes(content)
    write_table(folder.with_suffix(".csv"), radiographs, file_names=True)


def tar_members(path: Path) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(path) as tar:
        for member in tar:
            file = tar.extractfile(member)
            if file is not None:
                yield member.name, file.read()


def _plant(work: Path, real: list[str], rng: random.Random) -> dict[str, str]:
    """A WebDataset of the good images and ten of each fault among them; returns key -> kind."""
    good: dict[str, dict[str, bytes]] = {}
    for path in sorted((work / "made").glob("*.tar")):
        for name, content in tar_members(path):
            key, _, extension = name.partition(".")
            good.setdefault(key, {})[extension] = content
    keys = sorted(good)[:GOOD]
    bases = iter(sorted(good)[GOOD:])
    kinds = dict.fromkeys(keys, "good")
    planted = {key: good[key] for key in keys}
    noise = np.random.default_rng(_SEED)
    faults: dict[str, Callable[[dict[str, bytes]], dict[str, bytes]]] = {
        "blank": lambda radiograph: _changed(radiograph, lambda gray: noise.normal(gray.mean(), 2.0, gray.shape)),
        "inverted": lambda radiograph: _changed(radiograph, lambda gray: 255.0 - gray),
        "rotated": lambda radiograph: _changed(
            radiograph, lambda gray: _rotated(gray, 25.0 if noise.random() < 0.5 else -25.0)
        ),
        "near-duplicate": lambda radiograph: (
            radiograph | {"png": _as_png(work / "real-train" / f"{rng.choice(real)}.jpg")}
        ),
        "wrong report": lambda radiograph: radiograph | {"json": _other_report(radiograph, good, rng)},
        "duplicate": dict,
    }
    for kind, fault in faults.items():
        for place in range(EACH):
            key = rng.choice(keys) if kind == "duplicate" else next(bases)
            name = f"zz-{kind.replace(' ', '-')}-{place:02d}"  # after the good ones: a duplicate is the later of two
            planted[name], kinds[name] = fault(good[key]), kind
    (work / "planted").mkdir(exist_ok=True)
    with tarfile.open(work / "planted" / "images.tar", "w") as tar:
        for key in sorted(planted):
            for extension, content in planted[key].items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return kinds


def _changed(radiograph: dict[str, bytes], change: Callable[[Any], Any]) -> dict[str, bytes]:
    gray = np.asarray(Image.open(io.BytesIO(radiograph["png"]))).astype(np.float64)
    return radiograph | {"png": _png(np.clip(change(gray), 0, 255).astype(np.uint8))}


def _rotated(gray: Any, degrees: float) -> Any:
    return np.asarray(Image.fromarray(gray.astype(np.uint8)).rotate(degrees, Image.Resampling.BICUBIC))


def _as_png(path: Path) -> bytes:
    return _png(np.asarray(Image.open(path).convert("L")))


def _png(gray: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(gray).save(buffer, "PNG")
    return buffer.getvalue()


def _other_report(radiograph: dict[str, bytes], good: dict[str, dict[str, bytes]], rng: random.Random) -> bytes:
    """The report of another image of the other kind: normal for ill, ill for normal."""

    def normal(content: bytes) -> bool:
        return bool(json.loads(content)["findings"]["No Finding"]["status"] == "present")

    own = normal(radiograph["json"])
    return rng.choice([other["json"] for _, other in sorted(good.items()) if normal(other["json"]) != own])


def _print_fidelity(summary: dict[str, Any]) -> None:
    measures = ("frechet", "kid", "precision", "recall", "density", "coverage", "ms_ssim_within", "ms_ssim_real")
    typer.echo(f"\n{summary['kept']} of {summary['input']['images']} kept; {summary['reasons']}\n")
    typer.echo("| group | images each | " + " | ".join(measures) + " |")
    typer.echo("| --- " * (len(measures) + 2) + "|")
    for row in summary["fidelity"]:
        if row["frechet"]:
            cells = [f"{row[m]['value']:.3g} ({row[m]['low']:.3g} to {row[m]['high']:.3g})" for m in measures]
            typer.echo(f"| {row['group']} | {row['compared']} | " + " | ".join(cells) + " |")


def _print_utility(utility: dict[str, Any]) -> None:
    """AUROC by finding, group and training set, with the difference to real images alone in brackets."""
    typer.echo(
        f"\n{utility['split']} {utility['not_measured']}\n\n| finding | group | images | {' | '.join(TRAINED_ON)} |"
    )
    typer.echo("| --- " * (3 + len(TRAINED_ON)) + "|")
    lifts = {(row["finding"], row["group"], row["trained_on"]): row for row in utility["lift"]}
    cells: dict[tuple[str, str], dict[str, Any]] = {}
    for row in utility["rows"]:
        cells.setdefault((row["finding"], row["group"]), {})[row["trained_on"]] = row
    for place, by in cells.items():
        areas = [
            _interval(by[name]["auroc"]) + (f" [{_interval(lifts[*place, name])}]" if (*place, name) in lifts else "")
            if name in by
            else "not measured"
            for name in TRAINED_ON
        ]
        typer.echo(f"| {' | '.join(place)} | {next(iter(by.values()))['images']} | {' | '.join(areas)} |")


def _interval(found: dict[str, float]) -> str:
    return f"{found['value']:.2f} ({found['low']:.2f} to {found['high']:.2f})"


def _print_recall(kinds: dict[str, str], path: Path) -> None:
    # Keys of shards that are not of cxrsynth begin with the shard.
    rows = {row["key"].rpartition("/")[2]: row for row in pq.read_table(path).to_pylist()}
    typer.echo("\n| planted | images | rejected | reasons |\n| --- | --- | --- | --- |")
    for kind in dict.fromkeys(kinds.values()):
        own = [rows[key] for key, is_kind in kinds.items() if is_kind == kind]
        reasons: dict[str, int] = {}
        for row in own:
            for reason in row["reasons"]:
                reasons[reason] = reasons.get(reason, 0) + 1
        listed = ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items()))
        typer.echo(f"| {kind} | {len(own)} | {sum(not row['kept'] for row in own)} | {listed} |")


if __name__ == "__main__":
    typer.run(main)
