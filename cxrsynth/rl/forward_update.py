"""The update of the forward process: sampled latents are noised again, and the prediction at them is moved."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cxrsynth.diffusion.forward_process import ForwardProcess
from cxrsynth.diffusion.model import DiffusionModel
from cxrsynth.diffusion.noise import seeded_noise
from cxrsynth.diffusion.sampler import single_condition
from cxrsynth.errors import ModelError
from cxrsynth.recipe.schema import ForwardSection
from cxrsynth.rl.experience import CleanSamples
from cxrsynth.rl.objective import ForwardLoss, Guidance, forward_objective
from cxrsynth.rl.optimizer import ADVICE, step
from cxrsynth.rl.policy import Policy
from cxrsynth.rl.shift_update import add_shift_gradients
from cxrsynth.runtime.gradients import add_gradients
from cxrsynth.runtime.pool import OrderedPool

Pair = tuple[int, int]  # row of the samples, draw of a noise level
Sum = Callable[[Tensor], Tensor]

# A guided prediction beyond the bound costs as much as an error of its whole length, times this.
_NORM_WEIGHT = 1.0


@dataclass(frozen=True)
class ForwardStats:
    """Means over the pairs of image and noise level of one iteration's updates.

    `baseline_distance` is the mean squared distance of the velocity to the baseline's, `norm_ratio` the length of the
    (guided) prediction over the baseline's. Both are None where no term of the loss needs the baseline's prediction.
    """

    baseline_distance: float | None
    norm_ratio: float | None
    grad_norm: float


@dataclass(frozen=True)
class _Fixed:
    """Predictions of the policies that do not learn, as velocities [B, C, h, w] on the CPU; None where not needed."""

    old: Tensor
    old_unconditional: Tensor | None
    baseline: Tensor | None
    baseline_unconditional: Tensor | None


class ForwardUpdater:
    """Updates by the objective of the forward process.

    Args:
        policy: the model being tuned.
        optimizer: of its trained weights; the gradient of each parameter group is clipped separately.
        old: weights that sample, by name; predictions under them are made before the first step.
        settings: minibatches, noise levels, weights of the loss.
        guidance: scale at which the tuned model will be used, for the bound on the norm.
        micro_batch: noisy images per forward pass.
        pool: where forward and backward passes run in parallel.
        add_up: sum of a tensor over processes.
        after_step: called after each optimizer step.
    """

    def __init__(
        self,
        policy: Policy,
        optimizer: torch.optim.Optimizer,
        *,
        old: Mapping[str, Tensor],
        settings: ForwardSection,
        guidance: float,
        micro_batch: int,
        pool: OrderedPool,
        add_up: Sum,
        after_step: Callable[[], None] = lambda: None,
    ) -> None:
        self._policy = policy
        self._optimizer = optimizer
        self._old = old
        self._settings = settings
        self._guidance = guidance
        self._micro_batch = micro_batch
        self._pool = pool
        self._add_up = add_up
        self._after_step = after_step
        self._process = ForwardProcess(policy.model)

    def __call__(
        self, samples: CleanSamples, optimality: Tensor, advantage: Tensor, *, report_ids: Sequence[str], key: str
    ) -> ForwardStats:
        """Train on an iteration.

        Args:
            samples: this process's share.
            optimality: of all N images, [N] in [0, 1].
            advantage: of all N images for the shift of their condition, [N].
            report_ids: of all N images.
            key: determines minibatches, noise levels and noise.

        Raises:
            ModelError: if a loss or gradient is not a number.
        """
        learning = bool(self._policy.denoising_weights)
        rounds = self._rounds(report_ids, key)
        batches = [self._batches(samples, places) if learning else [] for places in rounds]
        fixed = [self._fixed(samples, own, key) for own in batches]
        sums, norms = torch.zeros(3, dtype=torch.float64), []
        for places, own, known in zip(rounds, batches, fixed, strict=True):
            sums += self._gradients(samples, optimality, advantage, places, own, known, key)
            norms.append(step(self._optimizer, grad_norm=self._settings.grad_norm))
            self._after_step()
        distance, ratio, pairs = sums.tolist()
        return ForwardStats(
            baseline_distance=distance / pairs if pairs and self._needs_baseline else None,
            norm_ratio=ratio / pairs if pairs and self._needs_baseline else None,
            grad_norm=sum(norms) / len(norms),
        )

    @property
    def _needs_baseline(self) -> bool:
        return self._settings.kl_weight > 0 or self._settings.max_norm_ratio is not None

    def _rounds(self, report_ids: Sequence[str], key: str) -> list[set[int]]:
        """Places of each minibatch; the same on every process. A report's images stay together as far as they fit."""
        count, rng = len(report_ids), random.Random(key)
        places = rng.sample(range(count), count)
        if self._settings.common_noise:
            order = {name: rng.random() for name in dict.fromkeys(report_ids)}
            places.sort(key=lambda place: order[report_ids[place]])
        size = count // self._settings.num_minibatches
        return [set(places[first : first + size]) for first in range(0, count, size)]

    def _batches(self, samples: CleanSamples, places: set[int]) -> list[list[Pair]]:
        """Micro-batches of this process."""
        rows = [row for row, place in enumerate(samples.places) if place in places]
        pairs = [(row, draw) for draw in range(self._settings.timesteps) for row in rows]
        return [pairs[first : first + self._micro_batch] for first in range(0, len(pairs), self._micro_batch)]

    def _noised(self, samples: CleanSamples, pairs: Sequence[Pair], key: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Rows, noise levels [B], noisy latents and the target of their velocity [B, C, h, w], on the device.

        The noise levels of an image are stratified: one in each of `timesteps` equal parts of the range. With common
        random numbers, a report's images share levels and noise: what differs between their gradients, and does not
        cancel out, is then the images and how good they are.
        """
        device = self._policy.model.device
        rows = torch.tensor([row for row, _ in pairs])
        names = samples.report_ids if self._settings.common_noise else samples.places
        places = []
        for row, draw in pairs:
            place = random.Random(f"{key} level {names[row]} {draw}").random()
            places.append((draw + place) / self._settings.timesteps)
        levels = self._process.levels(torch.tensor(places, dtype=torch.float64)).to(device)
        shape = samples.clean.shape[1:]
        noise = torch.stack([seeded_noise(tuple(shape), key, "noise", names[r], draw) for r, draw in pairs])
        clean, noise = samples.clean[rows].to(device), noise.to(device)
        return (
            rows,
            levels,
            self._process.noisy(clean, noise, levels),
            self._process.target(clean, noise, levels),
        )

    def _velocity(
        self,
        model: DiffusionModel,
        samples: CleanSamples,
        rows: Tensor,
        levels: Tensor,
        noisy: Tensor,
        *,
        empty: bool = False,
    ) -> Tensor:
        """Conditional velocity of a model, or that under the empty prompt, [B, C, h, w]."""
        if empty:
            alone = samples.empty.to(model.device).expand(len(rows))
            condition = single_condition(model, alone, model.training_guidance)
        else:
            condition = samples.condition(model, self._policy, rows, guidance=model.training_guidance)
        prediction = model.predict(noisy, self._process.timesteps(levels), condition)
        return self._process.velocity(noisy, prediction, levels)

    def _fixed(self, samples: CleanSamples, batches: list[list[Pair]], key: str) -> list[_Fixed]:
        """Predictions of the policy that sampled and of the baseline for each micro-batch, in the batches that learn.

        On a GPU a prediction's rounding depends on its row in the batch.
        """
        settings = self._settings
        bounded = settings.max_norm_ratio is not None

        def predict(model: DiffusionModel) -> list[tuple[Tensor, Tensor | None]]:
            @torch.no_grad()
            def one(pairs: list[Pair]) -> tuple[Tensor, Tensor | None]:
                rows, levels, noisy, _ = self._noised(samples, pairs, key)
                conditional = self._velocity(model, samples, rows, levels, noisy)
                if not bounded:
                    return conditional.cpu(), None
                return conditional.cpu(), self._velocity(model, samples, rows, levels, noisy, empty=True).cpu()

            return [found for _, found in self._pool.map_in_order(one, batches)]

        with self._policy.holding(self._old):
            old = predict(self._policy.model)
        reference: list[tuple[Tensor | None, Tensor | None]] = [(None, None)] * len(batches)
        if self._needs_baseline:
            with self._policy.baseline() as baseline:
                reference = list(predict(baseline))
        return [_Fixed(*own, *other) for own, other in zip(old, reference, strict=True)]

    def _gradients(
        self,
        samples: CleanSamples,
        optimality: Tensor,
        advantage: Tensor,
        places: set[int],
        batches: list[list[Pair]],
        fixed: list[_Fixed],
        key: str,
    ) -> Tensor:
        """Put every weight's gradient into its `grad`: the mean over the pairs of a minibatch on all processes.

        Returns:
            Sums over those pairs: distance to the baseline, norm ratio, and their number.
        """
        for weight in self._policy.weights.values():
            weight.grad = torch.zeros_like(weight)
        add_shift_gradients(
            self._policy, samples, advantage, places, clip_range=float("inf"), kl_weight=self._settings.kl_weight
        )
        count = len(places) * self._settings.timesteps

        def one(batch: tuple[list[Pair], _Fixed]) -> tuple[Tensor, list[float]]:
            pairs, known = batch
            loss = self._loss(samples, optimality, pairs, known, key)
            if not bool(loss.loss.isfinite()):
                ids = ", ".join(dict.fromkeys(samples.report_ids[row] for row, _ in pairs))
                raise ModelError(f"report {ids}: the loss is not a number{ADVICE}")
            return loss.loss / count, [loss.baseline_distance, loss.norm_ratio, float(len(pairs))]

        sums = torch.zeros(3, dtype=torch.float64)
        weights = list(self._policy.denoising_weights.values())
        for found in add_gradients(self._pool, list(zip(batches, fixed, strict=True)), one, weights):
            sums += torch.tensor(found, dtype=torch.float64)
        for weight in self._policy.weights.values():
            assert weight.grad is not None
            weight.grad = self._add_up(weight.grad)
        return self._add_up(sums)

    def _loss(
        self, samples: CleanSamples, optimality: Tensor, pairs: list[Pair], known: _Fixed, key: str
    ) -> ForwardLoss:
        settings, device = self._settings, self._policy.model.device
        rows, levels, noisy, target = self._noised(samples, pairs, key)
        predicted = self._velocity(self._policy.model, samples, rows, levels, noisy)
        guidance = None
        if settings.max_norm_ratio is not None:
            assert known.old_unconditional is not None
            assert known.baseline_unconditional is not None
            guidance = Guidance(
                1.0 if self._policy.model.takes_guidance else self._guidance,
                settings.max_norm_ratio,
                _NORM_WEIGHT,
                known.old_unconditional.to(device),
                known.baseline_unconditional.to(device),
            )
        return forward_objective(
            predicted,
            known.old.to(device),
            target,
            optimality[[samples.places[row] for row in rows.tolist()]].to(device),
            strength=settings.strength,
            noise_level=self._process.noise_level(levels) if settings.weighting == "adaptive" else None,
            baseline=None if known.baseline is None else known.baseline.to(device),
            kl_weight=settings.kl_weight,
            guidance=guidance,
        )
