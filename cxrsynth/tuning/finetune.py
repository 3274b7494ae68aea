"""One stage of supervised fine-tuning, `sft`: denoising real images under the prompts of their reports."""

import random
import shutil
import time
from collections.abc import Sequence
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from cxrsynth import console
from cxrsynth.diffusion.adapters import add_adapters
from cxrsynth.diffusion.finetune import denoising_loss, training_schedule
from cxrsynth.diffusion.model import DiffusionModel, load_model
from cxrsynth.diffusion.noise import noise
from cxrsynth.diffusion.parallel import SamplingPool
from cxrsynth.diffusion.resolve import ResolvedModel
from cxrsynth.diffusion.sampler import guided_condition, predict_noise
from cxrsynth.errors import ModelError
from cxrsynth.recipe.schema import SamplingSection, SftStage
from cxrsynth.reports.request import PromptBuilder
from cxrsynth.rl.checkpoint import Learner, explain_damage, load_checkpoint, save_checkpoint
from cxrsynth.rl.rollout_spec import RolloutSpec, rollout_specs
from cxrsynth.runtime.batches import chunks
from cxrsynth.runtime.gradients import add_gradients
from cxrsynth.runtime.interrupt import Stop
from cxrsynth.runtime.pool import OrderedPool
from cxrsynth.tuning.curves import draw_curves
from cxrsynth.tuning.export import Trained
from cxrsynth.tuning.latent_cache import ImageEncoder, TrainingImages, open_images
from cxrsynth.tuning.metrics import Metrics
from cxrsynth.tuning.run import TuneRun


