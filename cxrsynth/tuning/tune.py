"""`cxrsynth tune`: a recipe in, a tuned model out. Stages run in order; each starts from what the one before left."""

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from cxrsynth import __version__, console
from cxrsynth.diffusion.resolve import ResolvedModel, resolve_model
from cxrsynth.recipe.read import dump_recipe
from cxrsynth.recipe.schema import SftStage
from cxrsynth.runtime.memory import memory_advice
from cxrsynth.settings import TuneSettings
from cxrsynth.tuning.dry_run import describe
from cxrsynth.tuning.export import Trained, save_tuned
from cxrsynth.tuning.finetune import Supervision
from cxrsynth.tuning.inputs import input_digests
from cxrsynth.tuning.model_card import reinforcement_card, supervision_card
from cxrsynth.tuning.reinforce import Reinforcement
from cxrsynth.tuning.run import TuneRun
from cxrsynth.tuning.setup import open_tune

_PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "peft")


@dataclass(frozen=True)
class Tuned:
    """What a run left, or, for a dry run, would do."""

    model: Path
    already_complete: bool = False
    estimate: str | None = None


def tune(settings: TuneSettings) -> Tuned:
    """Run a recipe; go on where an earlier run of the same recipe stopped.

    Raises:
        RecipeError, ReportsError, ModelError, ShardError: for what the user can mend.
    """
    run = open_tune(settings)
    recipe = dump_recipe(run.recipe)
    complete = run.folder.check(recipe)
    if settings.dry_run:
        return Tuned(run.folder.model, estimate=describe(run))
    if complete:
        return Tuned(run.folder.model, already_complete=True)
    run.wait()  # nobody takes what another has begun for a foreign folder
    if run.is_main:
        versions = {"cxrsynth": __version__} | {name: version(name) for name in _PACKAGES}
        run.folder.start(recipe, versions, input_digests(run))
    run.wait()
    try:
        if run.recipe.trackers:
            run.accelerator.init_trackers("cxrsynth")
        checkpoint = run.model
        for index, section in enumerate(run.recipe.stages):
            with memory_advice(section.memory_advice):
                checkpoint = _run_stage(run, index, checkpoint)
    except OSError as error:
        if error.errno is None:
            raise  # a library's own, not of a file
        raise run.folder.failure(error) from None
    finally:
        run.accelerator.end_training()
        run.folder.unlock()
    return Tuned(run.folder.model)


def _run_stage(run: TuneRun, index: int, checkpoint: ResolvedModel) -> ResolvedModel:
    """One stage; returns the model it left. A stage that is done is not run again."""
    last = index + 1 == len(run.recipe.stages)
    out = run.folder.model if last else run.folder.stage_model(index)
    if (out / "model_card.md").is_file():
        return resolve_model(str(out))
    section = run.recipe.stages[index]
    if run.is_main and len(run.recipe.stages) > 1:
        console.say(f"stage {index + 1} of {len(run.recipe.stages)}: {section.stage}")
    if isinstance(section, SftStage):
        supervised = Supervision(run, section, index, checkpoint=checkpoint)
        supervised()
        if run.is_main:
            card = supervision_card(run, supervised)
            save_tuned(supervised.trained, out, source=checkpoint, card=card)
    else:
        stage = Reinforcement(run, section, index, checkpoint=checkpoint)
        stage()
        best = stage.take_best()
        if run.is_main:
            trained = Trained(stage.policy.model, stage.policy.weights, adapters=section.train.unet == "lora")
            save_tuned(trained, out, source=checkpoint, card=reinforcement_card(run, stage, best))
    run.wait()
    return resolve_model(str(out))
