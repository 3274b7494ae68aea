"""What a recipe would do: counts, and time and memory from one measured step."""

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta

import psutil
import torch
from torch import Tensor

from cxrsynth.console import counted
from cxrsynth.diffusion.noise import seeded_noise
from cxrsynth.diffusion.parallel import SamplingPool
from cxrsynth.diffusion.sampler import encode_prompts, guided_condition, predict_noise
from cxrsynth.diffusion.spec import SPEC_FILE
from cxrsynth.recipe.read import dump_recipe
from cxrsynth.recipe.schema import DdpoStage, DistillStage, RlcfStage, SftStage
from cxrsynth.reports.template import PromptTemplate
from cxrsynth.rl.rollout_spec import RolloutSpec
from cxrsynth.runtime.gradients import add_gradients
from cxrsynth.runtime.memory import memory_advice
from cxrsynth.tuning.distill import Distillation
from cxrsynth.tuning.finetune import Supervision
from cxrsynth.tuning.latent_cache import Pair, TrainingImages
from cxrsynth.tuning.policy_gradient import PolicyGradient
from cxrsynth.tuning.reinforce import Reinforcement
from cxrsynth.tuning.run import TuneRun

# Two moments in float32. All else is there before the first step: averaged weights, and those that sample.
_ADAMW_BYTES = 8
_POLL_S = 0.002


@dataclass(frozen=True)
class Passes:
    """How often one process runs the network on micro-batches of an iteration's updates, so many of them at once.

    `learning` is with gradient; `fixed` without, for predictions of the policy before the update and of the baseline.
    """

    learning: int
    fixed: int


def describe(run: TuneRun) -> str:
    """The resolved recipe, then what each stage samples and trains, its time and its memory."""
    lines = [dump_recipe(run.recipe).rstrip(), "---"]
    lines.append(f"reports: {run.reports.summary}")
    if run.model.family.has_text or run.model.spec.classes:
        lines.append(f"prompts: {_prompts(run)}")
    for index, stage in enumerate(run.recipe.stages):
        head = f"stage {index + 1}, {stage.stage}: "
        with memory_advice(stage.memory_advice):
            if isinstance(stage, SftStage):
                lines += [head + line for line in _supervision(run, stage, index)]
            elif isinstance(stage, DistillStage):
                distilled = Distillation(run, stage, index, checkpoint=run.model)
                lines += [head + line for line in _distillation(distilled)]
                run = replace(run, used=distilled.defaults)
            else:
                lines += [head + line for line in _reinforcement(run, stage, index)]
    return "\n".join(lines)


def _prompts(run: TuneRun) -> str:
    """The prompt format, and who chose it. No prompt of a report: what is printed may end in a log."""
    used, section = run.model.spec.prompt_format, run.recipe.model
    source = f"{SPEC_FILE} of the model" if run.model.spec.names_prompts else "nothing names another"
    if section.prompt_format is not None:
        source = "model.prompt" if section.prompt_template is None else "model.prompt_template"
    return f"{used.text if isinstance(used, PromptTemplate) else used.value} ({source})"


class _BlankImages(TrainingImages):
    """Any number of identical images: the cost of a step does not depend on what they show."""

    def __init__(self, shape: tuple[int, int, int], prompt: str) -> None:
        self._blank = torch.zeros(shape)
        self._prompt = prompt

    def latent(self, place: int) -> Tensor:
        return self._blank

    def pair(self, place: int) -> Pair:
        return Pair(self._prompt, ())


