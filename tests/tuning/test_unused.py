"""Settings that another setting makes void, or that ask for more than there is, are named."""

from pathlib import Path
from typing import Any

import pytest

from tests.tuning.making import install_brightness, recipe, tune, write_recipe


@pytest.fixture(autouse=True)
def brightness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_brightness(tmp_path / "package", monkeypatch)


def warnings(output: str) -> str:
    said = " ".join(output.split())
    return said[said.find("warning: ") :] if "warning: " in said else ""


FROZEN = {"unet": "frozen", "ace": {"subspace": 2, "exploration_std": 0.5}}


def test_every_setting_that_is_given_in_vain_is_named(tiny_model: Path, tmp_path: Path) -> None:
    path = write_recipe(tmp_path, recipe(tiny_model, train={"ace": False}))

    def warned(*settings: str) -> str:
        result = tune(path, tmp_path / "run", "--dry-run", *(word for one in settings for word in ("--set", one)))
        assert result.exit_code == 0, result.output
        return warnings(result.output)

    train = "stages.0.train"
    for settings, said in (
        ([f"{train}.lora.rank=2"], "stages.0: train.lora: no adapters are trained with unet: full"),
        ([f"{train}.ace_learning_rate=1"], "train.ace_learning_rate: no embeddings are trained with ace: false"),
        (["evaluation.reports=3"], "evaluation: reports 3: only 2 reports held out, of which all are evaluated"),
    ):
        assert said in warned(*settings)
    assert not warned(f"{train}.lora.rank=2", f"{train}.unet=lora")
    assert not warned(f"{train}.ace_learning_rate=1", f"{train}.ace=true")
    assert not warned("evaluation.reports=2")


@pytest.mark.parametrize(
    ("objective", "more", "said"),
    [
        ("forward", {}, "forward.timesteps: embeddings that explore learn from their shifts alone"),
        ("policy_gradient", {}, ""),
        (
            "policy_gradient",
            {"update": {"num_minibatches": 1, "timestep_fraction": 0.5}},
            "update.timestep_fraction: embeddings",
        ),
    ],
)
def test_settings_of_a_network_that_is_frozen_are_named(
    objective: str, more: dict[str, Any], said: str, tiny_model: Path, tmp_path: Path
) -> None:
    content = recipe(tiny_model, objective=objective, train=FROZEN, **more)
    found = warnings(tune(write_recipe(tmp_path, content), tmp_path / "run", "--dry-run").output)
    assert said in found
    assert bool(found) is bool(said)


def test_settings_of_an_evaluation_that_does_not_happen_are_named(tiny_model: Path, tmp_path: Path) -> None:
    content = recipe(tiny_model) | {"stages": [{"stage": "distill", "trajectories": 4, "steps": 2, "batch_size": 2}]}
    content["evaluation"] = {"sheet": 2}
    path = write_recipe(tmp_path, content)
    found = tune(path, tmp_path / "run", "--dry-run", "--set", "evaluation.every=3")
    assert "evaluation: every: a distilled model is compared with its teacher once" in warnings(found.output)
    assert not warnings(tune(path, tmp_path / "run", "--dry-run").output)
    late = tune(path, tmp_path / "run", "--dry-run", "--set", "stages.0.train.warmup=3")
    assert "stages.0: train.warmup 3: the learning rate is not reached in 2 steps" in warnings(late.output)


@pytest.mark.parametrize(("subspace", "named"), [pytest.param(2, False, marks=pytest.mark.slow), (10_000, True)])
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
