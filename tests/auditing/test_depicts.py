"""`audit --write-depicts`: what images were measured to show goes into the model's description."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cxrsynth.auditing.depicts import check_origin, write_depicts
from cxrsynth.cli import app
from cxrsynth.diffusion.resolve import find_model, resolve_model
from cxrsynth.diffusion.spec import read_spec
from cxrsynth.errors import ModelError
from cxrsynth.settings import Additions
from tests.generation.making import command

AUDITED: dict[str, list[str | None]] = {
    "view": ["PA", "AP", None],
    "age_group": ["adult"] * 3,
    "sex": ["F", "M", "F"],
}


def row(finding: str, low: float | None, asked: int = 30) -> dict[str, Any]:
    auroc = None if low is None else {"value": low + 0.1, "low": low, "high": low + 0.2}
    return {"finding": finding, "requested": asked, "not_requested": 50, "auroc": auroc}


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def manifest_of(digest: str, *, kept: bool = False) -> dict[str, Any]:
    """As of a data set, or of the kept images of one."""
    manifest = {"plan": {"model": {"name": "mine", "digest": digest}}}
    return {"plan": {}, "source": {"kind": "cxrsynth"} | manifest} if kept else manifest


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("described", [False, True])
def test_the_model_is_that_which_made_the_images(
    described: bool, kept: bool, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also in a later audit, when its description is another."""
    record, rows = tmp_path / "record.json", [row("Edema", 0.7)]
    if described:
        shown = {"views": ["PA"], "age_groups": ["adult"], "sexes": ["F"], "sides": False, "uncertain": False}
        description = {"name": "mine", "depicts": shown | {"findings": {"Fracture": 3}}}
        (model / "cxrsynth.json").write_text(json.dumps(description))
    manifest = manifest_of(resolve_model(str(model)).digest, kept=kept)
    for _ in range(2):
        check_origin(model, manifest, record)
        write_depicts(model, AUDITED, rows, manifest=manifest, record=record)
    said = capsys.readouterr().err
    assert ("replaces the depicts it had, with 1 finding" in said) is described
    assert len(said.splitlines()) == described
    with pytest.raises(ModelError, match="not the model that made the images"):
        check_origin(model, manifest_of("0" * 64, kept=kept), record)


def test_another_model_and_one_with_something_laid_over_are_refused(model: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(model, tmp_path / "other"))
    plain = resolve_model(str(model)).digest
    laid_over = resolve_model(str(model), additions=Additions(vae=model / "vae")).digest
    weights = other / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
    for folder, digest in ((other, plain), (model, laid_over)):
        with pytest.raises(ModelError, match=f"expected: mine, digest {digest}") as refused:
            check_origin(folder, manifest_of(digest), tmp_path / "record.json")
        assert "what was laid over it (--ace, --unet" in str(refused.value)


