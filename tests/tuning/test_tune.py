"""`cxrsynth tune` from end to end on the tiny model: it learns, it resumes to the bit, it leaves a model."""

import json
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file
from typer.testing import CliRunner

from cxrsynth.cli import app
from cxrsynth.rl.rollout_spec import RolloutSpec
from cxrsynth.rl.rollouts import PromptExample
from cxrsynth.tuning.best import BestSoFar
from cxrsynth.tuning.evaluator import Evaluator
from cxrsynth.tuning.policy_stage import PolicyStage
from cxrsynth.tuning.reinforce import Reinforcement
from cxrsynth.tuning.stage import StageProgress
from cxrsynth.tuning.verdict import Verdict
from tests.generation.making import ROWS, command, hashes, write_table
from tests.processes import Warm, process_group
from tests.tuning.making import install_brightness, metrics, printed_random, recipe, tune, write_recipe


@pytest.fixture(autouse=True)
def _brightness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_brightness(tmp_path / "own", monkeypatch)


def weights(out: Path) -> dict[str, torch.Tensor]:
    folder = max((out / "checkpoints").glob("0-*"))
    names = ("weights", "optimizer", "beside")
    return {key: value for name in names for key, value in load_file_or_none(folder / f"{name}.safetensors").items()}


def load_file_or_none(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path) if path.is_file() else {}


def timed(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def means(out: Path, name: str = "reward/brightness/mean") -> list[float]:
    return [row[name] for row in metrics(out) if name in row]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sign", "changes"),
    [
        (  # within the group: the tiny model was never trained, so all its images are bad by its own predictions
            "bright",
            {
                "objective": "forward",
                "forward": {"num_minibatches": 2, "timesteps": 2, "strength": 0.3, "kl_weight": 0.0},
                "comparison": {"kind": "group"},
            },
        ),
        ("dark", {"objective": "policy_gradient", "update": {"num_minibatches": 2, "clip_range": 1.0e-2}}),
    ],
)
def test_a_brightness_reward_rises(sign: str, changes: dict[str, Any], tiny_model: Path, tmp_path: Path) -> None:
    content = recipe(
        tiny_model,
        iterations=16,
        reports_per_iteration=2,
        images_per_report=4,
        train={"unet": "full", "learning_rate": 3.0e-3, "ace": {"tokens": 4}},
        rewards={"brightness": {"backend": sign}},
        **changes,
    )
    content["stages"][0]["sampling"]["batch_size"] = 4  # an image costs less in a larger batch
    content["evaluation"] |= {"every": 20}  # and after the last iteration
    content["checkpoints"] = {"every": 20}
    out = tmp_path / sign
    result = tune(write_recipe(tmp_path, content), out)
    assert result.exit_code == 0, result.output
    found = means(out)
    assert sum(found[-5:]) / 5 > sum(found[:5]) / 5 + 0.002
    last = metrics(out)[-1]
    assert last["evaluation/tuning/total/win_rate"] == 1.0
    assert last["evaluation/tuning/brightness/margin"] > 0.002


@pytest.mark.slow
@pytest.mark.parametrize(("sign", "objective"), [("bright", "policy_gradient"), ("dark", "forward")])
def test_a_brightness_reward_rises_by_shifts_alone(sign: str, objective: str, tiny_model: Path, tmp_path: Path) -> None:
    """The UNet is frozen and gets no gradient; images of the training reports follow all the same."""
    content = recipe(
        tiny_model,
        objective=objective,
        iterations=20,
        images_per_report=8,
        train={
            "unet": "frozen",
            "ace": {"subspace": 4, "exploration_std": 2.0, "kl_weight": 0},
            "ace_learning_rate": 1.0,
        },
        rewards={"brightness": {"backend": sign}},
    )
    content["stages"][0]["sampling"]["batch_size"] = 8
    content["evaluation"] |= {"every": 20}
    content["checkpoints"] = {"every": 20}
    assert tune(write_recipe(tmp_path, content), tmp_path / sign).exit_code == 0
    policy, baseline = (means(tmp_path / sign, f"reward/brightness/{of}") for of in ("mean", "baseline"))
    gained = [a - b for a, b in zip(policy, baseline, strict=True)]
    assert sum(gained[-5:]) / 5 > max(0.0, sum(gained[:5]) / 5) + 0.0005


