"""`--compare`: the numbers of two audits side by side, and what is not comparable."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cxrsynth.auditing.compare import compare, read_summary
from cxrsynth.auditing.fail_under import known_metrics
from cxrsynth.cli import app
from cxrsynth.errors import ShardError
from tests.auditing.page.page_example import REWARDS, everything_measured, example_rows
from tests.generation.making import command, write_table

KNOWN = known_metrics(REWARDS, ("shifted", "zoomed", "autoencoded"))


@pytest.fixture
def summary() -> dict[str, Any]:
    return everything_measured(example_rows())


def rows(this: dict[str, Any], other: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["metric"]: row for row in compare(this, other, KNOWN)["rows"]}


def test_numbers_stand_beside_each_other(summary: dict[str, Any]) -> None:
    other = copy.deepcopy(summary)
    other["input"]["path"] = "before"
    other["fidelity"][0]["kid"] = {"value": 0.5, "low": 0.4, "high": 0.6}
    found = compare(summary, other, KNOWN)
    assert found["with"] == {"path": "before", "version": summary["version"]}
    assert found["refused"] == []
    row = rows(summary, other)["fidelity/all/kid"]
    assert row["this"] == pytest.approx(summary["fidelity"][0]["kid"])
    assert (row["other"]["value"], row["limit"], row["apart"]) == (0.5, "at most", True)
    assert rows(summary, other)["fidelity/all/frechet"]["apart"] is False
    kept = rows(summary, other)["kept"]
    assert kept["this"] == {"value": summary["kept"], "low": None, "high": None}
    assert kept["apart"] is None
    assert "memorization/sensitivity/zoomed" not in rows(summary, other)  # in neither


@pytest.mark.parametrize(
    ("change", "differs", "lost", "left"),
    [
        (
            {"reward_models": {"posture": {"digest": "x", "backend": "mine"}}},
            "reward posture",
            "rewards/posture/mean",
            "rewards/diagnosis/mean",
        ),
        (
            {"features": {"name": "rad-dino", "digest": "x"}},
            "features",
            "fidelity/all/kid",
            "fidelity/all/ms_ssim_within",
        ),
        ({"provenance": {"labeler": "x"}}, "labeler", "rewards/diagnosis/mean", "fidelity/all/kid"),
        ({"reference": {"digest": "x"}}, "reference", "memorization/flagged_fraction", "rewards/posture/mean"),
        ({"reference": {"digest": "x"}}, "reference", "kept_fraction", "rewards/posture/mean"),
        ({"reference": {"digest": None}}, "reference", "fidelity/all/kid", "rewards/posture/mean"),
        ({"input": {"images": 9}}, "number of audited images", "memorization/flagged", "memorization/flagged_fraction"),
        ({"input": {"images": 9}}, "number of audited images", "reidentification/matched", "kept_fraction"),
        ({"input": {"images": 9}}, "number of audited images", "kept", "kept_fraction"),
        ({"input": {"images": 9}}, "number of audited images", "findings/Edema/kept", "findings/Edema/kept_fraction"),
        (
            {"settings": {"rules": {"keep_fraction": 0.5}}},
            "rules of what is kept",
            "kept_fraction",
            "rewards/posture/mean",
        ),
        ({"settings": {"rules": 1}}, "rules of what is kept", "fidelity/all/kid", "rewards/posture/mean"),
        ({"settings": {"rules": 1}}, "rules of what is kept", "fidelity/all/ms_ssim_within", "memorization/flagged"),
        ({"settings": {"rules": 1}}, "rules of what is kept", "rewards_kept/posture/mean", "rewards/posture/mean"),
        ({"settings": {"rules": 1}}, "rules of what is kept", "findings/Edema/kept_fraction", "findings/Edema/images"),
        ({"version": 2}, "version and quality checks", "kept_fraction", "rewards/posture/mean"),
        ({"version": 2}, "version and quality checks", "memorization/flagged_fraction", "rewards/posture/mean"),
        ({"version": 2}, "version and quality checks", "memorization/sensitivity/shifted", "rewards/posture/mean"),
        (
            {"provenance": {"family": {"backend": "mine"}}},
            "version and quality checks",
            "kept_fraction",
            "rewards/posture/mean",
        ),
        (
            {"reidentification": {"verifier": {"name": "mine", "digest": "x"}}},
            "verifier",
            "reidentification/matched_fraction",
            "memorization/flagged_fraction",
        ),
        (
            {"membership": {"members": {"path": "train", "images": 50, "digest": "x"}}},
            "members and non-members",
            "membership/attacks/loss/auc",
            "fidelity/all/kid",
        ),
        (
            {"membership": {"non_members": {"path": "train", "images": 50, "digest": "x"}}},
            "members and non-members",
            "membership/attacks/loss/true_positives/0.01",
            "fidelity/all/kid",
        ),
        (
            {"membership": {"passes_per_image": 3}},
            "members and non-members",
            "membership/attacks/combined/auc",
            "fidelity/all/kid",
        ),
        (
            {"settings": {"rules": None, "seed": 7}},
            "images of utility",
            "utility/mean/real + synthetic/lift",
            "fidelity/all/kid",
        ),
        ({"reader_study": {"readers": "x"}}, "readers and images they saw", "reader_study/scores/accuracy", "kept"),
        ({"reader_study": {"side": 99}}, "readers and images they saw", "reader_study/scores/sensitivity", "kept"),
    ],
)
def test_what_was_measured_otherwise_is_not_compared(
    summary: dict[str, Any], change: dict[str, Any], differs: str, lost: str, left: str
) -> None:
    other = copy.deepcopy(summary)
    for name, value in change.items():
        other[name] = other[name] | value if isinstance(value, dict) else value
    assert lost in rows(summary, summary)
    found = rows(summary, other)
    assert lost not in found
    assert left in found
    assert [one["differs"] for one in compare(summary, other, KNOWN)["refused"]] == [differs]


@pytest.mark.parametrize(
    ("split", "compared"),
    [({"synthetic": 95}, True), ({"synthetic": 60}, False), ({"train": 99}, False), ({"test": 99}, False)],
)
def test_utility_of_other_numbers_of_images_is_not_compared(
    summary: dict[str, Any], split: dict[str, int], compared: bool
) -> None:
    """A few images more or less that were kept teach much the same; half as many do not."""
    summary["utility"]["split"] = {"synthetic": 100, "train": 50, "test": 50, "patients_unknown": 0}
    other = copy.deepcopy(summary)
    other["utility"]["split"] |= split
    assert ("utility/mean/real + synthetic/lift" in rows(summary, other)) == compared


def test_copies_of_another_autoencoder_are_not_compared(summary: dict[str, Any]) -> None:
    summary["memorization"]["sensitivity"]["autoencoded"] = summary["memorization"]["sensitivity"]["shifted"]
    assert "memorization/sensitivity/autoencoded" in rows(summary, summary)
    other = copy.deepcopy(summary)
    other["memorization"]["autoencoder"] |= {"model": "mine", "digest": "x"}
    found = rows(summary, other)
    assert "memorization/sensitivity/autoencoded" not in found
    assert {"memorization/sensitivity/shifted", "memorization/flagged_fraction"} <= found.keys()
    assert compare(summary, other, KNOWN)["refused"] == [{"differs": "autoencoder", "why": "nano here, mine there"}]


def test_collections_of_one_name_and_size_are_not_taken_for_the_same(summary: dict[str, Any]) -> None:
    other = copy.deepcopy(summary)
    other["reference"]["digest"] = "x"
    [refused] = compare(summary, other, KNOWN)["refused"]
    assert refused["why"] == "held-out (512 images) in both, but other images"
    other["reference"] |= {"path": "elsewhere", "digest": summary["reference"]["digest"]}
    assert compare(summary, other, KNOWN)["refused"] == []
    other["provenance"]["id_key"] = "x"
    found = {one["differs"]: one["why"] for one in compare(summary, other, KNOWN)["refused"]}
    assert found.keys() == {"reference", "members and non-members", "readers and images they saw"}
    assert all("cannot be known: made with another id key (--id-key) there" in why for why in found.values())


def test_what_one_audit_did_not_measure_is_no_difference(summary: dict[str, Any]) -> None:
    other = copy.deepcopy(summary)
    other |= {"reidentification": None, "membership": None, "reader_study": None}
    assert compare(summary, other, KNOWN)["refused"] == []
    assert not [name for name in rows(summary, other) if name.startswith(("reidentification", "membership"))]
    other["reference"] = None
    [refused] = compare(summary, other, KNOWN)["refused"]
    expected = {"differs": "rules of what is kept", "why": "near-duplicates of a reference were rejected here alone"}
    assert refused == expected


@pytest.mark.parametrize("on", ["all rewards", "diagnosis, posture"])
def test_images_ranked_by_other_networks_were_chosen_otherwise(summary: dict[str, Any], on: str) -> None:
    summary["thresholds"] = [{"rule": "best of each finding", "on": on, "value": 0.5}]
    other = copy.deepcopy(summary)
    assert "kept_fraction" in rows(summary, other)
    other["reward_models"]["diagnosis"]["digest"] = "x"
    assert "kept_fraction" not in rows(summary, other)


def test_rules_on_other_networks_are_other_rules(summary: dict[str, Any]) -> None:
    other = copy.deepcopy(summary)
    other["reward_models"]["diagnosis"]["digest"] = "x"
    found = {one["differs"]: one["why"] for one in compare(summary, other, KNOWN)["refused"]}
    assert found["rules of what is kept"] == "they are on other networks of consistency, diagnosis"
    assert "kept_fraction" not in rows(summary, other)


def test_other_numbers_of_images_leave_what_does_not_depend_on_them(summary: dict[str, Any]) -> None:
    other = copy.deepcopy(summary)
    other["fidelity"][0]["compared"] = 79
    found = rows(summary, other)
    assert "fidelity/all/frechet" not in found
    assert "fidelity/all/kid" in found
    [refused] = compare(summary, other, KNOWN)["refused"]
    assert refused == {"differs": "number of images", "why": "fidelity on 80 images here, on 79 there"}


def test_a_group_of_another_size_is_not_compared_though_all_images_are_as_many(summary: dict[str, Any]) -> None:
    other = copy.deepcopy(summary)
    [group] = [row for row in other["fidelity"] if row["group"] == "finding: Edema"]
    assert "fidelity/finding: Edema/frechet" in rows(summary, summary)
    group["compared"] -= 1
    found = rows(summary, other)
    assert "fidelity/finding: Edema/frechet" not in found
    assert "fidelity/finding: Edema/kid" in found
    assert "fidelity/all/frechet" in found
    # How far beyond the floor grows with the number of images, too.
    assert "fidelity/all/floor/frechet_ratio" in found
    other["fidelity"][0]["compared"] = 79
    assert "fidelity/all/floor/frechet_ratio" not in rows(summary, other)
    [refused] = compare(summary, other, KNOWN)["refused"]
    assert refused["why"] == "fidelity on 80 images here, on 79 there, and other numbers in 1 more group"


@pytest.mark.parametrize(
    ("part", "damaged"),
    [
        ("utility", {"rows": [{}]}),
        ("fidelity", [{}]),
        ("features", "nano"),
        ("reference", "real"),
        ("reidentification", ["nano"]),
        ("reward_models", {"posture": "nano"}),
        ("kept", 10**400),
    ],
)
def test_a_damaged_summary_is_refused_before_any_work(
    part: str, damaged: object, summary: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "summary.json").write_text(json.dumps(summary | {part: damaged}))
    with pytest.raises(ShardError, match=r"--compare .*summary\.json: damaged.*\n  expected the summary\.json"):
        read_summary(tmp_path, KNOWN)


def test_of_the_other_audit_only_the_last_part_of_its_path_is_named(summary: dict[str, Any]) -> None:
    other = copy.deepcopy(summary)
    other["input"]["path"] = "/home/dr-secretword/set"
    assert compare(summary, other, KNOWN)["with"]["path"] == "set"


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"input": 1, "kept": 2}'])
def test_what_is_no_summary_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(content)
    with pytest.raises(ShardError, match=r"--compare .*summary\.json: .*\n  expected the summary\.json"):
        read_summary(tmp_path, {})
    with pytest.raises(ShardError, match="cannot be read"):
        read_summary(tmp_path / "nowhere", {})


def test_an_audit_is_compared_with_an_earlier_one(tiny_model: Path, tmp_path: Path) -> None:
    made = CliRunner().invoke(app, command(write_table(tmp_path / "reports.csv"), tmp_path / "set", tiny_model))
    assert made.exit_code == 0, made.output
    audit = ["audit", str(tmp_path / "set"), "--device", "cpu", "--out"]
    first = CliRunner().invoke(app, [*audit, str(tmp_path / "first")])
    assert first.exit_code == 0, first.output
    options = ["--min-posture", "-1000", "--compare", str(tmp_path / "first")]
    second = CliRunner().invoke(app, [*audit, str(tmp_path / "second"), *options])
    assert second.exit_code == 0, second.output
    found = json.loads((tmp_path / "second" / "summary.json").read_text())["compared"]
    of_metric = {row["metric"]: row for row in found["rows"]}
    assert of_metric["rewards/posture/mean"]["this"] == of_metric["rewards/posture/mean"]["other"]
    page = (tmp_path / "second" / "report.html").read_text()
    assert "Compared with another audit" in page
    assert '<th scope="row">rewards/posture/mean</th>' in page
    assert "Compared with another audit" not in (tmp_path / "first" / "report.html").read_text()
    assert json.loads((tmp_path / "first" / "summary.json").read_text())["compared"] is None
    missing = CliRunner().invoke(app, [*audit, str(tmp_path / "third"), "--compare", str(tmp_path / "nowhere")])
    assert missing.exit_code == 2, missing.output
    assert not (tmp_path / "third").exists()
