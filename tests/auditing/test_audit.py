"""`audit` from end to end: with the packaged reward models, on sets that a tiny model made."""

import csv
import errno
import hashlib
import json
import os
import re
import shutil
import signal
import stat
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from cxrsynth.auditing import results
from cxrsynth.auditing.autoencoder import load_autoencoder
from cxrsynth.auditing.folder import COMPARISON
from cxrsynth.auditing.score_cache import ScoreCache
from cxrsynth.cli import app
from cxrsynth.console import counted
from cxrsynth.errors import ModelError
from cxrsynth.images import folder as images_folder
from cxrsynth.images.limits import open_plain
from cxrsynth.metrics.quality.checks import CHECKS
from cxrsynth.metrics.quality.likeness import TEMPLATES_FILE
from cxrsynth.rewards.backends import family_folder
from cxrsynth.settings import AuditSettings
from cxrsynth.shards.sample import load_id_key, subject_key
from tests.generation.making import SECRET_WORDS, command, hashes, manifest, write_table
from tests.images.making import member, tar_of
from tests.processes import Warm, process_group
from tests.rewards.making import install_reward, replaced

OPTIONS = ("--device", "cpu", "--probes", "2")
FINDINGS = ("scores.parquet", "keep.csv", "summary.json", "report.html", "share/report.html")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("audit")


@pytest.fixture(scope="module")
def made(home: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """14 images in five shards."""
    with pytest.MonkeyPatch.context() as patch:
        # As in each test: audits with another id key share no scores.
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.getbasetemp() / "user-data"))
        options = ("--images-per-report", "2", "--include-text", "sanitized")
        done = CliRunner().invoke(app, command(write_table(home / "reports.csv"), home / "set", tiny_model, *options))
        assert done.exit_code == 0, done.output
        yield home / "set"


@pytest.fixture(scope="module")
def real(home: Path) -> Path:
    """24 pictures of twelve patients, smooth and all different, with a table."""
    rng = np.random.default_rng(0)
    folder = home / "real"
    folder.mkdir()
    rows = ["filename,patient_id,view,sex,Edema"]
    for place in range(24):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6), dtype=np.uint8))
        coarse.resize((96, 96), Image.Resampling.BICUBIC).save(folder / f"{place:02d}.png")
        rows.append(f"{place:02d}.png,patient-{place // 2},{'PA' if place % 2 else 'AP'},F,{place % 3 // 2}")
    (home / "real.csv").write_text("\n".join(rows) + "\n")
    return folder


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["audit", *map(str, arguments), *OPTIONS])


@pytest.fixture(scope="module")
def audited(home: Path, made: Path, real: Path) -> Path:
    """An audit against the reference, and what it printed."""
    before = hashes(made)
    out = home / "audit"
    done = run(made, "--reference", real, "--reference-table", home / "real.csv", "--out", out)
    assert done.exit_code == 0, done.output
    assert hashes(made) == before, "the input was touched"
    (home / "printed.txt").write_text(done.output)
    return out


