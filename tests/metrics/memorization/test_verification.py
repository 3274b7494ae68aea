"""Verification: which images are found, which are left out, and that each image is compared by itself."""

import numpy as np
import pytest
import torch

from cxrsynth.metrics.memorization.features import MatchSpace, Thumbs, mirrored, thumbnails
from cxrsynth.metrics.memorization.registration import unmoved
from cxrsynth.metrics.memorization.verification import CANDIDATES, Gallery, Places, compare
from cxrsynth.runtime.warps import warp, warp_matrices
from tests.metrics.made_images import made_images, made_thumbs


def nobody(radiographs: Thumbs) -> Places:
    return np.full(len(radiographs), -1)


@pytest.fixture(scope="module")
def gallery() -> Gallery:
    thumbs = made_thumbs(80)
    return Gallery.of(thumbs, np.arange(80) // 2, MatchSpace.fit(thumbs))  # two images a patient


def test_an_image_is_its_own_nearest_and_so_is_its_mirror_image(gallery: Gallery) -> None:
    radiographs = gallery.thumbs[:20]
    plain = compare(radiographs, gallery, leave_out=nobody(radiographs)).best()
    assert plain.places.tolist() == list(range(20))
    assert plain.similarity == pytest.approx(1.0, abs=1e-4)
    assert plain.cosines == pytest.approx(1.0, abs=1e-4)
    assert not plain.mirrored.any()
    turned = compare(mirrored(radiographs), gallery, leave_out=nobody(radiographs)).best()
    assert turned.places.tolist() == list(range(20))
    assert turned.similarity == pytest.approx(1.0, abs=1e-4)
    assert turned.mirrored.all()


def test_what_is_left_out_is_not_met(gallery: Gallery) -> None:
    radiographs, own = gallery.thumbs, gallery.groups
    apart = compare(radiographs, gallery, leave_out=own, verified=CANDIDATES)
    met = apart.places >= 0
    assert met.all()
    assert (gallery.groups[apart.places] != own[:, None]).all()
    assert (
        apart.similarity.max()
        < 0.8
        < compare(radiographs, gallery, leave_out=nobody(radiographs)).similarity.max(1).min()
    )
    assert all(len(set(row)) == CANDIDATES for row in apart.places)


def test_a_patient_of_many_images_is_searched_past(gallery: Gallery) -> None:
    """More images of one patient than candidates, all nearer than anybody else's."""
    rng = np.random.default_rng(0)
    many = np.repeat(gallery.thumbs[:1], 30, 0)
    many = (many + rng.normal(0, 4, many.shape)).clip(0, 255).astype(np.uint8)
    thumbs = np.concatenate((many, gallery.thumbs[40:]))
    crowded = Gallery.of(thumbs, np.array([0] * 30 + list(range(1, 41))), gallery.space)
    found = compare(thumbs[:1], crowded, leave_out=np.zeros(1, np.int64), verified=CANDIDATES)
    without = Gallery.of(thumbs[30:], np.arange(40), gallery.space)
    expected = compare(thumbs[:1], without, leave_out=np.full(1, -1), verified=CANDIDATES)
    assert found.places.tolist() == (expected.places + 30).tolist()
    assert np.allclose(found.similarity, expected.similarity, atol=1e-5)


def test_a_moved_copy_is_recognized_after_registration(gallery: Gallery) -> None:
    move = torch.tensor([[0.06, 0.06, 0.0, 0.0, 0.0]]).expand(80, 5)
    moved = thumbnails(warp(made_images(80), warp_matrices(move)), unmoved)
    found = compare(moved, gallery, leave_out=nobody(moved)).best()
    assert (found.places == np.arange(80)).mean() > 0.95
    assert np.median(found.similarity) > 0.85
    assert np.median(found.cosines) < 0.9


def test_the_candidate_looked_at_is_the_best_of_all(gallery: Gallery) -> None:
    """A rough fit of all candidates chooses as well as fine detail of all would, where features do not."""
    move = torch.tensor([[0.07, 0.07, 0.0, 0.0, 0.0]]).expand(80, 5)
    moved = thumbnails(warp(made_images(80), warp_matrices(move)), unmoved)
    one = compare(moved, gallery, leave_out=nobody(moved))
    whole = compare(moved, gallery, leave_out=nobody(moved), verified=CANDIDATES)
    assert (one.places.shape, whole.places.shape) == ((80, 1), (80, CANDIDATES))
    assert (one.places[:, 0] == whole.best().places).mean() > 0.95
    assert np.allclose(one.similarity[:, 0], whole.similarity[:, 0])
    nearest = whole.places[np.arange(80), whole.cosines.argmax(1)]
    assert (nearest == np.arange(80)).mean() < 0.9 < (one.places[:, 0] == np.arange(80)).mean()


def test_a_blend_is_recognized_without_registration(gallery: Gallery) -> None:
    radiographs, others = made_images(80), made_images(80, seed=50)
    blends = thumbnails((radiographs + others) / 2, unmoved)
    found = compare(blends, gallery, leave_out=nobody(blends)).best()
    unlike = compare(thumbnails(others, unmoved), gallery, leave_out=nobody(blends)).best()
    assert (found.places == np.arange(80)).mean() > 0.95
    assert (found.similarity > np.quantile(unlike.similarity, 0.99)).mean() > 0.95


def test_nobody_to_compare_with(gallery: Gallery) -> None:
    thumbs = gallery.thumbs[:12]
    alone = Gallery.of(thumbs, np.zeros(12, np.int64), gallery.space)
    found = compare(thumbs, alone, leave_out=np.zeros(12, np.int64), verified=CANDIDATES)
    assert (found.places == -1).all()
    assert (found.best().similarity == -1).all()
    far = compare(thumbs, gallery, leave_out=nobody(thumbs), verified=CANDIDATES, least_cosine=0.9)
    assert ((far.places >= 0).sum(1) == 1).all()
    assert compare(thumbs[:0], gallery, leave_out=nobody(thumbs[:0])).best().places.shape == (0,)


@pytest.mark.slow
def test_each_image_is_compared_by_itself(gallery: Gallery) -> None:
    radiographs = made_thumbs(70, seed=4)  # more than a block
    together = compare(radiographs, gallery, leave_out=nobody(radiographs)).best()
    alone = [
        compare(radiograph[None], gallery, leave_out=nobody(radiograph[None])).best() for radiograph in radiographs
    ]
    assert together.places.tolist() == [int(one.places[0]) for one in alone]
    assert np.allclose(together.similarity, [float(one.similarity[0]) for one in alone], atol=1e-4)