def _supervision(run: TuneRun, stage: SftStage, index: int) -> list[str]:
    made = Supervision(run, stage, index, checkpoint=run.model)
    images = _BlankImages(made.model.latent_shape, made.model.any_prompt)
    micro_batch = min(made.micro_batch, stage.batch_size)
    with SamplingPool(made.model, batch_size=micro_batch, threads_per_batch=1) as pool:
        batches = [[RolloutSpec(place, 0, 0) for place in range(micro_batch)]] * pool.batches
        with _peak_memory(run) as peak:
            made.gradients(0, batches, images, pool)
            started = time.monotonic()
            made.gradients(1, batches, images, pool)
            taken = time.monotonic() - started
        side_by_side = pool.batches * run.accelerator.num_processes
    trained = sum(weight.numel() for weight in made.weights.values())
    kept = _ADAMW_BYTES * trained
    step = math.ceil(stage.batch_size / micro_batch / side_by_side) * taken
    return [
        f"{stage.steps} steps of {stage.batch_size} images, from {stage.data}",
        f"trains {trained:,} numbers",
        f"about {step:.1f} s a step, {timedelta(seconds=round(stage.steps * step))} in all (without reading"
        f" and encoding the images); {(peak.bytes + kept) / 2**30:.1f} GiB {_where(run)}"
        " for weights, optimizer and a step",
    ]


def _distillation(made: Distillation) -> list[str]:
    run, stage, few, teaching = made.run, made.section, made.few, made.teaching
    batch = min(made.micro_batch, stage.batch_size)
    device, shape = made.model.device, made.model.latent_shape
    text, empty = (part.clone() for part in encode_prompts(made.model, [made.model.any_prompt] * batch))
    latents = torch.stack([seeded_noise(shape, "estimate", i) for i in range(batch)]).to(device)
    timesteps = few.timesteps[torch.zeros(batch, dtype=torch.int64, device=device)]

    def passes(guidance: float, learn: bool) -> None:
        with torch.set_grad_enabled(learn):
            condition = guided_condition(made.model, text, empty, guidance)
            predicted = predict_noise(made.model, latents, timesteps, condition, guidance)
            if learn:
                torch.autograd.grad(predicted.sum(), list(made.weights.values()), materialize_grads=True)

    with made.pool() as pool:

        def timed(guidance: float, learn: bool) -> float:
            for _ in range(2):  # the second counts
                started = time.monotonic()
                list(pool.map_in_order(lambda _: passes(guidance, learn), range(pool.batches)))
                if device.type == "cuda":
                    torch.cuda.synchronize()
            return time.monotonic() - started

        with _peak_memory(run) as peak:
            teacher, student = timed(teaching.guidance, False), timed(made.guidance, True)
        side_by_side = pool.batches * run.accelerator.num_processes
    sampling = stage.trajectories / batch / side_by_side * teaching.steps * teacher
    step = math.ceil(stage.batch_size / batch / side_by_side) * student
    trained = sum(weight.numel() for weight in made.weights.values())
    networks = sum(weight.numel() * weight.element_size() for weight in made.model.denoiser.parameters())
    memory = peak.bytes + _ADAMW_BYTES * trained + networks
    source = "" if stage.data is None else f", from images of {stage.data} (without reading and encoding them)"
    return [
        f"{counted(stage.sampling_steps, 'step')} of {made.defaults.sampler.value} without classifier-free guidance in"
        f" place of {teaching.steps} of {teaching.sampler.value} at guidance {teaching.guidance:g}",
        f"{counted(stage.trajectories, 'trajectory', 'trajectories')} of the teacher about"
        f" {timedelta(seconds=round(sampling))}, {made.trajectories.byte_count / 2**30:.2f} GiB of disk{source}",
        f"{stage.steps} steps of {stage.batch_size}, trains {trained:,} numbers",
        f"about {step:.1f} s a step, {timedelta(seconds=round(sampling + stage.steps * step))} in all (without the"
        f" comparison at the end); {memory / 2**30:.1f} GiB {_where(run)} for weights, teacher, optimizer and a step",
    ]


