"""MS-SSIM of pairs: sizes, laws of sets, and which images are paired."""

import numpy as np
import pytest
import torch
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

from cxrsynth.metrics.diversity import (
    Images,
    _pairs_within,
    ms_ssim,
    scale_weights,
    similarity_between,
    similarity_within,
)


def radiographs(count: int, side: int = 48, *, seed: int = 0) -> Images:
    """Blobs at random places: images of one kind, none like another."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side
    centres = rng.uniform(0.2, 0.8, (count, 2, 1, 1))
    blobs = np.exp(-((y - centres[:, 0]) ** 2 + (x - centres[:, 1]) ** 2) / 0.03)
    return np.asarray(255 * blobs, dtype=np.uint8)


@pytest.mark.parametrize("side", [11, 21, 22, 43, 44, 98, 99, 128, 175, 176, 256])
def test_every_size_has_scales_it_can_bear(side: int) -> None:
    weights = scale_weights(side)
    assert sum(weights) == pytest.approx(1.0, abs=1e-3)
    assert len(weights) == 1 + sum(side >= edge for edge in (22, 44, 99, 176))
    image = torch.rand(1, 1, side, side, generator=torch.Generator().manual_seed(0))
    assert ms_ssim(image, image).item() == pytest.approx(1.0, abs=1e-5)
    assert 0 <= ms_ssim(image, 1 - image).item() < 0.5


def test_full_size_is_the_librarys_own_default() -> None:
    first, second = torch.rand(2, 2, 1, 176, 176, generator=torch.Generator().manual_seed(0)).unbind(0)
    theirs = multiscale_structural_similarity_index_measure(first, second, data_range=1.0, reduction="none")
    assert torch.allclose(ms_ssim(first, second), theirs, atol=1e-4)  # Wang's weights sum to 1.0001 - 0.0002


def test_images_below_the_kernel_are_refused() -> None:
    with pytest.raises(ValueError, match="images of 10 pixels, expected at least 11"):
        scale_weights(10)


def test_a_collapsed_set_is_reported_from_a_varied_one() -> None:
    varied = radiographs(40)
    collapsed = varied[[0] * 40]
    assert similarity_within(collapsed, pairs=20, seed=0).value == pytest.approx(1.0, abs=1e-5)
    found = similarity_within(varied, pairs=20, seed=0)
    assert found.low < found.value < found.high < 0.9
    beside = similarity_between(varied, radiographs(40, seed=1), pairs=20, seed=0)
    assert beside.value == pytest.approx(found.value, abs=0.2)
    assert found == similarity_within(varied, pairs=20, seed=0)
    assert found != similarity_within(varied, pairs=20, seed=1)


def test_grey_levels_and_fractions_are_one() -> None:
    grey = radiographs(10)
    fractions = np.asarray(grey / 255.0, dtype=np.float32)
    one, other = (similarity_within(kind, pairs=5, seed=0) for kind in (grey, fractions))
    assert one.value == pytest.approx(other.value, abs=1e-5)


@pytest.mark.parametrize("count", [2, 7, 8])
def test_an_image_is_never_its_own_pair(count: int) -> None:
    for seed in range(20):
        drawn = _pairs_within(count, 30, seed=seed)
        assert (drawn[:, 0] != drawn[:, 1]).all()
        first = drawn[: count // 2].ravel()
        assert len(set(first)) == len(first)


def test_sets_that_cannot_be_paired_are_reported() -> None:
    with pytest.raises(ValueError, match="1 images, expected at least 2"):
        similarity_within(radiographs(1), pairs=3, seed=0)
    with pytest.raises(ValueError, match="of one size"):
        similarity_between(radiographs(2), radiographs(2, 64), pairs=3, seed=0)
