"""The third and the fourth look: what is found of images where nobody moved them, and in no others."""

import numpy as np
import pytest

from cxrsynth.metrics.memorization import framed
from cxrsynth.metrics.memorization.features import MatchSpace, Thumbs, Vectors, negatives
from cxrsynth.metrics.memorization.framed import FramedIndex
from cxrsynth.metrics.memorization.looks import Searchable
from tests.metrics.made_images import made_thumbs

THUMBS = made_thumbs(80)
OTHERS = made_thumbs(80, seed=3)
LOST = made_thumbs(80, seed=9)  # what a registration may leave of images: nothing to recognize them by
NOBODY = np.full(80, -1)
OWN = np.arange(80)


@pytest.fixture(scope="module")
def index() -> FramedIndex:
    return FramedIndex.of(THUMBS, OWN)


@pytest.fixture(scope="module")
def real() -> Searchable:
    return Searchable.of(THUMBS, THUMBS, OWN, MatchSpace.fit(THUMBS))


def mixed(share: float) -> Thumbs:
    """Reference images blended with other images."""
    return (share * THUMBS.astype(np.float32) + (1 - share) * OTHERS).round().astype(np.uint8)


def test_blends_and_halves_are_recognized_and_other_images_are_not(index: FramedIndex) -> None:
    blended, unlike = index.most_alike(mixed(0.5), leave_out=NOBODY), index.most_alike(OTHERS, leave_out=NOBODY)
    assert blended.places.tolist() == OWN.tolist()
    assert blended.similarity.min() > unlike.similarity.max() + 0.05
    halves = OTHERS.copy()
    halves[:, :, :32] = THUMBS[:, :, :32]
    half = index.most_alike(halves, leave_out=NOBODY)
    assert half.places.tolist() == OWN.tolist()
    assert (half.similarity > np.quantile(unlike.similarity, 0.99)).mean() > 0.7


def test_the_search_finds_blends_that_no_registration_brings_to_their_place(real: Searchable) -> None:
    found = real.nearest(LOST, mixed(0.5), leave_out=NOBODY)
    unlike = real.nearest(LOST, OTHERS, leave_out=NOBODY)
    assert (found.places == OWN).all()
    assert found.similarity.min() > unlike.similarity.max()
    assert not found.mirrored.any()
    assert found.cosines == pytest.approx((real.gallery.space.features(LOST) * features(real)).sum(1), abs=1e-5)
    # What another look finds more alike stays.
    same = real.nearest(THUMBS, OTHERS, leave_out=NOBODY)
    assert (same.places == OWN).all()
    assert same.similarity.min() > 0.99


def features(real: Searchable) -> Vectors:
    return real.gallery.space.features(THUMBS)


def test_similarities_are_on_the_scale_of_the_other_looks(index: FramedIndex) -> None:
    same = index.most_alike(THUMBS, leave_out=NOBODY)
    assert same.places.tolist() == OWN.tolist()
    assert same.similarity == pytest.approx(1.0, abs=1e-5)
    other = index.most_alike(THUMBS, leave_out=OWN)
    assert (other.places != OWN).all()
    assert 0.5 < np.quantile(other.similarity, 0.99) < 0.7


def test_negatives_are_turned_back(real: Searchable) -> None:
    blended = mixed(0.65)
    found = real.nearest(negatives(LOST), negatives(blended), leave_out=NOBODY)
    assert (found.places == OWN).all()
    assert np.median(found.similarity) > 0.85
    turned = THUMBS.copy()
    turned[:10] = negatives(THUMBS[:10])
    some = Searchable.of(turned, turned, OWN, MatchSpace.fit(turned))
    assert (some.nearest(LOST, blended, leave_out=NOBODY).places == OWN).all()


