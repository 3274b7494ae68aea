"""What an iteration learns from: the policy's trajectories, their rewards, and the baseline's rewards beside them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cxrsynth.diffusion.ddim import DDIMSchedule
from cxrsynth.diffusion.model import DiffusionModel
from cxrsynth.diffusion.noise import noise
from cxrsynth.diffusion.rollout import Trajectory, rollout
from cxrsynth.diffusion.sampler import encode_prompts, guided_condition
from cxrsynth.errors import ModelError
from cxrsynth.reports.table.rows import Report
from cxrsynth.rewards.base import RewardSuite
from cxrsynth.rl.perturbation import Shifts, draw_shifts
from cxrsynth.rl.policy import Policy
from cxrsynth.rl.rollout_spec import RolloutSpec
from cxrsynth.rl.update import Experience
from cxrsynth.runtime.pool import OrderedPool
from cxrsynth.runtime.processes import ProcessGroup


@dataclass(frozen=True)
class PromptExample:
    """One report to draw: `report` with all its labels, the prompt, and what ACE is told."""

    report: Report
    prompt: str
    conditions: tuple[str, ...]


class BaselineCache:
    """Mean rewards of the baseline's images by (report id, x_T), [R] each: what was sampled once is not again."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, int], list[float]] = {}

    def table(self, keys: Sequence[tuple[str, int]]) -> Tensor:
        """Rewards [B, R] of cached keys."""
        return torch.tensor([self.rows[key] for key in keys])

    def everything(self) -> Tensor:
        """All rows, [N, R], in the order of their keys."""
        return torch.tensor([self.rows[key] for key in sorted(self.rows)])

    def state(self) -> list[list[object]]:
        """For a checkpoint."""
        return [[*key, row] for key, row in sorted(self.rows.items())]

    def load(self, state: list[tuple[str, int, list[float]]]) -> None:
        """From a checkpoint."""
        self.rows = {(report_id, start): row for report_id, start, row in state}


