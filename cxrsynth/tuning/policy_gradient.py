"""The objective `policy_gradient`: RLCF as published (Han et al., MICCAI 2024, arXiv:2403.06516); `ddpo` as well.

    for every iteration:
        specs <- reports in shuffled order, several images each: a starting noise x_T and a stream of step noise
        trajectories <- the policy denoises from x_T; every latent and every step's log-probability is kept
        rewards <- every reward model scores the policy's images                             # [N, R]
        baseline rewards <- the same for the baseline: same report, same x_T, own step noise  # [N, R], cached
        feedback <- reward by reward, how much better than the baseline                      # [N, R]
        advantage <- feedback normalized by each report's latest feedback, weighted, clipped # [N]
        for every minibatch of (trajectory, step) pairs:
            ratio <- exp(log-prob now - log-prob when sampled)
            descend -min(ratio * advantage, clip(ratio) * advantage) + kl_weight * KL(policy step || baseline step)

How it differs from DDPO (Black et al., arXiv:2305.13301):
1. An image is rewarded for being better than the frozen baseline's image of the same report and x_T. The step noise is
   not shared: it is the policy's action, and a comparison that depends on the action biases the gradient. The stage
   `ddpo` leaves the comparison out.
2. Several rewards, each normalized by itself, so that none outweighs another by its unit.
3. The condition can be an action too: each trajectory may shift its adaptive condition embedding (ACE) both ways.
4. An optional KL divergence to the baseline, in closed form; DDPO has none.
5. An update may take a random share of each trajectory's steps. The last step is no action: its noise is next to none.
6. The best weights by an evaluator that never trains are kept; reward hacking raises an alarm.

How it differs from GRPO (Shao et al., arXiv:2402.03300; simplified in nanochat's chat_rl):
1. The reference is not the mean of a group sampled for one prompt, but the frozen baseline. Means and standard
   deviations come from a report's latest feedback over several iterations, while there is little of it from the batch.
2. Ratio and clipping are kept (chat_rl, on-policy, drops both): several optimizer steps share the same samples.
3. Advantages are divided by a standard deviation (chat_rl only subtracts the mean).
4. Denoising steps take the place of tokens. All trajectories are equally long, so lengths need no normalization; a
   step's log-probability is a mean over latent elements, and the clip range is chosen for that.
5. The KL divergence is exact, between two Gaussians, not estimated from samples (chat_rl has none).

Constants that are not on public record are ours.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from cxrsynth import console
from cxrsynth.diffusion.ddim import DDIMSchedule
from cxrsynth.diffusion.rollout import Trajectory, trajectory_schedule
from cxrsynth.recipe.schema import ComparisonSection, RlcfStage
from cxrsynth.rewards.feedback import Comparison, compare, reward_std
from cxrsynth.rl.advantage import PromptStatistics, no_signal, to_advantage
from cxrsynth.rl.checks import check_ratio, largest_ratio_error
from cxrsynth.rl.experience import Conditioning, Experience
from cxrsynth.rl.optimizer import set_learning_rates
from cxrsynth.rl.rollout_spec import RolloutSpec
from cxrsynth.rl.rollouts import BaselineCache, Collector, PromptExample, TrajectoryDrawing
from cxrsynth.rl.update import Updater, UpdateStats
from cxrsynth.runtime.pool import OrderedPool
from cxrsynth.tuning.feedback import Feedback
from cxrsynth.tuning.policy_stage import Iterate, PolicyStage
from cxrsynth.tuning.stage import Remembered

_UNLIMITED = 1 << 30


class PolicyGradient:
    """Trajectories, feedback by comparison, clipped importance-weighted updates."""

    def __init__(self, stage: PolicyStage) -> None:
        section = stage.section
        if section.advantage is None or section.update is None or section.sampling.eta is None:
            raise ValueError("a stage of another objective")
        self.stage, self.advantage, self.update, self.eta = (
            stage,
            section.advantage,
            section.update,
            section.sampling.eta,
        )
        self.statistics = PromptStatistics(size=self.advantage.buffer, least=self.advantage.min_count)
        self.cache = BaselineCache()
        self.remembered: Mapping[str, Remembered] = {"statistics": self.statistics, "baseline": self.cache}
        self.beside: Mapping[str, Tensor] = {}

    @property
    def comparison(self) -> ComparisonSection | None:
        """How images are compared; None for `ddpo`, which compares nothing."""
        return self.stage.section.comparison if isinstance(self.stage.section, RlcfStage) else None

    @property
    def schedule(self) -> DDIMSchedule:
        """Denoising steps of the rollouts."""
        return trajectory_schedule(self.stage.policy.model, steps=self.stage.section.sampling.steps, eta=self.eta)

    def specs(self, iteration: int) -> list[RolloutSpec]:
        """The trajectories of an iteration."""
        pool = None if self.comparison is None else self.comparison.pool
        return self.stage.specs(iteration, pool=pool or _UNLIMITED)

    def opened(self, pool: OrderedPool, *, after_step: Callable[[], None], first: int) -> Iterate:
        """As `Objective.opened`; the first iteration checks that all ratios are 1 before any update."""
        stage, schedule = self.stage, self.schedule
        drawing = TrajectoryDrawing(schedule, guidance=stage.guidance, seed=stage.seed)
        collector = stage.collector(drawing, pool)
        updater = Updater(
            stage.policy,
            stage.optimizer,
            schedule=schedule,
            settings=self.update,
            guidance=stage.guidance,
            micro_batch=stage.micro_batch,
            pool=pool,
            add_up=stage.run.add_up,
            after_step=after_step,
        )

        def iterate(iteration: int) -> dict[str, Any]:
            row, stats = self._iterate(iteration, collector, updater)
            if iteration == first:
                self._check_ratio(stats)
            return row

        return iterate

    def _iterate(
        self, iteration: int, collector: Collector[Trajectory], updater: Updater
    ) -> tuple[dict[str, Any], UpdateStats]:
        """Sample, compare, learn. Returns the row of metrics."""
        stage, started = self.stage, time.monotonic()
        specs = self.specs(iteration)  # N trajectories
        examples = stage.examples(specs)
        ids = [example.report.report_id for example in examples]

        conditioning, trajectories, rewards = collector.policy_samples(iteration, specs, examples)  # rewards [N, R]
        stage.silent.check(rewards, ids)
        sampled = time.monotonic()
        feedback = self._compare(rewards, collector, specs, examples)  # same x_T, own step noise
        compared = time.monotonic()

        advantage = to_advantage(
            feedback.values,
            ids,
            self.statistics,
            weights=stage.weight_tensor,
            clip=self.advantage.clip,
            centre=self.advantage.centre,
            streams=[spec.stream for spec in specs],
        )  # [N]
        section = stage.section
        set_learning_rates(stage.optimizer, section.train.schedule, done=iteration / section.iterations)
        stats = updater(experience(conditioning, trajectories, collector), advantage, key=stage.key(iteration))
        # The largest of all processes, whose hardware may differ.
        stats = replace(stats, ratio_error=max(stage.run.group.gather([stats.ratio_error])))
        row = (
            feedback.row(stage.suite.names, stage.weight_tensor)
            | {"feedback/no_signal": no_signal(feedback.values, ids), "images": len(specs)}
            | {f"learning_rate/{group['part']}": group["lr"] for group in stage.optimizer.param_groups}
            | {f"policy/{name}": value for name, value in asdict(stats).items()}
            | {"time/rollout_s": sampled - started, "time/baseline_s": compared - sampled}
            | {"time/update_s": time.monotonic() - compared}
        )
        return row, stats

    def _compare(
        self,
        rewards: Tensor,
        collector: Collector[Trajectory],
        specs: Sequence[RolloutSpec],
        examples: Sequence[PromptExample],
    ) -> Feedback:
        """Feedback of the policy's rewards [N, R], in standard deviations of all the baseline's rewards so far."""
        section = self.comparison
        if section is None or section.kind is None:
            return Feedback(rewards, rewards, None)
        keys = [(example.report.report_id, spec.start) for spec, example in zip(specs, examples, strict=True)]
        collector.fill(self.cache, dict(zip(keys, examples, strict=True)), images=section.baseline_images or 1)
        baseline = self.cache.table(keys)
        values = compare(
            rewards,
            baseline,
            kind=Comparison(section.kind),
            scale=reward_std(self.cache.everything()),
            beta=section.beta or 1.0,
        )
        return Feedback(values, rewards, baseline)

    def _check_ratio(self, stats: UpdateStats) -> None:
        dtype = self.stage.policy.model.dtype
        if self.stage.run.is_main:
            most = largest_ratio_error(dtype)
            console.say(f"|ratio - 1| before the first update: {stats.ratio_error:.1e} (at most {most:.1e})")
        check_ratio(stats.ratio_error, dtype)


def experience(
    conditioning: Conditioning, trajectories: Sequence[Trajectory], collector: Collector[Trajectory]
) -> Experience:
    """The batches of this process, joined; none is fine."""
    drawing = collector.drawing
    assert isinstance(drawing, TrajectoryDrawing)
    steps, shape = len(drawing.schedule.timesteps), collector.policy.model.latent_shape
    latents = [torch.zeros(steps, 0, *shape), *(made.latents for made in trajectories)]
    log_probs = [torch.zeros(drawing.schedule.actions, 0), *(made.log_probs for made in trajectories)]
    return Experience(**vars(conditioning), latents=torch.cat(latents, 1), log_probs=torch.cat(log_probs, 1))
