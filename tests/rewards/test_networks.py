"""Trunks loaded twice from one file: what they compute once, and when they must not."""

from pathlib import Path

import pytest
import torch

from cxrsynth.rewards import networks
from cxrsynth.rewards.networks import FindingClassifier, PostureRegressor, Trunk, features_once

TRUNK = {"kind": "resnet", "size": 32, "widths": [4, 4], "depths": [1, 1]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    FindingClassifier(["Edema", "Pneumonia"], TRUNK).save_pretrained(tmp_path / "classifier")
    PostureRegressor(TRUNK, [1.0] * 5).save_pretrained(tmp_path / "posture")
    return tmp_path


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Batches that any trunk computed."""
    seen: list[int] = []
    own = Trunk._features

    def counted(trunk: Trunk, images: torch.Tensor) -> torch.Tensor:
        seen.append(len(images))
        return own(trunk, images)

    monkeypatch.setattr(Trunk, "_features", counted)
    return seen


def test_the_same_images_pass_the_same_weights_once(folder: Path, passes: list[int]) -> None:
    one, other = (FindingClassifier.from_pretrained(folder / "classifier").eval() for _ in range(2))
    posture = PostureRegressor.from_pretrained(folder / "posture").eval()
    images = torch.rand(3, 1, 40, 40)
    with torch.inference_mode():
        alone = one(images), other.trunk(images), posture(images)
        assert passes == [3, 3, 3]
        with features_once():
            together = one(images), other.trunk(images), posture(images)
    assert passes == [3] * 5  # the posture regressor has other weights
    for first, second in zip(alone, together, strict=True):
        assert torch.equal(first, second)


def test_trunks_of_one_size_share_the_resampled_images(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real = networks.stretch_contrast
    monkeypatch.setattr(networks, "stretch_contrast", lambda images: seen.append(len(images)) or real(images))
    classifier = FindingClassifier.from_pretrained(folder / "classifier").eval()
    made = FindingClassifier(["Edema"], TRUNK).eval()  # other weights
    images = torch.rand(3, 1, 40, 40)
    with torch.inference_mode():
        alone = made(images)
        with features_once():
            classifier(images)
            together = made(images)
    assert seen == [3, 3]
    assert torch.equal(alone, together)


def test_both_ways_is_the_image_and_its_mirror_image(folder: Path) -> None:
    trunk = FindingClassifier.from_pretrained(folder / "classifier").eval().trunk
    images = torch.rand(3, 1, 40, 40)
    with torch.inference_mode():
        there, mirrored = trunk.both_ways(images)
        torch.testing.assert_close(there, trunk(images))
        torch.testing.assert_close(mirrored, trunk(images.flip(-1)))
        assert not torch.allclose(there, mirrored)


def test_other_images_gradients_and_unloaded_networks_are_computed(folder: Path, passes: list[int]) -> None:
    network = FindingClassifier.from_pretrained(folder / "classifier").eval()
    images = torch.rand(2, 1, 40, 40)
    with features_once():
        with torch.inference_mode():
            first, second = network(images), network(images.clone())
        assert len(passes) == 2
        assert torch.equal(first, second)
        network(images).sum().backward()
        assert network.head.weight.grad is not None
        assert len(passes) == 3
        made = FindingClassifier(["Edema"], TRUNK).eval()
        with torch.inference_mode():
            made(images), made(images)
        assert len(passes) == 5
    with torch.inference_mode():
        network(images)
    assert len(passes) == 6


def test_what_is_remembered_ends_with_the_batch(folder: Path, passes: list[int]) -> None:
    network = FindingClassifier.from_pretrained(folder / "classifier").eval()
    images = torch.rand(2, 1, 40, 40)
    with torch.inference_mode():
        for _ in range(3):
            with features_once():
                network(images)
    assert len(passes) == 3


def test_saved_weights_are_those_that_were_loaded(folder: Path, tmp_path: Path) -> None:
    network = FindingClassifier.from_pretrained(folder / "classifier")
    network.save_pretrained(tmp_path / "again")
    again = FindingClassifier.from_pretrained(tmp_path / "again")
    for name, value in network.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
