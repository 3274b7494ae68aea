"""`torchrun --max-restarts`: tuning and audits two of whose workers were killed end as if none had been."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from cxrsynth.cli import app
from cxrsynth.tuning.run_folder import RunFolder
from tests.generation.making import command, hashes, write_table
from tests.processes import TIMEOUT_S, Warm, Workers, free_port, process_group, torchrun, without_agents
from tests.tuning.making import metrics, recipe, write_recipe

pytestmark = pytest.mark.slow


def uninterrupted(*arguments: object, logs: Path) -> list[str]:
    """What two processes print that nobody kills."""
    with process_group(2) as environments:
        both = [
            Warm("cxrsynth", *arguments, log=logs / f"{own['RANK']}.log", environment=own | {"HF_HUB_OFFLINE": "1"})
            for own in environments
        ]
        for process in both:
            assert process.wait() == 0, process.printed()
    return [process.printed() for process in both]


def restarted(*arguments: object, log: Path) -> Warm:
    """Two workers under an agent that starts them again, but no more often than these tests kill one."""
    return torchrun(
        *("--nnodes", "1", "--nproc-per-node", "2", "--max-restarts", "2"),
        *("--rdzv-backend", "c10d", "--rdzv-id", "test", "--rdzv-endpoint", f"127.0.0.1:{free_port()}"),
        command=arguments,
        log=log,
    )


def test_tuning_goes_on_where_killed_workers_stopped(tiny_model: Path, tmp_path: Path) -> None:
    stage = {"iterations": 6, "reports_per_iteration": 4, "rewards": {"posture": {}}}
    path = write_recipe(tmp_path, recipe(tiny_model, objective="forward", **stage))
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    uninterrupted("tune", path, "--out", whole, logs=tmp_path)

    def saved(iteration: int) -> bool:
        newest = RunFolder(cut).newest(0)
        return newest is not None and int(newest.name.partition("-")[2]) >= iteration

    agent = restarted("tune", path, "--out", cut, log=tmp_path / "log")
    workers = Workers([agent], 2)
    workers.kill_when(1, lambda: saved(1))
    workers.kill_when(0, lambda: saved(3))
    assert agent.wait(3 * TIMEOUT_S) == 0, agent.printed()
    printed = agent.printed()
    assert printed.count("exitcode: -9") >= 2
    assert printed.count("resuming after iteration") == 2
    assert "Traceback" not in without_agents(printed)
    assert metrics(cut) == metrics(whole)
    assert hashes(cut / "model") == hashes(whole / "model")


def test_an_audit_goes_on_where_killed_workers_stopped(tiny_model: Path, tmp_path: Path) -> None:
    """The first while units are scored, the other, which is the main process, when it compares all images."""
    images, reference = tmp_path / "images", tmp_path / "reference"
    table = write_table(tmp_path / "reports.csv")
    for out, *seed in ((images,), (reference, "--seed", "1")):
        options = ("--images-per-report", "2", "--shard-size", "1", *seed)
        made = CliRunner().invoke(app, command(table, out, tiny_model, *options))
        assert made.exit_code == 0, made.output
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    arguments = ("audit", images, "--reference", reference, "--device", "cpu", "--probes", "2")
    uninterrupted(*arguments, "--out", whole, logs=tmp_path)

    def scored() -> dict[str, int]:
        """Units of either set, and when they were written."""
        return {path.name: path.stat().st_mtime_ns for path in (cut / ".cxrsynth-audit").glob("*.parquet")}

    agent = restarted(*arguments, "--out", cut, log=tmp_path / "log")
    workers = Workers([agent], 2)
    workers.kill_when(1, lambda: len(scored()) >= 2)
    first = scored()
    workers.kill_when(0, lambda: "comparing images with each other" in agent.printed())
    second = scored()
    assert agent.wait(3 * TIMEOUT_S) == 0, agent.printed()
    printed = agent.printed()
    assert printed.count("exitcode: -9") >= 2
    assert printed.count("of 14 images kept") == 1
    assert "Traceback" not in without_agents(printed)
    assert 2 <= len(first) < len(second) == 28
    assert {name: second[name] for name in first} == first, "scored again"
    assert hashes(cut) == hashes(whole)
