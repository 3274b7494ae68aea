"""The second look and negatives: what the look at whole images does not find."""

import numpy as np
import pytest

from cxrsynth.metrics.memorization.features import MatchSpace, Thumbs, inverted, negatives
from cxrsynth.metrics.memorization.looks import Searchable
from cxrsynth.metrics.memorization.partial import most_alike
from cxrsynth.metrics.memorization.patches import PatchIndex
from cxrsynth.metrics.memorization.verification import compare
from tests.metrics.made_images import made_thumbs

THUMBS = made_thumbs(80)
OTHERS = made_thumbs(80, seed=3)
NOBODY = np.full(80, -1)
OWN = np.arange(80)


@pytest.fixture(scope="module")
def real() -> Searchable:
    return Searchable.of(THUMBS, THUMBS, OWN, MatchSpace.fit(THUMBS))


def halves() -> Thumbs:
    """The left half of a reference image, moved by 12% of its width and height, beside half of another image."""
    mixed = OTHERS.copy()
    mixed[:, :56, :32] = THUMBS[:, 8:, 8:40]
    return mixed


def test_half_an_image_is_recognized_by_the_second_look(real: Searchable) -> None:
    mixed = halves()
    whole = compare(mixed, real.gallery, leave_out=NOBODY).best()
    both = real.nearest(mixed, mixed, leave_out=NOBODY)
    unlike = real.nearest(OTHERS, OTHERS, leave_out=NOBODY)
    limit = np.quantile(unlike.similarity, 0.99)
    assert ((whole.places == OWN) & (whole.similarity > limit)).mean() < 0.5
    assert ((both.places == OWN) & (both.similarity > limit)).mean() > 0.8
    assert (both.similarity >= whole.similarity).all()
    assert not both.mirrored[both.similarity > whole.similarity].any()


def test_similarities_of_both_looks_are_on_one_scale(real: Searchable) -> None:
    alike = most_alike(THUMBS, THUMBS, real.patches, leave_out=NOBODY)
    assert alike.places.tolist() == OWN.tolist()
    assert alike.similarity == pytest.approx(1.0, abs=0.02)
    apart = most_alike(THUMBS, THUMBS, real.patches, leave_out=OWN)
    assert (apart.places != OWN).all()
    # Different images: no more alike than by the first look.
    whole = compare(THUMBS, real.gallery, leave_out=OWN).best().similarity
    assert -1 <= apart.similarity.min() <= apart.similarity.max() < np.quantile(whole, 0.99)


def test_nobody_to_compare_with(real: Searchable) -> None:
    black = np.zeros_like(THUMBS[:2])
    nobody = most_alike(black, THUMBS, real.patches, leave_out=NOBODY[:2])
    assert nobody.places.tolist() == [-1, -1]
    assert nobody.similarity.tolist() == [-1, -1]
    alone = PatchIndex(THUMBS[:4], np.zeros(4, np.int64))
    left_out = most_alike(THUMBS[:4], THUMBS[:4], alone, leave_out=np.zeros(4, np.int64))
    assert left_out.places.tolist() == left_out.similarity.tolist() == [-1] * 4
    assert most_alike(THUMBS[:0], THUMBS, real.patches, leave_out=NOBODY[:0]).places.shape == (0,)


def test_negatives_are_known_and_found(real: Searchable) -> None:
    turned = negatives(THUMBS)
    mean = THUMBS.mean(0, dtype=np.float32)
    assert inverted(turned, mean).all()
    assert not inverted(THUMBS, mean).any()
    assert np.array_equal(negatives(turned)[turned > 0], THUMBS[turned > 0])
    found = real.nearest(turned, turned, leave_out=NOBODY)
    assert (found.places == OWN).mean() > 0.95
    assert np.median(found.similarity) > 0.9
    assert compare(turned, real.gallery, leave_out=NOBODY).best().similarity.max() < 0.8


def test_a_negative_in_the_reference_is_found_in_either_form() -> None:
    mixed = THUMBS.copy()
    mixed[5] = negatives(THUMBS[5:6])[0]
    real = Searchable.of(mixed, mixed, OWN, MatchSpace.fit(mixed))
    pair = np.stack((mixed[5], THUMBS[5]))
    found = real.nearest(pair, pair, leave_out=NOBODY[:2])
    assert found.places.tolist() == [5, 5]
    assert found.similarity.min() > 0.95


def test_black_beyond_the_edge_says_nothing_of_gray_levels() -> None:
    """An image half outside its frame is no negative of others, and stays black there when it is turned."""
    framed = THUMBS[:6].copy()
    framed[:, :30] = 0
    assert not inverted(framed, THUMBS.mean(0, dtype=np.float32)).any()
    assert (negatives(framed)[:, :30] == 0).all()
