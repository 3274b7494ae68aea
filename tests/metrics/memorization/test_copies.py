"""Copies of real images where the reference is too small for a threshold of its own."""

import pytest
import torch
from torch import Tensor

from cxrsynth.metrics.memorization.copies import find_copies
from cxrsynth.metrics.memorization.features import thumbnails
from cxrsynth.metrics.memorization.registration import unmoved
from cxrsynth.metrics.memorization.search import ImageSet, Match
from cxrsynth.runtime.warps import warp, warp_matrices
from tests.metrics.made_images import made_images

REAL, NEW = made_images(12), made_images(9, seed=77)


def found(made: Tensor, real: Tensor, *, equal: dict[int, int] | None = None) -> tuple[Match, ...]:
    sets = []
    for name, images in (("made", made), ("real", real)):
        thumbs = thumbnails(images, unmoved)
        sets.append(ImageSet(tuple(f"{name}-{place}" for place in range(len(images))), thumbs, thumbs))
    digests = [f"real-{place}" for place in range(len(real))]
    own = [f"real-{equal[place]}" if place in (equal or {}) else f"made-{place}" for place in range(len(made))]
    return find_copies(*sets, made_digests=own, digests=digests)


@pytest.mark.parametrize("images", [1, 2, 12])
def test_copies_are_found_in_a_reference_of_any_size(images: int) -> None:
    rng = torch.Generator().manual_seed(0)
    made, copied = NEW.clone(), REAL[:1]
    made[1] = copied[0]
    made[3] = copied[0].flip(-1)
    made[4] = (0.9 * copied[0] ** 0.8 + 0.01 * torch.randn(copied[0].shape, generator=rng)).clamp(0, 1)
    made[6] = warp(copied, warp_matrices(torch.tensor([[0.03, 0.0, 0.0, 0.0, 0.02]])))[0]
    matches = found(made, REAL[:images])
    assert {match.key for match in matches if match.flagged} == {"made-1", "made-3", "made-4", "made-6"}
    assert {match.real for match in matches if match.flagged} == {"real-0"}
    assert [match.mirrored for match in matches if match.flagged] == [False, True, False, False]


def test_equal_files_are_copies_of_the_first_whatever_they_look_like() -> None:
    match = found(NEW, REAL, equal={5: 7})[5]
    assert (match.real, match.similarity, match.flagged) == ("real-7", 1.0, True)


def test_no_images_have_no_copies() -> None:
    assert found(NEW[:0], REAL) == ()
