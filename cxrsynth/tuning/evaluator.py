"""The independent judge of a tuning run: held-out reports, fixed noise, policy beside baseline."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from cxrsynth import console
from cxrsynth.diffusion.model import DiffusionModel
from cxrsynth.diffusion.noise import noise
from cxrsynth.diffusion.sampler import sample_images
from cxrsynth.errors import ShardError
from cxrsynth.images.collection import Collection
from cxrsynth.images.image import Radiograph
from cxrsynth.metrics.diversity import similarity_within
from cxrsynth.metrics.features import Extractor
from cxrsynth.metrics.fidelity import frechet_interval, mean_interval
from cxrsynth.reports.table.rows import Report
from cxrsynth.rewards.base import RewardSuite
from cxrsynth.rewards.feedback import reward_std
from cxrsynth.rl.rollouts import PromptExample, check_pixels
from cxrsynth.runtime.files import write_tensors
from cxrsynth.runtime.pool import OrderedPool
from cxrsynth.runtime.processes import ProcessGroup
from cxrsynth.settings import Sampler
from cxrsynth.tuning.run import TuneRun

_CELL = 160
_SIMILARITY_PAIRS = 200
_ROUNDS = 1000


@dataclass(frozen=True)
class EvaluatedImages:
    """Images of one model for all (report, image) pairs in order, and what was said of them."""

    images: Tensor  # [N, H, W] uint8
    rewards: Tensor  # [N, R] float32: tuning rewards, then the judge's
    features: Tensor  # [N, D] float32


@dataclass(frozen=True)
class Verdict:
    """Policy against baseline. `evaluator` and `tuning` are mean margins, in SDs of the baseline's rewards."""

    numbers: dict[str, float]
    evaluator: float
    tuning: float


