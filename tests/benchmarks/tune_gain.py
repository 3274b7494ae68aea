"""`python -m tests.benchmarks.tune_gain`: time until held-out reports have gained, against a plain DDPO loop.

Ours is `recipes/nano-rlcf.yaml`, or another; the plain loop is that of `tune_speed`, on the same reports, rewards and
weights, by default at ten times the usual learning rate for a whole UNet. Both are evaluated on the same held-out
reports with the same noise by the tuning rewards, in standard deviations of the baseline's rewards; evaluation time is
not counted.

Runs of the plain loop vary more than the difference to be measured. So several seeds of each take turns, and the mean
of their gains is timed, interpolated linearly between evaluations. With three seeds the ratio is rough. The plain loop
gets `patience` times as long as ours took.
"""

import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count, pairwise
from pathlib import Path
from statistics import mean

import typer

from cxrsynth import console
from cxrsynth.diffusion.parallel import SamplingPool
from cxrsynth.rewards.feedback import reward_std
from cxrsynth.settings import TuneSettings
from cxrsynth.tuning.evaluator import Evaluator
from cxrsynth.tuning.reinforce import Reinforcement
from cxrsynth.tuning.setup import open_tune
from cxrsynth.tuning.verdict import EvaluatedImages
from tests.benchmarks.tune_speed import PlainLoop

_RECIPE = Path(__file__).parents[2] / "recipes" / "nano-rlcf.yaml"


@dataclass
class Runner:
    """One seed of one of the two: an iteration, and how much it has gained so far."""

    step: Callable[[], object]
    gain: Callable[[], float]
    seconds: float = 0.0

    def advance(self, iterations: int) -> float:
        """Iterate, counting the time, then evaluate."""
        started = time.monotonic()
        for _ in range(iterations):
            self.step()
        self.seconds += time.monotonic() - started
        return self.gain()


def main(
    recipe: Path = _RECIPE,
    seeds: int = 3,
    gain: float = 0.05,
    every: int = 4,
    most_minutes: float = 30.0,
    patience: float = 3.0,
    reports: int = 100,
    images_per_report: int = 2,
    learning_rate: float = 1e-4,
) -> None:
    """Print the mean seconds until the mean gain was `gain`; ours is evaluated every `every` iterations."""
    with ExitStack() as stack:
        ours, theirs = [], []
        for seed in range(seeds):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            evaluation = (f"evaluation.reports={reports}", f"evaluation.images_per_report={images_per_report}")
            run = open_tune(TuneSettings(recipe=recipe, out=folder, overrides=(f"seed={seed}", *evaluation)))
            run.folder.baseline_images.mkdir(parents=True, exist_ok=True)
            stage = Reinforcement(run, run.recipe.stages[0], 0, checkpoint=run.model)  # type: ignore[arg-type]
            pool = stack.enter_context(stage.pool())
            evaluator = stage.evaluator(pool)
            baseline = evaluator.baseline(stage.policy.baseline, folder / "baseline.safetensors")
            ours.append(our_runner(stage, pool, evaluator, baseline))
            theirs.append(plain_runner(stage, evaluator, baseline, learning_rate=learning_rate, seed=seed))
        reached = race("cxrsynth tune", ours, gain=gain, every=every, seconds=60 * most_minutes)
        if reached is None:
            console.say(f"cxrsynth tune did not gain {gain:g} in {most_minutes:g} minutes")
            return
        plain = race("plain loop", theirs, gain=gain, every=1, seconds=patience * reached)
    if plain is None:
        spent = sum(runner.seconds for runner in theirs) / seeds
        console.say(f"ratio: above {spent / reached:.1f} (the plain loop has not gained {gain:g})")
    else:
        console.say(f"ratio: {plain / reached:.1f}")


def race(name: str, runners: list[Runner], *, gain: float, every: int, seconds: float) -> float | None:
    """Mean seconds at which the mean gain of the runners was `gain`; None if it was not in `seconds`."""
    course = [(0.0, 0.0)]
    while course[-1][1] < gain and course[-1][0] < seconds:
        found = [runner.advance(every) for runner in runners]
        course.append((mean(runner.seconds for runner in runners), mean(found)))
        single = ", ".join(f"{one:+.3f}" for one in found)
        console.say(f"{name}: {course[-1][0]:.0f} s, gain {course[-1][1]:+.3f} (seeds {single})")
    return crossing(course, gain)


def crossing(course: list[tuple[float, float]], gain: float) -> float | None:
    """Where straight lines through (seconds, gain) first reach `gain`."""
    for (start, low), (end, high) in pairwise(course):
        if high >= gain:
            return start + (end - start) * (gain - low) / (high - low)
    return None


def our_runner(stage: Reinforcement, pool: SamplingPool, evaluator: Evaluator, baseline: EvaluatedImages) -> Runner:
    """Iterations of `tune`, evaluated as in `tune`: with averaged weights."""
    iterate = stage.opened(pool)
    counter = count()

    def gain() -> float:
        with stage.progress.averaged():
            return evaluator.verdict(evaluator.evaluate(stage.policy.model), baseline).tuning

    return Runner(lambda: iterate(next(counter)), gain)


def plain_runner(
    stage: Reinforcement, evaluator: Evaluator, baseline: EvaluatedImages, *, learning_rate: float, seed: int
) -> Runner:
    """Iterations of the plain loop, on the reports of our iteration of the same number."""
    parts = stage.stage
    columns = reward_std(baseline.rewards)[: len(parts.suite.names)]
    plain = PlainLoop(
        parts.suite, batch=4, weights=parts.weight_tensor / columns, learning_rate=learning_rate, seed=seed
    )
    start = evaluator.evaluate(plain.model)  # its own: float32 makes other images than bfloat16
    counter = count()

    def step() -> None:
        plain(parts.examples(stage.objective.specs(next(counter))))

    return Runner(step, lambda: evaluator.verdict(evaluator.evaluate(plain.model), start).tuning)


if __name__ == "__main__":
    typer.run(main)
