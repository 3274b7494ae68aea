"""The independent evaluation of a tuning run: held-out or test reports, fixed noise, policy beside baseline."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cxrsynth import console
from cxrsynth.console import counted
from cxrsynth.diffusion.model import DiffusionModel
from cxrsynth.diffusion.noise import seeded_noise
from cxrsynth.diffusion.sampler import sample_images
from cxrsynth.errors import ShardError
from cxrsynth.images.collection import Collection
from cxrsynth.images.image import Radiograph
from cxrsynth.metrics.features import Extractor
from cxrsynth.reports.table.rows import Report
from cxrsynth.rewards.base import RewardSuite
from cxrsynth.rl.checks import check_answers, without_differences
from cxrsynth.rl.optimizer import ADVICE
from cxrsynth.rl.rollouts import PromptExample, check_pixels
from cxrsynth.runtime.files import write_tensors
from cxrsynth.runtime.pool import OrderedPool
from cxrsynth.runtime.processes import ProcessGroup
from cxrsynth.settings import Sampler
from cxrsynth.tuning.run import TuneRun
from cxrsynth.tuning.verdict import EVALUATOR, TUNING, EvaluatedImages, Verdict, compare_models

_DIGEST = "sha256"  # in the header of the file with the baseline's images
_CELL = 160  # pixels on a side of an image on the contact sheet
_CAPTION = 18  # pixels above each band
_BASELINES = "the baseline's"
# The baseline is not trained: no learning rate helps.
_UNTRAINED = (
    "\n  it is the model as it was before this stage: try another evaluation.guidance or model.precision: fp32, and"
    " look at its weights"
)


@dataclass(frozen=True)
class HeldOut:
    """Held-out reports and their noise, the same at every evaluation; `name` is `held out` or `test`."""

    examples: Sequence[PromptExample]
    images_per_report: int
    noise_seed: int
    name: str = "held out"

    @property
    def samples(self) -> list[tuple[PromptExample, int]]:
        """(report, image) of every sample; the images of a report are consecutive."""
        return [(example, image) for example in self.examples for image in range(self.images_per_report)]


@dataclass(frozen=True)
class RewardPair:
    """The rewards that tune, with their weights by name, and the independent ones, which take no part in training."""

    tuning: RewardSuite | None
    weights: Mapping[str, float]
    independent: RewardSuite

    @property
    def all_weights(self) -> dict[str, dict[str, float]]:
        """Weight of each reward in the total of its kind, in the order of the columns; independent ones weigh 1."""
        tuning = {} if self.tuning is None else {TUNING: {name: self.weights[name] for name in self.tuning.names}}
        return tuning | {EVALUATOR: dict.fromkeys(self.independent.names, 1.0)}

    @property
    def titles(self) -> list[str]:
        """The rewards in messages, in the order of the columns."""
        return [f"{kind} reward {name}" for kind, weights in self.all_weights.items() for name in weights]

    def __call__(self, images: Tensor, reports: Sequence[Report]) -> Tensor:
        """Images [B, 1, H, W] and their reports -> rewards [B, R], the tuning rewards first."""
        suites = [suite for suite in (self.tuning, self.independent) if suite is not None]
        return torch.cat([suite(images, reports).values for suite in suites], 1)


@dataclass(frozen=True)
class FeatureSpace:
    """Where the Frechet distance is measured; `reference` None compares with the baseline's images."""

    extractor: Extractor
    reference: NDArray[np.float64] | None = None  # [M, D], of real images


@dataclass(frozen=True)
class EvaluationSampling:
    """How images are sampled, as `generate` would."""

    sampler: Sampler
    steps: int
    guidance: float
    batch_size: int


