"""`cxrsynth generate` with a class-conditional model."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from cxrsynth.cli import app
from tests.families import CLASSES, build
from tests.generation.making import command, metadata, write_table

HEADER = ("study_id", "report")
ROWS = (("a", "Pneumonia in the right lung."), ("b", "The lungs are clear."))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("by class", tmp_path_factory.mktemp("by-class") / "model", spec={"classes": list(CLASSES)})


def test_each_report_requests_its_class(model: Path, tmp_path: Path) -> None:
    table, out = write_table(tmp_path / "reports.csv", ROWS, HEADER), tmp_path / "out"
    result = CliRunner().invoke(app, command(table, out, model, "--steps", "2"))
    assert result.exit_code == 0, result.output
    found = metadata(out).values()
    assert sorted(row["prompt"] for row in found) == ["No Finding", "Pneumonia"]
    assert {row["prompt_style"] for row in found} == {"class"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--guidance", "3"), "--guidance 3: a model without text has no guidance\n  use: --guidance 1"),
        (("--prompt", "impression"), "--prompt impression: the model takes a class, no text\n  use: --prompt class"),
    ],
)
def test_what_needs_text_is_refused(options: tuple[str, ...], message: str, model: Path, tmp_path: Path) -> None:
    table, out = write_table(tmp_path / "reports.csv", ROWS, HEADER), tmp_path / "out"
    result = CliRunner().invoke(app, command(table, out, model, *options))
    assert result.exit_code == 2
    assert message in result.output
    assert not out.exists()


def test_a_model_that_reads_text_has_no_classes(tmp_path: Path) -> None:
    table = write_table(tmp_path / "reports.csv", ROWS, HEADER)
    result = CliRunner().invoke(app, command(table, tmp_path / "out", "nano", "--prompt", "class"))
    assert result.exit_code == 2
    assert "--prompt class: the model has no classes" in result.output


def test_a_dry_run_asks_for_one_of_the_classes(model: Path, tmp_path: Path) -> None:
    table, out = write_table(tmp_path / "reports.csv", ROWS, HEADER), tmp_path / "out"
    result = CliRunner().invoke(app, command(table, out, model, "--dry-run"))
    assert result.exit_code == 0, result.output
    assert "would make 2 images" in result.output
    assert not out.exists()
