"""`cxrsynth tune` and `generate` with models without text."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMPipeline

from cxrsynth.diffusion.model import load_model
from cxrsynth.diffusion.resolve import resolve_model
from cxrsynth.settings import Precision
from tests.families import CLASSES, build
from tests.tuning.making import check_resumed_to_the_bit, install_brightness, recipe, tune, write_recipe
from tests.tuning.supervised import recipe as supervised
from tests.tuning.test_families import moved


@pytest.fixture(autouse=True)
def _brightness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_brightness(tmp_path / "own", monkeypatch)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("without-text")
    specs = {"gray": None, "by class": {"classes": list(CLASSES)}}
    return {name: build(name, home / name.replace(" ", "-"), spec=spec) for name, spec in specs.items()}


def content_of(model: Path, objective: str = "forward", unet: str = "lora", **changes: Any) -> dict[str, Any]:
    train = {"unet": unet, "lora": {"rank": 2}, "learning_rate": 1.0e-2, "ace": False}
    sampling = {"steps": 3, "batch_size": 2}
    return recipe(model, objective=objective, train=train, sampling=sampling, **changes)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gray", "by class"])
def test_adapters_learn_and_the_result_is_one_for_diffusers(name: str, models: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = tune(write_recipe(tmp_path, content_of(models[name], iterations=1)), out)
    assert result.exit_code == 0, result.output
    model = load_model(resolve_model(str(out / "model")), device=torch.device("cpu"), precision=Precision.FP32)
    changed = moved(out / "model", models[name], "unet")
    assert changed
    assert all(tensor.rpartition(".")[0].endswith(model.family.adapted_layers) for tensor in changed)
    plain = DDPMPipeline.from_pretrained(out / "model").unet
    image, when = torch.zeros(1, *model.latent_shape), torch.tensor([500])
    condition, _ = model.encode([model.any_prompt])
    labels = torch.tensor([0]) if name == "by class" else None
    with torch.no_grad():
        torch.testing.assert_close(model.predict(image, when, condition), plain(image, when, labels).sample)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["forward", "policy_gradient"])
@pytest.mark.parametrize("name", ["gray", "by class"])
def test_whole_networks_learn(name: str, objective: str, models: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = tune(write_recipe(tmp_path, content_of(models[name], objective, unet="full", iterations=1)), out)
    assert result.exit_code == 0, result.output
    assert moved(out / "model", models[name], "unet")
    spec = json.loads((out / "model" / "cxrsynth.json").read_text())
    assert tuple(spec.get("classes", ())) == (CLASSES if name == "by class" else ())


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_bit(models: dict[str, Path], tmp_path: Path) -> None:
    path = write_recipe(tmp_path, content_of(models["by class"], iterations=3))
    check_resumed_to_the_bit(path, own=tmp_path / "own")


@pytest.mark.slow
@pytest.mark.parametrize("unet", ["lora", "full"])
@pytest.mark.parametrize("name", ["gray", "by class"])
def test_supervised_fine_tuning_learns(
    name: str, unet: str, models: dict[str, Path], radiographs: Path, tmp_path: Path
) -> None:
    train = {"unet": unet, "lora": {"rank": 2}, "learning_rate": 1.0e-2, "ema_decay": None}
    result = tune(write_recipe(tmp_path, supervised(models[name], radiographs, steps=2, train=train)), tmp_path / "run")
    assert result.exit_code == 0, result.output
    changed = moved(tmp_path / "run" / "model", models[name], "unet")
    assert changed
    assert any(".bias" in tensor for tensor in changed) is (unet == "full")
    DDPMPipeline.from_pretrained(tmp_path / "run" / "model")


def test_a_dry_run_of_supervised_fine_tuning_asks_for_one_of_the_classes(
    models: dict[str, Path], radiographs: Path, tmp_path: Path
) -> None:
    path = write_recipe(tmp_path, supervised(models["by class"], radiographs, steps=2))
    result = tune(path, tmp_path / "run", "--dry-run")
    assert result.exit_code == 0, result.output
    assert "stage 1, sft: 2 steps of 4 images" in result.output


def test_what_needs_text_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    content = content_of(models["gray"])
    content["stages"][0]["train"]["ace"] = {"tokens": 4}
    content["stages"][0]["sampling"]["guidance"] = 3.0
    content["evaluation"]["guidance"] = 2.0
    content["stages"] += supervised(models["gray"], tmp_path, cond_dropout_prob=0.1)["stages"]
    result = tune(write_recipe(tmp_path, content), tmp_path / "run")
    assert result.exit_code == 2
    assert "stages.0.train.ace: adaptive condition embeddings are added to text embeddings" in result.output
    assert "stages.0.sampling.guidance: 3\n  expected: 1, no guidance, because the model is a model" in result.output
    assert "evaluation.guidance: 2\n" in result.output
    assert "stages.1.cond_dropout_prob: 0.1\n  expected: 0" in result.output
    assert not (tmp_path / "run" / "recipe.yaml").exists()


@pytest.mark.parametrize(
    ("name", "key", "value", "message"),
    [
        ("gray", "prompt", "findings", "takes no prompt"),
        ("gray", "prompt_template", "{findings}", "takes no prompt"),
        ("by class", "prompt", "findings", "model.prompt: the model takes a class, no text"),
        ("by class", "prompt_template", "{findings}", "model.prompt_template: the model takes a class, no text"),
    ],
)
def test_a_prompt_format_in_words_is_refused(
    name: str, key: str, value: str, message: str, models: dict[str, Path], tmp_path: Path
) -> None:
    content = content_of(models[name])
    content["model"][key] = value
    result = tune(write_recipe(tmp_path, content), tmp_path / "run")
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
