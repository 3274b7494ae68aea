"""Images that repeat an earlier one of their set."""

import numpy as np
import pytest
import torch

from cxrsynth.metrics.memorization import duplicates as duplicates_module
from cxrsynth.metrics.memorization.duplicates import duplicates
from cxrsynth.metrics.memorization.features import Thumbs, mirrored, thumbnails
from cxrsynth.metrics.memorization.registration import unmoved
from cxrsynth.runtime.warps import warp, warp_matrices
from tests.metrics.made_images import made_images, made_thumbs


def keys_of(thumbs: Thumbs) -> tuple[list[str], list[str]]:
    return [f"image-{i}" for i in range(len(thumbs))], [f"digest-{i}" for i in range(len(thumbs))]


def test_different_images_of_one_chest_are_no_duplicates() -> None:
    thumbs = made_thumbs(90)
    assert duplicates(thumbs, *keys_of(thumbs)).first_of == {}


def test_equal_pixels_are_duplicates_of_the_first() -> None:
    thumbs = made_thumbs(20)
    keys, digests = keys_of(thumbs)
    digests[7] = digests[15] = digests[3]
    assert duplicates(thumbs, keys, digests).first_of == {"image-7": ("image-3", 1.0), "image-15": ("image-3", 1.0)}


def test_near_ones_are_found_and_chains_lead_to_the_first() -> None:
    radiographs = made_images(40)
    rng = torch.Generator().manual_seed(0)
    noisy = (radiographs[:10] + 0.02 * torch.randn(radiographs[:10].shape, generator=rng)).clamp(0, 1)
    moved = warp(radiographs[:10], warp_matrices(torch.tensor([[0.03, 0.0, 0.0, 0.0, 0.02]]).expand(10, 5)))
    thumbs = np.concatenate(
        (thumbnails(torch.cat((radiographs, noisy, moved)), unmoved), mirrored(made_thumbs(40)[:2]))
    )
    keys, digests = keys_of(thumbs)
    digests[60] = digests[45]  # another key of an image that is itself a near duplicate
    found = duplicates(thumbs, keys, digests).first_of
    expected = {f"image-{place}": f"image-{place % 10}" for place in range(40, 60)}
    expected |= {"image-60": "image-5", "image-61": "image-1"}
    assert {key: first for key, (first, _) in found.items()} == expected
    assert all(0.7 <= similarity <= 1.0001 for _, similarity in found.values())
    assert found["image-60"][1] == found["image-45"][1] < 1


def test_links_resolve_to_the_first_of_a_chain() -> None:
    """Each image blended a little further from the first: neighbors are similar, the ends are not."""
    radiographs = made_images(30, seed=2)
    steps = torch.linspace(0, 1, 5)[:, None, None, None]
    chain = radiographs[:1] * (1 - steps) + radiographs[1:2] * steps
    thumbs = thumbnails(torch.cat((chain, radiographs[2:])), unmoved)
    keys, digests = keys_of(thumbs)
    ends = duplicates(thumbs[[0, 4, *range(5, 33)]], keys[:30], digests[:30]).first_of
    assert ends == {}
    found = duplicates(thumbs, keys, digests).first_of
    assert {key: first for key, (first, _) in found.items()} == {f"image-{i}": "image-0" for i in range(1, 5)}


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_images(count: int) -> None:
    radiograph = made_thumbs(1)
    thumbs = np.repeat(radiograph, count, 0)
    keys, digests = keys_of(thumbs)
    found = duplicates(thumbs, keys, digests).first_of
    assert found == ({"image-1": ("image-0", pytest.approx(1.0, abs=1e-4))} if count == 2 else {})


@pytest.mark.slow
def test_many_images_are_filtered_by_features_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """In large sets only images near by features are looked at again; near duplicates are still found."""
    monkeypatch.setattr(duplicates_module, "_MANY", 100)
    radiographs = made_images(150, seed=8, size=64)
    again = (radiographs[:20] * 0.9 + 0.05).clamp(0, 1)
    thumbs = thumbnails(torch.cat((radiographs, again)), unmoved)
    found = duplicates(thumbs, *keys_of(thumbs)).first_of
    assert {key: first for key, (first, _) in found.items()} == {f"image-{150 + i}": f"image-{i}" for i in range(20)}


def test_many_that_are_alike_have_one_first() -> None:
    """Four versions of one picture, twelve nearly equal images of each: the nearest eight are of the same version."""
    radiographs = made_images(41, seed=3)
    rng = torch.Generator().manual_seed(1)

    def noisy(one: torch.Tensor, count: int, strength: float) -> torch.Tensor:
        return (one + strength * torch.randn((count, *one.shape[1:]), generator=rng)).clamp(0, 1)

    versions = noisy(radiographs[:1], 4, 0.03)
    alike = torch.cat([noisy(version[None], 12, 0.002) for version in versions])
    thumbs = thumbnails(torch.cat((alike, radiographs[1:])), unmoved)
    found = duplicates(thumbs, *keys_of(thumbs)).first_of
    assert {key: first for key, (first, _) in found.items()} == {f"image-{place}": "image-0" for place in range(1, 48)}


def test_images_of_one_patient_are_follow_ups_unless_they_are_equal() -> None:
    radiographs = made_images(20, seed=4)
    rng = torch.Generator().manual_seed(2)
    again = (radiographs[:2] + 0.03 * torch.randn(radiographs[:2].shape, generator=rng)).clamp(0, 1)
    # 20 resembles 0, of the same patient; 21 is equal to 20; 22 resembles 1, of another patient.
    thumbs = thumbnails(torch.cat((radiographs, again[:1], again[:1], again[1:])), unmoved)
    keys, digests = keys_of(thumbs)
    digests[21] = digests[20]
    patients = [f"p{place}" for place in range(20)] + ["p0", "p0", "p22"]
    found = duplicates(thumbs, keys, digests, patients=patients)
    assert {key: first for key, (first, _) in found.first_of.items()} == {"image-21": "image-20", "image-22": "image-1"}
    assert (found.first_of["image-21"][1], found.first_of["image-22"][1] < 1) == (1.0, True)
    assert found.follow_ups == {"image-20"}
    linked = duplicates(thumbs, keys, digests).first_of
    assert {key: first for key, (first, _) in linked.items()} == {
        "image-20": "image-0", "image-21": "image-0", "image-22": "image-1",
    }  # fmt: skip
    assert linked["image-21"][1] == linked["image-20"][1] < 1
    unknown = duplicates(thumbs, keys, digests, patients=[""] * 23)
    assert unknown == duplicates(thumbs, keys, digests)