def _reinforcement(run: TuneRun, stage: RlcfStage | DdpoStage, index: int) -> list[str]:
    # A later stage is measured on the model the run starts from: its networks are the same.
    made = Reinforcement(run, stage, index, checkpoint=run.model)
    batch = run.batch_size(stage.sampling)
    counts, guidance = made.policy.parameter_count(), made.stage.guidance
    with made.pool() as pool, _peak_memory(run) as peak:
        step = _measure(made, pool, batch, guidance=guidance)
        passes, updated = update_passes(made, at_once=pool.batches), 0.0
        if passes.learning:  # exploring embeddings learn without the network
            # The update on the forward process predicts without guidance.
            own = guidance if isinstance(made.objective, PolicyGradient) else 1.0
            micro_batch = min(made.stage.micro_batch, _pairs(made))
            updated += passes.learning * _measure(made, pool, micro_batch, guidance=own, learn=True)
            if passes.fixed:
                updated += passes.fixed * _measure(made, pool, micro_batch, guidance=own)
        side_by_side = pool.batches * run.accelerator.num_processes
    sampling = stage.sampling.steps * step / batch / side_by_side  # seconds an image
    sampled = stage.images * sampling
    at_first, in_all = (_baseline_images(made, iterations) for iterations in (1, stage.iterations))
    evaluation = run.recipe.evaluation
    evaluated = (evaluation.reports or len(run.held_out)) * evaluation.images_per_report
    evaluated = min(evaluated, len(run.held_out) * evaluation.images_per_report)
    steps = evaluation.steps or run.defaults.steps
    evaluating = evaluated / batch / side_by_side * steps * step
    times = stage.iterations // evaluation.every + 2
    tested = len(run.test) * evaluation.images_per_report if index == run.tested_stage else 0
    testing = 2 * tested / batch / side_by_side * steps * step  # policy and baseline
    total = stage.iterations * (sampled + updated) + in_all * sampling + times * evaluating + testing
    trained = sum(counts.values())
    memory = peak.bytes + _ADAMW_BYTES * trained
    return [
        f"{counted(stage.iterations, 'iteration')} of {counted(stage.images, 'image')} and"
        f" {counted(stage.num_minibatches, 'update')}; {counted(stage.sampling.steps, 'step')},"
        f" guidance {guidance:g}, objective {stage.objective}",
        f"trains {trained:,} numbers ({run.model.family.denoiser_title} {counts['unet']:,}, ACE {counts['ace']:,})",
        f"an iteration about {sampled + at_first * sampling + updated:.0f} s at first, {sampled + updated:.0f} s where"
        f" the baseline's rewards are known; an evaluation of {counted(evaluated, 'image')} about {evaluating:.0f} s"
        + (f", the test of {counted(tested, 'image')} about {testing:.0f} s" if tested else ""),
        f"the baseline samples {counted(in_all, 'image')} in all, whose rewards are cached",
        f"about {timedelta(seconds=round(total))} in all; {memory / 2**30:.1f} GiB {_where(run)}"
        " for weights, optimizer and a step; time and memory are without decoding and rewards",
    ]


def update_passes(made: Reinforcement, *, at_once: int) -> Passes:
    """Passes of an iteration's updates on one process, which runs `at_once` micro-batches side by side."""
    if not made.policy.denoising_weights:
        return Passes(0, 0)

    def passes(pairs: int) -> int:
        return math.ceil(math.ceil(pairs / made.stage.micro_batch) / at_once)

    objective, pairs = made.objective, _pairs(made)
    if isinstance(objective, PolicyGradient):
        update = objective.update
        rounds, actions = update.num_minibatches * update.inner_epochs, objective.schedule.actions
        old = (rounds - 1) * passes(pairs)  # the first round has its log-probabilities as it learns
        # The baseline's means, for the divergence of steps: once each, however many epochs choose it.
        chosen = 1 - (1 - _chosen(objective) / actions) ** update.inner_epochs
        means = passes(round(_share(made, made.section.images) * actions * chosen)) if update.kl_weight > 0 else 0
        return Passes(rounds * passes(pairs), old + means)
    settings = objective.settings
    bounded = settings.max_norm_ratio is not None
    kinds = (1 + (settings.kl_weight > 0 or bounded)) * (1 + bounded)  # old and baseline; with and without the prompt
    return Passes(settings.num_minibatches * passes(pairs), settings.num_minibatches * kinds * passes(pairs))


