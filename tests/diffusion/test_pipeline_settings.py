"""Settings that the pipelines of diffusers read from a folder, or correct in it: our images are still theirs."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from cxrsynth.diffusion.sampler import sample_images
from cxrsynth.errors import ModelError
from cxrsynth.settings import Sampler
from tests.diffusion.test_families import PROMPTS, STEPS, by_diffusers, loaded, noise_of
from tests.families import build


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("families")
    return {name: build(name, home / name) for name in ("stable_diffusion", "sdxl", "pixart")}


def changed(folder: Path, out: Path, file: str, *, keep: bool = True, **changes: Any) -> Path:
    """A copy of a model with other content of one file; without `keep` the file has nothing else."""
    shutil.copytree(folder, out)
    content = json.loads((out / file).read_text()) if keep else {}
    (out / file).write_text(json.dumps(content | changes))
    return out


def check_equal(folder: Path, sampler: Sampler, *, prompts: list[str] = PROMPTS) -> None:
    model = loaded(folder)
    noise = noise_of(model)
    found = sample_images(model, prompts, noise, sampler=sampler, steps=STEPS, guidance=3.0)
    expected = by_diffusers(folder, noise, 3.0, prompts=prompts)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["stable_diffusion", "sdxl"])
@pytest.mark.parametrize("named", ["DDIMScheduler", "PNDMScheduler", "EulerDiscreteScheduler"])
def test_schedulers_that_do_not_say_all(name: str, named: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """Early folders lack `clip_sample` and `steps_offset`, for which Stable Diffusion's pipeline has values."""
    betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    file = "scheduler/scheduler_config.json"
    given = {"skip_prk_steps": True} if named == "PNDMScheduler" else {}
    index = changed(folders[name], tmp_path / "base", "model_index.json", scheduler=["diffusers", named])
    # Of two classes that a folder names, pipelines take the index's.
    folder = changed(index, tmp_path / "model", file, keep=False, _class_name="LMSDiscreteScheduler", **betas, **given)
    check_equal(folder, Sampler.MODEL)
    if named == "DDIMScheduler":
        check_equal(folder, Sampler.DDIM)


def test_schedulers_of_two_kinds_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    flow = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
    folder = changed(folders["sdxl"], tmp_path / "model", "scheduler/scheduler_config.json", **flow)
    with pytest.raises(ModelError, match=r"for FlowMatch\w+, but model_index\.json names DDIMScheduler: one is"):
        loaded(folder)


@pytest.mark.parametrize("zeros", [False, True])
def test_sdxl_with_no_prompt_as_zeros_or_as_text(zeros: bool, folders: dict[str, Path], tmp_path: Path) -> None:
    folder = changed(folders["sdxl"], tmp_path / "model", "model_index.json", force_zeros_for_empty_prompt=zeros)
    check_equal(folder, Sampler.MODEL)


@pytest.mark.parametrize("named", ["PixArtAlphaPipeline", "PixArtSigmaPipeline"])
def test_prompts_of_pixart_have_the_length_of_their_pipeline(
    named: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = changed(folders["pixart"], tmp_path / "model", "model_index.json", _class_name=named)
    words = ["clear", "heart", "left", "lobe", "size", "normal"] * 40
    check_equal(folder, Sampler.MODEL, prompts=[" ".join(words), " ".join(words[::-1])])
    model = loaded(folder)
    assert model.fits(" ".join(words[:119]))
    assert model.fits(" ".join(words[:120])) is ("Sigma" in named)


def test_the_size_of_early_unets_is_the_pipelines_from_the_start(folders: dict[str, Path], tmp_path: Path) -> None:
    """UNets from before diffusers 0.9 may name a wrong size, which the pipeline corrects in their configuration."""
    folder = changed(
        folders["stable_diffusion"], tmp_path / "model", "unet/config.json", _diffusers_version="0.6.0", sample_size=32
    )
    model = loaded(folder)
    assert model.image_shape == (128, 128)
    model.encode(["clear lungs"])
    assert model.image_shape == (128, 128)
