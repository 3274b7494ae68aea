"""The autoencoder that near-duplicates are planted with, of every family that has one."""

from pathlib import Path

import pytest
import torch

from cxrsynth.auditing.autoencoder import load_autoencoder
from tests.families import build


@pytest.mark.parametrize("family", ["stable_diffusion", "sana", "sd3"])
def test_images_pass_through_the_autoencoder_of_any_family(family: str, tmp_path: Path) -> None:
    autoencoder = load_autoencoder(str(build(family, tmp_path / family)), None, torch.device("cpu"))
    images = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    found = autoencoder(images)
    assert found.shape == images.shape
    assert found.min() >= 0
    assert found.max() <= 1
    torch.testing.assert_close(autoencoder(images[1:]), found[1:], atol=1e-5, rtol=0)
