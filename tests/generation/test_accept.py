"""Images that fail are drawn again: what stays, what is recorded, and that it all depends on the plan alone."""

import csv
import io
import json
import re
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import torch
from PIL import Image

from cxrsynth import open_dataset
from cxrsynth.generation.accept import acceptance_plan
from cxrsynth.generation.accept_counts import NotAccepted
from cxrsynth.images.collection import open_collection
from cxrsynth.images.image import Radiograph
from cxrsynth.images.pictures import squared
from cxrsynth.metrics.quality import checks
from cxrsynth.options import parse_accept_judges
from cxrsynth.reports.table.rows import Report
from cxrsynth.rewards.digests import backend_digest
from cxrsynth.rewards.subject import AGREEMENTS, load_agreement
from cxrsynth.settings import DEFAULT_FAMILY, REWARDS, TUNING_FAMILY, AcceptSettings
from cxrsynth.shards.folder import OutputFolder
from tests.generation.making import command, hashes, manifest, members, metadata, write_table
from tests.generation.test_generate import Result, run
from tests.rewards.making import HONEST, install_reward

# The mean gray level of an image, undefined for one report.
BRIGHTNESS = HONEST.replace(
    "return images.mean((1, 2, 3))",
    "return torch.where(torch.tensor(['clear' in r.text for r in reports]), torch.nan, images.mean((1, 2, 3)))",
)
# A few channels of random weights make no chest.
CHECKS = [f"--ignore-check={name}" for name in checks.CHECKS]
BASE = ("--images-per-report", "2", "--include-text", "sanitized", "--shard-size", "5")


class Home:
    """A table, a model, an id key, and a reward of one's own with the threshold that about half of the images pass."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.model, self.table, self.key = model, write_table(folder / "reports.csv"), folder / "id.key"
        self.key.write_text("0123456789abcdef0123456789abcdef")
        self.key.chmod(0o600)
        self.plain = folder / "plain"
        assert self.run(self.plain).code == 0
        self.threshold = float(np.median([brightness(image) for image in images(self.plain).values()]))

    def run(self, out: Path, *options: str) -> Result:
        return run(command(self.table, out, self.model, *BASE, "--id-key", str(self.key), *options))

    def accept(self, out: Path, *options: str) -> Result:
        rules = ("--accept", "--judge", "own=any", f"--min=own={self.threshold!r}", *CHECKS)
        return self.run(out, *rules, "--attempts", "3", *options)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Home]:
    folder = tmp_path_factory.mktemp("accept")
    with pytest.MonkeyPatch.context() as patched:
        install_reward(folder / "package", BRIGHTNESS, patched)
        yield Home(folder, tiny_model)


@pytest.fixture(scope="module")
def accepted(home: Home, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A set whose images were drawn up to three times, and the output of the command. Do not change it."""
    out = tmp_path_factory.mktemp("accepted") / "out"
    done = home.accept(out)
    assert done.code == 0, done.text
    return out, done.text


