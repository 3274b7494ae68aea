"""Posture from lungs: known warps of synthetic lungs, missing lungs, the library's PSPNet at random weights."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torchxrayvision.baseline_models.chestx_det import PSPNet
from torchxrayvision.baseline_models.chestx_det.ptsemseg.pspnet import pspnet

from cxrsynth.errors import ModelError
from cxrsynth.rewards.base import Reward
from cxrsynth.rewards.posture import PostureReward
from cxrsynth.rewards.xrv_posture import LungPosture, chest_posture, load_lung_posture, released_segmentation
from cxrsynth.runtime.warps import warp_matrices

CPU = torch.device("cpu")
SIZE = 256
# Two ellipses placed like real lungs in the canonical frame: center, half axes, lean (radians).
RIGHT, LEFT = ((-0.4737, -0.048), (0.352, 0.81), 0.405), ((0.4333, -0.028), (0.352, 0.81), -0.375)


def lungs(posture: tuple[float, ...] = (0, 0, 0, 0, 0)) -> Tensor:
    """Masks [1, 2, H, W] of a canonical chest, as an image warped by these five parameters would show it."""
    places = (torch.arange(SIZE) + 0.5) / SIZE * 2 - 1
    y, x = torch.meshgrid(places, places, indexing="ij")
    matrix = warp_matrices(torch.tensor([posture]).float())[0]
    x, y = (matrix @ torch.stack((x, y, torch.ones_like(x))).flatten(1)).view(2, SIZE, SIZE)
    return torch.stack([_ellipse(x, y, *lung) for lung in (RIGHT, LEFT)])[None]


def _ellipse(x: Tensor, y: Tensor, centre: tuple[float, float], half: tuple[float, float], lean: float) -> Tensor:
    x, y = x - centre[0], y - centre[1]
    along, across = y * math.cos(lean) - x * math.sin(lean), x * math.cos(lean) + y * math.sin(lean)
    return (across / half[0]) ** 2 + (along / half[1]) ** 2 < 1


def test_canonical_lungs_are_in_place() -> None:
    posture = chest_posture(lungs())[0]
    assert posture.dtype == torch.float32
    assert posture.abs().max() < 0.006, posture


@pytest.mark.parametrize(
    "warp",
    [
        (0.0, 0.0, 0.0, 0.0, math.radians(12)),
        (0.0, 0.0, 0.0, 0.0, math.radians(-25)),
        (0.0, 0.0, 0.3, 0.3, math.radians(80)),
        (0.0, 0.0, 0.3, 0.3, math.radians(-130)),
        (0.0, 0.0, 0.3, 0.3, math.radians(-179.6)),
        (0.15, -0.1, 0.3, 0.3, 0.0),
        (0.0, 0.0, 0.35, 0.0, 0.0),
        (0.0, 0.0, 0.0, 0.35, math.radians(10)),
        (-0.1, 0.12, 0.25, 0.4, math.radians(-18)),
        (0.05, 0.02, 0.9, 0.9, math.radians(7)),
    ],
)
def test_known_warps_are_recovered(warp: tuple[float, ...]) -> None:
    found = chest_posture(lungs(warp))[0]
    error = (found - torch.tensor(warp)).abs()
    assert found[4].abs() <= math.pi
    assert min(error[4], math.tau - error[4]) < math.radians(2)
    assert error[:2].max() < 2 * 0.03  # half widths
    assert error[2:4].max() < math.log(1.05)


@pytest.mark.parametrize("place", range(5))
def test_further_away_is_worse(place: int) -> None:
    steps = torch.zeros(7, 5)
    steps[:, place] = torch.arange(7) * 0.04
    seen = torch.cat([lungs(tuple(step.tolist())) for step in steps])
    for order in (seen, seen.flip(1)):  # whichever lung comes first
        values = painted(order)(torch.zeros(7, 1, SIZE, SIZE), [])
        assert (values.diff() < 0).all(), values


class _Found(torch.nn.Module):
    """A segmentation network with a fixed output."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(logits, requires_grad=False)

    def forward(self, radiographs: Tensor) -> Tensor:
        assert radiographs.shape == (len(self.logits), 3, *self.logits.shape[2:])
        return self.logits


def painted(found: Tensor) -> PostureReward:
    """A reward whose segmentation finds these lungs [B, 2, H, W], and nothing else."""
    logits = torch.full((len(found), len(PSPNet.targets), SIZE, SIZE), -1.0)
    for lung, name in enumerate(("Left Lung", "Right Lung")):
        logits[:, PSPNet.targets.index(name)] = found[:, lung] * 2.0 - 1.0
    return PostureReward(LungPosture(_Found(logits), size=SIZE))


