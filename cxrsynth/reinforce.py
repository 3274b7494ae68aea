"""One stage of reinforcement learning, `rlcf` or `ddpo`: the loop, top to bottom."""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor

from cxrsynth import console
from cxrsynth.curves import draw_curves
from cxrsynth.diffusion.ace import SubspaceEmbedding
from cxrsynth.diffusion.model import DiffusionModel
from cxrsynth.diffusion.parallel import SamplingPool
from cxrsynth.diffusion.rollout import trajectory_schedule
from cxrsynth.errors import ModelError
from cxrsynth.evaluation import Evaluator, Judged, Verdict, as_row, hacking
from cxrsynth.held_out import open_evaluator
from cxrsynth.metrics import Metrics
from cxrsynth.policy.advantage import PromptStatistics, no_signal, to_advantage
from cxrsynth.policy.checkpoint import Learner, damage_told, load_best, load_checkpoint, save_checkpoint
from cxrsynth.policy.collect import BaselineCache, Case, Collector
from cxrsynth.policy.draws import Draw, draws
from cxrsynth.policy.optimizer import optimizer_groups, set_learning_rates
from cxrsynth.policy.policy import Policy, load_policy
from cxrsynth.policy.update import Updater, UpdateStats
from cxrsynth.recipe import DdpoStage, RlcfStage
from cxrsynth.rewards.feedback import Comparison, compare, spread
from cxrsynth.stopping import Stop
from cxrsynth.tune_run import TuneRun

# Rollout and update differ by rounding alone. Convolutions on a GPU round float32 as float16 does (TF32).
_COARSEST_FLOAT32 = torch.float16
_NEVER = -1
_STAGE_STRIDE = 1_000_003
_PROMPTS = 1024
# So many reports in a row of which a reward says nothing: it never will, and its share of the feedback is missing.
_SILENT_REPORTS = 100


@dataclass
class _Best:
    """The best evaluation so far by the judge; iteration -1: none yet."""

    iteration: int = _NEVER
    judge: float = float("-inf")
    tuning: float = 0.0


