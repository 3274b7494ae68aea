"""Checks that stop a run which could not learn: ratios that are off before any update, rewards that never answer."""

from collections.abc import Sequence

import torch
from torch import Tensor

from cxrsynth.errors import ModelError

# Rollout and update differ by rounding only. Convolutions on a GPU round float32 as float16 does (TF32).
_COARSEST_FLOAT32 = torch.float16
# A reward without an answer for so many reports in a row never has one, and its share of the feedback is missing.
_SILENT_REPORTS = 100


def largest_ratio_error(dtype: torch.dtype) -> float:
    """The largest |ratio - 1| accepted before the first update, for forward passes in `dtype`."""
    return max(torch.finfo(one).eps for one in (dtype, _COARSEST_FLOAT32))


def check_ratio(ratio_error: float, dtype: torch.dtype) -> None:
    """Rollout and update must agree on every log-probability, up to rounding, before anything is learned.

    Raises:
        ModelError: if they do not.
    """
    most = largest_ratio_error(dtype)
    if ratio_error > most:
        raise ModelError(
            f"|ratio - 1| is {ratio_error:.1e} before any update, expected at most {most:.1e}\n"
            "  rollout and update disagree by more than rounding: set model.precision: fp32, leave update.micro_batch"
            " out; if they still disagree, please report it"
        )


def check_answers(rewards: Tensor, names: Sequence[str], what: str) -> None:
    """An evaluation needs a number from every reward: a margin over nothing is nan, neither above nor below another.

    Args:
        rewards: of all its images, [N, R].
        names: of the R rewards.
        what: whose images they are: "the baseline's images of held-out reports".

    Raises:
        ModelError: if a reward is nan for every image.
    """
    for name, unknown in zip(names, rewards.isnan().all(0).tolist(), strict=True):
        if unknown:
            raise ModelError(
                f"{what}: {name} is not a number for any of {len(rewards)}\n"
                "  it needs reports that state what it scores, and a backend that works: choose such reports, or"
                " remove it from the recipe and choose a new folder"
            )


def without_differences(rewards: Tensor, names: Sequence[str]) -> list[str]:
    """Names of the rewards that give all images the same value: nothing can be learned from them.

    Args:
        rewards: of images, [N, R]; nan is left out, and one known value alone does not count.
        names: of the R rewards.
    """
    known = [column[~column.isnan()] for column in rewards.unbind(1)]
    return [
        name for name, values in zip(names, known, strict=True) if len(values) > 1 and bool((values == values[0]).all())
    ]


class SilentRewards:
    """Counts the reports in a row for which a reward has no answer. A few are fine, all of them are not.

    Args:
        names: of the rewards.
        reports: how many the stage trains on, at most; a reward that is silent for all of them is refused.
    """

    def __init__(self, names: Sequence[str], reports: int) -> None:
        self._most = min(_SILENT_REPORTS, reports)
        self._silent: dict[str, set[str]] = {name: set() for name in names}

    def check(self, rewards: Tensor, report_ids: Sequence[str]) -> None:
        """Look at the rewards [N, R] of an iteration.

        Raises:
            ModelError: if a reward has been nan for too many reports in a row.
        """
        for name, unknown in zip(self._silent, rewards.isnan().all(0).tolist(), strict=True):
            silent = self._silent[name]
            silent.update(report_ids) if unknown else silent.clear()
            if len(silent) >= self._most:
                raise ModelError(
                    f"report {report_ids[-1]} and {len(silent) - 1} others before: reward {name} is not a number\n"
                    "  it needs reports that state what it scores, and a backend that works; to tune without it,"
                    " remove it from the recipe and choose a new folder"
                )

    def state(self) -> dict[str, list[str]]:
        """For a checkpoint."""
        return {name: sorted(silent) for name, silent in self._silent.items()}

    def load(self, state: dict[str, list[str]]) -> None:
        """From a checkpoint."""
        self._silent = {name: set(state[name]) for name in self._silent}
