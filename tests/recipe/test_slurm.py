"""The job scripts for Slurm: what each starts is what torchrun and cxrsynth understand."""

import os
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
# Each prints its arguments, one a line, and srun runs what it is given.
PROGRAMS = {
    "srun": 'exec "$@"',
    "scontrol": "printf 'node1\\nnode2\\n'",
    "torchrun": "printf '%s\\n' torchrun \"$@\"",
    "cxrsynth": "printf '%s\\n' cxrsynth \"$@\"",
}


def test_there_are_scripts_for_every_command() -> None:
    assert {script.stem for script in SCRIPTS} == {
        *("generate-array", "generate-torchrun", "tune-array", "tune-torchrun", "audit-torchrun"),
    }


def started(script: Path, tmp_path: Path, **environment: str) -> list[str]:
    """The program that a script starts in the end, and its arguments."""
    for name, text in PROGRAMS.items():
        program = tmp_path / name
        program.write_text(f"#!/bin/bash\n{text}\n")
        program.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", str(script)], env=SLURM | {"PATH": path} | environment, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


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
        *("--id-key", "my key", "--part", "2/3"),
    ]
