"""Near-duplicates are what they are said to be, and the sample they are made of is a fair one."""

import math

import numpy as np
import pytest
import torch

from cxrsynth.metrics.memorization.planted import ALTERATIONS, ProbeKeeper, altered
from cxrsynth.metrics.memorization.registration import correlation
from cxrsynth.runtime.warps import warp, warp_matrices
from tests.metrics.made_images import made_images

IMAGES, PARTNERS = made_images(6), made_images(6, seed=1)


def plant(kind: str, *, seed: int = 0) -> torch.Tensor:
    return altered(kind, IMAGES, partners=PARTNERS, seed=seed, autoencode=lambda images: images * 2)


def middle(images: torch.Tensor, edge: int) -> torch.Tensor:
    """Without the edge, beyond which a moved image holds nothing."""
    return images[..., edge:-edge, edge:-edge]


@pytest.mark.parametrize("kind", list(ALTERATIONS))
def test_each_kind_is_an_image_and_repeats(kind: str) -> None:
    planted = plant(kind)
    assert planted.shape == IMAGES.shape
    assert planted.min() >= 0
    assert planted.max() <= 1
    assert torch.equal(planted, plant(kind))
    assert torch.equal(planted, IMAGES) == (kind == "exact")


def test_images_are_moved_by_what_is_said() -> None:
    undo = {
        "shifted": [(dx, dy, 0, 0, 0) for dx in (-0.06, 0.06) for dy in (-0.06, 0.06)],
        "rotated": [(0, 0, 0, 0, angle) for angle in (math.radians(-3), math.radians(3))],
        "zoomed": [(0, 0, scale, scale, 0) for scale in (-math.log(1.05), math.log(1.05))],
    }
    undo["shifted_12"] = [(dx, dy, 0, 0, 0) for dx in (-0.24, 0.24) for dy in (-0.24, 0.24)]
    undo["rotated_15"] = [(0, 0, 0, 0, angle) for angle in (math.radians(-15), math.radians(15))]
    for share in (15, 30):
        scales = (-math.log(1 + share / 100), math.log(1 + share / 100))
        undo[f"zoomed_{share}"] = [(0, 0, scale, scale, 0) for scale in scales]
    for kind, moves in undo.items():
        planted = plant(kind)
        undone = [warp(planted, warp_matrices(torch.tensor([move]).expand(6, 5))) for move in moves]
        edge = 40 if kind in ("shifted_12", "zoomed_30", "rotated_15") else 20 if kind == "zoomed_15" else 12
        back = torch.stack([correlation(middle(one, edge), middle(IMAGES, edge)) for one in undone])
        best = back.max(0)
        assert best.values.min() > (0.995 if edge > 12 else 0.99), kind
        assert (correlation(middle(planted, edge), middle(IMAGES, edge)) < best.values).all(), kind
        assert len(set(best.indices.tolist())) > 1, kind  # not all the same way


def test_grey_levels_are_changed_as_said() -> None:
    assert (plant("noise") - IMAGES).std() == pytest.approx(0.05, abs=0.005)
    assert torch.allclose(plant("contrast"), IMAGES**0.7 * 0.8 + 0.1)
    assert torch.allclose(plant("blended"), (IMAGES + PARTNERS) / 2)
    assert torch.allclose(plant("blended_65"), 0.65 * IMAGES + 0.35 * PARTNERS)
    assert torch.allclose(plant("inverted"), 1 - IMAGES)
    assert torch.allclose(plant("mirrored").flip(-1), IMAGES)
    assert torch.allclose(plant("autoencoded"), (IMAGES * 2).clamp(0, 1))
    assert 0.002 < (plant("jpeg") - IMAGES).abs().mean() < 0.03
    assert not torch.equal(plant("noise"), plant("noise", seed=1))


def test_contrast_is_equalized_locally() -> None:
    """Flat regions gain most: the spread within squares becomes more even, and edges stay where they are."""

    def spreads(images: torch.Tensor) -> torch.Tensor:
        return images.unfold(2, 16, 16).unfold(3, 16, 16).std((-1, -2)).flatten(1)

    before, after = spreads(IMAGES), spreads(plant("clahe"))
    assert (after.min(1).values / after.max(1).values > before.min(1).values / before.max(1).values).all()
    assert (correlation(plant("clahe"), IMAGES) > 0.65).all()


