"""`audit --reference`: patients who are recognized, what is said of them, and what is refused."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from cxrsynth.auditing.reidentification import _latent_distance
from cxrsynth.cli import app
from cxrsynth.metrics.reidentification.verifier import PatientVerifier
from tests.auditing.page.test_page import Page

PATIENTS = 110
COPIED, STRANGERS = 20, 20


def picture(path: Path, seed: list[int]) -> None:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6), dtype=np.uint8)
    Image.fromarray(coarse).resize((40, 40), Image.Resampling.BICUBIC).save(path)


def written(folder: Path, rows: list[dict[str, str]]) -> Path:
    with folder.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reference of two images of each patient; audited are copies of some of them, and pictures of nobody."""
    home = tmp_path_factory.mktemp("reidentification")
    (home / "real").mkdir()
    (home / "set").mkdir()
    rows = []
    for patient in range(PATIENTS):
        for place in range(2):
            name = f"{patient:03d}-{place}"
            picture(home / "real" / f"{name}.png", [patient, place])
            rows.append(
                {"filename": f"{name}.png", "report_id": f"study-{name}", "patient_id": f"Secretname-{patient}"}
            )
    written(home / "real", rows)
    rows = []
    for place in range(COPIED + STRANGERS):
        picture(home / "set" / f"{place}.png", [place, 0] if place < COPIED else [1000 + place, 0])
        source = f"study-{place:03d}-0" if place < COPIED else f"another-{place}"
        rows.append({"filename": f"{place}.png", "report_id": source, "impression": "Clear lungs."})
    written(home / "set", rows)
    torch.manual_seed(0)
    trunk = {"kind": "resnet", "size": 32, "widths": [16, 16], "depths": [1, 1]}
    PatientVerifier(trunk, 16).save_pretrained(home / "verifier")
    return home


def run(home: Path, out: Path, *options: object, reference: str = "real") -> Any:
    tables = ("--table", home / "set.csv", "--reference-table", home / f"{reference}.csv")
    arguments = ["audit", home / "set", "--reference", home / reference, *tables, "--out", out, "--probes", "1"]
    return CliRunner().invoke(app, [str(one) for one in (*arguments, "--device", "cpu", *options)])


@pytest.fixture(scope="module")
def done(home: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(home / "user-data"))
        result = run(home, home / "out", "--verifier", home / "verifier")
    assert result.exit_code == 0, result.output
    return home / "out"


