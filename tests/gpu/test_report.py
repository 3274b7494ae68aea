"""The report's own recipes are recipes, and its numbers add up: what can be checked of it without a CUDA device."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from cxrsynth.cli import app
from cxrsynth.recipe.read import load_recipe
from tests.gpu import report
from tests.gpu.report import Failed, all_steps, ddpo_recipe, distill_recipe, large_recipe, run, sft_recipe


def _sft_recipe(work: Path) -> Path:
    (work / "images").mkdir()
    Image.new("L", (64, 64), 128).save(work / "images" / "one.png")
    return sft_recipe(work, work / "images")


@pytest.mark.parametrize(("make", "kind"), [(ddpo_recipe, "ddpo"), (_sft_recipe, "sft"), (distill_recipe, "distill")])
def test_a_recipe_is_one(make: Callable[[Path], Path], kind: str, tmp_path: Path) -> None:
    [stage] = load_recipe(make(tmp_path)).stages
    assert stage.stage == kind


@pytest.mark.parametrize(("unet", "objective"), [("lora", "policy_gradient"), ("lora", "forward"), ("full", "forward")])
def test_a_recipe_of_the_large_model_is_one(
    unet: str, objective: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "sd15", lambda work: work / "sd15")
    [stage] = load_recipe(large_recipe(tmp_path, unet, objective=objective)).stages
    assert stage.stage == "rlcf"


@pytest.mark.parametrize("make", [pytest.param(ddpo_recipe, marks=pytest.mark.slow), _sft_recipe, distill_recipe])
def test_a_dry_run_takes_a_recipe(make: Callable[[Path], Path], tmp_path: Path) -> None:
    options = ("--out", str(tmp_path / "run"), "--dry-run", "--set", "model.device=cpu")
    done = CliRunner().invoke(app, ["tune", str(make(tmp_path)), *options])
    assert done.exit_code == 0, done.output
    assert "stage 1, " in done.output


def test_rates_are_of_full_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiled network computes a last batch in full, whose images are then not all counted."""

    def no_command(*_: object, **__: object) -> None:
        raise Failed("no device")

    monkeypatch.setattr(report, "sd15", lambda work: work / "sd15")
    monkeypatch.setattr(report, "generate", no_command)
    rates = [step for name, step in all_steps(tmp_path, large=True).items() if "generate" in name]
    assert len(rates) == 6
    for step in rates:
        with pytest.raises(Failed):
            step()
    with pytest.raises(ValueError, match="400 images are no whole number of batches of 64"):
        report.generation_rate(tmp_path, "nano", 64, few=64, many=400)


def test_a_command_that_takes_too_long_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "_COMMAND_LIMIT_S", 0.01)
    with pytest.raises(Failed, match=r"cxrsynth --version\n(.*\n)*not done after 0\.01 s$"):
        run(tmp_path, "--version")
