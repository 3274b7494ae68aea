"""Inputs of a tuning run: images and reward models loaded once and checked as they are loaded."""

import hashlib
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import torch
from accelerate.tracking import get_available_trackers
from pydantic import BaseModel

from cxrsynth import console
from cxrsynth.address import file_size
from cxrsynth.console import counted
from cxrsynth.diffusion.adapters import check_rank_in
from cxrsynth.diffusion.resolve import ResolvedModel
from cxrsynth.errors import RecipeError
from cxrsynth.images.collection import Collection, open_collection
from cxrsynth.metrics.features import load_extractor
from cxrsynth.recipe.schema import (
    DistillStage,
    EvaluationSection,
    LoraSection,
    Recipe,
    ReinforcementStage,
    RewardSection,
    SftStage,
    Stage,
)
from cxrsynth.reports.findings.labeler import labeler_digest, load_labeler
from cxrsynth.reports.table.source import reading
from cxrsynth.reports.template import PromptFormat, PromptTemplate
from cxrsynth.rewards.augmented import AugmentedReward
from cxrsynth.rewards.backends import load_reward, origin
from cxrsynth.rewards.base import Reward, RewardSuite
from cxrsynth.rewards.digests import backend_digest
from cxrsynth.rewards.ensemble import EnsembleReward
from cxrsynth.runtime.files import file_sha256
from cxrsynth.runtime.processes import read_launch
from cxrsynth.tuning.latent_cache import open_images
from cxrsynth.tuning.run import LoadedInputs, TuneRun
from cxrsynth.tuning.run_folder import PRECISION
from cxrsynth.tuning.splits import HELD_OUT, TEST, ReportSets

LABELER = "reports.labeler"


def _names_and_sizes(radiographs: Collection) -> str:
    """SHA-256 of the images' files; of a data set of ours, of its manifest's digests.

    No times: images may be copied to where a job runs.
    """
    root = radiographs.path if radiographs.path.is_dir() else radiographs.path.parent

    def size(name: str) -> int:
        try:
            return file_size(root / name)
        except OSError:
            return -1

    if radiographs.manifest is not None:
        parts = [radiographs.content_of(unit) for unit in radiographs.units]
    else:
        parts = [f"{name}\0{size(name)}" for unit in radiographs.units for name in unit.files or (unit.name,)]
    return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogateescape")).hexdigest()


def load_inputs(recipe: Recipe, *, device: torch.device, prompt_format: PromptFormat) -> LoadedInputs:
    """Images, reward models and feature extractor of all stages: a fault in a late stage shows before the first.

    Rewards of the same name and backend are loaded once, whichever stages use them.

    Args:
        recipe: what to load.
        device: where reward models run.
        prompt_format: of the model, decides what is read of the metadata of images.

    Raises:
        ModelError, ReportsError, ShardError: for what cannot be loaded.
    """

    @cache
    def reward(name: str, backend: str) -> Reward:
        return load_reward(name, backend, device=device)

    labeler = load_labeler(recipe.reports.labeler, device=device, option=f"{LABELER}:")
    images: dict[int, Collection] = {}
    rewards: dict[int, RewardSuite] = {}
    for index, stage in enumerate(recipe.stages):
        if isinstance(stage, SftStage | DistillStage) and stage.data is not None:
            images[index] = open_images(stage, prompt_format, labeler)
        if not isinstance(stage, ReinforcementStage):
            continue
        suite: dict[str, Reward] = {}
        for name, section in stage.rewards.items():
            if section.weight > 0:
                one = _ensemble(f"stages.{index}.rewards.{name}", section, [reward(name, b) for b in section.backends])
                suite[name] = AugmentedReward(one, views=section.augment) if section.augment > 1 else one
        rewards[index] = RewardSuite(suite)
    if not rewards and not any(isinstance(stage, DistillStage) for stage in recipe.stages):
        return LoadedInputs(images, rewards, labeler=labeler)
    _warn_of_dependence(recipe)
    evaluation = recipe.evaluation
    return LoadedInputs(
        images,
        rewards,
        evaluator=RewardSuite({name: reward(name, backend) for name, backend in evaluation.evaluators.items()}),
        extractor=load_extractor(evaluation.features, device=device),
        reference=None if evaluation.reference is None else open_collection(evaluation.reference),
        labeler=labeler,
    )


