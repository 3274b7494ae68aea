"""`python -m tests.benchmarks.tune_speed`: trajectories a second of `cxrsynth tune`, against a plain DDPO loop.

Both tune the whole UNet of nano on the same reports, DDIM steps, guidance and rewards. The plain loop is written from
the published algorithm (DDPO, arXiv:2305.13301, algorithm 1, with the comparison of CXRL, arXiv:2403.06516): float32,
one timestep an update pass, guidance by two forward passes, texts encoded and the baseline sampled anew every time.
Ours runs bf16, batches in parallel, guidance in one pass, half the timesteps of each trajectory, and caches the
baseline's rewards. The two take turns, so that other work on the machine slows both.
"""

import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
import yaml
from torch import Tensor

from cxrsynth import console
from cxrsynth.diffusion.ddim import step_log_prob, step_mean, step_std
from cxrsynth.diffusion.model import DiffusionModel, load_model
from cxrsynth.diffusion.resolve import resolve_model
from cxrsynth.diffusion.rollout import trajectory_schedule
from cxrsynth.diffusion.sampler import decode_latents
from cxrsynth.rewards.base import RewardSuite
from cxrsynth.rl.rollouts import PromptExample
from cxrsynth.settings import Precision, TuneSettings
from cxrsynth.tuning.reinforce import Reinforcement
from cxrsynth.tuning.setup import open_tune

_REPORTS = Path(__file__).resolve().parents[2] / "recipes" / "nano-reports.csv"
_STEPS, _GUIDANCE, _CLIP = 10, 2.0, 1e-4


def main(reports: int = 4, images: int = 4, rounds: int = 3, batch: Annotated[int, typer.Option()] = 4) -> None:
    """Print trajectories a second of both, and their ratio."""
    with tempfile.TemporaryDirectory() as folder:
        stage = open_stage(Path(folder), reports=reports, images=images)
        cases = [stage.stage.example(report) for report in stage.run.training[:reports] for _ in range(images)]
        plain = PlainLoop(stage.stage.suite, batch=batch)
        ours = our_iterations(stage)
        times: dict[str, list[float]] = {"plain loop": [], "cxrsynth tune": []}
        ours()  # the first pass fills the cache of the baseline's rewards, as every later one finds it
        for _ in range(rounds):
            for name, run in (("plain loop", lambda: plain(cases)), ("cxrsynth tune", ours)):
                started = time.monotonic()
                run()
                times[name].append(time.monotonic() - started)
        count = reports * images
        speeds = {name: count / statistics.median(values) for name, values in times.items()}
        for name, speed in speeds.items():
            console.say(f"{name}: {speed:.3f} trajectories/s")
        console.say(f"ratio: {speeds['cxrsynth tune'] / speeds['plain loop']:.2f}")


