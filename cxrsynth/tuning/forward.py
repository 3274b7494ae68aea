"""The objective `forward`: comparative feedback for an objective on the forward process.

What an update needs is clean latents and how good they are; so any sampler may sample, and no step is remembered. The
baseline's images have noise of their own: with the policy's, every comparison would be a draw at the start.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from cxrsynth.recipe.schema import ForwardSection, RlcfStage
from cxrsynth.rewards.feedback import reward_std
from cxrsynth.rl.experience import CleanSamples, Conditioning
from cxrsynth.rl.forward_update import ForwardUpdater
from cxrsynth.rl.optimality import centred, group, margin, win_probability, with_others
from cxrsynth.rl.optimizer import set_learning_rates
from cxrsynth.rl.rollout_spec import RolloutSpec
from cxrsynth.rl.rollouts import BaselineCache, CleanDrawing, Collector, PromptExample
from cxrsynth.runtime.pool import OrderedPool
from cxrsynth.tuning.feedback import Feedback
from cxrsynth.tuning.policy_stage import Iterate, PolicyStage
from cxrsynth.tuning.stage import Remembered


class Forward:
    """Sampling under `old` weights, which follow the policy; feedback as optimality; updates by noising again."""

    def __init__(self, stage: PolicyStage) -> None:
        if stage.section.forward is None:
            raise ValueError("a stage of another objective")
        self.stage, self.settings = stage, stage.section.forward
        # An exploring ACE samples from its current mean: it learns from its own action.
        self.old = {name: weight.detach().clone() for name, weight in stage.policy.denoising_weights.items()}
        self.cache = BaselineCache()
        self.remembered: Mapping[str, Remembered] = {"baseline": self.cache}
        self.beside: Mapping[str, Tensor] = {f"old.{name}": weight for name, weight in self.old.items()}

    def opened(self, pool: OrderedPool, *, after_step: Callable[[], None], first: int) -> Iterate:
        """As `Objective.opened`."""
        del first
        stage, sampling = self.stage, self.stage.section.sampling
        drawing = CleanDrawing(
            sampling.sampler or stage.run.defaults.sampler,
            steps=sampling.steps,
            guidance=stage.guidance,
            seed=stage.seed,
        )
        collector = stage.collector(drawing, pool)
        updater = ForwardUpdater(
            stage.policy,
            stage.optimizer,
            old=self.old,
            settings=self.settings,
            guidance=stage.run.guidance(None),
            micro_batch=stage.micro_batch,
            pool=pool,
            add_up=stage.run.add_up,
            after_step=after_step,
        )
        return lambda iteration: self._iterate(iteration, collector, updater)

    def specs(self, iteration: int) -> list[RolloutSpec]:
        """The images of an iteration; each has an x_T of its own, mirrored pairs one together."""
        return self.stage.specs(iteration, pool=1)

    def _iterate(self, iteration: int, collector: Collector[Tensor], updater: ForwardUpdater) -> dict[str, Any]:
        stage, started = self.stage, time.monotonic()
        specs = self.specs(iteration)  # N images
        examples = stage.examples(specs)
        ids = [example.report.report_id for example in examples]

        with stage.policy.holding(self.old):
            conditioning, latents, rewards = collector.policy_samples(iteration, specs, examples)  # rewards [N, R]
        stage.silent.check(rewards, ids)
        sampled = time.monotonic()
        optimality, feedback = self._compare(rewards, collector, examples, specs)  # [N] in [0, 1]
        compared = time.monotonic()

        section = stage.section
        set_learning_rates(stage.optimizer, section.train.schedule, done=iteration / section.iterations)
        samples = clean_samples(conditioning, latents, stage.policy.model.latent_shape)
        learned = self._centred(optimality, rewards, ids, specs)
        advantage = shift_advantage(optimality, specs)
        stats = updater(samples, learned, advantage, report_ids=ids, key=stage.key(iteration))
        follow(self.old, stage.policy.weights, self.settings, iteration)
        return (
            feedback.row(stage.suite.names, stage.weight_tensor)
            | {"feedback/optimality": float(optimality.mean()), "feedback/optimality_std": float(learned.std())}
            | {"images": len(specs)}
            | {f"learning_rate/{group_['part']}": group_["lr"] for group_ in stage.optimizer.param_groups}
            | {f"policy/{name}": value for name, value in asdict(stats).items() if value is not None}
            | {"time/rollout_s": sampled - started, "time/baseline_s": compared - sampled}
            | {"time/update_s": time.monotonic() - compared}
        )

    def _compare(
        self,
        rewards: Tensor,
        collector: Collector[Tensor],
        examples: Sequence[PromptExample],
        specs: Sequence[RolloutSpec],
    ) -> tuple[Tensor, Feedback]:
        """Optimality [N] of the policy's rewards [N, R], and their mean margins over the baseline."""
        stage, weights = self.stage, self.stage.weight_tensor
        ids, streams = [example.report.report_id for example in examples], [spec.stream for spec in specs]
        section = stage.section.comparison if isinstance(stage.section, RlcfStage) else None
        if section is None or section.baseline_images is None:
            found = group(rewards, ids, streams, scale=reward_std(rewards), weights=weights)
            return found, Feedback(rewards, rewards, None)
        images = range(section.baseline_images)
        by_id = dict(zip(ids, examples, strict=True))
        collector.fill(self.cache, {(name, image): example for name, example in by_id.items() for image in images})
        baseline = torch.stack([self.cache.table([(name, image) for image in images]) for name in ids])  # [N, K, R]
        scale = reward_std(self.cache.everything())
        margins = ((rewards[:, None] - baseline) / scale).nanmean(1)
        filled = with_others(rewards, ids, streams)
        if section.kind == "margin":
            found = margin(filled, baseline, scale=scale, weights=weights)
        else:
            assert section.temperature is not None
            found = win_probability(filled, baseline, scale=scale, weights=weights, temperature=section.temperature)
        return found, Feedback(margins, rewards, baseline.nanmean(1))

    def _centred(self, optimality: Tensor, rewards: Tensor, ids: Sequence[str], specs: Sequence[RolloutSpec]) -> Tensor:
        """What the UNet learns from: optimality [N], around one half in each report where the recipe says so."""
        section = self.stage.section.comparison if isinstance(self.stage.section, RlcfStage) else None
        if section is None or not section.centre:
            return optimality
        known = (~rewards.isnan() & (self.stage.weight_tensor > 0)).any(1)
        return centred(optimality, ids, [spec.stream for spec in specs], known=known)