def _ensemble(key: str, section: RewardSection, members: Sequence[Reward]) -> Reward:
    """The one member, or all of them together."""
    if len(members) == 1:
        return members[0]
    assert section.std_weight is not None
    try:
        return EnsembleReward(members, std_weight=section.std_weight)
    except ValueError as error:
        raise RecipeError(f"{key}.backend: {error}") from None


def _warn_of_dependence(recipe: Recipe) -> None:
    """An evaluator that tuning optimizes as well shows its own exploitation as progress."""
    if read_launch().rank != 0:
        return
    tuned = {
        origin(name, backend)
        for stage in recipe.stages
        if isinstance(stage, ReinforcementStage)
        for name, section in stage.rewards.items()
        if section.weight > 0
        for backend in section.backends
    }
    for name, backend in recipe.evaluation.evaluators.items():
        if origin(name, backend) in tuned:
            console.warn(
                f"evaluation.evaluator: {name} has the backend {backend}, which a reward that tunes has as well: the"
                " evaluation is not independent, and cannot show reward hacking\n"
                "  choose reward models of another origin for one of the two"
            )


def check_evaluation(recipe: Recipe, reports: ReportSets) -> None:
    """Refuse held-out or test reports of which fewer than two images are evaluated; no test at all is allowed."""
    section = recipe.evaluation
    held_out, test = len(reports.held_out), len(reports.test)
    for key, count in ((HELD_OUT, min(section.reports or held_out, held_out)), (TEST, test)):
        if count * section.images_per_report == 1:
            what = "evaluation" if key == HELD_OUT else "evaluation on test reports"
            raise RecipeError(
                f"{what}: 1 image, expected at least 2, for diversity and intervals\n"
                f"  hold out more reports (reports.{key}), or raise evaluation.images_per_report"
            )


def warn_of_unused(recipe: Recipe, reports: ReportSets) -> None:
    """Name what the recipe gives and another of its settings makes void."""
    if read_launch().rank != 0:
        return
    for index, stage in enumerate(recipe.stages):
        for keys, why in _unused_of_stage(stage):
            console.warn(f"stages.{index}: {', '.join(keys)}: {why}\n  leave it out, or change the other")
    for keys, why in _unused_of_evaluation(recipe, reports):
        console.warn(f"evaluation: {', '.join(keys)}: {why}\n  leave it out, or change the other")


# What the update of the UNet or transformer reads, and nothing else does.
_OF_DENOISER = {
    "forward": ("timesteps", "common_noise", "strength", "weighting", "max_norm_ratio", "micro_batch"),
    "update": ("timestep_fraction", "micro_batch"),
}


def _unused_of_stage(stage: Stage) -> Iterator[tuple[list[str], str]]:
    """Keys of a stage that nothing reads, and why."""
    train = stage.train
    if train.unet != "lora" and train.lora != LoraSection():
        yield ["train.lora"], f"no adapters are trained with unet: {train.unet}"
    if isinstance(stage, SftStage | DistillStage):
        warmup = stage.train.warmup
        if warmup is not None and warmup > stage.steps:
            why = f"the learning rate is not reached in {counted(stage.steps, 'step')}"
            yield [f"train.warmup {warmup}"], why
        return
    ace = stage.train.ace_section
    if ace is None and _given(stage.train, "ace_learning_rate"):
        yield ["train.ace_learning_rate"], "no embeddings are trained with ace: false"
    if stage.train.unet != "frozen":
        return
    if _given(stage.train, "learning_rate"):
        yield ["train.learning_rate"], "only the embeddings are trained with unet: frozen, at ace_learning_rate"
    if ace is not None and ace.exploration_std is not None:
        sections = {name: getattr(stage, name) for name in _OF_DENOISER}
        keys = [
            f"{name}.{key}"
            for name, section in sections.items()
            if section is not None
            for key in _given(section, *_OF_DENOISER[name])
        ]
        if keys:
            yield keys, "embeddings that explore learn from their shifts alone, with unet: frozen"