def open_stage(folder: Path, *, reports: int, images: int) -> Reinforcement:
    """A stage on nano whose iterations all take the same reports."""
    recipe = {
        "model": {"checkpoint": "nano", "device": "cpu"},
        "reports": {"table": str(_REPORTS), "limit": reports + 2, "held_out": 2, "test": 0},
        "stages": [
            {
                "stage": "rlcf",
                "objective": "policy_gradient",
                "iterations": 1000,
                "reports_per_iteration": reports,
                "images_per_report": images,
                "train": {"unet": "full", "ace": False},
                "sampling": {"steps": _STEPS, "guidance": _GUIDANCE},
                "comparison": {"pool": images},
                "update": {"num_minibatches": 2, "timestep_fraction": 0.5, "clip_range": _CLIP},
            }
        ],
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    run = open_tune(TuneSettings(recipe=path, out=folder / "run"))
    return Reinforcement(run, run.recipe.stages[0], 0, checkpoint=resolve_model("nano"))  # type: ignore[arg-type]


def our_iterations(stage: Reinforcement) -> Callable[[], object]:
    """Each call is the next iteration of `tune`, without evaluation or checkpoint."""
    iterate = stage.opened(stage.pool())
    counter = iter(range(1000))
    return lambda: iterate(next(counter))


class PlainLoop:
    """One iteration a call: sample policy and baseline, score, compare, and update on every timestep."""

    def __init__(
        self,
        suite: RewardSuite,
        *,
        batch: int,
        weights: Tensor | None = None,
        learning_rate: float = 1e-5,
        seed: int = 0,
    ) -> None:
        self.model: DiffusionModel = load_model(
            resolve_model("nano"), device=torch.device("cpu"), precision=Precision.FP32
        )
        self.baseline = copy.deepcopy(self.model.denoiser)
        self.model.denoiser.requires_grad_(True)
        self.optimizer = torch.optim.AdamW(self.model.denoiser.parameters(), lr=learning_rate)
        self.schedule = trajectory_schedule(self.model, steps=_STEPS, eta=1.0)
        self.suite, self.batch = suite, batch
        self.noise = torch.Generator().manual_seed(seed)
        self.weights = torch.ones(len(suite.names)) if weights is None else weights

    def __call__(self, cases: list[PromptExample]) -> None:
        parts = [cases[first : first + self.batch] for first in range(0, len(cases), self.batch)]
        trajectories, feedback = [], []
        for part in parts:
            latents, log_probs, rewards = self._sample(self.model.denoiser, part)
            _, _, others = self._sample(self.baseline, part)
            trajectories.append((part, latents, log_probs))
            feedback.append((rewards - others).nan_to_num(0.0) @ self.weights)
        every = torch.cat(feedback)
        advantage = ((every - every.mean()) / (every.std() + 1e-8)).split(self.batch)
        for place, ((part, latents, log_probs), own) in enumerate(zip(trajectories, advantage, strict=True)):
            for step in range(self.schedule.actions):
                places = torch.full((len(part),), step)
                mean = self._mean(self.model.denoiser, part, latents[step], step)
                log_prob = step_log_prob(latents[step + 1], mean, step_std(self.schedule, places))
                ratio = (log_prob - log_probs[step]).exp()
                loss = torch.maximum(-own * ratio, -own * ratio.clamp(1 - _CLIP, 1 + _CLIP)).mean()
                loss.backward()  # type: ignore[no-untyped-call]
            if place + 1 in (len(parts) // 2, len(parts)):
                torch.nn.utils.clip_grad_norm_(self.model.denoiser.parameters(), 1.0)
                self.optimizer.step()
                self.optimizer.zero_grad()

    @torch.no_grad()
    def _sample(self, unet: torch.nn.Module, part: list[PromptExample]) -> tuple[list[Tensor], list[Tensor], Tensor]:
        latents = [torch.randn(len(part), *self.model.latent_shape, generator=self.noise)]
        log_probs = []
        for step in range(self.schedule.actions):
            places = torch.full((len(part),), step)
            mean, std = self._mean(unet, part, latents[-1], step), step_std(self.schedule, places)
            latents.append(mean + std * torch.randn(mean.shape, generator=self.noise))
            log_probs.append(step_log_prob(latents[-1], mean, std))
        images = decode_latents(self.model, self._mean(unet, part, latents[-1], self.schedule.actions))
        return latents, log_probs, self.suite(images, [case.report for case in part]).values

    def _mean(self, unet: torch.nn.Module, part: list[PromptExample], latents: Tensor, step: int) -> Tensor:
        with torch.no_grad():
            text, empty = (
                self.model.encode(prompts)[0].text for prompts in ([case.prompt for case in part], [""] * len(part))
            )
        timestep = self.schedule.timesteps[step]
        conditional = unet(latents, timestep, text, return_dict=False)[0]
        unconditional = unet(latents, timestep, empty, return_dict=False)[0]
        guided = unconditional + _GUIDANCE * (conditional - unconditional)
        return step_mean(self.schedule, torch.full((len(part),), step), latents, guided)


if __name__ == "__main__":
    typer.run(main)
