"""What all stages of one tuning run share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from cxrsynth.diffusion.resolve import ResolvedModel
from cxrsynth.diffusion.spec import SamplingDefaults
from cxrsynth.images.collection import Collection
from cxrsynth.metrics.features import Extractor
from cxrsynth.recipe.schema import Recipe, ReinforcementStage, SamplingSection
from cxrsynth.reports.request import PromptBuilder, Reader
from cxrsynth.reports.table.rows import Report
from cxrsynth.rewards.base import RewardSuite
from cxrsynth.rl.rollouts import PromptExample
from cxrsynth.runtime.processes import ProcessGroup
from cxrsynth.settings import Precision
from cxrsynth.tuning.export import CARD
from cxrsynth.tuning.run_folder import RunFolder
from cxrsynth.tuning.splits import ReportSets

# On a CPU small batches run in parallel and fit its caches.
_BATCH_SIZE = {"cpu": 4, "mps": 8, "cuda": 8}
_STAGE_STRIDE = 1_000_003


@dataclass(frozen=True)
class LoadedInputs:
    """What the recipe names beside models and reports, loaded once: image collections and reward models.

    `images` and `rewards` are by stage. `labeler` None: labels are read by rules. Where all stages are supervised
    nothing is evaluated, and `evaluator`, `extractor` and `reference` are None.
    """

    images: Mapping[int, Collection]
    rewards: Mapping[int, RewardSuite]
    evaluator: RewardSuite | None = None
    extractor: Extractor | None = None
    reference: Collection | None = None
    labeler: Reader | None = None


@dataclass(frozen=True)
class TuneRun:
    """What all stages share."""

    recipe: Recipe
    folder: RunFolder
    accelerator: Accelerator
    group: ProcessGroup  # this process among the others
    device: torch.device
    precision: Precision
    model: ResolvedModel  # the first stage starts from it
    reports: ReportSets = field(repr=False)
    loaded: LoadedInputs = field(repr=False)
    used: SamplingDefaults | None = None  # after a stage `distill`: how the model is used that it left

    @property
    def defaults(self) -> SamplingDefaults:
        """How the model that the stage starts from is used."""
        return self.used or self.model.spec.defaults

    def starting_from(self, checkpoint: ResolvedModel) -> "TuneRun":
        """The same run for a stage that starts from another model than the first."""
        return replace(self, used=checkpoint.spec.defaults)

    @property
    def training(self) -> Sequence[Report]:
        """The reports to train on."""
        return self.reports.training

    @property
    def held_out(self) -> Sequence[Report]:
        """The reports that select the checkpoint."""
        return self.reports.held_out

    @property
    def test(self) -> Sequence[Report]:
        """The reports of the evaluation at the end; may be none."""
        return self.reports.test

    @property
    def tested_stage(self) -> int | None:
        """The stage whose best weights are evaluated on the test reports: the last one of reinforcement learning."""
        tuned = [index for index, stage in enumerate(self.recipe.stages) if isinstance(stage, ReinforcementStage)]
        return tuned[-1] if tuned and self.test else None

    @property
    def is_main(self) -> bool:
        """Whether this process writes."""
        return self.group.is_main

    def add_up(self, tensor: Tensor) -> Tensor:
        """Sum over processes."""
        return self.group.add_up(tensor)

    def of_first(self, tensor: Tensor) -> Tensor:
        """The first process's tensor, in all of them."""
        return self.group.of_first(tensor)

    def track(self, numbers: Mapping[str, float], *, stage: int, iteration: int) -> None:
        """Send numbers to the trackers. Their step must rise, so it is counted through all stages."""
        before = sum(section.length for section in self.recipe.stages[:stage])
        self.accelerator.log(dict(numbers), step=before + iteration)

    def wait(self) -> None:
        """Return when all processes have come here."""
        self.group.wait()

    def batch_size(self, section: SamplingSection) -> int:
        """Trajectories a batch."""
        return section.batch_size or _BATCH_SIZE[self.device.type]

    def stage_model(self, index: int) -> Path:
        """Folder of the model a stage leaves: that of the last stage is the run's result."""
        return self.folder.model if index + 1 == len(self.recipe.stages) else self.folder.stage_model(index)

    @property
    def under_way(self) -> int:
        """The first stage that has not left its model; the last one if all have."""
        stages = range(len(self.recipe.stages))
        return next((index for index in stages if not (self.stage_model(index) / CARD).is_file()), stages[-1])

    def stage_seed(self, index: int) -> int:
        """Seed of a stage's report order and noise: a later stage must not see the noise the last one was fitted to."""
        return self.recipe.seed + _STAGE_STRIDE * index

    def guidance(self, scale: float | None) -> float:
        """Guidance scale: the recipe's, else what the model folder recommends."""
        return self.defaults.guidance if scale is None else scale

    def prompt_builder(self, fits: Callable[[str], bool]) -> PromptBuilder:
        """What makes the prompts of all stages; `fits` says whether a text fits the tokenizer."""
        spec = self.model.spec
        return PromptBuilder(spec.prompt_format, spec.depicts, fits, classes=spec.classes, reader=self.loaded.labeler)

    def prompt_examples(self, fits: Callable[[str], bool]) -> Callable[[Report], PromptExample]:
        """A function from reports to prompts, labels and conditions; each report is worked on once.

        Args:
            fits: whether a text fits the tokenizer.
        """
        prompt_builder = self.prompt_builder(fits)

        @lru_cache(maxsize=100_000)
        def example(place: int, of: str) -> PromptExample:
            report: Report = getattr(self.reports, of)[place]
            built = prompt_builder.build(report)
            return PromptExample(replace(report, labels=built.labels), built.prompt, built.conditions)

        places = {
            id(report): (index, of)
            for of in ("training", "held_out", "test")
            for index, report in enumerate(getattr(self.reports, of))
        }
        return lambda report: example(*places[id(report)])