def test_blurring_keeps_coarse_structure_and_takes_fine_detail() -> None:
    """A wave that is blurred with standard deviation s keeps exp(-(2 pi s f)^2 / 2) of its amplitude."""
    place, sigma = torch.arange(256), 2.0  # pixels of 256
    for cycles in (4, 32):
        wave = (0.5 + 0.4 * torch.sin(2 * math.pi * cycles * place / 256)).expand(1, 1, 256, 256)
        blurred = altered("blurred", wave, partners=wave, seed=0, autoencode=None)
        left = middle(blurred, 32).std() / middle(wave, 32).std()
        assert left.item() == pytest.approx(math.exp(-((2 * math.pi * sigma * cycles / 256) ** 2) / 2), rel=0.02)
        assert torch.allclose(blurred[..., :1, :], blurred[..., 128:129, :], atol=1e-6)  # no edge of its own


def test_bending_moves_pixels_smoothly_by_what_is_said() -> None:
    """Two ramps show where each pixel comes from: up to 3% of the width away, and little farther than its neighbor."""
    side = 256
    across = (torch.arange(side) / (side - 1)).expand(2, 1, side, side).contiguous()
    bent = {
        way: altered("elastic", ramp, partners=ramp, seed=0, autoencode=None)
        for way, ramp in (("across", across), ("down", across.mT.contiguous()))
    }
    moved = torch.cat((bent["across"] - across, bent["down"] - across.mT), 1) * (side - 1)  # [2, 2, H, W] in pixels
    inside = middle(moved, 10)
    assert 0.6 * 0.03 * side < inside.norm(dim=1).max() <= 0.03 * side + 0.01
    assert inside.diff(dim=-1).abs().max() < 0.5  # nothing is torn or folded
    assert not torch.equal(inside[0], inside[1])  # each image in its own way
    other = altered("elastic", across, partners=across, seed=1, autoencode=None)
    assert not torch.equal(other, bent["across"])


def test_a_corner_is_shown_at_full_size() -> None:
    planted, side = plant("cropped"), 128
    corners = []
    for first, image in zip(planted, IMAGES, strict=True):
        pieces = [
            image[:, rows, columns]
            for rows in (slice(102), slice(26, side))
            for columns in (slice(102), slice(26, side))
        ]
        larger = torch.nn.functional.interpolate(torch.stack(pieces), (side, side), mode="bilinear")
        alike = correlation(larger, first[None].expand(4, -1, -1, -1))
        assert alike.max() > 0.98
        corners.append(int(alike.argmax()))
    assert len(set(corners)) > 1


def test_halves_and_patches_replace_the_partners_pixels() -> None:
    for kind, share in (("half", 0.5), ("patch", (50 / 128) ** 2)):
        planted = plant(kind)
        own, other = planted == IMAGES, planted == PARTNERS
        assert (own | other).all()
        assert own.float().mean((1, 2, 3)).numpy() == pytest.approx(share, abs=0.01), kind
        assert len({tuple(mask.flatten().tolist()) for mask in own}) > 2, kind
        for mask in own[:, 0] & ~other[:, 0]:
            rows, columns = mask.any(1).sum(), mask.any(0).sum()
            assert mask.sum() / (rows * columns) > 0.98, kind  # one rectangle


def test_what_cannot_be_planted_is_refused() -> None:
    with pytest.raises(ValueError, match="alteration 'folded': expected exact, shifted"):
        plant("folded")
    with pytest.raises(ValueError, match="autoencoded with an autoencoder"):
        altered("autoencoded", IMAGES, partners=PARTNERS, seed=0, autoencode=None)


def test_the_same_probes_are_kept_whatever_the_order() -> None:
    radiographs = made_images(40, size=32)
    keys = [f"image-{i}" for i in range(40)]
    ahead, back = ProbeKeeper(10), ProbeKeeper(10)
    ahead.offer(keys[:25], radiographs[:25])
    ahead.offer(keys[25:], radiographs[25:])
    for place in reversed(range(40)):
        back.offer([keys[place]], radiographs[place : place + 1])
    probes, others = ahead.probes(), back.probes()
    assert probes.keys == others.keys
    assert np.array_equal(probes.images, others.images)
    for key, image in zip(probes.keys, probes.images, strict=True):
        assert np.abs(image / 255 - radiographs[keys.index(key)].numpy()).max() <= 0.5 / 255 + 1e-6
    assert len(probes.keys) == 10
    other = ProbeKeeper(10, seed=1)
    other.offer(keys, radiographs)
    assert set(other.probes().keys) != set(probes.keys)
    with pytest.raises(ValueError, match="no image was offered"):
        ProbeKeeper().probes()