class Collector:
    """Samples policy and baseline, batch by batch, several at once on a CPU, and scores the images as they come.

    Args:
        policy: what is tuned.
        suite: the rewards.
        schedule: of the rollouts.
        guidance: classifier-free guidance scale.
        batch_size: trajectories a batch; batches are the same however many processes share them.
        seed: of all noise.
        pool: where batches run.
        group: the processes.
    """

    def __init__(
        self,
        policy: Policy,
        suite: RewardSuite,
        *,
        schedule: DDIMSchedule,
        guidance: float,
        batch_size: int,
        seed: int,
        pool: OrderedPool,
        group: ProcessGroup,
    ) -> None:
        self.policy = policy
        self.suite = suite
        self.schedule = schedule
        self.guidance = guidance
        self.batch_size = batch_size
        self.seed = seed
        self._pool = pool
        self._group = group

    def policy_experience(
        self, iteration: int, drawn: Sequence[RolloutSpec], cases: Sequence[PromptExample]
    ) -> tuple[Experience, Tensor]:
        """Trajectories of this process and the rewards of all, [N, R].

        Args:
            iteration: makes the step noise new.
            drawn: all N trajectories of the iteration.
            cases: of each, [N].
        """
        model = self.policy.model
        batches = [
            range(first, min(first + self.batch_size, len(drawn))) for first in range(0, len(drawn), self.batch_size)
        ]
        own = self._group.share(batches)
        places = [place for batch in own for place in batch]
        text, empty = self._embeddings([cases[place].prompt for place in places])
        mask = None if model.ace is None else model.ace.mask([cases[place].conditions for place in places])
        shifts = self._shifts(iteration, [drawn[place] for place in places], mask)
        row = {place: index for index, place in enumerate(places)}

        def one(batch: range) -> tuple[Trajectory, Tensor]:
            rows = [row[place] for place in batch]
            return self._sample(
                model,
                [cases[place] for place in batch],
                text[rows],
                empty,
                None if mask is None else mask[rows],
                None if shifts is None else shifts.values[rows],
                starts=[(cases[place].report.report_id, drawn[place].start) for place in batch],
                steps=[("policy", iteration, drawn[place].stream) for place in batch],
            )

        found = [result for _, result in self._pool.map_in_order(one, own)]
        rewards = self._joined(places, torch.cat([values for _, values in found]) if found else None)
        latents, log_probs = ([getattr(made, name) for made, _ in found] for name in ("latents", "log_probs"))
        self._check(rewards, cases)
        empty_latents = torch.zeros(len(self.schedule.timesteps), 0, *model.latent_shape)
        experience = Experience(
            places,
            torch.cat([empty_latents, *latents], 1),
            torch.cat([torch.zeros(self.schedule.actions, 0), *log_probs], 1),
            text,
            empty,
            mask,
            shifts,
            [cases[place].report.report_id for place in places],
        )
        return experience, rewards

    def baseline_rewards(
        self, drawn: Sequence[RolloutSpec], cases: Sequence[PromptExample], cache: BaselineCache, *, images: int
    ) -> Tensor:
        """Rewards [N, R] of the baseline for the same reports and x_T, with step noise of its own; mean of `images`.

        Were the step noise shared, the comparison would depend on the policy's action and bias its gradient.
        """
        wanted = {(case.report.report_id, draw.start): case for draw, case in zip(drawn, cases, strict=True)}
        missing = [key for key in sorted(wanted) if key not in cache.rows]
        todo = [(key, image) for key in missing for image in range(images)]
        batches = [todo[first : first + self.batch_size] for first in range(0, len(todo), self.batch_size)]
        if batches:
            places = {pair: place for place, pair in enumerate(todo)}
            own = self._group.share(batches)
            with self.policy.baseline() as baseline:

                def one(batch: list[tuple[tuple[str, int], int]]) -> Tensor:
                    members = [wanted[key] for key, _ in batch]
                    text, empty = self._embeddings([case.prompt for case in members])
                    mask = None if baseline.ace is None else baseline.ace.mask([case.conditions for case in members])
                    _, rewards = self._sample(
                        baseline,
                        members,
                        text,
                        empty,
                        mask,
                        None,
                        starts=[key for key, _ in batch],
                        steps=[("baseline", *key, image) for key, image in batch],
                    )
                    return rewards

                found = [rewards for _, rewards in self._pool.map_in_order(one, own)]
            mine = [places[pair] for batch in own for pair in batch]
            rewards = self._joined(mine, torch.cat(found) if found else None)
            self._check(rewards, [wanted[key] for key, _ in todo], whose="the baseline's ")
            for place, key in enumerate(missing):
                several = rewards[place * images : (place + 1) * images]
                cache.rows[key] = several.nanmean(0).tolist()
        return cache.table([(case.report.report_id, draw.start) for draw, case in zip(drawn, cases, strict=True)])

    def _shifts(self, iteration: int, drawn: Sequence[RolloutSpec], mask: Tensor | None) -> Shifts | None:
        """The first action of each trajectory, where the policy has one."""
        ace = self.policy.shifts
        if ace is None or mask is None:
            return None
        elements = math.prod(self.policy.model.latent_shape)
        return draw_shifts(ace.mean(mask), self.policy.explore, drawn, self.seed, "shift", iteration, elements=elements)

    def _embeddings(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Text embeddings [n, L, D] and those of the empty prompt [1, L, D]."""
        # Clones: tensors of inference mode cannot take part in what learns.
        encoded = encode_prompts(self.policy.model, ["", *prompts]).clone()
        return encoded[1:], encoded[:1]

    def _sample(
        self,
        model: DiffusionModel,
        cases: list[PromptExample],
        text: Tensor,
        empty: Tensor,
        mask: Tensor | None,
        shift: Tensor | None,
        *,
        starts: Sequence[tuple[object, ...]],
        steps: Sequence[tuple[object, ...]],
    ) -> tuple[Trajectory, Tensor]:
        shape = model.latent_shape
        with torch.no_grad():
            condition = guided_condition(model, text, empty, self.guidance, mask=mask, shift=shift)
        made = rollout(
            model,
            self.schedule,
            condition,
            torch.stack([noise(shape, self.seed, "start", *start) for start in starts]),
            lambda step: torch.stack([noise(shape, self.seed, *own, step) for own in steps]),
            guidance=self.guidance,
        )
        check_pixels(made.images, [f"report {case.report.report_id}" for case in cases])
        return replace(made, images=made.images[:0]), self.suite(made.images, [case.report for case in cases]).values

    def _joined(self, places: list[int], rewards: Tensor | None) -> Tensor:
        """Rows of all processes in the order of their places."""
        rows = [] if rewards is None else list(zip(places, rewards.tolist(), strict=True))
        return torch.tensor([row for _, row in sorted(self._group.gather(rows))])

    def _check(self, rewards: Tensor, cases: Sequence[PromptExample], *, whose: str = "") -> None:
        """nan says that a reward cannot tell; an infinity is a fault."""
        wrong = rewards.isinf()
        if wrong.any():
            place, column = wrong.nonzero()[0].tolist()
            raise ModelError(
                f"report {cases[place].report.report_id}: {whose}reward {self.suite.names[column]} is infinite\n"
                "  the last checkpoint is kept; look at that reward's backend"
            )


def check_pixels(images: Tensor, names: Sequence[str]) -> None:
    """Refuse images [B, C, H, W] with a pixel that is not finite; `names` are those of the images.

    Raises:
        ModelError: naming the first.
    """
    bad = ~images.isfinite().flatten(1).all(1)
    if bad.any():
        raise ModelError(
            f"{names[int(bad.int().argmax())]}: the model gave pixels that are not numbers\n"
            "  try a lower learning rate, a KL weight, or precision fp32; the last checkpoint is kept"
        )
