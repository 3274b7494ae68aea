"""The best evaluation so far, and when a stage ends early: reward hacking, or no improvement for too long."""

from typing import Any

from cxrsynth.recipe.schema import EvaluationSection
from cxrsynth.tuning.verdict import Verdict, hacking_warning

_NONE = -1


class BestSoFar:
    """The evaluation with the highest margin by the evaluator.

    `iteration` is -1 before the first evaluation; `evaluator` and `tuning` are its margins over the baseline; `hacked`
    says that the alarm has ended the stage, `exhausted` that `evaluation.patience` has; `evaluated` is the iteration of
    the newest evaluation, 0 before the first; `stale` counts the evaluations since the best one.
    """

    def __init__(self) -> None:
        self.iteration = _NONE
        self.evaluator = float("-inf")
        self.tuning = 0.0
        self.hacked = False
        self.evaluated = 0
        self.stale = 0
        self.exhausted = False

    @property
    def ends_stage(self) -> bool:
        """Whether no further iteration is to run."""
        return self.hacked or self.exhausted

    def replaced_by(self, verdict: Verdict, iteration: int) -> bool:
        """Whether this verdict is better than all before; it is then the best so far."""
        self.evaluated = iteration
        if not verdict.evaluator > self.evaluator:
            self.stale += 1
            return False
        self.stale = 0
        self.iteration, self.evaluator, self.tuning = iteration, verdict.evaluator, verdict.tuning
        return True

    def alarm(self, verdict: Verdict, section: EvaluationSection) -> str | None:
        """A warning if the evaluator falls while the reward rises, against the best so far or the baseline, at zero."""
        warning = hacking_warning(
            verdict,
            evaluator=max(self.evaluator, 0.0),
            tuning=self.tuning if self.evaluator > 0 else 0.0,
            margin=section.hacking_margin,
        )
        if warning is None:
            return None
        ends = section.on_hacking == "stop"
        return warning + ("\n  the stage ends here, as evaluation.on_hacking says" if ends else "")

    def out_of_patience(self, section: EvaluationSection) -> str | None:
        """A message if the newest evaluations have brought no improvement, as many as the recipe waits for, or None.

        Sets `exhausted`.
        """
        if section.patience is None or self.stale < section.patience:
            return None
        self.exhausted = True
        best = (
            f"the best: {self.evaluator:+.3f} after iteration {self.iteration}" if self.iteration != _NONE else "none"
        )
        return (
            f"the evaluator's margin has not improved in {self.stale} evaluations ({best}):"
            " the stage ends here, as evaluation.patience says"
        )

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return dict(vars(self))

    def load(self, state: dict[str, Any]) -> None:
        """From a checkpoint."""
        self.iteration, self.evaluator = int(state["iteration"]), float(state["evaluator"])
        self.tuning, self.hacked = float(state["tuning"]), bool(state["hacked"])
        self.evaluated, self.stale = int(state["evaluated"]), int(state["stale"])
        self.exhausted = bool(state["exhausted"])
