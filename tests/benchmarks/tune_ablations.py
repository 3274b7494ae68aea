"""`python -m tests.benchmarks.tune_ablations --work DIR`: what each part of RLCF adds, by the independent evaluator.

Tunes a recipe as it is, and with one thing changed, with several seeds each; every run makes equally many images. The
policy gradient has a recipe of its own, which trains adapters and ACE; `same training` is the first recipe with it.
Each run has a folder of its own under `--work`, so that the same command goes on after an interruption, and prints the
table of what is complete.

Gains are over the baseline on held-out reports, of each reward in its own unit, in total in standard deviations of the
baseline's rewards: the mean over seeds with a 95% interval from the intervals of the runs, each over its reports. The
held-out reports of two seeds overlap, so the intervals are somewhat too narrow. Compare variants at similar Frechet
distances: gains that cost more of it are cheaper to reach.
"""

import json
import math
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import typer
import yaml

from cxrsynth import console
from cxrsynth.settings import REWARDS

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
_STAGE = "stages.0"
_ACE = "{subspace: 32, exploration_std: 0.3}"
_FORWARD = "nano-rlcf.yaml"
_POLICY_GRADIENT = "nano-policy-gradient.yaml"


@dataclass(frozen=True)
class Variant:
    """A recipe and what is changed in it, as for `--set`."""

    changes: tuple[str, ...] = ()
    recipe: str = _FORWARD


def _only(reward: str) -> Variant:
    return Variant((f"{_STAGE}.rewards={{{reward}: {{augment: 2}}}}",))


VARIANTS = {
    "as in the recipe": Variant(),
    "policy gradient": Variant(recipe=_POLICY_GRADIENT),
    "policy gradient, same training": Variant(
        (
            f"{_STAGE}.objective=policy_gradient",
            f"{_STAGE}.forward=null",
            f"{_STAGE}.comparison={{kind: margin, baseline_images: 1, pool: 1}}",
            f"{_STAGE}.update={{num_minibatches: 1, timestep_fraction: 0.2, kl_weight: 0.05}}",
        )
    ),
    "win probability, not centred": Variant((f"{_STAGE}.comparison.centre=false",)),
    "margin": Variant((f"{_STAGE}.comparison={{kind: margin, baseline_images: 2}}",)),
    "group": Variant((f"{_STAGE}.comparison={{kind: group}}",)),
    "ACE alone": Variant((f"{_STAGE}.train={{unet: frozen, ace: {_ACE}, ace_learning_rate: 1.2e-2}}",)),
    "ACE alone, held to the baseline": Variant(
        (f"{_STAGE}.train={{unet: frozen, ace: {{{_ACE[1:-1]}, kl_weight: 1}}, ace_learning_rate: 1.2e-2}}",)
    ),
    "UNet and ACE": Variant((f"{_STAGE}.train.ace={_ACE}", f"{_STAGE}.train.ace_learning_rate=1.2e-2")),
    "UNet and ACE, held to the baseline": Variant(
        (f"{_STAGE}.train.ace={{{_ACE[1:-1]}, kl_weight: 1}}", f"{_STAGE}.train.ace_learning_rate=1.2e-2")
    ),
    "no KL": Variant((f"{_STAGE}.forward.kl_weight=0",)),
    "noise of its own for each image": Variant((f"{_STAGE}.forward.common_noise=false",)),
} | {f"{reward} alone": _only(reward) for reward in REWARDS}


def main(
    work: Annotated[Path, typer.Option(help="Where the runs are kept.")],
    seeds: Annotated[int, typer.Option(help="Runs of each variant.")] = 3,
    images: Annotated[int, typer.Option(help="Images that each run samples, rounded up to whole iterations.")] = 384,
    only: Annotated[list[str] | None, typer.Option(help="Variants to run; default: all.")] = None,
    print_only: Annotated[bool, typer.Option("--print", help="Print the table without running anything.")] = False,
) -> None:
    """Run what is missing, one run at a time, seed by seed; then print the table."""
    unknown = sorted(set(only or ()) - set(VARIANTS))
    if unknown:
        raise typer.BadParameter(f"{', '.join(unknown)}: expected {', '.join(VARIANTS)}")
    chosen = only or list(VARIANTS)
    if not print_only:
        for seed in range(seeds):
            for name in chosen:
                tune(VARIANTS[name], images, seed, work / f"{name.replace(' ', '-')}-{seed}")
    typer.echo(table({name: [work / f"{name.replace(' ', '-')}-{seed}" for seed in range(seeds)] for name in chosen}))


def tune(variant: Variant, images: int, seed: int, out: Path) -> None:
    """One run, unless it is complete; evaluated at its end only."""
    if evaluated(out):
        return
    recipe = RECIPES / variant.recipe
    stage = yaml.safe_load(recipe.read_text(encoding="utf-8"))["stages"][0]
    iterations = math.ceil(images / (stage["reports_per_iteration"] * stage["images_per_report"]))
    changes = (
        f"seed={seed}",
        f"{_STAGE}.iterations={iterations}",
        f"evaluation.every={iterations}",
        "evaluation.images_per_report=1",
        f"checkpoints.every={iterations}",
        "reports.test=0",
        *variant.changes,
    )
    console.say(f"{out.name}: {iterations} iterations")
    sets = [part for change in changes for part in ("--set", change)]
    subprocess.run([sys.executable, "-m", "cxrsynth", "tune", str(recipe), "--out", str(out), *sets], check=True)


def evaluated(out: Path) -> dict[str, Any] | None:
    """The evaluation at the end of a complete run, or None."""
    if not (out / "model").is_dir():
        return None
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    last: dict[str, Any] = [row for row in rows if "evaluation/evaluator/total/margin" in row][-1]
    return last


def table(runs: dict[str, Sequence[Path]]) -> str:
    """A row for each variant of which a run is complete."""
    header = ["variant", "seeds", *REWARDS, "total", "win rate", "tuning total", "Frechet to the baseline", "MS-SSIM"]
    lines = [f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}"]
    for name, folders in runs.items():
        rows = [row for row in map(evaluated, folders) if row is not None]
        if not rows:
            continue
        gains = [_interval(rows, f"evaluator/{part}/margin") for part in (*REWARDS, "total")]
        cells = [
            name,
            str(len(rows)),
            *gains,
            _interval(rows, "evaluator/total/win_rate", sign=""),
            _interval(rows, "tuning/total/margin"),
            ", ".join(f"{one:.1f}" for one in _values(rows, "frechet_to_baseline")),
            f"{mean(_values(rows, 'ms_ssim')) / mean(_values(rows, 'baseline_ms_ssim')):.3f} times",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _values(rows: Iterable[dict[str, Any]], key: str) -> list[float]:
    return [row[f"evaluation/{key}"] for row in rows]


def _interval(rows: Sequence[dict[str, Any]], key: str, *, sign: str = "+") -> str:
    """Mean over seeds; the half widths of independent means add up as squares."""
    value = mean(_values(rows, key))
    halves = [
        (high - low) / 2 for low, high in zip(_values(rows, f"{key}_low"), _values(rows, f"{key}_high"), strict=True)
    ]
    half = math.sqrt(sum(one**2 for one in halves)) / len(rows)
    return f"{value:{sign}.3f} ({value - half:{sign}.3f} to {value + half:{sign}.3f})"


if __name__ == "__main__":
    typer.run(main)
