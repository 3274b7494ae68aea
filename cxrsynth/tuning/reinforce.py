"""RLCF, reinforcement learning with comparative feedback (Han et al., MICCAI 2024, arXiv:2403.06516); `ddpo` as well.

    baseline, old <- frozen copies of the policy
    for every iteration:
        reports <- in shuffled order, several images each, by any sampler, under the weights `old`
        rewards <- every reward model scores the images                                      # [N, R]
        baseline rewards <- the same for K images of the frozen baseline a report            # [N, K, R], cached
        r <- probability that an image beats one of the baseline's, mean over rewards        # [N] in [0, 1]
        r <- r - mean r of the report's other images + 1/2, within [0, 1]
        for every minibatch of (image x_0, noise level t):
            x_t, target <- noise x_0 again; what a perfect prediction would be
            positive, negative <- old -/+ strength * (old - prediction)
            descend r |positive - target|^2 + (1 - r) |negative - target|^2 + kl_weight |prediction - baseline|^2
        old <- decay * old + (1 - decay) * policy
    every few iterations, an independent evaluator compares policy and baseline on held-out reports, on the same noise
    at the end, it does so once on test reports, with the weights that were best on held-out reports

That is `objective: forward` (tuning/forward.py). `objective: policy_gradient` (tuning/policy_gradient.py) is the
published method: trajectories, log-probabilities of their steps, clipped ratios.

How `forward` differs from DiffusionNFT (Zheng et al., arXiv:2509.16117), whose loss it is:
1. An image is scored by how often it beats the frozen baseline's images of the same report. That is bounded: where
   the baseline is beaten, images hardly differ any more, and nothing pushes. What is learned from is its difference
   from the report's other images (`comparison.centre`), as in a group. `comparison.kind: group` and the stage `ddpo`
   compare the rewards themselves within the group.
2. Several rewards, each compared by itself, so that none outweighs another by its unit.
3. The error is that of the velocity, whatever the network predicts; DiffusionNFT has flow matching models only.
4. The condition can be an action too: each image may shift its adaptive condition embedding (ACE), both ways in pairs.
5. The best weights by an evaluator that never trains are kept; reward hacking raises an alarm.

How it differs from DDPO (Black et al., arXiv:2305.13301) and GRPO (Shao et al., arXiv:2402.03300; simplified in
nanochat's chat_rl):
1. No likelihoods: no ratio, no clipping, no step noise, and samplers that have none of it are allowed.
2. Bad images teach too, in the same loss: the prediction is pushed away from them.
3. On-policy only in so far as `old` keeps up with the policy; the loss holds the policy near `old` by itself.
4. The distance to the baseline is one of predictions; GRPO estimates a KL divergence from samples (chat_rl has none).

Constants that are not on public record are ours.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from cxrsynth import console
from cxrsynth.console import counted
from cxrsynth.diffusion.ace import SubspaceEmbedding
from cxrsynth.diffusion.parallel import SamplingPool
from cxrsynth.diffusion.resolve import ResolvedModel
from cxrsynth.errors import ModelError
from cxrsynth.recipe.schema import DdpoStage, RlcfStage
from cxrsynth.rl.checkpoint import load_best
from cxrsynth.runtime.files import open_atomically
from cxrsynth.runtime.interrupt import Stop
from cxrsynth.tuning.best import BestSoFar
from cxrsynth.tuning.evaluator import Evaluator, open_evaluator
from cxrsynth.tuning.export import Trained
from cxrsynth.tuning.forward import Forward
from cxrsynth.tuning.model_card import reinforcement_card
from cxrsynth.tuning.policy_gradient import PolicyGradient
from cxrsynth.tuning.policy_stage import Iterate, open_policy_stage
from cxrsynth.tuning.run import TuneRun
from cxrsynth.tuning.stage import StageProgress
from cxrsynth.tuning.stalled import WINDOW, stalled_rewards
from cxrsynth.tuning.verdict import TEST, EvaluatedImages

Show = Callable[[int, dict[str, Any]], None]


class Reinforcement:
    """A stage `rlcf` or `ddpo`: the policy, its rewards, and what is remembered from iteration to iteration."""

    def __init__(self, run: TuneRun, section: RlcfStage | DdpoStage, index: int, *, checkpoint: ResolvedModel) -> None:
        self.run, self.section, self.index = run, section, index
        self.stage = open_policy_stage(run, section, index, checkpoint=checkpoint)
        self.policy = self.stage.policy
        self.objective = Forward(self.stage) if section.objective == "forward" else PolicyGradient(self.stage)
        self.best = BestSoFar()
        ace = self.policy.model.ace
        basis = {"ace.basis": ace.basis} if isinstance(ace, SubspaceEmbedding) else {}
        self.progress = StageProgress(
            run,
            index,
            self.policy.weights,
            self.stage.optimizer,
            ema_decay=section.train.ema_decay,
            beside={**basis, **self.objective.beside},
            remembered={**self.objective.remembered, "silent": self.stage.silent, "best": self.best},
        )

    def train(self) -> None:
        """Iterate from where the stage stands to its end. Raises as `Stage.train` does."""
        total, save_every = self.section.iterations, self.run.recipe.checkpoints.every
        self.progress.resume(total, "iteration")
        with self.pool() as pool, console.tuning_view(total, quiet=not self.run.is_main) as show, Stop() as stop:
            evaluator, iterate = self.evaluator(pool), self.opened(pool)
            with _named(f"before iteration {self.progress.first + 1}"):
                baseline = self.baseline_images(evaluator)
                if self.run.tested_stage == self.index:
                    evaluator.check_reports([self.stage.example(report) for report in self.run.test], baseline.images)
            self._repeat_lost_evaluation(evaluator, show)
            for iteration in self.progress.iterations(
                total, save_every=save_every, stop=stop, ended=lambda: self.best.ends_stage
            ):
                done = iteration + 1
                with _named(f"iteration {done}"):
                    row = iterate(iteration)
                    self.progress.write(done, row)
                    show(done, row)
                    self._name_stalled_rewards(done)
                    if self._evaluation_is_due(done):
                        if done % save_every == 0 or done == total:
                            self.progress.save(done)  # a kill during a long evaluation must not lose the iterations
                        self.evaluate(evaluator, done, show)
        self.progress.draw(now=True)

    def opened(self, pool: SamplingPool) -> Iterate:
        """A function that runs iterations, counted from 0: sample, compare, learn. It returns a row of metrics."""
        return self.objective.opened(pool, after_step=self.progress.average, first=self.progress.first)

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
        if alarm is not None:
            # Not before: who goes on from the best checkpoint with other settings must not be stopped at once.
            self.best.hacked = section.on_hacking == "stop"
            if self.run.is_main:
                console.warn(alarm)
        if not self.best.hacked and (tired := self.best.out_of_patience(section)) is not None and self.run.is_main:
            console.say(tired)
        self.run.wait()  # the best checkpoint must be there before another process reads it

    def _name_stalled_rewards(self, done: int) -> None:
        """After every window of iterations, so that a run that was resumed says the same."""
        if not self.run.is_main or done % WINDOW:
            return
        rows = [row for row in self.progress.metrics.rows() if row["stage"] == self.index and _is_iteration(row)]
        if (found := stalled_rewards(rows)) is not None:
            console.warn(found)

    def _evaluation_is_due(self, done: int) -> bool:
        return done > 0 and (done % self.run.recipe.evaluation.every == 0 or done == self.section.iterations)

    def _repeat_lost_evaluation(self, evaluator: Evaluator, show: Show) -> None:
        """Evaluate where the run resumes, if it was killed between that checkpoint and the end of its evaluation."""
        done = self.progress.first
        if self._evaluation_is_due(done) and self.best.evaluated < done:
            if self.run.is_main:
                self.progress.metrics.drop_evaluation(stage=self.index, iteration=done)
            with _named(f"iteration {done}"):
                self.evaluate(evaluator, done, show)

    def result(self) -> Trained:
        """The model with its best weights by the evaluator.

        Raises:
            ModelError: if they cannot be read.
        """
        folder = self.run.folder.best(self.index)
        if folder.is_dir():
            self.best.iteration = load_best(
                folder, self.policy.weights, averaged=self.section.train.ema_decay is not None
            )
            if self.best.evaluator <= 0 and self.run.is_main:
                console.warn(
                    "no checkpoint is above the baseline by the evaluator: the model is not better than its start"
                )
        else:
            if self.run.is_main:
                console.warn(f"{folder} is missing: the model gets the weights of the last iteration")
            self.progress.keep_averaged()
        return Trained(self.policy.model, self.policy.weights, adapters=self.section.train.unet == "lora")

    def test(self) -> None:
        """As `Stage.test`: in the last stage of its kind, compare the result with the baseline on test reports.

        Nothing was chosen by them; the row is for the card. A run that was killed here comes here again.
        """
        run, metrics = self.run, self.progress.metrics
        if run.tested_stage != self.index:
            return
        if run.is_main:
            metrics.drop_test(stage=self.index)
            console.say(f"testing on {counted(len(run.test), 'report')} that nothing was chosen by")
        run.wait()
        with self.pool() as pool:
            evaluator = self.evaluator(pool, test=True)
            try:
                images = evaluator.evaluate(self.policy.model)
                cache = run.folder.baseline_images / f"{self.index}-test.safetensors"
                verdict = evaluator.verdict(images, evaluator.baseline(self.policy.baseline, cache))
            except ModelError as error:
                raise ModelError(f"{error}\n  --export writes the trained model without a test") from None
        self.progress.write(self.best.evaluated or self.section.iterations, verdict.as_row(TEST))
        if run.is_main:
            console.say(f"on test reports: {verdict.summary}")

    def card(self) -> str:
        """Text of the model card."""
        folder = self.run.folder.best(self.index)
        return reinforcement_card(self.run, self, self.best.iteration if folder.is_dir() else self.progress.done)

    def pool(self) -> SamplingPool:
        """Threads that batches run on; a context."""
        return SamplingPool(self.policy.model, batch_size=self.stage.batch_size, threads_per_batch=1)

    def evaluator(self, pool: SamplingPool, *, test: bool = False) -> Evaluator:
        """The independent evaluator on held-out or test reports, working on `pool`."""
        stage = self.stage
        return open_evaluator(
            self.run, stage.suite, stage.weights, case=stage.example, pool=pool, batch=stage.batch_size, test=test
        )

    def baseline_images(self, evaluator: Evaluator) -> EvaluatedImages:
        """The baseline's images of held-out reports and their scores, sampled once a run."""
        return evaluator.baseline(self.policy.baseline, self.run.folder.baseline_images / f"{self.index}.safetensors")


def _is_iteration(row: Mapping[str, Any]) -> bool:
    """Whether a row of metrics is of an iteration, not of an evaluation."""
    return any(name.startswith("reward/") for name in row)


@contextmanager
def _named(when: str) -> Iterator[None]:
    """Errors name the iteration."""
    try:
        yield
    except ModelError as error:
        raise ModelError(f"{when}: {error}") from None
