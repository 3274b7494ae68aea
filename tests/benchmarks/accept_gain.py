"""`python -m tests.benchmarks.accept_gain --data DIR --work DIR`: what drawing again until images pass is worth.

Makes images from labels of real images of split `val` and from the example reports, twice: each drawn once, and with
`--accept`, whose thresholds are quantiles of the first set's rewards by the family that judges in `generate`. Both are
audited with the other family, which no decision depended on. Prints, in Markdown, the change of each of its rewards
(paired by image, interval over reports) and what both sets score in fidelity, diversity and followed findings.
`DIR` holds images/*.tar and manifests/*.csv (see the documentation, "Building nano").
"""

import json
import random
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
    quantile: Annotated[float, typer.Option(help="Of the first set's rewards, taken as thresholds.")] = 0.5,
    attempts: int = 4,
) -> None:
    """Make both sets of each table, audit them, print what changed."""
    work.mkdir(parents=True, exist_ok=True)
    real, _ = load_images(data, size=256, split="val")
    labeled = [radiograph for radiograph in real if radiograph.present]
    rng = random.Random(_SEED)
    write_table(work / "val.csv", [rng.choice(labeled) for _ in range(images)])
    write_images(data, real, work / "real")
    for name, source in (("val", [work / "val.csv"]), ("example", ["--example"])):
        _compare(work, name, source, quantile=quantile, attempts=attempts)


def _compare(work: Path, name: str, source: list[Any], *, quantile: float, attempts: int) -> None:
    plain, accepted = work / f"{name}-plain", work / f"{name}-accepted"
    run_command("generate", *source, "--out", plain, "--id-key", id_key(work))
    run_command("audit", plain, "--out", work / f"{name}-scored", "--judge", TUNING_FAMILY)
    scores = pq.read_table(work / f"{name}-scored" / "scores.parquet")
    limits = {reward: float(np.nanquantile(_column(scores, reward), quantile)) for reward in REWARDS}
    rules = [f"--min={reward}={limit:.4f}" for reward, limit in limits.items()]
    run_command(
        "generate", *source, "--out", accepted, "--id-key", id_key(work), "--accept", "--attempts", attempts, *rules
    )
    for made in (plain, accepted):
        run_command(
            "audit",
            made,
            "--out",
            f"{made}-audit",
            "--reference",
            work / "real",
            "--reference-table",
            work / "real.csv",
        )
    _print(name, plain, accepted)


def _column(scores: Any, reward: str) -> np.ndarray[Any, Any]:
    return np.array([np.nan if one is None else one for one in scores[f"reward_{reward}"].to_pylist()])


def _print(name: str, plain: Path, accepted: Path) -> None:
    before, after = (pq.read_table(Path(f"{one}-audit") / "scores.parquet").sort_by("key") for one in (plain, accepted))
    if before["key"].to_pylist() != after["key"].to_pylist():
        raise SystemExit("the sets hold different images")
    counts = json.loads((accepted / "manifest.json").read_text())["acceptance"]
    typer.echo(
        f"\n{name}: {counts['total']}\n\n| evaluator's reward | change (95% interval over reports) |\n| --- | --- |"
    )
    for reward in REWARDS:
        change = _column(after, reward) - _column(before, reward)
        change = change[~np.isnan(change)]
        rng = np.random.default_rng(_SEED)
        means = [rng.choice(change, len(change)).mean() for _ in range(_ROUNDS)]
        low, high = np.quantile(means, [0.025, 0.975])
        typer.echo(f"| {reward} | {change.mean():+.3f} ({low:+.3f} to {high:+.3f}), {len(change)} reports |")
    typer.echo("\n| finding | images | accepted | accepted, of all drawn |\n| --- | --- | --- | --- |")
    for finding, row in counts["by_finding"].items():
        typer.echo(f"| {finding} | {row['images']} | {row['accepted']} | {row['accepted_per_draw']:.0%} |")
    typer.echo("\n| metric | drawn once | accepted |\n| --- | --- | --- |")
    found = [json.loads((Path(f"{one}-audit") / "summary.json").read_text()) for one in (plain, accepted)]
    whole = [next(row for row in one["fidelity"] if row["group"] == "all") for one in found]
    for metric in [key for key, value in whole[0].items() if isinstance(value, dict)]:
        typer.echo(f"| {metric} | {' | '.join(_interval(one[metric]) for one in whole)} |")


def _interval(found: dict[str, float]) -> str:
    return f"{found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})"


if __name__ == "__main__":
    typer.run(main)
