"""Warps that undo each other, and pairs of images laid on each other."""

import math

import pytest
import torch
from torch import Tensor

from cxrsynth.metrics.memorization.features import details
from cxrsynth.metrics.memorization.registration import correlation, fit_pairs, local_mean, to_canonical, unmoved
from cxrsynth.rewards.networks import PostureRegressor
from cxrsynth.runtime.warps import compose, inverse, warp, warp_matrices
from tests.metrics.made_images import made_images, made_thumbs

MOVES = torch.tensor([[0.1, -0.05, 0.1, -0.1, 0.2], [-0.08, 0.06, 0.0, 0.05, -0.1]])


def identity(count: int) -> Tensor:
    return torch.eye(2, 3).expand(count, 2, 3)


def test_a_warp_and_its_inverse_are_nothing() -> None:
    matrices = warp_matrices(MOVES)
    assert torch.allclose(compose(matrices, inverse(matrices)), identity(2), atol=1e-6)
    assert torch.allclose(compose(inverse(matrices), matrices), identity(2), atol=1e-6)
    assert torch.equal(warp_matrices(torch.zeros(2, 5)), identity(2))


def test_composed_warps_are_one_after_the_other() -> None:
    radiographs = made_images(2, size=256)
    first, then = warp_matrices(MOVES), warp_matrices(MOVES.flip(0))
    twice, once = warp(warp(radiographs, first), then), warp(radiographs, compose(first, then))
    assert (twice - once)[..., 64:-64, 64:-64].abs().mean() < 0.005
    assert (twice - radiographs)[..., 64:-64, 64:-64].abs().mean() > 0.03


def test_a_shift_looks_to_the_right_and_a_scale_shows_more() -> None:
    radiograph = torch.zeros(1, 1, 64, 64)
    radiograph[..., 32, 48] = 1
    moved = warp(radiograph, warp_matrices(torch.tensor([[0.25, 0.0, 0.0, 0.0, 0.0]])))
    assert moved[0, 0, 32].argmax() == 40  # a quarter of the half width of 32 pixels
    smaller = warp(radiograph, warp_matrices(torch.tensor([[0.0, 0.0, math.log(2), 0.0, 0.0]])))
    assert smaller[0, 0, 32].argmax() == 40  # half as far from the middle


def test_what_the_regressor_says_is_undone() -> None:
    """A regressor that always predicts the warp that was applied brings the image back."""
    radiographs = made_images(3, size=256)
    network = PostureRegressor({"kind": "resnet", "widths": [4, 4], "depths": [1, 1], "size": 32}, [1.0] * 5)
    with torch.no_grad():
        network.head.bias.copy_(MOVES[0])
    moved = warp(radiographs, warp_matrices(MOVES[:1].expand(3, 5)))
    back = to_canonical(network)(moved)
    middle = (..., slice(64, -64), slice(64, -64))
    assert (back - radiographs)[middle].abs().mean() < 0.01 < 0.03 < (moved - radiographs)[middle].abs().mean()
    assert torch.equal(unmoved(radiographs), radiographs)


def test_a_local_mean_is_a_mean_of_what_is_around() -> None:
    image = torch.rand(2, 1, 9, 12, generator=torch.Generator().manual_seed(0))
    mean = local_mean(image, 2)
    assert mean.shape == image.shape
    assert mean[1, 0, 4, 5] == pytest.approx(image[1, 0, 2:7, 3:8].mean().item(), abs=1e-6)
    # Mirrored at the edge, which itself is not doubled: places 2 1 0 1 2.
    corner = image[0, 0][[2, 1, 0, 1, 2]][:, [2, 1, 0, 1, 2]]
    assert mean[0, 0, 0, 0] == pytest.approx(corner.mean().item(), abs=1e-6)
    assert local_mean(image, 0) is image


def pairs(size: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    """Details of images, of the same images moved a little, and by which numbers."""
    radiographs = made_images(size, seed=3)
    rng = torch.Generator().manual_seed(1)
    moves = (torch.rand(size, 5, generator=rng) * 2 - 1) * torch.tensor([0.06, 0.06, 0.05, 0.05, 0.05])

    def small(images: Tensor) -> Tensor:
        thumbs = (torch.nn.functional.interpolate(images, (64, 64), mode="area")[:, 0] * 255).to(torch.uint8)
        return details(thumbs.numpy(), reach=8)

    return small(warp(radiographs, warp_matrices(moves))), small(radiographs), moves


def test_moved_copies_are_registered_to_their_images() -> None:
    moving, fixed, moves = pairs()
    fit = fit_pairs(moving, fixed, start=identity(12), blurs=(2, 1, 1, 0, 0))
    before = correlation(moving, fixed)
    assert before.median() < 0.85 < 0.9 < fit.correlation.min()
    assert (fit.correlation > before).all()
    undone = compose(warp_matrices(moves), fit.matrices)
    assert (undone - identity(12)).abs().max() < 0.02
    assert torch.allclose(correlation(warp(moving, fit.matrices), fixed), fit.correlation, atol=1e-5)


def test_other_images_stay_unlike_and_nothing_gets_worse() -> None:
    moving, fixed, _ = pairs()
    start = identity(12)
    fit = fit_pairs(moving.roll(1, 0), fixed, start=start, blurs=(2, 1, 1, 0, 0))
    assert (fit.correlation >= correlation(moving.roll(1, 0), fixed) - 1e-6).all()
    assert fit.correlation.max() < 0.9
    assert (fit.matrices - start).abs().max() <= 0.16 + 1e-6


def test_a_step_that_makes_things_worse_is_not_taken() -> None:
    """In noise most steps lead astray."""
    rng = torch.Generator().manual_seed(0)
    moving, fixed = torch.randn(40, 1, 32, 32, generator=rng), torch.randn(40, 1, 32, 32, generator=rng)
    fixed[:20] = 0.5 * fixed[:20] + moving[:20]
    fit = fit_pairs(moving, fixed, start=identity(40), blurs=(2, 1, 0))
    assert (fit.correlation >= correlation(moving, fixed) - 1e-6).all()
    assert torch.allclose(correlation(warp(moving, fit.matrices), fixed), fit.correlation, atol=1e-5)


def test_a_pair_is_fitted_by_itself() -> None:
    moving, fixed, _ = pairs()
    together = fit_pairs(moving, fixed, start=identity(12), blurs=(2, 1, 0)).correlation
    alone = [fit_pairs(moving[i : i + 1], fixed[i : i + 1], start=identity(1), blurs=(2, 1, 0)) for i in range(12)]
    assert torch.allclose(torch.cat([fit.correlation for fit in alone]), together, atol=1e-5)


def test_blank_images_correlate_with_nothing() -> None:
    fixed = details(made_thumbs(2))
    fit = fit_pairs(torch.zeros_like(fixed), fixed, start=identity(2), blurs=(2, 0))
    assert fit.correlation.tolist() == pytest.approx([0, 0])
    assert fit.matrices.isfinite().all()
