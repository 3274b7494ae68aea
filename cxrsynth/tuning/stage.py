"""What every stage of a run shares: metrics, checkpoints, averaged weights, resuming, and stopping when asked to."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from cxrsynth import console
from cxrsynth.rl.checkpoint import Learner, explain_damage, load_checkpoint, save_checkpoint
from cxrsynth.runtime.interrupt import Stop
from cxrsynth.tuning.curves import draw_curves
from cxrsynth.tuning.export import Trained
from cxrsynth.tuning.metrics import Metrics
from cxrsynth.tuning.run import TuneRun

_DRAW_EVERY_S = 60.0


class Stage(Protocol):
    """One stage of a recipe, its networks loaded."""

    progress: "StageProgress"

    def train(self) -> None:
        """Train from where the stage stands to its end.

        Raises:
            KeyboardInterrupt: if the user asked to stop; everything learned so far is saved.
        """
        ...

    def result(self) -> Trained:
        """The model with the weights this stage leaves, once it is trained."""
        ...

    def test(self) -> None:
        """Look at the test reports with the result's weights, if this stage's model is the one to be tested."""
        ...

    def card(self) -> str:
        """Text of the result's model card."""
        ...


class Remembered(Protocol):
    """State beside the weights that a checkpoint keeps, as plain JSON."""

    def state(self) -> Any:
        """For a checkpoint."""
        ...

    def load(self, state: Any) -> None:
        """From a checkpoint."""
        ...


class StageProgress:
    """Where a stage stands in the run's folder. Only the main process writes; all processes resume and stop together.

    `first` is the iteration to start with, known after `resume`, and `done` the number of iterations complete;
    iterations of a supervised stage are its steps.

    Args:
        run: whose folder holds metrics and checkpoints.
        index: of the stage.
        weights: that are trained, by name.
        optimizer: of those weights.
        ema_decay: of averaged weights, None for none.
        beside: further tensors that a checkpoint keeps, restored in place.
        remembered: further state, by its key in a checkpoint.
    """

    def __init__(
        self,
        run: TuneRun,
        index: int,
        weights: Mapping[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
        *,
        ema_decay: float | None,
        remembered: Mapping[str, Remembered],
        beside: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.metrics = Metrics(run.folder.metrics)
        self.first = 0
        self._drawn_at = float("-inf")
        self.done = 0
        self._run, self._index = run, index
        self._average = None if ema_decay is None else EMAModel(weights.values(), decay=ema_decay)
        averaged = None if self._average is None else dict(zip(weights, self._average.shadow_params, strict=True))
        self._learner = Learner(weights, optimizer, averaged, beside or {})
        self._remembered = remembered
        self._written: Mapping[str, Any] | None = None  # what the checkpoint that was loaded knows of the metrics

    def resume(self, total: int, unit: str) -> None:
        """Load the stage's newest checkpoint, if there is one, and drop metrics written after it.

        Raises:
            ModelError: if the checkpoint cannot be used.
        """
        run, newest = self._run, self._run.folder.newest(self._index)
        if newest is not None:
            self.load(newest)
            if run.is_main:
                console.say(f"resuming after {unit} {self.first} of {total}")
        if run.is_main:
            if self._written is not None and not self.metrics.begins_with(self._written):
                console.warn(
                    f"{self.metrics.path}: damaged or changed since the checkpoint was written\n"
                    "  what was learned does not depend on it, but curves and model card show what it says now"
                )
            # An evaluation after the checkpoint's iteration is repeated, one at that iteration is not.
            self.metrics.cut(stage=self._index, iteration=self.first)
        run.wait()

    def load(self, folder: Path) -> None:
        """Load a checkpoint of the stage.

        Raises:
            ModelError: if it cannot be used.
        """
        state = load_checkpoint(folder, self._learner)
        with explain_damage(folder):
            self.first = self.done = int(state["iteration"])
            self._written = state.get("metrics")
            for key, part in self._remembered.items():
                part.load(state[key])
            if self._average is not None:
                self._average.optimization_step = int(state["ema_steps"])

    def iterations(
        self, total: int, *, save_every: int, stop: Stop, ended: Callable[[], bool] = lambda: False
    ) -> Iterator[int]:
        """The iterations still to run, counted from 0. After each, a checkpoint is saved if one is due.

        Args:
            total: of the stage.
            save_every: iterations between checkpoints; the last iteration is always saved.
            stop: whether the user asked to stop.
            ended: whether the stage ends early.

        Raises:
            KeyboardInterrupt: if any process was asked to stop; the iteration it was in is finished and saved first.
        """
        for iteration in range(self.first, total):
            if ended():
                return
            yield iteration
            done = self.done = iteration + 1
            stopped = bool(self._run.add_up(torch.tensor([float(stop.asked)])))
            if done % save_every == 0 or done == total or stopped or ended():
                self.save(done)
            if stopped:
                self.draw(now=True)
                raise KeyboardInterrupt

    def write(self, iteration: int, row: Mapping[str, Any]) -> None:
        """Add a row of metrics, counted from 1, and send its numbers to the trackers."""
        if self._run.is_main:
            self.metrics.write({"stage": self._index, "iteration": iteration} | dict(row))
            numbers = {name: value for name, value in row.items() if isinstance(value, float)}
            self._run.track(numbers, stage=self._index, iteration=iteration)

    def save(self, iteration: int) -> None:
        """Write a checkpoint and the curves; drop the oldest checkpoints."""
        if self._run.is_main:
            self._save_to(self._run.folder.checkpoint(self._index, iteration), iteration)
            self._run.folder.rotate(self._index, keep=self._run.recipe.checkpoints.keep)
            self.draw()
        self._run.wait()

    def save_best(self, iteration: int) -> None:
        """Write the checkpoint that is kept as the best so far."""
        if self._run.is_main:
            self._save_to(self._run.folder.best(self._index), iteration)

    def _save_to(self, folder: Path, iteration: int) -> None:
        state: dict[str, Any] = {
            "stage": self._index,
            "iteration": iteration,
            "ema_steps": None if self._average is None else self._average.optimization_step,
            "metrics": self.metrics.state(),
        }
        save_checkpoint(folder, self._learner, state | {key: part.state() for key, part in self._remembered.items()})

    def draw(self, *, now: bool = False) -> None:
        """Bring curves.png up to date, at most once a minute unless it must be `now`: drawing takes a second."""
        if self._run.is_main and (now or time.monotonic() - self._drawn_at > _DRAW_EVERY_S):
            draw_curves(self.metrics.rows(), self._run.folder.curves)
            self._drawn_at = time.monotonic()

    def average(self) -> None:
        """Let the averaged weights follow; to be called after each optimizer step."""
        if self._average is not None:
            self._average.step(self._learner.weights.values())

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within the context the model has its averaged weights, if any."""
        if self._average is None:
            yield
            return
        weights = list(self._learner.weights.values())
        self._average.store(weights)
        self._average.copy_to(weights)
        try:
            yield
        finally:
            self._average.restore(weights)

    def keep_averaged(self) -> None:
        """Leave the averaged weights, if any, in the model."""
        if self._average is not None:
            self._average.copy_to(self._learner.weights.values())
