"""One stage of supervised fine-tuning, `sft`: denoising real images under the prompts of their reports."""

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from cxrsynth import console
from cxrsynth.diffusion.condition import Condition
from cxrsynth.diffusion.finetune import denoising_loss
from cxrsynth.diffusion.model import DiffusionModel, load_model
from cxrsynth.diffusion.noise import seeded_noise
from cxrsynth.diffusion.parallel import SamplingPool
from cxrsynth.diffusion.resolve import ResolvedModel
from cxrsynth.diffusion.sampler import guided_condition
from cxrsynth.recipe.schema import SamplingSection, SftStage
from cxrsynth.rl.rollout_spec import RolloutSpec
from cxrsynth.runtime.interrupt import Stop
from cxrsynth.runtime.pool import OrderedPool
from cxrsynth.tuning.export import Trained
from cxrsynth.tuning.latent_cache import TrainingImages
from cxrsynth.tuning.model_card import supervision_card
from cxrsynth.tuning.regression import Regression
from cxrsynth.tuning.run import TuneRun
from cxrsynth.tuning.stage import StageProgress
from cxrsynth.tuning.training_images import ImagesSummary, read_images

_COND_DROPOUT_PROB = 0.1  # as in Stable Diffusion and Ho and Salimans, arXiv:2207.12598


class Supervision:
    """A stage `sft`: what is trained, on which images.

    All randomness comes from the seed, the stage, the step and an image's place in the batch.
    """

    def __init__(self, run: TuneRun, section: SftStage, index: int, *, checkpoint: ResolvedModel) -> None:
        self.run, self.section, self.index = run, section, index
        self.model: DiffusionModel = load_model(
            checkpoint,
            device=run.device,
            precision=run.precision,
            mixed=True,
            float32_denoiser=section.train.unet == "full",
        )
        self.regression = Regression(run, section, self.model)
        self.weights = self.regression.weights
        self.micro_batch = run.batch_size(SamplingSection(batch_size=section.micro_batch))
        self.images = ImagesSummary()
        self.progress = StageProgress(
            run,
            index,
            self.weights,
            self.regression.optimizer,
            ema_decay=section.train.ema_decay,
            remembered={"images": self.images},
        )

    def train(self) -> None:
        """Train from where the stage stands to its end. Raises as `Stage.train`, `step` and reading the images do."""
        total = self.section.steps
        self.progress.resume(total, "step")
        if self.progress.first == total:
            return
        with SamplingPool(self.model, batch_size=self.micro_batch, threads_per_batch=1) as pool:
            images = self.read_images(pool)
            with console.training_view(total, quiet=not self.run.is_main) as show, Stop() as stop:
                for step in self.progress.iterations(total, save_every=self.section.checkpoint_every, stop=stop):
                    row = self.step(step, images, pool)
                    self.progress.write(step + 1, row)
                    show(step + 1, row)
        self.progress.draw(now=True)

    def result(self) -> Trained:
        """The model, with averaged weights where the recipe wants them."""
        self.progress.keep_averaged()
        return Trained(self.model, self.weights, adapters=self.regression.adapters)

    def test(self) -> None:
        """As `Stage.test`: only stages of reinforcement learning are tested."""

    def card(self) -> str:
        """Text of the model card."""
        return supervision_card(self.run, self)

    def step(self, step: int, images: TrainingImages, pool: OrderedPool) -> dict[str, float]:
        """One optimizer step, counted from 0. Returns its row of metrics. Raises as `Regression.step` does."""
        row = self.regression.step(
            step,
            self.regression.specs(step, len(images)),
            lambda batch: self.loss(step, batch, images),
            pool,
            micro_batch=self.micro_batch,
        )
        self.progress.average()
        return row

    def gradients(
        self, step: int, batches: Sequence[Sequence[RolloutSpec]], images: TrainingImages, pool: OrderedPool
    ) -> Tensor:
        """As `Regression.gradients`, of a step's loss."""
        return self.regression.gradients(batches, lambda batch: self.loss(step, batch, images), pool)

    @property
    def cond_dropout_prob(self) -> float:
        """Probability of an empty prompt."""
        given = self.section.cond_dropout_prob
        default = _COND_DROPOUT_PROB if self.model.family.has_text else 0.0
        return default if given is None else given

    def loss(self, step: int, batch: Sequence[RolloutSpec], images: TrainingImages) -> Tensor:
        """Loss of each image of a micro-batch, [B] float32."""
        device = self.model.device
        clean = torch.stack([images.latent(spec.report) for spec in batch]).to(device)
        added = torch.stack([seeded_noise(clean.shape[1:], *self._key(step, spec)) for spec in batch]).to(device)
        schedule = self.model.schedule
        levels, prompts, conditions = [], [], []
        for spec in batch:
            rng = random.Random(" ".join(map(str, self._key(step, spec))))
            levels.append(rng.randrange(schedule.count))
            blank = rng.random() < self.cond_dropout_prob
            pair = images.pair(spec.report)
            prompts.append("" if blank else pair.prompt)
            conditions.append(() if blank else pair.conditions)
        when = torch.tensor(levels, device=device)
        noisy = schedule.noisy(clean, added, when)
        predicted = self.model.predict(noisy, schedule.timesteps(when), self._condition(prompts, conditions))
        return denoising_loss(schedule, predicted, clean, added, when, min_snr=self.section.min_snr)

    def _key(self, step: int, spec: RolloutSpec) -> tuple[object, ...]:
        return self.run.recipe.seed, "sft", self.index, step, spec.place

    def _condition(self, prompts: list[str], conditions: Sequence[tuple[str, ...]]) -> Condition:
        """The condition as `generate` builds it, with the model's ACE if it has one; the empty prompt gets none."""
        with torch.set_grad_enabled(self.section.train.text_encoder):
            text, empty = self.model.encode(prompts)
        mask = None if self.model.ace is None else self.model.ace.mask(conditions)
        return guided_condition(self.model, text, empty, self.model.training_guidance, mask=mask)

    def read_images(self, pool: OrderedPool) -> TrainingImages:
        """Encode the images that are not encoded yet, each process its share. Raises as `read_images` does."""
        return read_images(
            self.run,
            self.index,
            self.model,
            self.images,
            folder=self.run.folder.latents(self.index),
            limit_gib=self.section.cache_gib,
            batch_size=self.micro_batch,
            pool=pool,
        )