class Supervision:
    """A stage: its networks, its images, and where it stands.

    All randomness comes from seed, stage, step and an image's place in the batch. `told_images` says which images were
    used, once they are read.
    """

    def __init__(self, run: TuneRun, stage: SftStage, index: int, *, checkpoint: ResolvedModel) -> None:
        self.run, self.stage, self.index = run, stage, index
        train = stage.train
        self.model: DiffusionModel = load_model(
            checkpoint, device=run.device, precision=run.precision, mixed=True, float32_unet=train.unet == "full"
        )
        self.weights = self._mark()
        self.optimizer = torch.optim.AdamW(
            self.weights.values(), lr=train.learning_rate, weight_decay=train.weight_decay
        )
        self.average = None if train.ema_decay is None else EMAModel(self.weights.values(), decay=train.ema_decay)
        averaged = None if self.average is None else dict(zip(self.weights, self.average.shadow_params, strict=True))
        self.learner = Learner(self.weights, self.optimizer, averaged)
        self.scheduler = training_schedule(self.model.scheduler_config)
        self.micro_batch = run.batch_size(SamplingSection(batch_size=stage.micro_batch))
        self.metrics = Metrics(run.folder.metrics)
        self.first = 0
        self.told_images = ""

    def _mark(self) -> dict[str, nn.Parameter]:
        """Let gradients reach what the recipe trains; those parameters, by name."""
        train, unet = self.stage.train, self.model.unet
        if train.unet == "lora":
            add_adapters(unet, rank=train.lora.rank, alpha=train.lora.alpha, seed=self.run.recipe.seed)
        else:
            unet.requires_grad_(True)
        if self.run.recipe.model.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        networks = {"unet": unet}
        if train.text_encoder:
            networks["text_encoder"] = self.model.text_encoder.requires_grad_(True)
        return {
            f"{part}.{name}": weight
            for part, network in networks.items()
            for name, weight in network.named_parameters()
            if weight.requires_grad
        }

    def __call__(self) -> None:
        """Train from where the stage stands to its end; averaged weights, where there are any, are put in place."""
        self._resume()
        if self.first < self.stage.steps:
            self.train()
        if self.run.is_main:
            shutil.rmtree(self.run.folder.latents(self.index), ignore_errors=True)
        if self.average is not None:
            self.average.copy_to(self.weights.values())

    def train(self) -> None:
        """The steps that are left. Raises what `step` and reading the images do."""
        total = self.stage.steps
        with SamplingPool(self.model, batch_size=self.micro_batch, threads_per_batch=1) as pool:
            radiographs = self.read_images(pool)
            with console.training_view(total, quiet=not self.run.is_main) as show, Stop() as stop:
                for step in range(self.first, total):
                    row = self.step(step, radiographs, pool)
                    done = step + 1
                    self._write(done, row)
                    show(done, row)
                    # All processes stop together, whoever was asked.
                    stopped = bool(self.run.add_up(torch.tensor([float(stop.asked)])))
                    if done % self.stage.checkpoint_every == 0 or done == total or stopped:
                        self._save(done)
                    if stopped:
                        raise KeyboardInterrupt

    @property
    def trained(self) -> Trained:
        """The model with its weights as they are."""
        return Trained(self.model, self.weights, adapters=self.stage.train.unet == "lora")

    def step(self, step: int, radiographs: TrainingImages, pool: OrderedPool) -> dict[str, float]:
        """One optimizer step, counted from 0. Returns its row of metrics.

        Raises:
            ModelError: if loss or gradient is not a number.
        """
        started = time.monotonic()
        rate = self.stage.train.learning_rate * min(1.0, (step + 1) / max(1, self.stage.warmup_steps))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        drawn = rollout_specs(
            step,
            seed=self.run.recipe.seed,
            reports=len(radiographs),
            per_iteration=self.stage.batch_size,
            images=1,
            pool=1,
        )
        batches = list(chunks(drawn, self.micro_batch))
        loss = float(self.run.add_up(self.gradients(step, self.run.group.share(batches), radiographs, pool)))
        for weight in self.weights.values():
            assert weight.grad is not None
            weight.grad = self.run.add_up(weight.grad)
        norm = float(nn.utils.clip_grad_norm_(self.weights.values(), self.stage.train.grad_norm))
        for name, value in (("loss", loss), ("gradient", norm)):
            if not torch.isfinite(torch.tensor(value)):
                raise ModelError(
                    f"step {step + 1}: the {name} is not a number\n  try a lower learning rate, or precision: fp32"
                )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.step(self.weights.values())
        taken = time.monotonic() - started
        return {
            "sft/loss": loss,
            "sft/grad_norm": norm,
            "sft/learning_rate": rate,
            "time/step_s": taken,
            "time/images_per_s": self.stage.batch_size / taken,
        }

    def gradients(
        self, step: int, batches: Sequence[list[RolloutSpec]], radiographs: TrainingImages, pool: OrderedPool
    ) -> Tensor:
        """Leave the gradient of these micro-batches in every weight's `grad`; returns their loss.

        Both are shares of the mean over all `batch_size` images of the step.
        """
        weights = list(self.weights.values())
        for weight in weights:
            weight.grad = torch.zeros_like(weight)

        def one(batch: list[RolloutSpec]) -> tuple[Tensor, Tensor]:
            loss = self.loss(step, batch, radiographs).sum() / self.stage.batch_size
            return loss, loss.detach().cpu().double()

        losses = add_gradients(pool, batches, one, weights)
        return torch.stack(losses).sum() if losses else torch.zeros((), dtype=torch.float64)

    def loss(self, step: int, batch: Sequence[RolloutSpec], radiographs: TrainingImages) -> Tensor:
        """Loss of each image of a micro-batch, [B] float32."""
        device = self.model.device
        clean = torch.stack([radiographs.latent(draw.report) for draw in batch]).to(device)
        added = torch.stack([noise(clean.shape[1:], *self._key(step, draw)) for draw in batch]).to(device)
        last = self.scheduler.config.num_train_timesteps
        timesteps, prompts, conditions = [], [], []
        for draw in batch:
            rng = random.Random(" ".join(map(str, self._key(step, draw))))
            timesteps.append(rng.randrange(last))
            blank = rng.random() < self.stage.cond_dropout_prob
            pair = radiographs.pair(draw.report)
            prompts.append("" if blank else pair.prompt)
            conditions.append(() if blank else pair.conditions)
        when = torch.tensor(timesteps, device=device)
        predicted = predict_noise(
            self.model,
            self.scheduler.add_noise(clean, added, when),
            when,
            self._condition(prompts, conditions),
            1.0,
        )
        return denoising_loss(self.scheduler, predicted, clean, added, when, min_snr=self.stage.min_snr)

    def _key(self, step: int, draw: RolloutSpec) -> tuple[object, ...]:
        return self.run.recipe.seed, "sft", self.index, step, draw.place

    def _condition(self, prompts: list[str], conditions: Sequence[tuple[str, ...]]) -> Tensor:
        """As `generate` makes it, with the model's ACE where it has one; the empty prompt gets none."""
        tokens = self.model.tokens(prompts)
        with torch.set_grad_enabled(self.stage.train.text_encoder):
            text = self.model.text_encoder(tokens).last_hidden_state.to(self.model.dtype)
        mask = None if self.model.ace is None else self.model.ace.mask(conditions)
        return guided_condition(self.model, text, text[:1], 1.0, mask=mask)

    def read_images(self, pool: OrderedPool) -> TrainingImages:
        run, collection = self.run, open_images(self.stage)
        unnamed = sum(report.report_id.startswith("row-") for report in run.held_out)
        if unnamed and run.is_main:
            console.warn(f"{unnamed} held-out reports have no id: an image of theirs would not be noticed")
        encoder = ImageEncoder(
            collection,
            self.model,
            PromptBuilder(run.model.spec.prompt, run.model.spec.depicts, self.model.fits),
            held_out={report.report_id for report in run.held_out},
            folder=run.folder.latents(self.index),
            limit_bytes=self.stage.cache_gib * 2**30,
            batch_size=self.micro_batch,
            pool=pool,
        )
        with console.image_progress(None, quiet=not run.is_main, what="images encoded") as advance:
            encoder.encode(run.group.share(collection.units), advance=advance)
        run.wait()
        radiographs = encoder.radiographs()
        self.told_images = radiographs.told(first_damage=False)
        if run.is_main:
            console.say(f"{collection.path}: {radiographs.told()}")
        return radiographs

    def _write(self, step: int, row: dict[str, float]) -> None:
        if self.run.is_main:
            self.metrics.write({"stage": self.index, "iteration": step} | row)
            self.run.track(row, stage=self.index, iteration=step)

    def _save(self, step: int) -> None:
        """A checkpoint, and the oldest dropped."""
        if self.run.is_main:
            state: dict[str, Any] = {
                "stage": self.index,
                "iteration": step,
                "images": self.told_images,
                "ema_steps": None if self.average is None else self.average.optimization_step,
            }
            save_checkpoint(self.run.folder.checkpoint(self.index, step), self.learner, state)
            self.run.folder.rotate(self.index, keep=self.run.recipe.checkpoints.keep)
            draw_curves(self.metrics.rows(), self.run.folder.curves)
        self.run.wait()

    def _resume(self) -> None:
        """Go on from the newest checkpoint of this stage, if there is one."""
        newest = self.run.folder.newest(self.index)
        if newest is not None:
            state = load_checkpoint(newest, self.learner)
            with explain_damage(newest):
                self.first, self.told_images = int(state["iteration"]), str(state["images"])
                if self.average is not None:
                    self.average.optimization_step = int(state["ema_steps"])
            if self.run.is_main:
                console.say(f"going on after step {self.first} of {self.stage.steps}")
        if self.run.is_main:
            self.metrics.cut(stage=self.index, iteration=self.first)
        self.run.wait()
