"""The job scripts for Slurm: what each starts is what torchrun and cxrsynth understand."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
from torch.distributed.run import get_args_parser

from cxrsynth import cli
from cxrsynth.recipe.packaged import packaged_folder

SCRIPTS = sorted((packaged_folder() / "slurm").glob("*.sh"))
SLURM = {
    "SLURM_ARRAY_TASK_ID": "2",
    "SLURM_JOB_ID": "17",
    "SLURM_JOB_NODELIST": "node[1-2]",
    "SLURM_JOB_NUM_NODES": "2",
}
# Each prints its arguments, one a line, and srun says how many cores it gives a task and runs what it is given.
PROGRAMS = {
    "srun": 'echo "cores: ${SRUN_CPUS_PER_TASK-}" >&2; echo "option: $1" >&2; shift; exec "$@"',
    "scontrol": "printf 'node1\\nnode2\\n'",
    "torchrun": "printf '%s\\n' torchrun \"$@\"",
    "cxrsynth": "printf '%s\\n' cxrsynth \"$@\"",
}


def test_there_are_scripts_for_every_command() -> None:
    assert {script.stem for script in SCRIPTS} == {
        *("generate-array", "generate-torchrun", "tune-array", "tune-torchrun", "audit-torchrun"),
    }


def run(script: Path, tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A script, run with the stand-ins for programs."""
    for name, text in PROGRAMS.items():
        program = tmp_path / name
        program.write_text(f"#!/bin/bash\n{text}\n")
        program.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", str(script)], env=SLURM | {"PATH": path} | environment, capture_output=True, text=True, check=True
    )


def started(script: Path, tmp_path: Path, **environment: str) -> list[str]:
    """The program that a script starts in the end, and its arguments."""
    return run(script, tmp_path, **environment).stdout.splitlines()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: str(script.stem))
def test_a_script_starts_what_can_be_run(script: Path, tmp_path: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    program, *arguments = started(script, tmp_path)
    if program == "torchrun":
        launch = get_args_parser().parse_args(arguments)
        assert (launch.nnodes, launch.nproc_per_node, launch.max_restarts) == ("2", "8", 3)
        assert (launch.module, launch.rdzv_endpoint) == (True, "node1:29500")
        assert launch.training_script == "cxrsynth"
        arguments = launch.training_script_args
    name, *arguments = arguments
    assert name == script.stem.partition("-")[0]
    commands: Any = typer.main.get_command(cli.app)
    context = commands.commands[name].make_context(name, arguments)
    if script.stem == "generate-array":
        assert context.params["part"] == "2/16"
        assert f"--array=1-{context.params['part'].rpartition('/')[2]}" in script.read_text()
    if script.stem == "tune-array":
        assert (str(context.params["out"]), *context.params["override"]) == ("runs/seed-2", "seed=2")


def test_names_with_spaces_and_addresses_arrive(tmp_path: Path) -> None:
    given = {"REPORTS": "s3://b/my reports.csv", "OUT": "s3://b/a set", "ID_KEY": "my key", "PARTS": "3"}
    arguments = started(packaged_folder() / "slurm" / "generate-array.sh", tmp_path, **given)
    assert arguments == [
        *("cxrsynth", "generate", "s3://b/my reports.csv", "--out", "s3://b/a set", "--model", "nano"),
        *("--id-key", "my key", "--batch-size", "64", "--precision", "auto", "--part", "2/3"),
    ]


@pytest.mark.parametrize("script", [s for s in SCRIPTS if "srun" in s.read_text()], ids=lambda s: str(s.stem))
def test_srun_gets_the_cores_that_the_job_asked_for(script: Path, tmp_path: Path) -> None:
    assert "cores: 32\n" in run(script, tmp_path, SLURM_CPUS_PER_TASK="32").stderr
    assert "cores: 1\n" in run(script, tmp_path).stderr


@pytest.mark.parametrize("script", [s for s in SCRIPTS if "srun" in s.read_text()], ids=lambda s: str(s.stem))
def test_a_job_ends_with_the_first_node_whose_command_fails(script: Path, tmp_path: Path) -> None:
    assert "option: --kill-on-bad-exit=1\n" in run(script, tmp_path).stderr


@pytest.mark.parametrize("script", [s for s in SCRIPTS if s.stem.startswith("generate")], ids=lambda s: str(s.stem))
def test_the_batch_is_that_of_the_sizing_unless_another_is_given(script: Path, tmp_path: Path) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "many-machines.md").read_text(encoding="utf-8")
    sized = re.search(r"\| nano, 256 x 256, batch (\d+) \|", page)
    assert sized is not None
    for given, expected in (({}, sized[1]), ({"BATCH_SIZE": "8"}, "8")):
        arguments = started(script, tmp_path, **given)
        assert arguments[arguments.index("--batch-size") + 1] == expected
