"""Votes of patches: for which image, at which scale and shift, and whose are not counted."""

import math

import numpy as np
import pytest
import torch

from cxrsynth.metrics.memorization.features import Thumbs, thumbnails
from cxrsynth.metrics.memorization.patches import GRID, SIDE, PatchIndex, Places, _agreed, seen_pixels
from cxrsynth.metrics.memorization.registration import unmoved
from cxrsynth.runtime.warps import compose, warp, warp_matrices
from tests.metrics.made_images import made_images, made_thumbs

IMAGES = made_images(60)
THUMBS = made_thumbs(60)
GROUPS = np.arange(60) // 2
NOBODY = np.full(60, -1)
PLAIN = (1.0,)


@pytest.fixture(scope="module")
def index() -> PatchIndex:
    return PatchIndex(THUMBS, GROUPS)


def moved(*, shift: float = 0.0, scale: float = 1.0) -> Thumbs:
    move = torch.tensor([[shift, 0.0, math.log(scale), math.log(scale), 0.0]]).expand(60, 5)
    return thumbnails(warp(IMAGES, warp_matrices(move)), unmoved)


def first(index: PatchIndex, thumbs: Thumbs, *, leave_out: Places = NOBODY) -> Places:
    return index.vote(thumbs, leave_out=leave_out[: len(thumbs)], scales=PLAIN, count=1).places[:, 0]


@pytest.mark.parametrize(
    "move", [{"shift": 0.3}, {"shift": -0.3}, {"scale": 0.85}, {"scale": 1.2}, {"shift": 0.2, "scale": 0.8}]
)
def test_votes_lead_back_to_the_image(index: PatchIndex, move: dict[str, float]) -> None:
    """The matrix found undoes the move: one after the other they leave the middle where it was."""
    votes = index.vote(moved(**move), leave_out=NOBODY, scales=PLAIN, count=1)
    right = votes.places[:, 0] == np.arange(60)
    assert right.mean() > 0.9
    done = torch.tensor([[move.get("shift", 0.0), 0.0, *[math.log(move.get("scale", 1.0))] * 2, 0.0]])
    both = compose(warp_matrices(done), votes.start[:, 0][torch.from_numpy(right)])
    error = (both - torch.eye(2, 3)).abs().median(0).values
    assert error.max() < 0.12, error


def test_the_middle_of_the_patches_is_led_to_where_it_was_seen() -> None:
    """Off the center of the image, where scale and shift depend on each other."""
    there = np.array([[0, 0], [9, 0], [0, 9], [9, 12]])  # x, y of first pixels
    here = np.round(1.2 * there + np.array([4, 2])).astype(np.int64)
    [matrix] = _agreed(here, there, np.ones(4), np.zeros(4, np.int64), np.ones(1)).numpy()
    assert 1.05 < matrix[0, 0] == matrix[1, 1] < 1.25
    middles = [(2 * corners.mean(0) + SIDE) / GRID - 1 for corners in (there, here)]  # half widths
    assert matrix[:, :2] @ middles[0] + matrix[:, 2] == pytest.approx(middles[1], abs=1e-6)


def test_a_scale_of_the_search_undoes_what_patches_do_not_bear(index: PatchIndex) -> None:
    small = moved(scale=1.6)
    plain = index.vote(small, leave_out=NOBODY, scales=(1.0,), count=1)
    scaled = index.vote(small, leave_out=NOBODY, scales=(1.0, 1 / 1.6), count=1)
    found = [(votes.places[:, 0] == np.arange(60)).mean() for votes in (plain, scaled)]
    assert found[0] < 0.3 < 0.6 < found[1]
    right = torch.from_numpy(scaled.places[:, 0] == np.arange(60))
    assert scaled.start[right, 0, 0, 0].median() == pytest.approx(1 / 1.6, abs=0.08)


def test_those_left_out_get_no_votes(index: PatchIndex) -> None:
    votes = index.vote(THUMBS, leave_out=GROUPS, scales=PLAIN, count=4)
    assert (GROUPS[votes.places] != GROUPS[:, None])[votes.places >= 0].all()
    assert (first(index, THUMBS) == np.arange(60)).all()


def test_the_weight_lies_where_the_image_is(index: PatchIndex) -> None:
    """The left half of one image beside the right half of another: votes for the first lie on the left."""
    mixed = THUMBS.copy()
    mixed[:, :, 32:] = np.roll(THUMBS, 20, 0)[:, :, 32:]
    votes = index.vote(mixed, leave_out=np.roll(GROUPS, 20), scales=PLAIN, count=1)
    right = votes.places[:, 0] == np.arange(60)
    assert right.mean() > 0.8
    weight = votes.weight[:, 0][torch.from_numpy(right)]
    assert weight[..., : GRID // 2].sum() > 4 * weight[..., GRID // 2 :].sum()
    assert 0 <= weight.min() <= weight.max() <= 1 + 1e-5


def test_what_is_black_does_not_vote(index: PatchIndex) -> None:
    framed = THUMBS[:8].copy()
    framed[:, :24] = 0
    assert (first(index, framed) == np.arange(8)).mean() > 0.8
    assert not seen_pixels(framed)[..., :24, :].any()
    black = np.zeros_like(THUMBS[:3])
    votes = index.vote(black, leave_out=NOBODY[:3], scales=PLAIN, count=4)
    assert (votes.places == -1).all()
    assert torch.isfinite(votes.start).all()
    blank = PatchIndex(np.zeros((30, 64, 64), np.uint8), np.arange(30))
    assert np.isfinite(blank.vote(THUMBS[:2], leave_out=NOBODY[:2], scales=PLAIN, count=1).start).all()


def test_few_patches_are_searched_exhaustively_and_many_alike(index: PatchIndex) -> None:
    few = PatchIndex(THUMBS[:2], GROUPS[:2])
    assert (first(few, THUMBS[:2]) == np.arange(2)).all()
    again = PatchIndex(THUMBS, GROUPS).vote(THUMBS, leave_out=NOBODY, scales=PLAIN, count=4)
    once = index.vote(THUMBS, leave_out=NOBODY, scales=PLAIN, count=4)
    assert np.array_equal(again.places, once.places)
    assert torch.equal(again.start, once.start)
