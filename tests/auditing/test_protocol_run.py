"""`audit --protocol chexgenbench` from first to last with twins of both published networks, at random weights."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

import cxrsynth
from cxrsynth.cli import app
from cxrsynth.metrics.quality.checks import CHECKS
from tests.conversion.published import biovil_t, biovil_t_image_state, rad_dino

pytestmark = pytest.mark.slow

PATIENTS, MADE = 104, 50
TEXTS, LABELS = ("Pleural effusion.", "No acute disease. Clear lungs."), ("Pleural Effusion", "No Finding")


def pictures(folder: Path, count: int, *, first: int) -> list[str]:
    """Smooth pictures, all different; those of even number are brighter below."""
    folder.mkdir()
    names = []
    for place in range(count):
        coarse = np.random.default_rng(first + place).integers(0, 180, (6, 6))
        coarse[4:] += 70 * (place % 2 == 0)
        names.append(f"{place:03d}.png")
        picture = Image.fromarray(coarse.astype(np.uint8)).resize((40, 40), Image.Resampling.BICUBIC)
        picture.save(folder / names[-1])
    return names


def table(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of results, and what was printed."""
    home = tmp_path_factory.mktemp("protocol")
    real = [
        {"filename": name, "patient_id": name, "report_id": f"study-{place}", "labels": LABELS[place % 2]}
        for place, name in enumerate(pictures(home / "real", PATIENTS, first=0))
    ]
    made = [
        {"filename": name, "report_id": f"study-{place}", "impression": TEXTS[place % 2]}
        for place, name in enumerate(pictures(home / "made", MADE, first=1000))
    ]
    rad_dino(home / "rad-dino", side=56)
    cxrsynth.convert(biovil_t(home / "published", biovil_t_image_state()), home / "BiomedVLP-BioViL-T")
    command: list[object] = ["audit", home / "made", "--table", table(home / "made.csv", made), "--reference"]
    command += [home / "real", "--reference-table", table(home / "real.csv", real), "--out", home / "out"]
    command += ["--protocol", "chexgenbench", "--features", home / "rad-dino", "--utility", "--probes", "1"]
    command += ["--judge", f"consistency={home / 'BiomedVLP-BioViL-T'}", "--device", "cpu", "--min", "consistency=-1"]
    for name in CHECKS:  # these pictures are no chests
        command += ["--ignore-check", name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(home / "user-data"))
        done = CliRunner().invoke(app, [str(one) for one in command])
    assert done.exit_code == 0, done.output
    return home / "out", " ".join(done.output.split())


def protocol(run: tuple[Path, str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run[0] / "summary.json").read_text())["protocol"]
    return found


def test_every_metric_is_measured_with_the_published_networks(run: tuple[Path, str]) -> None:
    found = protocol(run)
    titles = {name: one["title"] for name, one in found["metrics"].items()}
    assert titles == {
        "FID": "FID (RadDino)", "KID": "KID (RadDino)", "Alignment Score": "Alignment Score (BioViL-T)",
        **{name: name for name in ("Precision", "Recall", "Density", "Coverage", "Downstream AUROC")},
        **{name: f"{name} (nano)" for name in ("Avg. Re-ID Score", "Max. Re-ID Score", "Count Re-ID > δ")},
        "Avg. Latent Distance": "Avg. Latent Distance (RadDino)",
    }  # fmt: skip
    digests = {one["digest"] for name, one in found["metrics"].items() if "Re-ID" not in name}
    assert len(digests) == 2  # of the two networks
    assert all(len(digest) == 64 for digest in digests)
    rows = pq.read_table(run[0] / "scores.parquet")
    alignments = rows["reward_consistency"].to_pylist()
    assert len(set(alignments)) > MADE // 2
    assert found["metrics"]["Alignment Score"]["value"] == pytest.approx(np.mean(alignments), abs=1e-5)
    own = rows["source_score"].to_pylist()
    assert found["metrics"]["Avg. Re-ID Score"]["value"] == pytest.approx(np.mean(own), abs=1e-5)
    assert found["metrics"]["Max. Re-ID Score"]["value"] == pytest.approx(max(own), abs=1e-5)
    assert found["metrics"]["FID"]["value"] > 0 < found["metrics"]["Avg. Latent Distance"]["value"]
    assert 0 < found["metrics"]["Downstream AUROC"]["value"] <= 1


def test_published_rows_stand_beside_on_console_and_page(run: tuple[Path, str]) -> None:
    out, printed = run
    found = protocol(run)
    assert len(found["published"]["overall"]) == 11
    assert found["published"]["overall"]["Sana"] == {
        "FID": 54.225, "KID": 0.016, "Alignment Score": 0.695, "Precision": 0.674, "Recall": 0.614, "Density": 0.52,
        "Coverage": 0.548, "Avg. Latent Distance": 0.54,
    }  # fmt: skip
    assert sorted(found["refused"]) == ["Avg. Re-ID Score, Max. Re-ID Score, Count Re-ID > δ", "Downstream AUROC"]
    assert any("rad-dino and BiomedVLP-BioViL-T hold the released weights" in note for note in found["notes"])
    assert "Sana 54.2 0.016 0.695" in printed
    assert "Sana 0.548 0.54" in printed  # coverage and latent distance, in a table of their own
    assert "published distances: assets/images/Privacy-Metrics.png" in printed
    page = (out / "report.html").read_text()
    section = page[page.index('<section id="protocol"') :]
    assert "54.225" in section
    assert "Alignment Score (BioViL-T)" in section
    assert "Privacy-Metrics.png" in section