def images(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    return {
        name.removesuffix(".png"): np.asarray(Image.open(io.BytesIO(raw)))
        for name, raw in members(folder).items()
        if name.endswith(".png")
    }


def brightness(image: np.ndarray[Any, Any]) -> float:
    return float(image.mean() / 255)


def test_images_that_fail_are_drawn_again(home: Home, accepted: tuple[Path, str]) -> None:
    out, printed = accepted
    before, after, about = images(home.plain), images(out), metadata(out)
    assert before.keys() == after.keys()
    undefined = [key for key, one in about.items() if one["scores"] == ""]
    assert len(undefined) == 2  # the two images of the report for which there is no score
    for key, one in about.items():
        same = bool((before[key] == after[key]).all())
        assert same == (one["attempt"] == 1)
        assert 1 <= one["attempt"] <= one["attempts"] <= 3
        if key in undefined:
            assert one["accepted"]
            continue
        assert one["scores"] == f"own={float(one['scores'].removeprefix('own=')):.6g}"
        # As a reader of the shard measures it, at the side that networks are given.
        assert float(one["scores"].removeprefix("own=")) == pytest.approx(brightness(after[key]), abs=1e-3)
        assert one["accepted"] == (float(one["scores"].removeprefix("own=")) >= home.threshold - 1e-6)
        assert one["failed"] == ("" if one["accepted"] else f"own<{home.threshold!r}")
        assert one["attempt"] == one["attempts"] if one["accepted"] else one["attempts"] == 3
    drawn_again = [one for one in about.values() if one["attempts"] > 1]
    assert any(one["accepted"] for one in drawn_again)
    assert sum(one["accepted"] for one in about.values()) > len(about) // 2 + 1

    total = manifest(out)["acceptance"]["total"]
    assert total["images"] == len(about)
    assert total["accepted"] == sum(one["accepted"] for one in about.values())
    assert total["accepted_at_first"] == sum(one["attempts"] == 1 for one in about.values())
    assert total["draws"] == sum(one["attempts"] for one in about.values())
    assert total["accepted_per_draw"] == round(total["accepted"] / total["draws"], 4)
    by_finding = manifest(out)["acceptance"]["by_finding"]
    effusions = [one for one in about.values() if one["findings"]["Pleural Effusion"]["status"] == "present"]
    assert by_finding["Pleural Effusion"]["draws"] == sum(one["attempts"] for one in effusions)
    assert f"{total['accepted']} of them accepted" in printed
    card = (out / "README.md").read_text()
    assert "Not an unfiltered sample" in card
    assert "until it passed the rules, at most 3 times in all:" in " ".join(card.split())
    assert f"{total['accepted_at_first']} passed at once, {total['accepted']} in the end" in card


def test_what_never_passes_is_listed(home: Home, accepted: tuple[Path, str], tmp_path: Path) -> None:
    """Written with `accepted: false`, or left out: the rest of the set is the same then."""
    both, only = accepted[0], tmp_path / "only"
    assert home.accept(only, "--only-accepted").code == 0
    failed = {key for key, one in metadata(both).items() if not one["accepted"]}
    assert failed
    with (both / "not_accepted.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["key"] for row in rows} == failed
    assert all(re.fullmatch(r"own<0\.\d+", row["reasons"]) and row["attempts"] == "3" for row in rows)
    assert (only / "not_accepted.csv").read_bytes() == (both / "not_accepted.csv").read_bytes()
    assert metadata(only).keys() == metadata(both).keys() - failed
    assert {name: raw for name, raw in members(both).items() if name.partition(".")[0] not in failed} == members(only)
    counts = manifest(only)["counts"]
    assert counts["samples"] == len(metadata(only)) == sum(shard["samples"] for shard in manifest(only)["shards"])
    assert sum(manifest(only)["unsupported_findings"].values()) == sum(
        len(one["unsupported_findings"].split("; ")) for one in metadata(only).values() if one["unsupported_findings"]
    )
    assert "`not_accepted.csv`: the images that never passed" in (only / "README.md").read_text()
    assert manifest(only)["files"] == {"not_accepted.csv": hashes(only)["not_accepted.csv"]}
    assert open_collection(only).units == open_collection(both).units
    again = home.accept(only, "--only-accepted")
    assert f"already complete ({counts['samples']} images)" in again.text


ONE_EACH = ("--only-accepted", "--shard-size", "1")


@pytest.fixture(scope="module")
def sparse(home: Home, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of one image a shard, without those that never passed. Do not change it."""
    out = tmp_path_factory.mktemp("sparse") / "out"
    done = home.accept(out, *ONE_EACH)
    assert done.code == 0, done.text
    full = len(metadata(out))
    assert 0 < full < 14
    assert f"{full} images in {full} shards" in done.text
    return out


def test_a_shard_without_accepted_images_is_no_part_of_the_set(sparse: Path, home: Home) -> None:
    """Other programs stumble over a tar without members; ours call it broken."""
    listed = manifest(sparse)["shards"]
    assert {shard["name"] for shard in listed} == {path.name for path in sparse.glob("*.tar")}
    assert {shard["samples"] for shard in listed} == {1}
    assert {about["key"] for _, _, about in open_dataset(sparse)} == metadata(sparse).keys()
    read = open_collection(sparse)
    assert all(isinstance(one, Radiograph) for unit in read.units for one in read.read(unit))
    before = hashes(sparse)
    assert "already complete" in home.accept(sparse, *ONE_EACH).text
    assert hashes(sparse) == before


@pytest.mark.parametrize(
    "parts",
    [
        ("--part=2/2", "--part=1/2"),
        pytest.param(("--part=1/3", "--part=3/3", "--part=2/3", "--finish"), marks=pytest.mark.slow),
    ],
)
def test_parts_leave_out_the_same_shards(parts: tuple[str, ...], sparse: Path, home: Home, tmp_path: Path) -> None:
    for part in parts:
        done = home.accept(tmp_path / "out", *ONE_EACH, part)
        assert done.code == 0, done.text
    assert hashes(tmp_path / "out") == hashes(sparse)


def test_a_run_killed_before_it_removes_empty_shards_is_cleaned_by_the_next(
    sparse: Path, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def dies(self: OutputFolder, manifest: dict[str, Any]) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(OutputFolder, "clean", dies)
        assert home.accept(out, *ONE_EACH).code == 2
    assert (out / "manifest.json").exists()
    assert len(list(out.glob("*.tar"))) == 14
    foreign = out / "cxr-000099.tar"
    foreign.write_bytes(b"put there by somebody else")
    assert "already complete" in home.accept(out, *ONE_EACH).text
    assert foreign.exists()
    foreign.unlink()
    assert hashes(out) == hashes(sparse)


@pytest.mark.slow
def test_an_audit_says_that_the_set_was_selected(sparse: Path, home: Home, tmp_path: Path) -> None:
    """In the summary and on the page, and of what it keeps; what the model depicts is not measured on it."""
    total = manifest(sparse)["acceptance"]["total"]
    rates = f"of 14, {total['accepted_at_first']} passed at once, {total['accepted']} in the end"
    found, kept, checks = tmp_path / "found", tmp_path / "kept", [*CHECKS, "--judge=own=any"]
    first = run(["audit", str(sparse), "--out", str(found), "--write-kept", str(kept), *checks])
    assert first.code == 0, first.text
    again = run(["audit", str(kept), "--out", str(tmp_path / "again"), *checks])
    assert again.code == 0, again.text
    for audited in (found, tmp_path / "again"):
        summary = json.loads((audited / "summary.json").read_text())
        assert summary["input"]["damaged_count"] == 0
        said, independence = summary["caveats"]
        assert "no unfiltered sample of the model" in said
        assert rates in said
        assert independence.startswith("own: measured by the networks that decided")
        assert rates in (audited / "report.html").read_text()
    assert rates.replace("14", "14 images") in (kept / "README.md").read_text()
    refused = run(["audit", str(sparse), "--out", str(tmp_path / "none"), "--write-depicts", str(home.model)])
    assert refused.code == 2
    assert "drawn until they passed" in refused.text
    assert not (tmp_path / "none").exists()


def test_parts_give_the_bytes_of_one_run(home: Home, accepted: tuple[Path, str], tmp_path: Path) -> None:
    for part in ("2/2", "1/2"):
        done = home.accept(tmp_path / "out", "--part", part)
        assert done.code == 0, done.text
    assert hashes(tmp_path / "out") == hashes(accepted[0])


@pytest.mark.slow
def test_a_stopped_run_resumes_to_the_same_bytes(
    home: Home, accepted: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = accepted[0], tmp_path / "cut"
    publish = OutputFolder.publish

    def fails_at_the_second(self: OutputFolder, index: int, *given: Any) -> None:
        if index == 1:
            raise OSError(28, "No space left on device")
        publish(self, index, *given)

    with monkeypatch.context() as patched:
        patched.setattr(OutputFolder, "publish", fails_at_the_second)
        assert home.accept(cut).code == 2
    assert [path.name for path in cut.glob("*.tar")] == ["cxr-000000.tar"]
    assert home.accept(cut).code == 0
    assert hashes(cut) == hashes(whole)


@pytest.mark.slow
def test_dicom_objects_say_what_was_decided(home: Home, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert home.accept(out, "--format", "dicom").code == 0
    about = metadata(out)
    comments = {
        name.removesuffix(".dcm"): str(pydicom.dcmread(io.BytesIO(raw)).ImageComments)
        for name, raw in members(out).items()
        if name.endswith(".dcm")
    }
    assert comments.keys() == about.keys()
    for key, one in about.items():
        said = f"Accepted at attempt {one['attempt']}" if one["accepted"] else "Not accepted in 3 attempts: own<"
        assert said in comments[key]
        assert comments[key].startswith("SYNTHETIC IMAGE, NOT FOR DIAGNOSIS.")


def test_nothing_accepted_is_no_data_set(home: Home, tmp_path: Path) -> None:
    """Random weights make no chest: with the checks, every image fails."""
    out = tmp_path / "out"
    done = home.run(out, "--accept", "--attempts", "1", "--only-accepted")
    assert done.code == 2
    assert "none of 14 images was accepted" in done.text
    assert "images that failed, by rule: " in done.text
    assert "check: not_a_chest" in done.text
    assert not (out / "manifest.json").exists()
    kept = home.run(tmp_path / "kept", "--accept", "--attempts", "1")
    assert kept.code == 0, kept.text
    assert {one["failed"] != "" for one in metadata(tmp_path / "kept").values()} == {True}
    failed: dict[str, list[set[str]]] = {}
    for one in metadata(tmp_path / "kept").values():
        failed.setdefault(one["view"], []).append(set(re.findall(r"check: (\w+)", one["failed"])))
    # What a lateral is asked for is judged by no check that knows frontal chests alone.
    assert not set.union(*failed.pop("LATERAL")) & checks.FRONTAL_CHECKS
    assert {"PA", "AP"} <= failed.keys()
    assert all("not_a_chest" in names for several in failed.values() for names in several)


def test_view_sex_and_age_can_be_rules(home: Home, tmp_path: Path) -> None:
    """Scores are those of nano's classifier on the image as it is stored; what a report does not state rejects none."""
    out = tmp_path / "out"
    rules = [f"--min={name}=0" for name in AGREEMENTS]
    done = home.run(out, "--accept", "--attempts", "2", *rules, *CHECKS)
    assert done.code == 0, done.text
    rewards = {name: load_agreement(name, TUNING_FAMILY, device=torch.device("cpu")) for name in AGREEMENTS}
    about, seen = metadata(out), images(out)
    assert {one["scores"].count("=") for one in about.values()} >= {0, 2, 3}
    for key, one in about.items():
        report = Report(
            key, 0, view=one["view"] or None, sex=one["sex"] or None, stated_age_group=one["age_group"] or None
        )
        pixels = torch.from_numpy(squared(seen[key].astype(np.float32) / 255, 256))[None, None]
        expected = {name: reward(pixels, [report]).item() for name, reward in rewards.items()}
        scores = {
            name: float(text) for name, _, text in (pair.partition("=") for pair in one["scores"].split("; ") if pair)
        }
        assert scores == pytest.approx({name: value for name, value in expected.items() if value == value}, abs=1e-3)
        assert one["failed"] == "; ".join(f"{name}<0.0" for name in sorted(scores) if scores[name] < 0)
    digest = backend_digest("diagnosis", TUNING_FAMILY)
    judged = manifest(out)["plan"]["acceptance"]["reward_models"]
    assert judged == {name: {"backend": TUNING_FAMILY, "digest": digest} for name in AGREEMENTS}


def test_no_network_of_an_audits_own_family_decides() -> None:
    """Its rewards would be no independent evidence of the selected set."""
    plan = acceptance_plan(AcceptSettings(thresholds=dict.fromkeys((*REWARDS, *AGREEMENTS), 0.0)))
    digests = {judge["digest"] for judge in plan["reward_models"].values()} | {plan["checks"]["posture"]}
    assert not digests & {backend_digest(name, DEFAULT_FAMILY) for name in REWARDS}


@pytest.mark.parametrize(
    ("judges", "rules", "backends"),
    [
        ([], {"posture", "view"}, {"posture": TUNING_FAMILY, "view": TUNING_FAMILY}),
        (["nano"], {"posture"}, {"posture": "nano"}),
        (["diagnosis=nano"], {"view", "posture"}, {"posture": TUNING_FAMILY, "view": "nano"}),
        (["posture=nano"], {"view", "posture"}, {"posture": "nano", "view": TUNING_FAMILY}),
        (["nano", "view=nano-judge"], {"view", "sex"}, {"sex": "nano", "view": "nano-judge"}),
        (["view=nano"], {"view"}, {"view": "nano"}),
    ],
)
def test_every_rule_has_the_judge_that_was_given_for_it(
    judges: list[str], rules: set[str], backends: dict[str, str]
) -> None:
    given = parse_accept_judges(judges, rules)
    plan = acceptance_plan(AcceptSettings(thresholds=dict.fromkeys(rules, 0.0), judges=given))
    assert {name: judge["backend"] for name, judge in plan["reward_models"].items()} == backends


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--min-posture", "0"], "--min.*needs --accept"),
        (["--only-accepted"], "--only-accepted.*needs --accept"),
        (["--attempts", "2"], "--attempts.*needs --accept"),
        (
            ["--accept", "--min", "sharpness=1"],
            r"--min sharpness: no reward of that name is measured\n known: posture, .*, view, sex, age; a",
        ),
        (["--accept", "--judge", "own=any"], r"--judge own: decides nothing\n give a threshold with --min own=VALUE"),
        (
            ["--accept", "--min", "view=0", "--judge", "diagnosis=densenet121-res224-all"],
            "view: 'densenet121-res224-all' is no family.*--judge view=FAMILY",
        ),
        (
            ["--accept", "--judge", "view=nano"],
            r"--judge view: decides nothing\n give a threshold with --min view=VALUE",
        ),
        (
            ["--accept", "--judge", "posture=no-such-folder"],
            r"--judge posture: decides nothing\n give a threshold with --min posture=VALUE",
        ),
        (
            ["--accept", "--min-posture", "0", "--judge", "nano", "--judge", "diagnosis=no-such-folder"],
            "--judge diagnosis: decides nothing",
        ),
        (
            ["--accept", "--min", "view=0", "--judge", "view=nano", "--judge", "diagnosis=nano"],
            "--judge diagnosis: decides nothing",
        ),
        (["--accept", "--judge", "no-such-folder"], "--judge no-such-folder: decides nothing"),
        (["--accept", "--ignore-check", "blur"], r"--ignore-check blur: no check of that name\n known: blank"),
        (["--accept", "--min-posture", "0", "--judge", "posture=/nowhere"], "posture.*/nowhere"),
        (["--accept", "--min-posture", "nan"], "posture.*expected a finite number"),
    ],
)
def test_rules_that_cannot_be_are_refused(options: list[str], said: str, home: Home, tmp_path: Path) -> None:
    done = home.run(tmp_path / "out", *options)
    assert done.code == 2
    assert re.search(said, re.sub(r"[ │]+", " ", done.text), re.DOTALL), done.text
    assert not (tmp_path / "out").exists()


def test_images_that_never_passed_are_not_kept_in_memory() -> None:
    """They may be as many as the set has: 30 shards of 1,000 take no more than two or three of them."""

    def record(shard: int) -> dict[str, Any]:
        never = [{"key": f"{shard:010x}{image:010x}-00", "attempts": 4, "failed": ["blank"]} for image in range(1000)]
        return {"samples": 0, "acceptance": {"total": {"images": 1000}, "never_accepted": never}}

    tracemalloc.start()
    try:
        one = record(0)
        of_one = tracemalloc.get_traced_memory()[0]
        del one
        tracemalloc.reset_peak()
        with NotAccepted() as not_accepted:
            kept = [not_accepted.taken_from(record(shard)) for shard in range(30)]
            written = io.BytesIO()
            not_accepted.write(written)
        peak = tracemalloc.get_traced_memory()[1] - len(written.getvalue())
    finally:
        tracemalloc.stop()
    assert [one["acceptance"] for one in kept] == [{"total": {"images": 1000}}] * 30
    lines = written.getvalue().decode().splitlines()
    assert (len(lines), lines[0], lines[-1]) == (30_001, "key,attempts,reasons", f"{29:010x}{999:010x}-00,4,blank")
    assert peak < 15 * of_one
