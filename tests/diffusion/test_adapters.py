"""Adapters: a rank that could not be lower than that of what is adapted is refused before anything is allocated."""

from pathlib import Path

import pytest

from cxrsynth.diffusion.adapters import add_adapters, check_rank_in
from cxrsynth.diffusion.families.stable_diffusion import StableDiffusion
from cxrsynth.diffusion.networks import load_unet
from cxrsynth.errors import ModelError

SD = StableDiffusion()


def test_a_rank_above_the_smallest_adapted_dimension_is_refused(tiny_model: Path) -> None:
    unet = load_unet(tiny_model / "unet")
    expected = r"train\.lora\.rank 9: the smallest of the adapted layers has 8 dimensions\n  expected: at most 8$"
    with pytest.raises(ModelError, match=expected):
        add_adapters(unet, SD.adapted_layers, rank=9, alpha=None, seed=0)
    add_adapters(unet, SD.adapted_layers, rank=8, alpha=None, seed=0)


def test_a_rank_is_checked_without_the_weights(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text((tiny_model / "unet" / "config.json").read_text())
    check_rank_in(tmp_path, SD, 8)
    with pytest.raises(ModelError, match="at most 8"):
        check_rank_in(tmp_path, SD, 1_000_000)
    (tmp_path / "unet" / "config.json").write_text("[]")
    with pytest.raises(ModelError, match="cannot be loaded"):
        check_rank_in(tmp_path, SD, 8)
