"""`generate` in one process, through the command line, with a model of a few channels."""

import hashlib
import io
import json
import os
import shutil
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import cxrsynth.generation.generate
from cxrsynth import console
from cxrsynth.cli import app
from cxrsynth.diffusion.model import DiffusionModel, load_model
from cxrsynth.diffusion.noise import seeded_noise
from cxrsynth.diffusion.resolve import resolve_model
from cxrsynth.diffusion.sampler import make_scheduler, sample_images
from cxrsynth.generation import machine
from cxrsynth.reports.request import PromptBuilder
from cxrsynth.reports.table.rows import Rejected, Report
from cxrsynth.reports.table.table import Table
from cxrsynth.settings import Device, Precision, PromptStyle, Sampler
from cxrsynth.shards.sample import load_id_key, sample_key, subject_key
from tests.conftest import build_tiny_model
from tests.diffusion.test_additions import lora_of
from tests.generation.making import (
    ROWS,
    SECRET_WORDS,
    command,
    hashes,
    manifest,
    members,
    metadata,
    write_table,
)

SPEC: dict[str, object] = {
    "name": "tiny-canonical",
    "prompt": "canonical",
    "depicts": {
        "views": ["PA", "AP"],
        "age_groups": ["adult"],
        "sexes": ["F", "M"],
        "findings": {"No Finding": 9, "Cardiomegaly": 5, "Pleural Effusion": 3},
        "sides": False,
        "uncertain": False,
    },
}


@dataclass(frozen=True)
class Result:
    code: int
    text: str


