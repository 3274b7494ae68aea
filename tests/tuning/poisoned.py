"""`python -m tests.tuning.poisoned WHAT tune ...`: cxrsynth, with something that goes wrong on one process of two."""

import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from cxrsynth import cli
from cxrsynth.errors import ModelError
from cxrsynth.rl import rollouts
from cxrsynth.rl.forward_update import ForwardUpdater
from cxrsynth.rl.update import Updater
from cxrsynth.tuning import stage
from cxrsynth.tuning.evaluator import Evaluator


def fail(owner: Any, name: str) -> None:
    """In its second call there."""
    original, calls = getattr(owner, name), 0

    def failing(*given: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise ModelError("poisoned")
        return original(*given, **named)

    setattr(owner, name, failing)


def lose(owner: Any) -> None:
    """Its loss is not a number."""
    original: Callable[..., Any] = owner._loss
    owner._loss = lambda *given, **named: replace(original(*given, **named), loss=torch.tensor(torch.nan))


def damage() -> None:
    """It cannot read the checkpoint."""

    def unreadable(*_: Any, **__: Any) -> None:
        raise ModelError("poisoned")

    stage.load_checkpoint = unreadable


def sleep() -> None:
    """In the first rollout."""

    def sleeping(*_: Any, **__: Any) -> None:
        time.sleep(600)

    rollouts.check_pixels = sleeping


def main() -> None:
    """Poison this process, if it is its turn, then run cxrsynth."""
    what, last = sys.argv.pop(1), os.environ["RANK"] == "1"
    if what == "rollout" and last:
        fail(rollouts, "check_pixels")
    elif what == "update" and last:
        lose(ForwardUpdater)
        lose(Updater)
    elif what == "evaluation" and last:
        fail(Evaluator, "_evaluate_batch")
    elif what == "checkpoint" and last:
        damage()
    elif what == "while the other works":
        fail(rollouts, "check_pixels") if last else sleep()
    elif what == "never comes" and last:
        sleep()
    cli.main()


main()
