"""Settings that another setting makes void, or that ask for more than there is, are named."""

from pathlib import Path

import pytest

from tests.tuning.making import install_brightness, recipe, tune, write_recipe


@pytest.fixture(autouse=True)
def brightness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_brightness(tmp_path / "package", monkeypatch)


def warnings(output: str) -> str:
    said = " ".join(output.split())
    return said[said.find("warning: ") :] if "warning: " in said else ""


def test_settings_of_adapters_without_adapters_are_named(tiny_model: Path, tmp_path: Path) -> None:
    path = write_recipe(tmp_path, recipe(tiny_model, train={"lora": {"rank": 2}, "ace": False}))
    said = warnings(tune(path, tmp_path / "run", "--dry-run").output)
    assert "stages.0.train.lora: no adapters are trained with unet: full set unet: lora beside it" in said
    assert not warnings(tune(path, tmp_path / "run", "--dry-run", "--set", "stages.0.train.unet=lora").output)


def test_more_reports_to_evaluate_than_are_held_out_are_named(tiny_model: Path, tmp_path: Path) -> None:
    path = write_recipe(tmp_path, recipe(tiny_model))
    said = warnings(tune(path, tmp_path / "run", "--dry-run", "--set", "evaluation.reports=3").output)
    assert "evaluation.reports 3: only 2 reports held out, of which all are evaluated" in said
    assert not warnings(tune(path, tmp_path / "run", "--dry-run", "--set", "evaluation.reports=2").output)


@pytest.mark.parametrize(("subspace", "named"), [(2, False), (10_000, True)])
def test_a_subspace_of_more_directions_than_the_prompts_have_is_named(
    subspace: int, named: bool, tiny_model: Path, tmp_path: Path
) -> None:
    content = recipe(tiny_model, iterations=1, train={"unet": "frozen", "ace": {"subspace": subspace}})
    result = tune(write_recipe(tmp_path, content), tmp_path / "run")
    assert result.exit_code == 0, result.output
    said = warnings(result.output)
    assert (f"stages.0.train.ace.subspace {subspace}: the prompts of the reports differ in " in said) is named


def test_a_baseline_whose_own_images_are_not_numbers_is_not_blamed_on_the_learning_rate(
    tiny_model: Path, tmp_path: Path
) -> None:
    path = write_recipe(tmp_path, recipe(tiny_model))
    result = tune(path, tmp_path / "run", "--set", "evaluation.guidance=1e30")
    said = " ".join(result.output.split())
    assert result.exit_code == 2, said
    assert "the model gave pixels that are not numbers it is the model as it was before this stage" in said
    assert "learning rate" not in said
