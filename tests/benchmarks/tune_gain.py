"""`python -m tests.benchmarks.tune_gain --work DIR`: time until held-out reports have gained, against a plain DDPO.

Ours is `recipes/nano-rlcf.yaml`, or another; the plain loop is that of `tune_speed`, on the same reports, rewards and
weights, by default at ten times the usual learning rate for a whole UNet. Both are evaluated on the same held-out
reports with the same noise, in standard deviations of the baseline's rewards, by the independent evaluator or by the
tuning rewards; evaluation time is not counted.

Each seed of each is a run of its own: time is interpolated linearly between its evaluations. The plain loop gets
`patience` times as long as ours took with that seed; if it has not gained by then, its ratio is a lower bound. The
course of a run is kept under `--work`, so that the same command goes on with the next one; a run that was interrupted
begins again. Where every seed has its ratio, their geometric mean is printed with a 95% interval (Student's t).
"""

import json
import math
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count, pairwise
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated

import typer
from scipy.stats import t as student

from cxrsynth import console
from cxrsynth.diffusion.parallel import SamplingPool
from cxrsynth.rewards.feedback import reward_std
from cxrsynth.settings import TuneSettings
from cxrsynth.tuning.evaluator import Evaluator
from cxrsynth.tuning.reinforce import Reinforcement
from cxrsynth.tuning.setup import open_tune
from cxrsynth.tuning.verdict import EVALUATOR, TUNING, EvaluatedImages, Verdict
from tests.benchmarks.tune_speed import PlainLoop

_RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "nano-rlcf.yaml"
_OURS, _PLAIN = "cxrsynth tune", "plain loop"

Course = list[tuple[float, float]]  # (seconds, gain) at each evaluation, from (0, 0)


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
    work: Annotated[Path, typer.Option(help="Where the courses of the runs are kept.")],
    recipe: Path = _RECIPE,
    seeds: int = 3,
    gain: float = 0.05,
    by: Annotated[str, typer.Option(help=f"{EVALUATOR} or {TUNING}.")] = EVALUATOR,
    every: Annotated[int, typer.Option(help="Iterations between evaluations of ours.")] = 1,
    plain_every: Annotated[int, typer.Option(help="The same of the plain loop, whose evaluations take long.")] = 1,
    most_minutes: float = 30.0,
    patience: float = 12.0,
    reports: int = 100,
    images_per_report: int = 1,
    learning_rate: Annotated[float, typer.Option(help="Of the plain loop.")] = 1e-4,
) -> None:
    """Run what is missing, then print each seed's seconds until the gain was `gain`, and the ratio."""
    if by not in (EVALUATOR, TUNING):
        raise typer.BadParameter(f"--by {by}: expected {EVALUATOR} or {TUNING}")
    work.mkdir(parents=True, exist_ok=True)
    found = []
    for seed in range(seeds):
        ours, plain = (work / f"{name}-{seed}.json" for name in ("ours", "plain"))
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            evaluation = (f"evaluation.reports={reports}", f"evaluation.images_per_report={images_per_report}")
            changes = (f"seed={seed}", "reports.test=0", *evaluation)
            if not (ours.exists() and plain.exists()):
                run = open_tune(TuneSettings(recipe=recipe, out=folder, overrides=changes))
                run.folder.baseline_images.mkdir(parents=True, exist_ok=True)
                stage = Reinforcement(run, run.recipe.stages[0], 0, checkpoint=run.model)  # type: ignore[arg-type]
                pool = stack.enter_context(stage.pool())
                evaluator = stage.evaluator(pool)
                baseline = evaluator.baseline(stage.policy.baseline, folder / "baseline.safetensors")
                if not ours.exists():
                    runner = our_runner(stage, pool, evaluator, baseline, by=by)
                    race(f"{_OURS}, seed {seed}", runner, ours, gain=gain, every=every, seconds=60 * most_minutes)
                reached = crossing(_read(ours), gain)
                if reached is None:
                    console.say(f"{_OURS}, seed {seed}: did not gain {gain:g} in {most_minutes:g} minutes")
                    return
                if not plain.exists():
                    other = plain_runner(stage, evaluator, baseline, learning_rate=learning_rate, seed=seed, by=by)
                    race(
                        f"{_PLAIN}, seed {seed}", other, plain, gain=gain, every=plain_every, seconds=patience * reached
                    )
        found.append(Ratio.of(_read(ours), _read(plain), gain))
        console.say(f"seed {seed}: {found[-1]}")
    console.say(f"ratio by the {by}'s gain of {gain:g}: {summary(found)}")