@torch.no_grad()
def follow(old: Mapping[str, Tensor], weights: Mapping[str, Tensor], settings: ForwardSection, iteration: int) -> None:
    """Let the weights that sample follow the policy's, in place, at the end of an iteration.

    The share that stays rises from 0 in the first iteration, after which they are the policy's, to `old_decay` after
    `old_warmup` iterations (DiffusionNFT, arXiv:2509.16117).
    """
    rise = min(1.0, iteration / settings.old_warmup) if settings.old_warmup else 1.0
    for name, value in old.items():
        value.lerp_(weights[name], 1 - settings.old_decay * rise)


def clean_samples(conditioning: Conditioning, latents: Sequence[Tensor], shape: tuple[int, int, int]) -> CleanSamples:
    """The batches of this process, joined; none is fine."""
    return CleanSamples(**vars(conditioning), clean=torch.cat([torch.zeros(0, *shape), *latents]))


def shift_advantage(optimality: Tensor, specs: Sequence[RolloutSpec]) -> Tensor:
    """Advantage [N] of each image's shift: the difference from its mirror image, in standard deviations.

    Both images of a pair have the same x_T, so the difference is the effect of the shift alone.
    """
    pairs: dict[int, list[int]] = {}
    for spec in specs:
        pairs.setdefault(spec.stream, []).append(spec.place)
    found = torch.zeros_like(optimality)
    for places in pairs.values():
        found[places] = optimality[places] - optimality[places].mean()
    return found / found.std().clamp(min=1e-6) if len(found) > 1 else found