class Reinforcement:
    """A stage: its networks, its rewards, its judge, and where it stands."""

    def __init__(self, run: TuneRun, stage: RlcfStage | DdpoStage, index: int, *, checkpoint: str) -> None:
        self.run, self.stage, self.index = run, stage, index
        train = stage.train
        self.policy: Policy = load_policy(
            checkpoint,
            unet=train.unet,
            lora=train.lora,
            ace=train.ace_section,
            prompts=self._prompts,
            device=run.device,
            precision=run.precision,
            gradient_checkpointing=run.recipe.model.gradient_checkpointing,
            seed=run.recipe.seed,
        )
        self.optimizer = torch.optim.AdamW(optimizer_groups(self.policy, train), weight_decay=train.weight_decay)
        weights = self.policy.weights
        self.average = None if train.ema_decay is None else EMAModel(weights.values(), decay=train.ema_decay)
        averaged = None if self.average is None else dict(zip(weights, self.average.shadow_params, strict=True))
        ace = self.policy.model.ace
        fixed = {}
        if isinstance(ace, SubspaceEmbedding):
            # One for all: each process found it by itself, perhaps on other hardware.
            ace.basis.copy_(run.of_first(ace.basis))
            fixed["ace.basis"] = ace.basis
        self.learner = Learner(weights, self.optimizer, averaged, fixed)
        self.schedule = trajectory_schedule(self.policy.model, steps=stage.sampling.steps, eta=stage.sampling.eta)
        self.guidance = run.guidance(stage.sampling.guidance)
        self.suite = run.suite(stage)
        self.weights = {name: section.weight for name, section in stage.rewards.items() if section.weight > 0}
        self.statistics = PromptStatistics(size=stage.advantage.buffer, least=stage.advantage.least)
        self.cache = BaselineCache()
        self.case = run.cases(self.policy.model.fits)
        self.metrics = Metrics(run.folder.metrics)
        self.best = _Best()
        self.first = 0
        self.hacked = False
        self._silent: dict[str, set[str]] = {name: set() for name in self.suite.names}

    def __call__(self) -> None:
        """Iterate from where the stage stands to its end."""
        self._resume()
        batch = self.run.batch_size(self.stage.sampling)
        pool = SamplingPool(self.policy.model, batch_size=batch, threads_per_batch=1)
        with pool, console.tuning_view(self.stage.iterations, quiet=not self.run.is_main) as show, Stop() as stop:
            evaluator = self.evaluator(pool, batch)
            collector, updater = self.learners(pool, batch)
            self._draw_baseline(evaluator)
            for iteration in range(self.first, self.stage.iterations):
                if self.hacked:
                    break
                done = iteration + 1
                last = done == self.stage.iterations
                try:
                    row = self.iterate(iteration, collector, updater)
                    self._write(done, row)
                    show(done, row)
                    if done % self.run.recipe.evaluation.every == 0 or last:
                        self._evaluate(evaluator, done, show)
                except ModelError as error:
                    raise ModelError(f"iteration {done}: {error}") from None
                # All processes stop together, whoever was asked.
                stopped = bool(self.run.add_up(torch.tensor([float(stop.asked)])))
                if done % self.run.recipe.checkpoints.every == 0 or last or stopped or self.hacked:
                    self._save(done)
                if stopped:
                    raise KeyboardInterrupt

    def iterate(self, iteration: int, collector: Collector, updater: Updater) -> dict[str, Any]:
        """One iteration: sample, compare, learn. Returns its row of metrics."""
        started = time.monotonic()
        drawn = self.draws(iteration)
        cases = [self.case(self.run.training[draw.report]) for draw in drawn]
        experience, rewards = collector.policy_experience(iteration, drawn, cases)
        self._hear(rewards, cases)
        sampled = time.monotonic()
        baseline = self._baseline(collector, drawn, cases)
        feedback = self.feedback(rewards, baseline)
        compared = time.monotonic()
        ids = [case.report.report_id for case in cases]
        advantage = to_advantage(
            feedback,
            ids,
            self.statistics,
            weights=torch.tensor([self.weights[name] for name in self.suite.names]),
            clip=self.stage.advantage.clip,
            centre=self.stage.advantage.centre,
        )
        set_learning_rates(self.optimizer, self.stage.train.schedule, done=iteration / self.stage.iterations)
        stats = updater(experience, advantage, key=f"{self.run.recipe.seed} {self.index} {iteration}")
        if iteration == self.first:
            self._check_ratio(stats)
        times = {
            "time/rollout_s": sampled - started,
            "time/baseline_s": compared - sampled,
            "time/update_s": time.monotonic() - compared,
        }
        flat = {"feedback/no_signal": no_signal(feedback, ids), "images": len(drawn)}
        flat |= {f"learning_rate/{group['part']}": group["lr"] for group in self.optimizer.param_groups}
        return (
            self._row(rewards, baseline, feedback) | flat | {f"policy/{k}": v for k, v in asdict(stats).items()} | times
        )

    def _hear(self, rewards: Tensor, cases: Sequence[Case]) -> None:
        """A reward may have nothing to say of a report, but not of all of them."""
        most = min(_SILENT_REPORTS, len(self.run.training))
        for name, unknown in zip(self.suite.names, rewards.isnan().all(0).tolist(), strict=True):
            silent = self._silent[name]
            silent.update(case.report.report_id for case in cases) if unknown else silent.clear()
            if len(silent) >= most:
                raise ModelError(
                    f"report {cases[-1].report.report_id} and {len(silent) - 1} others before: reward {name} is not a"
                    " number\n  it needs reports that state what it judges, and a backend that works; to go on without"
                    " it leave it out, in a new folder"
                )

    @property
    def noise_seed(self) -> int:
        """Of reports' order and all noise: a later stage must not learn again what the one before was fitted to."""
        return self.run.recipe.seed + _STAGE_STRIDE * self.index

    def draws(self, iteration: int) -> list[Draw]:
        """The trajectories of an iteration."""
        pool = self.stage.comparison.pool if isinstance(self.stage, RlcfStage) else 1 << 30
        return draws(
            iteration,
            seed=self.noise_seed,
            reports=len(self.run.training),
            per_iteration=self.stage.reports_per_iteration,
            images=self.stage.images_per_report,
            pool=pool,
            mirrored=self.stage.mirrored,
        )

    def _prompts(self, model: DiffusionModel) -> list[str]:
        """Different prompts of training reports: as many as tell the directions of a subspace well."""
        case, count = self.run.cases(model.fits), len(self.run.training)
        places = random.Random(self.run.recipe.seed).sample(range(count), min(count, _PROMPTS))
        return list(dict.fromkeys(case(self.run.training[place]).prompt for place in places))

    def _baseline(self, collector: Collector, drawn: Sequence[Draw], cases: Sequence[Case]) -> Tensor | None:
        if not isinstance(self.stage, RlcfStage):
            return None
        return collector.baseline_rewards(drawn, cases, self.cache, images=self.stage.comparison.baseline_images)

    def feedback(self, rewards: Tensor, baseline: Tensor | None) -> Tensor:
        """Feedback [N, R]: the comparison, or without a baseline the rewards themselves; nan: cannot tell."""
        if baseline is None or not isinstance(self.stage, RlcfStage):
            return rewards
        section, scale = self.stage.comparison, spread(self.cache.everything())
        return compare(rewards, baseline, kind=Comparison(section.kind), scale=scale, beta=section.beta)

    def _row(self, rewards: Tensor, baseline: Tensor | None, feedback: Tensor) -> dict[str, Any]:
        row: dict[str, Any] = {}
        for column, name in enumerate(self.suite.names):
            row[f"reward/{name}/mean"] = float(rewards[:, column].nanmean())
            row[f"feedback/{name}/mean"] = float(feedback[:, column].nanmean())
            if baseline is not None:
                row[f"reward/{name}/baseline"] = float(baseline[:, column].nanmean())
        if baseline is not None:
            weights = torch.tensor([self.weights[name] for name in self.suite.names])
            total = feedback.nan_to_num(0.0) @ weights
            row["feedback/win_rate"] = float((0.5 + 0.5 * total.sign()).mean())
        return row

    def _check_ratio(self, stats: UpdateStats) -> None:
        """Rollout and update must agree on every log-probability, but for rounding, before anything is learned."""
        most = max(torch.finfo(dtype).eps for dtype in (self.policy.model.dtype, _COARSEST_FLOAT32))
        if self.run.is_main:
            console.say(f"|ratio - 1| before the first update: {stats.ratio_error:.1e} (at most {most:.1e})")
        if stats.ratio_error > most:
            raise ModelError(
                f"|ratio - 1| is {stats.ratio_error:.1e} before any update, expected at most {most:.1e}\n"
                "  rollout and update disagree by more than rounding: set model.precision: fp32, leave"
                " update.micro_batch out; if they still do, please report it"
            )

    def learners(self, pool: SamplingPool, batch: int) -> tuple[Collector, Updater]:
        """What samples and what learns, working on `pool` in batches of `batch`."""
        return self._collector(pool, batch), self._updater(pool, batch)

    def _collector(self, pool: SamplingPool, batch: int) -> Collector:
        return Collector(
            self.policy,
            self.suite,
            schedule=self.schedule,
            guidance=self.guidance,
            batch_size=batch,
            seed=self.noise_seed,
            pool=pool,
            group=self.run.group,
        )

    def _updater(self, pool: SamplingPool, batch: int) -> Updater:
        average = self.average
        return Updater(
            self.policy,
            self.optimizer,
            schedule=self.schedule,
            settings=self.stage.update,
            guidance=self.guidance,
            micro_batch=self.stage.update.micro_batch or batch,
            pool=pool,
            add_up=self.run.add_up,
            after_step=(lambda: None) if average is None else lambda: average.step(self.policy.weights.values()),
        )

    def evaluator(self, pool: SamplingPool, batch: int) -> Evaluator:
        """The judge on held-out reports, working on `pool` in batches of `batch`."""
        return open_evaluator(self.run, self.suite, self.weights, case=self.case, pool=pool, batch=batch)

    @contextmanager
    def evaluated(self) -> Iterator[DiffusionModel]:
        """The policy with its averaged weights, where it has them."""
        if self.average is None:
            yield self.policy.model
            return
        weights = list(self.policy.weights.values())
        self.average.store(weights)
        self.average.copy_to(weights)
        try:
            yield self.policy.model
        finally:
            self.average.restore(weights)

    def _draw_baseline(self, evaluator: Evaluator) -> Judged:
        """The baseline's images of held-out reports, and what was said of them."""
        return evaluator.baseline(self.policy.baseline, self.run.folder.baseline_images / f"{self.index}.safetensors")

    def _evaluate(self, evaluator: Evaluator, iteration: int, show: Callable[[int, dict[str, Any]], None]) -> None:
        """Judge the policy; `hacked` is set where the recipe wants a hacked reward to end the stage."""
        baseline = self._draw_baseline(evaluator)
        with self.evaluated() as model:
            judged = evaluator.judged(model)
        verdict = evaluator.verdict(judged, baseline)
        row = as_row(verdict)
        alarm = self._alarm(verdict)
        if self.run.is_main:
            self._write(iteration, row | {"evaluation/hacking": float(alarm is not None)})
            self._leave_sheet(evaluator, judged, baseline, iteration)
        show(iteration, row)
        if verdict.judge > self.best.judge:
            self.best = _Best(iteration, verdict.judge, verdict.tuning)
            if self.run.is_main:
                self._save_to(self.run.folder.best(self.index), iteration)
        if alarm is not None:
            self.hacked = self.run.recipe.evaluation.on_hacking == "stop"
            if self.run.is_main:
                console.warn(alarm + ("\n  the stage ends here, as evaluation.on_hacking says" if self.hacked else ""))

    def _alarm(self, verdict: Verdict) -> str | None:
        """Whether the judge falls while the reward rises, against the best evaluation (or the baseline, at zero)."""
        return hacking(
            verdict,
            judge=max(self.best.judge, 0.0),
            tuning=self.best.tuning if self.best.judge > 0 else 0.0,
            margin=self.run.recipe.evaluation.hacking_margin,
        )

    def _leave_sheet(self, evaluator: Evaluator, judged: Judged, baseline: Judged, iteration: int) -> None:
        if pairs := self.run.recipe.evaluation.sheet:
            sheet = evaluator.sheet(judged, baseline, pairs=pairs)
            sheet.save(self.run.folder.sheets / f"{self.index}-{iteration:06d}.png")
        draw_curves(self.metrics.rows(), self.run.folder.curves)

    def _write(self, iteration: int, row: dict[str, Any]) -> None:
        if self.run.is_main:
            self.metrics.write({"stage": self.index, "iteration": iteration} | row)
            numbers = {name: value for name, value in row.items() if isinstance(value, float)}
            self.run.track(numbers, stage=self.index, iteration=iteration)

    def _state(self, iteration: int) -> dict[str, Any]:
        return {
            "stage": self.index,
            "iteration": iteration,
            "statistics": self.statistics.state(),
            "baseline": [[*key, row] for key, row in sorted(self.cache.rows.items())],
            "best": asdict(self.best),
            "hacked": self.hacked,
            "ema_steps": None if self.average is None else self.average.optimization_step,
        }

    def _save(self, iteration: int) -> None:
        """A checkpoint, and the oldest dropped."""
        if self.run.is_main:
            self._save_to(self.run.folder.checkpoint(self.index, iteration), iteration)
            self.run.folder.rotate(self.index, keep=self.run.recipe.checkpoints.keep)
        self.run.wait()

    def _save_to(self, folder: Path, iteration: int) -> None:
        save_checkpoint(folder, self.learner, self._state(iteration))

    def _resume(self) -> None:
        """Go on from the newest checkpoint of this stage, if there is one."""
        newest = self.run.folder.newest(self.index)
        if newest is not None:
            state = load_checkpoint(newest, self.learner)
            with damage_told(newest):
                self.first = int(state["iteration"])
                self.statistics.load(state["statistics"])
                self.cache.rows = {(report_id, start): row for report_id, start, row in state["baseline"]}
                self.best = _Best(**state["best"])
                self.hacked = bool(state["hacked"])
                if self.average is not None:
                    self.average.optimization_step = int(state["ema_steps"])
            if self.run.is_main:
                console.say(f"going on after iteration {self.first} of {self.stage.iterations}")
        if self.run.is_main:
            # An evaluation after the last checkpoint's iteration is drawn again, one at it is not.
            self.metrics.cut(stage=self.index, iteration=self.first)
        self.run.wait()

    def take_best(self) -> int:
        """Put the best weights by the judge in place; returns their iteration.

        Raises:
            ModelError: if they cannot be read.
        """
        folder = self.run.folder.best(self.index)
        if not folder.is_dir():
            if self.run.is_main:
                console.warn(f"{folder} is not there: the model gets the weights of the last iteration")
            if self.average is not None:
                self.average.copy_to(self.policy.weights.values())
            return self.stage.iterations
        taken = load_best(folder, self.policy.weights)
        if self.best.judge <= 0 and self.run.is_main:
            console.warn("no checkpoint is above the baseline by the judge: the model is not better than its start")
        return taken
