"""`cxrsynth tune` on a tiny model of every family: it learns, resumes to the bit, and leaves what diffusers loads."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cxrsynth.diffusion.model import load_model
from cxrsynth.diffusion.resolve import resolve_model
from cxrsynth.diffusion.sampler import sample_images
from cxrsynth.settings import Precision, Sampler
from tests.diffusion.test_families import PROMPTS, STEPS, by_diffusers, noise_of
from tests.families import FAMILIES, FLOW, build
from tests.tuning.making import check_resumed_to_the_bit, install_brightness, recipe, tune, write_recipe
from tests.tuning.supervised import recipe as supervised


@pytest.fixture(autouse=True)
def _brightness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_brightness(tmp_path / "own", monkeypatch)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("families")
    return {name: build(name, home / name) for name in FAMILIES}


def content_of(model: Path, objective: str = "forward", unet: str = "lora", **changes: Any) -> dict[str, Any]:
    train = {"unet": unet, "lora": {"rank": 2}, "learning_rate": 1.0e-2, "ace": {"tokens": 4}}
    return recipe(model, objective=objective, train=train, **changes)


def moved(folder: Path, before: Path, part: str) -> list[str]:
    """Names of the denoiser's tensors that tuning has changed."""
    file = f"{part}/diffusion_pytorch_model.safetensors"
    new, old = load_file(folder / file), load_file(before / file)
    assert new.keys() == old.keys()
    return [name for name, weight in new.items() if not torch.equal(weight, old[name])]


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_adapters_learn_and_the_result_is_one_for_diffusers(name: str, models: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "run"
    content = content_of(models[name], iterations=1)
    content["stages"][0]["train"]["ace"] = False
    result = tune(write_recipe(tmp_path, content), out)
    assert result.exit_code == 0, result.output
    model = load_model(resolve_model(str(out / "model")), device=torch.device("cpu"), precision=Precision.FP32)
    changed = moved(out / "model", models[name], model.family.denoiser)
    assert changed
    assert all(name.rpartition(".")[0].endswith(model.family.adapted_layers) for name in changed)
    noise = noise_of(model)
    found = sample_images(model, PROMPTS, noise, sampler=Sampler.MODEL, steps=STEPS, guidance=3.0)
    torch.testing.assert_close(found, by_diffusers(out / "model", noise, 3.0), atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["forward", "policy_gradient"])
@pytest.mark.parametrize("name", FAMILIES)
def test_whole_networks_and_embeddings_learn(
    name: str, objective: str, models: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    content = content_of(models[name], objective, unet="full", iterations=1)
    result = tune(write_recipe(tmp_path, content), out)
    if objective == "policy_gradient" and name in FLOW:
        assert result.exit_code == 2
        assert "stages.0.objective: found 'policy_gradient'\n  expected: 'forward'" in result.output
        assert not (out / "recipe.yaml").exists()
        return
    assert result.exit_code == 0, result.output
    part = "unet" if (models[name] / "unet").is_dir() else "transformer"
    assert moved(out / "model", models[name], part)
    assert load_file(out / "model" / "ace.safetensors")["blocks"].any()


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_killed_run_resumes_to_the_bit(name: str, models: dict[str, Path], tmp_path: Path) -> None:
    check_resumed_to_the_bit(write_recipe(tmp_path, content_of(models[name], iterations=3)), own=tmp_path / "own")


@pytest.mark.slow
@pytest.mark.parametrize("unet", ["lora", "full"])
@pytest.mark.parametrize("name", FAMILIES)
def test_supervised_fine_tuning_learns(
    name: str, unet: str, models: dict[str, Path], radiographs: Path, tmp_path: Path
) -> None:
    train = {"unet": unet, "lora": {"rank": 2}, "learning_rate": 1.0e-2, "ema_decay": None}
    path = write_recipe(tmp_path, supervised(models[name], radiographs, steps=2, train=train))
    result = tune(path, tmp_path / "run")
    assert result.exit_code == 0, result.output
    part = "unet" if (models[name] / "unet").is_dir() else "transformer"
    changed = moved(tmp_path / "run" / "model", models[name], part)
    assert changed
    assert all("lora" not in tensor for tensor in changed)
    assert any(".bias" in tensor for tensor in changed) is (unet == "full")
    after = resolve_model(str(tmp_path / "run" / "model"))
    model = load_model(after, device=torch.device("cpu"), precision=Precision.FP32)
    noise = noise_of(model)
    found = sample_images(model, PROMPTS, noise, sampler=Sampler.MODEL, steps=STEPS, guidance=3.0)
    torch.testing.assert_close(found, by_diffusers(after.folder, noise, 3.0), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("name", "network"), [("sdxl", "UNet"), ("pixart", "transformer")])
def test_a_dry_run_names_the_network(name: str, network: str, models: dict[str, Path], tmp_path: Path) -> None:
    result = tune(write_recipe(tmp_path, content_of(models[name])), tmp_path / "run", "--dry-run")
    assert result.exit_code == 0, result.output
    assert f"numbers ({network} " in " ".join(result.output.split())


@pytest.mark.parametrize("name", FLOW)
def test_ddim_is_refused_where_a_model_has_no_ddim_steps(name: str, models: dict[str, Path], tmp_path: Path) -> None:
    content = content_of(models[name])
    content["stages"][0]["sampling"]["sampler"] = "ddim"
    result = tune(write_recipe(tmp_path, content), tmp_path / "run")
    assert result.exit_code == 2
    assert "stages.0.sampling.sampler: found 'ddim'\n  expected: 'euler', 'dpm++' or 'model'" in result.output
