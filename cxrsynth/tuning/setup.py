"""A `tune` run made ready: recipe read, reports split, processes joined, choices resolved, reward models loaded."""

from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from cxrsynth.diffusion.model import choose_device, choose_precision
from cxrsynth.diffusion.resolve import resolve_model
from cxrsynth.errors import RecipeError
from cxrsynth.recipe.read import load_recipe
from cxrsynth.recipe.schema import Recipe
from cxrsynth.runtime.processes import PATIENCE, read_launch
from cxrsynth.settings import Device, Precision, TuneSettings
from cxrsynth.tuning.inputs import check_evaluation, check_trackers, load_inputs
from cxrsynth.tuning.run import TuneRun
from cxrsynth.tuning.run_folder import RunFolder
from cxrsynth.tuning.splits import split_reports


def open_tune(settings: TuneSettings) -> TuneRun:
    """Load every input the recipe names, once; what cannot be used is refused before work starts.

    Raises:
        RecipeError, ReportsError, ModelError, ShardError: for what the user can mend.
    """
    read_launch()  # accelerate would fail later, with a traceback
    recipe = _with_test_path(load_recipe(settings.recipe, overrides=settings.overrides), settings.recipe.parent)
    model = resolve_model(recipe.model.checkpoint)
    if recipe.model.precision is Precision.FP16:
        raise RecipeError(
            f"{settings.recipe}: model.precision: found 'fp16'\n"
            "  expected: bf16, fp32 or auto; policy gradients are known to collapse in float16"
        )
    check_trackers(recipe)
    reports = split_reports(recipe)
    check_evaluation(recipe, reports)
    choose_device(recipe.model.device)  # refused before any process group is joined
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
        model=model,
        reports=reports,
        loaded=load_inputs(recipe, device=device),
    )


def _with_test_path(recipe: Recipe, folder: Path) -> Recipe:
    """The table of test reports is relative to the recipe, as all its paths are."""
    if not isinstance(recipe.reports.test, Path):
        return recipe
    reports = recipe.reports.model_copy(update={"test": (folder / recipe.reports.test).resolve()})
    return recipe.model_copy(update={"reports": reports})