def test_results_repeat_and_do_not_depend_on_the_batch(index: FramedIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = index.most_alike(mixed(0.5), leave_out=OWN[::-1].copy())
    again = FramedIndex.of(THUMBS, OWN).most_alike(mixed(0.5), leave_out=OWN[::-1].copy())
    assert whole.places.tolist() == again.places.tolist()
    assert whole.similarity.tolist() == again.similarity.tolist()
    monkeypatch.setattr(framed, "_SOUGHT", 7)
    monkeypatch.setattr(framed, "_BLOCK", 3)
    parts = FramedIndex.of(THUMBS, OWN).most_alike(mixed(0.5), leave_out=OWN[::-1].copy())
    one = index.most_alike(mixed(0.5)[5:6], leave_out=OWN[::-1][5:6].copy())
    assert parts.places.tolist() == whole.places.tolist()
    assert parts.similarity == pytest.approx(whole.similarity, abs=1e-5)
    assert one.places.tolist() == whole.places[5:6].tolist()
    assert one.similarity == pytest.approx(whole.similarity[5:6], abs=1e-5)


def test_of_equal_images_the_first_and_nobody_where_all_are_left_out() -> None:
    twice = np.concatenate((THUMBS[:3], THUMBS[:3]))
    index = FramedIndex.of(twice, np.zeros(6, np.int64))
    assert index.most_alike(THUMBS[:3], leave_out=NOBODY[:3]).places.tolist() == [0, 1, 2]
    alone = index.most_alike(THUMBS[:3], leave_out=np.zeros(3, np.int64))
    assert alone.places.tolist() == alone.similarity.tolist() == [-1] * 3
    assert index.most_alike(THUMBS[:0], leave_out=NOBODY[:0]).places.shape == (0,)
    black = index.most_alike(np.zeros_like(THUMBS[:1]), leave_out=NOBODY[:1])
    assert -1 <= black.similarity.item() < 0.9


def pasted(side: int) -> Thumbs:
    """Other images, each with a square of a reference image pasted where it lay."""
    rng, images = np.random.default_rng(5), OTHERS.copy()
    for image, own in zip(images, THUMBS, strict=True):
        row, column = rng.integers(0, 64 - side + 1, 2)
        square = (slice(row, row + side), slice(column, column + side))
        image[square] = own[square]
    return images


def test_a_patch_is_recognized_where_it_lay_and_other_images_are_not(index: FramedIndex) -> None:
    found = index.most_alike_in_a_window(pasted(24), leave_out=NOBODY)
    unlike = index.most_alike_in_a_window(OTHERS, leave_out=NOBODY)
    right = found.places == OWN
    assert right.mean() > 0.7
    assert (found.similarity[right] > np.quantile(unlike.similarity, 0.99)).mean() > 0.9
    whole = index.most_alike(pasted(24), leave_out=NOBODY)
    assert (whole.places == OWN).mean() < right.mean() - 0.2
    assert index.most_alike_in_a_window(pasted(24), leave_out=OWN).similarity.max() < found.similarity[right].min()


def test_the_search_finds_patches(real: Searchable) -> None:
    found = real.nearest(LOST, pasted(24), leave_out=NOBODY)
    assert (found.places == OWN).mean() > 0.7
    unlike = real.nearest(LOST, OTHERS, leave_out=NOBODY)
    assert np.median(found.similarity) > np.quantile(unlike.similarity, 0.99)


def test_a_marker_in_common_makes_no_two_images_alike() -> None:
    """In a corner that a collimator leaves black; the mean image shows next to nothing of the marker."""
    marked, others = THUMBS.copy(), OTHERS.copy()
    for images in (marked[:5], others):
        images[:, :30, :30] = 0
        images[:, 12:17, 12:13] = images[:, 16:17, 12:15] = 255
    unlike = FramedIndex.of(marked, OWN).most_alike_in_a_window(others, leave_out=NOBODY)
    assert unlike.similarity.max() < 0.5


def test_windows_of_nobody_and_in_any_batch(index: FramedIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    images = pasted(24)
    whole = index.most_alike_in_a_window(images, leave_out=NOBODY)
    monkeypatch.setattr(framed, "_WINDOWED_AT_ONCE", 7)
    parts = index.most_alike_in_a_window(images, leave_out=NOBODY)
    assert parts.places.tolist() == whole.places.tolist()
    assert parts.similarity == pytest.approx(whole.similarity, abs=1e-5)
    assert index.most_alike_in_a_window(images[:0], leave_out=NOBODY[:0]).places.shape == (0,)
    twice = FramedIndex.of(THUMBS[:4], np.zeros(4, np.int64))
    alone = twice.most_alike_in_a_window(THUMBS[:4], leave_out=np.zeros(4, np.int64))
    assert alone.places.tolist() == alone.similarity.tolist() == [-1] * 4
    black = index.most_alike_in_a_window(np.zeros_like(THUMBS[:1]), leave_out=NOBODY[:1])
    assert -1 <= black.similarity.item() < 0.5
