"""`audit --reader-study` and `--reader-answers` from end to end, with the packaged reward models."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from cxrsynth.auditing.score_cache import ScoreCache
from cxrsynth.cli import app
from cxrsynth.images.pictures import read_picture
from cxrsynth.metrics.quality.checks import CHECKS
from cxrsynth.reports.labels import OBSERVATIONS
from tests.auditing.reader_study.making import answer, file_of, write

SIDE = 72
# The tiny pictures fail most checks of quality.
IGNORED = tuple(name for name in CHECKS if name != "blank")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folders of smooth pictures with tables: 10 "made", 72 pixels wide, and 16 "real" of eight patients.

    Each has a blank one besides, which no study takes.
    """
    home = tmp_path_factory.mktemp("study")
    rng = np.random.default_rng(0)
    for kind, count, shape in (("made", 10, (SIDE, SIDE)), ("real", 16, (90, 120))):
        (home / kind).mkdir()
        rows = ["filename,patient_id,view,Edema,Cardiomegaly"]
        for place in range(count):
            coarse = Image.fromarray(rng.integers(0, 256, (6, 6), dtype=np.uint8))
            coarse.resize(shape[::-1], Image.Resampling.BICUBIC).save(home / kind / f"{kind}-{place:02d}.png")
            patient = f"{kind}-patient-{place // 2 if kind == 'real' else place}"
            rows.append(f"{kind}-{place:02d}.png,{patient},{'PA' if place % 4 else 'AP'},{place % 2},{1 - place % 2}")
        Image.new("L", shape[::-1], 128).save(home / kind / f"{kind}-blank.png")
        rows.append(f"{kind}-blank.png,{kind}-patient-blank,PA,1,0")
        (home / f"{kind}.csv").write_text("\n".join(rows) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        # As in each test: another id key makes another study.
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.getbasetemp() / "user-data"))
        yield home


def run(home: Path, *options: object, out: str = "audit") -> Any:
    tables = ("--table", home / "made.csv", "--reference", home / "real", "--reference-table", home / "real.csv")
    checks = [part for name in IGNORED for part in ("--ignore-check", name)]
    arguments = ("audit", home / "made", *tables, "--out", home / out, "--device", "cpu", "--probes", "2", *checks)
    return CliRunner().invoke(app, [*map(str, arguments), *map(str, options)])


def summary(home: Path, out: str = "audit") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((home / out / "summary.json").read_text())
    return found


def key_of(home: Path, out: str = "audit") -> dict[str, Any]:
    study = summary(home, out)["reader_study"]["study"]
    found: dict[str, Any] = json.loads((home / out / ".cxrsynth-audit" / f"reader-study-{study}.json").read_text())
    return found


@pytest.fixture(scope="module")
def studied(home: Path) -> Path:
    """An audit with a study of 12 images."""
    done = run(home, "--reader-study", "12")
    assert done.exit_code == 0, done.output
    (home / "printed.txt").write_text(done.output)
    return home / "audit"


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page)
    assert found is not None
    return dict(json.loads(found[1]))


