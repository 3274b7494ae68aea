"""No dead ends: an unfinished run gives its best model, and goes on from it with a lower learning rate when told to."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from cxrsynth.errors import ModelError, ShardError
from cxrsynth.tuning.evaluator import Evaluator
from cxrsynth.tuning.run_folder import RunFolder
from tests.generation.making import hashes, write_table
from tests.tuning.making import install_brightness, metrics, recipe, tune, write_recipe

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(autouse=True)
def _brightness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_brightness(tmp_path / "own", monkeypatch)


def unfinished(model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, *, fails: int = 5) -> tuple[Path, Path]:
    """A recipe of four iterations and a run of it that failed in an evaluation, the baseline's being the first."""
    content = recipe(model, iterations=4, train={"unet": "full", "learning_rate": 1.0e-3, "ace": False})
    content["evaluation"] |= {"every": 1, "evaluator": {"brightness": "bright"}}
    path, out, calls = write_recipe(folder, content), folder / "run", 0
    evaluate = Evaluator.evaluate

    def failing(self: Evaluator, policy: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == fails:
            raise ModelError("diverged")
        return evaluate(self, policy, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "evaluate", failing)
        failed = tune(path, out)
    assert (failed.exit_code, "diverged" in failed.output) == (2, True)
    return path, out


def best(out: Path) -> tuple[int, dict[str, torch.Tensor]]:
    """Iteration and weights of the best checkpoint."""
    folder = out / "checkpoints" / "best-0"
    return json.loads((folder / "state.json").read_text())["iteration"], load_file(folder / "weights.safetensors")


@pytest.mark.slow
def test_an_unfinished_run_gives_its_best_model_and_trains_on_later(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = unfinished(tiny_model, tmp_path, monkeypatch)
    before = hashes(out / "checkpoints"), metrics(out)
    exported = tune(path, out, "--export")
    assert exported.exit_code == 0, exported.output
    assert "export: exported; use it with cxrsynth generate" in " ".join(exported.output.split())
    assert (hashes(out / "checkpoints"), metrics(out)) == before
    assert not (out / "model").exists()
    iteration, weights = best(out)
    found = load_file(out / "export" / UNET)
    assert all(torch.equal(found[name], weights[f"unet.{name}"]) for name in found)
    card = (out / "export" / "model_card.md").read_text()
    assert f"weights of iteration {iteration}, the best according to the evaluator" in card
    assert "Exported from an unfinished run: stage 1 of 1, `checkpoints/best-0`." in card
    assert tune(path, out).exit_code == 0
    assert (out / "model" / "model_card.md").is_file()
    assert max(row["iteration"] for row in metrics(out)) == 4
    assert "already complete" in tune(path, out, "--export").output


@pytest.mark.slow
def test_without_an_evaluation_the_newest_checkpoint_is_exported(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = unfinished(tiny_model, tmp_path, monkeypatch, fails=2)  # the first evaluation of the policy
    assert not (out / "checkpoints" / "best-0").exists()
    assert tune(path, out, "--export").exit_code == 0
    weights = load_file(out / "checkpoints" / "0-000001" / "weights.safetensors")
    found = load_file(out / "export" / UNET)
    assert all(torch.equal(found[name], weights[f"unet.{name}"]) for name in found)
    assert "weights of iteration 1\n" in (out / "export" / "model_card.md").read_text()
    refused = tune(path, out, "--from-best", "--set", "stages.0.train.learning_rate=1.0e-4")
    assert (refused.exit_code, "nothing was evaluated in this stage yet" in " ".join(refused.output.split())) == (
        2,
        True,
    )


@pytest.mark.parametrize("option", ["--export", "--from-best"])
def test_a_folder_without_a_run_has_nothing_to_go_on_from(option: str, tiny_model: Path, tmp_path: Path) -> None:
    path = write_recipe(tmp_path, recipe(tiny_model))
    refused = tune(path, tmp_path / "run", option)
    assert (refused.exit_code, "holds no run" in refused.output) == (2, True)
    assert not (tmp_path / "run").exists()
    assert tune(path, tmp_path / "run", option, "--dry-run").exit_code == 2


@pytest.mark.slow
def test_a_run_goes_on_from_its_best_checkpoint_with_a_lower_rate(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = unfinished(tiny_model, tmp_path, monkeypatch)
    iteration, _ = best(out)
    before = hashes(out)
    lower = ("--set", "stages.0.train.learning_rate=1.0e-4", "--set", "stages.0.iterations=6")
    for options, message in (
        (lower, "--from-best goes on with these from the best checkpoint"),
        (("--from-best",), "the recipe is the one of the run, which would repeat itself"),
        (("--from-best", *lower, "--set", "seed=1"), "more differs than may seed: 1, the run has 0"),
    ):
        refused = tune(path, out, *options)
        assert (refused.exit_code, message in " ".join(refused.output.split())) == (2, True), refused.output
    assert hashes(out) == before
    done = tune(path, out, "--from-best", *lower)
    assert done.exit_code == 0, done.output
    assert f"resuming after iteration {iteration} of 6" in done.output
    assert json.loads((out / "history.json").read_text()) == [
        {
            "from_best": {"stage": 0, "iteration": iteration},
            "changed": {"stages.0.iterations": [4, 6], "stages.0.train.learning_rate": [1.0e-3, 1.0e-4]},
            "tested": False,
        }
    ]
    rates = {row["iteration"]: row["learning_rate/unet"] for row in metrics(out) if "learning_rate/unet" in row}
    assert rates == {done: 1.0e-3 if done <= iteration else 1.0e-4 for done in range(1, 7)}
    assert yaml.safe_load((out / "recipe.yaml").read_text())["stages"][0]["train"]["learning_rate"] == 1.0e-4
    assert "already complete" in tune(path, out, *lower).output
    # A run that is complete goes on as well; its model stays until the new one is there.
    model = hashes(out / "model")
    again = ("--set", "stages.0.train.learning_rate=1.0e-5", "--set", "stages.0.iterations=7")
    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "evaluate", lambda *_: (_ for _ in ()).throw(ModelError("killed")))
        assert "killed" in tune(path, out, "--from-best", *again).output
    assert hashes(out / "export") == model
    assert tune(path, out, *again).exit_code == 0
    assert len(json.loads((out / "history.json").read_text())) == 2


@pytest.mark.slow
def test_a_damaged_best_checkpoint_is_not_gone_on_from(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = unfinished(tiny_model, tmp_path, monkeypatch)
    weights = out / "checkpoints" / "best-0" / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    before = hashes(out)
    for options in (("--export",), ("--from-best", "--set", "stages.0.train.learning_rate=1.0e-4")):
        refused = tune(path, out, *options)
        assert (refused.exit_code, "weights.safetensors: damaged" in " ".join(refused.output.split())) == (2, True)
    assert hashes(out) == before


@pytest.mark.parametrize("damaged", ["", '[{"tested": tru', '{"tested": true}', "[1]"])
def test_a_damaged_history_is_refused(damaged: str, tmp_path: Path) -> None:
    """The card would say that nothing was chosen by the test reports, however often they were looked at."""
    folder = RunFolder(tmp_path / "run")
    folder.start("seed: 0\n", {}, {})
    folder.unlock()
    (folder.path / "history.json").write_text(damaged)
    with pytest.raises(ShardError, match=r"history\.json: not what a run wrote there"):
        folder.start("seed: 0\n", {}, {})
    folder.unlock()


@pytest.mark.slow
def test_a_folder_killed_before_its_first_recipe_is_no_foreign_folder(tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / ".lock").touch()
    (out / ".recipe.yaml.partial").write_text("seed: 0\nmod")
    assert tune(write_recipe(tmp_path, recipe(tiny_model, iterations=1)), out).exit_code == 0
    assert not (out / ".recipe.yaml.partial").exists()


@pytest.mark.slow
def test_a_stage_that_reward_hacking_ended_goes_on_from_its_first_evaluation(tiny_model: Path, tmp_path: Path) -> None:
    """The evaluation that raised the alarm is also the best one: the alarm must not end what goes on from there."""
    train = {"unet": "full", "learning_rate": 3.0e-3, "ace": False}
    content = recipe(tiny_model, iterations=3, images_per_report=8, train=train) | {"seed": 2}
    opposite = {"evaluator": {"brightness": "dark"}, "hacking_margin": 1.0e-6, "on_hacking": "stop"}
    content["evaluation"] |= {"every": 1} | opposite
    content["stages"][0]["rewards"] = {"brightness": {"backend": "bright"}}
    path, out = write_recipe(tmp_path, content), tmp_path / "run"
    assert "the stage ends here, as evaluation.on_hacking says" in tune(path, out).output
    (ended,) = {row["iteration"] for row in metrics(out) if "learning_rate/unet" in row}
    done = tune(path, out, "--from-best", "--set", "stages.0.train.learning_rate=1.0e-5")
    assert done.exit_code == 0, done.output
    rates = {row["iteration"]: row["learning_rate/unet"] for row in metrics(out) if "learning_rate/unet" in row}
    assert (ended, rates[2]) == (1, 1.0e-5)


@pytest.mark.slow
def test_only_a_complete_run_looks_at_the_test_and_every_look_is_recorded(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = recipe(tiny_model, iterations=1, train={"unet": "full", "learning_rate": 1.0e-3, "ace": False})
    content["reports"]["test"] = 2
    content["evaluation"] |= {"every": 1}
    path, out = write_recipe(tmp_path, content), tmp_path / "run"
    # Whichever reports the test gets, the evaluator's diagnosis has a finding to score.
    sizes = ("Small", "Large", "Moderate", "Trace", "Tiny", "Massive", "Minimal")
    rows = tuple((f"r{n}", "", f"{size} left pleural effusion.", "PA", "F", "50") for n, size in enumerate(sizes))
    write_table(tmp_path / "reports.csv", rows)
    evaluate = Evaluator.evaluate

    def unanswered(self: Evaluator, *given: Any, **named: Any) -> Any:
        if self.held_out.name == "test":
            raise ModelError("no answer")
        return evaluate(self, *given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "evaluate", unanswered)
        failed = tune(path, out)
        assert (failed.exit_code, "--export writes the trained model without a test" in failed.output) == (2, True)
        exported = tune(path, out, "--export")
        assert (exported.exit_code, "testing on" in exported.output) == (0, False), exported.output
    card = out / "model" / "model_card.md"
    assert tune(path, out).exit_code == 0
    assert "On test reports, which nothing was chosen by," in card.read_text()
    lower = ("--set", "stages.0.train.learning_rate=1.0e-4", "--set", "stages.0.iterations=2")
    assert tune(path, out, "--from-best", *lower).exit_code == 0
    assert [entry["tested"] for entry in json.loads((out / "history.json").read_text())] == [True]
    assert "chose no weights, but were looked at 1 time before the run went on" in card.read_text()
