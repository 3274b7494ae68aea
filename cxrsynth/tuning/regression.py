"""What the stages `sft` and `distill` share: weights that descend a loss, averaged over a batch of images."""

import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from cxrsynth.diffusion.adapters import add_adapters
from cxrsynth.diffusion.model import DiffusionModel
from cxrsynth.errors import ModelError
from cxrsynth.recipe.schema import DistillStage, SftStage
from cxrsynth.rl.rollout_spec import RolloutSpec, rollout_specs
from cxrsynth.runtime.batches import chunks
from cxrsynth.runtime.gradients import add_gradients
from cxrsynth.runtime.pool import OrderedPool
from cxrsynth.tuning.run import TuneRun

Batch = Sequence[RolloutSpec]


class Regression:
    """The weights of a stage and their optimizer; a step of it is the same in one process and in many.

    Args:
        run: whose processes share the work.
        section: of the recipe.
        model: whose networks are trained; gradients are turned on for what the recipe trains.

    Raises:
        ModelError: for a text encoder that the model's family keeps as it is.
    """

    def __init__(self, run: TuneRun, section: SftStage | DistillStage, model: DiffusionModel) -> None:
        self.run, self.section = run, section
        text_encoder = isinstance(section, SftStage) and section.train.text_encoder
        self.weights = _trained_weights(run, section, model, text_encoder=text_encoder)
        train = section.train
        self.optimizer = torch.optim.AdamW(
            self.weights.values(), lr=train.learning_rate, weight_decay=train.weight_decay
        )

    @property
    def adapters(self) -> bool:
        """Whether low-rank adapters are trained."""
        return self.section.train.unet == "lora"

    def specs(self, step: int, count: int) -> list[RolloutSpec]:
        """The batch of a step, counted from 0, from `count` training examples: all of them before one comes again."""
        return rollout_specs(
            step, seed=self.run.recipe.seed, reports=count, per_iteration=self.section.batch_size, images=1, pool=1
        )

    def step(
        self,
        step: int,
        specs: Sequence[RolloutSpec],
        loss: Callable[[Batch], Tensor],
        pool: OrderedPool,
        *,
        micro_batch: int,
    ) -> dict[str, float]:
        """One optimizer step, counted from 0. Returns its row of metrics.

        Args:
            step: for the learning rate, and messages.
            specs: the whole batch.
            loss: of each image of a micro-batch, [B] float32.
            pool: where micro-batches run.
            micro_batch: their size.

        Raises:
            ModelError: if loss or gradient is not a number.
        """
        started, stage, train = time.monotonic(), self.section.stage, self.section.train
        rate = train.learning_rate * self._rise_and_fall(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        batches = list(chunks(specs, micro_batch))
        total = float(self.run.add_up(self.gradients(self.run.group.share(batches), loss, pool)))
        for weight in self.weights.values():
            assert weight.grad is not None
            weight.grad = self.run.add_up(weight.grad)
        norm = float(nn.utils.clip_grad_norm_(self.weights.values(), train.grad_norm))
        for name, value in (("loss", total), ("gradient", norm)):
            if not torch.isfinite(torch.tensor(value)):
                raise ModelError(
                    f"step {step + 1}: the {name} is not a number\n  try a lower learning rate, or precision: fp32"
                )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        taken = time.monotonic() - started
        return {
            f"{stage}/loss": total,
            f"{stage}/grad_norm": norm,
            f"{stage}/learning_rate": rate,
            "time/step_s": taken,
            "time/images_per_s": self.section.batch_size / taken,
        }

    def gradients(self, batches: Sequence[Batch], loss: Callable[[Batch], Tensor], pool: OrderedPool) -> Tensor:
        """Put the gradient of these micro-batches into every weight's `grad`; returns their loss.

        Both are shares of the mean over all `batch_size` images of the step.
        """
        weights = list(self.weights.values())
        for weight in weights:
            weight.grad = torch.zeros_like(weight)

        def one(batch: Batch) -> tuple[Tensor, Tensor]:
            own = loss(batch).sum() / self.section.batch_size
            return own, own.detach().cpu().double()

        losses = add_gradients(pool, batches, one, weights)
        return torch.stack(losses).sum() if losses else torch.zeros((), dtype=torch.float64)

    def _rise_and_fall(self, step: int) -> float:
        """Share of the learning rate: a linear rise and, in `distill`, a linear fall to zero at the end."""
        rise = min(1.0, (step + 1) / max(1, self.section.warmup_steps))
        return min(rise, self.section.decay(step)) if isinstance(self.section, DistillStage) else rise


def _trained_weights(
    run: TuneRun, section: SftStage | DistillStage, model: DiffusionModel, *, text_encoder: bool
) -> Mapping[str, nn.Parameter]:
    """Turn on gradients for what the recipe trains; those parameters, by name."""
    train, denoiser, family = section.train, model.denoiser, model.family
    if train.unet == "lora":
        lora = train.lora
        add_adapters(denoiser, family.adapted_layers, rank=lora.rank, alpha=lora.alpha, seed=run.recipe.seed)
    else:
        denoiser.requires_grad_(True)
    if run.recipe.model.gradient_checkpointing:
        denoiser.enable_gradient_checkpointing()
    networks = {family.denoiser: denoiser}
    if text_encoder:
        if not family.learns_text:
            raise ModelError(f"train.text_encoder: {family.title} keeps its text encoders as they are\n  leave it out")
        networks |= model.components.encoders
        for encoder in model.components.encoders.values():
            encoder.requires_grad_(True)
    return {
        f"{part}.{name}": weight
        for part, network in networks.items()
        for name, weight in network.named_parameters()
        if weight.requires_grad
    }
