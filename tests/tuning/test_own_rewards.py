"""Rewards of a user's own in `tune`: whatever they do ends the run with one message, and nothing is lost."""

import json
from pathlib import Path

import pytest
from typer.testing import Result

from tests.rewards.making import install_reward, replaced
from tests.tuning.making import install_brightness, metrics, recipe, tune, write_recipe

# Reports of the test table, whose text must never be printed.
_COUNTED = "Own.calls += 1\nif Own.calls > {after}:\n    {line}\nreturn images.mean((1, 2, 3))"
_ONE_BASELINE = 1  # calls of an evaluation: two images, one batch
_ONE_ITERATION = 4  # calls of an iteration, at most: two batches of the policy's, two of the baseline's


def counted(line: str, *, after: int) -> str:
    """The honest reward that does something else after some calls."""
    source = replaced(_COUNTED.format(line=line, after=after))
    return source.replace("    unit, low", "    calls = 0\n    unit, low")


def refused(result: Result) -> str:
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert result.output.count("error:") == 1
    return " ".join(result.output.split())


@pytest.fixture
def own(tiny_model: Path, tmp_path: Path) -> Path:
    content = recipe(tiny_model, rewards={"own": {"backend": "any"}}, iterations=3)
    content["evaluation"] |= {"every": 3}
    return write_recipe(tmp_path, content)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("raise ValueError(reports[0].full_text)", "its call failed: ValueError at "),
        pytest.param("sys.exit(0)", "its call failed: SystemExit at ", marks=pytest.mark.slow),
        ("return images.mean((1, 2, 3)).tolist()", "its call returned an object of type list"),
        pytest.param(
            "return images",
            "its call returned a tensor of shape [2, 1, 32, 32] and type float32",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_goes_wrong_in_an_iteration_is_one_message_and_the_checkpoint_is_kept(
    line: str, said: str, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_reward(tmp_path / "package", counted(line, after=_ONE_BASELINE + _ONE_ITERATION), monkeypatch)
    out = tmp_path / "run"
    message = refused(tune(own, out))
    assert "error: iteration 2: report " in message
    assert "and 1 other of its batch: reward own (backend any): " + said in message
    assert "pneumothorax" not in message
    assert (out / "checkpoints" / "0-000001").is_dir()
    assert len(metrics(out)) == 1


@pytest.mark.parametrize(("where", "line"), [("constructor", "sys.exit(1)"), ("top", "import no_such_package")])
def test_a_reward_that_cannot_be_loaded_is_one_message_and_nothing_is_written(
    where: str, line: str, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_reward(tmp_path / "package", replaced(**{where: line}), monkeypatch)
    assert "error: reward own (backend any): own_reward_" in refused(tune(own, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["tuning", "evaluator"])
def test_a_reward_that_is_nan_for_all_is_refused_after_the_baselines_evaluation(
    kind: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_reward(tmp_path / "package", replaced("return images.mean((1, 2, 3)) * torch.nan"), monkeypatch)
    content = recipe(tiny_model, rewards={"own" if kind == "tuning" else "posture": {}})
    content["evaluation"] |= {"evaluator": {"own": "any"} if kind == "evaluator" else "nano-judge"}
    path, out = write_recipe(tmp_path, content), tmp_path / "run"
    message = refused(tune(path, out))
    assert "before iteration 1: the baseline's images of held-out reports: " in message
    assert f"{kind} reward own is not a number for any of 2" in message
    assert metrics(out) == []
    # A mended package starts from fresh values.
    assert not (out / "checkpoints" / "baseline" / "0.safetensors").exists()


@pytest.mark.parametrize("kind", [pytest.param("tuning", marks=pytest.mark.slow), "evaluator"])
def test_a_reward_that_is_the_same_for_all_is_named(
    kind: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_reward(tmp_path / "package", replaced("return 0 * images.mean((1, 2, 3)) + 0.3"), monkeypatch)
    content = recipe(tiny_model, iterations=1, rewards={"own" if kind == "tuning" else "posture": {}})
    content["evaluation"] |= {"evaluator": {"own": "any"} if kind == "evaluator" else "nano-judge"}
    result = tune(write_recipe(tmp_path, content), tmp_path / "run")
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    assert said.count(f"warning: {kind} reward own has the same value for all 2 of the baseline's images") == 1
    assert said.count("has the same value") == 1


def test_a_reward_that_is_nan_in_all_of_a_short_stage_is_refused(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nan = counted("return images.mean((1, 2, 3)) * torch.nan", after=_ONE_BASELINE)
    install_reward(tmp_path / "package", nan, monkeypatch)
    message = refused(tune(own, tmp_path / "run", "--set", "stages.0.iterations=2"))
    assert "iteration 2: report " in message
    assert "reward own is not a number" in message


def test_an_evaluator_of_the_tuning_family_is_warned_of(tiny_model: Path, tmp_path: Path) -> None:
    content = recipe(tiny_model, rewards={"posture": {"backend": "nano"}})
    content["evaluation"] |= {"evaluator": {"posture": "nano-judge", "diagnosis": "nano"}}
    path = write_recipe(tmp_path, content)
    result = tune(path, tmp_path / "run", "--dry-run")
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    assert "warning: evaluation.evaluator: diagnosis has the backend nano" in said
    assert "not independent" in said
    assert said.count("warning: ") == 1
    independent = tune(path, tmp_path / "run", "--dry-run", "--set", "evaluation.evaluator=nano-judge")
    assert independent.exit_code == 0, independent.output
    assert "not independent" not in independent.output


@pytest.mark.slow
def test_an_ensemble_tunes_and_is_recorded(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bright and dark together are worth nothing, less half of what they disagree by."""
    install_brightness(tmp_path / "package", monkeypatch)
    content = recipe(tiny_model, iterations=1, rewards={"brightness": {"backend": ["bright", "dark"]}})
    out = tmp_path / "run"
    result = tune(write_recipe(tmp_path, content), out)
    assert result.exit_code == 0, result.output
    row = metrics(out)[0]
    assert -0.5 < row["reward/brightness/mean"] < 0
    inputs = json.loads((out / "inputs.json").read_text())
    keys = ("stages.0.rewards.brightness", "stages.0.rewards.brightness.1")
    assert len({inputs[key] for key in keys}) == 2
    assert "brightness (bright and dark, weight 1)" in (out / "model" / "model_card.md").read_text()
