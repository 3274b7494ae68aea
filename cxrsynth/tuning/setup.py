"""One `tune` run made ready: recipe read, reports split, processes joined, choices resolved."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import InitProcessGroupKwargs, broadcast, gather_object
from torch import Tensor

from cxrsynth import console
from cxrsynth.diffusion.model import choose_device, choose_precision, find_model, model_digest
from cxrsynth.diffusion.spec import ModelSpec, read_spec
from cxrsynth.errors import RecipeError, ReportsError
from cxrsynth.images.collection import Collection, open_collection
from cxrsynth.metrics.features import load_extractor
from cxrsynth.recipe.schema import DdpoStage, Recipe, RlcfStage, SamplingSection, SftStage, load_recipe
from cxrsynth.reports.request import Asker
from cxrsynth.reports.table.columns import ColumnNames
from cxrsynth.reports.table.rows import Rejected, Report
from cxrsynth.reports.table.table import open_table
from cxrsynth.rewards.augmented import AugmentedReward
from cxrsynth.rewards.backends import load_reward
from cxrsynth.rewards.base import Reward, RewardSuite
from cxrsynth.rewards.digests import backend_digest
from cxrsynth.rl.rollouts import Case, Group
from cxrsynth.runtime.processes import PATIENCE, announced
from cxrsynth.settings import Device, Precision, TuneSettings
from cxrsynth.tuning.latent_cache import open_films
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
    spec: ModelSpec
    training: Sequence[Report] = field(repr=False)
    held_out: Sequence[Report] = field(repr=False)

    @property
    def is_main(self) -> bool:
        """Whether this process writes."""
        return bool(self.accelerator.is_main_process)

    @property
    def group(self) -> Group:
        """This process among the others."""
        gather: Callable[[list[Any]], list[Any]] = gather_object if self.accelerator.num_processes > 1 else list
        return Group(self.accelerator.process_index, self.accelerator.num_processes, gather)

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
        return self.spec.defaults.guidance if asked is None else asked

    def cases(self, fits: Callable[[str], bool]) -> Callable[[Report], Case]:
        """Reports to cases, each made once: its prompt, its labels, what ACE is told."""
        asker = Asker(self.spec.prompt, self.spec.depicts, fits)

        @lru_cache(maxsize=100_000)
        def case(place: int, held_out: bool) -> Case:
            report = (self.held_out if held_out else self.training)[place]
            asked = asker.ask(report)
            return Case(replace(report, labels=asked.labels), asked.prompt, asked.conditions)

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


def open_tune(settings: TuneSettings) -> TuneRun:
    """Check every input that can be checked before work starts.

    Raises:
        RecipeError, ReportsError, ModelError, ShardError: for what the user can mend.
    """
    recipe = load_recipe(settings.recipe, overrides=settings.overrides)
    spec = read_spec(find_model(recipe.model.checkpoint))
    if recipe.model.precision is Precision.FP16:
        raise RecipeError(
            f"{settings.recipe}: model.precision: found 'fp16'\n"
            "  expected: bf16, fp32 or auto; policy gradients are known to collapse in float16"
        )
    _check_trackers(recipe)
    training, held_out = _split(recipe)
    _check_evaluation(recipe, len(held_out))
    _check_stages(recipe)
    choose_device(recipe.model.device)  # told before any process group is joined
    cpu = recipe.model.device is Device.CPU or choose_device(recipe.model.device).type == "cpu"
    out = settings.out or Path("runs") / settings.recipe.stem
    accelerator = Accelerator(
        cpu=cpu,
        log_with=list(recipe.trackers) or None,
        project_dir=out,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
    )
    device = choose_device(recipe.model.device, local_rank=accelerator.local_process_index)
    precision = choose_precision(recipe.model.precision, device)
    return TuneRun(
        recipe=recipe,
        folder=RunFolder(out),
        accelerator=accelerator,
        device=device,
        precision=Precision.FP32 if precision is Precision.FP16 else precision,
        spec=spec,
        training=training,
        held_out=held_out,
    )


def input_digests(run: TuneRun) -> dict[str, str]:
    """SHA-256 of the files a run depends on, by the recipe's keys; films by names and sizes alone.

    Raises what reading them does.
    """
    recipe = run.recipe
    found = {
        "model.checkpoint": model_digest(find_model(recipe.model.checkpoint)),
        "reports.table": open_table(recipe.reports.table).digest(),
    }
    if isinstance(recipe.reports.held_out, Path):
        found["reports.held_out"] = open_table(recipe.reports.held_out).digest()
    for index, stage in enumerate(recipe.stages):
        if isinstance(stage, SftStage):
            found[f"stages.{index}.data"] = _names_and_sizes(open_films(stage))
            if stage.table is not None:
                found[f"stages.{index}.table"] = open_table(stage.table).digest()
        else:
            asked = {name: section.backend for name, section in stage.rewards.items() if section.weight > 0}
            found |= {f"stages.{index}.rewards.{name}": backend_digest(name, asked[name]) for name in asked}
    if all(isinstance(stage, SftStage) for stage in recipe.stages):
        return found
    found["evaluation.features"] = load_extractor(recipe.evaluation.features, device=torch.device("cpu")).digest
    if recipe.evaluation.reference is not None:
        found["evaluation.reference"] = _names_and_sizes(open_collection(recipe.evaluation.reference))
    judges = recipe.evaluation.judges
    return found | {f"evaluation.judge.{name}": backend_digest(name, judges[name]) for name in judges}


def _names_and_sizes(films: Collection) -> str:
    """SHA-256 of the films' files; of a data set of ours, of its manifest's digests.

    No times: films may be copied to where a job runs.
    """
    root = films.path if films.path.is_dir() else films.path.parent

    def size(name: str) -> int:
        try:
            return (root / name).stat().st_size
        except OSError:
            return -1

    if films.manifest is not None:
        told = [films.content_of(unit) for unit in films.units]
    else:
        told = [f"{name}\0{size(name)}" for unit in films.units for name in unit.files or (unit.name,)]
    return hashlib.sha256("\n".join(told).encode("utf-8", "surrogateescape")).hexdigest()


def _check_stages(recipe: Recipe) -> None:
    """That films, rewards and judges of every stage are there is told now, not after the stages before."""
    cpu, judged = torch.device("cpu"), False
    for stage in recipe.stages:
        if isinstance(stage, SftStage):
            open_films(stage)
            continue
        judged = True
        for name, section in stage.rewards.items():
            if section.weight > 0:
                load_reward(name, section.backend, device=cpu)
    if judged:
        for name, backend in recipe.evaluation.judges.items():
            load_reward(name, backend, device=cpu)
        load_extractor(recipe.evaluation.features, device=cpu)
        if recipe.evaluation.reference is not None:
            open_collection(recipe.evaluation.reference)


def _check_evaluation(recipe: Recipe, held_out: int) -> None:
    section = recipe.evaluation
    images = min(section.reports or held_out, held_out) * section.images_per_report
    if images < 2:
        raise RecipeError(
            "evaluation: judges 1 image, expected at least 2, for diversity and intervals\n"
            "  hold out more reports (reports.held_out), or raise evaluation.images_per_report"
        )


def _check_trackers(recipe: Recipe) -> None:
    """Accelerate leaves out a tracker whose package is missing; better told before hours of work."""
    here = {tracker.value for tracker in get_available_trackers()}
    missing = [name for name in recipe.trackers if name not in here]
    if missing:
        raise RecipeError(f"trackers: {', '.join(missing)} not installed\n  pip install {' '.join(missing)}")


def _split(recipe: Recipe) -> tuple[list[Report], list[Report]]:
    """Training and held-out reports. Which of one table are held out depends on ids and seed, not on the order."""
    section = recipe.reports
    reports = _read(section.table, section.columns, section.limit)
    if isinstance(section.held_out, Path):
        held_out = _read(section.held_out, section.columns, None)
        if open_table(section.held_out).digest() == open_table(section.table).digest():
            raise RecipeError(
                f"reports.held_out: {section.held_out.name} is {section.table.name} again\n"
                "  held-out reports must never be trained on: give other ones, or a number of them"
            )
        seen = {report.report_id for report in reports} & {report.report_id for report in held_out}
        # Rows without an id column are named by their line, in both tables alike.
        shared = [one for one in seen if not one.startswith("row-")]
        if shared:
            raise RecipeError(
                f"reports.held_out: {len(shared)} report ids are also in {section.table.name}\n"
                "  held-out reports must never be trained on: leave them out of one of the tables"
            )
        return reports, held_out
    if section.held_out >= len(reports):
        raise RecipeError(
            f"reports.held_out {section.held_out}: {section.table} has {len(reports)} usable rows\n"
            "  expected: fewer held out than there are, so that some are left to train on"
        )

    def rank(report: Report) -> str:
        return hashlib.sha256(f"{recipe.seed}\0{report.report_id}".encode()).hexdigest()

    held = {id(report) for report in sorted(reports, key=rank)[: section.held_out]}
    return [r for r in reports if id(r) not in held], [r for r in reports if id(r) in held]


def _read(path: Path, columns: dict[str, str], limit: int | None) -> list[Report]:
    table = open_table(path, columns=ColumnNames(**columns))
    rejected: list[Rejected] = []

    def usable() -> Iterator[Report]:
        for row in table.rows():
            if isinstance(row, Rejected):
                rejected.append(row)
            else:
                yield row

    reports = list(islice(usable(), limit))
    if not reports:
        raise ReportsError(f"{path}: no usable row\n  expected: at least one row with report text or labels")
    if rejected and announced("RANK", 0) == 0:
        console.warn(
            f"{path}: {len(rejected)} of {len(rejected) + len(reports)} rows cannot be used and are left out"
            f" (the first: line {rejected[0].line}: {rejected[0].reason})"
        )
    return reports