def test_half_of_the_images_are_real_and_the_key_knows_which(studied: Path, home: Path) -> None:
    found, key = summary(home)["reader_study"], key_of(home)
    assert (found["images"], found["real"], found["synthetic"], found["side"]) == (12, 6, 6, SIDE)
    assert (found["text"], found["scores"]) == ("findings", None)
    data = data_of((studied / "reader-study.html").read_text())
    assert sorted(data["images"]) == sorted(key["images"])
    of_kind = {kind: [one for one in key["images"].values() if one["kind"] == kind] for kind in ("real", "synthetic")}
    assert {kind: len(images) for kind, images in of_kind.items()} == {"real": 6, "synthetic": 6}
    assert not [one for one in key["images"].values() if "blank" in one["key"]]
    patients = {int(re.sub(r"\D", "", one["key"])) // 2 for one in of_kind["real"]}
    assert len(patients) == 6, "two images of one patient"
    printed = (home / "printed.txt").read_text()
    assert "reader-study.html holds 6 real radiographs: treat it as you treat the reference" in printed
    assert "the smallest image has a short side of 72 pixels" in printed


def test_the_page_shows_the_images_of_the_key_all_made_the_same_way(studied: Path, home: Path) -> None:
    page, key = (studied / "reader-study.html").read_text(), key_of(home)
    pictures = re.findall(r'class="picture">(.*?)</script>', page)
    assert {len(one) for one in pictures} == {4 * ((SIDE * SIDE + 2) // 3)}
    for name, picture, text in zip(data_of(page)["images"], pictures, data_of(page)["texts"], strict=True):
        image = key["images"][name]
        folder = "real" if image["kind"] == "real" else "made"
        content = (home / folder / image["key"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == image["sha256"]
        shown = np.frombuffer(base64.b64decode(picture), dtype=np.uint8).reshape(SIDE, SIDE) / 255
        pixels = read_picture(content).pixels
        top, left = ((length - min(pixels.shape)) // 2 for length in pixels.shape)
        square = pixels[top : top + min(pixels.shape), left : left + min(pixels.shape)]
        small = Image.fromarray(square).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        assert np.abs(np.asarray(small) - shown).max() <= 0.5 / 255 + 1e-6
        assert text == ", ".join(image["present"])


def test_nothing_on_the_page_gives_the_answer_away(studied: Path, home: Path) -> None:
    page, key = (studied / "reader-study.html").read_text(), key_of(home)
    data = data_of(page)
    for name, image in key["images"].items():
        assert image["key"] not in page
        assert image["sha256"][:12] not in page
        assert name not in hashlib.sha256(image["key"].encode()).hexdigest()
    assert str(home) not in page
    assert "made" not in json.dumps(data)
    assert "patient-" not in page
    # Nothing but the id key leads to the order: it is not sorted, and no permutation that numpy draws of the seed.
    kinds = [key["images"][name]["kind"] for name in data["images"]]
    assert kinds != sorted(kinds)
    assert kinds != sorted(kinds, reverse=True)
    start = ["real"] * 6 + ["synthetic"] * 6
    for first in (start, start[::-1]):
        assert kinds != [first[place] for place in np.random.default_rng(0).permutation(12)]
    # "real" and "synthetic" stand only in what is asked of every image.
    markup = re.sub(r"<style>.*?</style>|<script>.*?</script>", "", page, flags=re.DOTALL)
    assert len(re.findall(r'data-value="(?:real|synthetic)"', markup)) == 2
    for file in ("summary.json", "report.html", "keep.csv"):
        content = (studied / file).read_text()
        assert not [name for name in key["images"] if name in content], file


def test_page_and_key_are_their_owners(studied: Path, home: Path) -> None:
    key = studied / ".cxrsynth-audit" / f"reader-study-{summary(home)['reader_study']['study']}.json"
    assert [path.stat().st_mode & 0o777 for path in (key, studied / "reader-study.html")] == [0o600, 0o600]


def answers(home: Path, folder: Path, name: str, wrong: int, *, count: int = 12) -> Path:
    """A reader who is wrong about the first so many images."""
    images = list(key_of(home)["images"].items())[:count]
    other = {"real": "synthetic", "synthetic": "real"}
    given = [
        answer(
            image,
            other[one["kind"]] if place < wrong else one["kind"],
            quality=4 if one["kind"] == "real" else 2,
            findings=[finding for finding in OBSERVATIONS if finding in one["present"]],
        )
        for place, (image, one) in enumerate(images)
    ]
    return write(folder, name, file_of(name, given, study=summary(home)["reader_study"]["study"]))


@pytest.mark.slow
def test_answers_are_scored_without_scoring_an_image(
    studied: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (studied / "reader-study.html").read_bytes()
    files = [answers(home, tmp_path, "Ann", 3), answers(home, tmp_path, "Bob <i>", 6, count=9)]
    written: list[object] = []
    given = [part for file in files for part in ("--reader-answers", file)]
    with monkeypatch.context() as patch:
        patch.setattr(ScoreCache, "write", lambda *given, **named: written.append(given))
        done = run(home, *given, "--fail-under", "reader_study/scores/accuracy=0.5")
    assert done.exit_code == 3, done.output
    assert not written
    assert (studied / "reader-study.html").read_bytes() == before
    found = summary(home)
    scores = found["reader_study"]["scores"]
    assert scores["accuracy"]["value"] == 12 / 21
    assert [one["accuracy"]["value"] for one in scores["readers"]] == [9 / 12, 3 / 9]
    # Each reader gave all images of a kind one grade: of how grades scatter, nothing is known.
    assert scores["quality"]["difference"] == {"value": 2, "low": None, "high": None}
    assert found["caveats"][-1] == "reader 2 answered 9 of 12 images: scored on those"
    assert [(one["name"], one["role"], one["years"]) for one in scores["readers"]] == [
        ("reader 1", None, None),
        ("reader 2", None, None),
    ]
    assert "Bob" not in (studied / "summary.json").read_text()
    assert "share/report.html was not written: no manifest" in done.output
    assert [one["metric"] for one in found["failed"]] == ["reader_study/scores/accuracy"]
    assert "answered 9 of 12 images" in done.output
    assert "6 real and 6 synthetic images; guessing is right about 0.5" in done.output
    assert "Ann 12 of 12 0.75 (0.4" in " ".join(done.output.split())
    page = (studied / "report.html").read_text()
    section = page[page.index('<section id="readers"') : page.index('<section id="gallery"')]
    assert "0.571" in section
    assert "Bob &lt;i&gt;" in section
    assert "<i>" not in section
    assert 'class="chart"' in section
    # Other rules, and a study that takes its place: the answers still find their key.
    again = run(home, "--reader-study", "8", "--seed", "1", *given)
    assert again.exit_code == 0, again.output
    assert "the page is now that of study" in again.output
    assert summary(home)["reader_study"] == found["reader_study"]
    assert len(data_of((studied / "reader-study.html").read_text())["images"]) == 8
    assert run(home, "--reader-study", "12").exit_code == 0
    assert (studied / "reader-study.html").read_bytes() == before


def test_what_cannot_work_is_refused_before_scoring(studied: Path, home: Path, tmp_path: Path) -> None:
    elsewhere = answers(home, tmp_path, "Ann", 0)
    damaged = tmp_path / "damaged.json"
    damaged.write_text("{")
    cases = {
        "half are real, expected an even number": ("--reader-study", "7"),
        "11 images in ": ("--reader-study", "24"),
        "which has no key in": ("--reader-answers", elsewhere),
        "damaged, not JSON": ("--reader-answers", damaged),
    }
    for said, options in cases.items():
        done = run(home, *options, out="new")
        assert done.exit_code == 2, done.output
        assert said in done.output
        assert not (home / "new").exists()
    alone = CliRunner().invoke(app, ["audit", str(home / "made"), "--reader-study", "4", "--out", str(home / "new")])
    assert alone.exit_code == 2
    assert "--reader-study: needs real images" in alone.output


def test_too_few_images_of_different_patients_cost_the_study_alone(home: Path) -> None:
    done = run(home, "--reader-study", "18", out="few")
    assert done.exit_code == 0, done.output
    assert "no reader study was made: --reader-study 18: 8 real images of different patients" in done.output
    found = summary(home, "few")
    assert found["reader_study"] is None
    assert found["not_measured"]["reader_study"].startswith("--reader-study 18")
    assert not (home / "few" / "reader-study.html").exists()
    assert "ask for at most 16" in (home / "few" / "report.html").read_text()
    done = run(home, "--reader-study", "22", out="few")
    assert "--reader-study 22: 10 kept synthetic images of different patients" in done.output


@pytest.mark.slow
def test_answers_about_another_set_come_with_a_caveat(studied: Path, home: Path, tmp_path: Path) -> None:
    file = answers(home, tmp_path, "Ann", 0)
    gone = next(one["key"] for one in key_of(home)["images"].values() if one["kind"] == "synthetic")
    content = (home / "made" / gone).read_bytes()
    (home / "made" / gone).unlink()
    try:
        done = run(home, "--reader-answers", file)
        assert done.exit_code == 0, done.output
        assert "1 of 6 synthetic images of the reader study are no longer in this set" in summary(home)["caveats"]
    finally:
        (home / "made" / gone).write_bytes(content)
        assert run(home, "--reader-study", "12").exit_code == 0


@pytest.mark.slow
def test_reports_are_shown_de_identified_where_every_image_has_one(studied: Path, home: Path, tmp_path: Path) -> None:
    """As written for the audit: with names, headings and lines."""
    for kind in ("made", "real"):
        head, *rows = (home / f"{kind}.csv").read_text().splitlines()
        text = "FINDINGS: The heart is enlarged.\n\nIMPRESSION: Cardiomegaly. Discussed with Dr. Quibbleton."
        lines = [f"{head},report", *(f'{row},"{text}"' for row in rows)]
        (tmp_path / f"{kind}.csv").write_text("\n".join(lines) + "\n")
    tables = (
        "--table",
        tmp_path / "made.csv",
        "--reference",
        home / "real",
        "--reference-table",
        tmp_path / "real.csv",
    )
    checks = [f"--ignore-check={name}" for name in IGNORED]
    arguments = ("audit", home / "made", *tables, "--out", tmp_path / "out", "--device", "cpu", *checks)
    done = CliRunner().invoke(app, [*map(str, arguments), "--reader-study", "4", "--probes", "2"])
    assert done.exit_code == 0, done.output
    assert "2 real radiographs and reports of real patients: treat it" in done.output
    assert "Quibbleton" not in done.output
    page = (tmp_path / "out" / "reader-study.html").read_text()
    assert set(data_of(page)["texts"]) == {"The heart is enlarged. Cardiomegaly."}
    assert "Quibbleton" not in page
