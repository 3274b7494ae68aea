"""What both objectives of reinforcement learning work with in one stage: policy, optimizer, rewards, reports."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from cxrsynth import console
from cxrsynth.diffusion.ace import SubspaceEmbedding
from cxrsynth.diffusion.model import DiffusionModel
from cxrsynth.diffusion.resolve import ResolvedModel
from cxrsynth.recipe.schema import AceSection, DdpoStage, RlcfStage, TrainSection
from cxrsynth.reports.table.rows import Report
from cxrsynth.rewards.base import RewardSuite
from cxrsynth.rl.checks import SilentRewards
from cxrsynth.rl.optimizer import optimizer_groups
from cxrsynth.rl.policy import Policy, load_policy
from cxrsynth.rl.rollout_spec import RolloutSpec, rollout_specs
from cxrsynth.rl.rollouts import Collector, Drawing, PromptExample, Record
from cxrsynth.runtime.pool import OrderedPool
from cxrsynth.tuning.run import TuneRun
from cxrsynth.tuning.stage import Remembered

_PROMPTS = 1024  # enough different prompts to find the directions of a subspace

Iterate = Callable[[int], dict[str, Any]]


class Objective(Protocol):
    """How an iteration samples, compares and learns."""

    # State beside the weights that a checkpoint keeps, and tensors beside them.
    remembered: Mapping[str, Remembered]
    beside: Mapping[str, Tensor]

    def opened(self, pool: OrderedPool, *, after_step: Callable[[], None], first: int) -> Iterate:
        """A function that runs iterations, counted from 0, and returns each one's row of metrics.

        Args:
            pool: where batches run.
            after_step: called after each optimizer step.
            first: the iteration this process starts with.
        """
        ...


@dataclass(frozen=True)
class PolicyStage:
    """The policy of a stage `rlcf` or `ddpo` with its optimizer, and what the recipe says of it."""

    run: TuneRun
    section: RlcfStage | DdpoStage
    index: int
    policy: Policy = field(repr=False)
    optimizer: torch.optim.Optimizer = field(repr=False)
    silent: SilentRewards = field(repr=False)

    @cached_property
    def example(self) -> Callable[[Report], PromptExample]:
        """Prompt and conditions of a report."""
        return self.run.prompt_examples(self.policy.model.fits)

    @property
    def suite(self) -> RewardSuite:
        """The rewards that tune."""
        return self.run.loaded.rewards[self.index]

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each reward, in the order of `suite`."""
        return {name: self.section.rewards[name].weight for name in self.suite.names}

    @property
    def weight_tensor(self) -> Tensor:
        """The same, [R]."""
        return torch.tensor(list(self.weights.values()))

    @property
    def guidance(self) -> float:
        """Classifier-free guidance scale of the rollouts."""
        return self.run.guidance(self.section.sampling.guidance)

    @property
    def batch_size(self) -> int:
        """Images a batch."""
        return self.run.batch_size(self.section.sampling)

    @property
    def micro_batch(self) -> int:
        """Of an update: noisy images, or denoising steps, a forward pass."""
        section = self.section.forward or self.section.update
        return (section and section.micro_batch) or self.batch_size

    @property
    def seed(self) -> int:
        """Of the stage's report order and noise."""
        return self.run.stage_seed(self.index)

    def specs(self, iteration: int, *, pool: int) -> list[RolloutSpec]:
        """The images of an iteration; x_T comes from a pool of so many for each report."""
        return rollout_specs(
            iteration,
            seed=self.seed,
            reports=len(self.run.training),
            per_iteration=self.section.reports_per_iteration,
            images=self.section.images_per_report,
            pool=pool,
            mirrored=self.section.mirrored,
        )

    def examples(self, specs: Sequence[RolloutSpec]) -> list[PromptExample]:
        """Their prompts, in the same order."""
        return [self.example(self.run.training[spec.report]) for spec in specs]

    def collector(self, drawing: Drawing[Record], pool: OrderedPool) -> Collector[Record]:
        """What samples images by `drawing` and scores them, batch by batch on `pool`."""
        return Collector(
            self.policy,
            self.suite,
            drawing=drawing,
            batch_size=self.batch_size,
            seed=self.seed,
            pool=pool,
            group=self.run.group,
        )

    def key(self, iteration: int) -> str:
        """Determines the order of samples in an update, and its noise."""
        return f"{self.run.recipe.seed} {self.index} {iteration}"


def open_policy_stage(
    run: TuneRun, section: RlcfStage | DdpoStage, index: int, *, checkpoint: ResolvedModel
) -> PolicyStage:
    """Load the policy in `checkpoint` and make the optimizer of its weights.

    Raises:
        ModelError: if the folder cannot be used.
    """

    def prompts(model: DiffusionModel) -> list[str]:
        """Different prompts of training reports."""
        example, count = run.prompt_examples(model.fits), len(run.training)
        places = random.Random(run.recipe.seed).sample(range(count), min(count, _PROMPTS))
        return list(dict.fromkeys(example(run.training[place]).prompt for place in places))

    train = section.train
    policy = load_policy(
        checkpoint,
        unet=train.unet,
        lora=train.lora,
        ace=train.ace_section,
        prompts=prompts,
        device=run.device,
        precision=run.precision,
        gradient_checkpointing=run.recipe.model.gradient_checkpointing,
        seed=run.recipe.seed,
    )
    if isinstance(policy.model.ace, SubspaceEmbedding):
        # Every process has computed the basis, perhaps on other hardware: all take the first one's.
        policy.model.ace.basis.copy_(run.of_first(policy.model.ace.basis))
        _warn_of_fewer_directions(run, train, index, len(policy.model.ace.basis))
    optimizer = torch.optim.AdamW(optimizer_groups(policy, train), weight_decay=train.weight_decay)
    # A short stage does not reach every report, and must not end before a reward that never answers is noticed.
    reached = min(len(run.training), section.iterations * section.reports_per_iteration)
    silent = SilentRewards(run.loaded.rewards[index].names, reached)
    return PolicyStage(run, section, index, policy, optimizer, silent)


def _warn_of_fewer_directions(run: TuneRun, train: TrainSection, index: int, found: int) -> None:
    """Prompts that differ in fewer directions than `subspace` asks for have no more to learn along."""
    asked = train.ace.subspace if isinstance(train.ace, AceSection) else None  # the default's 32 are at most so many
    if run.group.is_main and asked is not None and found < asked:
        console.warn(
            f"stages.{index}.train.ace.subspace {asked}: the prompts of the reports differ in {found} directions, of"
            " the model's text embeddings, which are all used"
        )
