"""`cxrsynth tune`: a recipe in, a tuned model out. Stages run in order, each from the model the last one left."""

import shutil
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from cxrsynth import __version__, console
from cxrsynth.diffusion.resolve import ResolvedModel, resolve_model
from cxrsynth.errors import RecipeError
from cxrsynth.recipe.read import dump_recipe
from cxrsynth.runtime.memory import LOADING_ADVICE, memory_advice
from cxrsynth.runtime.shared_folder import refuse_folders_apart
from cxrsynth.settings import TuneSettings
from cxrsynth.tuning.distill import Distillation
from cxrsynth.tuning.dry_run import describe
from cxrsynth.tuning.export import CARD, save_tuned
from cxrsynth.tuning.finetune import Supervision
from cxrsynth.tuning.inputs import input_digests
from cxrsynth.tuning.reinforce import Reinforcement
from cxrsynth.tuning.run import TuneRun
from cxrsynth.tuning.setup import open_tune
from cxrsynth.tuning.stage import Stage

_PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "peft")
_STAGES: dict[str, Callable[..., Stage]] = {
    "sft": Supervision,
    "distill": Distillation,
    "rlcf": Reinforcement,
    "ddpo": Reinforcement,
}


@dataclass(frozen=True)
class Tuned:
    """What a run left or, for a dry run, would do."""

    model: Path
    already_complete: bool = False
    exported: bool = False
    estimate: str | None = None


def tune(settings: TuneSettings) -> Tuned:
    """Run a recipe; resume where an earlier run of the same recipe stopped.

    Raises:
        RecipeError, ReportsError, ModelError, ShardError, LaunchError: for what the user can fix.
    """
    if settings.dry_run + settings.export + settings.from_best > 1:
        raise RecipeError("--dry-run, --export and --from-best: give one of them")
    with ExitStack() as together:
        with memory_advice(LOADING_ADVICE):
            run = open_tune(settings, together)
        return _tune(run, settings)


def _tune(run: TuneRun, settings: TuneSettings) -> Tuned:
    recipe = dump_recipe(run.recipe)
    going_on = run.under_way if settings.from_best else None
    complete = run.folder.check(recipe, going_on=going_on)
    if settings.dry_run:
        return Tuned(run.folder.model, estimate=describe(run))
    refuse_folders_apart(run.group, run.folder.locked, complete=complete)
    if complete:
        _remove_caches(run, range(len(run.recipe.stages)))
        return Tuned(run.folder.model, already_complete=True)
    if settings.export or settings.from_best:
        run.folder.refuse_no_run()
    is_new = not run.folder.has_begun
    if run.is_main:
        console.say(f"reports: {run.reports.summary}")
    # Before the folder is made: a model that does not load leaves none behind.
    first = _open_stage(run, 0, run.model) if is_new else None
    run.wait()  # until all processes have checked the folder: one that the main process has begun looks foreign
    if run.is_main:
        run.folder.start(recipe, _versions(run), input_digests(run), going_on=going_on)
    run.wait()
    try:
        if settings.export:
            return _export(run, run.under_way)
        if run.recipe.trackers:
            run.accelerator.init_trackers("cxrsynth")
        checkpoint = run.model
        for index in range(len(run.recipe.stages)):
            if not (run.stage_model(index) / CARD).is_file():
                _run_stage(run, index, checkpoint, first)
            else:
                _remove_caches(run, [index])
            first = None  # its networks are no longer needed
            if index + 1 < len(run.recipe.stages):
                checkpoint = _left_by(run, index)
    except OSError as error:
        if error.errno is None:
            raise  # a library's own, not of a file
        raise run.folder.failure(error) from None
    finally:
        run.folder.unlock()
    return Tuned(run.folder.model)


def _left_by(run: TuneRun, index: int) -> ResolvedModel:
    """The model that a stage left to the next one. Raises ModelError if it cannot be used, or is no longer the same."""
    model = resolve_model(str(run.stage_model(index)))
    run.folder.check_stage_model(index, model.digest, writes=run.is_main)
    return model


def _versions(run: TuneRun) -> dict[str, str]:
    """Versions of the libraries; of a model from the hub, also the commit.

    The commit is not among the inputs, which must not change: another commit may differ in its README alone, and the
    model's digest is compared anyway.
    """
    versions = {"cxrsynth": __version__} | {name: version(name) for name in _PACKAGES}
    return versions if run.model.revision is None else versions | {"model.revision": run.model.revision}


def _open_stage(run: TuneRun, index: int, checkpoint: ResolvedModel) -> Stage:
    """A stage that starts from the model in `checkpoint`, its networks loaded."""
    section, count = run.recipe.stages[index], len(run.recipe.stages)
    if run.is_main and count > 1:
        console.say(f"stage {index + 1} of {count}: {section.stage}")
    with memory_advice(section.memory_advice):
        return _STAGES[section.stage](run.starting_from(checkpoint), section, index, checkpoint=checkpoint)


def _run_stage(run: TuneRun, index: int, checkpoint: ResolvedModel, opened: Stage | None) -> None:
    """Train one stage, `opened` or from the model in `checkpoint`, and save the model it leaves."""
    section = run.recipe.stages[index]
    stage = opened or _open_stage(run, index, checkpoint)
    with memory_advice(section.memory_advice):
        stage.train()
        trained = stage.result()
        stage.test()
        if run.is_main:
            save_tuned(trained, run.stage_model(index), source=checkpoint, card=stage.card())
            _remove_caches(run, [index])
    run.wait()


def _remove_caches(run: TuneRun, stages: Iterable[int]) -> None:
    """Free the disk space of latents and trajectories of stages that are complete; a killed run may have left some."""
    if run.is_main:
        for index in stages:
            shutil.rmtree(run.folder.latents(index), ignore_errors=True)


def _export(run: TuneRun, index: int) -> Tuned:
    """Save the model of a stage that is not complete, from its best checkpoint, else its newest; train nothing.

    Raises:
        RecipeError: if it has no checkpoint.
    """
    section, count = run.recipe.stages[index], len(run.recipe.stages)
    best, newest = run.folder.best(index), run.folder.newest(index)
    folder = best if best.is_dir() else newest
    if folder is None:
        left = f"; stage {index} left its model in {run.stage_model(index - 1)}" if index else ""
        raise RecipeError(
            f"--export: {run.folder.path}: stage {index + 1} of {count} has no checkpoint yet{left}\n"
            "  the same command without --export trains on"
        )
    source = _left_by(run, index - 1) if index else run.model
    with memory_advice(LOADING_ADVICE):
        stage = _STAGES[section.stage](run.starting_from(source), section, index, checkpoint=source)
        stage.progress.load(folder)
        trained = stage.result()
    if run.is_main:
        note = f"Exported from an unfinished run: stage {index + 1} of {count}, `checkpoints/{folder.name}`.\n"
        save_tuned(trained, run.folder.export, source=source, card=f"{stage.card()}\n{note}")
    run.wait()
    return Tuned(run.folder.export, exported=True)
