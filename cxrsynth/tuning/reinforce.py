"""RLCF, reinforcement learning with comparative feedback (Han et al., MICCAI 2024, arXiv:2403.06516); `ddpo` as well.

    baseline <- frozen copy of the policy
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
    every few iterations, an independent evaluator compares policy and baseline on held-out reports, on the same noise

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

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch

from cxrsynth import console
from cxrsynth.diffusion.ace import SubspaceEmbedding
from cxrsynth.diffusion.ddim import DDIMSchedule
from cxrsynth.diffusion.model import DiffusionModel
from cxrsynth.diffusion.parallel import SamplingPool
from cxrsynth.diffusion.resolve import ResolvedModel
from cxrsynth.diffusion.rollout import trajectory_schedule
from cxrsynth.errors import ModelError
from cxrsynth.recipe.schema import DdpoStage, RlcfStage
from cxrsynth.rewards.base import RewardSuite
from cxrsynth.rl.advantage import PromptStatistics, no_signal, to_advantage
from cxrsynth.rl.checkpoint import load_best
from cxrsynth.rl.checks import SilentRewards, check_ratio, largest_ratio_error
from cxrsynth.rl.optimizer import optimizer_groups, set_learning_rates
from cxrsynth.rl.policy import Policy, load_policy
from cxrsynth.rl.rollout_spec import RolloutSpec, rollout_specs
from cxrsynth.rl.rollouts import Collector
from cxrsynth.rl.update import Updater, UpdateStats
from cxrsynth.runtime.files import open_atomically
from cxrsynth.runtime.interrupt import Stop
from cxrsynth.tuning.best import BestSoFar
from cxrsynth.tuning.evaluator import Evaluator, open_evaluator
from cxrsynth.tuning.export import Trained
from cxrsynth.tuning.feedback import Comparer
from cxrsynth.tuning.model_card import reinforcement_card
from cxrsynth.tuning.run import TuneRun
from cxrsynth.tuning.stage import StageProgress
from cxrsynth.tuning.verdict import EvaluatedImages

_UNLIMITED = 1 << 30
_PROMPTS = 1024  # enough different prompts to find the directions of a subspace

Show = Callable[[int, dict[str, Any]], None]


class Reinforcement:
    """A stage `rlcf` or `ddpo`: the policy, its rewards, and what is remembered from iteration to iteration."""

    def __init__(self, run: TuneRun, section: RlcfStage | DdpoStage, index: int, *, checkpoint: ResolvedModel) -> None:
        self.run, self.section, self.index = run, section, index
        self.policy, self.optimizer = _open_policy(run, section, checkpoint)
        self.example = run.prompt_examples(self.policy.model.fits)
        self.compare = Comparer(section)
        self.statistics = PromptStatistics(size=section.advantage.buffer, least=section.advantage.min_count)
        self.silent = SilentRewards(self.suite.names, len(run.training))
        self.best = BestSoFar()
        ace = self.policy.model.ace
        self.progress = StageProgress(
            run,
            index,
            self.policy.weights,
            self.optimizer,
            ema_decay=section.train.ema_decay,
            fixed={"ace.basis": ace.basis} if isinstance(ace, SubspaceEmbedding) else None,
            remembered={
                "statistics": self.statistics,
                "baseline": self.compare.cache,
                "silent": self.silent,
                "best": self.best,
            },
        )

    def train(self) -> None:
        """Iterate from where the stage stands to its end. Raises as `Stage.train` does."""
        total, save_every = self.section.iterations, self.run.recipe.checkpoints.every
        self.progress.resume(total, "iteration")
        with self.pool() as pool, console.tuning_view(total, quiet=not self.run.is_main) as show, Stop() as stop:
            evaluator, (collector, updater) = self.evaluator(pool), self.learners(pool)
            self.baseline_images(evaluator)
            self._repeat_lost_evaluation(evaluator, show)
            for iteration in self.progress.iterations(
                total, save_every=save_every, stop=stop, ended=lambda: self.best.hacked
            ):
                done = iteration + 1
                with _named(done):
                    row = self.iterate(iteration, collector, updater)
                    self.progress.write(done, row)
                    show(done, row)
                    if self._evaluation_is_due(done):
                        if done % save_every == 0 or done == total:
                            self.progress.save(done)  # a kill during a long evaluation must not lose the iterations
                        self.evaluate(evaluator, done, show)

    def iterate(self, iteration: int, collector: Collector, updater: Updater) -> dict[str, Any]:
        """One iteration, counted from 0: sample, compare, learn. Returns its row of metrics."""
        started = time.monotonic()
        specs = self.rollout_specs(iteration)  # N trajectories
        examples = [self.example(self.run.training[spec.report]) for spec in specs]
        ids = [example.report.report_id for example in examples]

        experience, rewards = collector.policy_experience(iteration, specs, examples)  # rewards [N, R]
        self.silent.check(rewards, ids)
        sampled = time.monotonic()
        baseline = self.compare.baseline_rewards(collector, specs, examples)  # same x_T, own step noise; [N, R]
        feedback = self.compare(rewards, baseline)
        compared = time.monotonic()

        section, weights = self.section.advantage, torch.tensor(list(self.weights.values()))
        advantage = to_advantage(
            feedback.values, ids, self.statistics, weights=weights, clip=section.clip, centre=section.centre
        )  # [N]
        set_learning_rates(self.optimizer, self.section.train.schedule, done=iteration / self.section.iterations)
        stats = updater(experience, advantage, key=f"{self.run.recipe.seed} {self.index} {iteration}")
        if iteration == self.progress.first:
            self._check_ratio(stats)
        return (
            feedback.row(self.suite.names, weights)
            | {"feedback/no_signal": no_signal(feedback.values, ids), "images": len(specs)}
            | {f"learning_rate/{group['part']}": group["lr"] for group in self.optimizer.param_groups}
            | {f"policy/{name}": value for name, value in asdict(stats).items()}
            | {"time/rollout_s": sampled - started, "time/baseline_s": compared - sampled}
            | {"time/update_s": time.monotonic() - compared}
        )

    def evaluate(self, evaluator: Evaluator, iteration: int, show: Show) -> None:
        """Compare policy and baseline on held-out reports, keep the best weights, watch for reward hacking."""
        baseline, section = self.baseline_images(evaluator), self.run.recipe.evaluation
        with self.progress.averaged():
            images = evaluator.evaluate(self.policy.model)
        verdict = evaluator.verdict(images, baseline)
        row, alarm = verdict.as_row(), self.best.alarm(verdict, section)
        self.progress.write(iteration, row | {"evaluation/hacking": float(alarm is not None)})
        show(iteration, row)
        if self.run.is_main:
            if section.sheet:
                sheet = evaluator.sheet(images, baseline, pairs=section.sheet)
                with open_atomically(self.run.folder.sheets / f"{self.index}-{iteration:06d}.png") as file:
                    sheet.save(file, "PNG")
            self.progress.draw()
        if self.best.replaced_by(verdict, iteration):
            self.progress.save_best(iteration)
        if alarm is not None and self.run.is_main:
            console.warn(alarm)

    def _evaluation_is_due(self, done: int) -> bool:
        return done > 0 and (done % self.run.recipe.evaluation.every == 0 or done == self.section.iterations)

    def _repeat_lost_evaluation(self, evaluator: Evaluator, show: Show) -> None:
        """Evaluate where the run resumes, if it was killed between that checkpoint and the end of its evaluation."""
        done = self.progress.first
        if self._evaluation_is_due(done) and self.best.evaluated < done:
            if self.run.is_main:
                self.progress.metrics.drop_evaluation(stage=self.index, iteration=done)
            with _named(done):
                self.evaluate(evaluator, done, show)

    def result(self) -> Trained:
        """The model with its best weights by the evaluator.

        Raises:
            ModelError: if they cannot be read.
        """
        folder = self.run.folder.best(self.index)
        if folder.is_dir():
            self.best.iteration = load_best(folder, self.policy.weights)
            if self.best.evaluator <= 0 and self.run.is_main:
                console.warn(
                    "no checkpoint is above the baseline by the evaluator: the model is not better than its start"
                )
        else:
            if self.run.is_main:
                console.warn(f"{folder} is missing: the model gets the weights of the last iteration")
            self.progress.keep_averaged()
        return Trained(self.policy.model, self.policy.weights, adapters=self.section.train.unet == "lora")

    def card(self) -> str:
        """Text of the model card."""
        folder = self.run.folder.best(self.index)
        return reinforcement_card(self.run, self, self.best.iteration if folder.is_dir() else self.section.iterations)

    @property
    def suite(self) -> RewardSuite:
        """The rewards that tune."""
        return self.run.loaded.rewards[self.index]

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each reward, in the order of `suite`."""
        return {name: self.section.rewards[name].weight for name in self.suite.names}

    @property
    def schedule(self) -> DDIMSchedule:
        """Denoising steps of the rollouts."""
        return trajectory_schedule(self.policy.model, steps=self.section.sampling.steps, eta=self.section.sampling.eta)

    @property
    def guidance(self) -> float:
        """Classifier-free guidance scale of the rollouts."""
        return self.run.guidance(self.section.sampling.guidance)

    def rollout_specs(self, iteration: int) -> list[RolloutSpec]:
        """The trajectories of an iteration."""
        return rollout_specs(
            iteration,
            seed=self.run.stage_seed(self.index),
            reports=len(self.run.training),
            per_iteration=self.section.reports_per_iteration,
            images=self.section.images_per_report,
            pool=self.section.comparison.pool if isinstance(self.section, RlcfStage) else _UNLIMITED,
            mirrored=self.section.mirrored,
        )

    def pool(self) -> SamplingPool:
        """Threads that batches run on; a context."""
        batch_size = self.run.batch_size(self.section.sampling)
        return SamplingPool(self.policy.model, batch_size=batch_size, threads_per_batch=1)

    def learners(self, pool: SamplingPool) -> tuple[Collector, Updater]:
        """What samples and what updates, both working on `pool`."""
        batch_size = self.run.batch_size(self.section.sampling)
        schedule, guidance = self.schedule, self.guidance
        collector = Collector(
            self.policy,
            self.suite,
            schedule=schedule,
            guidance=guidance,
            batch_size=batch_size,
            seed=self.run.stage_seed(self.index),
            pool=pool,
            group=self.run.group,
        )
        updater = Updater(
            self.policy,
            self.optimizer,
            schedule=schedule,
            settings=self.section.update,
            guidance=guidance,
            micro_batch=self.section.update.micro_batch or batch_size,
            pool=pool,
            add_up=self.run.add_up,
            after_step=self.progress.average,
        )
        return collector, updater

    def evaluator(self, pool: SamplingPool) -> Evaluator:
        """The independent evaluator on held-out reports, working on `pool`."""
        batch_size = self.run.batch_size(self.section.sampling)
        return open_evaluator(self.run, self.suite, self.weights, case=self.example, pool=pool, batch=batch_size)

    def baseline_images(self, evaluator: Evaluator) -> EvaluatedImages:
        """The baseline's images of held-out reports and their scores, sampled once a run."""
        return evaluator.baseline(self.policy.baseline, self.run.folder.baseline_images / f"{self.index}.safetensors")

    def _check_ratio(self, stats: UpdateStats) -> None:
        dtype = self.policy.model.dtype
        if self.run.is_main:
            most = largest_ratio_error(dtype)
            console.say(f"|ratio - 1| before the first update: {stats.ratio_error:.1e} (at most {most:.1e})")
        check_ratio(stats.ratio_error, dtype)