def summary(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return found


def test_every_image_is_scored_and_decided(audited: Path) -> None:
    scores = pq.read_table(audited / "scores.parquet")
    found = summary(audited)
    assert scores.num_rows == found["input"]["images"] == found["kept"] + found["rejected"] == 14
    assert found["input"]["kind"] == "cxrsynth"
    assert found["reference"]["images"] == 24
    assert set(found["rewards"]) == {"posture", "diagnosis", "consistency"}
    assert all(len(model["digest"]) == 64 for model in found["reward_models"].values())
    assert scores["reward_posture"].null_count == 0
    # A report without a finding that the reward model knows leaves diagnosis undefined, not zero.
    assert found["rewards"]["diagnosis"]["unscored"] == scores["reward_diagnosis"].null_count
    for kept, reasons in zip(scores["kept"].to_pylist(), scores["reasons"].to_pylist(), strict=True):
        assert kept == (not reasons)
    for name, images in (("fidelity", found["kept"]), ("fidelity_all", 14)):
        [of_all, *_] = found[name]
        assert (of_all["group"], of_all["images"], of_all["real"]) == ("all", images, 24)
    assert found["rejected"]  # else there would be one of them
    assert found["not_measured"].keys() == {"reidentification"}  # of 12 patients
    assert found["memorization"]["sensitivity"]


@pytest.mark.slow
def test_a_benchmark_gets_its_names_and_no_values_in_other_features(audited: Path, real: Path, tmp_path: Path) -> None:
    assert summary(audited)["protocol"] is None
    assert 'id="protocol"' not in (audited / "report.html").read_text()
    # Enough of either to be measured.
    enough = tmp_path / "real"
    shutil.copytree(real, enough)
    for place in range(60):
        level = np.random.default_rng(place).integers(0, 256, (6, 6), dtype=np.uint8)
        image = Image.fromarray(level).resize((96, 96), Image.Resampling.BICUBIC)
        image.save(enough / f"more-{place}.png")
    out = tmp_path / "out"
    done = run(enough, "--reference", enough, "--out", out, "--protocol", "chexgenbench", "--judge", "posture=nano")
    assert done.exit_code == 0, done.output
    assert not (out / "share").exists()  # no manifest calls these images synthetic
    found = summary(out)
    assert found["settings"]["protocol"] == "chexgenbench"
    protocol, of_all = found["protocol"], (found["fidelity_all"] or found["fidelity"])[0]
    assert protocol["metrics"]["FID"]["value"] == of_all["frechet"]["value"]
    assert protocol["metrics"]["FID"]["digest"] == found["features"]["digest"]
    assert (protocol["images"], protocol["compared"]) == (84, 84)
    assert protocol["published"] == {"overall": {}, "pathologies": {}}
    for text in (done.output, (out / "report.html").read_text()):
        assert "this audit used nano-judge (160 numbers per image)" in text
        assert "SD V1-4" not in text


def test_what_is_handed_on_names_no_real_image_and_no_folder(audited: Path, home: Path) -> None:
    """A file's name is often a patient's number; the private folder leads back to it."""
    found = summary(audited)
    nearest = [pair["real"] for pair in found["memorization"]["nearest"]]
    assert nearest
    assert all(re.fullmatch(r"real-[0-9a-f]{12}", name) for name in nearest)
    scores = pq.read_table(audited / "scores.parquet")["nearest_real"].to_pylist()
    assert set(nearest) <= set(scores)
    private = audited / ".cxrsynth-audit"
    assert private.stat().st_mode & 0o77 == 0
    rows = list(csv.DictReader((private / "real-names.csv").open()))
    names = {row["keyed_name"]: row["name"] for row in rows}
    assert set(filter(None, scores)) <= names.keys()
    real = {path.name for path in (home / "real").iterdir()}
    assert {names[name] for name in nearest} <= real
    for file in FINDINGS:
        content = (audited / file).read_bytes()
        assert str(home).encode() not in content, file
        assert not [name for name in real if name.encode() in content], file


def test_of_addresses_and_folders_in_messages_only_the_last_part_is_there(
    made: Path, real: Path, home: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    system = fsspec.filesystem("memory")  # one for all tests of this process
    request.addfinalizer(lambda: system.rm("secret-bucket", recursive=True))
    system.put(str(made), "secret-bucket/dr-secretword/set", recursive=True)
    few = tmp_path / "dr-secretword" / "few"
    few.mkdir(parents=True)
    shutil.copy(real / "00.png", few)
    out = tmp_path / "out"
    done = run("memory://secret-bucket/dr-secretword/set", "--reference", few, "--out", out, "--reader-study", "4")
    assert done.exit_code == 2, done.output  # known at once
    shutil.copy(real / "01.png", few)
    done = run("memory://secret-bucket/dr-secretword/set", "--reference", few, "--out", out, "--reader-study", "4")
    assert done.exit_code == 0, done.output
    found = summary(out)
    assert (found["settings"]["shards"], found["settings"]["reference"]) == ("set", "few")
    assert found["not_measured"].keys() == {"memorization", "reidentification", "reader_study"}
    for file in FINDINGS:
        content = (out / file).read_bytes()
        for secret in (b"secret-bucket", b"dr-secretword"):
            assert secret not in content, file


@pytest.mark.slow
def test_real_images_are_shown_only_if_asked_for(
    audited: Path, made: Path, real: Path, home: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(audited, tmp_path / "out")
    before, again = (audited / "report.html").read_text(), ("--reference-table", home / "real.csv", "--out", out)
    assert 'run audit again with <span class="option">--show-real</span>' in before
    assert "No image of the reference is on this page" in before
    assert "The page to hand on is share/report.html" in before
    scored = parts(out)
    done = run(made, "--reference", real, *again, "--show-real")
    assert done.exit_code == 0, done.output
    assert parts(out) == scored
    page = out / "report.html"
    shown = page.read_text()
    assert shown.count("data:image/") > before.count("data:image/")
    assert "share this page only with people who may see the reference" in shown
    assert page.stat().st_mode & 0o77 == 0
    shared = [(folder / "share/report.html").read_text() for folder in (out, audited)]
    assert shared[0].count("data:image/") == shared[1].count("data:image/") < before.count("data:image/") + 1
    assert run(made, "--reference", real, *again).exit_code == 0
    assert page.read_text() == before
    assert (out / "share" / "report.html").stat().st_mode & 0o77


def test_a_page_with_pictures_of_patients_is_the_owners(real: Path, tmp_path: Path) -> None:
    """Of images that nothing calls synthetic, or that were found to be copies, as of the reference."""
    assert run(real, "--out", tmp_path / "out").exit_code == 0
    assert (tmp_path / "out" / "report.html").stat().st_mode & 0o77 == 0


@pytest.mark.parametrize("where", ["out/share", "out/.cxrsynth-audit", "kept", "out"])
def test_kept_images_do_not_go_where_the_findings_are(made: Path, tmp_path: Path, where: str) -> None:
    out = tmp_path / ("kept/audit" if where == "kept" else "out")
    done = run(made, "--out", out, "--write-kept", tmp_path / where)
    assert done.exit_code == 2, done.output
    assert "where the findings go" in " ".join(done.output.split())
    assert not out.exists()


def test_all_options_are_in_the_summary(audited: Path, made: Path, home: Path) -> None:
    settings = summary(audited)["settings"]
    assert settings.keys() == {option.name for option in fields(AuditSettings)} - {"out"}
    assert settings["shards"] == made.name
    assert settings["reference_table"] == "real.csv"
    assert (settings["probes"], settings["device"], settings["features"]) == (2, "cpu", "nano-judge")
    assert settings["judges"] == dict.fromkeys(("posture", "diagnosis", "consistency"), "nano-judge")
    page = (audited / "report.html").read_text()
    for name, value in (("probes", "2"), ("rules.keep_fraction", "not set"), ("fail_under", "none")):
        assert re.search(rf">{re.escape(name)}</th>\s*<td[^>]*>{value}</td>", page), name


def test_files_are_all_there_and_hold_no_text(audited: Path, home: Path) -> None:
    for name in FINDINGS:
        content = (audited / name).read_bytes()
        assert content
        for word in SECRET_WORDS:
            assert word.encode() not in content, (name, word)
    assert "of 14 images kept" in (home / "printed.txt").read_text()


def test_the_same_audit_has_the_same_bytes_and_scores_nothing_twice(
    audited: Path, made: Path, real: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {name: (audited / name).read_bytes() for name in FINDINGS}
    written: list[object] = []
    monkeypatch.setattr(ScoreCache, "write", lambda *given, **named: written.append(given))
    done = run(made, "--reference", real, "--reference-table", home / "real.csv", "--out", audited)
    assert done.exit_code == 0, done.output
    assert not written
    assert {name: (audited / name).read_bytes() for name in FINDINGS} == before


@pytest.mark.slow
def test_batch_size_changes_no_decision(audited: Path, made: Path, tmp_path: Path) -> None:
    assert run(made, "--out", tmp_path / "one", "--batch-size", "1").exit_code == 0
    one = pq.read_table(tmp_path / "one" / "scores.parquet")
    all_at_once = pq.read_table(audited / "scores.parquet")
    for name in ("reward_posture", "reward_diagnosis", "reward_consistency"):
        pairs = zip(one[name].to_pylist(), all_at_once[name].to_pylist(), strict=True)
        assert all(a == b or a == pytest.approx(b, abs=1e-4) for a, b in pairs), name


@pytest.mark.slow
def test_a_killed_and_stopped_audit_ends_as_one_never_stopped(
    audited: Path, made: Path, real: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    arguments = (made, "--reference", real, "--reference-table", home / "real.csv", "--out", out)
    scored: dict[str, int] = {}
    for units in (1, 2, 3):  # of five: the reference, then the shards; after the last, pixels are deleted
        process = Warm("cxrsynth", "audit", *arguments, *OPTIONS, log=tmp_path / "log")
        process.kill_when(lambda units=units: len(parts(out)) >= units)
        assert process.returncode == -signal.SIGKILL
        assert units <= len(parts(out)) < 6
        assert not (out / "summary.json").exists()
        assert parts(out).items() >= scored.items(), "what was scored is scored again"
        scored = parts(out)

    def press_ctrl_c(*given: object, **named: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ScoreCache, "write", press_ctrl_c)
        assert run(*arguments).exit_code == 130
    assert not (out / "summary.json").exists()
    done = run(*arguments)
    assert done.exit_code == 0, done.output
    folder = out / ".cxrsynth-audit"
    # The reference's file is written once more at the end, without its pixels.
    shown = {name for name in scored if "thumbnail" in pq.read_schema(folder / name).names}
    assert len(shown) == len(scored) - 1
    assert parts(out).items() >= {name: scored[name] for name in shown}.items()
    for name in FINDINGS:
        assert (out / name).read_bytes() == (audited / name).read_bytes(), name


def parts(out: Path) -> dict[str, int]:
    """Scored units on disk, and when they were written."""
    return {path.name: path.stat().st_mtime_ns for path in (out / ".cxrsynth-audit").glob("*.parquet")}


def test_other_mean_chests_make_other_scores(real: Path, tmp_path: Path) -> None:
    """The digest of a family's posture regressor alone does not identify its checks."""
    radiographs, family = tmp_path / "images", tmp_path / "family"
    radiographs.mkdir()
    shutil.copy(real / "00.png", radiographs)
    packaged = family_folder("nano-judge")
    assert packaged is not None
    shutil.copytree(packaged, family)
    assert run(radiographs, "--family", family, "--out", tmp_path / "out").exit_code == 0
    means = load_file(family / TEMPLATES_FILE)
    save_file({name: 1 - mean for name, mean in means.items()}, family / TEMPLATES_FILE)
    assert run(radiographs, "--family", family, "--out", tmp_path / "out").exit_code == 0
    assert run(radiographs, "--family", family, "--out", tmp_path / "new").exit_code == 0
    again, new = (pq.read_table(tmp_path / name / "scores.parquet") for name in ("out", "new"))
    assert again.equals(new)


@pytest.mark.slow
def test_two_processes_find_what_one_does(audited: Path, made: Path, real: Path, home: Path, tmp_path: Path) -> None:
    """In the environment that launchers set up; test_resume runs `generate` under the launchers themselves."""
    out = tmp_path / "out"
    arguments = (made, "--reference", real, "--reference-table", home / "real.csv", "--out", out)
    with process_group(2) as environments:
        processes = [
            Warm(
                "cxrsynth",
                "audit",
                *arguments,
                *OPTIONS,
                log=tmp_path / f"log-{rank}",
                environment=environment,
            )
            for rank, environment in enumerate(environments)
        ]
        for process in processes:
            assert process.wait() == 0, process.printed()
    assert (out / "keep.csv").read_bytes() == (audited / "keep.csv").read_bytes()
    assert summary(out)["rewards"] == summary(audited)["rewards"]
    assert [process.printed().count("of 14 images kept") for process in processes] == [1, 0]


def test_damage_is_counted_and_skipped_and_strict_stops(made: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(made, damaged)
    shards = sorted(damaged.glob("*.tar"))
    content = bytearray(shards[1].read_bytes())
    content[700] ^= 1
    shards[1].write_bytes(content)
    shards[2].write_bytes(shards[2].read_bytes()[:2000])
    done = run(damaged, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "2 could not be read" in done.output
    assert all(f"  {shard.name}: " in done.output for shard in shards[1:3])
    found = summary(tmp_path / "out")
    assert found["input"]["images"] == 14 - 6
    assert {one["source"] for one in found["input"]["damaged"]} == {shards[1].name, shards[2].name}
    before = {name: (tmp_path / "out" / name).read_bytes() for name in FINDINGS}
    assert run(damaged, "--out", tmp_path / "out", "--min", "postur=1").exit_code == 2
    assert before == {name: (tmp_path / "out" / name).read_bytes() for name in FINDINGS}, "nothing was begun"
    strict = run(damaged, "--out", tmp_path / "out", "--strict")
    assert strict.exit_code == 2
    assert shards[1].name in strict.output
    assert "Traceback" not in strict.output
    # The pages of an audit that ended are not those of one that did not.
    assert not [name for name in FINDINGS if (tmp_path / "out" / name).exists()]
    assert run(damaged, "--out", tmp_path / "out").exit_code == 0
    assert before == {name: (tmp_path / "out" / name).read_bytes() for name in FINDINGS}
    for shard in shards[1:3]:
        shutil.copy(made / shard.name, shard)
    assert run(damaged, "--out", tmp_path / "out").exit_code == 0
    assert summary(tmp_path / "out")["input"]["damaged"] == []
    assert summary(tmp_path / "out")["input"]["images"] == 14


def test_an_audit_of_nothing_but_damage_is_refused(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "one.png").write_bytes(b"no picture")
    done = run(tmp_path / "images", "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert "no image could be read (1 tried)" in done.output
    assert "one.png: not a PNG" in done.output
    assert not (tmp_path / "out" / "summary.json").exists()


def test_what_is_damaged_after_an_audit_is_seen_by_the_next(made: Path, tmp_path: Path) -> None:
    """Neither its name nor the manifest's hash of it changes."""
    copied, out = tmp_path / "copied", tmp_path / "out"
    shutil.copytree(made, copied)
    assert run(copied, "--out", out).exit_code == 0
    shard = min(copied.glob("*.tar"))
    os.truncate(shard, 1000)
    assert run(copied, "--out", out, "--fail-under", "damaged=0").exit_code == 3
    assert [one["source"] for one in summary(out)["input"]["damaged"]] == [shard.name]


def cached(out: Path) -> list[pa.Table]:
    """The scored units on disk."""
    return [pq.read_table(path) for path in sorted((out / ".cxrsynth-audit").glob("*.parquet"))]


def test_pseudonyms_of_patients_are_keyed_and_their_folder_is_private(audited: Path) -> None:
    """Identifiers are few enough to hash them all: without a key every pseudonym is recovered in no time."""
    pseudonyms = {patient for table in cached(audited) for patient in table["patient"].to_pylist()}
    patients = [f"patient-{number}" for number in range(12)]
    assert len(pseudonyms) >= 12
    plain = {hashlib.sha256(patient.encode()).hexdigest() for patient in patients}
    assert not any(digest.startswith(pseudonym) for digest in plain for pseudonym in pseudonyms)
    id_key = load_id_key(None)
    assert {subject_key(id_key, f"patient {patient}") for patient in patients} <= pseudonyms
    assert stat.S_IMODE((audited / ".cxrsynth-audit").stat().st_mode) == 0o700


def test_pixels_of_real_images_are_deleted_once_the_audit_is_complete(audited: Path) -> None:
    def has_pixels(table: pa.Table) -> bool:
        names = {"thumbnail", "framed", "preview", "image"} & set(table.column_names)
        return any(table[name].null_count < table.num_rows for name in names)

    real = [table for table in cached(audited) if table["key"][0].as_py().endswith(".png")]
    made = [table for table in cached(audited) if not table["key"][0].as_py().endswith(".png")]
    assert (len(real), len(made)) == (1, 5)
    assert not any(map(has_pixels, real))
    assert all(map(has_pixels, made))
    assert not list((audited / ".cxrsynth-audit").glob("*.pixels*"))


@pytest.mark.slow
def test_pixels_of_real_images_stay_where_asked_for_and_other_seeds_then_read_nothing(
    made: Path, real: Path, home: Path, tmp_path: Path
) -> None:
    options = ("--reference", real, "--reference-table", home / "real.csv", "--out", tmp_path / "out")
    assert run(made, *options, "--keep-reference-pixels").exit_code == 0
    whole = [table for table in cached(tmp_path / "out") if table["key"][0].as_py().endswith(".png")]
    assert [table["preview"].null_count for table in whole] == [0]
    before = parts(tmp_path / "out")
    done = run(made, *options, "--keep-reference-pixels", "--seed", "1")
    assert done.exit_code == 0, done.output
    assert parts(tmp_path / "out") == before


@pytest.mark.slow
def test_deleted_pixels_are_read_again_where_they_are_needed(
    audited: Path, made: Path, real: Path, home: Path, tmp_path: Path
) -> None:
    """With other rules nothing is scored again; with another seed the reference is, and the results are the same."""
    out = tmp_path / "out"
    shutil.copytree(audited, out)
    options = ("--reference", real, "--reference-table", home / "real.csv")
    before = parts(out)
    assert run(made, *options, "--out", out, "--min-posture", "0").exit_code == 0
    assert parts(out) == before
    assert summary(out)["kept"] == 0
    assert summary(out)["memorization"] == summary(audited)["memorization"]
    for folder in (out, tmp_path / "new"):
        done = run(made, *options, "--out", folder, "--seed", "1")
        assert done.exit_code == 0, done.output
    for name in FINDINGS:
        assert (out / name).read_bytes() == (tmp_path / "new" / name).read_bytes(), name
    assert sum(written != before.get(name) for name, written in parts(out).items()) == 1


@pytest.mark.slow
def test_an_audit_that_planted_other_near_duplicates_is_compared_anew(
    audited: Path, made: Path, real: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a release with more kinds would go on with a table that lacks them."""
    out, options = tmp_path / "out", ("--reference", real, "--reference-table", home / "real.csv")
    shutil.copytree(audited, out)
    file = out / ".cxrsynth-audit" / COMPARISON
    before = file.read_bytes()
    assert run(made, *options, "--out", out).exit_code == 0
    assert file.read_bytes() == before
    monkeypatch.setattr("cxrsynth.auditing.comparison.ALTERATIONS", {"exact": "nothing"})
    done = run(made, *options, "--out", out)
    assert done.exit_code == 0, done.output
    assert json.loads(file.read_bytes())["key"] != json.loads(before)["key"]


@pytest.mark.slow
def test_scores_kept_without_a_picture_that_is_compared_now_are_made_anew(
    audited: Path, made: Path, real: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An earlier version kept no picture of images as they are framed."""
    out, options = tmp_path / "out", ("--reference", real, "--reference-table", home / "real.csv")
    with monkeypatch.context() as patch:
        patch.setattr("cxrsynth.auditing.setup.PIXEL_COLUMNS", ("thumbnail", "preview", "image"))
        assert run(made, *options, "--out", out).exit_code == 0
    before = parts(out)
    done = run(made, *options, "--out", out)
    assert done.exit_code == 0, done.output
    assert len(before) == len(parts(out)) == 6
    assert not parts(out).keys() & before.keys()
    assert parts(out).keys() == parts(audited).keys()


def test_a_unit_with_a_damaged_member_is_scored_once(real: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "images", tmp_path / "out"
    folder.mkdir()
    for place in range(3):
        shutil.copy(real / f"{place:02d}.png", folder)
    (folder / "01.png").write_bytes(b"not a picture")
    assert run(folder, "--out", out).exit_code == 0
    before = parts(out)
    assert run(folder, "--out", out).exit_code == 0
    assert parts(out) == before
    assert [one["member"] for one in summary(out)["input"]["damaged"]] == ["01.png"]
    strict = run(folder, "--out", out, "--strict")
    assert strict.exit_code == 2
    assert "01.png" in strict.output
    shutil.copy(real / "01.png", folder)
    assert run(folder, "--out", out).exit_code == 0
    assert summary(out)["input"]["images"] == 3


@pytest.mark.slow
def test_a_file_that_could_not_be_opened_is_tried_again(
    real: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its size and time are the same once its permission is mended."""
    folder, out = tmp_path / "images", tmp_path / "out"
    folder.mkdir()
    for place in range(2):
        shutil.copy(real / f"{place:02d}.png", folder)

    def refuse(path: Path) -> Any:
        if path.name == "01.png":
            raise PermissionError(13, "Permission denied")
        return open_plain(path)

    with monkeypatch.context() as patch:
        patch.setattr(images_folder, "open_plain", refuse)
        assert run(folder, "--out", out).exit_code == 0
    assert [one["member"] for one in summary(out)["input"]["damaged"]] == ["01.png"]
    assert run(folder, "--out", out).exit_code == 0
    assert (summary(out)["input"]["images"], summary(out)["input"]["damaged"]) == (2, [])


@pytest.mark.slow
def test_near_duplicates_are_planted_with_the_autoencoder_of_the_generator(
    audited: Path, made: Path, real: Path, home: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """nano stands in for an unknown generator; a model that the manifest does not confirm is used with a warning."""
    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    config = json.loads((other / "scheduler" / "scheduler_config.json").read_text())
    (other / "scheduler" / "scheduler_config.json").write_text(json.dumps(config, indent=5))
    options = ("--reference", real, "--reference-table", home / "real.csv")
    recorded = manifest(made)["plan"]["model"]["digest"]
    found = {}
    for name, generator in (("own", tiny_model), ("other", other)):
        done = run(made, *options, "--out", tmp_path / "out", "--generator", generator)
        assert done.exit_code == 0, done.output
        assert ("not the model in the manifest" in done.output) == (name == "other")
        found[name] = summary(tmp_path / "out")["memorization"]["autoencoder"]
    assert found["own"] == {"model": tiny_model.name, "digest": recorded, "is_generator": True}
    assert (found["other"]["is_generator"], found["other"]["digest"] == recorded) == (None, False)
    assert "no manifest confirms" in (tmp_path / "out" / "report.html").read_text()
    stand_in = summary(audited)["memorization"]["autoencoder"]
    assert (stand_in["model"], stand_in["is_generator"]) == ("nano", False)
    assert 'name their generator with <span class="option">--model</span>' in (audited / "report.html").read_text()


def test_the_autoencoder_is_the_one_of_the_model_named(tiny_model: Path) -> None:
    images = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    autoencoder = load_autoencoder(str(tiny_model), None, torch.device("cpu"))
    vae = AutoencoderKL.from_pretrained(tiny_model / "vae").eval()
    with torch.inference_mode():
        pixels = (images * 2 - 1).expand(-1, vae.config.in_channels, -1, -1)
        decoded = vae.decode(vae.encode(pixels).latent_dist.mean).sample.mean(1, keepdim=True)
    assert torch.allclose(autoencoder(images), (decoded / 2 + 0.5).clamp(0, 1), atol=1e-6)
    assert not torch.allclose(autoencoder(images), load_autoencoder(None, None, torch.device("cpu"))(images), atol=1e-3)
    nano = {"plan": {"model": {"name": "nano", "digest": load_autoencoder(None, None, torch.device("cpu")).digest}}}
    for recorded in (nano, {"plan": {}, "source": nano}):
        assert load_autoencoder(None, recorded, torch.device("cpu")).is_generator is True
    with pytest.raises(ModelError, match="--model no-such-model: no such folder"):
        load_autoencoder("no-such-model", None, torch.device("cpu"))


def test_a_folder_is_named_from_inside_and_by_its_manifest(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = tmp_path / "set"
    shutil.copytree(made, copied)
    monkeypatch.chdir(copied)
    for named in (".", "manifest.json"):
        done = run(named)
        assert done.exit_code == 0, done.output
        assert (tmp_path / "set-audit" / "summary.json").is_file()
        shutil.rmtree(tmp_path / "set-audit")
    assert hashes(copied) == hashes(made)
    inside = run("manifest.json", "--out", "audit")
    assert inside.exit_code == 2
    assert "never touches its input" in inside.output


def test_kept_images_never_go_into_the_reference_or_beside_the_findings(made: Path, real: Path, tmp_path: Path) -> None:
    """Otherwise they would be part of the reference the next time, and compared with themselves."""
    for kept, said in ((real / "kept", "never written to"), (tmp_path / "out", "findings")):
        done = run(made, "--reference", real, "--out", tmp_path / "out", "--write-kept", kept)
        assert done.exit_code == 2, done.output
        assert said in done.output
        assert not kept.exists()


@pytest.mark.parametrize("images", [1, 5])
@pytest.mark.slow
def test_a_reference_of_too_few_images_costs_the_search_alone(
    images: int, made: Path, real: Path, tmp_path: Path
) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for place in range(images):
        shutil.copy(real / f"{place:02d}.png", few)
    done = run(made, "--reference", few, "--out", tmp_path / "out", "--utility")
    assert done.exit_code == 0, done.output
    reason = f"reference: {counted(images, 'image')} of"
    assert f"memorization was not examined: {reason}" in done.output
    assert "utility was not measured: " in done.output
    # All of it is said before the images are scored.
    lines = done.output.splitlines()
    scoring = next(place for place, line in enumerate(lines) if re.match(r"\d+(/\d+)? images\b", line))
    for part in ("memorization", "re-identification", "utility"):
        assert any(f"{part} will not be measured: " in line for line in lines[:scoring]), part
    found = summary(tmp_path / "out")
    assert found["memorization"] is None
    assert found["copies"] == {"flagged": 0, "threshold": 0.8, "real": images}
    assert "copies of real images: 0 (near-duplicates were not looked for)" in done.output
    assert found["utility"] is None
    assert found["not_measured"]["memorization"].startswith(reason)
    assert found["not_measured"].keys() == {"memorization", "reidentification", "utility"}
    scores = pq.read_table(tmp_path / "out" / "scores.parquet")
    assert scores["memorized"].null_count == scores.num_rows == 14
    assert f"not examined</strong>: {reason}" in (tmp_path / "out" / "report.html").read_text()
    # What was not measured is not passed.
    again = run(made, "--reference", few, "--out", tmp_path / "out", "--fail-under", "memorization/flagged=0")
    assert again.exit_code == 3, again.output


@pytest.mark.slow
def test_a_copy_of_one_real_image_is_rejected_where_nothing_else_can_be_searched_for(
    real: Path, tmp_path: Path
) -> None:
    few, images = tmp_path / "few", tmp_path / "images"
    few.mkdir()
    images.mkdir()
    shutil.copy(real / "00.png", few)
    for place in range(4):
        shutil.copy(real / f"{place + 4:02d}.png", images)
    with Image.open(real / "00.png") as picture:
        picture.convert("L").save(images / "copy.jpg", quality=80)
    done = run(images, "--reference", few, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    found = summary(tmp_path / "out")
    assert (found["memorization"], found["copies"]["flagged"]) == (None, 1)
    scores = pq.read_table(tmp_path / "out" / "scores.parquet").to_pylist()
    assert {row["key"]: row["memorized"] for row in scores if row["memorized"] is not None} == {"copy.jpg": True}
    assert "memorized" in next(row["reasons"] for row in scores if row["key"] == "copy.jpg")
    page = " ".join((tmp_path / "out" / "report.html").read_text().split())
    assert "1 is a copy of a real image. Near-duplicates were not looked for: reference: 1 image of 1 patient" in page
    assert "<strong>1 of 5 images</strong> are copies of a real image and were rejected" in page


@pytest.mark.slow
def test_label_words_that_stand_for_nothing_are_counted_and_never_quoted(
    made: Path, real: Path, tmp_path: Path
) -> None:
    words = ["Cardiomegaly|Secretword", "['mass', 'secretword']", "normal", "No Finding", "effusion;edema", "", "nan"]
    rows = [f'{place:02d}.png,patient-{place},"{word}"' for place, word in enumerate(words)]
    (tmp_path / "t.csv").write_text("\n".join(["filename,patient_id,labels", *rows]))
    options = ("--reference", real, "--reference-table", tmp_path / "t.csv")
    done = run(made, *options, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    printed = " ".join(done.output.split())
    assert "the labels of 2 rows have words that stand for no observation (the first: line 2)" in printed
    found = summary(tmp_path / "out")
    said = "table of the reference images: the labels of 2 rows have words that stand for no observation"
    assert f"{said} (the first: line 2); these findings stay unknown" in found["caveats"]
    everything = printed + json.dumps(found) + (tmp_path / "out" / "report.html").read_text()
    assert "ecretword" not in everything


@pytest.mark.usefixtures("audited")
@pytest.mark.slow
def test_what_a_table_says_of_how_many_images_is_told(made: Path, real: Path, home: Path, tmp_path: Path) -> None:
    whole = " ".join((home / "printed.txt").read_text().split())
    assert "real.csv: file from filename, view from view, sex from sex, patient from patient_id, 1 column" in whole
    assert "no known patient" not in whole
    assert summary(home / "audit")["caveats"] == []
    lines = (home / "real.csv").read_text().splitlines()
    table = tmp_path / "t.csv"
    table.write_text("\n".join(["scan,owner", *(",".join(line.split(",")[:2]) for line in lines[1:21])]))
    options = ("--reference", real, "--reference-table", table, "--file-column", "scan", "--patient-column", "owner")
    done = run(made, *options, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    printed = " ".join(done.output.split())
    assert "t.csv: file from scan, patient from owner" in printed
    assert f"t.csv: 20 of 24 images have a row; 0 of 20 rows match no image in {real}" in printed
    assert "4 of 24 reference images have no known patient" in printed
    found = summary(tmp_path / "out")
    assert found["reference"]["columns"] == "file from scan, patient from owner"
    assert found["reference"]["table"] == {"images": 24, "with_row": 20, "rows": 20, "matched": 20, "shared": 0}
    assert found["caveats"][0] == "reference images: table: 20 of 24 images have a row; 0 of 20 rows match no image"
    assert [caveat.partition(":")[0] for caveat in found["caveats"]] == [
        "reference images",
        "4 of 24 reference images have no known patient",
    ]
    assert all(caveat in (tmp_path / "out" / "report.html").read_text() for caveat in found["caveats"])
    again = run(made, *options, "--out", tmp_path / "out", "--min-posture", "-100")  # nothing is compared anew
    assert "4 of 24 reference images have no known patient" in " ".join(again.output.split())
    for name, said in (("scam", "--file-column scam: no such column"), ("owner", "describe the same image")):
        wrong = [name if option == "scan" else option for option in options]
        done = run(made, *wrong, "--out", tmp_path / "wrong")
        assert done.exit_code == 2, done.output
        assert said in done.output


def table_of(path: Path, *names: str) -> Path:
    path.write_text("\n".join(["file,sex", *(f"{name},F" for name in names)]))
    return path


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_table_that_matches_little_or_nothing_is_told_of_shards_and_rows(
    kind: str, real: Path, tmp_path: Path
) -> None:
    images = {f"{place:02d}.png": (real / f"{place:02d}.png").read_bytes() for place in range(16)}
    folder = tmp_path / "set"
    folder.mkdir()
    if kind == "tar":
        for name in ("a", "b"):  # two shards, the second of which the table describes in part
            members = [
                member(f"{name}{one}", content) for one, content in images.items() if (one < "08") == (name < "b")
            ]
            (folder / f"{name}.tar").write_bytes(tar_of(members))
        (folder / "preview.bmp").write_bytes(b"x")
        last = "b15.png"
    else:
        rows = [{"bytes": content, "path": name} for name, content in images.items()]
        pq.write_table(pa.table({"image": rows}), folder / "x.parquet")
        last = "15.png"
    others = [f"other-{place}.png" for place in range(99)]
    done = run(folder, "--table", table_of(tmp_path / "t.csv", last, *others), "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    said = "1 of 16 images have a row; 99 of 100 rows match no image"
    printed = " ".join(done.output.split())
    assert f"warning: {tmp_path / 't.csv'}: {said}" in printed
    assert ("no row matches any of 8 images in a.tar" in printed) == (kind == "tar")
    found = summary(tmp_path / "out")
    beside = ["audited images: passed over: 1 .bmp"] if kind == "tar" else []
    assert found["caveats"] == [*beside, f"audited images: table: {said}"]
    assert all(caveat in (tmp_path / "out" / "report.html").read_text() for caveat in found["caveats"])
    assert found["input"]["table"] == {"images": 16, "with_row": 1, "rows": 100, "matched": 1, "shared": 0}
    assert found["input"]["passed_over"] == ({".bmp": 1} if kind == "tar" else {})
    assert found["input"]["ranges"] == {"8 bits": 16}
    again = run(folder, "--table", tmp_path / "t.csv", "--out", tmp_path / "out", "--min-posture", "-100")
    assert said in " ".join(again.output.split())  # nothing is scored anew
    done = run(folder, "--table", table_of(tmp_path / "t.csv", *others), "--out", tmp_path / "out")
    assert done.exit_code == 2, done.output
    assert "no row matches an image" in done.output


def test_pictures_of_several_depths_and_what_is_passed_over_are_told(real: Path, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    for place in range(4):
        levels = np.asarray(Image.open(real / f"{place:02d}.png")).astype(np.uint16) * (16 if place else 4)
        Image.fromarray(levels).save(folder / f"{place}.png")
    (folder / "x.nii.gz").write_bytes(b"x")
    (folder / "more").symlink_to(real)
    done = run(folder, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    printed = " ".join(done.output.split())
    mixed = "white is not the same value in all pictures: 1 with 10 of 16 bits, 3 with 12 of 16 bits"
    assert f"warning: {folder}: {mixed}" in printed
    assert "passed over: 1 .nii.gz, 1 linked folder convert them to one of" in printed
    assert "name a linked folder itself" in printed
    found = summary(tmp_path / "out")
    assert found["input"]["ranges"] == {"10 of 16 bits": 1, "12 of 16 bits": 3}
    assert found["input"]["passed_over"] == {".nii.gz": 1, "linked folder": 1}
    assert found["caveats"][0] == "audited images: passed over: 1 .nii.gz, 1 linked folder"
    assert found["caveats"][1].startswith(f"audited images: {mixed}")


def test_a_data_set_is_recognized_named_and_used_by_its_splits(real: Path, tmp_path: Path) -> None:
    root = tmp_path / "CheXpert-v1.0-small"
    rows = {
        "train": ["Path,Sex,Age,Frontal/Lateral,AP/PA,Edema"],
        "valid": ["Path,Sex,Age,Frontal/Lateral,AP/PA,Edema"],
    }
    for place, picture in enumerate(sorted(real.glob("*.png"))):
        part = "valid" if place < 6 else "train"
        name = f"{part}/patient{place // 2 + 1:05d}/study{place % 2 + 1}/view1_frontal.png"
        (root / name).parent.mkdir(parents=True)
        shutil.copy(picture, root / name)
        rows[part].append(f"{root.name}/{name},Female,60,Frontal,PA,{place % 2}.0")
    for part, lines in rows.items():
        (root / f"{part}.csv").write_text("\n".join([*lines, ""]))
    out = tmp_path / "out"
    done = run(root, "--split", "val", "--reference", root, "--reference-split", "train", "--out", out)
    assert done.exit_code == 0, done.output
    assert "CheXpert; labels, views, sexes, ages of train from train.csv" in done.output
    assert "split val of train 18, val 6" in done.output
    found = summary(out)
    assert (found["input"]["images"], found["reference"]["images"]) == (6, 18)
    assert found["input"]["layout"] == {
        "name": "CheXpert",
        "tables": {
            f"{part}.csv": f"labels, views, sexes, ages of {split}"
            for part, split in (("train", "train"), ("valid", "val"))
        },
        "missing": [],
        "splits": {"train": 18, "val": 6},
        "split": "val",
        "columns": [],
        "columns_not_read": [],
        "labels_without_observation": {},
        "labels_not_understood": {"kinds": 0, "images": 0},
    }
    assert found["findings"]["Edema"]["images"] == 3
    assert not any("no known patient" in caveat for caveat in found["caveats"])
    refused = run(root, "--split", "other", "--out", tmp_path / "refused")
    assert refused.exit_code == 2
    assert "its splits: train, val" in refused.output
    (root / "train.csv").unlink()
    (root / "valid.csv").unlink()
    done = run(root, "--out", tmp_path / "without")
    assert done.exit_code == 0, done.output
    [caveat] = summary(tmp_path / "without")["caveats"]
    assert caveat.startswith("audited images: CheXpert without its table of labels")


@pytest.mark.slow
def test_an_audit_of_parquet_resumes_where_it_stopped(real: Path, tmp_path: Path) -> None:
    pictures = [picture.read_bytes() for picture in sorted(real.glob("*.png"))]
    folder, out = tmp_path / "set", tmp_path / "out"
    folder.mkdir()
    for part, chosen in (("train", pictures[:12]), ("test", pictures[12:])):
        pq.write_table(pa.table({"image": chosen, "label": ["Edema"] * len(chosen)}), folder / f"{part}-0.parquet")
    first = run(folder, "--out", out)
    assert first.exit_code == 0, first.output
    assert summary(out)["input"]["layout"]["splits"] == {"test": 12, "train": 12}
    before = {path.name: path.stat().st_mtime_ns for path in (out / ".cxrsynth-audit").rglob("*.parquet")}
    pq.write_table(pa.table({"image": pictures[12:20]}), folder / "test-0.parquet")
    assert run(folder, "--out", out).exit_code == 0
    assert summary(out)["input"]["images"] == 20
    after = {path.name: path.stat().st_mtime_ns for path in (out / ".cxrsynth-audit").rglob("*.parquet")}
    same = [name for name in after if before.get(name) == after[name]]
    assert len(same) == 1  # the file that did not change is not scored again


def test_follow_ups_of_a_patient_are_no_duplicates(real: Path, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    for name, quality in (("a", 90), ("b", 60), ("c", 90)):
        Image.open(real / "00.png").save(folder / f"{name}.jpg", quality=quality)
    for place in range(1, 8):
        shutil.copy(real / f"{place:02d}.png", folder)
    rows = ["filename,patient_id", "a.jpg,one", "b.jpg,one", "c.jpg,one", *(f"{n:02d}.png,p{n}" for n in range(1, 8))]
    (tmp_path / "t.csv").write_text("\n".join(rows))
    done = run(folder, "--table", tmp_path / "t.csv", "--out", tmp_path / "out")
    assert "1 image resembles an earlier one of the same patient" in done.output
    assert summary(tmp_path / "out")["follow_ups"] == 1
    page = " ".join((tmp_path / "out" / "report.html").read_text().split())
    assert "1 image resembles an earlier one of the same patient" in page
    scores = pq.read_table(tmp_path / "out" / "scores.parquet", columns=["key", "duplicate_of"]).to_pydict()
    found = dict(zip(scores["key"], scores["duplicate_of"], strict=True))
    assert found["c.jpg"] == "a.jpg"  # equal to the byte: a copy, whoever it shows
    assert found["b.jpg"] is None
    (tmp_path / "t.csv").write_text("\n".join(rows).replace("b.jpg,one", "b.jpg,two"))
    run(folder, "--table", tmp_path / "t.csv", "--out", tmp_path / "other")
    scores = pq.read_table(tmp_path / "other" / "scores.parquet", columns=["key", "duplicate_of"]).to_pydict()
    assert dict(zip(scores["key"], scores["duplicate_of"], strict=True))["b.jpg"] == "a.jpg"
    assert summary(tmp_path / "other")["follow_ups"] == 0
    assert "of the same patient: follow-ups" not in (tmp_path / "other" / "report.html").read_text()


def test_follow_ups_stay_follow_ups_in_what_an_audit_kept(real: Path, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    samples = [("a.jpg", "00", "one", 90), ("b.jpg", "00", "one", 60)]
    samples += [(f"{place:02d}.jpg", f"{place:02d}", f"p{place}", 90) for place in range(1, 8)]
    members = []
    for name, picture, patient, quality in samples:
        Image.open(real / f"{picture}.png").save(tmp_path / "one.jpg", quality=quality)
        members.append(member(name, (tmp_path / "one.jpg").read_bytes()))
        members.append(member(name.replace("jpg", "json"), json.dumps({"patient_id": patient}).encode()))
    (folder / "set.tar").write_bytes(tar_of(members))
    checks = [f"--ignore-check={name}" for name in CHECKS]
    first = run(folder, *checks, "--out", tmp_path / "first", "--write-kept", tmp_path / "kept")
    assert first.exit_code == 0, first.output
    again = run(tmp_path / "kept", *checks, "--out", tmp_path / "again", "--write-kept", tmp_path / "kept-again")
    assert again.exit_code == 0, again.output
    third = run(tmp_path / "kept-again", *checks, "--out", tmp_path / "third")
    assert third.exit_code == 0, third.output
    found = [summary(tmp_path / name) for name in ("first", "again", "third")]
    assert [one["follow_ups"] for one in found] == [1, 1, 1]
    assert found[0]["kept"] == found[1]["kept"] == found[2]["kept"] == 9


@pytest.mark.slow
def test_copies_that_are_rejected_count_for_nothing(real: Path, home: Path, tmp_path: Path) -> None:
    copies = tmp_path / "copies"
    copies.mkdir()
    rows = ["filename,Edema"]
    for place in range(24):
        Image.open(real / f"{place:02d}.png").save(copies / f"{place:02d}.jpg", quality=90)
        rows.append(f"{place:02d}.jpg,{place % 3 // 2}")
    (tmp_path / "copies.csv").write_text("\n".join(rows) + "\n")
    done = run(
        *(copies, "--table", tmp_path / "copies.csv", "--out", tmp_path / "out", "--utility"),
        *("--reference", real, "--reference-table", home / "real.csv", "--fail-under", "fidelity/all/frechet=1e9"),
    )
    assert done.exit_code == 3, done.output
    found = summary(tmp_path / "out")
    assert found["memorization"]["flagged"] == found["rejected"] == 24
    assert found["kept"] == 0
    assert found["fidelity"][0] | {"group": "all", "images": 0, "real": 24} == found["fidelity"][0]
    assert found["fidelity_all"][0]["images"] == 24
    assert found["failed"][0]["value"] is None
    assert found["not_measured"].keys() == {"reidentification", "utility"}


def test_a_family_without_posture_is_refused_and_never_looked_for_elsewhere(made: Path, tmp_path: Path) -> None:
    packaged, family = family_folder("nano-judge"), tmp_path / "family"
    assert packaged is not None
    shutil.copytree(packaged, family)
    shutil.rmtree(family / "posture")
    done = run(made, "--family", family, "--out", tmp_path / "out")
    assert done.exit_code == 2, done.output
    assert "posture/" in done.output


@pytest.mark.slow
def test_kept_images_are_written_again_byte_for_byte(made: Path, tmp_path: Path) -> None:
    checks = [f"--ignore-check={name}" for name in CHECKS]
    kept = tmp_path / "secretword" / "kept"
    (tmp_path / "secretword").mkdir()
    done = run(made, "--out", tmp_path / "elsewhere", "--write-kept", kept, "--shard-size", "5", *checks)
    assert "secretword" not in (tmp_path / "elsewhere" / "summary.json").read_text()
    assert "secretword" not in (tmp_path / "elsewhere" / "report.html").read_text()
    done = run(made, "--out", tmp_path / "out", "--write-kept", tmp_path / "kept", "--shard-size", "5", *checks)
    assert done.exit_code == 0, done.output
    kept = summary(tmp_path / "out")["kept"]
    assert kept > 0
    found = manifest(tmp_path / "kept")
    assert found["counts"]["samples"] == kept
    assert found["synthetic"] is True
    assert found["audit"]["rejected"] == 14 - kept
    again = run(tmp_path / "kept", "--out", tmp_path / "again", *checks)
    assert again.exit_code == 0, again.output
    first, second = (pq.read_table(tmp_path / name / "scores.parquet") for name in ("out", "again"))
    rewards = {row["key"]: row["reward_posture"] for row in first.to_pylist() if row["kept"]}
    assert {row["key"]: row["reward_posture"] for row in second.to_pylist()} == pytest.approx(rewards, abs=1e-4)


def test_kept_images_that_cannot_be_written_cost_no_findings(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: object, **named: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    checks = [f"--ignore-check={name}" for name in CHECKS]
    arguments = (made, "--out", tmp_path / "out", "--write-kept", tmp_path / "kept", *checks)
    with monkeypatch.context() as patch:
        patch.setattr(results, "write_kept", full)
        done = run(*arguments)
    assert done.exit_code == 2, done.output
    assert "No space left" in done.output
    assert all((tmp_path / "out" / name).exists() for name in FINDINGS)
    assert run(*arguments).exit_code == 0
    assert (tmp_path / "kept" / "manifest.json").exists()


def test_rewards_and_obedience_of_kept_images_stand_beside_those_of_all(
    audited: Path, made: Path, tmp_path: Path
) -> None:
    every = pq.read_table(audited / "scores.parquet")["reward_posture"].to_numpy()
    middle = float(np.median(every))
    checks = [f"--ignore-check={name}" for name in CHECKS]
    limits = ("--min-posture", str(middle), "--fail-under", f"rewards_kept/posture/p5={middle - 1e-4}")
    done = run(made, "--out", tmp_path / "out", *limits, *checks)
    assert done.exit_code == 0, done.output
    found, rows = summary(tmp_path / "out"), pq.read_table(tmp_path / "out" / "scores.parquet").to_pylist()
    kept = [row for row in rows if row["kept"]]
    assert 0 < len(kept) < len(rows)
    assert found["rewards"]["posture"]["mean"] == pytest.approx(np.mean([row["reward_posture"] for row in rows]))
    assert found["rewards_kept"]["posture"]["mean"] == pytest.approx(np.mean([row["reward_posture"] for row in kept]))
    for name, of in (("obedience", rows), ("obedience_kept", kept)):
        requested = {row["finding"]: row["requested"] for row in found[name]}
        assert requested == {finding: sum(finding in row["present"] for row in of) for finding in requested}, name


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--reference-table", "nowhere.csv"), "--reference-table: has no effect without --reference"),
        (("--reference-split", "test"), "--reference-split: has no effect without --reference"),
        (("--keep-reference-pixels",), "--keep-reference-pixels: has no effect without --reference"),
    ],
)
def test_options_about_real_images_that_are_not_given_are_refused(
    options: tuple[str, ...], said: str, made: Path, tmp_path: Path
) -> None:
    done = run(made, "--out", tmp_path / "out", *options)
    assert done.exit_code == 2, done.output
    assert said in done.output
    assert not (tmp_path / "out").exists()


def test_a_rule_that_the_reference_cannot_give_is_refused_before_the_images_are_scored(
    made: Path, real: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = run(made, "--reference", real, "--beat-reference", "diagnosis=5", "--out", out)
    assert done.exit_code == 2, done.output
    assert "--beat-reference diagnosis: this reward is undefined for every image of the reference" in done.output
    shown = [line for line in done.output.splitlines() if "images/s" in line]
    assert shown
    assert all("reference images" in line for line in shown)


def test_a_missed_threshold_is_exit_code_3(made: Path, tmp_path: Path) -> None:
    done = run(made, "--out", tmp_path / "out", "--min-posture", "1", "--fail-under", "kept_fraction=0.5")
    assert done.exit_code == 3, done.output
    [missed] = summary(tmp_path / "out")["failed"]
    assert missed["metric"] == "kept_fraction"
    assert missed["value"] == 0.0
    assert "posture<1.0" in summary(tmp_path / "out")["reasons"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--min", "postur=1"), "posture"),
        (("--min", "posture"), "REWARD=NUMBER"),
        (("--beat-reference", "diagnosis=5"), "--reference"),
        (("--beat-reference", "diagnosis=500"), "from 0 to 100"),
        (("--fail-under", "kept_fractoin=1"), "kept_fraction"),
        (("--fail-under", "rewards/posture/not_told=1"), "use: rewards/posture/unscored"),
        (("--generator", "nano"), "--reference"),
        (("--judge", "no-such-judge"), "no-such-judge"),
        (("--features", "no-such-features"), "no-such-features"),
        (("--family", "no-such-family"), "no-such-family"),
        (("--ignore-check", "blnk"), "blank"),
        (("--utility",), "--reference"),
        (("--utility-model", "nano"), "add --utility, or leave it out"),
        (("--show-real",), "--reference"),
        (("--protocol", "chexgenbench"), "--reference"),
        (("--protocol", "chexgenbnch"), "'chexgenbench'"),
        (("--reference", "/no/such/folder"), "/no/such/folder"),
    ],
)
def test_a_mistake_is_reported_at_once(options: tuple[str, ...], said: str, made: Path, tmp_path: Path) -> None:
    done = run(made, "--out", tmp_path / "out", *options)
    assert done.exit_code == 2, done.output
    assert said in done.output
    assert "Traceback" not in done.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("line", ["sys.exit(0)", "raise ValueError(reports[0].full_text)", "return images[:, 0, 0]"])
def test_a_reward_of_ones_own_that_fails_is_one_message(
    line: str, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_reward(tmp_path / "package", replaced(line), monkeypatch)
    done = run(made, "--out", tmp_path / "out", "--judge", "own=any")
    assert done.exit_code == 2, done.output
    assert "Traceback" not in done.output
    assert "reward own (backend any): its call " in done.output
    assert done.output.count("error: report ") == 1
    assert not any(word in done.output for word in SECRET_WORDS)


def test_a_folder_that_is_not_ours_is_left_alone(made: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious.txt").write_text("mine")
    done = run(made, "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert hashes(tmp_path / "out").keys() == {"precious.txt"}
    inside = run(made, "--out", made / "audit")
    assert inside.exit_code == 2
    assert "never touches its input" in inside.output


def test_pictures_without_reports_get_the_rewards_that_need_none(real: Path, tmp_path: Path) -> None:
    done = run(real, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    rewards = summary(tmp_path / "out")["rewards"]
    assert rewards["posture"]["unscored"] == 0
    assert rewards["diagnosis"]["unscored"] == rewards["consistency"]["unscored"] == 24
