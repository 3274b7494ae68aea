"""Tuning what is laid over a model: the result is one folder that holds all of it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

from tests.diffusion.test_additions import by_diffusers, images_of, loaded, lora_of
from tests.families import build
from tests.tuning.making import install_brightness, recipe, tune, write_recipe


@pytest.fixture(autouse=True)
def _brightness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_brightness(tmp_path / "own", monkeypatch)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("stable_diffusion", tmp_path_factory.mktemp("families") / "base")


def tuned(base: Path, folder: Path, train: dict[str, Any], **laid_over: Any) -> Path:
    """The model that one iteration leaves."""
    content = recipe(base, objective="forward", iterations=1, train={"learning_rate": 1.0e-2, **train})
    content["model"] |= laid_over
    result = tune(write_recipe(folder, content), folder / "run")
    assert result.exit_code == 0, result.output
    return folder / "run" / "model"


@pytest.mark.slow
@pytest.mark.parametrize("train", [{"unet": "lora", "lora": {"rank": 2}, "ace": False}, {"unet": "frozen"}])
def test_lora_weights_and_words_are_in_the_result(train: dict[str, Any], base: Path, tmp_path: Path) -> None:
    weights, words = lora_of(base, tmp_path / "lora"), tmp_path / "learned.safetensors"
    save_file({"<cxr>": torch.randn(1, 16)}, words)
    train = train if "ace" in train else train | {"ace": {"tokens": 4}}
    model = tuned(base, tmp_path, train, lora=[f"{weights}=0.5"], embeddings=[str(words)])
    pipeline = DiffusionPipeline.from_pretrained(model, safety_checker=None)
    assert "<cxr>" in pipeline.tokenizer.get_vocab()
    prompts = ["<cxr> clear lungs", "effusion"]
    torch.testing.assert_close(images_of(loaded(model), prompts), by_diffusers(pipeline, prompts), atol=1e-4, rtol=0)
    before = load_file(base / "unet" / "diffusion_pytorch_model.safetensors")
    after = load_file(model / "unet" / "diffusion_pytorch_model.safetensors")
    assert any(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.slow
def test_a_denoiser_and_an_autoencoder_of_their_own_are_in_the_result(base: Path, tmp_path: Path) -> None:
    for part in ("unet", "vae"):
        (tmp_path / part).mkdir()
        state = load_file(base / part / "diffusion_pytorch_model.safetensors")
        changed = {name: weight + 0.01 for name, weight in state.items()}
        save_file(changed, tmp_path / part / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
        (tmp_path / part / "config.json").write_text((base / part / "config.json").read_text())
    laid_over = {"unet": str(tmp_path / "unet"), "vae": str(tmp_path / "vae")}
    model = tuned(base, tmp_path, {"unet": "frozen", "ace": {"tokens": 4}}, **laid_over)
    for part in ("unet", "vae"):
        file = f"{part}/diffusion_pytorch_model.safetensors"
        expected, found = load_file(tmp_path / file), load_file(model / file)
        assert all(torch.equal(found[name], weight) for name, weight in expected.items())


@pytest.mark.slow
def test_a_scheduler_that_the_folder_lacks_is_in_the_result(base: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "base")
    (tmp_path / "base" / "scheduler").rename(tmp_path / "scheduler")
    index = json.loads((base / "model_index.json").read_text())
    del index["scheduler"]
    (tmp_path / "base" / "model_index.json").write_text(json.dumps(index))
    model = tuned(tmp_path / "base", tmp_path, {"unet": "full", "ace": False}, scheduler=str(tmp_path / "scheduler"))
    pipeline = DiffusionPipeline.from_pretrained(model, safety_checker=None)
    torch.testing.assert_close(images_of(loaded(model)), by_diffusers(pipeline), atol=1e-4, rtol=0)


@pytest.mark.slow
def test_a_model_of_half_precision_files_alone_leaves_one_that_diffusers_loads(base: Path, tmp_path: Path) -> None:
    pipeline = DiffusionPipeline.from_pretrained(base, safety_checker=None)
    pipeline.save_pretrained(tmp_path / "half", variant="fp16", safe_serialization=True, max_shard_size="5kB")
    model = tuned(tmp_path / "half", tmp_path, {"unet": "full", "ace": False})
    reloaded = DiffusionPipeline.from_pretrained(model, safety_checker=None)
    torch.testing.assert_close(images_of(loaded(model)), by_diffusers(reloaded), atol=1e-4, rtol=0)


def test_lora_weights_that_are_not_there_are_refused_before_anything_is_written(base: Path, tmp_path: Path) -> None:
    content = recipe(base)
    content["model"]["lora"] = ["nowhere.safetensors"]
    result = tune(write_recipe(tmp_path, content), tmp_path / "run")
    assert result.exit_code == 2
    assert "nowhere.safetensors" in result.output
    assert not (tmp_path / "run").exists()
    content["model"]["lora"] = ["weights=much"]
    result = tune(write_recipe(tmp_path, content), tmp_path / "run")
    assert result.exit_code == 2
    assert "PATH or PATH=SCALE" in result.output