def summary(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return found


@pytest.mark.slow
def test_copies_are_matched_with_their_patients(done: Path) -> None:
    rows = pq.read_table(done / "scores.parquet").to_pylist()
    scores = {int(row["key"].split(".")[0]): row["nearest_patient_score"] for row in rows}
    assert all(scores[place] == pytest.approx(1.0, abs=1e-3) for place in range(COPIED))
    found = summary(done)["reidentification"]
    threshold = found["reference"]["threshold"]
    assert found["matched"] == sum(score >= threshold for score in scores.values()) >= COPIED
    assert found["share"]["caught"] == found["matched"]
    assert found["share"]["of"] == COPIED + STRANGERS
    assert found["verifier"]["name"] == "verifier"
    assert found["verifier"]["held_out"] is None
    names = dict(csv.reader((done / ".cxrsynth-audit" / "real-names.csv").open()))
    nearest = {int(row["key"].split(".")[0]): names[row["nearest_patient"]] for row in rows}
    assert [nearest[place] for place in range(COPIED)] == [f"{place:03d}-0.png" for place in range(COPIED)]


@pytest.mark.slow
def test_sources_are_found_by_the_identifiers_of_reports(done: Path) -> None:
    rows = {int(row["key"].split(".")[0]): row for row in pq.read_table(done / "scores.parquet").to_pylist()}
    assert all(rows[place]["source_score"] == pytest.approx(1.0, abs=1e-3) for place in range(COPIED))
    assert all(rows[place]["source_score"] is None for place in range(COPIED, COPIED + STRANGERS))
    sources = summary(done)["reidentification"]["sources"]
    assert sources["images"] == sources["matched"] == COPIED
    assert sources["closer"]["value"] == pytest.approx(1.0, abs=0.01)
    assert sources["mean"] == pytest.approx(1.0, abs=1e-3)
    assert sources["latent_distance"] == pytest.approx(0.0, abs=1e-3)  # of copies


def test_the_latent_distance_is_that_of_images_and_their_own_sources() -> None:
    made, real = np.array([[0.0, 0], [1, 1], [5, 5]], np.float32), np.array([[3.0, 4], [1, 1], [6, 8]], np.float32)
    found = _latent_distance(made, real, [[0, 2], [1], []])
    assert found == pytest.approx(((5 + 10) / 2 + 0) / 2 / np.sqrt(2))


def other_tables(
    home: Path, tmp_path: Path, change: Callable[[dict[str, str]], dict[str, str]], *, copies: int = 0
) -> Path:
    """The same images, all rows of both tables changed; `copies` of reference images are listed once more."""
    for name in ("set", "real"):
        shutil.copytree(home / name, tmp_path / name)
        with (home / f"{name}.csv").open(newline="") as file:
            rows = [change(row) for row in csv.DictReader(file)]
        for place in range(copies if name == "real" else 0):
            shutil.copy(home / "real" / f"{place:03d}-0.png", tmp_path / "real" / f"again-{place}.png")
            rows.append(
                {"filename": f"again-{place}.png", "report_id": f"other-{place}", "patient_id": f"other-{place}"}
            )
        written(tmp_path / name, rows)
    shutil.copytree(home / "verifier", tmp_path / "verifier")
    return tmp_path


@pytest.mark.slow
def test_files_listed_under_two_patients_hide_nobody(home: Path, tmp_path: Path) -> None:
    twice = other_tables(home, tmp_path, lambda row: row, copies=15)
    result = run(twice, twice / "out", "--verifier", twice / "verifier")
    assert result.exit_code == 0, result.output
    found = summary(twice / "out")
    assert found["reidentification"]["reference"]["threshold"] < 0.9999
    assert found["reidentification"]["matched"] >= COPIED
    assert any(caveat.startswith("30 reference images are files listed under several") for caveat in found["caveats"])


@pytest.mark.slow
def test_an_identifier_that_all_images_share_is_none(home: Path, tmp_path: Path) -> None:
    shared = other_tables(home, tmp_path, lambda row: row | {"report_id": "XR CHEST 2 VIEWS"})
    result = run(shared, shared / "out", "--verifier", shared / "verifier")
    assert result.exit_code == 0, result.output
    found = summary(shared / "out")["reidentification"]
    assert found["sources"] is None
    assert found["sources_not_measured"] == "no image's report is known to be that of an image in the reference"
    assert f"sources were not examined: {found['sources_not_measured']}" in " ".join(result.output.split())
    assert "nan" not in Page((shared / "out" / "report.html").read_text()).section("reidentification")


@pytest.mark.slow
def test_images_named_after_their_reports_have_sources(home: Path, tmp_path: Path) -> None:
    named = other_tables(home, tmp_path, lambda row: row)
    with (named / "set.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        (named / "set" / row["filename"]).rename(named / "set" / f"{row['report_id']}.png")
    written(named / "set", [row | {"filename": f"{row['report_id']}.png"} for row in rows])
    result = run(named, named / "out", "--verifier", named / "verifier")
    assert result.exit_code == 0, result.output
    assert "report from report_id" in " ".join(result.output.split())
    assert summary(named / "out")["reidentification"]["sources"]["images"] == COPIED


@pytest.mark.slow
def test_the_page_says_what_was_found_and_names_nobody(done: Path) -> None:
    page = (done / "report.html").read_text()
    found = summary(done)["reidentification"]
    assert f"{found['matched']} of {COPIED + STRANGERS} images" in page
    assert "are taken for a patient of the reference by a verifier" in page
    for file in (page, (done / "summary.json").read_text()):
        assert "Secretname" not in file
        assert "study-" not in file


def test_without_a_reference_nobody_is_compared(home: Path, tmp_path: Path) -> None:
    arguments = ["audit", home / "set", "--out", tmp_path / "out", "--device", "cpu"]
    refused = CliRunner().invoke(app, [str(one) for one in (*arguments, "--verifier", home / "verifier")])
    assert refused.exit_code == 2
    assert "--verifier" in refused.output
    assert not (tmp_path / "out").exists()
    result = CliRunner().invoke(app, [str(one) for one in arguments])
    assert result.exit_code == 0, result.output
    assert summary(tmp_path / "out")["reidentification"] is None
    assert "Re-identification was <strong>not examined" in (tmp_path / "out" / "report.html").read_text()
    assert pq.read_table(tmp_path / "out" / "scores.parquet")["nearest_patient"].null_count == COPIED + STRANGERS


@pytest.mark.slow
def test_few_patients_cost_this_part_alone(home: Path, tmp_path: Path) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for patient in range(30):
        picture(few / f"{patient:03d}-0.png", [patient, 0])
    rows = [{"filename": f"{patient:03d}-0.png", "patient_id": str(patient)} for patient in range(30)]
    written(few, rows)
    result = run(home, tmp_path / "out", "--fail-under", "reidentification/matched=0", reference=str(few))
    assert result.exit_code == 3, result.output  # what was not measured misses its threshold
    found = summary(tmp_path / "out")
    assert found["reidentification"] is None
    assert found["not_measured"]["reidentification"] == "30 patients in the reference, expected at least 100"
    assert found["memorization"] is not None


@pytest.mark.slow
def test_a_reference_of_unknown_patients_recognizes_nobody(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Follow-ups would count as other people, and raise the threshold until nobody is found."""
    monkeypatch.setenv("XDG_DATA_HOME", str(home / "user-data"))
    rows = list(csv.DictReader((home / "real.csv").open()))
    for known, expected in ((0, None), (105, 10)):
        for place, row in enumerate(rows):
            row["patient_id"] = f"p{place // 2}" if place // 2 < known else ""
        written(tmp_path / "real", rows)
        tables = ("--table", home / "set.csv", "--reference-table", tmp_path / "real.csv")
        arguments = ["audit", home / "set", "--reference", home / "real", *tables, "--out", tmp_path / str(known)]
        options = ("--probes", "1", "--device", "cpu", "--verifier", home / "verifier")
        result = CliRunner().invoke(app, [str(one) for one in (*arguments, *options)])
        assert result.exit_code == 0, result.output
        found = summary(tmp_path / str(known))
        if expected is None:
            assert found["reidentification"] is None
            why = found["not_measured"]["reidentification"]
            assert why.startswith("0 known patients in the reference, and 220 images of unknown ones, expected at")
            assert "re-identification will not be measured: 0 known patients" in " ".join(result.output.split())
        else:
            assert found["reidentification"]["reference"]["patients_unknown"] == expected
            assert found["reidentification"]["matched"] >= COPIED
            assert (
                "10 images of the reference have no known patient"
                in (tmp_path / str(known) / "report.html").read_text()
            )


@pytest.mark.slow
def test_other_rules_need_no_scoring_and_thresholds_fail(
    home: Path, done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(home / "user-data"))
    before = summary(done)["reidentification"]
    result = run(home, done, "--verifier", home / "verifier", "--fail-under", "reidentification/matched_fraction=0.1")
    assert result.exit_code == 3, result.output
    found = summary(done)
    assert found["reidentification"] == before
    assert [one["metric"] for one in found["failed"]] == ["reidentification/matched_fraction"]
    assert found["failed"][0]["value"] == pytest.approx(before["matched"] / (COPIED + STRANGERS))
