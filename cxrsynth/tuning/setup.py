"""A `tune` run made ready: recipe read, reports split, processes joined, choices resolved, reward models loaded."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import TracebackType

import torch
from accelerate import Accelerator

from cxrsynth import console
from cxrsynth.diffusion.few_steps import student_schedule
from cxrsynth.diffusion.model import choose_device, choose_precision
from cxrsynth.diffusion.notices import tell_additions
from cxrsynth.diffusion.resolve import ResolvedModel, resolve_model
from cxrsynth.diffusion.sampler import Asked, check_scheduler, sampling_timesteps
from cxrsynth.diffusion.schedule import is_flow
from cxrsynth.diffusion.spec import SPEC_FILE, SamplingDefaults
from cxrsynth.errors import ModelError, RecipeError
from cxrsynth.recipe.read import load_recipe
from cxrsynth.recipe.schema import DdpoStage, DistillStage, Recipe, ReinforcementStage, RlcfStage, SftStage
from cxrsynth.runtime.processes import ProcessGroup, join_processes, read_launch, refuse_sharding
from cxrsynth.runtime.together import ending_together
from cxrsynth.settings import Precision, PromptStyle, Sampler, TuneSettings
from cxrsynth.tuning.distill import teacher_sampling
from cxrsynth.tuning.inputs import check_adapters, check_evaluation, check_trackers, load_inputs, warn_of_unused
from cxrsynth.tuning.run import TuneRun
from cxrsynth.tuning.run_folder import RunFolder
from cxrsynth.tuning.splits import split_reports


def open_tune(settings: TuneSettings, together: ExitStack | None = None) -> TuneRun:
    """Load every input the recipe names, once; what cannot be used is refused before work starts.

    Args:
        settings: of the run.
        together: as long as it is open, a failure of one process ends all of them; None for a single process.

    Raises:
        RecipeError, ReportsError, ModelError, ShardError, LaunchError: for what the user can fix.
    """
    launch = read_launch()  # accelerate would fail later, with a traceback
    refuse_sharding()
    recipe = load_recipe(settings.recipe, overrides=settings.overrides)
    model = resolve_model(
        recipe.model.checkpoint, additions=recipe.model.additions, option=f"{settings.recipe}: model.checkpoint"
    )
    model = _prompted(recipe, model, settings.recipe)
    _check_schedule(recipe, model, settings.recipe)
    _check_negative_prompt(recipe, model, settings.recipe)
    if not model.family.has_text:
        _check_without_text(recipe, model, settings.recipe)
    if recipe.model.precision is Precision.FP16:
        raise RecipeError(
            f"{settings.recipe}: model.precision: found 'fp16'\n"
            "  expected: bf16, fp32 or auto; policy gradients are known to collapse in float16"
        )
    check_trackers(recipe)
    check_adapters(recipe, model)
    reports = split_reports(recipe, model.spec.prompt_format)
    check_evaluation(recipe, reports)
    warn_of_unused(recipe, reports)
    tell_additions(model, lora="model.lora", embeddings="model.embeddings")
    # Refused before any process group is joined.
    option = f"{settings.recipe}: model.device"
    cpu = choose_device(recipe.model.device, local_rank=launch.local_rank, option=option).type == "cpu"
    out = settings.out or Path("runs") / settings.recipe.stem
    processes = join_processes(cpu=cpu, timeout=timedelta(minutes=settings.max_wait_minutes))
    accelerator = Accelerator(cpu=cpu, log_with=list(recipe.trackers) or None, project_dir=out)
    group = _watch(processes, accelerator, settings, together or ExitStack())
    device = choose_device(recipe.model.device, local_rank=accelerator.local_process_index)
    folder = RunFolder(out)
    return TuneRun(
        recipe=recipe,
        folder=folder,
        accelerator=accelerator,
        group=group,
        device=device,
        precision=_precision(recipe.model.precision, device, folder, group),
        model=model,
        reports=reports,
        loaded=load_inputs(recipe, device=device, prompt_format=model.spec.prompt_format),
    )


def _prompted(recipe: Recipe, model: ResolvedModel, path: Path) -> ResolvedModel:
    """The model with the prompt format that the recipe asks for, in place of its own.

    Raises:
        RecipeError: if the model takes no such prompt.
    """
    asked = recipe.model.prompt_format
    if asked is None:
        if model.family.has_text and not model.spec.names_prompts and read_launch().rank == 0:
            console.say(
                f"prompts: {model.spec.prompt.value}s of the reports, since neither model.prompt nor a {SPEC_FILE} of"
                " the model names a format"
            )
        return model
    key = f"{path}: model.{'prompt' if recipe.model.prompt_template is None else 'prompt_template'}"
    if model.spec.classes and asked is not PromptStyle.CLASS:
        raise RecipeError(f"{key}: the model takes a class, no text\n  expected: prompt: class, or none of the two")
    if not model.spec.classes and not model.family.has_text:
        raise RecipeError(f"{key}: {model.family.title} takes no prompt\n  leave it out")
    if asked is PromptStyle.CLASS and not model.spec.classes:
        raise RecipeError(f"{key}: class, but the model has no classes\n  expected: another prompt format")
    return replace(model, spec=model.spec.prompted(asked))


def _precision(asked: Precision, device: torch.device, folder: RunFolder, group: ProcessGroup) -> Precision:
    """The precision of all processes: that with which the run began, where `auto` leaves the choice to the hardware.

    On other hardware `auto` may choose another one, which makes other images of the same noise: the policy would be
    compared with a baseline drawn otherwise.
    """
    chosen = choose_precision(asked, device)
    chosen = Precision.FP32 if chosen is Precision.FP16 else chosen
    if asked is not Precision.AUTO:
        return chosen
    began = folder.precision
    first = Precision(group.gather([chosen.value if began is None else began])[0])
    if first is not chosen and group.is_main:
        console.say(f"precision {first.value}, with which this run began; {chosen.value} is faster on this hardware")
    return first


def _watch(
    processes: ProcessGroup, accelerator: Accelerator, settings: TuneSettings, together: ExitStack
) -> ProcessGroup:
    """This process among the others, which end with it."""

    def end(kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None or processes.count == 1:
            accelerator.end_training()
            return
        for tracker in accelerator.trackers:  # the group is not destroyed: that may wait for the other processes
            tracker.finish()

    together.push(end)
    lookout = together.enter_context(
        ending_together(
            processes.rank,
            processes.meeting,
            wait=timedelta(minutes=settings.max_wait_minutes),
            # Without a lookout of its own: this one's messages say which process has failed.
            leave=lambda: processes.state.wait_for_everyone(),
        )
    )
    return replace(processes, lookout=lookout)


def _not_for_flow(where: str, stage: RlcfStage | DdpoStage) -> Iterator[tuple[str, str]]:
    """Settings that need steps with noise, and what is expected instead."""
    if stage.objective == "policy_gradient":
        yield f"{where}.objective: found 'policy_gradient'", "'forward'"
    elif stage.sampling.sampler is Sampler.DDIM:
        yield f"{where}.sampling.sampler: found 'ddim'", "'euler', 'dpm++' or 'model'"


def _check_negative_prompt(recipe: Recipe, model: ResolvedModel, path: Path) -> None:
    """Refuse guidance 1 for a model with a negative prompt, which would then do nothing.

    Raises:
        RecipeError: naming each such key.
    """
    if not model.spec.negative_prompt:
        return
    scales: dict[str, float | None] = {}
    for index, stage in enumerate(recipe.stages):
        if isinstance(stage, DistillStage):
            scales[f"stages.{index}.teacher.guidance"] = stage.teacher.guidance
            break  # it leaves a model without a negative prompt
        if isinstance(stage, ReinforcementStage):
            scales[f"stages.{index}.sampling.guidance"] = stage.sampling.guidance
    if any(key.endswith("sampling.guidance") for key in scales):
        scales["evaluation.guidance"] = recipe.evaluation.guidance
    wrong = [
        f"{path}: {key}: 1, but the model has a negative prompt ({model.folder / SPEC_FILE}), which does nothing at 1\n"
        "  expected: another scale, or a model without negative_prompt"
        for key, scale in scales.items()
        if (model.spec.defaults.guidance if scale is None else scale) == 1.0
    ]
    if wrong:
        raise RecipeError("\n".join(wrong))


def _check_without_text(recipe: Recipe, model: ResolvedModel, path: Path) -> None:
    """Refuse what needs text: guidance, empty prompts, adaptive condition embeddings.

    Raises:
        RecipeError: naming every such key.
    """
    default = model.spec.defaults.guidance
    scales = {"evaluation.guidance": recipe.evaluation.guidance}
    wrong = []
    for index, stage in enumerate(recipe.stages):
        where = f"stages.{index}"
        if isinstance(stage, SftStage):
            if stage.cond_dropout_prob:
                wrong.append((f"{where}.cond_dropout_prob: {stage.cond_dropout_prob:g}", "0, no prompt is empty"))
            continue
        if isinstance(stage, DistillStage):
            scales[f"{where}.teacher.guidance"] = stage.teacher.guidance
            continue
        scales[f"{where}.sampling.guidance"] = stage.sampling.guidance
        if stage.train.ace:
            wrong.append((f"{where}.train.ace: adaptive condition embeddings are added to text embeddings", "false"))
    wrong += [
        (f"{key}: {default if scale is None else scale:g}", "1, no guidance")
        for key, scale in scales.items()
        if (default if scale is None else scale) != 1.0
    ]
    if wrong:
        raise RecipeError(
            "\n".join(
                f"{path}: {found}\n  expected: {expected}, because the model is {model.family.title}"
                for found, expected in wrong
            )
        )


def _check_schedule(recipe: Recipe, model: ResolvedModel, path: Path) -> None:
    """Refuse what the model's noise schedule does not allow, before anything is loaded.

    Raises:
        RecipeError: for more denoising steps than it has; for a policy gradient or DDIM where it is flow matching.
        ModelError: if the model's scheduler is not known, or does not take the sampler and steps of a stage.
    """
    config = model.scheduler_config()
    limit = int(config.get("num_train_timesteps", 1000))
    wanted = {
        f"stages.{index}.sampling.steps": stage.sampling.steps
        for index, stage in enumerate(recipe.stages)
        if isinstance(stage, ReinforcementStage)
    } | {"evaluation.steps": recipe.evaluation.steps or 0}
    wanted |= {
        f"stages.{index}.teacher.steps": stage.teacher.steps or 0
        for index, stage in enumerate(recipe.stages)
        if isinstance(stage, DistillStage)
    }
    wrong = [
        f"{path}: {key}: {steps}, the model's schedule has {limit} timesteps"
        for key, steps in wanted.items()
        if steps > limit
    ]
    if is_flow(config):
        wrong += [
            f"{path}: {key}\n  expected: {expected}, because the model ({model.family.title}) learned by flow matching"
            for index, stage in enumerate(recipe.stages)
            if isinstance(stage, ReinforcementStage)
            for key, expected in _not_for_flow(f"stages.{index}", stage)
        ]
    if wrong:
        raise RecipeError("\n".join(wrong))
    for sampler, steps, asked in _samplings(recipe, model, path):
        check_scheduler(model, sampler, steps=steps, asked=asked)


def _samplings(recipe: Recipe, model: ResolvedModel, path: Path) -> Iterator[tuple[Sampler, int, Asked]]:
    """Everything that will sample: sampler, steps, and the keys that chose them. Raises as `_distilled` does."""
    defaults = model.spec.defaults
    tuned = False
    for index, stage in enumerate(recipe.stages):
        if isinstance(stage, DistillStage):
            defaults = _distilled(stage, model, defaults, where=f"{path}: stages.{index}")
        if not isinstance(stage, ReinforcementStage):
            continue
        tuned = True
        where, steps = f"stages.{index}", stage.sampling.steps
        if stage.objective == "policy_gradient":
            sampler, other = Sampler.DDIM, f"{where}.objective forward, with {where}.sampling.sampler"
            chosen = f"{path}: {where}.objective: policy_gradient, which samples by ddim"
        else:
            sampler, other = stage.sampling.sampler or defaults.sampler, f"{where}.sampling.sampler"
            chosen = f"{path}: {where}.sampling.sampler: {sampler.value}"
        yield sampler, steps, _asked(f"{path}: {where}.sampling", sampler, steps, chosen=chosen, other=other)
    if tuned:
        sampler, steps = defaults.sampler, recipe.evaluation.steps or defaults.steps
        chosen = f"{path}: evaluation: {sampler.value}, as in the model's defaults"
        other = f"defaults.sampler in the model's {SPEC_FILE}"
        yield sampler, steps, _asked(f"{path}: evaluation", sampler, steps, chosen=chosen, other=other)


def _asked(where: str, sampler: Sampler, steps: int, *, chosen: str, other: str) -> Asked:
    """How messages name a sampler, `chosen` by a key of the recipe, and the steps beside it."""
    return Asked(
        both=f"{where}: {steps} steps of {sampler.value}",
        steps=f"{where}.steps: {steps}",
        sampler=chosen,
        use=other,
        other=f"other steps, or another sampler ({other})",
    )


def _distilled(
    stage: DistillStage, model: ResolvedModel, defaults: SamplingDefaults, *, where: str
) -> SamplingDefaults:
    """How a distilled model is sampled. Raises ModelError if there is none, or its teacher does not go with it."""
    student, steps = student_schedule(model.scheduler_config(), model.family), stage.sampling_steps
    asked = replace(
        Asked.in_words(student.sampler, steps),
        both=f"{where}.sampling_steps: {steps} of {student.sampler.value}",
        steps=f"{where}.sampling_steps: {steps}",
        sampler=f"{where}.stage: distill, whose model samples by {student.sampler.value}",
        start="a model that predicts the velocity",
    )
    sampling_timesteps(student.config, model.family, student.sampler, steps=steps, asked=asked)
    try:
        teacher_sampling(stage, model, defaults)
    except ModelError as error:
        raise ModelError(f"{where}.teacher.steps: {error}") from None
    return SamplingDefaults(steps=steps, guidance=1.0, sampler=student.sampler)
