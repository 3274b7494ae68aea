"""Fidelity against the packages that papers report it with, on the same features: prdc and torch-fidelity."""

from dataclasses import asdict

import numpy as np
import pytest
import torch
from prdc import compute_prdc
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from cxrsynth.metrics.fidelity import Features, frechet_distance, kernel_distance, manifolds
from cxrsynth.metrics.groups import NEIGHBORS, ImageTable, measure_groups
from tests.metrics.populations import populations

# Real images, synthetic ones, features: equal and unequal numbers, fewer images than features, and more than the rows
# that are held at a time.
SHAPES = [(100, 100, 16), (150, 60, 40), (60, 150, 40), (50, 70, 160), (1100, 1030, 8)]
SEEDS = [0, 1, 2]


def sets(real: int, made: int, width: int, *, seed: int, apart: float = 0.5) -> tuple[Features, Features]:
    first, second, _ = populations(width, apart=apart)
    rng = np.random.default_rng(seed)
    return first.draw(real, rng)[0], second.draw(made, rng)[0]


def fid(made: Features, real: Features) -> float:
    statistics = (fid_features_to_statistics(torch.from_numpy(features)) for features in (made, real))
    return float(fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID])


def kid(made: Features, real: Features) -> float:
    """Of all images in one subset; theirs needs as many of each."""
    tensors = torch.from_numpy(made), torch.from_numpy(real)
    found = kid_features_to_metric(*tensors, kid_subsets=1, kid_subset_size=len(made), verbose=False)
    return float(found[KEY_METRIC_KID_MEAN])


def precision_recall(made: Features, real: Features) -> tuple[float, float]:
    tensors = torch.from_numpy(made), torch.from_numpy(real)
    found = prc_features_to_metric(*tensors, prc_neighborhood=NEIGHBORS, verbose=False)
    return found["precision"], found["recall"]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", SEEDS)
def test_manifolds_are_those_of_prdc(shape: tuple[int, int, int], seed: int) -> None:
    real, made = sets(*shape, seed=seed)
    found = asdict(manifolds(real, made, neighbours=NEIGHBORS))
    assert found == pytest.approx(compute_prdc(real, made, nearest_k=NEIGHBORS), abs=1e-12)
    assert len({*found.values(), 0.0, 1.0}) == 6  # no two alike, so that none can stand for another


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", SEEDS)
def test_precision_and_recall_are_those_of_torch_fidelity(shape: tuple[int, int, int], seed: int) -> None:
    real, made = sets(*shape, seed=seed)
    found = manifolds(real, made, neighbours=NEIGHBORS)
    assert (found.precision, found.recall) == pytest.approx(precision_recall(made, real), abs=1e-6)  # in float32


def test_an_image_on_the_edge_of_a_neighborhood_is_outside_as_in_prdc() -> None:
    """torch-fidelity counts it as inside. It matters where more than k real images are the same."""
    repeated = np.repeat(np.arange(12.0)[:, None], NEIGHBORS + 1, axis=0) * [[3.0, 4.0]]
    once = np.unique(repeated, axis=0)  # a copy of each
    for real, made, precision, recall in ((repeated, once, 0.0, 1.0), (once, repeated, 1.0, 0.0)):
        found = manifolds(real, made, neighbours=NEIGHBORS)
        assert asdict(found) == pytest.approx(compute_prdc(real, made, nearest_k=NEIGHBORS))
        assert (found.precision, found.recall) == (precision, recall)
        assert precision_recall(made, real) == (1.0, 1.0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", SEEDS)
def test_the_frechet_distance_is_that_of_torch_fidelity(shape: tuple[int, int, int], seed: int) -> None:
    real, made = sets(*shape, seed=seed)
    # Theirs takes eigenvalues of an asymmetric product, which loses digits where covariances are singular.
    precision = 1e-9 if min(shape[:2]) > shape[2] else 1e-5
    assert frechet_distance(made, real) == pytest.approx(fid(made, real), rel=precision)


@pytest.mark.parametrize(("count", "seed"), [(12, 0), (12, 1), (100, 2), (100, 3), (1030, 4)])
@pytest.mark.parametrize("apart", [0.0, 0.5])
def test_kid_is_that_of_torch_fidelity(count: int, seed: int, apart: float) -> None:
    real, made = sets(count, count, 16, seed=seed, apart=apart)
    assert kernel_distance(made, real) == pytest.approx(kid(made, real), rel=1e-9)


@pytest.mark.parametrize("seed", SEEDS)
def test_kid_of_unequal_sets_is_the_mean_of_all_equal_ones(seed: int) -> None:
    """Theirs draws subsets at random; of all subsets the mean is exact, and there are few with one image less."""
    real, made = sets(31, 30, 8, seed=seed)
    expected = np.mean([kid(made, np.delete(real, place, axis=0)) for place in range(31)])
    assert kernel_distance(made, real) == pytest.approx(expected, rel=1e-9)
    assert kernel_distance(real, made) == pytest.approx(expected, rel=1e-9)


def test_an_audit_reports_what_the_packages_give() -> None:
    """The row of a group has each measure under its own name, of the synthetic images against the real ones."""
    real, made = sets(120, 120, 16, seed=3)
    row = measure_groups(table(made), table(real), seed=0)[0]
    made, real = (features.astype(np.float32).astype(np.float64) for features in (made, real))
    expected = compute_prdc(real, made, nearest_k=5) | {"frechet": fid(made, real), "kid": kid(made, real)}
    assert {name: row[name]["value"] for name in expected} == pytest.approx(expected, rel=1e-9)


def table(features: Features) -> ImageTable:
    nothing: list[str | None] = [None] * len(features)
    present: list[set[str]] = [set() for _ in features]
    patients = [f"patient {place}" for place in range(len(features))]
    return ImageTable(features.astype(np.float32), nothing, nothing, nothing, present, patients)
