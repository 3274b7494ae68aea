"""`audit --members --non-members`: what is attacked, what is left out, what is said and refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from cxrsynth.auditing import membership as attacked
from cxrsynth.cli import app
from cxrsynth.errors import ShardError
from cxrsynth.metrics.membership.attacks import ATTACKS
from cxrsynth.metrics.membership.inference import COMBINED, WITHOUT_MODEL

OPTIONS = ("--device", "cpu", "--attacked", "40")


def pictures(folder: Path, patients: range, *, table: Path, each: int = 2, report: bool = True) -> Path:
    """`each` smooth pictures of each patient, all different, and their table."""
    folder.mkdir()
    rows = ["filename,patient_id,impression"]
    for patient in patients:
        for place in range(each):
            coarse = np.random.default_rng([patient, place]).integers(0, 256, (6, 6), dtype=np.uint8)
            name = f"{patient:03d}-{place}.png"
            Image.fromarray(coarse).resize((40, 40), Image.Resampling.BICUBIC).save(folder / name)
            rows.append(f"{name},patient-{patient},{'Secretword pneumonia' if report else ''}")
    table.write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Members of patients 0 to 14; non-members of 13 to 29, so that two are in both."""
    home = tmp_path_factory.mktemp("membership")
    pictures(home / "set", range(100, 102), table=home / "set.csv")
    pictures(home / "members", range(15), table=home / "members.csv")
    pictures(home / "others", range(13, 30), table=home / "others.csv")
    return home


def run(
    home: Path, out: Path, model: object, *options: object, members: str = "members", others: str = "others"
) -> Any:
    sides = ("--members", home / members, "--members-table", home / f"{members}.csv")
    sides += ("--non-members", home / others, "--non-members-table", home / f"{others}.csv")
    arguments = ["audit", home / "set", "--out", out, "--model", model, *sides, *OPTIONS, *options]
    return CliRunner().invoke(app, [str(one) for one in arguments])


def summary(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return found


@pytest.fixture(scope="module")
def done(home: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """An audit that attacks the model, and what it printed."""
    with pytest.MonkeyPatch.context() as patch:
        # As in each test: audits with another id key share no scores.
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.getbasetemp() / "user-data"))
        result = run(home, home / "out", tiny_model)
    assert result.exit_code == 0, result.output
    return home / "out", result.output


@pytest.mark.slow
def test_both_sides_are_attacked_and_patients_of_members_left_out(done: tuple[Path, str]) -> None:
    found = summary(done[0])["membership"]
    assert (found["members"]["images"], found["members"]["patients"]) == (30, 15)
    assert (found["non_members"]["images"], found["non_members"]["patients"]) == (30, 15)
    assert found["left_out"] == 4
    assert found["prompted"] is True
    assert set(found["attacks"]) == {*ATTACKS, COMBINED, WITHOUT_MODEL}
    # A model of random weights has seen nobody.
    for name in (*ATTACKS, COMBINED):
        assert found["attacks"][name]["auc"]["low"] < 0.5 + 0.1, name
    assert all(one["true_positives"]["0.001"] is None for one in found["attacks"].values())


@pytest.mark.slow
def test_the_page_and_the_console_show_every_attack_and_no_report(done: tuple[Path, str]) -> None:
    out, printed = done
    page = (out / "report.html").read_text()
    for name in (*ATTACKS, COMBINED, WITHOUT_MODEL):
        assert name in printed
        assert f'<th scope="row">{name}</th>' in page
    for path in out.rglob("*"):
        assert path.is_dir() or b"Secretword" not in path.read_bytes(), path
    assert "Secretword" not in printed
    assert "patient-1" not in page