def _pairs(made: Reinforcement) -> int:
    """Images times steps, or noise levels, that a process learns from before it steps."""
    objective = made.objective
    each = _chosen(objective) if isinstance(objective, PolicyGradient) else objective.settings.timesteps
    return _share(made, made.section.images // made.section.num_minibatches) * each


def _chosen(objective: PolicyGradient) -> int:
    """Steps of a trajectory that an epoch learns from."""
    return max(1, round(objective.update.timestep_fraction * objective.schedule.actions))


def _share(made: Reinforcement, images: int) -> int:
    return math.ceil(images / made.run.group.count)


def _baseline_images(made: Reinforcement, iterations: int) -> int:
    """How many images the baseline samples: a few for each report, or for each pair of report and x_T."""
    stage = made.section
    if not isinstance(stage, RlcfStage) or stage.comparison.baseline_images is None:
        return 0
    every, pairs = len(made.run.training) * (stage.comparison.pool or 1), set[tuple[int, int]]()
    for iteration in range(iterations):
        if len(pairs) == every:
            break
        pairs.update((spec.report, spec.start) for spec in made.objective.specs(iteration))
    return len(pairs) * stage.comparison.baseline_images


def _where(run: TuneRun) -> str:
    return "on the accelerator" if run.device.type == "cuda" else "in this process"


@dataclass
class _Peak:
    """The most memory that was in use, known once it is measured."""

    bytes: int = 0


@contextmanager
def _peak_memory(run: TuneRun) -> Iterator[_Peak]:
    """Measure the most memory in use within the context: by tensors on the accelerator, else by this process."""
    peak, done = _Peak(), threading.Event()
    if run.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        yield peak
        peak.bytes = int(torch.cuda.max_memory_allocated())
        return
    process = psutil.Process()

    def look() -> None:
        # What a pass needs is given back at its end, and systems keep no record that could be started anew.
        while True:
            peak.bytes = max(peak.bytes, int(process.memory_info().rss))
            if done.wait(_POLL_S):
                return

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def _measure(made: Reinforcement, pool: SamplingPool, batch: int, *, guidance: float, learn: bool = False) -> float:
    """Seconds of a pass on every core at once, as in a run; with `learn` it is a step's gradient. The second counts."""
    policy = made.policy
    text, empty = (part.clone() for part in encode_prompts(policy.model, [policy.model.any_prompt] * batch))
    mask = None if policy.model.ace is None else policy.model.ace.mask([()] * batch)
    latents = torch.stack([seeded_noise(policy.model.latent_shape, "estimate", i) for i in range(batch)])
    timesteps = policy.model.schedule.timesteps(torch.zeros(batch, dtype=torch.int64, device=policy.model.device))
    weights = list(policy.denoising_weights.values())

    def one(_: int) -> tuple[Tensor, None]:
        condition = guided_condition(policy.model, text, empty, guidance, mask=mask)
        noisy = latents.to(policy.model.device)
        return predict_noise(policy.model, noisy, timesteps, condition, guidance).sum(), None

    def passes() -> float:
        started = time.monotonic()
        if learn:
            for weight in weights:
                weight.grad = torch.zeros_like(weight)
            add_gradients(pool, range(pool.batches), one, weights)
        else:
            list(pool.map_in_order(torch.no_grad()(one), range(pool.batches)))
        if policy.model.device.type == "cuda":
            torch.cuda.synchronize()
        return time.monotonic() - started

    passes()
    taken = passes()
    for weight in weights:
        weight.grad = None
    return taken
