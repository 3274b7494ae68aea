"""A failure of one process ends all of them within seconds, with one message each and exit code 2."""

import time
from pathlib import Path
from typing import Any

import pytest

from tests.processes import Warm, process_group
from tests.tuning import supervised
from tests.tuning.making import install_brightness, recipe, tune, write_recipe


@pytest.fixture(autouse=True)
def _brightness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_brightness(tmp_path / "own", monkeypatch)


SEVERAL: dict[str, Any] = {"iterations": 9, "reports_per_iteration": 4, "rewards": {"posture": {}}}


def run_two(what: str, content: dict[str, Any], folder: Path, *options: str) -> list[str]:
    """What two processes print of which one is poisoned; both must end within seconds of each other, with 2."""
    path = write_recipe(folder, content)
    with process_group(2) as environments:
        both = [
            Warm(
                *("tests.tuning.poisoned", what, "tune", path, "--out", folder / "run", *options),
                log=folder / f"{own['RANK']}.log",
                environment=own,
            )
            for own in environments
        ]
        deadline = time.monotonic() + 100
        while all(process.returncode is None for process in both) and time.monotonic() < deadline:
            time.sleep(0.1)
        first = time.monotonic()
        codes = [process.wait() for process in both]
        took = time.monotonic() - first
    printed = [" ".join(process.printed().split()) for process in both]
    assert codes == [2, 2], printed
    assert took < 25, printed
    assert not any("Traceback" in text for text in printed), printed
    return printed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "objective", "message"),
    [
        ("rollout", "policy_gradient", "iteration 1: poisoned"),
        ("update", "policy_gradient", "the loss is not a number"),
        ("update", "forward", "the loss is not a number"),
        ("evaluation", "forward", "poisoned"),
        ("while the other works", "forward", "poisoned"),
    ],
)
def test_a_failure_of_one_process_ends_both(
    what: str, objective: str, message: str, tiny_model: Path, tmp_path: Path
) -> None:
    content = recipe(tiny_model, objective=objective, **SEVERAL)
    content["evaluation"] |= {"images_per_report": 4}
    healthy, failed = run_two(what, content, tmp_path)
    assert message in failed
    assert "error: [rank 1]" in failed
    assert "error: [rank 0] process 1 has failed, and its message says why" in healthy
    assert message not in healthy


@pytest.mark.slow
def test_a_checkpoint_that_one_process_cannot_read_ends_both(tiny_model: Path, tmp_path: Path) -> None:
    content = recipe(tiny_model, objective="forward", **SEVERAL)
    content["checkpoints"] = {"every": 1}
    run = tmp_path / "run"
    alone = Warm("cxrsynth", "tune", write_recipe(tmp_path, content), "--out", run, log=tmp_path / "alone.log")
    alone.kill_when(lambda: (run / "checkpoints" / "0-000001").is_dir())
    healthy, failed = run_two("checkpoint", content, tmp_path)
    assert "error: [rank 1]" in failed
    assert "poisoned" in failed
    assert "error: [rank 0] process 1 has failed" in healthy


@pytest.mark.slow
def test_the_wait_for_other_processes_ends(tiny_model: Path, tmp_path: Path) -> None:
    waited, _ = run_two("never comes", recipe(tiny_model, **SEVERAL), tmp_path, "--max-wait", "0.1")
    assert "the other processes did not answer for 0.1 minutes" in waited
    assert "--max-wait" in waited


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["rlcf", "sft"])
def test_folders_that_are_not_shared_are_refused(
    stage: str, tiny_model: Path, radiographs: Path, tmp_path: Path
) -> None:
    """As on two machines whose disks are their own."""
    content = recipe(tiny_model, objective="forward", **SEVERAL)
    if stage == "sft":
        content = supervised.recipe(tiny_model, radiographs)
    path = write_recipe(tmp_path, content)
    with process_group(2) as environments:
        both = [
            Warm(
                *("cxrsynth", "tune", path, "--out", tmp_path / f"run{own['RANK']}"),
                log=tmp_path / f"{own['RANK']}.log",
                environment=own,
            )
            for own in environments
        ]
        codes = [process.wait() for process in both]
    printed = [" ".join(process.printed().split()) for process in both]
    assert codes == [2, 2], printed
    for text in printed:
        assert "1 process of 2 (rank 1) did not find there what the first one wrote" in text
        assert "Traceback" not in text
    assert not (tmp_path / "run0").exists()
    assert not (tmp_path / "run1").exists()


@pytest.mark.parametrize("name", ["ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP"])
def test_sharded_weights_are_refused(
    name: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "true")
    refused = tune(write_recipe(tmp_path, recipe(tiny_model)), tmp_path / "run")
    assert refused.exit_code == 2
    assert f"environment: {name}=true" in refused.output
    assert not (tmp_path / "run").exists()
    monkeypatch.setenv(name, "false")
    assert tune(tmp_path / "recipe.yaml", tmp_path / "run", "--dry-run").exit_code == 0
