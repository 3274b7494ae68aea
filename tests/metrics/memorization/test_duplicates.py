"""Films that repeat an earlier one of their set."""

import numpy as np
import pytest
import torch
from cxrsynth.tuning.metrics.memorization import duplicates as duplicates_module

from cxrsynth.metrics.memorization.duplicates import duplicates
from cxrsynth.metrics.memorization.features import Thumbs, mirrored, thumbnails
from cxrsynth.metrics.memorization.registration import unmoved
from cxrsynth.runtime.warps import warp, warp_matrices
from tests.metrics.made_images import made_films, made_thumbs


def keys_of(thumbs: Thumbs) -> tuple[list[str], list[str]]:
    return [f"film-{i}" for i in range(len(thumbs))], [f"digest-{i}" for i in range(len(thumbs))]


def test_different_films_of_one_chest_are_no_duplicates() -> None:
    thumbs = made_thumbs(90)
    assert duplicates(thumbs, *keys_of(thumbs)) == {}


def test_equal_pixels_are_duplicates_of_the_first() -> None:
    thumbs = made_thumbs(20)
    keys, digests = keys_of(thumbs)
    digests[7] = digests[15] = digests[3]
    assert duplicates(thumbs, keys, digests) == {"film-7": ("film-3", 1.0), "film-15": ("film-3", 1.0)}


def test_near_ones_are_found_and_chains_lead_to_the_first() -> None:
    films = made_films(40)
    rng = torch.Generator().manual_seed(0)
    noisy = (films[:10] + 0.02 * torch.randn(films[:10].shape, generator=rng)).clamp(0, 1)
    moved = warp(films[:10], warp_matrices(torch.tensor([[0.03, 0.0, 0.0, 0.0, 0.02]]).expand(10, 5)))
    thumbs = np.concatenate((thumbnails(torch.cat((films, noisy, moved)), unmoved), mirrored(made_thumbs(40)[:2])))
    keys, digests = keys_of(thumbs)
    digests[60] = digests[45]  # another key of a film that is itself a near duplicate
    found = duplicates(thumbs, keys, digests)
    expected = {f"film-{place}": f"film-{place % 10}" for place in range(40, 60)}
    expected |= {"film-60": "film-5", "film-61": "film-1"}
    assert {key: first for key, (first, _) in found.items()} == expected
    assert all(0.7 <= similarity <= 1.0001 for _, similarity in found.values())
    assert found["film-60"][1] == 1.0


def test_links_resolve_to_the_first_of_a_chain() -> None:
    """Each film drawn a little further from the first: neighbours are alike, the ends are not."""
    films = made_films(30, seed=2)
    steps = torch.linspace(0, 1, 5)[:, None, None, None]
    chain = films[:1] * (1 - steps) + films[1:2] * steps
    thumbs = thumbnails(torch.cat((chain, films[2:])), unmoved)
    keys, digests = keys_of(thumbs)
    ends = duplicates(thumbs[[0, 4, *range(5, 33)]], keys[:30], digests[:30])
    assert ends == {}
    found = duplicates(thumbs, keys, digests)
    assert {key: first for key, (first, _) in found.items()} == {f"film-{i}": "film-0" for i in range(1, 5)}


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_films(count: int) -> None:
    film = made_thumbs(1)
    thumbs = np.repeat(film, count, 0)
    keys, digests = keys_of(thumbs)
    found = duplicates(thumbs, keys, digests)
    assert found == ({"film-1": ("film-0", pytest.approx(1.0, abs=1e-4))} if count == 2 else {})


def test_many_films_are_filtered_by_features_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """In large sets only films near by features are looked at again; near duplicates are still found."""
    monkeypatch.setattr(duplicates_module, "_MANY", 100)
    films = made_films(150, seed=8, size=64)
    again = (films[:20] * 0.9 + 0.05).clamp(0, 1)
    thumbs = thumbnails(torch.cat((films, again)), unmoved)
    found = duplicates(thumbs, *keys_of(thumbs))
    assert {key: first for key, (first, _) in found.items()} == {f"film-{150 + i}": f"film-{i}" for i in range(20)}
