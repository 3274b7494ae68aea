"""The command line: fast, strict about its arguments, and in step with the Python functions."""

import inspect
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

from cxrsynth import api, cli
from cxrsynth.options import parse_judges, parse_numbers, parse_thresholds
from cxrsynth.recipe.read import load_recipe
from cxrsynth.reports.table.rows import Report
from cxrsynth.tuning import reward_check
from tests.conftest import build_tiny_model
from tests.rewards.making import HONEST, install_reward, replaced

_CODE = """
import sys
from typer.testing import CliRunner
from cxrsynth.cli import app
result = CliRunner().invoke(app, sys.argv[1:])
heavy = {"torch", "diffusers", "transformers", "spacy", "numpy", "pydicom", "pyarrow"} & set(sys.modules)
sys.stdout.write(f"{result.exit_code} {sorted(heavy)}")
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["generate", "--help"],
        ["audit", "--help"],
        ["--version"],
        ["recipes", "list"],
        ["recipes", "show", "smoke"],
        ["rewards", "list"],
        ["rewards", "check", "--help"],
    ],
)
def test_help_and_recipes_import_nothing_heavy(arguments: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", _CODE, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout == "0 []"


@pytest.mark.slow
def test_libraries_give_no_advice_where_no_folder_can_be_written_to(tmp_path: Path) -> None:
    """matplotlib's, on its cache; a path below a file cannot be made by any user."""
    (tmp_path / "file").touch()
    beneath = str(tmp_path / "file" / "below")
    code = "from cxrsynth import cli; cli._quiet_libraries(); import cxrsynth.tuning.curves"
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"HOME": beneath, "XDG_CONFIG_HOME": beneath, "XDG_CACHE_HOME": beneath},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stderr == ""