class Evaluator:
    """Draws the same reports with the same noise again and again.

    Args:
        cases: held-out reports.
        images_per_report: images of each.
        tuning: the rewards that tune, with their weights.
        judge: the judge's rewards.
        extractor: where the Frechet distance is measured.
        reference: features of real images, float64 [M, D]; None compares with the baseline's images.
        steps: denoising steps, without added noise, as `generate` takes them.
        guidance: classifier-free guidance scale.
        sampler: which solver, as `generate` takes it.
        batch_size: images a batch.
        seed: of the noise.
        pool: where batches run.
        group: the processes.
    """

    def __init__(
        self,
        cases: Sequence[PromptExample],
        *,
        images_per_report: int,
        tuning: RewardSuite,
        weights: dict[str, float],
        judge: RewardSuite,
        extractor: Extractor,
        reference: npt.NDArray[np.float64] | None,
        steps: int,
        guidance: float,
        sampler: Sampler,
        batch_size: int,
        seed: int,
        pool: OrderedPool,
        group: ProcessGroup,
    ) -> None:
        self._asked = [(case, image) for case in cases for image in range(images_per_report)]
        self._images_per_report = images_per_report
        self._suites = (("tuning", tuning), ("evaluator", judge))
        self.names = [f"{kind}/{name}" for kind, suite in self._suites for name in suite.names]
        self._weights = torch.tensor(
            [weights[name] for name in tuning.names] + [1.0] * len(judge.names), dtype=torch.float64
        )
        self._is_independent = torch.tensor([kind == "evaluator" for kind, suite in self._suites for _ in suite.names])
        self._extractor = extractor
        self._reference = reference
        self._steps, self._guidance, self._sampler = steps, guidance, sampler
        self._batch_size, self._seed = batch_size, seed
        self._pool, self._group = pool, group
        self._baseline: EvaluatedImages | None = None

    def evaluate(self, model: DiffusionModel) -> EvaluatedImages:
        """All images of one model and their rewards; the same on every process."""
        places = list(range(len(self._asked)))
        batches = [places[first : first + self._batch_size] for first in range(0, len(places), self._batch_size)]
        rows = [
            row
            for batch, made in self._pool.map_in_order(
                lambda batch: self._batch(model, batch), self._group.share(batches)
            )
            for row in zip(batch, *made, strict=True)
        ]
        every = sorted(self._group.gather(rows), key=lambda row: int(row[0]))
        images, rewards, features = (torch.stack([row[part] for row in every]) for part in (1, 2, 3))
        return EvaluatedImages(images, rewards, features)

    def _batch(self, model: DiffusionModel, places: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        cases = [self._asked[place][0] for place in places]
        keys = [(case.report.report_id, self._asked[place][1]) for case, place in zip(cases, places, strict=True)]
        images = sample_images(
            model,
            [case.prompt for case in cases],
            torch.stack([noise(model.latent_shape, self._seed, "held out", *key) for key in keys]),
            sampler=self._sampler,
            steps=self._steps,
            guidance=self._guidance,
            conditions=[case.conditions for case in cases],
            stopped=self._pool.stopped,
        )
        check_pixels(images, [f"held-out report {report_id}" for report_id, _ in keys])
        reports = [case.report for case in cases]
        rewards = torch.cat([suite(images, reports).values for _, suite in self._suites], 1)
        return (images[:, 0] * 255).round().to(torch.uint8), rewards, self._extractor(images)

    def baseline(self, context: Callable[[], AbstractContextManager[DiffusionModel]], cache: Path) -> EvaluatedImages:
        """The baseline's images, drawn once a run and kept in `cache`."""
        if self._baseline is None:
            self._baseline = _kept(cache, len(self._asked))
            if self._baseline is None:
                with context() as model:
                    self._baseline = self.evaluate(model)
                if self._group.rank == 0:
                    parts = {name: getattr(self._baseline, name) for name in ("images", "rewards", "features")}
                    write_tensors(cache, {name: tensor.contiguous() for name, tensor in parts.items()})
        return self._baseline

    def verdict(self, policy: EvaluatedImages, baseline: EvaluatedImages) -> Verdict:
        """Margins, win rates, Frechet distance and diversity, with intervals by bootstrap over reports."""
        margin = (policy.rewards - baseline.rewards).double()  # [N, R]
        known = ~margin.isnan()
        scaled = (margin / reward_std(baseline.rewards)).nan_to_num(0.0)
        numbers: dict[str, float] = {}
        for column, name in enumerate(self.names):
            numbers[f"{name}/policy"] = float(policy.rewards[:, column].nanmean())
            numbers[f"{name}/baseline"] = float(baseline.rewards[:, column].nanmean())
            numbers |= self._interval(f"{name}/margin", margin[:, column], known[:, column])
            numbers |= self._interval(f"{name}/win_rate", _won(margin[:, column]), known[:, column])
        totals = {}
        for kind, own in (("tuning", ~self._is_independent), ("evaluator", self._is_independent)):
            weight = self._weights * own
            total = (scaled * weight).sum(1) / (known * weight).sum(1).clamp(min=1e-12)
            told = (known & own).any(1)
            numbers |= self._interval(f"{kind}/total/margin", total, told)
            numbers |= self._interval(f"{kind}/total/win_rate", _won(total), told)
            totals[kind] = numbers[f"{kind}/total/margin"]
        numbers |= self._fidelity(policy, baseline)
        return Verdict(numbers, evaluator=totals["evaluator"], tuning=totals["tuning"])

    def _interval(self, name: str, values: Tensor, known: Tensor) -> dict[str, float]:
        """The mean over reports with its 95% interval: images of one report are not independent."""
        grouped = values.view(-1, self._images_per_report)
        told = known.view(-1, self._images_per_report)
        rows = told.any(1)
        means = ((grouped * told).nan_to_num(0.0).sum(1) / told.sum(1).clamp(min=1))[rows]
        if not len(means):
            return {name: float("nan")}
        found = mean_interval(means.double().numpy(), rounds=_ROUNDS)
        return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}

    def _fidelity(self, policy: EvaluatedImages, baseline: EvaluatedImages) -> dict[str, float]:
        made, before = policy.features.double().numpy(), baseline.features.double().numpy()
        numbers: dict[str, float] = {}
        compared = {"frechet_to_baseline": (made, before)}
        if self._reference is not None:
            compared = {
                "frechet_to_real": (made, self._reference),
                "baseline_frechet_to_real": (before, self._reference),
            }
        for name, (first, second) in compared.items():
            distance = frechet_interval(first, second)
            numbers |= {name: distance.value, f"{name}_low": distance.low, f"{name}_high": distance.high}
        for name, images in (("ms_ssim", policy.images), ("baseline_ms_ssim", baseline.images)):
            pairs = min(_SIMILARITY_PAIRS, 4 * len(images))
            numbers[name] = similarity_within(images.numpy(), pairs=pairs, seed=self._seed).value
        return numbers

    def sheet(self, policy: EvaluatedImages, baseline: EvaluatedImages, *, pairs: int) -> Image.Image:
        """Contact sheet: the baseline's image above the policy's, report by report."""
        places = list(range(0, len(self._asked), self._images_per_report))[:pairs]
        columns = min(6, max(1, len(places)))
        bands = -(-len(places) // columns)
        sheet = Image.new("L", (columns * _CELL, bands * (2 * _CELL + 18)), 0)
        draw = ImageDraw.Draw(sheet)
        for index, place in enumerate(places):
            left, top = index % columns * _CELL, index // columns * (2 * _CELL + 18)
            for row, images in enumerate((baseline.images, policy.images)):
                cell = Image.fromarray(images[place].numpy()).resize((_CELL, _CELL))
                sheet.paste(cell, (left, top + 16 + row * _CELL))
            if index % columns == 0:
                draw.text((4, top + 3), "baseline above, policy below, same noise", fill=255)
        return sheet


def hacking_warning(verdict: Verdict, *, evaluator: float, tuning: float, margin: float) -> str | None:
    """A warning if the judge falls by more than `margin` while the tuning reward rises; None where it does not.

    Args:
        verdict: the newest.
        evaluator: the evaluator's margin at its best so far; zero is the baseline's.
        tuning: the tuning rewards' margin then.
        margin: in standard deviations of the baseline's rewards, as the others.
    """
    fall = evaluator - verdict.evaluator
    if not (fall > margin and verdict.tuning > tuning):  # nor where one of them is not known
        return None
    return (
        f"reward hacking: the evaluator's margin fell by {fall:.2f} standard deviations (to {verdict.evaluator:+.2f})"
        f" while that of the tuning rewards rose from {tuning:+.2f} to {verdict.tuning:+.2f}.\n"
        "  Raise update.kl_weight, lower the learning rates, or stop here: the best checkpoint according to the"
        " evaluator is kept"
    )


def _kept(cache: Path, count: int) -> EvaluatedImages | None:
    """What an earlier process drew; None where there is nothing, or a damaged file."""
    try:
        found = EvaluatedImages(**load_file(cache))
    except (OSError, TypeError, SafetensorError):
        return None
    return found if {len(found.images), len(found.rewards), len(found.features)} == {count} else None


def _won(margin: Tensor) -> Tensor:
    """1 for a better image, 0 for a worse one, a half for a tie; [N] float64."""
    return 0.5 + 0.5 * margin.nan_to_num(0.0).sign()


def reference_features(radiographs: Iterator[npt.NDArray[np.float32]], extractor: Extractor) -> npt.NDArray[np.float64]:
    """Features of real images [H, W] in [0, 1], float64 [M, D]; images may differ in size."""
    found: list[Tensor] = []
    for radiograph in radiographs:
        found.append(extractor(torch.from_numpy(radiograph)[None, None]))
    return torch.cat(found).double().numpy() if found else np.zeros((0, 0))


def as_row(verdict: Verdict) -> dict[str, Any]:
    """Its numbers as one flat row for metrics.jsonl."""
    return {f"evaluation/{name}": value for name, value in verdict.numbers.items()}


def open_evaluator(
    run: TuneRun,
    tuning: RewardSuite,
    weights: Mapping[str, float],
    *,
    case: Callable[[Report], PromptExample],
    pool: OrderedPool,
    batch: int,
) -> Evaluator:
    """The run's evaluator; features of the reference images are computed here.

    Args:
        run: whose held-out reports are judged, and whose recipe says how.
        tuning: the rewards that tune, with `weights` by their names.
        case: makes a report what is asked of the model.
        pool: where batches run.
        batch: images a batch.

    Raises:
        ShardError: if there are too few reference images.
    """
    section = run.recipe.evaluation
    loaded = run.loaded
    if loaded.evaluator is None or loaded.extractor is None:
        raise ValueError("no evaluator is loaded for a run without reinforcement learning")
    return Evaluator(
        [case(report) for report in run.held_out[: section.reports]],
        images_per_report=section.images_per_report,
        tuning=tuning,
        weights=dict(weights),
        judge=loaded.evaluator,
        extractor=loaded.extractor,
        reference=None
        if loaded.reference is None
        else _reference(loaded.reference, loaded.extractor, quiet=not run.is_main),
        steps=section.steps or run.spec.defaults.steps,
        guidance=run.guidance(section.guidance),
        sampler=run.spec.defaults.sampler,
        batch_size=batch,
        seed=run.recipe.seed,
        pool=pool,
        group=run.group,
    )


def _reference(collection: Collection, extractor: Extractor, *, quiet: bool) -> NDArray[np.float64]:
    """Features [M, D] of all images that can be read. Raises ShardError if they are too few for a distance."""
    unread = 0

    def pixels() -> Iterator[NDArray[np.float32]]:
        nonlocal unread
        for unit in collection.units:
            for radiograph in collection.read(unit):
                if isinstance(radiograph, Radiograph):
                    yield radiograph.pixels
                else:
                    unread += 1

    found = reference_features(pixels(), extractor)
    if len(found) < 2:
        raise ShardError(
            f"evaluation.reference: {collection.path}: {len(found)} images that can be read, {unread} that cannot\n"
            "  expected: at least 2, for the Frechet distance"
        )
    if unread and not quiet:
        console.warn(
            f"evaluation.reference: {unread} images cannot be read and are left out; cxrsynth audit names them"
        )
    return found
