"""What the tests of `tune` share: a recipe that takes seconds, a user's own reward, runs by their files."""

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from cxrsynth.cli import app
from tests.generation.making import ROWS, hashes, write_table
from tests.processes import Warm

# Mean gray level of an image: what a policy learns to raise in a few iterations.
BRIGHTNESS = """
from torch import Tensor


class Brightness:
    unit, low, high, needs_report = "mean gray level", 0.0, 1.0, False

    def __init__(self, backend, *, device):
        self.sign = -1.0 if backend == "dark" else 1.0

    def __call__(self, images: Tensor, reports) -> Tensor:
        return self.sign * images.mean((1, 2, 3))
"""


def install_brightness(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install a user's package with one reward, found by its entry point."""
    folder.mkdir()
    (folder / "bright_reward.py").write_text(BRIGHTNESS)
    installed = folder / "bright_reward-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: bright-reward\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text("[cxrsynth.rewards]\nbrightness = bright_reward:Brightness\n")
    monkeypatch.syspath_prepend(str(folder))


# What a stage has of its own under each objective.
_OBJECTIVES: dict[str, dict[str, Any]] = {
    "policy_gradient": {"update": {"num_minibatches": 1}, "comparison": {"pool": 2}},
    "forward": {"forward": {"num_minibatches": 1, "timesteps": 2}, "comparison": {"baseline_images": 2}},
}

# The reports of `generate`'s tests, where the fifth denies something too: the evaluator's diagnosis can score it, which
# it cannot for an uncertain finding alone, and a small test set may hold no other.
SCORED = tuple((*row[:2], f"{row[2]} No edema.", *row[3:]) if row[0] == "QZX-7785" else row for row in ROWS)


def recipe(
    model: Path | str, table: Path | None = None, objective: str = "policy_gradient", **changes: Any
) -> dict[str, Any]:
    """A recipe of a second an iteration on the tiny model; `changes` go into its one stage."""
    stage = {
        "stage": "rlcf",
        "objective": objective,
        "iterations": 2,
        "reports_per_iteration": 2,
        "images_per_report": 2,
        "train": {"unet": "full", "learning_rate": 1.0e-3, "ace": {"tokens": 4}},
        "sampling": {"steps": 3, "batch_size": 2, "guidance": 1.5},
        "rewards": {"brightness": {"backend": "bright"}},
    } | _OBJECTIVES[objective]
    return {
        "seed": 0,
        "model": {"checkpoint": str(model), "device": "cpu", "precision": "fp32"},
        "reports": {"table": str(table or "reports.csv"), "held_out": 2},
        "stages": [stage | changes],
        "evaluation": {"every": 2, "steps": 2, "sheet": 2},
        "checkpoints": {"every": 1},
    }


def write_recipe(folder: Path, content: dict[str, Any]) -> Path:
    """The recipe as a file, its table of reports beside it."""
    write_table(folder / "reports.csv", SCORED)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def tune(path: Path, out: Path, *options: str) -> Result:
    """`cxrsynth tune` in this process."""
    return CliRunner().invoke(app, ["tune", str(path), "--out", str(out), *options])


def printed_random() -> random.Random:
    """Random numbers that differ from run to run; the seed is printed, and CXRSYNTH_TEST_SEED repeats them."""
    seed = int(os.environ.get("CXRSYNTH_TEST_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"CXRSYNTH_TEST_SEED={seed}")  # noqa: T201
    return random.Random(seed)


def metrics(out: Path) -> list[dict[str, Any]]:
    """Rows of a run, without what a clock says."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.startswith("time/")} for row in rows]


def check_resumed_to_the_bit(path: Path, *, own: Path) -> None:
    """Kill a run after its first checkpoint, resume it, and compare with one that was left alone.

    Args:
        path: recipe of at least two iterations, with a checkpoint after each.
        own: folder of the user's own reward.
    """
    whole, cut = path.parent / "whole", path.parent / "cut"

    def start(out: Path) -> Warm:
        log = out.with_name(f"{out.name}.log")
        return Warm("cxrsynth", "tune", path, "--out", out, log=log, environment={"PYTHONPATH": str(own)})

    done = start(whole)
    assert done.wait() == 0, done.printed()
    running = start(cut)
    running.kill_when(lambda: (cut / "checkpoints" / "0-000001").is_dir())
    last = start(cut)
    assert last.wait() == 0, last.printed()
    assert "resuming after iteration" in last.printed()
    assert metrics(whole) == metrics(cut)
    assert hashes(whole / "model") == hashes(cut / "model")