@dataclass(frozen=True)
class Ratio:
    """Seconds of the plain loop over ours, for one seed; a lower bound where the plain loop has not gained."""

    ours: float
    plain: float
    bound: bool

    @classmethod
    def of(cls, ours: Course, plain: Course, gain: float) -> "Ratio":
        """From both courses, the first of which has gained."""
        reached, other = crossing(ours, gain), crossing(plain, gain)
        if reached is None:
            raise ValueError("ours has not gained")
        return cls(reached, plain[-1][0] if other is None else other, other is None)

    @property
    def value(self) -> float:
        return self.plain / self.ours

    def __str__(self) -> str:
        above = "above " if self.bound else ""
        return f"{_OURS} {self.ours:.0f} s, {_PLAIN} {above}{self.plain:.0f} s, ratio {above}{self.value:.1f}"


def summary(found: list[Ratio]) -> str:
    """The geometric mean, with its interval if no seed is a bound."""
    logs = [math.log(one.value) for one in found]
    centre = math.exp(mean(logs))
    if any(one.bound for one in found):
        return f"above {centre:.1f}"
    if len(found) < 2:
        return f"{centre:.1f}"
    half = float(student.ppf(0.975, len(logs) - 1)) * stdev(logs) / math.sqrt(len(logs))
    return f"{centre:.1f} ({centre * math.exp(-half):.1f} to {centre * math.exp(half):.1f})"


def race(name: str, runner: Runner, path: Path, *, gain: float, every: int, seconds: float) -> None:
    """Run until the gain is reached or the time is over, and write the course to `path`."""
    course: Course = [(0.0, 0.0)]
    while course[-1][1] < gain and course[-1][0] < seconds:
        found = runner.advance(every)
        course.append((runner.seconds, found))
        console.say(f"{name}: {runner.seconds:.0f} s, gain {found:+.3f}")
    path.write_text(json.dumps(course), encoding="utf-8")


def _read(path: Path) -> Course:
    return [(seconds, gain) for seconds, gain in json.loads(path.read_text(encoding="utf-8"))]


def crossing(course: Course, gain: float) -> float | None:
    """Where straight lines through (seconds, gain) first reach `gain`."""
    for (start, low), (end, high) in pairwise(course):
        if high >= gain:
            return start + (end - start) * (gain - low) / (high - low)
    return None


def our_runner(
    stage: Reinforcement, pool: SamplingPool, evaluator: Evaluator, baseline: EvaluatedImages, *, by: str
) -> Runner:
    """Iterations of `tune`, evaluated as in `tune`: with averaged weights."""
    iterate = stage.opened(pool)
    counter = count()

    def gain() -> float:
        with stage.progress.averaged():
            return _margin(evaluator.verdict(evaluator.evaluate(stage.policy.model), baseline), by)

    return Runner(lambda: iterate(next(counter)), gain)


def plain_runner(
    stage: Reinforcement, evaluator: Evaluator, baseline: EvaluatedImages, *, learning_rate: float, seed: int, by: str
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

    return Runner(step, lambda: _margin(evaluator.verdict(evaluator.evaluate(plain.model), start), by))


def _margin(verdict: Verdict, by: str) -> float:
    return verdict.evaluator if by == EVALUATOR else verdict.tuning


if __name__ == "__main__":
    typer.run(main)
