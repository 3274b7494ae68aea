"""`audit --labeler`: findings of reports are those of the user's labeler."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from cxrsynth.cli import app
from cxrsynth.reports.findings.labeler import labeler_digest
from cxrsynth.reports.labels import Status
from tests.reports.findings.test_labeler import save_labeler

REPORTS = ("Small left effusion.", "Right pneumothorax.", "Moderate edema.")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three pictures with reports in a table beside their folder, and labels of their own for the third."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "images"
    folder.mkdir()
    rows = ["filename,report,Fracture"]
    for place, report in enumerate(REPORTS):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6), dtype=np.uint8))
        coarse.resize((96, 96), Image.Resampling.BICUBIC).save(folder / f"{place}.png")
        rows.append(f"{place}.png,{report},{'0' if place == 2 else ''}")
    (tmp_path / "table.csv").write_text("\n".join(rows) + "\n")
    return folder


def audit(images: Path, *options: object) -> Result:
    table, out = images.parent / "table.csv", images.parent / "out"
    arguments = ["audit", images, "--table", table, "--out", out, "--device", "cpu", *options]
    return CliRunner().invoke(app, list(map(str, arguments)))


def present(images: Path) -> list[list[str]]:
    return pq.read_table(images.parent / "out" / "scores.parquet").sort_by("key")["present"].to_pylist()  # type: ignore[no-any-return]


def test_findings_are_the_labelers(images: Path) -> None:
    folder = save_labeler(images.parent / "labeler", said={"Fracture": Status.PRESENT})
    rules = audit(images)
    assert rules.exit_code == 0, rules.output
    assert present(images) == [["Pleural Effusion"], ["Pneumothorax"], ["Edema"]]
    summary = images.parent / "out" / "summary.json"
    assert json.loads(summary.read_text())["provenance"]["labeler"] is None

    # Nothing scored with the rules' labels is used again.
    done = audit(images, "--labeler", folder)
    assert done.exit_code == 0, done.output
    assert present(images) == [["Fracture"], ["Fracture"], []]  # the table's own label overrides the labeler's
    assert json.loads(summary.read_text())["provenance"]["labeler"] == labeler_digest(folder)


def test_what_is_no_labeler_is_refused(images: Path) -> None:
    refused = audit(images, "--labeler", images.parent / "none")

    assert refused.exit_code == 2
    assert "--labeler" in refused.output
    assert "no such folder" in " ".join(refused.output.split())
    assert not (images.parent / "out").exists()