class Evaluator:
    """Samples the same reports with the same noise again and again, and compares the policy with the baseline."""

    def __init__(
        self,
        held_out: HeldOut,
        rewards: RewardPair,
        *,
        features: FeatureSpace,
        sampling: EvaluationSampling,
        pool: OrderedPool,
        group: ProcessGroup,
    ) -> None:
        self.held_out, self.rewards, self.features, self.sampling = held_out, rewards, features, sampling
        self._samples = held_out.samples
        self._pool, self._group = pool, group
        self._baseline: EvaluatedImages | None = None

    def evaluate(
        self, model: DiffusionModel, *, whose: str = "the policy's", sampling: EvaluationSampling | None = None
    ) -> EvaluatedImages:
        """All images of one model with their rewards and features; the same on every process.

        Args:
            model: the policy, or its baseline.
            whose: that model in messages.
            sampling: for a model that is used in another way.

        Raises:
            ModelError: if pixels are not finite, or a reward is nan for every image.
        """
        used = sampling or self.sampling
        places, size = list(range(len(self._samples))), used.batch_size
        advice = _UNTRAINED if whose == _BASELINES else ADVICE
        batches = [places[first : first + size] for first in range(0, len(places), size)]
        rows = [
            row
            for batch, made in self._pool.map_in_order(
                lambda batch: self._evaluate_batch(model, batch, used, advice), self._group.share(batches)
            )
            for row in zip(batch, *made, strict=True)
        ]
        every = sorted(self._group.gather(rows), key=lambda row: int(row[0]))
        images, rewards, features = (torch.stack([row[part] for row in every]) for part in (1, 2, 3))
        check_answers(rewards, self.rewards.titles, f"{whose} images of {self.held_out.name.replace(' ', '-')} reports")
        return EvaluatedImages(images, rewards, features)

    def check_reports(self, examples: Sequence[PromptExample], shown: Tensor) -> None:
        """Whether the rewards that read reports have an answer to any of those of the test, before the training.

        Args:
            examples: of the test.
            shown: images of other reports, [N, H, W] uint8: none of the test's is drawn before the end.

        Raises:
            ModelError: if one is nan for all of them.
        """
        places = torch.arange(len(examples)) % len(shown)
        images = shown[places][:, None].float() / 255
        rewards = self.rewards(images, [example.report for example in examples])
        suites = [suite for suite in (self.rewards.tuning, self.rewards.independent) if suite is not None]
        reads = torch.tensor([reward.needs_report for suite in suites for reward in suite.rewards.values()])
        titles = [title for title, read in zip(self.rewards.titles, reads.tolist(), strict=True) if read]
        check_answers(rewards[:, reads], titles, "images of test reports")

    def _evaluate_batch(
        self, model: DiffusionModel, places: list[int], sampling: EvaluationSampling, advice: str = ADVICE
    ) -> tuple[Tensor, Tensor, Tensor]:
        name, examples = self.held_out.name, [self._samples[place][0] for place in places]
        keys = [(self._samples[place][0].report.report_id, self._samples[place][1]) for place in places]
        images = sample_images(
            model,
            [example.prompt for example in examples],
            torch.stack([seeded_noise(model.latent_shape, self.held_out.noise_seed, name, *key) for key in keys]),
            sampler=sampling.sampler,
            steps=sampling.steps,
            guidance=sampling.guidance,
            conditions=[example.conditions for example in examples],
            stopped=self._pool.stopped,
        )
        check_pixels(images, [f"{name.replace(' ', '-')} report {report_id}" for report_id, _ in keys], advice=advice)
        rewards = self.rewards(images, [example.report for example in examples])
        return (images[:, 0] * 255).round().to(torch.uint8), rewards, self.features.extractor(images)

    def baseline(
        self,
        context: Callable[[], AbstractContextManager[DiffusionModel]],
        cache: Path,
        *,
        sampling: EvaluationSampling | None = None,
    ) -> EvaluatedImages:
        """The baseline's images, sampled once a run and kept in the file `cache`; a damaged file is made again."""
        if self._baseline is None:
            with context() as model:
                self._baseline = self._cached(cache, model.image_shape)
                if self._baseline is None:
                    self._baseline = self.evaluate(model, whose=_BASELINES, sampling=sampling)
                    if self._group.is_main:
                        parts = {name: tensor.contiguous() for name, tensor in vars(self._baseline).items()}
                        write_tensors(cache, parts, metadata={_DIGEST: _digest(parts)})
            self._name_rewards_without_differences(self._baseline)
        return self._baseline

    def _name_rewards_without_differences(self, baseline: EvaluatedImages) -> None:
        for name in without_differences(baseline.rewards, self.rewards.titles):
            if self._group.is_main:
                console.warn(
                    f"{name} has the same value for all {len(baseline.rewards)} of the baseline's images of"
                    f" {self.held_out.name.replace(' ', '-')} reports: it cannot say which image is better\n"
                    "  look at its backend; cxrsynth rewards check tries a reward on a few images"
                )

    def _cached(self, cache: Path, image_shape: tuple[int, int]) -> EvaluatedImages | None:
        """What an earlier process sampled; None if there is no file, or not one of these images and networks."""
        try:
            with safe_open(cache, "pt") as file:
                parts = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
                digest = (file.metadata() or {}).get(_DIGEST)
            found = EvaluatedImages(**parts)
        except (OSError, TypeError, SafetensorError):
            return None
        if digest != _digest(parts):
            return None
        count = len(self._samples)
        expected = {
            "images": ((count, *image_shape), torch.uint8),
            "rewards": ((count, sum(map(len, self.rewards.all_weights.values()))), torch.float32),
            "features": ((count, self.features.extractor.width), torch.float32),
        }
        there = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in vars(found).items()}
        return found if there == expected else None

    def verdict(self, policy: EvaluatedImages, baseline: EvaluatedImages) -> Verdict:
        """Margins, win rates, Frechet distance and diversity, with intervals by bootstrap over reports."""
        return compare_models(
            policy,
            baseline,
            weights=self.rewards.all_weights,
            images_per_report=self.held_out.images_per_report,
            reference=self.features.reference,
            seed=self.held_out.noise_seed,
        )

    def sheet(
        self,
        policy: EvaluatedImages,
        baseline: EvaluatedImages,
        *,
        pairs: int,
        what: str = "baseline above, policy below",
    ) -> Image.Image:
        """Contact sheet of the first `pairs` reports, the baseline's image above the policy's."""
        places = list(range(0, len(self._samples), self.held_out.images_per_report))[:pairs]
        columns = min(6, max(1, len(places)))
        bands = -(-len(places) // columns)
        height = 2 * _CELL + _CAPTION
        sheet = Image.new("L", (columns * _CELL, bands * height), 0)
        draw = ImageDraw.Draw(sheet)
        for index, place in enumerate(places):
            left, top = index % columns * _CELL, index // columns * height
            for row, images in enumerate((baseline.images, policy.images)):
                cell = Image.fromarray(images[place].numpy()).resize((_CELL, _CELL))
                sheet.paste(cell, (left, top + 16 + row * _CELL))
            if index % columns == 0:
                draw.text((4, top + 3), f"{what}, same noise", fill=255)
        return sheet


def open_evaluator(
    run: TuneRun,
    tuning: RewardSuite | None,
    weights: Mapping[str, float],
    *,
    case: Callable[[Report], PromptExample],
    pool: OrderedPool,
    batch: int,
    test: bool = False,
    sampling: EvaluationSampling | None = None,
) -> Evaluator:
    """The run's evaluator; features of the reference images are computed here.

    Args:
        run: holds the reports and the recipe.
        tuning: the rewards that tune, with `weights` by their names; None where none do.
        case: gives each report its prompt.
        pool: where batches run.
        batch: images per batch.
        test: on all test reports, in place of those held out.
        sampling: as the model is used; None for the recipe's evaluation, else as the model folder recommends.

    Raises:
        ShardError: if there are too few reference images.
    """
    section = run.recipe.evaluation
    loaded = run.loaded
    if loaded.evaluator is None or loaded.extractor is None:
        raise ValueError("no evaluator is loaded for a run whose stages are all supervised")
    defaults = run.defaults
    reference = None
    if loaded.reference is not None:
        reference = _reference(loaded.reference, loaded.extractor, quiet=not run.is_main)
    reports, name = (run.test, "test") if test else (run.held_out[: section.reports], "held out")
    return Evaluator(
        HeldOut([case(report) for report in reports], section.images_per_report, run.recipe.seed, name),
        RewardPair(tuning, weights, loaded.evaluator),
        features=FeatureSpace(loaded.extractor, reference),
        sampling=sampling
        or EvaluationSampling(
            sampler=defaults.sampler,
            steps=section.steps or defaults.steps,
            guidance=run.guidance(section.guidance),
            batch_size=batch,
        ),
        pool=pool,
        group=run.group,
    )


def _reference(collection: Collection, extractor: Extractor, *, quiet: bool) -> NDArray[np.float64]:
    """Features [M, D] of all images that can be read. Raises ShardError if they are too few for a distance."""
    unread = 0

    def features() -> Iterator[Tensor]:
        nonlocal unread
        for unit in collection.units:
            for radiograph in collection.read(unit):
                if isinstance(radiograph, Radiograph):
                    yield extractor(torch.from_numpy(radiograph.pixels)[None, None])
                else:
                    unread += 1

    found = list(features())
    if len(found) < 2:
        raise ShardError(
            f"evaluation.reference: {collection.path}: {counted(len(found), 'image')} that can be read,"
            f" {unread} that cannot\n"
            "  expected: at least 2, for the Frechet distance"
        )
    if unread and not quiet:
        console.warn(
            f"evaluation.reference: {counted(unread, 'image')} cannot be read, left out; cxrsynth audit says which"
        )
    return torch.cat(found).double().numpy()


def _digest(parts: Mapping[str, Tensor]) -> str:
    """SHA-256 of named tensors: a margin over a damaged reward looks like any other."""
    digest = hashlib.sha256()
    for name in sorted(parts):
        digest.update(name.encode())
        digest.update(parts[name].numpy().tobytes())
    return digest.hexdigest()
