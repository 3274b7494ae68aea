"""`python -m tests.benchmarks.reward_agreement`: how much two families of reward models agree on a model's images.

Tuning chooses between images of the same report. So what a tuning reward can gain by an independent evaluator depends
on how the two correlate within a report; the AUROC on real images of different patients says little about it. For each
reward, over several images of each report:

- *correlation*: of the two families within reports, the means of the reports subtracted;
- *share within*: the tuning reward's standard deviation within reports, over that of all images;
- *best*: by the evaluator, the image that the tuning reward likes best over the mean of its report;
- *most*: the same where the evaluator itself chooses. By choosing, no more can be gained.

The last two are in standard deviations of the evaluator's reward over all images. Intervals are 95%, over reports.

A second table is of the comparisons that make an optimality r of the rewards, where the first half of each report's
images are the policy's and the rest the baseline's. An image is learned from in proportion to 2 r - 1, so what can be
learned from so many images depends on the *alignment* of that with the evaluator's total within reports, the cosine of
the two: the number of images for the same gain goes with one over its square.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import typer
from torch import Tensor

from cxrsynth.diffusion.model import DiffusionModel, choose_device, choose_precision, load_model
from cxrsynth.diffusion.noise import seeded_noise
from cxrsynth.diffusion.parallel import SamplingPool
from cxrsynth.diffusion.resolve import resolve_model
from cxrsynth.diffusion.sampler import sample_images
from cxrsynth.recipe.packaged import packaged_folder
from cxrsynth.reports.request import PromptBuilder
from cxrsynth.reports.table.rows import Report
from cxrsynth.reports.table.table import open_table
from cxrsynth.rewards.augmented import AugmentedReward
from cxrsynth.rewards.backends import load_reward
from cxrsynth.rewards.base import RewardSuite
from cxrsynth.rewards.feedback import reward_std
from cxrsynth.rl.optimality import centred, group, margin, win_probability
from cxrsynth.settings import DEFAULT_FAMILY, REWARDS, TUNING_FAMILY, Device, Precision

_TABLE = packaged_folder() / "nano-reports.csv"
_BATCH = 8
_ROUNDS = 1000


def main(
    model: str = "nano",
    tuning: str = TUNING_FAMILY,
    evaluator: str = DEFAULT_FAMILY,
    table: Path = _TABLE,
    reports: int = 48,
    images: int = 16,
    steps: int = 8,
    augment: int = 2,
    posture_weight: float = 1.0,
    device: Device = Device.AUTO,
) -> None:
    """Print one row for each reward; `augment` views of an image are averaged by the tuning rewards.

    Then one row for each comparison, in which the posture reward has `posture_weight`, the others 1.
    """
    where = choose_device(device)
    loaded = load_model(resolve_model(model), device=where, precision=choose_precision(Precision.AUTO, where))
    tuning_rewards, evaluators = (
        {name: load_reward(name, family, device=where) for name in REWARDS} for family in (tuning, evaluator)
    )
    averaged = {name: AugmentedReward(reward, views=augment) for name, reward in tuning_rewards.items()}
    suites = [RewardSuite(averaged), RewardSuite(evaluators)]
    tuned, judged = score(loaded, suites, table, reports, images, steps).unbind(-1)  # [N, K, R] each
    typer.echo(f"{model}, {len(tuned)} reports with {images} images of {steps} steps, {tuning} against {evaluator}\n")
    typer.echo("| reward | correlation | share within | best | most |\n| --- | --- | --- | --- | --- |")
    for place, name in enumerate(REWARDS):
        values = torch.stack([tuned[..., place], judged[..., place]], -1)
        values = values[~values.isnan().any(-1).any(-1)].double()  # [N, K, 2], reports that both can score
        cells = (interval(measure, values) for measure in (correlation, share_within, best, most))
        typer.echo(f"| {name} | {' | '.join(cells)} |")

    weights = torch.ones(len(REWARDS))
    weights[REWARDS.index("posture")] = posture_weight
    whole = ~(tuned.isnan() | judged.isnan()).any(-1).any(-1)
    typer.echo("\n| comparison | alignment |\n| --- | --- |")
    for name, pair in alignments(tuned[whole], judged[whole], weights).items():
        typer.echo(f"| {name} | {interval(alignment, pair)} |")


def alignments(tuned: Tensor, judged: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """By comparison: 2 r - 1, and the evaluator's total within reports, [N, P, 2]. Rewards are [N, K, R].

    The first half of the K images are the policy's, P; comparisons take the last 2 or more of the others.
    """
    count = tuned.shape[1] // 2
    scale = reward_std(tuned.flatten(0, 1))
    own = tuned[:, :count].flatten(0, 1)  # [N P, R]
    ids = [str(place) for place in range(len(tuned)) for _ in range(count)]
    known = torch.ones(len(own), dtype=torch.bool)
    total = (judged / reward_std(judged.flatten(0, 1))).mean(-1)  # [N, K]
    wanted = (total - total.mean(1, keepdim=True))[:, :count]

    def baseline(images: int) -> Tensor:
        return tuned[:, -images:].repeat_interleave(count, 0)

    def won(images: int, temperature: float) -> Tensor:
        return win_probability(own, baseline(images), scale=scale, weights=weights, temperature=temperature)

    def within(optimality: Tensor) -> Tensor:
        return centred(optimality, ids, range(len(ids)), known=known)

    found = {"group, without a baseline": group(own, ids, range(len(ids)), scale=scale, weights=weights)}
    for images in (2, count):
        compared = {f"win probability, temperature {one:g}": won(images, one) for one in (0.25, 0.5, 1.0)}
        compared["margin"] = margin(own, baseline(images), scale=scale, weights=weights)
        for name, one in compared.items():
            found[f"{name}, {images} images of the baseline"] = one
            found[f"{name}, {images} images of the baseline, centred"] = within(one)
    return {name: torch.stack([2 * one.view(len(tuned), count) - 1, wanted], -1) for name, one in found.items()}


def alignment(pair: Tensor) -> float:
    """Cosine of 2 r - 1 and the evaluator's total, [N, P, 2]."""
    learned, wanted = pair.flatten(0, 1).unbind(-1)
    return float(F.cosine_similarity(learned, wanted, dim=0))