def run(arguments: list[str]) -> Result:
    """Exit code and everything printed; an exception that is not turned into a message fails the test."""
    result = CliRunner().invoke(app, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Result(result.exit_code, result.stdout + result.stderr)


def succeed(arguments: list[str]) -> str:
    result = run(arguments)
    assert result.code == 0, result.text
    return result.text


def refuse(arguments: list[str]) -> str:
    """The only message of a command that must exit 2."""
    result = run(arguments)
    assert result.code == 2, result.text
    assert result.text.count("error:") == 1
    assert result.text.startswith("error:")
    assert "Traceback" not in result.text
    return result.text


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """On a busy machine, two threads spend more time waiting for each other than computing."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_table(tmp_path_factory.mktemp("tables") / "reports.csv")


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "id.key"
    path.write_text("0123456789abcdef0123456789abcdef\n")
    path.chmod(0o600)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, table: Path, key_file: Path) -> tuple[Path, str]:
    """A complete folder of 7 reports x 2 images in shards of 3, and the output of the command. Do not change it."""
    out = tmp_path_factory.mktemp("made") / "out"
    return out, succeed(command(table, out, tiny_model, "--images-per-report", "2", "--id-key", str(key_file)))


@pytest.fixture(scope="module")
def canonical_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Its tokenizer has no canonical word whole: a long limit, or every prompt would be cut.
    return build_tiny_model(tmp_path_factory.mktemp("models") / "canonical", max_tokens=256, spec=SPEC)


@pytest.fixture(scope="module")
def networks(tiny_model: Path) -> DiffusionModel:
    return load_model(resolve_model(str(tiny_model)), device=torch.device("cpu"), precision=Precision.FP32)


def described(model: Path, folder: Path, spec: dict[str, object] | str) -> Path:
    """A copy of a model with a cxrsynth.json."""
    shutil.copytree(model, folder)
    text = spec if isinstance(spec, str) else json.dumps(spec)
    (folder / "cxrsynth.json").write_text(text, encoding="utf-8")
    return folder


def image_of(raw: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(raw)))


# What a run makes


def test_a_command_makes_the_same_bytes_again(
    made: tuple[Path, str], tmp_path: Path, tiny_model: Path, table: Path, key_file: Path
) -> None:
    succeed(command(table, tmp_path / "b", tiny_model, "--images-per-report", "2", "--id-key", str(key_file)))
    assert hashes(tmp_path / "b") == hashes(made[0])


def test_a_run_hashes_each_file_of_the_model_once(
    tmp_path: Path, tiny_model: Path, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: Counter[Path] = Counter()
    file_digest = hashlib.file_digest

    def counted(file: Any, *options: Any) -> Any:
        hashed[Path(file.name)] += 1
        return file_digest(file, *options)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    succeed(command(table, tmp_path / "out", tiny_model))
    of_model = {path: count for path, count in hashed.items() if path.is_relative_to(tiny_model)}
    assert set(tiny_model.rglob("*.safetensors")) <= set(of_model)
    assert set(of_model.values()) == {1}


def test_a_run_reads_the_rows_of_the_table_once(
    tmp_path: Path, tiny_model: Path, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes, rows = [], Table.rows

    def counted(table: Table, **options: bool) -> Iterator[Report | Rejected]:
        passes.append(table.path)
        return rows(table, **options)

    monkeypatch.setattr(Table, "rows", counted)
    arguments = command(table, tmp_path / "out", tiny_model, "--id-map", str(tmp_path / "ids.csv"))
    succeed(arguments)
    assert passes == [table]
    assert "already complete" in succeed(arguments)
    assert passes == [table, table]


def test_the_plan_records_the_revision_of_a_hub_model(
    tmp_path: Path, tiny_model: Path, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    shutil.copytree(tiny_model, tmp_path / "hub" / "models--lab--chest" / "snapshots" / ("a" * 40))
    succeed(command(table, tmp_path / "out", f"lab/chest@{'a' * 40}"))
    model = manifest(tmp_path / "out")["plan"]["model"]
    assert (model["name"], model["revision"]) == ("chest", "a" * 40)
    assert all(one["model"] == model for one in metadata(tmp_path / "out").values())


def test_the_folder_holds_what_the_manifest_says(made: tuple[Path, str]) -> None:
    found, says = hashes(made[0]), manifest(made[0])
    shards = [f"cxr-{index:06d}.tar" for index in range(5)]
    assert sorted(found) == ["README.md", *shards, "manifest.json", "preview.png"]
    assert {shard["name"]: shard["sha256"] for shard in says["shards"]} == {name: found[name] for name in shards}
    assert [shard["samples"] for shard in says["shards"]] == [3, 3, 3, 3, 2]
    assert [shard["bytes"] for shard in says["shards"]] == [(made[0] / name).stat().st_size for name in shards]
    assert says["counts"] == {"reports": 7, "rejected": 0, "samples": 14}
    assert says["synthetic"] is True
    assert len(members(made[0])) == 28
    assert Image.open(made[0] / "preview.png").size == (6 * 192, 3 * 192)


def test_another_seed_makes_other_images_under_the_same_keys(
    made: tuple[Path, str], tmp_path: Path, tiny_model: Path, table: Path, key_file: Path
) -> None:
    options = ("--images-per-report", "2", "--id-key", str(key_file), "--seed", "1")
    succeed(command(table, tmp_path / "b", tiny_model, *options))
    ours, theirs = members(tmp_path / "b"), members(made[0])
    assert ours.keys() == theirs.keys()
    assert all(ours[name] != theirs[name] for name in ours if name.endswith(".png"))


def test_webdataset_reads_the_shards(made: tuple[Path, str]) -> None:
    import webdataset as wds

    shards = sorted(str(path) for path in made[0].glob("*.tar"))
    samples = list(wds.WebDataset(shards, shardshuffle=False).decode("l8"))
    assert len({sample["__key__"] for sample in samples}) == len(samples) == 14
    for place, sample in enumerate(samples):
        assert {name for name in sample if not name.startswith("__")} == {"png", "json"}
        assert sample["png"].shape == (32, 32)
        assert sample["json"]["synthetic"] is True
        assert sample["json"]["seed"] == 0
        assert sample["json"]["image_index"] == place % 2
        assert sample["json"]["unsupported_findings"] == ""
        assert "prompt" not in sample["json"]
    effusion = samples[0]["json"]["findings"]["Pleural Effusion"]
    assert effusion == {"status": "present", "side": "left", "source": "report"}
    assert [samples[2]["json"][name] for name in ("view", "sex", "age_group")] == ["AP", "M", "child"]


def test_datasets_reads_the_shards(made: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_OFFLINE", True)
    from datasets import load_dataset

    shards = sorted(str(path) for path in made[0].glob("*.tar"))
    rows = load_dataset("webdataset", data_files={"train": shards}, split="train", cache_dir=str(tmp_path))
    expected = metadata(made[0])
    assert [row["__key__"] for row in rows] == list(expected)
    for row in rows:
        assert row["png"].size == (32, 32)
        assert row["json"]["synthetic"] is True
        assert row["json"] == expected[row["__key__"]]


def test_every_image_says_inside_that_it_is_synthetic(made: tuple[Path, str]) -> None:
    for name, raw in members(made[0]).items():
        if name.endswith(".png"):
            assert "Synthetic" in Image.open(io.BytesIO(raw)).text["Comment"]


def test_jpg_and_png16_hold_the_same_picture(
    made: tuple[Path, str], tmp_path: Path, tiny_model: Path, table: Path, key_file: Path
) -> None:
    for kind in ("jpg", "png16"):
        options = ("--images-per-report", "2", "--id-key", str(key_file), "--image-format", kind)
        succeed(command(table, tmp_path / kind, tiny_model, *options))
    plain, jpg, wide = members(made[0]), members(tmp_path / "jpg"), members(tmp_path / "png16")
    for name in (name for name in plain if name.endswith(".png")):
        levels = image_of(plain[name]).astype(float)
        assert image_of(wide[name]).dtype == np.uint16
        assert np.abs(image_of(wide[name]) / 257 - levels).max() <= 0.51
        assert np.abs(image_of(jpg[name.replace(".png", ".jpg")]) - levels).mean() < 3


# Text and identity


def test_no_id_and_no_text_is_in_any_output(made: tuple[Path, str]) -> None:
    out, printed = made
    for path in out.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not [word for word in SECRET_WORDS if word.encode() in content], path.name
            assert b"pneumonia." not in content  # an impression as it was written
    assert not [word for word in SECRET_WORDS if word in printed]
    assert not [name for name in members(out) if name.endswith(".txt")]


def test_included_text_is_sanitized(tmp_path: Path, tiny_model: Path, table: Path) -> None:
    out = tmp_path / "out"
    succeed(command(table, out, tiny_model, "--include-text", "sanitized", "--deid", "standard"))
    texts = [raw.decode() for name, raw in members(out).items() if name.endswith(".txt")]
    assert len(texts) == 7
    assert "Zorblattic heart size is normal." in texts[0]
    assert "Zorblattic lungs" in texts[1]
    everything = b"".join(path.read_bytes() for path in out.iterdir())
    for word in ("Quibbleton", "Blatherwick", "03/14/2019", "QZX-77"):
        assert word.encode() not in everything
    assert sum(manifest(out)["sanitized"].values()) >= 2
    assert manifest(out)["plan"]["deid"] == "standard"


def test_text_is_stored_strictly_sanitized_unless_asked_otherwise(tmp_path: Path, tiny_model: Path) -> None:
    rows = (
        ("S-1", "Zorblattic heart size is normal. The lungs are clear.", "Left pleural effusion.", "PA", "F", "61"),
        (
            "S-2",
            "Het hart is niet vergroot. Geen aanwijzingen voor pleuravocht aan de linker zijde.",
            "",
            "AP",
            "M",
            "50",
        ),
    )
    table, out = write_table(tmp_path / "reports.csv", rows), tmp_path / "out"
    printed = succeed(command(table, out, tiny_model, "--include-text", "sanitized"))
    texts = [raw.decode() for name, raw in members(out).items() if name.endswith(".txt")]
    assert manifest(out)["plan"]["deid"] == "strict"
    assert "Zorblattic" not in texts[0]
    assert "The lungs are clear." in texts[0]
    assert "hart" not in "".join(texts)
    assert manifest(out)["sanitized"]["language"] == 1
    assert "line 3: in a language that de-identification does not cover" in " ".join(printed.split())


def test_the_id_map_maps_ids_to_keys(tmp_path: Path, tiny_model: Path, table: Path) -> None:
    out, ids = tmp_path / "out", tmp_path / "private" / "ids.csv"
    succeed(command(table, out, tiny_model, "--images-per-report", "2", "--id-map", str(ids)))
    lines = ids.read_text().splitlines()
    assert lines[0] == "report_id,sample_key"
    rows = [line.split(",") for line in lines[1:]]
    assert [row[0] for row in rows] == [row[0] for row in ROWS for _ in range(2)]
    assert [row[1] for row in rows] == list(metadata(out))
    assert ids.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in ids.parent.iterdir()] == ["ids.csv"]


def test_an_id_map_can_be_had_of_a_complete_folder(tmp_path: Path, tiny_model: Path, table: Path) -> None:
    out, ids = tmp_path / "out", tmp_path / "ids.csv"
    succeed(command(table, out, tiny_model))
    before = hashes(out)
    succeed(command(table, out, tiny_model, "--id-map", str(ids)))
    assert [line.split(",")[1] for line in ids.read_text().splitlines()[1:]] == list(metadata(out))
    assert hashes(out) == before


def test_a_list_of_rejected_rows_can_be_had_of_a_complete_folder(tmp_path: Path, tiny_model: Path) -> None:
    reports, out, listed = write_table(tmp_path / "reports.csv", BAD_ROWS), tmp_path / "out", tmp_path / "why.csv"
    succeed(command(reports, out, tiny_model))
    before = hashes(out)
    succeed(command(reports, out, tiny_model, "--rejected", str(listed)))
    assert listed.read_text().splitlines() == (tmp_path / "out.rejected.csv").read_text().splitlines()
    assert hashes(out) == before


@pytest.mark.parametrize("option", ["--id-map", "--rejected"])
def test_a_file_that_came_during_the_run_is_not_overwritten_by_a_list(
    option: str, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports, listed = write_table(tmp_path / "reports.csv", BAD_ROWS), tmp_path / "list.csv"
    make = cxrsynth.generation.generate._make_shards

    def make_and_write(*given: Any, **named: Any) -> None:
        make(*given, **named)
        listed.write_text("of another program\n")

    arguments = command(reports, tmp_path / "out", tiny_model, option, str(listed))
    with monkeypatch.context() as patch:
        patch.setattr(cxrsynth.generation.generate, "_make_shards", make_and_write)
        result = run(arguments)
        assert result.code == 2
        assert f"error: {option} {listed}: is there already" in result.text
    assert listed.read_text() == "of another program\n"
    listed.unlink()
    succeed(arguments)
    assert len(listed.read_text().splitlines()) == 4


def test_an_id_map_replaces_no_other_file(tmp_path: Path, tiny_model: Path) -> None:
    table, key = write_table(tmp_path / "reports.csv"), tmp_path / "id.key"
    key.write_text("0123456789abcdef0123456789abcdef")
    key.chmod(0o600)
    before = hashes(tmp_path)
    for taken, what in ((table, "table"), (tmp_path / "." / "id.key", "--id-key")):
        options = ("--id-key", str(key), "--id-map", str(taken))
        assert what in refuse(command(table, tmp_path / "out", tiny_model, *options))
    assert "cannot be written" in refuse(command(table, tmp_path / "out", tiny_model, "--id-map", str(key / "ids.csv")))
    assert hashes(tmp_path) == before


def test_a_table_that_changes_while_images_are_made_changes_none(
    tmp_path: Path, tiny_model: Path, key_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rows are read once, at the start."""
    table, out, ids = write_table(tmp_path / "reports.csv"), tmp_path / "out", tmp_path / "ids.csv"
    make = cxrsynth.generation.generate._make_shards

    def change_and_make(*given: Any, **named: Any) -> None:
        write_table(table, ROWS[:5])
        make(*given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(cxrsynth.generation.generate, "_make_shards", change_and_make)
        succeed(command(table, out, tiny_model, "--id-key", str(key_file), "--id-map", str(ids)))
    other = write_table(tmp_path / "same.csv")
    succeed(command(other, tmp_path / "never", tiny_model, "--id-key", str(key_file)))
    assert hashes(out) == hashes(tmp_path / "never")
    assert len(ids.read_text().splitlines()) == 1 + len(ROWS)


def test_a_table_that_changes_before_it_is_read_is_refused(
    tmp_path: Path, tiny_model: Path, key_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan names the table that was there first."""
    table, out = write_table(tmp_path / "reports.csv"), tmp_path / "out"
    read = cxrsynth.generation.generate.read_rows

    def change_and_read(*given: Any, **named: Any) -> Any:
        write_table(table, ROWS[:5])
        return read(*given, **named)

    monkeypatch.setattr(cxrsynth.generation.generate, "read_rows", change_and_read)
    assert "changed while it was read" in refuse(command(table, out, tiny_model, "--id-key", str(key_file)))
    assert not out.exists()


def test_more_reports_than_a_file_set_has_names_for_are_refused(
    tmp_path: Path, tiny_model: Path, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cxrsynth.generation.generate, "MOST_PATIENTS", 6)
    options = ("--format", "dicom", "--unpacked")
    assert "7 reports, expected at most 6 in a DICOM file-set" in refuse(
        command(table, tmp_path / "out", tiny_model, *options)
    )
    assert not (tmp_path / "out").exists()
    succeed(command(table, tmp_path / "tars", tiny_model, *options[:2]))


@pytest.mark.parametrize("option", ["--id-map", "--id-key"])
def test_secret_files_are_refused_inside_the_folder(option: str, tmp_path: Path, tiny_model: Path, table: Path) -> None:
    secret = tmp_path / "out" / "sub" / ".." / "secret"
    message = refuse(command(table, tmp_path / "out", tiny_model, option, str(secret)))
    assert option in message
    assert not (tmp_path / "out").exists()


def test_another_id_key_makes_other_sample_keys(
    made: tuple[Path, str], tmp_path: Path, tiny_model: Path, table: Path
) -> None:
    other = tmp_path / "other.key"
    other.write_text("fedcba9876543210fedcba9876543210")
    other.chmod(0o600)
    succeed(command(table, tmp_path / "out", tiny_model, "--id-key", str(other)))
    keys = set(metadata(tmp_path / "out"))
    assert len(keys) == 7
    assert not keys & set(metadata(made[0]))
    expected = {sample_key(subject_key(other.read_bytes(), row[0]), 0) for row in ROWS}
    assert keys == expected


def test_a_byte_order_mark_is_no_part_of_the_key(tmp_path: Path, key_file: Path) -> None:
    marked = tmp_path / "marked.key"
    marked.write_bytes(b"\xef\xbb\xbf" + key_file.read_bytes())
    marked.chmod(0o600)
    assert load_id_key(marked) == load_id_key(key_file)


@pytest.mark.parametrize(
    ("content", "mode", "said"),
    [
        (b"0" * 64, 0o600, "only 1 different bytes, so it is no random key"),
        (b"\0" * 32, 0o600, "only 1 different bytes"),
        (b"0123456789abcdef" * 2, 0o644, "everyone on this machine can read it"),
        (b"short", 0o600, "5 bytes, expected at least 16"),
    ],
)
def test_keys_that_are_no_secret_are_refused(
    content: bytes, mode: int, said: str, tmp_path: Path, tiny_model: Path, table: Path
) -> None:
    key = tmp_path / "id.key"
    key.write_bytes(content)
    key.chmod(mode)
    assert said in refuse(command(table, tmp_path / "out", tiny_model, "--id-key", str(key)))
    assert not (tmp_path / "out").exists()


def test_the_table_is_no_key(tmp_path: Path, tiny_model: Path) -> None:
    table = write_table(tmp_path / "reports.csv")
    message = refuse(command(table, tmp_path / "out", tiny_model, "--id-key", str(table)))
    assert "is the table of reports, expected a file with a secret key" in message


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--out", ""), "an empty text in place of a path"),
        (("--out", "~/set"), "~ is no folder here, and was not expanded"),
        (("--id-map", "~someone/ids.csv"), "~someone is no folder here"),
        (("--sop-class", "cr"), "--sop-class cr: WebDataset shards hold no DICOM objects"),
        (("--format", "dicom", "--image-format", "png16"), "--image-format png16: DICOM objects hold no such files"),
    ],
)
def test_options_that_mean_nothing_are_refused(
    options: tuple[str, ...], said: str, tmp_path: Path, tiny_model: Path, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    assert said in " ".join(refuse(command(table, Path("out"), tiny_model, *options)).split())
    assert set(tmp_path.iterdir()) == before


def test_a_seed_of_more_than_63_bits_is_refused(tmp_path: Path, tiny_model: Path, table: Path) -> None:
    result = CliRunner().invoke(app, command(table, tmp_path / "out", tiny_model, "--seed", str(2**63)))
    assert result.exit_code == 2
    assert "9223372036854775807" in result.output


def test_both_classes_of_an_image_are_one_study(
    tmp_path: Path, tiny_model: Path, table: Path, key_file: Path, dicoms: Path
) -> None:
    options = ("--format", "dicom", "--sop-class", "cr", "--study-date", "19000101", "--id-key", str(key_file))
    succeed(command(table, tmp_path / "cr", tiny_model, *options))
    found = {}
    for folder in (dicoms, tmp_path / "cr"):
        read = [pydicom.dcmread(io.BytesIO(raw)) for name, raw in members(folder).items() if name.endswith(".dcm")]
        found[folder.name] = {one.PatientID: one for one in read}
    (sc, cr) = found.values()
    assert sc.keys() == cr.keys()
    for patient, one in sc.items():
        other = cr[patient]
        assert one.StudyInstanceUID == other.StudyInstanceUID
        assert one.SOPInstanceUID != other.SOPInstanceUID
        assert (one.StudyDate, one.StudyTime) == ("", "")
        assert (other.StudyDate, other.StudyTime) == ("19000101", "000000")
    # Of shards of another size, batches hold other images, and pixels may differ in their last bits.
    succeed(command(table, tmp_path / "size", tiny_model, *options[:2], *options[-2:], "--shard-size", "7"))
    resized = [
        pydicom.dcmread(io.BytesIO(raw)) for name, raw in members(tmp_path / "size").items() if name.endswith(".dcm")
    ]
    assert {one.PatientID for one in resized} == sc.keys()
    assert not {one.SOPInstanceUID for one in resized} & {one.SOPInstanceUID for one in sc.values()}


@pytest.mark.parametrize("date", ["1900", "19001301", "1900-01-01"])
def test_a_study_date_is_a_day(date: str, tmp_path: Path, tiny_model: Path, table: Path) -> None:
    message = refuse(command(table, tmp_path / "out", tiny_model, "--format", "dicom", "--study-date", date))
    assert f"--study-date {date}: expected a day as YYYYMMDD" in message
    assert "hold no DICOM" in refuse(command(table, tmp_path / "out", tiny_model, "--study-date", "19000101"))


def test_the_preview_says_that_it_is_synthetic(made: tuple[Path, str]) -> None:
    assert Image.open(made[0] / "preview.png").info["Comment"].startswith("Synthetic chest X-ray")


def test_a_link_without_its_file_is_explained(tmp_path: Path, tiny_model: Path) -> None:
    link = tmp_path / "reports.csv"
    link.symlink_to("elsewhere.csv")
    assert "a link to elsewhere.csv, which is not there" in refuse(command(link, tmp_path / "out", tiny_model))


def test_the_default_key_is_made_once(
    tmp_path: Path, tiny_model: Path, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    succeed(command(table, tmp_path / "a", tiny_model, "--limit", "1"))
    key = tmp_path / "data" / "cxrsynth" / "id.key"
    content = key.read_bytes()
    assert key.stat().st_mode & 0o777 == 0o600
    succeed(command(table, tmp_path / "b", tiny_model, "--limit", "1"))
    assert key.read_bytes() == content
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")


# Rows


BAD_ROWS = (
    ("R1", "Lungs are clear.", "", "PA", "F", "61"),
    ("R2", " ", "", "PA", "F", "61"),
    ("R3", "Edema.", "two\nlines", "PA", "F", "61"),
    ("R1", "Edema.", "", "PA", "F", "61"),
    ("R4", "Edema."),
    ("R5", "Edema.", "", "PA", "F", "61"),
)


def test_rows_that_cannot_be_used_are_set_aside(tmp_path: Path, tiny_model: Path) -> None:
    reports = write_table(tmp_path / "reports.csv", BAD_ROWS)
    printed = succeed(command(reports, tmp_path / "out", tiny_model))
    assert "3 rows not used" in printed
    lines = (tmp_path / "out.rejected.csv").read_text().splitlines()
    assert lines == ["line,reason", "3,empty text", "6,duplicate id", "7,2 fields where the header has 6"]
    assert manifest(tmp_path / "out")["counts"] == {"reports": 3, "rejected": 3, "samples": 3}


def test_rows_that_cannot_be_used_are_listed_even_if_all_are(tmp_path: Path, tiny_model: Path) -> None:
    reports = write_table(tmp_path / "reports.csv", (BAD_ROWS[1], BAD_ROWS[4]))
    arguments = command(reports, tmp_path / "out", tiny_model)
    message = refuse(arguments)
    assert "no usable row (2 rejected; the first: line 2: empty text)" in message
    assert "reasons: 2 fields where the header has 6 1, empty text 1" in message
    assert "out.rejected.csv" in message
    lines = (tmp_path / "out.rejected.csv").read_text().splitlines()
    assert lines == ["line,reason", "2,empty text", "3,2 fields where the header has 6"]
    assert not (tmp_path / "out").exists()
    assert "columns: report_id from report_id" in message or "columns: findings from findings" in message
    # Once mended, the list of before is gone.
    write_table(reports)
    succeed(arguments)
    assert not (tmp_path / "out.rejected.csv").exists()


@pytest.mark.parametrize("option", ["--id-map", "--rejected"])
def test_no_file_of_another_kind_is_overwritten_by_a_list(option: str, tmp_path: Path, tiny_model: Path) -> None:
    reports = write_table(tmp_path / "reports.csv", BAD_ROWS)
    other, pipe, link = tmp_path / "notes.csv", tmp_path / "pipe", tmp_path / "link"
    other.write_text("name,line\n")
    os.mkfifo(pipe)
    link.symlink_to(other)
    for path in (other, pipe, link, Path(os.devnull)):
        message = refuse(command(reports, tmp_path / "out", tiny_model, option, str(path)))
        assert f"{option} {path}: is there already, and is no list of an earlier run" in message
    assert other.read_text() == "name,line\n"
    assert not (tmp_path / "out").exists()
    own = tmp_path / "own.csv"
    for _ in range(2):  # a list of ours is replaced
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        succeed(command(reports, tmp_path / "out", tiny_model, option, str(own)))
        assert own.stat().st_mode & 0o777 == 0o600
        assert len(own.read_text().splitlines()) == 4


@pytest.mark.parametrize("keep_order", [True, False])
def test_a_row_for_each_image(keep_order: bool, tmp_path: Path, tiny_model: Path) -> None:
    """As in MIMIC-CXR: one study, several images with views of their own."""
    rows = (
        *(("S1", "Left effusion.", "PA"), ("S2", "Clear lungs.", "AP"), ("S1", "Left effusion.", "LATERAL")),
        *(("S2", "Clear lungs.", ""), ("S1", "Left effusion.", "AP"), ("S3", "", "")),
    )
    table = write_table(tmp_path / "t.csv", rows, ("study_id", "impression", "view"))
    out, ids = tmp_path / "out", tmp_path / "ids.csv"
    refused = succeed(command(table, tmp_path / "without", tiny_model))
    assert "duplicate id 3" in refused
    assert "one row for each image? --per-image" in refused
    options = ("--per-image", "--images-per-report", "2", "--id-map", str(ids))
    succeed(command(table, out, tiny_model, *options, keep_order=keep_order))
    says = manifest(out)
    assert says["counts"] == {"reports": 5, "rejected": 1, "samples": 10}
    mapped = [line.split(",") for line in ids.read_text().splitlines()[1:]]
    keys = {study: [key for one, key in mapped if one == study] for study in ("S1", "S2")}
    assert [len(set(keys[study])) for study in ("S1", "S2")] == [6, 4]
    found = metadata(out)
    assert set(found) == set(keys["S1"]) | set(keys["S2"])
    views = ["PA", "PA", "LATERAL", "LATERAL", "AP", "AP"]
    for number, key in enumerate(sorted(keys["S1"])):
        assert key.endswith(f"-{number:02d}")
        assert (found[key]["image_index"], found[key].get("view")) == (number, views[number])
    assert len({raw for name, raw in members(out).items() if name.endswith(".png")}) == 10


def test_samples_are_in_the_order_of_their_keys(tmp_path: Path, tiny_model: Path, table: Path) -> None:
    options, out = ("--images-per-report", "2", "--id-map", str(tmp_path / "ids.csv")), tmp_path / "out"
    arguments = command(table, out, tiny_model, *options, keep_order=False)
    succeed(arguments)
    keys = list(metadata(out))
    assert keys == sorted(keys)
    assert len(keys) == 14
    assert manifest(out)["plan"]["order"] == "key"
    assert "already complete" in succeed(arguments)
    # The images themselves are those of any other order.
    succeed(command(table, tmp_path / "kept", tiny_model, *options))
    kept = list(metadata(tmp_path / "kept"))
    assert sorted(kept) == keys
    ids = [line.split(",")[1] for line in (tmp_path / "ids.csv").read_text().splitlines()[1:]]
    assert ids == kept
    assert "order" in refuse(command(table, out, tiny_model, *options))
    # In parts, the same bytes.
    for part in (2, 1):
        again = command(table, tmp_path / "parts", tiny_model, *options, "--part", f"{part}/2", keep_order=False)
        succeed(again)
    assert hashes(tmp_path / "parts") == hashes(out)


def test_strict_stops_at_the_first_such_row(tmp_path: Path, tiny_model: Path) -> None:
    reports = write_table(tmp_path / "reports.csv", BAD_ROWS)
    message = refuse(command(reports, tmp_path / "out", tiny_model, "--strict"))
    assert "line 3: empty text" in message
    assert not (tmp_path / "out").exists()


def test_limit_counts_usable_rows(tmp_path: Path, tiny_model: Path) -> None:
    reports = write_table(tmp_path / "reports.csv", BAD_ROWS)
    succeed(command(reports, tmp_path / "out", tiny_model, "--limit", "2"))
    assert manifest(tmp_path / "out")["counts"] == {"reports": 2, "rejected": 1, "samples": 2}


def test_label_columns_win_over_the_text(tmp_path: Path, tiny_model: Path) -> None:
    header = ("report_id", "report", "Cardiomegaly", "Edema", "Pneumonia")
    reports = write_table(tmp_path / "t.csv", (("a", "No fracture. Cardiomegaly.", "0", "-1", ""),), header)
    succeed(command(reports, tmp_path / "out", tiny_model))
    [sample] = metadata(tmp_path / "out").values()
    assert sample["findings"]["Cardiomegaly"] == {"status": "absent", "side": "", "source": "column"}
    assert sample["findings"]["Edema"]["status"] == "uncertain"
    assert sample["findings"]["Fracture"] == {"status": "absent", "side": "", "source": "report"}
    assert sample["findings"]["Pneumonia"]["status"] == "not mentioned"


# What the user can mend


def test_a_missing_table(tmp_path: Path, tiny_model: Path) -> None:
    assert "no such file" in refuse(command(tmp_path / "none.csv", tmp_path / "out", tiny_model))


def test_a_column_that_is_not_there(tmp_path: Path, tiny_model: Path, table: Path) -> None:
    message = refuse(command(table, tmp_path / "out", tiny_model, "--findings-column", "finding"))
    assert "'finding' not found" in message
    assert "did you mean: findings" in message


@pytest.mark.parametrize("rows", [(), (("a", "", "", "", "", ""),)])
def test_a_table_without_a_usable_row(rows: tuple[tuple[str, ...], ...], tmp_path: Path, tiny_model: Path) -> None:
    reports = write_table(tmp_path / "t.csv", rows)
    message = refuse(command(reports, tmp_path / "out", tiny_model))
    assert "no usable row" in message
    assert ("the first: line 2: empty text" in message) == bool(rows)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else(tmp_path: Path, tiny_model: Path, table: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    assert "not empty" in refuse(command(table, tmp_path, tiny_model))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    (tmp_path / "thesis.tex").rename(tmp_path / ".thesis.tex.partial")
    assert "not empty" in refuse(command(table, tmp_path, tiny_model))
    assert [path.name for path in tmp_path.iterdir()] == [".thesis.tex.partial"]


def test_a_file_in_the_way(tmp_path: Path, tiny_model: Path, table: Path) -> None:
    (tmp_path / "out").write_text("a file")
    assert "is a file" in refuse(command(table, tmp_path / "out", tiny_model))
    assert "cannot write" in refuse(command(table, tmp_path / "out" / "below", tiny_model))


def test_another_plan_in_the_folder(made: tuple[Path, str], tiny_model: Path, table: Path, key_file: Path) -> None:
    before = hashes(made[0])
    usual = ("--images-per-report", "2", "--id-key", str(key_file))
    message = refuse(command(table, made[0], tiny_model, *usual, "--steps", "3", "--seed", "5"))
    assert "sampling.steps: 2 there, 3 now" in message
    assert "seed: 0 there, 5 now" in message
    assert "shards" not in message
    assert hashes(made[0]) == before


def test_a_failure_before_the_first_shard_does_not_bind_the_next_run(
    tmp_path: Path, tiny_model: Path, table: Path
) -> None:
    out = tmp_path / "out"
    assert "1000 timesteps" in refuse(command(table, out, tiny_model, "--steps", "5000"))
    succeed(command(table, out, tiny_model, "--steps", "2"))
    assert "steps: 2 there, 3 now" in refuse(command(table, out, tiny_model, "--steps", "3"))


@pytest.mark.parametrize("content", ['{"plan": 5}', '{"plan": null}', "7", "[]", "{}"])
def test_a_manifest_of_something_else(content: str, tmp_path: Path, tiny_model: Path, table: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "manifest.json").write_text(content)
    assert "not a file cxrsynth wrote" in refuse(command(table, out, tiny_model))
    (out / "manifest.json").unlink()
    (out / "manifest.json").mkdir()
    assert "not a file cxrsynth wrote" in refuse(command(table, out, tiny_model))


def test_a_guidance_without_end_and_a_name_too_long(tmp_path: Path, tiny_model: Path, table: Path) -> None:
    assert "--guidance inf" in refuse(command(table, tmp_path / "out", tiny_model, "--guidance", "inf"))
    assert "too long for this file system" in refuse(command(table, tmp_path / ("n" * 300), tiny_model))
    assert not list(tmp_path.iterdir())


def test_another_table_in_the_folder(made: tuple[Path, str], tmp_path: Path, tiny_model: Path, key_file: Path) -> None:
    other = write_table(tmp_path / "reports.csv", ROWS[1:])
    message = refuse(command(other, made[0], tiny_model, "--images-per-report", "2", "--id-key", str(key_file)))
    assert "reports: " in message
    assert "seed" not in message


def test_a_missing_model(tmp_path: Path, table: Path) -> None:
    assert "no such folder" in refuse(command(table, tmp_path / "out", tmp_path / "model"))
    (tmp_path / "empty").mkdir()
    assert "missing unet/" in refuse(command(table, tmp_path / "out", tmp_path / "empty"))


def test_pickled_weights_are_refused(tmp_path: Path, tiny_model: Path, table: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    weights = model / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    message = refuse(command(table, tmp_path / "out", model))
    assert "no safetensors weights" in message
    assert "unet" in message


def test_damaged_weights_are_refused(tmp_path: Path, tiny_model: Path, table: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    weights = model / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "cannot be loaded" in refuse(command(table, tmp_path / "out", model))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("text_encoder/model.safetensors", "version https://git-lfs.github.com/spec/v1", "cannot be loaded"),
        ("text_encoder/model.safetensors", "", "cannot be loaded"),
        ("scheduler/scheduler_config.json", "[]", "expected an object"),
        ("scheduler/scheduler_config.json", '{"prediction_type": "score"}', "'score', expected epsilon"),
        (
            "scheduler/scheduler_config.json",
            '{"_class_name": "EDMEulerScheduler"}',
            "are of their own kind",
        ),
        ("scheduler/scheduler_config.json", '{"beta_schedule": "none"}', "cannot be loaded"),
        ("scheduler/scheduler_config.json", '{"num_train_timesteps": "many"}', "cannot be loaded"),
        ("unet/config.json", "5", "cannot be loaded"),
    ],
)
def test_damaged_parts_are_refused(
    name: str, content: str, said: str, tmp_path: Path, tiny_model: Path, table: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    (model / name).write_text(content)
    message = refuse(command(table, tmp_path / "out", model))
    assert said in message
    assert "Traceback" not in message


@pytest.mark.parametrize(
    ("named", "options", "said"),
    [
        ("DDIM", ["--steps", "1001"], "--steps 1001: the model's schedule has 1000 timesteps"),
        ("FlowMatchEulerDiscrete", ["--sampler", "ddim"], "--sampler ddim: the model learned by flow matching"),
        ("DPMSolverSDE", ["--sampler", "model"], "DPMSolverSDEScheduler draws its noise from a generator of its own"),
    ],
)
def test_a_sampler_that_does_not_fit_is_refused_before_anything_is_written(
    named: str, options: list[str], said: str, tmp_path: Path, tiny_model: Path, table: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    content = json.dumps({"_class_name": f"{named}Scheduler"})
    (model / "scheduler" / "scheduler_config.json").write_text(content)
    index = json.loads((model / "model_index.json").read_text())
    (model / "model_index.json").write_text(json.dumps(index | {"scheduler": ["diffusers", f"{named}Scheduler"]}))
    assert said in refuse(command(table, tmp_path / "out", model, *options))
    assert not (tmp_path / "out").exists()


def test_a_dry_run_finds_weights_whose_images_are_not_numbers(tmp_path: Path, tiny_model: Path, table: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    weights = model / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    state["conv_out.bias"][0] = 3e38
    save_file(state, weights, metadata={"format": "pt"})
    assert "its images are not finite" in refuse(command(table, tmp_path / "out", model, "--dry-run"))


def test_a_lora_without_a_number_as_its_scale_is_refused(tmp_path: Path, tiny_model: Path, table: Path) -> None:
    result = CliRunner().invoke(app, command(table, tmp_path / "out", tiny_model, "--lora", "weights=much"))
    assert result.exit_code == 2
    assert "expected PATH or" in result.output


def test_another_lora_scale_is_another_plan(tmp_path: Path, tiny_model: Path, table: Path) -> None:
    lora = lora_of(tiny_model, tmp_path / "lora")
    out = tmp_path / "out"
    succeed(command(table, out, tiny_model, "--limit", "1", "--lora", f"{lora}=0.5"))
    again = command(table, out, tiny_model, "--limit", "1", "--lora", str(lora))
    assert "model.digest" in refuse(again)


def test_a_tokenizer_without_a_length_gets_that_of_the_text_encoder(
    made: tuple[Path, str], tmp_path: Path, tiny_model: Path, table: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    config = model / "tokenizer" / "tokenizer_config.json"
    settings = json.loads(config.read_text())
    del settings["model_max_length"]
    config.write_text(json.dumps(settings))
    succeed(command(table, tmp_path / "out", model))
    assert manifest(tmp_path / "out")["counts"]["samples"] == 7


@pytest.mark.parametrize(
    ("text", "named"), [("{", "cxrsynth.json"), ('{"promt": "canonical"}', "promt"), ('{"prompt": "x"}', "prompt")]
)
def test_a_broken_model_description(text: str, named: str, tmp_path: Path, tiny_model: Path, table: Path) -> None:
    model = described(tiny_model, tmp_path / "model", text)
    message = refuse(command(table, tmp_path / "out", model))
    assert "not a valid model description" in message
    assert named in message


def test_options_that_do_not_go_together(tmp_path: Path, tiny_model: Path, table: Path) -> None:
    result = run(command(table, tmp_path / "out", tiny_model, "--unpacked"))
    assert result.code == 2
    assert "needs --format dicom" in result.text
    assert "fp16" in refuse(command(table, tmp_path / "out", tiny_model, "--precision", "fp16"))
    assert "1000 timesteps" in refuse(command(table, tmp_path / "out", tiny_model, "--steps", "2000"))


# Runs that make nothing


def test_a_complete_folder_is_left_alone(made: tuple[Path, str], tiny_model: Path, table: Path, key_file: Path) -> None:
    def times() -> dict[str, int]:
        return {str(path): path.stat().st_mtime_ns for path in [made[0], *made[0].rglob("*")]}

    before = times()
    printed = succeed(command(table, made[0], tiny_model, "--images-per-report", "2", "--id-key", str(key_file)))
    assert "already complete (14 images)" in printed
    assert times() == before


@pytest.mark.parametrize("options", [(), ("--format", "dicom", "--unpacked")], ids=["shards", "file-set"])
def test_damage_in_a_complete_folder_is_reported(
    options: tuple[str, ...], tmp_path: Path, table: Path, tiny_model: Path
) -> None:
    out = tmp_path / "out"
    arguments = command(table, out, tiny_model, *options)
    succeed(arguments)
    listed = manifest(out)
    names = [shard["name"] for shard in listed["shards"]] or sorted(listed["files"])
    (out / names[0]).write_bytes((out / names[0]).read_bytes()[:-1])
    (out / names[-1]).unlink()
    printed = refuse(arguments)
    assert f"2 of {len(names)} files" in printed
    assert f"{names[0]}, {names[-1]}" in printed
    assert "new folder" in printed


def test_a_dry_run_says_counts_and_writes_nothing(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "user-data"))  # without an id key yet
    reports = write_table(tmp_path / "reports.csv", BAD_ROWS)
    printed = succeed(command(reports, tmp_path / "out", tiny_model, "--images-per-report", "3", "--dry-run"))
    assert "9 images of 32 x 32 pixels from 3 reports (3 rows rejected)" in printed
    assert "shards: 3," in printed
    assert "parts or processes would have no shard" not in printed
    assert [path.name for path in tmp_path.iterdir()] == ["reports.csv"]


@pytest.mark.parametrize("terminal", [True, False])
def test_a_dry_run_shows_the_first_prompt_on_a_terminal_only(
    terminal: bool, tmp_path: Path, tiny_model: Path, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "is_terminal", lambda: terminal)
    printed = succeed(command(table, tmp_path / "out", tiny_model, "--prompt", "findings", "--dry-run"))
    assert ("first prompt: Zorblattic heart size is normal." in printed) == terminal
    assert ("first prompt: shown on a terminal only" in printed) != terminal
    assert ("Zorblattic" in printed) == terminal


def test_a_dry_run_in_python_keeps_the_prompt_out_of_what_it_prints(
    tmp_path: Path, tiny_model: Path, table: Path
) -> None:
    planned = cxrsynth.generate(table, tmp_path / "out", model=str(tiny_model), prompt="findings", dry_run=True)
    assert planned.first_prompt == "Zorblattic heart size is normal."
    assert "Zorblattic" not in f"{planned!r} {planned.estimate}"


# DICOM


@pytest.fixture(scope="module")
def dicoms(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, table: Path, key_file: Path) -> Path:
    out = tmp_path_factory.mktemp("dicom") / "out"
    succeed(command(table, out, tiny_model, "--format", "dicom", "--id-key", str(key_file)))
    return out


def test_dicom_shards_hold_the_same_pictures(
    dicoms: Path, tmp_path: Path, tiny_model: Path, table: Path, key_file: Path
) -> None:
    from pydicom import dcmread

    succeed(command(table, tmp_path / "b", tiny_model, "--image-format", "png16", "--id-key", str(key_file)))
    pictures, objects = members(tmp_path / "b"), members(dicoms)
    assert sorted(objects) == sorted(name.replace(".png", ".dcm") for name in pictures)
    for name in (name for name in objects if name.endswith(".dcm")):
        dataset = dcmread(io.BytesIO(objects[name]))
        assert (dataset.BitsStored, dataset.SyntheticData) == (12, "YES")
        assert dataset.PatientID == f"SYN-{name.partition('-')[0]}"
        fine = image_of(pictures[name.replace(".dcm", ".png")]) / 65535
        assert np.abs(dataset.pixel_array / 4095 - fine).max() <= 0.5 / 4095 + 0.51 / 65535
    everything = b"".join(path.read_bytes() for path in dicoms.iterdir())
    assert not [word for word in SECRET_WORDS if word.encode() in everything]


def test_unpacked_is_a_file_set_without_tars(
    dicoms: Path, tmp_path: Path, tiny_model: Path, table: Path, key_file: Path
) -> None:
    from pydicom.fileset import FileSet

    for name in ("a", "b"):
        options = ("--format", "dicom", "--unpacked", "--id-key", str(key_file), "--include-text", "sanitized")
        succeed(command(table, tmp_path / name, tiny_model, *options))
    out = tmp_path / "a"
    found = hashes(out)
    assert found == hashes(tmp_path / "b")
    assert {name.partition("/")[0] for name in found} == {
        "README.md",
        "fileset",
        "manifest.json",
        "metadata.jsonl",
        "preview.png",
    }
    says = manifest(out)
    assert says["shards"] == []
    assert says["files"] == {name: found[name] for name in found if name.startswith(("fileset/", "metadata"))}
    objects = [instance.load() for instance in FileSet(out / "fileset" / "DICOMDIR")]
    assert len(objects) == 7
    rows = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    read = {row["path"]: pydicom.dcmread(out / row["path"], stop_before_pixels=True) for row in rows}
    assert {path: str(one.SOPInstanceUID) for path, one in read.items()} == {
        row["path"]: row["sop_instance_uid"] for row in rows
    }
    assert all(row["key"].startswith(read[row["path"]].PatientID.removeprefix("SYN-")) for row in rows)
    assert len(read) == 7
    assert 'storescu +sd +r +sp "IM*"' in (out / "README.md").read_text()
    rows = [json.loads(line) for line in (out / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["key"] for row in rows] == list(metadata(dicoms))
    assert all(row["synthetic"] is True for row in rows)
    assert "effusion" in rows[0]["text"]
    assert "7 images" in (out / "README.md").read_text()
    assert "webdataset" not in (out / "README.md").read_text()


def test_a_run_ended_after_the_manifest_is_cleaned_up(
    tmp_path: Path, tiny_model: Path, table: Path, key_file: Path
) -> None:
    arguments = command(
        table, tmp_path / "out", tiny_model, "--format", "dicom", "--unpacked", "--id-key", str(key_file)
    )
    succeed(arguments)
    before = hashes(tmp_path / "out")
    (tmp_path / "out" / "cxr-000000.tar").write_bytes(b"a stage")
    (tmp_path / "out" / ".cxrsynth").mkdir()
    (tmp_path / "out" / ".cxrsynth" / "cxr-000000.tar.json").write_text("{}")
    assert "already complete" in succeed(arguments)
    assert hashes(tmp_path / "out") == before
    assert not (tmp_path / "out" / ".cxrsynth").exists()


# Requests to the model


def test_unsupported_findings_are_warned_of_once_and_recorded(
    tmp_path: Path, canonical_model: Path, table: Path
) -> None:
    out = tmp_path / "out"
    printed = succeed(command(table, out, canonical_model, "--shard-size", "14", "--images-per-report", "2"))
    [warning] = [line for line in printed.splitlines() if "warning:" in line]
    assert "tiny-canonical never saw in training" in warning
    for name in ("Edema", "Fracture", "Pneumonia (uncertain)", "Pleural Effusion (side)", "view LATERAL"):
        assert name in warning
    assert "Cardiomegaly" not in warning
    samples = list(metadata(out).values())
    assert samples[0]["unsupported_findings"] == "Pleural Effusion (side)"
    assert samples[0]["findings"]["Pleural Effusion"]["side"] == "left"
    assert samples[0]["prompt"] == "PA view. Adult woman. Pleural effusion. No cardiomegaly."
    assert samples[2]["unsupported_findings"] == "age group child; Edema"
    assert samples[4]["unsupported_findings"] == ""
    assert manifest(out)["unsupported_findings"]["Edema"] == 2
    assert "Edema: 2 images" in (out / "README.md").read_text()


def test_an_unsupported_view_is_in_no_dicom_object(tmp_path: Path, canonical_model: Path, table: Path) -> None:
    """Archives sort by ViewPosition; only the JSON records that a lateral view was requested."""
    out = tmp_path / "out"
    succeed(command(table, out, canonical_model, "--format", "dicom"))
    requested = {key: sample["unsupported_findings"] for key, sample in metadata(out).items()}
    views = {
        name.removesuffix(".dcm"): pydicom.dcmread(io.BytesIO(raw)).get("ViewPosition")
        for name, raw in members(out).items()
        if name.endswith(".dcm")
    }
    lateral = [key for key, names in requested.items() if "view LATERAL" in names]
    assert [views[key] for key in lateral] == [None] * 1
    assert {"PA", "AP"} <= set(views.values())


@pytest.mark.parametrize(
    ("options", "stated"),
    [
        ((), {}),  # the impression alone
        (("--prompt", "canonical"), {"ViewPosition": "PA", "PatientSex": "F"}),
        (("--prompt-template", "{sex}: {impression}"), {"PatientSex": "F"}),
        (("--prompt-template", "{canonical}"), {"ViewPosition": "PA", "PatientSex": "F"}),
    ],
)
def test_dicom_states_what_was_asked_of_the_model(
    options: tuple[str, ...], stated: dict[str, str], tmp_path: Path, tiny_model: Path
) -> None:
    """A view that stands in the table, and in no prompt, is none of the image's."""
    rows = (("a", "IMPRESSION: Small left pleural effusion.", "PA", "F"),)
    table = write_table(tmp_path / "t.csv", rows, ("report_id", "report", "view", "sex"))
    succeed(command(table, tmp_path / "out", tiny_model, "--format", "dicom", *options))
    [raw] = [raw for name, raw in members(tmp_path / "out").items() if name.endswith(".dcm")]
    found = pydicom.dcmread(io.BytesIO(raw))
    assert {name: found.get(name) for name in ("ViewPosition", "PatientSex") if found.get(name)} == stated
    [sample] = metadata(tmp_path / "out").values()
    assert (sample["view"], sample["sex"]) == ("PA", "F")  # of the report


def test_every_unsupported_finding_is_named_in_a_warning(tmp_path: Path, canonical_model: Path, table: Path) -> None:
    printed = succeed(command(table, tmp_path / "out", canonical_model, "--shard-size", "1"))
    warnings = " ".join(line for line in printed.splitlines() if "warning:" in line)
    assert [name for name in manifest(tmp_path / "out")["unsupported_findings"] if name not in warnings] == []


def test_a_language_left_out_is_said_at_the_end_and_in_the_card(tmp_path: Path, tiny_model: Path) -> None:
    thai = "\u0e1b\u0e2d\u0e14\u0e1b\u0e01\u0e15\u0e34 \u0e44\u0e21\u0e48\u0e1e\u0e1a\u0e19\u0e49\u0e33"
    rows = tuple((str(number), thai, "1") for number in range(13))
    reports = write_table(tmp_path / "t.csv", rows, ("report_id", "findings", "Edema"))
    said = " ".join(succeed(command(reports, tmp_path / "out", tiny_model, "--shard-size", "20")).split())
    assert "lines 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 3 more: in a language" in said
    assert "13 reports of 13 in a language that de-identification does not cover" in said
    card = (tmp_path / "out" / "README.md").read_text()
    assert "In a language that de-identification does not cover, so that no text was used: 13 reports." in card


def test_what_could_not_be_read_or_contradicts_itself_is_counted(tmp_path: Path, canonical_model: Path) -> None:
    rows = (("a", "Kein Pneumothorax.", "", ""), ("b", "Herz vergrößert.", "1", "1"), ("c", "No effusion.", "", ""))
    reports = write_table(tmp_path / "t.csv", rows, ("report_id", "findings", "No Finding", "Pneumonia"))
    printed = succeed(command(reports, tmp_path / "out", canonical_model, "--images-per-report", "2"))
    said = " ".join(printed.split())
    assert "1 of 3 reports is not in English: no findings were read; give label columns" in said
    assert manifest(tmp_path / "out")["reports_not_in_english"] == 1
    assert manifest(tmp_path / "out")["label_contradictions"] == {"columns": 1}
    labels = [sample["findings"] for sample in metadata(tmp_path / "out").values()]
    assert [one["Pneumothorax"]["status"] for one in labels] == ["not mentioned"] * 6


def test_a_prompt_too_long_is_cut_and_counted(tmp_path: Path, tiny_model: Path) -> None:
    long = "Heart size is normal. No effusion. " + "Left lower lobe pneumonia with bizarre words. " * 4
    rows = (("a", long, "No effusion."), ("b", "No effusion.", ""), ("c", long, "Clear lungs."))
    reports = write_table(tmp_path / "t.csv", rows, ("report_id", "findings", "impression"))
    succeed(command(reports, tmp_path / "report", tiny_model, "--prompt", "report", "--images-per-report", "2"))
    assert manifest(tmp_path / "report")["prompts_truncated"] == 2
    cut = [sample["prompt_truncated"] for sample in metadata(tmp_path / "report").values()]
    assert cut == [True, True, False, False, True, True]
    succeed(command(reports, tmp_path / "impression", tiny_model, "--images-per-report", "2"))
    assert manifest(tmp_path / "impression")["prompts_truncated"] == 0


# Sampling


def test_a_first_word_longer_than_the_tokenizer_takes_is_cut_and_counted(
    tmp_path: Path, tiny_model: Path, networks: DiffusionModel
) -> None:
    """An empty prompt would give any chest X-ray."""
    word = "Hydropneumopericardiumthoracis"
    built = PromptBuilder(PromptStyle.IMPRESSION, None, networks.fits).build(Report("a", line=2, impression=word))
    assert built.truncated
    assert 15 < len(built.prompt) < len(word)
    assert word.startswith(built.prompt)
    assert networks.fits(built.prompt)
    assert not networks.fits(word[: len(built.prompt) + 1])
    table = write_table(tmp_path / "reports.csv", (("a", "", word, "PA", "F", "61"),))
    succeed(command(table, tmp_path / "out", tiny_model))
    assert manifest(tmp_path / "out")["prompts_truncated"] == 1


def test_a_table_that_vanishes_once_it_is_read_is_named(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, read = write_table(tmp_path / "reports.csv"), cxrsynth.generation.generate.read_rows

    @contextmanager
    def read_and_remove(*given: Any, **named: Any) -> Iterator[Any]:
        with read(*given, **named) as rows:
            table.unlink()
            yield rows

    monkeypatch.setattr(cxrsynth.generation.generate, "read_rows", read_and_remove)
    stopped = run(command(table, tmp_path / "out", tiny_model))
    assert stopped.code == 2
    assert "reports.csv: no such file" in stopped.text
    assert "write" not in stopped.text
    assert not (tmp_path / "out").exists()


def test_weights_that_vanish_before_they_are_loaded_are_named(
    tmp_path: Path, tiny_model: Path, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, begin = tmp_path / "model", cxrsynth.generation.generate._is_complete
    shutil.copytree(tiny_model, model)

    def begin_and_remove(*given: Any) -> bool:
        (model / "vae" / "config.json").unlink()
        return begin(*given)

    monkeypatch.setattr(cxrsynth.generation.generate, "_is_complete", begin_and_remove)
    message = refuse(command(table, tmp_path / "out", model))
    assert f"{model / 'vae'}: cannot be loaded" in message
    assert "write" not in message


def test_noise_depends_on_key_and_seed_alone() -> None:
    shape = (4, 8, 8)
    noise = seeded_noise(shape, 3, "abc-00")
    torch.manual_seed(1)
    torch.randn(5)
    assert torch.equal(seeded_noise(shape, 3, "abc-00"), noise)
    assert not torch.equal(seeded_noise(shape, 4, "abc-00"), noise)
    assert not torch.equal(seeded_noise(shape, 3, "abc-01"), noise)
    many = torch.stack([seeded_noise(shape, 0, f"k-{index}") for index in range(200)])
    assert many.dtype == torch.float32
    assert abs(many.mean()) < 0.02
    assert abs(many.std() - 1) < 0.02


def test_an_image_does_not_depend_on_its_batch(networks: DiffusionModel) -> None:
    noise = torch.stack([seeded_noise(networks.latent_shape, 0, f"k-{index}") for index in range(4)])
    prompts = ["left effusion.", "clear lungs.", "", "heart size is normal."]

    def sampled(places: slice) -> torch.Tensor:
        return sample_images(networks, prompts[places], noise[places], sampler=Sampler.DDIM, steps=3, guidance=4.0)

    together = sampled(slice(None))
    apart = torch.cat([sampled(slice(index, index + 1)) for index in range(4)])
    assert together.shape == (4, 1, 32, 32)
    assert not torch.allclose(together[0], together[1], atol=1e-2)
    assert torch.allclose(together, apart, atol=1e-4)


def test_the_samplers_differ_and_are_finite(networks: DiffusionModel) -> None:
    noise = seeded_noise(networks.latent_shape, 0, "k")[None]
    images = {
        sampler: sample_images(networks, ["left effusion."], noise, sampler=sampler, steps=4, guidance=4.0)
        for sampler in Sampler
    }
    for image in images.values():
        assert image.isfinite().all()
        assert image.min() >= 0
        assert image.max() <= 1
        assert image.std() > 0
    assert not torch.allclose(images[Sampler.DDIM], images[Sampler.DPMPP], atol=1e-3)


def test_guidance_and_prompt_change_the_image(networks: DiffusionModel) -> None:
    noise = seeded_noise(networks.latent_shape, 0, "k")[None]

    def sampled(prompt: str, guidance: float) -> torch.Tensor:
        return sample_images(networks, [prompt], noise, sampler=Sampler.DDIM, steps=2, guidance=guidance)

    plain = sampled("left effusion.", 1.0)
    assert not torch.equal(plain, sampled("clear lungs.", 1.0))
    assert not torch.equal(plain, sampled("left effusion.", 8.0))
    assert torch.allclose(plain, sampled("left effusion.", 1.0 + 1e-6), atol=1e-4)
    assert torch.allclose(sampled("", 1.0), sampled("", 8.0), atol=1e-4)


@pytest.mark.parametrize("sampler", list(Sampler))
def test_sampling_agrees_with_diffusers(sampler: Sampler, networks: DiffusionModel, tiny_model: Path) -> None:
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

    prompts = ["left pleural effusion.", "clear lungs."]
    noise = torch.stack([seeded_noise(networks.latent_shape, 0, f"k-{index}") for index in range(2)])
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        pipeline = StableDiffusionPipeline.from_pretrained(tiny_model, safety_checker=None)
        if sampler is Sampler.DPMPP:
            pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
        pipeline.set_progress_bar_config(disable=True)
        latents = pipeline(
            prompts, latents=noise, num_inference_steps=5, guidance_scale=3.0, output_type="latent"
        ).images
        pixels = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    theirs = (pixels / 2 + 0.5).clamp(0, 1).mean(dim=1, keepdim=True)  # gray of the image that a pipeline gives
    ours = sample_images(networks, prompts, noise, sampler=sampler, steps=5, guidance=3.0)
    assert theirs.std() > 0.01
    assert torch.allclose(ours, theirs, atol=1e-3)


def test_the_sampler_is_the_models_unless_one_is_named(
    tmp_path: Path, tiny_model: Path, table: Path, key_file: Path
) -> None:
    model = described(tiny_model, tmp_path / "model", {"defaults": {"sampler": "dpm++"}})
    usual = ("--id-key", str(key_file), "--steps", "4", "--limit", "1")
    pictures = []
    for options, sampler in (((), "dpm++"), (("--sampler", "ddim"), "ddim"), (("--sampler", "dpm++"), "dpm++")):
        out = tmp_path / f"out-{len(pictures)}"
        succeed(command(table, out, model, *usual, *options))
        assert {sample["sampling"]["sampler"] for sample in metadata(out).values()} == {sampler}
        pictures.append(next(raw for name, raw in members(out).items() if name.endswith(".png")))
    assert pictures[0] != pictures[1]
    assert pictures[0] == pictures[2]
    message = refuse(command(table, tmp_path / "out-1", model, *usual))
    assert "sampling.sampler: 'ddim' there, 'dpm++' now" in message


@pytest.mark.parametrize(
    ("given", "clips"),
    [({}, True), ({"clip_sample": False}, False), ({"_class_name": "PNDMScheduler"}, False)],
)
def test_ddim_clips_if_the_models_own_scheduler_does(
    given: dict[str, Any], clips: bool, networks: DiffusionModel
) -> None:
    """DDIM clips by default; many folders have the configuration of a scheduler that lacks the setting."""
    model = replace(networks, components=replace(networks.components, scheduler_config=given))
    assert make_scheduler(model, Sampler.DDIM, steps=2).config.clip_sample is clips


def test_latents_of_stable_diffusion_are_never_clipped(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "model")
    path = tmp_path / "model" / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"clip_sample": True}))
    model = load_model(resolve_model(str(tmp_path / "model")), device=torch.device("cpu"), precision=Precision.FP32)
    for sampler in (Sampler.DDIM, Sampler.MODEL):
        assert not make_scheduler(model, sampler, steps=2).config.clip_sample


def test_auto_takes_a_device_that_is_here(tiny_model: Path) -> None:
    from cxrsynth.diffusion.model import choose_device, choose_precision

    device = choose_device(Device.AUTO)
    assert torch.ones(1, device=device).sum() == 1
    assert choose_precision(Precision.AUTO, torch.device("cpu")) in (Precision.FP32, Precision.BF16)


@pytest.mark.parametrize(("natively", "chosen"), [(True, Precision.BF16), (False, Precision.FP16)])
def test_auto_takes_float16_on_cards_that_emulate_bfloat16(
    natively: bool, chosen: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cxrsynth.diffusion.model import choose_precision

    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: natively or including_emulation
    )
    assert choose_precision(Precision.AUTO, torch.device("cuda")) is chosen


def test_cpus_with_and_without_units_for_bfloat16_have_different_names(monkeypatch: pytest.MonkeyPatch) -> None:
    from cxrsynth.diffusion.model import hardware_name

    named = set()
    for units in ({}, {"avx512_bf16": True, "amx_bf16": False}, {"avx512_bf16": True, "amx_bf16": True}):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda units=units: units, raising=False)
        named.add(hardware_name(torch.device("cpu")).partition(torch.backends.cpu.get_cpu_capability())[2])
    assert named == {"", ", avx512_bf16", ", avx512_bf16, amx_bf16"}


def test_threads_of_a_batch_are_refused_off_the_cpu(
    tmp_path: Path, tiny_model: Path, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "choose_device", lambda *_, **__: torch.device("cuda", 0))
    message = refuse(command(table, tmp_path / "out", tiny_model, "--device", "cuda", "--threads-per-batch", "2"))
    assert "--threads-per-batch 2: is for batches on the CPU, found cuda" in message
    assert not (tmp_path / "out").exists()


def test_a_file_of_a_complete_set_that_cannot_be_read_is_named(tmp_path: Path, tiny_model: Path, table: Path) -> None:
    arguments = command(table, tmp_path / "out", tiny_model, "--limit", "2")
    succeed(arguments)
    shard = tmp_path / "out" / "cxr-000000.tar"
    shard.unlink()
    shard.mkdir()  # opening it raises what a file without read permission does
    assert f"{shard}: Is a directory" in refuse(arguments)
