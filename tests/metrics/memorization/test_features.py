"""Features by which an image is known again, and the index they are searched in."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cxrsynth.metrics.memorization import features as copy_features
from cxrsynth.metrics.memorization.features import FeatureIndex, MatchSpace, Vectors, details, mirrored, thumbnails
from cxrsynth.metrics.memorization.registration import unmoved
from cxrsynth.runtime.warps import warp, warp_matrices
from tests.metrics.made_images import made_images, made_thumbs


@pytest.fixture(scope="module")
def space() -> MatchSpace:
    return MatchSpace.fit(made_thumbs(120))


def test_thumbnails_are_small_and_registered_first() -> None:
    radiographs = made_images(3, size=300)
    thumbs = thumbnails(radiographs, unmoved)
    assert (thumbs.shape, thumbs.dtype) == ((3, 64, 64), np.uint8)
    assert np.abs(thumbs.mean((1, 2)) / 255 - radiographs.mean((1, 2, 3)).numpy()).max() < 0.01
    seen: list[tuple[int, ...]] = []

    def flip(images: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(images.shape))
        return images.flip(-1)

    turned = thumbnails(radiographs, flip).astype(int)
    assert seen == [(3, 1, 256, 256)]  # shrunk before: registration costs by the pixel
    assert np.abs(turned - mirrored(thumbs)).max() <= 1
    one = np.concatenate([thumbnails(radiograph[None], unmoved) for radiograph in radiographs]).astype(int)
    assert np.abs(one - thumbs).max() <= 1


def test_details_do_not_see_exposure() -> None:
    radiographs = made_images(4)
    plain = details(thumbnails(radiographs, unmoved))
    dim = details(thumbnails(radiographs * 0.6 + 0.2, unmoved))
    bright = torch.nn.functional.cosine_similarity(plain.flatten(1), dim.flatten(1))
    assert bright.min() > 0.98
    assert plain.mean().abs() < 0.1
    assert details(np.full((1, 64, 64), 99, np.uint8)).abs().max() < 1e-3


def test_near_duplicates_are_nearer_than_images_of_the_same_chest(space: MatchSpace) -> None:
    radiographs = made_images(60, seed=9)  # none of them seen in the fit
    thumbs = thumbnails(radiographs, unmoved)
    move = torch.tensor([[0.04, -0.04, 0.03, 0.03, 0.03]]).expand(60, 5)
    copies = thumbnails(warp(radiographs, warp_matrices(move)) ** 0.8, unmoved)
    cosines = space.features(copies) @ space.features(thumbs).T
    raw = np.corrcoef(np.concatenate((copies, thumbs)).reshape(120, -1).astype(float))[:60, 60:]
    others = ~np.eye(60, dtype=bool)
    assert raw[others].mean() > 0.3  # as they are, all chests are similar
    assert abs(cosines[others].mean()) < 0.1
    assert (cosines.argmax(1) == np.arange(60)).mean() >= 0.95


def test_features_are_unit_vectors_each_by_itself(space: MatchSpace) -> None:
    thumbs = made_thumbs(5, seed=2)
    together = space.features(thumbs)
    assert together.dtype == np.float32
    assert np.linalg.norm(together, axis=1) == pytest.approx(1.0, abs=1e-5)
    alone = np.concatenate([space.features(thumb[None]) for thumb in thumbs])
    assert np.allclose(alone, together, atol=1e-5)
    assert space.features(thumbs[:0]).shape == (0, together.shape[1])
    assert np.isfinite(space.features(np.zeros((1, 64, 64), np.uint8))).all()


def test_a_space_is_kept_and_made_again(space: MatchSpace, tmp_path: Path) -> None:
    space.save(tmp_path / "space.safetensors")
    read = MatchSpace.load(tmp_path / "space.safetensors")
    again = MatchSpace.fit(made_thumbs(120))
    for other in (read, again):
        assert np.array_equal(other.mean, space.mean)
        assert np.array_equal(other.directions, space.directions)


def test_a_space_needs_two_images_and_is_no_wider_than_they_allow() -> None:
    with pytest.raises(ValueError, match="1 reference images, expected at least 2"):
        MatchSpace.fit(made_thumbs(1))
    few = MatchSpace.fit(made_thumbs(10))
    assert few.directions.shape[1] == 2
    assert np.isfinite(few.features(made_thumbs(3, seed=4))).all()


def clusters(count: int, *, seed: int = 0) -> Vectors:
    """Unit vectors [count, 32] around a few centres, as features of images are."""
    rng = np.random.default_rng(seed)
    found = rng.standard_normal((20, 32))[rng.integers(20, size=count)] + rng.standard_normal((count, 32))
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True), np.float32)


def test_the_index_finds_what_a_full_search_finds() -> None:
    features, queries = clusters(300), clusters(20, seed=1)
    index = FeatureIndex(features, [f"image-{i}" for i in range(300)])
    found = index.nearest(queries, 7)
    cosines = queries @ features.T
    assert np.array_equal(found.places, np.argsort(-cosines, axis=1)[:, :7])
    assert np.allclose(found.cosines, -np.sort(-cosines, axis=1)[:, :7], atol=1e-5)
    assert index.nearest(queries, 1000).places.shape == (20, 300)
    assert index.names[found.places[0, 0]] == f"image-{cosines[0].argmax()}"
    with pytest.raises(ValueError, match="300 features for 1 names"):
        FeatureIndex(features, ["one"])


def test_many_features_are_searched_by_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    features = clusters(4000)
    exact = FeatureIndex(features, [str(i) for i in range(4000)])
    monkeypatch.setattr(copy_features, "_EXACT_BELOW", 1000)
    cells, again = (FeatureIndex(features, exact.names) for _ in range(2))
    assert not cells.exact
    assert exact.exact
    near = features[:200] + 0.05 * clusters(200, seed=5)
    near /= np.linalg.norm(near, axis=1, keepdims=True)
    found = cells.nearest(near, 5)
    assert (found.places[:, 0] == np.arange(200)).all()
    wide = [set(a) & set(b) for a, b in zip(found.places, exact.nearest(near, 5).places, strict=True)]
    assert np.mean([len(both) / 5 for both in wide]) > 0.7
    assert np.array_equal(found.places, again.nearest(near, 5).places)
    assert cells.size_bytes == 4000 * (4 * 32 + 8)
