"""The evaluator of a run: held-out reports, judges and real films as the recipe names them."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cxrsynth import console
from cxrsynth.errors import ShardError
from cxrsynth.images.collection import open_collection
from cxrsynth.images.image import Film
from cxrsynth.metrics.features import Extractor, load_extractor
from cxrsynth.reports.table.rows import Report
from cxrsynth.rewards.backends import load_reward
from cxrsynth.rewards.base import RewardSuite
from cxrsynth.rl.rollouts import Case
from cxrsynth.runtime.pool import OrderedPool
from cxrsynth.tuning.evaluator import Evaluator, reference_features
from cxrsynth.tuning.setup import TuneRun


def open_evaluator(
    run: TuneRun,
    tuning: RewardSuite,
    weights: Mapping[str, float],
    *,
    case: Callable[[Report], Case],
    pool: OrderedPool,
    batch: int,
) -> Evaluator:
    """Load judges, features and reference films.

    Args:
        run: whose held-out reports are judged, and whose recipe says how.
        tuning: the rewards that tune, with `weights` by their names.
        case: makes a report what is asked of the model.
        pool: where batches run.
        batch: images a batch.

    Raises:
        ModelError, ShardError: if one of them cannot be loaded.
    """
    section = run.recipe.evaluation
    judges = {name: load_reward(name, backend, device=run.device) for name, backend in section.judges.items()}
    extractor = load_extractor(section.features, device=run.device)
    return Evaluator(
        [case(report) for report in run.held_out[: section.reports]],
        images_per_report=section.images_per_report,
        tuning=tuning,
        weights=dict(weights),
        judge=RewardSuite(judges),
        extractor=extractor,
        reference=None
        if section.reference is None
        else _reference(section.reference, extractor, quiet=not run.is_main),
        steps=section.steps or run.spec.defaults.steps,
        guidance=run.guidance(section.guidance),
        sampler=run.spec.defaults.sampler,
        batch_size=batch,
        seed=run.recipe.seed,
        pool=pool,
        group=run.group,
    )


def _reference(folder: Path, extractor: Extractor, *, quiet: bool) -> NDArray[np.float64]:
    """Features [M, D] of all films that can be read. Raises ShardError if they are too few for a distance."""
    collection, unread = open_collection(folder), 0

    def pixels() -> Iterator[NDArray[np.float32]]:
        nonlocal unread
        for unit in collection.units:
            for film in collection.read(unit):
                if isinstance(film, Film):
                    yield film.pixels
                else:
                    unread += 1

    found = reference_features(pixels(), extractor)
    if len(found) < 2:
        raise ShardError(
            f"evaluation.reference: {folder}: {len(found)} films that can be read, {unread} that cannot\n"
            "  expected: at least 2, for the Frechet distance"
        )
    if unread and not quiet:
        console.warn(f"evaluation.reference: {unread} films cannot be read and are left out; cxrsynth audit names them")
    return found
