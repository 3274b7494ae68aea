"""Registration of images: known warps are recovered, and images that do not fit the frame are excluded."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from cxrsynth.nano.build.align import align_images, canonical_frames, registered_frames
from cxrsynth.nano.build.config import AlignSettings
from cxrsynth.nano.build.images import Radiograph
from cxrsynth.reports.prompt import Subject
from cxrsynth.runtime.warps import compose, warp, warp_matrices

SETTINGS = AlignSettings(rounds=5, steps=25, learning_rate=0.05, stay=0.02, zoom=0.85, centre=(0.0, 0.0), beyond=0.09)
SIZE = 64


def synthetic_chests(warps: Tensor) -> Tensor:
    """Two dark lobes, a spine and ribs, warped by five numbers each; uint8 [N, 1, 64, 64]."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 128), torch.linspace(-1, 1, 128), indexing="ij")
    radiograph = 0.7 + 0.2 * torch.exp(-((x / 0.08) ** 2))
    for side in (-0.38, 0.38):
        radiograph = radiograph - 0.5 * torch.sigmoid(12 * (1 - ((x - side) / 0.26) ** 2 - ((y + 0.1) / 0.55) ** 2))
    radiograph = radiograph + 0.08 * torch.sin(14 * (y + 0.3 * x**2))
    warped = warp(radiograph.expand(len(warps), 1, -1, -1), warp_matrices(warps), outside="reflection")
    return torch.nn.functional.avg_pool2d(warped, 2).clamp(0, 1).mul(255).to(torch.uint8)


def test_known_warps_are_undone() -> None:
    reach = torch.tensor([0.1, 0.1, 0.12, 0.12, 0.08])
    warps = (torch.rand(24, 5, generator=torch.Generator().manual_seed(0)) * 2 - 1) * reach
    radiographs = synthetic_chests(warps)
    found, _ = align_images(radiographs, ["adult"] * 24, settings=SETTINGS)
    # If the warp of an image and the recovered one cancel, all images show the same part of the chest.
    world = compose(warp_matrices(warps), warp_matrices(found))
    before, after = warp_matrices(warps).std(0), world.std(0)
    assert (after / before).max() < 0.25, (before, after)
    assert found.mean(0).abs().max() < 0.02  # the mean image does not move


def test_each_kind_is_aligned_to_its_own_mean() -> None:
    radiographs = synthetic_chests(torch.zeros(8, 5))
    radiographs[4:] = radiographs[4:].roll(6, dims=3)  # images of one kind all lie to the side: they stay there
    found, _ = align_images(radiographs, ["adult"] * 4 + ["child"] * 4, settings=SETTINGS)
    assert found.abs().max() < 0.02


def test_images_that_do_not_fill_the_frame_are_excluded(tmp_path: Path) -> None:
    warps = torch.zeros(12, 5)
    warps[0] = torch.tensor([0.24, 0.24, -0.2, -0.2, 0.0])
    radiographs = synthetic_chests(warps)
    known = [Radiograph(str(i), str(i), "nih", Subject(None, "adult", None), (), (), padded=i == 1) for i in range(12)]
    path = tmp_path / "frames.safetensors"
    matrices, shown = canonical_frames(known, radiographs, path, settings=SETTINGS)
    assert shown.tolist() == [False, False] + [True] * 10
    again, shown_again = canonical_frames(known, torch.zeros_like(radiographs), path, settings=SETTINGS)
    assert torch.equal(again, matrices)  # read from the file, not computed again
    assert torch.equal(shown_again, shown)


def test_other_images_are_registered_to_the_mean(tmp_path: Path) -> None:
    reach = torch.tensor([0.1, 0.1, 0.12, 0.12, 0.08])
    warps = (torch.rand(30, 5, generator=torch.Generator().manual_seed(1)) * 2 - 1) * reach
    radiographs = synthetic_chests(warps)
    known = [Radiograph(str(i), str(i), "nih", Subject(None, "adult", None), (), (), padded=False) for i in range(30)]
    path = tmp_path / "frames.safetensors"
    frames, _ = canonical_frames(known[:20], radiographs[:20], path, settings=SETTINGS)
    others, shown = registered_frames(known[20:], radiographs[20:], path, settings=SETTINGS)
    assert shown.all()
    world = compose(warp_matrices(warps), torch.cat([frames, others]))
    apart = (world[20:] - world[:20].mean(0)).abs().mean(0)
    assert apart.max() < 0.03


@pytest.mark.parametrize("place", range(5))
def test_each_parameter_changes_its_own_entries(place: int) -> None:
    one = torch.zeros(1, 5)
    one[0, place] = 0.1
    moved = warp_matrices(one)[0] - torch.eye(2, 3)
    touched = {0: [(0, 2)], 1: [(1, 2)], 2: [(0, 0)], 3: [(1, 1)], 4: [(0, 1), (1, 0)]}[place]
    assert all(moved[at].abs() > 0.09 for at in touched)
    rest = [(row, column) for row in range(2) for column in range(3) if (row, column) not in touched]
    assert all(moved[at].abs() < 0.006 for at in rest)