def test_images_that_do_not_say_who_made_them_are_taken_with_a_warning(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check_origin(model, None, tmp_path / "record.json")
    assert "warning: --write-depicts" in (said := capsys.readouterr().err)
    assert "do not say which model made them" in said


def test_findings_that_pass_are_written_beside_what_is_there(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (model / "cxrsynth.json").write_text(json.dumps({"name": "mine", "prompt": "findings"}))
    rows = [row("Edema", 0.7, asked=33), row("Pneumonia", 0.55), row("Fracture", None), row("Cardiomegaly", 0.6)]
    record = tmp_path / "record.json"
    assert write_depicts(model, AUDITED, rows, manifest=None, record=record) == ["Edema", "Cardiomegaly"]
    assert capsys.readouterr().err == ""
    spec = read_spec(model)
    assert (spec.name, spec.prompt) == ("mine", "findings")
    assert spec.depicts is not None
    assert spec.depicts.findings == {"Edema": 33, "Cardiomegaly": 30}
    assert (spec.depicts.views, spec.depicts.sexes, spec.depicts.age_groups) == (("AP", "PA"), ("F", "M"), ("adult",))
    assert not spec.depicts.sides


def test_what_the_images_do_not_state_is_not_restricted(model: Path, tmp_path: Path) -> None:
    nothing = {"view": ["PA", "PA"], "sex": [None, None], "age_group": [None, None]}
    write_depicts(model, nothing, [row("Edema", 0.7)], manifest=None, record=tmp_path / "record.json")
    depicts = read_spec(model).depicts
    assert depicts is not None
    assert (depicts.views, depicts.sexes, depicts.age_groups) == (("PA",), ("F", "M"), ("adult", "child"))
    content = json.loads((model / "cxrsynth.json").read_text())
    content["depicts"]["sexes"] = ["F"]
    (model / "cxrsynth.json").write_text(json.dumps(content))
    write_depicts(model, nothing, [row("Edema", 0.7)], manifest=None, record=tmp_path / "record.json")
    assert read_spec(model).depicts == depicts.model_copy(update={"sexes": ("F",)})


def test_a_second_audit_of_the_same_images_in_another_folder(model: Path, tmp_path: Path) -> None:
    manifest = manifest_of(resolve_model(str(model)).digest)
    (model / "cxrsynth.json").write_text(json.dumps({"name": "mine"}))
    manifest = manifest_of(resolve_model(str(model)).digest)
    write_depicts(model, AUDITED, [row("Edema", 0.7)], manifest=manifest, record=tmp_path / "record.json")
    check_origin(model, manifest, tmp_path / "elsewhere.json")
    with pytest.raises(ModelError, match="not the model that made the images"):
        check_origin(model, manifest_of("0" * 64), tmp_path / "elsewhere.json")


def test_nothing_is_written_where_nothing_passed(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no finding has an AUROC whose interval lies above 0\.6"):
        write_depicts(tmp_path, AUDITED, [row("Edema", 0.5)], manifest=None, record=tmp_path / "record.json")
    assert not (tmp_path / "cxrsynth.json").exists()


@pytest.mark.parametrize("kept", [False, True])
def test_images_that_were_drawn_until_they_passed_are_refused(kept: bool, model: Path, tmp_path: Path) -> None:
    made = manifest_of(resolve_model(str(model)).digest)
    made["plan"]["acceptance"] = {"attempts": 4}
    manifest = {"plan": {}, "source": {"kind": "cxrsynth"} | made} if kept else made
    with pytest.raises(ModelError, match="drawn until they passed"):
        check_origin(model, manifest, tmp_path / "record.json")


def test_a_folder_that_is_no_models_is_refused_before_anything_is_scored(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "image.png").write_bytes(b"")
    result = CliRunner().invoke(app, ["audit", str(tmp_path / "set"), "--write-depicts", str(tmp_path / "set")])
    assert result.exit_code == 2
    assert "not a model folder" in result.output
    assert not (tmp_path / "set-audit").exists()


@pytest.mark.slow
def test_nano_shows_an_effusion_that_was_asked_for(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(find_model("nano"), model)
    description = json.loads((model / "cxrsynth.json").read_text())
    description.pop("depicts")
    (model / "cxrsynth.json").write_text(json.dumps(description))
    table = tmp_path / "reports.csv"
    rows = [f"e{n},Large pleural effusion.,PA" for n in range(14)] + [f"n{n},Normal chest.,PA" for n in range(14)]
    table.write_text("\n".join(["report_id,impression,view", *rows]) + "\n")
    # The key decides the noise: with a new one each time, some sets of so few images would not show it.
    (tmp_path / "id.key").write_bytes(b"0123456789abcdef")
    (tmp_path / "id.key").chmod(0o600)
    key = ("--id-key", str(tmp_path / "id.key"))
    made = CliRunner().invoke(app, command(table, tmp_path / "set", model, "--steps", "8", *key))
    assert made.exit_code == 0, made.output
    result = CliRunner().invoke(app, ["audit", str(tmp_path / "set"), "--write-depicts", str(model)])
    assert result.exit_code == 0, result.output
    summary = json.loads((tmp_path / "set-audit" / "summary.json").read_text())
    found = {one["finding"]: one["auroc"] for one in summary["obedience"]}
    assert found["Pleural Effusion"]["low"] > 0.6
    assert "Pleural Effusion" in read_spec(model).depicts.findings  # type: ignore[union-attr]
    again = CliRunner().invoke(app, ["audit", str(tmp_path / "set"), "--write-depicts", str(model)])
    assert again.exit_code == 0, again.output
    (model / "cxrsynth.json").write_text(json.dumps(description | {"name": "another"}))
    changed = CliRunner().invoke(app, ["audit", str(tmp_path / "set"), "--write-depicts", str(model)])
    assert changed.exit_code == 2
    assert "not the model that made the images" in changed.output
    page = (tmp_path / "set-audit" / "report.html").read_text()
    assert "Do images show what was requested?" in page
    assert '<td class="number">14</td>' in page
