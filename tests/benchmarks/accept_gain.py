"""`python -m tests.benchmarks.accept_gain --data DIR --work DIR`: what drawing again until images pass is worth.

Makes images from labels of real images of split `val` and from the example reports, twice: each drawn once, and with
`--accept`, whose thresholds are quantiles of the first set's rewards by the family that judges in `generate`. All are
audited with the other family, none of whose networks decided anything (both audit and acceptance use the network that
checks the framing). Prints, in Markdown, the change of each of its rewards, paired by image with an interval over
reports, and what the sets score in fidelity, diversity and followed findings. All of it also for `--only-accepted`,
beside the same reports drawn once: distances of sets of unequal size cannot be compared.
`DIR` holds images/*.tar and manifests/*.csv (see the documentation, "Building nano").
"""

import csv
import json
import random
import tarfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow.parquet as pq
import typer

from cxrsynth.nano.build.images import load_images
from cxrsynth.settings import REWARDS, TUNING_FAMILY
from tests.benchmarks.audit_proof import id_key, run_command, write_images, write_table

_SEED, _ROUNDS = 0, 2000


def main(
    data: Annotated[Path, typer.Option(help="Folder with images/ and manifests/.")],
    work: Annotated[Path, typer.Option(help="New folder for everything made here.")],
    images: Annotated[int, typer.Option(help="Prompts of split val.")] = 200,
    quantile: Annotated[float, typer.Option(help="Of the first set's rewards, taken as thresholds.")] = 0.25,
    attempts: int = 4,
) -> None:
    """Make both sets of each table, audit them, print what changed."""
    work.mkdir(parents=True, exist_ok=True)
    real, _ = load_images(data, size=256, split="val")
    labeled = [radiograph for radiograph in real if radiograph.present]
    rng = random.Random(_SEED)
    write_table(work / "val.csv", [rng.choice(labeled) for _ in range(images)])
    write_images(data, real, work / "real")
    # Few images have no distance from real ones: those of the example reports are compared by their rewards alone.
    beside = ["--reference", work / "real", "--reference-table", work / "real.csv"]
    _compare(work, "example", ["--example"], quantile=quantile, attempts=attempts, beside=[])
    _compare(work, "val", [work / "val.csv"], quantile=quantile, attempts=attempts, beside=beside)


def _compare(work: Path, name: str, source: list[Any], *, quantile: float, attempts: int, beside: list[Any]) -> None:
    plain, accepted = work / f"{name}-plain", work / f"{name}-accepted"
    run_command("generate", *source, "--out", plain, "--id-key", id_key(work))
    run_command("audit", plain, "--out", work / f"{name}-scored", "--judge", TUNING_FAMILY)
    scores = pq.read_table(work / f"{name}-scored" / "scores.parquet")
    limits = {reward: float(np.nanquantile(_column(scores, reward), quantile)) for reward in REWARDS}
    rules = [f"--min={reward}={limit:.4f}" for reward, limit in limits.items()]
    run_command(
        "generate", *source, "--out", accepted, "--id-key", id_key(work), "--accept", "--attempts", attempts, *rules
    )
    never = _never_accepted(accepted)
    only, same = _without(accepted, never, work / f"{name}-only"), _without(plain, never, work / f"{name}-same")
    for made in (plain, accepted, same, only):
        run_command("audit", made, "--out", f"{made}-audit", *beside)
    _print_counts(name, accepted)
    for title, pair in (("accepted", (plain, accepted)), ("only accepted", (same, only))):
        _print_rewards(f"{name}, {title}", *pair)
        _print_metrics(*pair)


def _never_accepted(folder: Path) -> set[str]:
    with (folder / "not_accepted.csv").open(newline="", encoding="utf-8") as file:
        return {row["key"] for row in csv.DictReader(file)}


def _without(folder: Path, keys: set[str], out: Path) -> Path:
    """A set without some of its images: for those never accepted, the images of `--only-accepted`, byte for byte."""
    out.mkdir(exist_ok=True)
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as source, tarfile.open(out / path.name, "w") as target:
            for member in source:
                if member.name.partition(".")[0] not in keys:
                    target.addfile(member, source.extractfile(member))
    return out


def _column(scores: Any, reward: str) -> np.ndarray[Any, Any]:
    return np.array([np.nan if one is None else one for one in scores[f"reward_{reward}"].to_pylist()])


def _print_counts(name: str, accepted: Path) -> None:
    counts = json.loads((accepted / "manifest.json").read_text())["acceptance"]
    typer.echo(f"\n{name}: {counts['total']}\n")
    typer.echo(
        "| finding | images | passed at once | accepted | accepted, of all drawn |\n| --- | --- | --- | --- | --- |"
    )
    for finding, row in counts["by_finding"].items():
        passed = f"{row['accepted_at_first']} | {row['accepted']} | {row['accepted_per_draw']:.0%}"
        typer.echo(f"| {finding} | {row['images']} | {passed} |")


def _print_rewards(title: str, plain: Path, accepted: Path) -> None:
    before, after = (pq.read_table(Path(f"{one}-audit") / "scores.parquet").sort_by("key") for one in (plain, accepted))
    if before["key"].to_pylist() != after["key"].to_pylist():
        raise SystemExit("the sets hold different images")
    typer.echo(
        f"\n{title}\n\n| evaluator's reward | drawn once | change (95% interval) | reports |\n| --- | --- | --- | --- |"
    )
    for reward in REWARDS:
        one, other = _column(before, reward), _column(after, reward)
        known = ~np.isnan(one) & ~np.isnan(other)
        change = (other - one)[known]
        rng = np.random.default_rng(_SEED)
        means = [rng.choice(change, len(change)).mean() for _ in range(_ROUNDS)]
        low, high = np.quantile(means, [0.025, 0.975])
        interval = f"{change.mean():+.3f} ({low:+.3f} to {high:+.3f})"
        typer.echo(f"| {reward} | {one[known].mean():.3f} | {interval} | {len(change)} |")


def _print_metrics(plain: Path, accepted: Path) -> None:
    found = [json.loads((Path(f"{one}-audit") / "summary.json").read_text()) for one in (plain, accepted)]
    rows = [next((row for row in one["fidelity"] if row["group"] == "all"), {}) for one in found]
    shown = {metric: [_interval(row[metric]) for row in rows] for metric in _metrics(rows)}
    followed = [{row["finding"]: row["auroc"] for row in one["obedience"] or ()} for one in found]
    for finding in [name for name, auroc in followed[0].items() if auroc and followed[1].get(name)]:
        shown[f"AUROC of {finding}"] = [_interval(one[finding]) for one in followed]
    if shown:
        typer.echo("\n| metric | drawn once | accepted |\n| --- | --- | --- |")
    for metric, (before, after) in shown.items():
        typer.echo(f"| {metric} | {before} | {after} |")


def _metrics(rows: list[dict[str, Any]]) -> list[str]:
    """Metrics that both sets have with an interval."""
    return [name for name in rows[0] if all(isinstance(row.get(name), dict) and "low" in row[name] for row in rows)]


def _interval(found: dict[str, float]) -> str:
    return f"{found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})"


if __name__ == "__main__":
    typer.run(main)