def score(
    model: DiffusionModel, suites: list[RewardSuite], table: Path, reports: int, images: int, steps: int
) -> Tensor:
    """Rewards of `images` images for each of the first `reports` reports, [N, K, R, suites]."""
    builder = PromptBuilder(model.spec.prompt_format, model.spec.depicts, model.fits)
    rows = islice((row for row in open_table(table).rows() if isinstance(row, Report)), reports)
    built = [(row, builder.build(row)) for row in rows]
    numbers = [range(first, min(first + _BATCH, images)) for first in range(0, images, _BATCH)]
    batches = [(place, some) for place in range(len(built)) for some in numbers]
    defaults = model.spec.defaults

    def one(batch: tuple[int, range]) -> Tensor:
        (report, prompt), some = built[batch[0]], batch[1]
        made = sample_images(
            model,
            [prompt.prompt] * len(some),
            torch.stack([seeded_noise(model.latent_shape, "agreement", report.report_id, k) for k in some]),
            sampler=defaults.sampler,
            steps=steps,
            guidance=defaults.guidance,
            conditions=[prompt.conditions] * len(some),
        )
        shown = [replace(report, labels=prompt.labels)] * len(some)
        return torch.stack([suite(made, shown).values for suite in suites], -1)  # [B, R, suites]

    with SamplingPool(model, batch_size=_BATCH, threads_per_batch=1) as pool:
        found = torch.cat([scores for _, scores in pool.map_in_order(one, batches)])
    return found.view(len(built), images, *found.shape[1:])


def correlation(values: Tensor) -> float:
    """Of tuning and evaluator within reports; values are [N, K, 2]."""
    first, second = (values - values.mean(1, keepdim=True)).flatten(0, 1).unbind(-1)
    return float((first * second).sum() / (first.norm() * second.norm()).clamp(min=1e-12))


def share_within(values: Tensor) -> float:
    """Of the tuning reward's standard deviation."""
    tuned = values[..., 0]
    return float((tuned - tuned.mean(1, keepdim=True)).square().mean().sqrt() / tuned.std().clamp(min=1e-12))


def best(values: Tensor) -> float:
    """Gain by the evaluator where the tuning reward chooses one image of each report."""
    return _chosen(values, by=0)


def most(values: Tensor) -> float:
    """The same where the evaluator chooses."""
    return _chosen(values, by=1)


def _chosen(values: Tensor, *, by: int) -> float:
    judged = values[..., 1]
    places = values[..., by].argmax(1, keepdim=True)
    return float((judged.gather(1, places)[:, 0] - judged.mean(1)).mean() / judged.std().clamp(min=1e-12))


def interval(measure: Callable[[Tensor], float], values: Tensor) -> str:
    """The measure, and its 95% interval by bootstrap over reports."""
    rng = np.random.default_rng(0)
    drawn = [measure(values[rng.integers(len(values), size=len(values))]) for _ in range(_ROUNDS)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return f"{measure(values):.2f} ({low:.2f} to {high:.2f})"


if __name__ == "__main__":
    typer.run(main)