def test_what_a_run_leaves(tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    before = hashes(tiny_model)
    result = tune(write_recipe(tmp_path, recipe(tiny_model, train={"unet": "full", "learning_rate": 1.0e-2})), out)
    assert result.exit_code == 0, result.output
    assert "|ratio - 1| before the first update: 0.0e+00" in result.output
    assert hashes(tiny_model) == before
    names = {path.name for path in out.iterdir()}
    assert {"recipe.yaml", "versions.json", "metrics.jsonl", "curves.png", "sheets", "checkpoints", "model"} <= names
    resolved = yaml.safe_load((out / "recipe.yaml").read_text())
    assert resolved["stages"][0]["update"]["kl_weight"] == 0.0
    rows = metrics(out)
    assert [row["iteration"] for row in rows] == [1, 2, 2]
    assert rows[0]["policy/clip_fraction"] == 0.0
    assert (out / "sheets" / "0-000002.png").is_file()
    assert "| evaluator posture |" in (out / "model" / "model_card.md").read_text()
    for path in (out / "model").rglob("*.json"):  # the folder is shared, and equal weights have one digest
        assert str(tmp_path) not in path.read_text()
        assert str(tiny_model) not in path.read_text()
    again = tune(tmp_path / "recipe.yaml", out)
    assert (again.exit_code, "already complete" in again.output) == (0, True)


@pytest.mark.slow
@pytest.mark.parametrize("unet", ["full", "lora"])
def test_the_model_is_one_for_diffusers_and_for_generate(unet: str, tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train = {"unet": unet, "lora": {"rank": 2}, "learning_rate": 1.0e-2}
    assert tune(write_recipe(tmp_path, recipe(tiny_model, train=train)), out).exit_code == 0
    model = out / "model"
    pipeline = StableDiffusionPipeline.from_pretrained(model, safety_checker=None)
    start = StableDiffusionPipeline.from_pretrained(tiny_model, safety_checker=None)
    moved = [
        name
        for (name, new), old in zip(pipeline.unet.named_parameters(), start.unet.parameters(), strict=True)
        if not torch.equal(new, old)
    ]
    assert moved
    assert all("to_" in name for name in moved) or unet == "full"
    assert load_file(model / "ace.safetensors")["blocks"].any()
    made = []
    for name, options in (("explicit", ["--ace", str(model)]), ("default", []), ("plain", [])):
        folder = tiny_model if name == "plain" else model
        table = write_table(tmp_path / "few.csv")
        result = CliRunner().invoke(app, command(table, tmp_path / name, folder, "--limit", "2", *options))
        assert result.exit_code == 0, result.output
        made.append((tmp_path / name / "cxr-000000.tar").read_bytes())
    assert made[0] == made[1] != made[2]  # the folder's own embeddings are the default


@pytest.mark.slow
def test_nothing_but_what_the_recipe_says_is_trained(tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train: dict[str, Any] = {"unet": "frozen", "ace": True}
    assert tune(write_recipe(tmp_path, recipe(tiny_model, train=train)), out).exit_code == 0
    assert set(load_file(max((out / "checkpoints").glob("0-*")) / "weights.safetensors")) == {"ace.coordinates"}
    for old in ("unet", "vae", "text_encoder"):
        name = "diffusion_pytorch_model.safetensors" if old != "text_encoder" else "model.safetensors"
        found, start = (load_file(folder / old / name) for folder in (out / "model", tiny_model))
        assert all(torch.equal(found[key], start[key]) for key in start)


def test_the_first_images_are_the_baselines(tiny_model: Path, tmp_path: Path) -> None:
    """Evaluated before it has learned anything, the policy wins nothing and loses nothing."""
    out = tmp_path / "run"
    train = {
        "unet": "lora",
        "lora": {"rank": 2},
        "learning_rate": 1.0e-30,
        "ace_learning_rate": 1.0e-30,
    }  # too small to count
    content = recipe(tiny_model, train=train, iterations=1)
    content["evaluation"] |= {"every": 1}
    result = tune(write_recipe(tmp_path, content), out)
    assert result.exit_code == 0
    assert "not better than its start" in result.output
    row = metrics(out)[-1]
    assert row["evaluation/tuning/brightness/margin"] == pytest.approx(0.0, abs=1e-7)
    assert row["evaluation/evaluator/posture/margin"] == pytest.approx(0.0, abs=1e-5)


@pytest.mark.slow
def test_a_stage_ends_early_when_the_evaluator_finds_no_improvement(tiny_model: Path, tmp_path: Path) -> None:
    """Nothing is learned: the first evaluation stays the best, and two more are waited for."""
    train = {
        "unet": "lora",
        "lora": {"rank": 2},
        "learning_rate": 1.0e-30,
        "ace_learning_rate": 1.0e-30,
    }  # too small to count
    content = recipe(tiny_model, train=train, iterations=9)
    content["evaluation"] |= {"every": 1, "patience": 2, "sheet": 0}
    path, out = write_recipe(tmp_path, content), tmp_path / "run"
    result = tune(path, out)
    assert result.exit_code == 0, result.output
    assert (
        "has not improved in 2 evaluations (the best: +0.000 after iteration 1): the stage ends here" in result.output
    )
    rows, model = metrics(out), hashes(out / "model")
    assert max(row["iteration"] for row in rows) == 3
    # Killed before the model was written, it does not train on.
    (out / "model").rename(tmp_path / "aside")
    assert tune(path, out).exit_code == 0
    assert (metrics(out), hashes(out / "model")) == (rows, model)


@pytest.mark.slow
def test_a_reward_that_stalls_is_named_on_the_console(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []

    def named(rows: list[dict[str, Any]]) -> str:
        seen.append([row["iteration"] for row in rows])
        return "diagnosis has not moved in 2 iterations"

    monkeypatch.setattr("cxrsynth.tuning.reinforce.stalled_rewards", named)
    monkeypatch.setattr("cxrsynth.tuning.reinforce.WINDOW", 2)
    result = tune(write_recipe(tmp_path, recipe(tiny_model, iterations=4)), tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert result.output.count("diagnosis has not moved") == 2
    assert seen == [[1, 2], [1, 2, 3, 4]]  # the rows of iterations alone, after every window


def start(path: Path, out: Path, **environment: str) -> Warm:
    return Warm("cxrsynth", "tune", path, "--out", out, log=out.with_suffix(".log"), environment=environment)


FULL: dict[str, Any] = {"unet": "full", "learning_rate": 1.0e-3, "ema_decay": 0.5, "ace": {"tokens": 16}}
ADAPTERS = FULL | {
    "unet": "lora",
    "lora": {"rank": 2},
    "ace": {"subspace": 3, "exploration_std": 0.5},
    "schedule": "cosine",
}
GRADIENT: dict[str, Any] = {
    "objective": "policy_gradient",
    "update": {"num_minibatches": 2, "kl_weight": 0.1},
    "comparison": {"pool": 2, "baseline_images": 2},
}
FORWARD: dict[str, Any] = {
    "objective": "forward",
    "forward": {"num_minibatches": 2, "timesteps": 2, "old_warmup": 3, "max_norm_ratio": 1.01},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [FORWARD | {"train": FULL}, FORWARD | {"train": ADAPTERS}, GRADIENT | {"train": ADAPTERS}]
)
def test_a_run_killed_at_any_moment_ends_as_if_it_never_was(
    changes: dict[str, Any], tiny_model: Path, tmp_path: Path
) -> None:
    content = recipe(tiny_model, iterations=6, rewards={"posture": {}, "diagnosis": {}}, **changes)
    content["evaluation"] |= {"every": 3}
    path = write_recipe(tmp_path, content)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert start(path, whole).wait() == 0
    rng = printed_random()  # another moment every time: in rollout, update, evaluation, or while saving
    took = sum(row.get("time/rollout_s", 0) + row.get("time/update_s", 0) for row in timed(whole)) / 6
    for done in sorted(rng.sample(range(1, 5), 2)):
        delay = 2 * rng.random() * took
        running = start(path, cut)
        running.kill_when(lambda done=done: (cut / "checkpoints" / f"0-{done:06d}").is_dir(), after=delay)  # type: ignore[misc]
        assert running.returncode == -9, delay
    last = start(path, cut)
    assert last.wait() == 0, last.printed()
    assert "resuming after iteration" in last.printed()
    expected, found = weights(whole), weights(cut)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert metrics(whole) == metrics(cut)
    assert hashes(whole / "model") == hashes(cut / "model")


@pytest.mark.slow
def test_ctrl_c_finishes_the_iteration_and_saves_it(tiny_model: Path, tmp_path: Path) -> None:
    content = recipe(tiny_model, iterations=400, rewards={"posture": {}})
    content["checkpoints"] = {"every": 1000}
    content["evaluation"] |= {"every": 1000}
    out = tmp_path / "run"
    running = start(write_recipe(tmp_path, content), out)
    running.interrupt_when(lambda: (out / "metrics.jsonl").exists() and len(metrics(out)) >= 3)
    assert running.wait() == 130
    assert "Run the same command again to resume" in running.printed()
    done = len(metrics(out))
    assert [path.name for path in (out / "checkpoints").glob("0-*")] == [f"0-{done:06d}"]
    again = tune(tmp_path / "recipe.yaml", out, "--set", "stages.0.iterations=401")
    assert "another recipe" in again.output


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_last_iteration_stops_the_run_once_it_is_saved(
    number: signal.Signals, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The iteration is saved, and the same command makes the model of what it learned."""
    path, out = write_recipe(tmp_path, recipe(tiny_model, iterations=1)), tmp_path / "run"
    assert tune(path, tmp_path / "whole").exit_code == 0
    examples = PolicyStage.examples

    def pressed(self: PolicyStage, specs: Sequence[RolloutSpec]) -> list[PromptExample]:
        signal.raise_signal(number)
        return examples(self, specs)

    with monkeypatch.context() as patch:
        patch.setattr(PolicyStage, "examples", pressed)
        stopped = tune(path, out)
    assert (stopped.exit_code, "Run the same command again to resume" in stopped.output) == (130, True)
    assert (out / "checkpoints" / "0-000001").is_dir()
    assert not (out / "model").exists()
    assert tune(path, out).exit_code == 0
    assert hashes(out / "model") == hashes(tmp_path / "whole" / "model")
    assert metrics(out) == metrics(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize(("moment", "evaluated"), [("evaluate", 2), ("draw", 2), ("draw", 3)])
def test_a_run_killed_in_an_evaluation_resumes_after_its_iteration(
    moment: str, evaluated: int, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While images are sampled, or after the row was written; in the middle of the stage, or at its end."""
    content = recipe(tiny_model, iterations=3)
    path, out = write_recipe(tmp_path, content), tmp_path / "run"
    assert tune(path, tmp_path / "whole").exit_code == 0
    owner = Evaluator if moment == "evaluate" else StageProgress
    original = getattr(owner, moment)

    def killed(self: Any, *given: Any, **named: Any) -> Any:
        if (out / "checkpoints" / f"0-{evaluated:06d}").is_dir() and (moment == "evaluate" or is_evaluated()):
            raise RuntimeError("killed")
        return original(self, *given, **named)

    def is_evaluated() -> bool:
        return any(row["iteration"] == evaluated and "evaluation/ms_ssim" in row for row in metrics(out))

    with monkeypatch.context() as patch:
        patch.setattr(owner, moment, killed)
        assert "killed" in str(tune(path, out).exception)
    assert is_evaluated() == (moment == "draw")
    resumed = tune(path, out)
    assert resumed.exit_code == 0, resumed.output
    assert f"resuming after iteration {evaluated} of 3" in resumed.output
    assert metrics(out) == metrics(tmp_path / "whole")
    assert hashes(out / "model") == hashes(tmp_path / "whole" / "model")


@pytest.mark.slow
@pytest.mark.parametrize("changes", [FORWARD | {"train": ADAPTERS}, GRADIENT | {"train": FULL}])
def test_two_processes_learn_what_one_does(changes: dict[str, Any], tiny_model: Path, tmp_path: Path) -> None:
    content = recipe(tiny_model, rewards={"posture": {}, "diagnosis": {}}, **changes)
    content["stages"][0] |= {"reports_per_iteration": 3}  # three batches: one process has two of them
    content["reports"]["test"] = 2
    section = "forward" if changes["objective"] == "forward" else "update"
    content["stages"][0][section] = changes[section] | {"num_minibatches": 1}
    path = write_recipe(tmp_path, content)
    one, two = tmp_path / "one", tmp_path / "two"
    assert start(path, one).wait() == 0
    with process_group(2) as environments:
        running = [
            Warm("cxrsynth", "tune", path, "--out", two, log=tmp_path / f"{own['RANK']}.log", environment=own)
            for own in environments
        ]
        assert [process.wait() for process in running] == [0, 0], [process.printed() for process in running]
    expected, found = weights(one), weights(two)
    assert expected.keys() == found.keys()
    for name, weight in expected.items():
        assert torch.allclose(found[name], weight, rtol=1e-3, atol=1e-5), name
    assert len(metrics(two)) == len(metrics(one))
    assert len(rows_of_test(two)) == 1
    assert [process.printed().count("tuned; use it with") for process in running] == [1, 0]


@pytest.mark.slow
def test_held_out_images_are_sampled_with_the_models_own_sampler(tiny_model: Path, tmp_path: Path) -> None:
    """As `generate` samples them."""
    shutil.copytree(tiny_model, tmp_path / "model")
    images = []
    for sampler in ("ddim", "dpm++"):
        (tmp_path / "model" / "cxrsynth.json").write_text(json.dumps({"defaults": {"sampler": sampler}}))
        content = recipe(tmp_path / "model", iterations=1)
        content["evaluation"] |= {"steps": 4}
        out = tmp_path / sampler
        result = tune(write_recipe(tmp_path, content), out)
        assert result.exit_code == 0, result.output
        (kept,) = (path for path in out.rglob("0.safetensors") if "images" in load_file(path))
        images.append(load_file(kept)["images"])
    assert not torch.equal(*images)


@pytest.mark.slow
def test_ddpo_needs_no_baseline(tiny_model: Path, tmp_path: Path) -> None:
    content = recipe(tiny_model)
    del content["stages"][0]["comparison"]
    content["stages"][0]["stage"] = "ddpo"
    content["stages"][0]["train"]["schedule"] = "cosine"
    out = tmp_path / "run"
    result = tune(write_recipe(tmp_path, content), out)
    assert result.exit_code == 0, result.output
    assert "feedback/win_rate" not in metrics(out)[0]
    rates = [row["learning_rate/ace"] for row in metrics(out) if "learning_rate/ace" in row]
    assert rates == pytest.approx([1e-2, 5e-3])
    assert json.loads((max((out / "checkpoints").glob("0-*")) / "state.json").read_text())["baseline"] == []


@pytest.mark.slow
def test_the_next_stage_starts_from_what_the_last_one_left(tiny_model: Path, tmp_path: Path) -> None:
    content = recipe(tiny_model, iterations=1)
    content["stages"] = [content["stages"][0], content["stages"][0] | {"train": {"unet": "frozen"}}]
    out = tmp_path / "run"
    result = tune(write_recipe(tmp_path, content), out)
    assert result.exit_code == 0, result.output
    first = load_file(out / "stages" / "0" / "model" / "unet" / "diffusion_pytorch_model.safetensors")
    last = load_file(out / "model" / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(first[name], last[name]) for name in first)
    blocks = [load_file(f / "ace.safetensors")["blocks"] for f in (out / "stages" / "0" / "model", out / "model")]
    assert not torch.equal(*blocks)


@pytest.mark.slow
def test_a_later_stage_has_noise_of_its_own(tiny_model: Path, tmp_path: Path) -> None:
    """Else it would learn from the images that the stage before was fitted to."""
    still = {"train": {"unet": "full", "learning_rate": 1.0e-12}, "iterations": 1}
    content = recipe(tiny_model, **still)
    content["stages"] *= 2
    assert tune(write_recipe(tmp_path, content), tmp_path / "run").exit_code == 0
    first, second = (
        row["reward/brightness/mean"] for row in metrics(tmp_path / "run") if "reward/brightness/mean" in row
    )
    assert first != pytest.approx(second, abs=1e-7)  # the same noise gives the same mean, whatever the model


def test_unusable_rows_are_counted(tiny_model: Path, tmp_path: Path) -> None:
    path = write_recipe(tmp_path, recipe(tiny_model))
    write_table(tmp_path / "reports.csv", (*ROWS, ROWS[0]))
    printed = tune(path, tmp_path / "run", "--dry-run").output
    assert "1 of 8 rows cannot be used" in printed
    assert "line 9" in printed
    assert ROWS[0][0] not in printed


def test_a_dry_run_reports_and_writes_nothing(tiny_model: Path, tmp_path: Path) -> None:
    result = tune(write_recipe(tmp_path, recipe(tiny_model)), tmp_path / "run", "--dry-run")
    assert result.exit_code == 0, result.output
    # Four reports in two iterations, each from two x_T, an image of the baseline for each.
    for part in ("2 iterations of 4 images", "trains ", " in all; ", "2 held out", "samples 8 images in all"):
        assert part in result.output
    assert not (tmp_path / "run").exists()


def test_a_dry_run_of_very_many_iterations_ends(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It counts the baseline's images until there are no others, not to the last iteration."""
    planned, original = [], PolicyStage.specs

    def specs(self: PolicyStage, iteration: int, *, pool: int) -> list[RolloutSpec]:
        planned.append(iteration)
        assert len(planned) < 100
        return original(self, iteration, pool=pool)

    monkeypatch.setattr(PolicyStage, "specs", specs)
    path = write_recipe(tmp_path, recipe(tiny_model))
    result = tune(path, tmp_path / "run", "--dry-run", "--set", "stages.0.iterations=999999")
    assert result.exit_code == 0, result.output
    # Of five reports, each from two x_T.
    assert "samples 10 images in all" in result.output


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stages.0.rewards": {"sharpness": {}}}, "reward 'sharpness': unknown"),
        (
            {"stages.0.sampling.steps": 5000},
            "recipe.yaml: stages.0.sampling.steps: 5000, the model's schedule has 1000",
        ),
        ({"evaluation.steps": 5000}, "recipe.yaml: evaluation.steps: 5000, the model's schedule has 1000 timesteps"),
        ({"model.device": "mps"}, "recipe.yaml: model.device mps: not available here"),
        ({"stages.0.train.ace": {"tokens": 500}}, "24 positions"),
        ({"reports.held_out": 7}, "fewer held out than there are"),
        ({"reports.table": "none.csv"}, "none.csv"),
        ({"model.checkpoint": "nowhere"}, "recipe.yaml: model.checkpoint nowhere: no such folder"),
        ({"model.precision": "fp16"}, "expected: bf16, fp32 or auto"),
        ({"reports.columns": {"reprot": "x"}}, "unknown role 'reprot'"),
        ({"evaluation.evaluator": {}}, "evaluation.evaluator"),
        ({"seed": 1 << 70}, "seed"),
        ({"trackers": ["mlflow"]}, "pip install mlflow"),
        ({"reports.held_out": "reports.csv"}, "reports.csv is reports.csv again"),
        ({"stages.0": {"stage": "ddpo", "iterations": 1, "advantage": {"centre": False}}}, "ddpo makes none"),
    ],
)
def test_user_errors_are_explained(change: dict[str, Any], message: str, tiny_model: Path, tmp_path: Path) -> None:
    path = write_recipe(tmp_path, recipe(tiny_model))
    overrides = [part for key, value in change.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    result = tune(path, tmp_path / "run", *overrides)
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output
    for option in ("--model", "--device", "--steps", "--judge", "--features"):  # of other commands
        assert option not in result.output


@pytest.mark.slow
def test_another_recipe_cannot_resume_in_the_same_folder(tiny_model: Path, tmp_path: Path) -> None:
    path, out = write_recipe(tmp_path, recipe(tiny_model)), tmp_path / "run"
    assert tune(path, out).exit_code == 0
    result = tune(path, out, "--set", "seed=1")
    assert result.exit_code == 2
    assert "another recipe" in result.output
    assert "seed: 1" in result.output
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "note.txt").write_text("mine")
    assert tune(path, foreign).exit_code == 2
    assert (foreign / "note.txt").read_text() == "mine"


def test_report_text_is_nowhere(tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = tune(write_recipe(tmp_path, recipe(tiny_model)), out)
    assert result.exit_code == 0
    written = b"".join(file.read_bytes() for file in out.rglob("*") if file.is_file())
    for word in ("Zorblattic", "Quibbleton", "Xylograph"):
        assert word not in result.output
        assert word.encode() not in written


def with_test(model: Path, **changes: Any) -> dict[str, Any]:
    """A recipe that holds out two reports and tests on two others."""
    content = recipe(model, **changes)
    content["reports"]["test"] = 2
    return content


def rows_of_test(out: Path) -> list[dict[str, Any]]:
    return [row for row in metrics(out) if "test/ms_ssim" in row]


@pytest.mark.slow
def test_the_chosen_weights_are_tested_once_at_the_end(tiny_model: Path, tmp_path: Path) -> None:
    content = with_test(tiny_model, iterations=3)
    content["evaluation"] |= {"every": 1}
    path, out = write_recipe(tmp_path, content), tmp_path / "run"
    result = tune(path, out)
    assert result.exit_code == 0, result.output
    (row,) = rows_of_test(out)
    assert metrics(out)[-1] == row
    assert not any(name.startswith("evaluation/") for name in row)
    said = " ".join(result.output.split())
    assert "reports: 3 to train, 2 held out, 2 to test; separated by report" in said
    margin = row["test/evaluator/total/margin"]
    assert f"evaluator {margin:+.3f} (" in said.partition("on test reports: tuning ")[2]
    card = (out / "model" / "model_card.md").read_text()
    assert "On test reports, which nothing was chosen by" in card
    assert f"| evaluator posture | {row['test/evaluator/posture/baseline']:.3f} |" in card
    assert "3 to train, 2 held out, 2 to test; separated by report" in card
    assert load_file(out / "checkpoints" / "baseline" / "0-test.safetensors")["images"].shape[0] == 2
    before = hashes(out)
    assert "already complete" in tune(path, out).output
    assert hashes(out) == before  # looked at once


@pytest.mark.slow
def test_the_test_is_of_the_weights_that_the_model_gets(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the best iteration, not of the last one."""
    path, out = write_recipe(tmp_path, with_test(tiny_model, iterations=3)), tmp_path / "run"
    seen: list[torch.Tensor] = []
    original = Evaluator.evaluate

    def watched(self: Evaluator, model: Any, **named: Any) -> Any:
        if self.held_out.name == "test":
            seen.append(model.denoiser.conv_out.weight.detach().clone())
        return original(self, model, **named)

    monkeypatch.setattr(Evaluator, "evaluate", watched)
    monkeypatch.setattr(BestSoFar, "replaced_by", best_is_the_first)
    assert tune(path, out, "--set", "evaluation.every=1").exit_code == 0
    tuned, baseline = (
        StableDiffusionPipeline.from_pretrained(folder, safety_checker=None) for folder in (out / "model", tiny_model)
    )
    assert torch.equal(seen[0], tuned.unet.conv_out.weight)
    assert torch.equal(seen[1], baseline.unet.conv_out.weight)
    assert len(seen) == 2
    assert "weights of iteration 1," in (out / "model" / "model_card.md").read_text()


def best_is_the_first(self: BestSoFar, verdict: Verdict, iteration: int) -> bool:
    self.evaluated = iteration
    if iteration > 1:
        return False
    self.iteration, self.evaluator, self.tuning = iteration, verdict.evaluator, verdict.tuning
    return True


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["sampled", "written"])
def test_a_run_killed_in_its_test_repeats_it(
    moment: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = write_recipe(tmp_path, with_test(tiny_model)), tmp_path / "run"
    assert tune(path, tmp_path / "whole").exit_code == 0
    original = Evaluator.evaluate

    def killed(self: Any, *given: Any, **named: Any) -> Any:
        if moment == "written" or self.held_out.name == "test":
            raise RuntimeError("killed")
        return original(self, *given, **named)

    with monkeypatch.context() as patch:
        if moment == "sampled":
            patch.setattr(Evaluator, "evaluate", killed)
        else:
            patch.setattr(Reinforcement, "card", killed)
        assert "killed" in str(tune(path, out).exception)
    assert len(rows_of_test(out)) == (moment == "written")
    resumed = tune(path, out)
    assert resumed.exit_code == 0, resumed.output
    assert "resuming after iteration 2 of 2" in resumed.output
    assert metrics(out) == metrics(tmp_path / "whole")
    assert hashes(out / "model") == hashes(tmp_path / "whole" / "model")


@pytest.mark.slow
def test_only_the_last_stage_is_with_test(tiny_model: Path, tmp_path: Path) -> None:
    content = with_test(tiny_model, iterations=1)
    content["stages"].append(content["stages"][0] | {"train": {"unet": "frozen"}})
    out = tmp_path / "run"
    assert tune(write_recipe(tmp_path, content), out).exit_code == 0
    assert [row["stage"] for row in rows_of_test(out)] == [1]
    assert (
        "On held-out reports, which chose these weights"
        in (out / "stages" / "0" / "model" / "model_card.md").read_text()
    )


@pytest.mark.slow
def test_a_table_of_test_reports_is_one_of_the_inputs(tiny_model: Path, tmp_path: Path) -> None:
    """Beside the recipe, wherever the command is run."""
    content = recipe(tiny_model, iterations=1)
    content["reports"]["test"] = "test.csv"
    rows = tuple((f"T-{place}", f"Other text {place}.", *ROWS[place][2:]) for place in range(2))
    write_table(tmp_path / "test.csv", rows)
    path, out = write_recipe(tmp_path, content), tmp_path / "run"
    result = tune(path, out)
    assert result.exit_code == 0, result.output
    assert "5 to train, 2 held out, 2 to test" in result.output
    assert yaml.safe_load((out / "recipe.yaml").read_text())["reports"]["test"] == str(tmp_path / "test.csv")
    shutil.rmtree(out / "model")
    write_table(tmp_path / "test.csv", rows[:1])
    changed = tune(path, out, "--set", "evaluation.images_per_report=1")
    assert changed.exit_code == 2
    assert "evaluation on test reports: 1 image, expected at least 2" in changed.output
    write_table(tmp_path / "test.csv", (*rows, ("T-3", "Another.", *ROWS[2][2:])))
    assert "other files behind reports.test" in tune(path, out).output
