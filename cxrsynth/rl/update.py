"""The policy-gradient update: inner epochs over the trajectories of an iteration, forward, backward, clip, step."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cxrsynth.diffusion.ddim import DDIMSchedule, step_kl, step_log_prob, step_std
from cxrsynth.diffusion.model import DiffusionModel
from cxrsynth.diffusion.rollout import predict_means
from cxrsynth.errors import ModelError
from cxrsynth.recipe.schema import UpdateSection
from cxrsynth.rl.experience import Experience
from cxrsynth.rl.objective import PolicyLoss, clipped_objective
from cxrsynth.rl.optimizer import ADVICE, step
from cxrsynth.rl.policy import Policy
from cxrsynth.rl.shift_update import add_shift_gradients
from cxrsynth.runtime.gradients import add_gradients
from cxrsynth.runtime.pool import OrderedPool


@dataclass(frozen=True)
class UpdateStats:
    """Means over the steps of one iteration's updates.

    `ratio_error` is the largest |ratio - 1| before the first, by the log-probabilities of the rollout.
    """

    clip_fraction: float
    approx_kl: float
    baseline_kl: float
    grad_norm: float
    ratio_error: float


Sum = Callable[[Tensor], Tensor]


class Updater:
    """Policy-gradient updates.

    Args:
        policy: the model being tuned.
        optimizer: of its trained weights; the gradient of each parameter group is clipped separately.
        schedule: of the rollouts.
        settings: clip range, minibatches, share of steps.
        guidance: of the rollouts.
        micro_batch: denoising steps per forward pass.
        pool: where forward and backward passes run in parallel.
        add_up: sum of a tensor over processes.
        after_step: called after each optimizer step.
    """

    def __init__(
        self,
        policy: Policy,
        optimizer: torch.optim.Optimizer,
        *,
        schedule: DDIMSchedule,
        settings: UpdateSection,
        guidance: float,
        micro_batch: int,
        pool: OrderedPool,
        add_up: Sum,
        after_step: Callable[[], None] = lambda: None,
    ) -> None:
        self._policy = policy
        self._optimizer = optimizer
        self._schedule = schedule
        self._settings = settings
        self._guidance = guidance
        self._micro_batch = micro_batch
        self._pool = pool
        self._add_up = add_up
        self._after_step = after_step

    def __call__(self, experience: Experience, advantage: Tensor, *, key: str) -> UpdateStats:
        """Train on an iteration.

        Args:
            experience: this process's share.
            advantage: of all N trajectories, [N].
            key: determines the order of samples and the choice of steps.

        Raises:
            ModelError: if a loss or gradient is not a number.
        """
        rounds = list(self._rounds(len(advantage), key))
        means = self._baseline_means(experience, rounds)
        old = self._old_log_probs(experience, rounds)
        sums, norms, first_error = torch.zeros(4, dtype=torch.float64), [], 0.0
        for turn, chosen in enumerate(rounds):
            found, error = self._gradients(experience, advantage, chosen, means, old[turn])
            sums += found
            first_error = error if turn == 0 else first_error
            norms.append(step(self._optimizer, grad_norm=self._settings.grad_norm))
            self._after_step()
        clipped, approx_kl, baseline_kl, steps = sums.tolist()
        return UpdateStats(
            clip_fraction=clipped / steps,
            approx_kl=approx_kl / steps,
            baseline_kl=baseline_kl / steps,
            grad_norm=sum(norms) / len(norms),
            ratio_error=first_error,
        )

    def _rounds(self, count: int, key: str) -> Iterator[set[tuple[int, int]]]:
        """For each optimizer step, the (place, step) pairs it learns from; the same on every process."""
        actions = self._schedule.actions
        kept = max(1, round(self._settings.timestep_fraction * actions))
        for epoch in range(self._settings.inner_epochs):
            rng = random.Random(f"{key} {epoch}")
            places = rng.sample(range(count), count)
            pairs = {place: rng.sample(range(actions), kept) for place in range(count)}
            size = count // self._settings.num_minibatches
            for first in range(0, count, size):
                yield {(place, step) for place in places[first : first + size] for step in pairs[place]}

    def _own(self, experience: Experience, chosen: set[tuple[int, int]]) -> list[list[tuple[int, int]]]:
        """Micro-batches of (row of the experience, step). Those of one step stay together, as in the rollout."""
        rows = {place: row for row, place in enumerate(experience.places)}
        own = sorted((step, rows[place]) for place, step in chosen if place in rows)
        pairs = [(row, step) for step, row in own]
        return [pairs[first : first + self._micro_batch] for first in range(0, len(pairs), self._micro_batch)]

    def _means(self, model: DiffusionModel, experience: Experience, rows: Tensor, steps: Tensor) -> Tensor:
        latents = experience.latents[steps, rows].to(model.device)
        condition = experience.condition(model, self._policy, rows, guidance=self._guidance)
        return predict_means(model, self._schedule, steps.to(model.device), latents, condition, guidance=self._guidance)

    def _baseline_means(
        self, experience: Experience, rounds: Sequence[set[tuple[int, int]]]
    ) -> dict[tuple[int, int], Tensor]:
        """The baseline's mean for every (row, step) of the update; nothing without a KL term."""
        if self._settings.kl_weight == 0 or not self._policy.denoising_weights:
            return {}
        batches = self._own(experience, set().union(*rounds))
        with self._policy.baseline() as baseline:

            @torch.no_grad()
            def predict(pairs: list[tuple[int, int]]) -> Tensor:
                rows, steps = torch.tensor(pairs).T
                return self._means(baseline, experience, rows, steps).cpu()

            found = list(self._pool.map_in_order(predict, batches))
        return {pair: mean for pairs, means in found for pair, mean in zip(pairs, means, strict=True)}

    def _old_log_probs(
        self, experience: Experience, rounds: Sequence[set[tuple[int, int]]]
    ) -> list[dict[tuple[int, int], Tensor] | None]:
        """For each round the log-probability of every (row, step) before any of them, in the batches that learn.

        On a GPU a prediction's rounding depends on its row in the batch, and in half precision on the whole it can be
        far above the clip range; so those of the rollout do not serve. The first round has them as it learns: None.
        """
        if not self._policy.denoising_weights:
            return [None] * len(rounds)

        @torch.no_grad()
        def predict(pairs: list[tuple[int, int]]) -> Tensor:
            rows, steps = torch.tensor(pairs).T
            return self._log_prob(experience, rows, steps)[0].cpu()

        old: list[dict[tuple[int, int], Tensor] | None] = [None]
        for chosen in rounds[1:]:
            batches = self._own(experience, chosen)
            found = self._pool.map_in_order(predict, batches)
            old.append({pair: value for pairs, values in found for pair, value in zip(pairs, values, strict=True)})
        return old

    def _gradients(
        self,
        experience: Experience,
        advantage: Tensor,
        chosen: set[tuple[int, int]],
        means: dict[tuple[int, int], Tensor],
        old: dict[tuple[int, int], Tensor] | None,
    ) -> tuple[Tensor, float]:
        """Put every weight's gradient into its `grad`: the mean over `chosen` on all processes.

        Returns:
            Sums over those pairs: clipped, approximate KL, KL to the baseline, and their number; and the largest
            |ratio - 1|.
        """
        for weight in self._policy.weights.values():
            weight.grad = torch.zeros_like(weight)
        shifted, error = add_shift_gradients(
            self._policy,
            experience,
            advantage,
            {place for place, _ in chosen},
            clip_range=self._settings.clip_range,
            kl_weight=self._settings.kl_weight,
        )
        denoised, steps_error = self._denoising_gradients(experience, advantage, chosen, means, old)
        for weight in self._policy.weights.values():
            assert weight.grad is not None
            weight.grad = self._add_up(weight.grad)
        return self._add_up(shifted + denoised), max(error, steps_error)

    def _denoising_gradients(
        self,
        experience: Experience,
        advantage: Tensor,
        chosen: set[tuple[int, int]],
        means: dict[tuple[int, int], Tensor],
        old: dict[tuple[int, int], Tensor] | None,
    ) -> tuple[Tensor, float]:
        """Gradient of the denoising steps, added to the weights' `grad`."""
        weights = list(self._policy.denoising_weights.values())
        batches = self._own(experience, chosen) if weights else []

        def one(pairs: list[tuple[int, int]]) -> tuple[Tensor, tuple[list[float], float]]:
            loss = self._loss(experience, advantage, pairs, means, old)
            if not bool(loss.loss.isfinite()):
                ids = ", ".join(dict.fromkeys(experience.report_ids[row] for row, _ in pairs))
                raise ModelError(f"report {ids}: the loss is not a number{ADVICE}")
            found = [loss.clipped, loss.approx_kl, loss.baseline_kl, len(pairs)]
            return loss.loss / len(chosen), (found, loss.ratio_error)

        sums, error = torch.zeros(4, dtype=torch.float64), 0.0
        for found, worst in add_gradients(self._pool, batches, one, weights):
            sums += torch.tensor(found, dtype=torch.float64)
            error = max(error, worst)
        return sums, error

    def _log_prob(self, experience: Experience, rows: Tensor, steps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of what the rollout did, under the policy now, [B]; and the mean and the noise it follows from."""
        device = self._policy.model.device
        mean = self._means(self._policy.model, experience, rows, steps)
        std = step_std(self._schedule, steps.to(device))
        return step_log_prob(experience.latents[steps + 1, rows].to(device), mean, std), mean, std

    def _loss(
        self,
        experience: Experience,
        advantage: Tensor,
        pairs: list[tuple[int, int]],
        means: dict[tuple[int, int], Tensor],
        old: dict[tuple[int, int], Tensor] | None,
    ) -> PolicyLoss:
        rows, steps = torch.tensor(pairs).T
        device = self._policy.model.device
        log_prob, mean, std = self._log_prob(experience, rows, steps)
        kl = None
        if means:
            kl = step_kl(mean, torch.stack([means[pair] for pair in pairs]).to(device), std)
        before = log_prob.detach()
        loss = clipped_objective(
            log_prob,
            before if old is None else torch.stack([old[pair] for pair in pairs]).to(device),
            advantage[[experience.places[row] for row in rows.tolist()]].to(device),
            clip_range=self._settings.clip_range,
            kl=kl,
            kl_weight=self._settings.kl_weight,
        )
        if old is not None:
            return loss
        apart = (before - experience.log_probs[steps, rows].to(device)).exp() - 1
        return replace(loss, ratio_error=float(apart.abs().max()))
