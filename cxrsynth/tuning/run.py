"""What all stages of one tuning run share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast
from torch import Tensor

from cxrsynth.diffusion.resolve import ResolvedModel
from cxrsynth.recipe.schema import DdpoStage, Recipe, RlcfStage, SamplingSection
from cxrsynth.reports.request import PromptBuilder
from cxrsynth.reports.table.rows import Report
from cxrsynth.rewards.augmented import AugmentedReward
from cxrsynth.rewards.backends import load_reward
from cxrsynth.rewards.base import Reward, RewardSuite
from cxrsynth.rl.rollouts import PromptExample
from cxrsynth.runtime.processes import ProcessGroup
from cxrsynth.settings import Precision
from cxrsynth.tuning.run_folder import RunFolder

# On a CPU small batches go side by side and stay in its caches.
_BATCH_SIZE = {"cpu": 4, "mps": 8, "cuda": 8}


@dataclass(frozen=True)
class TuneRun:
    """What all stages share."""

    recipe: Recipe
    folder: RunFolder
    accelerator: Accelerator
    device: torch.device
    precision: Precision
    model: ResolvedModel  # the first stage starts from it
    training: Sequence[Report] = field(repr=False)
    held_out: Sequence[Report] = field(repr=False)

    @property
    def is_main(self) -> bool:
        """Whether this process writes."""
        return bool(self.accelerator.is_main_process)

    @property
    def group(self) -> ProcessGroup:
        """This process among the others."""
        accelerator = self.accelerator
        if accelerator.num_processes == 1:
            return ProcessGroup()
        return ProcessGroup(
            accelerator.process_index, accelerator.local_process_index, accelerator.num_processes, PartialState()
        )

    def add_up(self, tensor: Tensor) -> Tensor:
        """Sum over processes."""
        if self.accelerator.num_processes == 1:
            return tensor
        summed: Tensor = self.accelerator.reduce(tensor.to(self.device), reduction="sum")
        return summed.to(tensor.device)

    def of_first(self, tensor: Tensor) -> Tensor:
        """The first process's tensor, in all of them."""
        if self.accelerator.num_processes == 1:
            return tensor
        shared: Tensor = broadcast(tensor.to(self.device))
        return shared.to(tensor.device)

    def track(self, numbers: Mapping[str, float], *, stage: int, iteration: int) -> None:
        """Send numbers to the trackers, their step counted through all stages: theirs must rise."""
        before = sum(section.length for section in self.recipe.stages[:stage])
        self.accelerator.log(dict(numbers), step=before + iteration)

    def wait(self) -> None:
        """Return when all processes have come here."""
        self.accelerator.wait_for_everyone()

    def batch_size(self, section: SamplingSection) -> int:
        """Trajectories a batch."""
        return section.batch_size or _BATCH_SIZE[self.device.type]

    def guidance(self, asked: float | None) -> float:
        """Guidance scale: as asked, else what the model folder recommends."""
        return self.model.spec.defaults.guidance if asked is None else asked

    def cases(self, fits: Callable[[str], bool]) -> Callable[[Report], PromptExample]:
        """Reports to cases, each made once: its prompt, its labels, what ACE is told."""
        prompt_builder = PromptBuilder(self.model.spec.prompt, self.model.spec.depicts, fits)

        @lru_cache(maxsize=100_000)
        def case(place: int, held_out: bool) -> PromptExample:
            report = (self.held_out if held_out else self.training)[place]
            asked = prompt_builder.build(report)
            return PromptExample(replace(report, labels=asked.labels), asked.prompt, asked.conditions)

        places = {id(report): (index, False) for index, report in enumerate(self.training)}
        places |= {id(report): (index, True) for index, report in enumerate(self.held_out)}
        return lambda report: case(*places[id(report)])

    def suite(self, stage: RlcfStage | DdpoStage) -> RewardSuite:
        """The rewards that tune; those of weight zero are left out. Raises ModelError."""
        rewards: dict[str, Reward] = {}
        for name, section in stage.rewards.items():
            if section.weight > 0:
                reward = load_reward(name, section.backend, device=self.device)
                rewards[name] = AugmentedReward(reward, views=section.augment) if section.augment > 1 else reward
        return RewardSuite(rewards)