@contextmanager
def _named(iteration: int) -> Iterator[None]:
    """Errors name the iteration."""
    try:
        yield
    except ModelError as error:
        raise ModelError(f"iteration {iteration}: {error}") from None


def _open_policy(
    run: TuneRun, section: RlcfStage | DdpoStage, checkpoint: ResolvedModel
) -> tuple[Policy, torch.optim.Optimizer]:
    """The policy in `checkpoint` and the optimizer of its weights."""

    def prompts(model: DiffusionModel) -> list[str]:
        """Different prompts of training reports."""
        example, count = run.prompt_examples(model.fits), len(run.training)
        places = random.Random(run.recipe.seed).sample(range(count), min(count, _PROMPTS))
        return list(dict.fromkeys(example(run.training[place]).prompt for place in places))

    train = section.train
    policy = load_policy(
        checkpoint,
        unet=train.unet,
        lora=train.lora,
        ace=train.ace_section,
        prompts=prompts,
        device=run.device,
        precision=run.precision,
        gradient_checkpointing=run.recipe.model.gradient_checkpointing,
        seed=run.recipe.seed,
    )
    if isinstance(policy.model.ace, SubspaceEmbedding):
        # Every process has computed the basis, perhaps on other hardware: all take the first one's.
        policy.model.ace.basis.copy_(run.of_first(policy.model.ace.basis))
    return policy, torch.optim.AdamW(optimizer_groups(policy, train), weight_decay=train.weight_decay)
