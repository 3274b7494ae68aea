"""`python -m tests.benchmarks.fidelity_coverage`: do the intervals of fidelity hold what they say they hold?

Draws pairs of sets from populations whose Frechet distance is known (`tests.metrics.populations`) and prints bias and
coverage of the 95% intervals: of the extrapolated Frechet distance and of MMD against the populations' value, of the
others against their mean at that sample size. A line in 1/N through random subsets, as Chong and Forsyth fit it, stands
beside the extrapolated distance. Prints tables in Markdown.
"""

from dataclasses import asdict
from typing import Annotated, Any

import numpy as np
import typer

from cxrsynth.metrics.fidelity import Features, frechet_distance, frechet_interval, kernel_interval, manifold_intervals
from cxrsynth.metrics.frechet_infinity import frechet_infinity, infinity_problem
from tests.metrics.populations import Population, populations

KINDS: dict[str, dict[str, Any]] = {
    "equal": {"apart": 0.0},
    "near": {"apart": 0.25},
    "far": {"apart": 0.8},
    "near, heavy tails": {"apart": 0.25, "heavy": True},
    "near, three images a patient": {"apart": 0.25, "per_unit": 3},
}
_FRACTIONS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)


def main(
    images: Annotated[list[int], typer.Option(help="Images of each set.")] = [100, 260, 1000],  # noqa: B006
    width: Annotated[int, typer.Option(help="Features.")] = 160,
    rounds: Annotated[int, typer.Option(help="Pairs of sets of each kind and size.")] = 200,
) -> None:
    """Print one table per number of images."""
    for count in images:
        typer.echo(f"\n{count} images of {width} features, {rounds} pairs of sets\n")
        typer.echo("| populations | measure | population | mean | standard deviation | coverage |\n|" + " --- |" * 6)
        for kind, options in KINDS.items():
            first, second, distance = populations(width, **options)
            found = _simulated(first, second, count, rounds)
            for name, rows in found.items():
                _print(kind, name, np.asarray(rows), distance if name.startswith("frechet_infinity") else None)


def _simulated(first: Population, second: Population, count: int, rounds: int) -> dict[str, list[Features]]:
    """Value, low and high of each measure, by round."""
    found: dict[str, list[Any]] = {}
    for seed in range(rounds):
        rng = np.random.default_rng(seed)
        (made, own), (real, theirs) = (population.draw(count, rng) for population in (first, second))
        units = own, theirs
        intervals = {
            "frechet": asdict(frechet_interval(made, real, units=units, seed=seed)),
            "mmd": asdict(kernel_interval(made, real, units=units, seed=seed)),
            **asdict(manifold_intervals(real, made, units=(theirs, own), seed=seed)),
        }
        if infinity_problem(count, made.shape[1], int(min(own.max(), theirs.max())) + 1) is None:
            intervals["frechet_infinity"] = asdict(frechet_infinity(made, real, units=units, seed=seed))
            line = _line(made, real, rng)
            intervals["frechet_infinity by a line"] = {"value": line, "low": np.nan, "high": np.nan}
        for name, interval in intervals.items():
            found.setdefault(name, []).append(list(interval.values()))
    return found


def _line(first: Features, second: Features, rng: np.random.Generator) -> float:
    """Where the line through the distances of random subsets meets 1/N = 0: two subsets of each size."""
    over, distances = [], []
    for fraction in _FRACTIONS:
        for _ in range(1 if fraction == 1.0 else 2):
            size = round(fraction * len(first))
            one, other = (features[rng.permutation(len(features))[:size]] for features in (first, second))
            over.append(1 / size)
            distances.append(frechet_distance(one, other))
    return float(np.polyfit(over, distances, 1)[1])


def _print(kind: str, name: str, rows: Features, truth: float | None) -> None:
    """`truth` None: the mean at this sample size, which for MMD is that of the populations."""
    value, low, high = rows.T
    target = value.mean() if truth is None else truth
    covered = "" if np.isnan(low).any() else f"{np.mean((low <= target) & (target <= high)):.2f}"
    known = "" if truth is None else f"{truth:.3g}"
    typer.echo(f"| {kind} | {name} | {known} | {value.mean():.3g} | {value.std():.2g} | {covered} |")


if __name__ == "__main__":
    typer.run(main)
