"""Schedulers of diffusers that do not go with what they are asked: refused before anything is written."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cxrsynth.cli import app
from cxrsynth.diffusion.resolve import resolve_model
from cxrsynth.diffusion.sampler import check_scheduler
from cxrsynth.settings import Sampler
from tests.generation.making import command, known_schedulers, write_table
from tests.tuning.making import install_brightness, recipe, tune, write_recipe


def with_scheduler(model: Path, folder: Path, **config: Any) -> Path:
    shutil.copytree(model, folder)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps({"clip_sample": False} | config))
    index = json.loads((folder / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", config["_class_name"]]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize(
    ("config", "options", "said"),
    [
        (
            {"_class_name": "LCMScheduler"},
            ("--steps", "60"),
            "LCMScheduler does not go with --sampler model --steps 60",
        ),
        ({"_class_name": "LCMScheduler", "original_inference_steps": 2}, ("--steps", "3"), "original_steps x strength"),
        ({"_class_name": "TCDScheduler", "original_inference_steps": 2}, ("--steps", "3"), "original_steps x strength"),
        ({"_class_name": "KDPM2DiscreteScheduler", "prediction_type": "sample"}, (), "prediction_type not implemented"),
        ({"_class_name": "PNDMScheduler", "prediction_type": "sample", "skip_prk_steps": True}, (), "PNDMScheduler"),
        ({"_class_name": "PNDMScheduler"}, ("--steps", "3"), "PNDMScheduler does not go with"),
        ({"_class_name": "DDIMScheduler", "timestep_spacing": "zzz"}, (), "zzz is not supported"),
        (
            {"_class_name": "DDIMScheduler", "trained_betas": [0.1, 0.2]},
            (),
            "noise levels of 2 timesteps, but num_train",
        ),
        ({"_class_name": "DDIMScheduler", "num_train_timesteps": "x"}, (), "scheduler_config.json: cannot be loaded"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 0}, (), "noise levels are zero or not finite"),
        ({"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "foo"}, (), "foo is not implemented"),
    ],
)
@pytest.mark.parametrize("dry_run", [(), ("--dry-run",)])
def test_what_diffusers_cannot_do_is_refused(
    config: dict[str, Any],
    options: tuple[str, ...],
    said: str,
    dry_run: tuple[str, ...],
    tiny_model: Path,
    tmp_path: Path,
) -> None:
    model, out = with_scheduler(tiny_model, tmp_path / "model", **config), tmp_path / "out"
    table = write_table(tmp_path / "reports.csv")
    result = CliRunner().invoke(app, command(table, out, model, "--sampler", "model", *options, *dry_run))
    assert result.exit_code == 2, result.output
    assert "scheduler_config.json: " in result.output
    assert said in result.output
    assert len(result.output.splitlines()) <= 3
    assert not out.exists()


def test_other_samplers_of_the_same_folder_go_on(tiny_model: Path, tmp_path: Path) -> None:
    model = with_scheduler(tiny_model, tmp_path / "model", _class_name="LCMScheduler", original_inference_steps=2)
    table = write_table(tmp_path / "reports.csv")
    result = CliRunner().invoke(app, command(table, tmp_path / "out", model, "--sampler", "ddim", "--limit", "1"))
    assert result.exit_code == 0, result.output


def test_a_dry_run_asks_for_no_other_number_of_steps(tiny_model: Path, tmp_path: Path) -> None:
    # This one takes four steps or more.
    model = with_scheduler(tiny_model, tmp_path / "model", _class_name="PNDMScheduler")
    table = write_table(tmp_path / "reports.csv")
    asked = ("--sampler", "model", "--steps", "8", "--dry-run")
    result = CliRunner().invoke(app, command(table, tmp_path / "out", model, *asked))
    assert result.exit_code == 0, result.output
    assert "8 steps" in result.output


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(known_schedulers() - {"DPMSolverSDEScheduler"}))
def test_every_scheduler_passes_with_settings_of_its_own(name: str, tiny_model: Path, tmp_path: Path) -> None:
    flow = {} if name.startswith("FlowMatch") else {"prediction_type": "v_prediction"}
    kept = {"skip_prk_steps": True} if name.startswith("PNDM") else {}
    if name in ("KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler"):
        flow = {"prediction_type": "epsilon"}
    model = resolve_model(str(with_scheduler(tiny_model, tmp_path / "model", _class_name=name, **flow, **kept)))
    for steps in (1, 2, 20):
        check_scheduler(model, Sampler.MODEL, steps=steps)


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        ({"sampler": "model", "steps": 60}, "recipe.yaml: stages.0.sampling: 60 steps of model"),
        ({"sampler": "ddim", "steps": 3}, "recipe.yaml: evaluation: 2 steps of model"),
    ],
)
def test_tune_refuses_them_too(
    stage: dict[str, Any], said: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_brightness(tmp_path / "own", monkeypatch)
    spacing = {"original_inference_steps": 1} if stage["sampler"] == "ddim" else {}
    model = with_scheduler(tiny_model, tmp_path / "model", _class_name="LCMScheduler", **spacing)
    (model / "cxrsynth.json").write_text(json.dumps({"defaults": {"sampler": "model"}}))
    content = recipe(model, objective="forward", sampling={"batch_size": 2} | stage)
    for options in ((), ("--dry-run",)):
        result = tune(write_recipe(tmp_path, content), tmp_path / "out", *options)
        assert result.exit_code == 2, result.output
        assert said in result.output
        assert "scheduler_config.json: LCMScheduler does not go with" in result.output
        assert not (tmp_path / "out").exists()


ENDS_IN_NOISE = {"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
OWN_NOISE = {"_class_name": "DPMSolverSDEScheduler"}


@pytest.mark.parametrize(
    ("config", "stage", "said", "use"),
    [
        (
            ENDS_IN_NOISE,
            {"objective": "policy_gradient"},
            "stages.0.objective: policy_gradient, which samples by ddim: the model predicts noise",
            "use: stages.0.objective forward, with stages.0.sampling.sampler euler, or timestep_spacing leading",
        ),
        (
            ENDS_IN_NOISE,
            {"objective": "forward", "sampling": {"sampler": "ddim", "steps": 3}},
            "stages.0.sampling.sampler: ddim: the model predicts noise",
            "use: stages.0.sampling.sampler euler, or timestep_spacing leading",
        ),
        (
            OWN_NOISE,
            {"objective": "forward", "sampling": {"sampler": "model", "steps": 3}},
            "stages.0.sampling.sampler: model: DPMSolverSDEScheduler draws its noise",
            "use: stages.0.sampling.sampler dpm++, ddim or euler",
        ),
        (
            OWN_NOISE,
            {"objective": "forward", "sampling": {"sampler": "euler", "steps": 3}},
            "evaluation: model, as in the model's defaults: DPMSolverSDEScheduler draws its noise",
            "use: defaults.sampler in the model's cxrsynth.json dpm++, ddim or euler",
        ),
        (
            ENDS_IN_NOISE,
            {"stage": "distill", "steps": 4},
            "stages.0.stage: distill, whose model samples by ddim: the model predicts noise",
            "use: a model that predicts the velocity",
        ),
        (
            {"_class_name": "DDIMScheduler"},
            {"stage": "distill", "steps": 4, "teacher": {"steps": 5000}},
            "stages.0.teacher.steps: 5000, the model's schedule has 1000 timesteps",
            "",
        ),
    ],
)
def test_messages_of_tune_name_its_own_keys(
    config: dict[str, Any],
    stage: dict[str, Any],
    said: str,
    use: str,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install_brightness(tmp_path / "own", monkeypatch)
    model = with_scheduler(tiny_model, tmp_path / "model", prediction_type="epsilon", **config)
    (model / "cxrsynth.json").write_text(json.dumps({"defaults": {"sampler": "model"}}))
    content = recipe(model, objective=stage.get("objective", "forward"))
    content["stages"] = [stage if "stage" in stage else content["stages"][0] | stage]
    result = tune(write_recipe(tmp_path, content), tmp_path / "out")
    printed = " ".join(result.output.split())
    assert result.exit_code == 2, printed
    assert f"recipe.yaml: {said}" in printed
    assert use in printed
    for option in ("--sampler", "--steps"):
        assert option not in printed
    assert not (tmp_path / "out").exists()