def test_no_help_is_lost_as_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rich takes `[@revision]` for a tag, and shows nothing of it."""
    monkeypatch.setenv("COLUMNS", "400")
    commands: Any = typer.main.get_command(cli.app)
    for name in ("generate", "tune", "audit", "convert"):
        shown = " ".join(CliRunner().invoke(cli.app, [name, "--help"]).output.split())
        for option in commands.commands[name].params:
            assert " ".join(option.help.split()) in shown, option.name


def test_every_option_has_help() -> None:
    commands: Any = typer.main.get_command(cli.app)
    for name in ("generate", "tune", "audit", "convert"):
        silent = [option.name for option in commands.commands[name].params if not option.help]
        assert not silent, name
    for group in ("recipes", "rewards"):
        for name, command in commands.commands[group].commands.items():
            assert all(option.help for option in command.params), name


@pytest.mark.parametrize(
    ("command", "function"),
    [(cli.generate, api.generate), (cli.tune, api.tune), (cli.audit, api.audit), (cli.convert, api.convert)],
)
def test_options_and_arguments_have_the_same_defaults(
    command: Callable[..., Any], function: Callable[..., Any]
) -> None:
    options, arguments = inspect.signature(command).parameters, inspect.signature(function).parameters
    shared = options.keys() & arguments.keys() - {"out", "reports", "fail_under"}  # required, or of another type
    assert len(shared) > 1
    assert {name: options[name].default for name in shared} == {name: arguments[name].default for name in shared}


def test_a_judge_path_may_hold_an_equals_sign() -> None:
    assert set(parse_judges(["/models/lr=3"]).values()) == {"/models/lr=3"}
    assert set(parse_judges(["./lr=3"]).values()) == {"./lr=3"}
    assert parse_judges(["diagnosis=/models/lr=3"])["diagnosis"] == "/models/lr=3"


def test_a_relative_judge_folder_with_an_equals_sign_is_a_backend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=3").mkdir()
    assert set(parse_judges(["lr=3"]).values()) == {"lr=3"}
    assert parse_judges(["own=3"])["own"] == "3"  # no such folder: a reward of an entry point


def test_a_judge_for_one_reward_leaves_the_others_as_they_are() -> None:
    assert parse_judges([]) == {"posture": "nano-judge", "diagnosis": "nano-judge", "consistency": "nano-judge"}
    assert parse_judges(["nano", "posture=pspnet", "my-reward=x"]) == {
        "posture": "pspnet",
        "diagnosis": "nano",
        "consistency": "nano",
        "my-reward": "x",
    }


@pytest.mark.parametrize("given", [["=nano"], ["posture="], ["posture=nano", "posture=pspnet"]])
def test_a_judge_without_reward_or_backend_or_given_twice_is_refused(given: list[str]) -> None:
    with pytest.raises(typer.BadParameter):
        parse_judges(given)


def test_numbers_follow_the_last_equals_sign() -> None:
    assert parse_numbers("--min", ["posture=5", "a=b=0.5"]) == {"posture": 5.0, "a=b": 0.5}
    assert parse_thresholds(["own=1"], posture=2.0, diagnosis=None) == {"own": 1.0, "posture": 2.0}


@pytest.mark.parametrize(
    "given", [["posture"], ["=5"], ["posture=x"], ["posture=nan"], ["posture=101"], ["a=1", "a=2"]]
)
def test_numbers_that_are_none_or_out_of_range_or_given_twice_are_refused(given: list[str]) -> None:
    with pytest.raises(typer.BadParameter):
        parse_numbers("--beat-reference", given, low=0, high=100)


def test_a_threshold_given_in_both_forms_is_refused() -> None:
    with pytest.raises(typer.BadParameter):
        parse_thresholds(["posture=1"], posture=2.0)


def test_a_recipe_value_may_hold_equals_signs() -> None:
    smoke = Path(api.packaged_folder()) / "smoke.yaml"
    recipe = load_recipe(smoke, overrides=["model.checkpoint=/models/lr=3"])
    assert recipe.model.checkpoint == "/models/lr=3"


def test_recipes_are_listed_shown_and_copied_with_their_tables(tmp_path: Path) -> None:
    listed = CliRunner().invoke(cli.app, ["recipes", "list"])
    assert listed.exit_code == 0
    assert "smoke" in listed.stdout
    shown = CliRunner().invoke(cli.app, ["recipes", "show", "smoke"])
    assert shown.stdout == (api.packaged_folder() / "smoke.yaml").read_text(encoding="utf-8")
    copied = CliRunner().invoke(cli.app, ["recipes", "copy", "smoke", str(tmp_path / "own")])
    assert copied.exit_code == 0
    assert {path.name for path in (tmp_path / "own").iterdir()} == {"smoke.yaml", "nano-reports.csv"}
    assert load_recipe(tmp_path / "own" / "smoke.yaml").reports.table == tmp_path / "own" / "nano-reports.csv"


def test_job_scripts_are_listed_shown_and_copied(tmp_path: Path) -> None:
    listed = CliRunner().invoke(cli.app, ["recipes", "list"], env={"COLUMNS": "200"})
    rows = {line.split()[0]: line for line in listed.stdout.splitlines() if line.strip()}
    assert "A data set in 16 parts" in rows["slurm/generate-array.sh"]
    assert "!/bin/bash" not in listed.stdout
    assert "SBATCH" not in listed.stdout
    text = (api.packaged_folder() / "slurm" / "generate-array.sh").read_text(encoding="utf-8")
    for name in ("slurm/generate-array.sh", "slurm/generate-array"):
        assert CliRunner().invoke(cli.app, ["recipes", "show", name]).stdout == text
    copied = CliRunner().invoke(cli.app, ["recipes", "copy", "slurm/generate-array.sh", str(tmp_path)])
    assert copied.exit_code == 0
    assert {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()} == {"generate-array.sh": text}
    again = CliRunner().invoke(cli.app, ["recipes", "copy", "slurm/generate-array.sh", str(tmp_path)])
    assert again.exit_code == 2
    assert "generate-array.sh: exists already" in again.stderr


def test_a_job_script_without_its_folder_is_refused_with_the_nearest_and_is_no_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for command in ("show", "copy"):
        folder = [str(tmp_path)] if command == "copy" else []
        done = CliRunner().invoke(cli.app, ["recipes", command, "generate-array", *folder])
        assert done.exit_code == 2
        assert "did you mean: slurm/generate-array.sh" in done.stderr
    tuned = CliRunner().invoke(cli.app, ["tune", "generate-array.sh"])
    assert tuned.exit_code == 2
    assert "no recipe of this name" in tuned.stderr
    assert "slurm/" not in tuned.stderr


def test_rewards_are_listed_with_those_of_installed_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = install_reward(tmp_path, HONEST, monkeypatch, name="brightness").stem
    listed = CliRunner().invoke(cli.app, ["rewards", "list"], env={"COLUMNS": "200"})
    assert listed.exit_code == 0
    rows = {line.split()[0]: line for line in listed.stdout.splitlines()[3:] if line.strip()}
    assert [*rows] == ["posture", "diagnosis", "consistency", "brightness"]
    assert "nano, nano-judge, pspnet, or a folder" in rows["posture"]
    assert f"{module}:Own, of {module.replace('_', '-')} 1.0" in rows["brightness"]
    assert module not in sys.modules


@pytest.mark.slow
def test_a_reward_is_checked_on_nanos_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_reward(tmp_path, HONEST, monkeypatch)
    done = CliRunner().invoke(cli.app, ["rewards", "check", "own", "--backend", "any", "--device", "cpu"])
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert len(lines) == 10
    assert all(" ok" in line for line in lines)


def test_a_broken_promise_of_a_reward_ends_with_exit_code_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_reward(tmp_path, replaced("return images.mean((1, 2, 3)) + 7"), monkeypatch)
    monkeypatch.setattr(reward_check, "example_images", lambda device: (torch.rand(2, 1, 8, 8), [Report("r", 2)] * 2))
    done = CliRunner().invoke(cli.app, ["rewards", "check", "own", "--device", "cpu"])
    assert done.exit_code == 2, done.output
    failed = [line for line in done.stdout.splitlines() if " failed " in line]
    assert len(failed) == 1
    assert failed[0].startswith("range ")
    assert "expected 0 to 1" in failed[0]
    unknown = CliRunner().invoke(cli.app, ["rewards", "check", "owm"])
    assert unknown.exit_code == 2
    assert "error: reward 'owm': unknown" in unknown.stderr


def test_a_copy_never_replaces_a_file(tmp_path: Path) -> None:
    (tmp_path / "nano-reports.csv").write_text("mine")
    done = CliRunner().invoke(cli.app, ["recipes", "copy", "smoke", str(tmp_path)])
    assert done.exit_code == 2
    assert "nano-reports.csv: exists already" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["nano-reports.csv"]


@pytest.mark.parametrize("arguments", [["recipes", "show", "smok"], ["tune", "smok"]])
def test_an_unknown_recipe_name_is_refused_with_the_nearest(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exit_code == 2
    assert "did you mean: smoke" in done.stderr


def test_a_packaged_recipe_runs_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli.app, ["tune", "smoke", "--set", "reports.table=missing.csv", "--dry-run"])
    assert done.exit_code == 2
    assert str(api.packaged_folder() / "missing.csv") in done.stderr  # relative to the recipe, not to this folder


def test_the_example_table_makes_a_data_set(tmp_path: Path) -> None:
    model = build_tiny_model(tmp_path / "model")
    options = ["--model", str(model), "--limit", "2", "--steps", "1", "--device", "cpu"]
    done = CliRunner().invoke(cli.app, ["generate", "--example", "--out", str(tmp_path / "out"), *options])
    assert done.exit_code == 0, done.output
    assert "2 images in 1 shard" in done.stderr


@pytest.mark.parametrize("arguments", [["reports.csv", "--example"], []])
def test_one_of_table_and_example_is_needed(arguments: list[str], tmp_path: Path) -> None:
    done = CliRunner().invoke(cli.app, ["generate", *arguments, "--out", str(tmp_path / "out")])
    assert done.exit_code == 2
    assert "--example" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("share", ["0", "1.5", "nan"])
def test_a_share_to_keep_is_above_0_and_at_most_1(share: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(cli.app, ["audit", str(tmp_path), "--keep-fraction", share])
    assert done.exit_code == 2
    assert "expected above 0, at most 1" in " ".join(done.output.split())


def test_every_option_is_in_the_documentation() -> None:
    root = Path(__file__).parents[1]
    pages = "\n".join(page.read_text(encoding="utf-8") for page in (root / "README.md", *(root / "docs").glob("*.md")))
    named = set(re.findall(r"--[a-z][a-z0-9-]*", pages))
    commands: list[Any] = [typer.main.get_command(cli.app)]
    options = set[str]()
    for command in commands:
        commands.extend(getattr(command, "commands", {}).values())
        # A parameter may have two names; columns are documented by the role they name.
        options |= {max(one.opts) for one in command.params if not set(one.opts) & named}
    options = {option for option in options if option.startswith("--") and not option.endswith("-column")}
    assert options == {"--version"}