def test_specks_and_the_heart_do_not_change_posture() -> None:
    seen = lungs()
    places = (torch.arange(SIZE) + 0.5) / SIZE * 2 - 1
    y, x = torch.meshgrid(places, places, indexing="ij")
    heart = _ellipse(x, y, (0.15, 0.4), (0.43, 0.36), 0.0)
    assert (seen & heart).sum() > 0.08 * seen.sum()
    hidden = seen & ~heart
    hidden[:, :, 2:6, 2:6] = True
    assert torch.allclose(chest_posture(hidden), chest_posture(seen), atol=0.01)


def test_a_mirrored_chest_scores_equally() -> None:
    found = chest_posture(torch.cat([lungs((0.1, 0, 0, 0, 0.2)), lungs((0.1, 0, 0, 0, 0.2)).flip(3)]))
    assert found[1, 4] == pytest.approx(-found[0, 4].item(), abs=0.06)  # the canonical tilt, twice
    assert torch.allclose(found[0, 2:4], found[1, 2:4], atol=0.01)


def test_without_two_lungs_posture_is_nan() -> None:
    whole = lungs()
    none, one, same = torch.zeros_like(whole), whole.clone(), whole[:, [0, 0]]
    one[:, 1] = False
    speck = one.clone()
    speck[:, 1, :20, :20] = True
    found = chest_posture(torch.cat([none, one, same, speck, whole]))
    assert found[:4].isnan().all()
    assert not found[4].isnan().any()
    assert chest_posture(whole[:0]).shape == (0, 5)
    values = painted(torch.cat([one, whole]))(torch.zeros(2, 1, SIZE, SIZE), [])
    assert values.isnan().tolist() == [True, False]


def radiographs() -> Tensor:
    return torch.rand(2, 1, 80, 72, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module", autouse=True)
def _shallow() -> Iterator[None]:
    """The library's own classes, but with one block per stage instead of 33 in total: a third of the work."""
    classes, _, *others = pspnet.__init__.__defaults__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pspnet.__init__, "__defaults__", (classes, [1, 1, 1, 1], *others))
        yield


@pytest.fixture(scope="module")
def network(_shallow: None) -> torch.nn.Module:
    """The library's network at random weights, adjusted to find two lungs in opposite parts of any image."""
    torch.manual_seed(0)
    made: torch.nn.Module = pspnet(len(PSPNet.targets)).eval()
    left, right = (PSPNet.targets.index(name) for name in ("Left Lung", "Right Lung"))
    with torch.no_grad():
        last = made.classification
        last.bias[left] -= LungPosture(made, size=64).segment(radiographs())[:, left].median()
        last.weight[right], last.bias[right] = -last.weight[left], -last.bias[left]
    return made


@pytest.fixture(scope="module")
def folder(network: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pspnet")
    (path / "config.json").write_text(json.dumps({"architecture": "pspnet", "input_resolution": 64}))
    save_file({f"model.{key}": value for key, value in network.state_dict().items()}, path / "model.safetensors")
    return path


def test_the_librarys_network_is_loaded_from_a_folder(folder: Path, network: torch.nn.Module) -> None:
    reward: Reward = load_lung_posture(str(folder), device=CPU)
    values = reward(radiographs(), [])
    assert values.dtype == torch.float32
    assert not values.isnan().any()
    assert torch.allclose(values, PostureReward(LungPosture(network, size=64))(radiographs(), []))
    assert values[0] != values[1]
    assert torch.allclose(values[1:], reward(radiographs()[1:], []), atol=1e-3)  # each image by itself


@pytest.mark.slow
def test_released_weights_segment_as_in_the_library(network: torch.nn.Module, tmp_path: Path) -> None:
    state = {f"module.{key}": value for key, value in network.state_dict().items()}
    torch.save(state, released_segmentation(tmp_path))
    radiograph = radiographs()[:1, :, :72]
    with torch.inference_mode():
        logits = PSPNet(cache_dir=str(tmp_path))((radiograph * 2 - 1) * 1024)
    expected = PostureReward(LungPosture(_Found(logits), size=512))(radiograph, [])
    assert expected.isfinite()
    assert torch.allclose(load_lung_posture("pspnet", device=CPU, cache=tmp_path)(radiograph, []), expected, atol=0.02)


def test_a_folder_that_cannot_be_loaded_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json"):
        load_lung_posture(str(tmp_path), device=CPU)
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "unet"}))
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    with pytest.raises(ModelError, match="architecture 'unet'"):
        load_lung_posture(str(tmp_path), device=CPU)
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "pspnet"}))
    (tmp_path / "model.safetensors").unlink()
    save_file({"model.aux_cls.bias": torch.zeros(14)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="cannot be loaded as a lung segmentation"):
        load_lung_posture(str(tmp_path), device=CPU)