@pytest.mark.slow
def test_a_second_run_attacks_nothing_again(
    home: Path, done: tuple[Path, str], tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise AssertionError("attacked again")

    monkeypatch.setattr(attacked.AttackScorer, "__call__", fails)
    before = summary(done[0])["membership"]
    assert run(home, done[0], tiny_model, "--min-posture", "-9").exit_code == 0
    assert summary(done[0])["membership"] == before


@pytest.mark.slow
def test_the_same_images_are_chosen_in_whatever_order(home: Path, tiny_model: Path, tmp_path: Path) -> None:
    """Twenty of thirty; renamed files come in another order."""
    shutil.copytree(home / "members", tmp_path / "renamed")
    lines = (home / "members.csv").read_text().splitlines()
    renamed = [lines[0]]
    for place, line in enumerate(reversed(lines[1:])):
        name, _, rest = line.partition(",")
        (tmp_path / "renamed" / name).rename(tmp_path / "renamed" / f"x{place:03d}.png")
        renamed.append(f"x{place:03d}.png,{rest}")
    (tmp_path / "renamed.csv").write_text("\n".join(renamed) + "\n")
    found = []
    for place, folder in enumerate((home, tmp_path)):
        name = "members" if folder == home else "renamed"
        sides = ("--members", folder / name, "--members-table", folder / f"{name}.csv")
        options = ["--non-members", home / "others", "--non-members-table", home / "others.csv", "--attacked", "20"]
        command = ["audit", home / "set", "--out", tmp_path / str(place), "--model", tiny_model, *sides, *options]
        result = CliRunner().invoke(app, [str(one) for one in command])
        assert result.exit_code == 0, result.output
        found.append(summary(tmp_path / str(place))["membership"])
    assert found[0]["members"]["images"] == found[1]["members"]["images"] == 20
    assert found[0]["attacks"]["loss"]["auc"]["value"] == pytest.approx(found[1]["attacks"]["loss"]["auc"]["value"])


def test_sides_that_differ_in_themselves_are_warned_of() -> None:
    """The attacks say nothing then, and a pipeline that looks at them alone must hear of it."""
    [said] = attacked._confounded({"value": 0.9, "low": 0.74, "high": 1.0})
    assert "with an AUC of 0.90 (0.74 to 1.00), so that the attacks say nothing of the model" in said
    assert attacked._confounded({"value": 0.55, "low": 0.48, "high": 0.6}) == []


def test_too_few_patients_cost_the_attack_alone(home: Path, tiny_model: Path, tmp_path: Path) -> None:
    pictures(tmp_path / "few", range(40, 45), table=tmp_path / "few.csv", each=3)
    shutil.copytree(home / "set", tmp_path / "set")
    shutil.copytree(home / "members", tmp_path / "members")
    shutil.copy(home / "members.csv", tmp_path)
    result = run(tmp_path, tmp_path / "out", tiny_model, others="few")
    assert result.exit_code == 0, result.output
    found = summary(tmp_path / "out")
    assert found["membership"] is None
    assert "--non-members: 5 patients left, expected at least 10" in found["not_measured"]["membership"]
    assert "5 patients left" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize("left_out", ["--members-table", "--non-members-table"])
def test_a_table_of_one_side_is_warned_of_before_the_attack(
    home: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left_out: str
) -> None:
    def stops(*_: object, **__: object) -> None:
        raise ShardError("not loaded")

    monkeypatch.setattr("cxrsynth.auditing.setup.load_membership", stops)
    sides = {"--members": home / "members", "--members-table": home / "members.csv", "--non-members": home / "others"}
    sides |= {"--non-members-table": home / "others.csv"}
    for options in (sides, {name: value for name, value in sides.items() if name != left_out}):
        command = ["audit", home / "set", "--out", tmp_path / "out", "--model", tiny_model, *OPTIONS]
        command += [part for one in options.items() for part in one]
        result = CliRunner().invoke(app, [str(one) for one in command])
        assert "not loaded" in result.output
        said = f"name one with {left_out}" in " ".join(result.output.split())
        assert said == (left_out not in options)


@pytest.mark.slow
def test_patients_of_members_that_were_not_attacked_are_left_out_too(
    home: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """Twenty of fifty members are attacked; every non-member is of a patient of the fifty."""
    pictures(tmp_path / "many", range(50), table=tmp_path / "many.csv", each=1)
    pictures(tmp_path / "theirs", range(50), table=tmp_path / "theirs.csv", each=1)
    for path in (tmp_path / "theirs").iterdir():
        Image.open(path).rotate(180).save(path)  # other images
    shutil.copytree(home / "set", tmp_path / "set")
    result = run(tmp_path, tmp_path / "out", tiny_model, "--attacked", "20", members="many", others="theirs")
    assert result.exit_code == 0, result.output
    assert "0 patients left" in summary(tmp_path / "out")["not_measured"]["membership"]
    assert "20 images of members' patients were left out" in result.output


@pytest.mark.slow
def test_unknown_patients_are_said(home: Path, tiny_model: Path, tmp_path: Path) -> None:
    command = ["audit", home / "set", "--out", tmp_path, "--model", tiny_model, *OPTIONS]
    command += ["--members", home / "members", "--non-members", home / "others"]
    result = CliRunner().invoke(app, [str(one) for one in command])
    assert result.exit_code == 0, result.output
    assert "the patients of 30 members and 30 non-members are unknown" in " ".join(result.output.split())
    assert "are unknown" in (tmp_path / "report.html").read_text()
    assert len(summary(tmp_path)["membership"]["caveats"]) == 2  # no reports either


@pytest.mark.slow
def test_without_any_report_all_are_attacked_alike_and_the_discrepancy_is_not_measured(
    home: Path, tiny_model: Path, tmp_path: Path
) -> None:
    for name, patients in (("members", range(12)), ("others", range(30, 42))):
        pictures(tmp_path / name, patients, table=tmp_path / f"{name}.csv", each=1, report=False)
    shutil.copytree(home / "set", tmp_path / "set")
    result = run(tmp_path, tmp_path / "out", tiny_model)
    assert result.exit_code == 0, result.output
    found = summary(tmp_path / "out")["membership"]
    assert found["prompted"] is False
    assert "discrepancy" not in found["attacks"]
    assert "no attacked image has a report or labels" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.slow
def test_images_without_a_report_are_not_compared_with_prompted_ones(
    home: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """Of 34 non-members, 30 are of no member's patient; the first patient of these loses the reports."""
    for name in ("set", "members", "others"):
        shutil.copytree(home / name, tmp_path / name)
    shutil.copy(home / "members.csv", tmp_path)
    lines = (home / "others.csv").read_text().splitlines()
    bare = [line.rpartition(",")[0] + "," if line.startswith("015-") else line for line in lines]
    (tmp_path / "others.csv").write_text("\n".join(bare) + "\n")
    result = run(tmp_path, tmp_path / "out", tiny_model)
    assert result.exit_code == 0, result.output
    found = summary(tmp_path / "out")["membership"]
    assert (found["prompted"], found["without_report"]) == (True, {"members": 0, "non_members": 2})
    assert (found["non_members"]["images"], found["non_members"]["patients"]) == (28, 14)
    assert "discrepancy" in found["attacks"]
    assert "0 members and 2 non-members have no report or labels and were left out" in " ".join(result.output.split())

    (tmp_path / "others.csv").write_text("\n".join(line.rpartition(",")[0] + "," for line in lines) + "\n")
    result = run(tmp_path, tmp_path / "second", tiny_model)
    assert result.exit_code == 0, result.output
    assert summary(tmp_path / "second")["membership"] is None
    why = summary(tmp_path / "second")["not_measured"]["membership"]
    assert "30 images without report or labels: give both sides reports or labels" in why


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--members", "{}/members", "--model", "nano"), "--non-members: missing"),
        (("--non-members", "{}/others", "--model", "nano"), "--members: missing"),
        (("--members", "{}/members", "--non-members", "{}/others"), "--model: missing"),
        (("--members-table", "{}/members.csv"), "no images that it is about"),
        (("--members", "{}/members", "--non-members", "{}/members", "--model", "nano"), "the same images as --members"),
        (
            ("--members", "{}/set", "--non-members", "{}/others", "--model", "nano"),
            "4 images, expected those of at least",
        ),
        (("--fail-under", "membership/attacks/loss/true_positives/0.1=0.6"), "ATTACK is one of: loss; proximal"),
        (("--members", "{}/nowhere", "--non-members", "{}/others", "--model", "nano"), "nowhere"),
        (("--members", "{}/members", "--non-members", "{}/others", "--model", "no-such-model"), "no-such-model"),
        (("--fail-under", "membership/attacks/los/auc=0.6"), "membership/attacks/loss/auc"),
    ],
)
def test_a_mistake_is_reported_at_once(options: tuple[str, ...], said: str, home: Path, tmp_path: Path) -> None:
    given = [one.format(home) for one in options]
    result = CliRunner().invoke(app, ["audit", str(home / "set"), "--out", str(tmp_path / "out"), *given])
    assert result.exit_code == 2, result.output
    assert said in " ".join(result.output.split())
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


def test_results_may_not_go_into_what_is_attacked(home: Path, tiny_model: Path) -> None:
    result = run(home, home / "members" / "out", tiny_model)
    assert result.exit_code == 2, result.output
    assert "lies inside --members" in " ".join(result.output.split())


@pytest.mark.slow
def test_an_attack_that_finds_more_than_allowed_fails(home: Path, done: tuple[Path, str], tiny_model: Path) -> None:
    result = run(home, done[0], tiny_model, "--fail-under", "membership/attacks/combined/auc=0.0")
    assert result.exit_code == 3, result.output
    [missed] = summary(done[0])["failed"]
    assert (missed["metric"], missed["limit"]) == ("membership/attacks/combined/auc", "at most")
