"""One stage of distillation, `distill`: few denoising steps without guidance, in place of many with it.

    teacher <- the model that the stage starts from, as it is used: S steps of its sampler, guided
    an evaluator that takes no part scores the teacher's images for test reports, on fixed noise
    for every trajectory (report, x_T):                                                    # once, kept on disk
        x_1 ... x_K <- where the teacher is at the student's noise levels, the clean latents last
    for every step:
        k <- one of the student's K steps for each trajectory of the batch
        p <- the prediction with which the student, at x_k, lands at x_(k+1)
        descend |student(x_k) - p|^2, measured on the velocity
    at the end, it compares the student's images with them, on the same noise

How it differs from progressive distillation (Salimans and Ho, arXiv:2202.00512): one stage in place of one for each
halving, with the guidance of Meng et al. (arXiv:2210.03142) baked in at one scale; and along the teacher's own
trajectories, so that no images are needed and each of its passes is learned from many times. With images (`data`), as
published: each step begins at an image with noise.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from cxrsynth import console
from cxrsynth.diffusion.condition import Condition
from cxrsynth.diffusion.few_steps import (
    Schedule,
    few_steps,
    nested_steps,
    student_schedule,
    teacher_schedule,
    teacher_states,
)
from cxrsynth.diffusion.model import DiffusionModel, load_model
from cxrsynth.diffusion.parallel import SamplingPool
from cxrsynth.diffusion.resolve import ResolvedModel
from cxrsynth.diffusion.sampler import guided_condition
from cxrsynth.diffusion.spec import SamplingDefaults
from cxrsynth.errors import ModelError, ShardError
from cxrsynth.recipe.schema import DistillStage, SamplingSection
from cxrsynth.rl.rollout_spec import RolloutSpec
from cxrsynth.rl.rollouts import PromptExample
from cxrsynth.runtime.files import open_atomically
from cxrsynth.runtime.interrupt import Stop
from cxrsynth.settings import Sampler
from cxrsynth.tuning.evaluator import EvaluationSampling, Evaluator, open_evaluator
from cxrsynth.tuning.export import Trained
from cxrsynth.tuning.latent_cache import ExcludedReports, Pair, TrainingImages
from cxrsynth.tuning.model_card import distillation_card
from cxrsynth.tuning.regression import Regression
from cxrsynth.tuning.run import TuneRun
from cxrsynth.tuning.stage import StageProgress
from cxrsynth.tuning.training_images import ImagesSummary, read_images
from cxrsynth.tuning.trajectories import Trajectories
from cxrsynth.tuning.verdict import TEST, EvaluatedImages


def teacher_sampling(section: DistillStage, model: ResolvedModel, defaults: SamplingDefaults) -> SamplingDefaults:
    """Steps, guidance and sampler of the teacher: the recipe's, else what the model folder recommends.

    Steps that the recipe leaves open are the nearest count that visits the noise levels of the student.

    Args:
        section: of the recipe.
        model: with the teacher's noise schedule; nothing is loaded.
        defaults: how the teacher is used.

    Raises:
        ModelError: if the recipe's steps do not visit them, or the model's schedule does not allow them.
    """
    config, teacher = model.scheduler_config(), section.teacher
    usual = Sampler.DPMPP if defaults.sampler is Sampler.MODEL else defaults.sampler
    sampler = usual if teacher.sampler is None else Sampler(teacher.sampler)
    steps = nested_steps(
        teacher_schedule(config, model.family, sampler),
        student_schedule(config, model.family),
        model.family,
        steps=teacher.steps or defaults.steps,
        count=section.sampling_steps,
        exact=teacher.steps is not None,
    )
    guidance = defaults.guidance if teacher.guidance is None else teacher.guidance
    return SamplingDefaults(steps=steps, guidance=guidance, sampler=sampler)


class Distillation:
    """A stage `distill`: the student, which starts as a copy of its teacher, and the teacher's trajectories.

    All randomness comes from the seed, the stage, the step and a trajectory's place.
    """

    def __init__(self, run: TuneRun, section: DistillStage, index: int, *, checkpoint: ResolvedModel) -> None:
        self.run, self.section, self.index, self.checkpoint = run, section, index, checkpoint
        self.teaching = teacher_sampling(section, checkpoint, run.defaults)
        self.schedule = student_schedule(checkpoint.scheduler_config(), checkpoint.family)
        self.model: DiffusionModel = self.schedule.of(
            load_model(
                checkpoint,
                device=run.device,
                precision=run.precision,
                mixed=True,
                float32_denoiser=section.train.unet == "full",
                negative_prompt="",  # what the teacher's guidance led away from is learned
            )
        )
        self.few = few_steps(self.model, self.schedule, section.sampling_steps)
        self.regression = Regression(run, section, self.model)
        self.weights = self.regression.weights
        self.micro_batch = run.batch_size(SamplingSection(batch_size=section.micro_batch))
        self.example = run.prompt_examples(self.model.fits)
        self.images: TrainingImages | None = None  # of a stage with `data`, once they are read
        self.summary = ImagesSummary()
        self.trajectories = Trajectories(
            run.folder.latents(index),
            section.trajectories,
            (section.sampling_steps * (1 if section.data is None else 2), *self.model.latent_shape),
            depends_on=[
                checkpoint.digest,
                run.precision.value,
                self.micro_batch,
                self.teaching.model_dump(mode="json"),
                run.stage_seed(index),
                self.few.timesteps.tolist(),
                *self._identity_of_images(),
            ],
            seed=run.stage_seed(index),
            begun_anew=section.data is not None,
        )
        self.trajectories.check_room(section.cache_gib * 2**30)
        self.progress = StageProgress(
            run,
            index,
            self.weights,
            self.regression.optimizer,
            ema_decay=section.train.ema_decay,
            remembered={} if section.data is None else {"images": self.summary},
        )

    def _identity_of_images(self) -> list[object]:
        """The same for the same images without those of the same reports, as plain JSON; empty without images."""
        if self.section.data is None:
            return []
        images, kept = self.run.loaded.images[self.index], [*self.run.held_out, *self.run.test]
        return [[[unit.name, images.content_of(unit)] for unit in images.units], ExcludedReports.of(kept).identity]

    @property
    def guidance(self) -> float:
        """The student's scale: none, or the teacher's, where it is an input of the network."""
        return self.teaching.guidance if self.model.takes_guidance else 1.0

    @property
    def defaults(self) -> SamplingDefaults:
        """How the student is used."""
        return SamplingDefaults(
            steps=self.section.sampling_steps, guidance=self.guidance, sampler=self.schedule.sampler
        )

    def train(self) -> None:
        """Train from where the stage stands to its end. Raises as `Stage.train`, `step` and `sample` do."""
        total = self.section.steps
        self.progress.resume(total, "step")
        if self.progress.first == total:
            return
        self.test_teacher()
        self.sample()
        with (
            self.pool() as pool,
            console.training_view(total, quiet=not self.run.is_main) as show,
            Stop() as stop,
        ):
            for step in self.progress.iterations(total, save_every=self.section.checkpoint_every, stop=stop):
                row = self.step(step, pool)
                self.progress.write(step + 1, row)
                show(step + 1, row)
        self.progress.draw(now=True)

    def test_teacher(self) -> None:
        """Sample and score the teacher's images for the comparison at the end, and keep them on disk.

        A fault in the evaluation ends the run here, not after all trajectories and steps.

        Raises:
            ModelError, ShardError: as `open_evaluator` and `Evaluator.baseline` do.
        """
        with self.pool() as pool:
            self._teachers(self._evaluator(pool))

    def sample(self) -> None:
        """Sample the trajectories that are not there yet, each process its share.

        Raises:
            ModelError, OSError: as `Trajectories.sample` does, with `data` as `read_images` does, too.
        """
        run, trajectories = self.run, self.trajectories
        if self.section.data is not None:
            with self.pool() as pool:
                self.images = read_images(
                    run,
                    self.index,
                    self.model,
                    self.summary,
                    folder=run.folder.latents(self.index) / "images",
                    limit_gib=self.section.cache_gib,
                    batch_size=self.micro_batch,
                    pool=pool,
                )
        missing = [places for places in run.group.share(trajectories.files) if not trajectories.is_there(places)]
        if missing:
            teacher, count = self.teacher(), sum(map(len, missing))
            with (
                SamplingPool(teacher, batch_size=self.micro_batch, threads_per_batch=1) as pool,
                console.image_progress(count, quiet=not run.is_main, what="trajectories sampled") as advance,
            ):
                for places in missing:
                    trajectories.sample(
                        places,
                        lambda batch: self.states(teacher, batch, pool),
                        pool,
                        batch_size=self.micro_batch,
                        advance=advance,
                    )
        run.wait()
        trajectories.check_all_there()

    def teacher(self) -> DiffusionModel:
        """The model that the stage starts from, sampled over noise levels that both share."""
        run = self.run
        loaded = load_model(self.checkpoint, device=run.device, precision=run.precision)
        return self._teaching_schedule.of(loaded)

    @property
    def _teaching_schedule(self) -> Schedule:
        return teacher_schedule(self.checkpoint.scheduler_config(), self.checkpoint.family, self.teaching.sampler)

    def states(self, teacher: DiffusionModel, places: Sequence[int], pool: SamplingPool) -> Tensor:
        """Where the teacher is when each of the student's steps ends, [B, K, C, h, w] float32.

        With images: where each step begins, at an image with noise, and where it ends, in turn, [B, 2 K, C, h, w].
        """
        guidance, beginnings = self.teaching.guidance, None
        noise = torch.stack([self.trajectories.noise(place) for place in places])
        if self.images is not None:
            clean = torch.stack([self.images.latent(place % len(self.images)) for place in places])
            device = self.model.device
            beginnings = self.few.beginnings(self.model, clean.to(device), noise.to(device))
        ends = teacher_states(
            teacher,
            self._condition(teacher, places, guidance),
            noise,
            sampler=self._teaching_schedule.sampler,
            steps=self.teaching.steps,
            guidance=guidance,
            few=self.few,
            beginnings=beginnings,
            stopped=pool.stopped,
        )
        return ends if beginnings is None else torch.stack([beginnings, ends], 2).flatten(1, 2)

    def step(self, step: int, pool: SamplingPool) -> dict[str, float]:
        """One optimizer step, counted from 0. Returns its row of metrics. Raises as `Regression.step` does."""
        row = self.regression.step(
            step,
            self.regression.specs(step, len(self.trajectories)),
            lambda batch: self.loss(step, batch),
            pool,
            micro_batch=self.micro_batch,
        )
        self.progress.average()
        return row

    def loss(self, step: int, batch: Sequence[RolloutSpec]) -> Tensor:
        """Squared error of the velocity for each of a micro-batch's trajectories, [B] float32."""
        places, device = [spec.report for spec in batch], self.model.device
        own = [(spec.place + step) % self.few.count for spec in batch]  # every step as often as the others
        ends = [self.trajectories.ends(place, one) for place, one in zip(places, own, strict=True)]
        start, end = (torch.stack(side).to(device) for side in zip(*ends, strict=True))
        steps = torch.tensor(own, device=device)
        levels = self.few.levels[steps]
        condition = self._condition(self.model, places, self.guidance)
        predicted = self.model.predict(start, self.few.timesteps[steps], condition)
        wanted = self.few.prediction(steps, start, end)
        found, target = (self.model.schedule.velocity(start, one, levels) for one in (predicted, wanted))
        return (found - target).square().mean(dim=(1, 2, 3))

    def _condition(self, model: DiffusionModel, places: Sequence[int], guidance: float) -> Condition:
        """The condition as `generate` builds it, of reports or images in turn, with the model's ACE if it has one."""
        training, images = self.run.training, self.images
        examples: list[PromptExample | Pair]
        if images is None:
            examples = [self.example(training[place % len(training)]) for place in places]
        else:
            examples = [images.pair(place % len(images)) for place in places]
        with torch.no_grad():
            text, empty = model.encode([example.prompt for example in examples])
            mask = None if model.ace is None else model.ace.mask([example.conditions for example in examples])
            return guided_condition(model, text, empty, guidance, mask=mask)

    def result(self) -> Trained:
        """The student, with averaged weights where the recipe wants them, and how it is used."""
        self.progress.keep_averaged()
        config = self.model.scheduler_config
        return Trained(
            self.model, self.weights, adapters=self.regression.adapters, defaults=self.defaults, scheduler=config
        )

    def test(self) -> None:
        """Compare student and teacher on test reports, else on held-out ones: nothing was chosen by either."""
        run, metrics = self.run, self.progress.metrics
        if run.is_main:
            metrics.drop_test(stage=self.index)
            console.say("comparing the distilled model with its teacher")
        run.wait()
        with self.pool() as pool:
            try:
                evaluator = self._evaluator(pool)
                teacher = self._teachers(evaluator)
                student = evaluator.evaluate(self.model, whose="the distilled model's")
            except (ModelError, ShardError) as error:
                raise type(error)(f"{error}\n  --export writes the distilled model without a test") from None
            verdict = evaluator.verdict(student, teacher)
            if run.is_main and (pairs := run.recipe.evaluation.sheet):
                sheet = evaluator.sheet(student, teacher, pairs=pairs, what="teacher above, distilled below")
                with open_atomically(run.folder.sheets / f"{self.index}-distilled.png") as file:
                    sheet.save(file, "PNG")
        self.progress.write(self.section.steps, verdict.as_row(TEST))
        if run.is_main:
            console.say(f"distilled against teacher: {verdict.summary}")

    def _evaluator(self, pool: SamplingPool) -> Evaluator:
        """On test reports, else on held-out ones, with images as the student is used."""
        return open_evaluator(
            self.run,
            None,
            {},
            case=self.example,
            pool=pool,
            batch=self.micro_batch,
            test=bool(self.run.test),
            sampling=self._sampling(self.defaults),
        )

    def _teachers(self, evaluator: Evaluator) -> EvaluatedImages:
        """The teacher's images and their scores, sampled once a run."""
        cache = self.run.folder.baseline_images / f"{self.index}-teacher.safetensors"
        return evaluator.baseline(self._teacher, cache, sampling=self._sampling(self.teaching))

    def _teacher(self) -> AbstractContextManager[DiffusionModel]:
        return nullcontext(load_model(self.checkpoint, device=self.run.device, precision=self.run.precision))

    def _sampling(self, found: SamplingDefaults) -> EvaluationSampling:
        return EvaluationSampling(found.sampler, found.steps, found.guidance, self.micro_batch)

    def card(self) -> str:
        """Text of the model card."""
        return distillation_card(self.run, self)

    def pool(self) -> SamplingPool:
        """Threads that batches run on; a context."""
        return SamplingPool(self.model, batch_size=self.micro_batch, threads_per_batch=1)