def _unused_of_evaluation(recipe: Recipe, reports: ReportSets) -> Iterator[tuple[list[str], str]]:
    """Keys of `evaluation` that nothing reads, and why."""
    section, there = recipe.evaluation, len(reports.held_out)
    kinds = {type(stage) for stage in recipe.stages}
    if section.reports is not None and section.reports > there:
        yield [f"reports {section.reports}"], f"only {counted(there, 'report')} held out, of which all are evaluated"
    if kinds == {SftStage}:
        if keys := _given(section, *EvaluationSection.model_fields):
            yield keys, "supervised stages are not evaluated"
    elif not any(issubclass(kind, ReinforcementStage) for kind in kinds):
        if keys := _given(section, "every", "steps", "guidance", "on_hacking", "hacking_margin", "patience"):
            yield keys, "a distilled model is compared with its teacher once, each as it is used"
        if reports.test and section.reports is not None:
            yield ["reports"], "a distilled model is compared with its teacher on the test reports"


def _given(section: BaseModel, *keys: str) -> list[str]:
    """Those of the keys that have another value than by default."""
    fields = type(section).model_fields
    return [key for key in keys if getattr(section, key) != fields[key].default]


def check_adapters(recipe: Recipe, model: ResolvedModel) -> None:
    """A rank that is too large is refused before any stage, and before memory runs out.

    Raises:
        ModelError: naming the largest rank that makes sense.
    """
    ranks = [stage.train.lora.rank for stage in recipe.stages if stage.train.unet == "lora"]
    if ranks:
        # Later stages adapt the networks of the first one's model.
        check_rank_in(model.folder, model.family, max(ranks))


def check_trackers(recipe: Recipe) -> None:
    """Accelerate silently skips a tracker whose package is missing: refused before hours of work."""
    here = {tracker.value for tracker in get_available_trackers()}
    missing = [name for name in recipe.trackers if name not in here]
    if missing:
        raise RecipeError(f"trackers: {', '.join(missing)} not installed\n  pip install {' '.join(missing)}")


def _digest(table: Path) -> str:
    with reading(table):
        return file_sha256(table)


def input_digests(run: TuneRun) -> dict[str, str]:
    """SHA-256 of the files a run depends on, by the recipe's keys; images by names and sizes alone. And its precision.

    Raises what reading them does.
    """
    recipe, loaded = run.recipe, run.loaded
    found = {
        "model.checkpoint": run.model.digest,
        "reports.table": _digest(recipe.reports.table),
        PRECISION: run.precision.value,
    }
    if isinstance(template := recipe.model.prompt_format, PromptTemplate):  # of a preset, the recipe has the name alone
        found["model.prompt_template"] = hashlib.sha256(template.text.encode()).hexdigest()
    if recipe.reports.labeler is not None:
        found[LABELER] = labeler_digest(recipe.reports.labeler)
    for key in (HELD_OUT, TEST):
        if isinstance(given := getattr(recipe.reports, key), Path):
            found[f"reports.{key}"] = _digest(given)
    for index, stage in enumerate(recipe.stages):
        if isinstance(stage, SftStage | DistillStage) and stage.data is not None:
            found[f"stages.{index}.data"] = _names_and_sizes(loaded.images[index])
            if stage.table is not None:
                found[f"stages.{index}.table"] = _digest(stage.table)
        elif isinstance(stage, ReinforcementStage):
            found |= {
                f"stages.{index}.rewards.{name}" + (f".{place}" if place else ""): backend_digest(name, backend)
                for name in loaded.rewards[index].names
                for place, backend in enumerate(stage.rewards[name].backends)
            }
    if loaded.extractor is None:
        return found
    found["evaluation.features"] = loaded.extractor.digest
    if loaded.reference is not None:
        found["evaluation.reference"] = _names_and_sizes(loaded.reference)
    evaluators = recipe.evaluation.evaluators
    return found | {f"evaluation.evaluator.{name}": backend_digest(name, evaluators[name]) for name in evaluators}
