"""The public functions: light to import, strict about their arguments, the same work as the commands."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import cxrsynth
from tests.generation.making import command, hashes, write_table


def test_importing_the_package_or_its_functions_loads_no_torch() -> None:
    names = "cxrsynth.generate; cxrsynth.tune; cxrsynth.audit; cxrsynth.convert; cxrsynth.sanitize('Clear lungs.')"
    code = f"import sys, cxrsynth; {names}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_is_there_and_documented() -> None:
    for name in set(cxrsynth.__all__) - {"__version__", "OBSERVATIONS"}:
        assert getattr(cxrsynth, name).__doc__, name
    assert set(cxrsynth.__all__) <= set(dir(cxrsynth))
    assert not hasattr(cxrsynth, "nothing")


def test_findings_are_read_from_a_text() -> None:
    found = cxrsynth.read_findings("Small left effusion. No pneumothorax.")
    assert found == {
        "No Finding": cxrsynth.FindingLabel(cxrsynth.Status.ABSENT),
        "Pneumothorax": cxrsynth.FindingLabel(cxrsynth.Status.ABSENT),
        "Pleural Effusion": cxrsynth.FindingLabel(cxrsynth.Status.PRESENT, cxrsynth.Side.LEFT),
    }
    assert list(found) == [name for name in cxrsynth.OBSERVATIONS if name in found]


def test_types_are_shipped() -> None:
    assert (Path(cxrsynth.__file__).parent / "py.typed").is_file()


def test_generate_gives_the_bytes_of_the_command(tiny_model: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from cxrsynth.cli import app

    table = write_table(tmp_path / "reports.csv")
    done = CliRunner().invoke(app, command(table, tmp_path / "command", tiny_model))
    assert done.exit_code == 0, done.output
    made = cxrsynth.generate(
        str(table),
        tmp_path / "function",
        keep_order=True,
        model=str(tiny_model),
        steps=2,
        shard_size=3,
        batch_size=2,
        device="cpu",
        precision="fp32",
    )
    assert (made.reports, made.samples, made.shards, made.already_complete) == (7, 7, 3, False)
    assert hashes(tmp_path / "function") == hashes(tmp_path / "command")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"steps": 0}, "steps: 0, expected 1 or more"),
        ({"images_per_report": 101}, "images_per_report: 101, expected 1 to 100"),
        ({"sampler": "heun"}, "sampler: 'heun', expected one of ddim, dpm\\+\\+, euler, model"),
        ({"columns": {"report": "a", "sexx": "b"}}, "columns: 'sexx'"),
        ({"unpacked": True}, "needs shard_format='dicom'"),
    ],
)
def test_generate_refuses_an_argument_out_of_range(arguments: dict[str, Any], expected: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=expected):
        cxrsynth.generate(cxrsynth.example_reports(), tmp_path / "out", **arguments)


def test_audit_refuses_an_argument_out_of_range(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep_fraction: 2"):
        cxrsynth.audit(tmp_path, keep_fraction=2)
    with pytest.raises(ValueError, match="beat_reference"):
        cxrsynth.audit(tmp_path, beat_reference={"posture": 101})


def test_what_the_user_can_mend_is_one_kind_of_exception(tmp_path: Path) -> None:
    with pytest.raises(cxrsynth.ReportsError, match=r"none\.csv") as caught:
        cxrsynth.generate(tmp_path / "none.csv", tmp_path / "out")
    assert isinstance(caught.value, cxrsynth.CxrsynthError)
    with pytest.raises(cxrsynth.ShardError):
        cxrsynth.audit(tmp_path / "none")


@pytest.mark.slow
def test_tune_takes_a_packaged_recipe_and_overrides_of_any_type(tmp_path: Path) -> None:
    planned = cxrsynth.tune(
        "smoke", tmp_path / "run", overrides={"stages.0.iterations": 1, "model.device": "cpu"}, dry_run=True
    )
    assert planned.model == tmp_path / "run" / "model"
    assert planned.estimate is not None
    with pytest.raises(cxrsynth.RecipeError, match=r"stages\.0\.iterations"):
        cxrsynth.tune("smoke", tmp_path / "run", overrides={"stages.0.iterations": 0}, dry_run=True)
    assert not (tmp_path / "run").exists()


def test_audit_reports_what_the_summary_file_holds(tiny_model: Path, tmp_path: Path) -> None:
    import json

    cxrsynth.generate(cxrsynth.example_reports(), tmp_path / "set", model=str(tiny_model), steps=1, limit=4)
    found = cxrsynth.audit(tmp_path / "set", thresholds={"posture": -1e9}, fail_under={"kept": 1000}, device="cpu")
    assert found is not None
    assert not found.passed
    assert found.out == tmp_path / "set-audit"
    assert json.loads((found.out / "summary.json").read_text())["failed"] == found.summary["failed"]
