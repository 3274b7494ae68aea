"""`python -m tests.benchmarks.tune_gain`: time until held-out reports have gained, against a plain DDPO loop.

Ours is `recipes/nano-rlcf.yaml`, or another; the plain loop is that of `tune_speed`, on the same reports, rewards and
weights, at ten times the learning rate usual for a whole UNet unless another is given. Both are judged on the same
held-out reports with the same noise by the rewards that tune, in spreads of the baseline's; the time of judging is not
counted.
The plain loop is given three times as long as ours took.
"""

import tempfile
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import torch
import typer

from cxrsynth import console
from cxrsynth.diffusion.parallel import SamplingPool
from cxrsynth.evaluation import Evaluator, Judged
from cxrsynth.reinforce import Reinforcement
from cxrsynth.rewards.feedback import spread
from cxrsynth.settings import TuneSettings
from cxrsynth.tune_run import open_tune
from tests.benchmarks.tune_speed import PlainLoop

_RECIPE = Path(__file__).parents[2] / "recipes" / "nano-rlcf.yaml"


def main(
    recipe: Path = _RECIPE,
    gain: float = 0.05,
    every: int = 2,
    most_minutes: float = 30.0,
    reports: int = 100,
    learning_rate: float = 1e-4,
) -> None:
    """Print the seconds each took to gain `gain` spreads, looked at every `every` iterations of ours."""
    with tempfile.TemporaryDirectory() as folder:
        given = (f"evaluation.reports={reports}", "evaluation.images_per_report=1")
        run = open_tune(TuneSettings(recipe=recipe, out=Path(folder), overrides=given))
        stage = Reinforcement(run, run.recipe.stages[0], 0, checkpoint="nano")  # type: ignore[arg-type]
        batch = run.batch_size(stage.stage.sampling)
        run.folder.baseline_images.mkdir(parents=True, exist_ok=True)
        with SamplingPool(stage.policy.model, batch_size=batch, threads_per_batch=1) as pool:
            evaluator = stage.evaluator(pool, batch)
            baseline = evaluator.baseline(stage.policy.baseline, Path(folder) / "baseline.safetensors")
            ours = race(our_steps(stage, pool, batch), lambda: judged(stage, evaluator), evaluator, baseline,
                        gain=gain, every=every, seconds=60 * most_minutes)  # fmt: skip
            told("cxrsynth tune", ours)
            columns = spread(baseline.rewards)[: len(stage.suite.names)]
            weights = torch.tensor([stage.weights[name] for name in stage.suite.names])
            plain = PlainLoop(stage.suite, batch=4, weights=weights / columns, learning_rate=learning_rate)
            limit = 3 * ours[-1][0]
            start = evaluator.judged(plain.model)  # its own: float32 alone makes other images
            theirs = race(plain_steps(stage, plain), lambda: evaluator.judged(plain.model), evaluator, start,
                          gain=gain, every=1, seconds=limit)  # fmt: skip
            told("plain loop", theirs)
        if ours[-1][1] < gain:
            console.say(f"cxrsynth tune did not gain {gain:g} in {ours[-1][0]:.0f} s")
        elif theirs[-1][1] < gain:
            console.say(f"ratio: above {theirs[-1][0] / ours[-1][0]:.1f} (the plain loop has not gained {gain:g})")
        else:
            console.say(f"ratio: {theirs[-1][0] / ours[-1][0]:.1f}")


def told(name: str, course: list[tuple[float, float]]) -> None:
    """Seconds and gain, judgement by judgement."""
    console.say(f"{name}: " + ", ".join(f"{seconds:.0f} s {found:+.3f}" for seconds, found in course))


def judged(stage: Reinforcement, evaluator: Evaluator) -> Judged:
    """The policy as `tune` judges it: with its averaged weights."""
    with stage.evaluated() as model:
        return evaluator.judged(model)


def race(
    step: Callable[[], object],
    look: Callable[[], Judged],
    evaluator: Evaluator,
    baseline: Judged,
    *,
    gain: float,
    every: int,
    seconds: float,
) -> list[tuple[float, float]]:
    """(seconds spent on steps, gain) at each judgement, until the gain or the time is reached."""
    spent, course = 0.0, []
    for turn in count(1):
        started = time.monotonic()
        step()
        spent += time.monotonic() - started
        if turn % every == 0 or spent >= seconds:
            course.append((spent, evaluator.verdict(look(), baseline).tuning))
            if course[-1][1] >= gain or spent >= seconds:
                break
    return course


def our_steps(stage: Reinforcement, pool: SamplingPool, batch: int) -> Callable[[], object]:
    """Each call is the next iteration of `tune`."""
    collector, updater = stage.learners(pool, batch)
    counter = count()
    return lambda: stage.iterate(next(counter), collector, updater)


def plain_steps(stage: Reinforcement, plain: PlainLoop) -> Callable[[], object]:
    """Each call is one iteration of the plain loop on the reports that iteration of ours takes."""
    counter = count()
    return lambda: plain([stage.case(stage.run.training[draw.report]) for draw in stage.draws(next(counter))])


if __name__ == "__main__":
    typer.run(main)
