"""Rollouts: the policy's images and their rewards, and the baseline's rewards for the same reports."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from cxrsynth.diffusion.condition import Condition
from cxrsynth.diffusion.ddim import DDIMSchedule
from cxrsynth.diffusion.model import DiffusionModel
from cxrsynth.diffusion.noise import seeded_noise
from cxrsynth.diffusion.rollout import Trajectory, rollout
from cxrsynth.diffusion.sampler import decode_latents, encode_prompts, guided_condition, sample_latents
from cxrsynth.errors import ModelError
from cxrsynth.reports.table.rows import Report
from cxrsynth.rewards.base import RewardSuite
from cxrsynth.rl.experience import Conditioning
from cxrsynth.rl.optimizer import ADVICE
from cxrsynth.rl.perturbation import Shifts, sample_shifts
from cxrsynth.rl.policy import Policy
from cxrsynth.rl.rollout_spec import RolloutSpec
from cxrsynth.runtime.pool import OrderedPool
from cxrsynth.runtime.processes import ProcessGroup
from cxrsynth.settings import Sampler

Record = TypeVar("Record")
RecordMade = TypeVar("RecordMade", covariant=True)
Key = tuple[object, ...]
BaselineKey = tuple[str, int]


@dataclass(frozen=True)
class PromptExample:
    """One report, with all its labels, as the model sees it: its prompt, and the conditions for ACE."""

    report: Report
    prompt: str
    conditions: tuple[str, ...]


class BaselineCache:
    """Mean rewards of the baseline's images by (report id, number of x_T), [R] each; no pair is sampled twice."""

    def __init__(self) -> None:
        self.rows: dict[BaselineKey, list[float]] = {}

    def table(self, keys: Sequence[BaselineKey]) -> Tensor:
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


class Drawing(Protocol[RecordMade]):
    """How a batch is sampled: what the update needs of it, and the images [B, 1, H, W]."""

    guidance: float

    def __call__(
        self, model: DiffusionModel, condition: Condition, starts: Sequence[Key], streams: Sequence[Key]
    ) -> tuple[RecordMade, Tensor]:
        """Sample a batch.

        Args:
            model: the policy, or its baseline.
            condition: from `guided_condition`.
            starts: what each image's x_T depends on where the policy's actions come after it.
            streams: what each image's own noise depends on.
        """
        ...


class TrajectoryDrawing:
    """Trajectories with step noise; `starts` decide x_T, `streams` the noise of the steps, the policy's actions."""

    def __init__(self, schedule: DDIMSchedule, *, guidance: float, seed: int) -> None:
        self.schedule, self.guidance, self._seed = schedule, guidance, seed

    def __call__(
        self, model: DiffusionModel, condition: Condition, starts: Sequence[Key], streams: Sequence[Key]
    ) -> tuple[Trajectory, Tensor]:
        """Trajectories without their images, and the images."""
        shape = model.latent_shape
        made = rollout(
            model,
            self.schedule,
            condition,
            torch.stack([seeded_noise(shape, self._seed, "start", *start) for start in starts]),
            lambda step: torch.stack([seeded_noise(shape, self._seed, *own, step) for own in streams]),
            guidance=self.guidance,
        )
        return replace(made, images=made.images[:0]), made.images


class CleanDrawing:
    """Images by any sampler, without step noise; `streams` decide x_T, the policy's only noise."""

    def __init__(self, sampler: Sampler, *, steps: int, guidance: float, seed: int) -> None:
        self.sampler, self.steps, self.guidance, self._seed = sampler, steps, guidance, seed

    def __call__(
        self, model: DiffusionModel, condition: Condition, starts: Sequence[Key], streams: Sequence[Key]
    ) -> tuple[Tensor, Tensor]:
        """Clean latents [B, C, h, w] on the CPU, and the images."""
        noise = torch.stack([seeded_noise(model.latent_shape, self._seed, *own) for own in streams])
        latents = sample_latents(
            model, condition, noise, sampler=self.sampler, steps=self.steps, guidance=self.guidance
        )
        return latents.cpu(), decode_latents(model, latents).cpu()


