"""Recipes for models that users have: each runs dry on a tiny model of the same family."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from cxrsynth.cli import app
from tests.families import build
from tests.generation.making import ROWS, write_table

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
TWINS = {
    "sd15-rlcf-lora": "stable_diffusion",
    "roentgen-v2-rlcf-lora": "stable_diffusion",
    "radedit-rlcf-lora": "stable_diffusion with BERT",
    "sana-rlcf-lora": "sana",
    "pixart-rlcf-lora": "pixart",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TWINS)
def test_a_recipe_runs_dry_on_a_tiny_twin(name: str, tmp_path: Path) -> None:
    table, model = write_table(tmp_path / "reports.csv", ROWS), build(TWINS[name], tmp_path / "model")
    changes = (
        f"model.checkpoint={model}",
        "model.precision=fp32",
        "model.device=cpu",
        f"reports.table={table}",
        "reports.held_out=2",
        "reports.test=0",
        "stages.0.train.lora.rank=2",
        "stages.0.reports_per_iteration=2",
        "stages.0.rewards.diagnosis.backend=nano",
        "evaluation.evaluator=nano-judge",
    )
    arguments = ["tune", str(RECIPES / f"{name}.yaml"), "--out", str(tmp_path / "run"), "--dry-run"]
    result = CliRunner().invoke(app, [*arguments, *(part for one in changes for part in ("--set", one))])
    assert result.exit_code == 0, result.output
    assert " GiB " in result.output
    assert not (tmp_path / "run").exists()