class Collector(Generic[Record]):
    """Samples policy and baseline, batch by batch, on a CPU several at once, and scores each batch as it is done.

    Args:
        policy: the model being tuned.
        suite: the rewards.
        drawing: how a batch is sampled.
        batch_size: images per batch; batches do not depend on the number of processes.
        seed: of the condition's shifts.
        pool: where batches run.
        group: the processes.
    """

    def __init__(
        self,
        policy: Policy,
        suite: RewardSuite,
        *,
        drawing: Drawing[Record],
        batch_size: int,
        seed: int,
        pool: OrderedPool,
        group: ProcessGroup,
    ) -> None:
        self.policy = policy
        self.suite = suite
        self.drawing = drawing
        self.batch_size = batch_size
        self.seed = seed
        self._pool = pool
        self._group = group

    def policy_samples(
        self, iteration: int, specs: Sequence[RolloutSpec], examples: Sequence[PromptExample]
    ) -> tuple[Conditioning, list[Record], Tensor]:
        """What this process sampled, one record a batch, and the rewards of all processes' images, [N, R].

        Args:
            iteration: gives each iteration noise of its own.
            specs: all N images of the iteration.
            examples: their prompts, [N].
        """
        model = self.policy.model
        batches = [
            range(first, min(first + self.batch_size, len(specs))) for first in range(0, len(specs), self.batch_size)
        ]
        own = self._group.share(batches)
        places = [place for batch in own for place in batch]
        text, empty = self._embeddings([examples[place].prompt for place in places])
        mask = None if model.ace is None else model.ace.mask([examples[place].conditions for place in places])
        shifts = self._shifts(iteration, [specs[place] for place in places], mask)
        row = {place: index for index, place in enumerate(places)}

        def one(batch: range) -> tuple[Record, Tensor]:
            rows = [row[place] for place in batch]
            return self._sample(
                model,
                [examples[place] for place in batch],
                text[rows],
                empty,
                None if mask is None else mask[rows],
                None if shifts is None else shifts.values[rows],
                starts=[(examples[place].report.report_id, specs[place].start) for place in batch],
                streams=[("policy", iteration, specs[place].stream) for place in batch],
            )

        found = [result for _, result in self._pool.map_in_order(one, own)]
        rewards = self._joined(places, torch.cat([values for _, values in found]) if found else None)
        self._check(rewards, examples)
        ids = [examples[place].report.report_id for place in places]
        return Conditioning(places, ids, text, empty, mask, shifts), [record for record, _ in found], rewards

    def fill(self, cache: BaselineCache, wanted: Mapping[BaselineKey, PromptExample], *, images: int = 1) -> None:
        """Sample and score the baseline where the cache has no rewards yet, with noise of its own.

        With the policy's step noise the comparison would depend on the policy's action, and bias its gradient.

        Args:
            cache: gets the mean rewards of `images` images a key.
            wanted: example of each key.
            images: of the baseline for each key.
        """
        missing = [key for key in sorted(wanted) if key not in cache.rows]
        todo = [(key, image) for key in missing for image in range(images)]
        batches = [todo[first : first + self.batch_size] for first in range(0, len(todo), self.batch_size)]
        if not batches:
            return
        places = {pair: place for place, pair in enumerate(todo)}
        own = self._group.share(batches)
        with self.policy.baseline() as baseline:

            def one(batch: list[tuple[BaselineKey, int]]) -> Tensor:
                members = [wanted[key] for key, _ in batch]
                text, empty = self._embeddings([example.prompt for example in members])
                mask = None
                if baseline.ace is not None:
                    mask = baseline.ace.mask([example.conditions for example in members])
                _, rewards = self._sample(
                    baseline,
                    members,
                    text,
                    empty,
                    mask,
                    None,
                    starts=[key for key, _ in batch],
                    streams=[("baseline", *key, image) for key, image in batch],
                )
                return rewards

            found = [rewards for _, rewards in self._pool.map_in_order(one, own)]
        mine = [places[pair] for batch in own for pair in batch]
        rewards = self._joined(mine, torch.cat(found) if found else None)
        self._check(rewards, [wanted[key] for key, _ in todo], whose="the baseline's ")
        for place, key in enumerate(missing):
            several = rewards[place * images : (place + 1) * images]
            cache.rows[key] = several.nanmean(0).tolist()

    def _shifts(self, iteration: int, specs: Sequence[RolloutSpec], mask: Tensor | None) -> Shifts | None:
        """The first action of each trajectory, if the policy has one."""
        ace = self.policy.shifts
        if ace is None or mask is None:
            return None
        elements = math.prod(self.policy.model.latent_shape)
        return sample_shifts(
            ace.mean(mask), self.policy.exploration_std, specs, self.seed, "shift", iteration, elements=elements
        )

    def _embeddings(self, prompts: list[str]) -> tuple[Condition, Condition]:
        """Conditions of n prompts, and of no prompt."""
        text, empty = encode_prompts(self.policy.model, prompts)
        return text.clone(), empty.clone()

    def _sample(
        self,
        model: DiffusionModel,
        examples: list[PromptExample],
        text: Condition,
        empty: Condition,
        mask: Tensor | None,
        shift: Tensor | None,
        *,
        starts: Sequence[Key],
        streams: Sequence[Key],
    ) -> tuple[Record, Tensor]:
        with torch.no_grad():
            condition = guided_condition(model, text, empty, self.drawing.guidance, mask=mask, shift=shift)
        record, images = self.drawing(model, condition, starts, streams)
        check_pixels(images, [f"report {example.report.report_id}" for example in examples])
        return record, self.suite(images, [example.report for example in examples]).values

    def _joined(self, places: list[int], rewards: Tensor | None) -> Tensor:
        """Rows of all processes in the order of their places."""
        rows = [] if rewards is None else list(zip(places, rewards.tolist(), strict=True))
        return torch.tensor([row for _, row in sorted(self._group.gather(rows))])

    def _check(self, rewards: Tensor, examples: Sequence[PromptExample], *, whose: str = "") -> None:
        """nan means that a reward has no answer; an infinity is an error."""
        wrong = rewards.isinf()
        if wrong.any():
            place, column = wrong.nonzero()[0].tolist()
            raise ModelError(
                f"report {examples[place].report.report_id}: {whose}reward {self.suite.names[column]} is infinite\n"
                "  the last checkpoint is kept; look at that reward's backend"
            )


def check_pixels(images: Tensor, names: Sequence[str], *, advice: str = ADVICE) -> None:
    """Refuse images [B, C, H, W] with pixels that are not finite; `names` are those of the images.

    Raises:
        ModelError: naming the first.
    """
    bad = ~images.isfinite().flatten(1).all(1)
    if bad.any():
        raise ModelError(f"{names[int(bad.int().argmax())]}: the model gave pixels that are not numbers{advice}")
