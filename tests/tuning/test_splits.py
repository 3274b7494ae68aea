"""Training, held-out and test reports: nothing of one set stands in another."""

import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from cxrsynth.errors import RecipeError
from cxrsynth.recipe.read import load_recipe
from cxrsynth.reports.table.rows import Report
from cxrsynth.tuning.splits import ReportSets, draw_sets, split_reports, text_key
from tests.generation.making import write_table

TEMPLATE = "No acute cardiopulmonary process."


def report(place: int, text: str | None = None, patient: str = "") -> Report:
    return Report(f"r{place}", place, text=f"Finding number {place}." if text is None else text, patient_id=patient)


def ids(drawn: dict[str, list[Report]]) -> dict[str, set[str]]:
    return {name: {one.report_id for one in reports} for name, reports in drawn.items()}


def texts(reports: list[Report]) -> set[bytes | None]:
    return {text_key(one) for one in reports} - {None}


def patients(reports: list[Report]) -> set[str]:
    return {one.patient_id for one in reports} - {""}


def refuse_leaks(drawn: dict[str, list[Report]]) -> None:
    names = sorted(drawn)
    for place, first in enumerate(names):
        for second in names[place + 1 :]:
            assert not texts(drawn[first]) & texts(drawn[second]), (first, second)
            assert not patients(drawn[first]) & patients(drawn[second]), (first, second)
            assert not ids(drawn)[first] & ids(drawn)[second], (first, second)


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("No effusion.", "no  EFFUSION\n", True),
        ("No effusion; clear lungs", "No effusion. Clear lungs!", True),
        ("No effusion.", "Effusion.", False),
        ("Größe normal", "GRÖSSE NORMAL", True),
        ("", " .", False),
    ],
)
def test_texts_are_compared_without_case_space_and_punctuation(first: str, second: str, same: bool) -> None:
    keys = [text_key(Report("a", 2, text=text)) for text in (first, second)]
    assert (keys[0] == keys[1] and keys[0] is not None) == same
    assert text_key(Report("a", 2, findings="No effusion.", impression="Clear.")) == text_key(
        Report("b", 2, text="No effusion. Clear.")
    )


def test_what_is_drawn_depends_on_ids_and_seed_alone() -> None:
    reports = [report(place, patient=f"p{place // 3}") for place in range(60)]
    sizes = {"held_out": 10, "test": 8}
    drawn = ids(draw_sets(reports, sizes, seed=0))
    assert {name: len(found) for name, found in drawn.items()} == {"held_out": 9, "test": 6, "training": 45}
    shuffled = list(reports)
    random.Random(1).shuffle(shuffled)
    assert ids(draw_sets(shuffled, sizes, seed=0)) == drawn
    assert ids(draw_sets(reports, sizes, seed=1)) != drawn


def test_a_patient_stands_in_one_set() -> None:
    rng = random.Random(0)
    reports = [report(place, patient=f"p{rng.randrange(40)}" if place % 5 else "") for place in range(200)]
    drawn = draw_sets(reports, {"held_out": 30, "test": 20}, seed=0)
    refuse_leaks(drawn)
    assert [len(drawn[name]) for name in ("held_out", "test")] == [30, 20]
    assert sum(map(len, drawn.values())) == 200  # nothing is lost


def test_reports_with_the_same_text_stay_together() -> None:
    reports = [report(place, f"Text {place // 2}{'.' * (place % 2)}") for place in range(100)]
    drawn = draw_sets(reports, {"held_out": 21, "test": 10}, seed=0)
    refuse_leaks(drawn)
    assert [len(drawn[name]) for name in ("held_out", "test", "training")] == [20, 10, 70]


def test_a_text_of_very_many_reports_stays_in_training() -> None:
    reports = [report(place, TEMPLATE if place < 70 else None) for place in range(100)]
    drawn = draw_sets(reports, {"held_out": 12, "test": 12}, seed=0)
    refuse_leaks(drawn)
    assert [len(drawn[name]) for name in ("held_out", "test", "training")] == [12, 12, 76]


@pytest.mark.parametrize("seed", range(3))
def test_templates_that_chain_all_patients_together_leave_sets_to_draw(seed: int) -> None:
    """Every patient has one report of a template, and rarer texts join pairs of patients."""
    reports = [report(place, TEMPLATE.upper() if place % 3 == 0 else None, f"p{place // 3}") for place in range(300)]
    reports += [report(300 + place, f"Rare {place // 2}", f"p{place}") for place in range(20)]
    drawn = draw_sets(reports, {"held_out": 30, "test": 30}, seed=seed)
    refuse_leaks(drawn)
    assert all(25 <= len(drawn[name]) <= 30 for name in ("held_out", "test"))
    template = text_key(report(0, TEMPLATE))
    assert sum(text_key(one) == template for one in drawn["training"]) >= 60  # of 100
    assert len(drawn["training"]) >= 200


def reports_table(path: Path, rows: list[tuple[str, ...]], *header: str) -> None:
    write_table(path, tuple(rows), header)


def split(folder: Path, **section: Any) -> ReportSets:
    content = {"reports": {"table": "table.csv"} | section, "stages": [{"stage": "rlcf", "iterations": 1}]}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    recipe = load_recipe(path)
    if isinstance(recipe.reports.test, Path):  # as `tune` does
        reports = recipe.reports.model_copy(update={"test": folder / recipe.reports.test})
        recipe = recipe.model_copy(update={"reports": reports})
    return split_reports(recipe)


def with_patients(first: int, last: int) -> list[tuple[str, ...]]:
    return [(f"s{place}", f"p{place // 2}", f"Secret text {place}.") for place in range(first, last)]


HEADER = ("study_id", "subject_id", "report")


def test_patients_are_found_by_their_usual_column_or_a_named_one(tmp_path: Path) -> None:
    for header, columns in ((HEADER, {}), (("study_id", "who", "report"), {"patient_id": "who"})):
        reports_table(tmp_path / "table.csv", with_patients(0, 40), *header)
        sets = split(tmp_path, held_out=10, test=6, columns=columns)
        refuse_leaks({name: list(getattr(sets, name)) for name in ("training", "held_out", "test")})
        assert sets.summary == "24 to train, 10 held out, 6 to test; separated by patient"
    reports_table(tmp_path / "table.csv", with_patients(0, 40), "study_id", "who", "report")
    assert split(tmp_path, held_out=10, test=6).summary.endswith(
        "separated by report, since there is no column of patient ids"
    )


def test_a_table_of_its_own_has_the_named_columns_too(tmp_path: Path) -> None:
    for name, span in (("table", (0, 20)), ("held", (20, 30))):
        reports_table(tmp_path / f"{name}.csv", with_patients(*span), "key", "who", "words")
    columns = {"report_id": "key", "patient_id": "who", "report": "words"}
    assert len(split(tmp_path, held_out="held.csv", columns=columns).held_out) == 10


def test_reports_without_a_patient_and_reports_left_out_are_counted(tmp_path: Path) -> None:
    rows = [*with_patients(0, 40), ("s40", "", "Secret text 40.")]
    rows += [(f"t{place}", f"p{place}", TEMPLATE) for place in range(20)]
    reports_table(tmp_path / "table.csv", rows, *HEADER)
    sets = split(tmp_path, held_out=4, test=4)
    assert "separated by patient, 1 reports without a patient id by report" in sets.summary
    assert sets.left_out == 61 - len(sets.training) - len(sets.held_out) - len(sets.test) > 0
    assert f"; {sets.left_out} left out, because their text or patient stands in another set" in sets.summary


@pytest.mark.parametrize(
    ("rows", "held_out", "expected"), [(400, 100, 75), (600, 100, 100), (160, 60, 25), (7, 2, 0), (10, 2, 2)]
)
def test_the_default_test_set_suits_the_table(rows: int, held_out: int, expected: int, tmp_path: Path) -> None:
    reports_table(tmp_path / "table.csv", [(f"s{n}", f"Text {n}") for n in range(rows)], "id", "report")
    sets = split(tmp_path, held_out=held_out)
    assert [len(one) for one in (sets.held_out, sets.test)] == [held_out, expected]
    assert len(sets.training) == rows - held_out - expected
    assert not split(tmp_path, held_out=held_out, test=0).test


def test_patients_with_many_reports_leave_a_default_test_out(tmp_path: Path) -> None:
    """Two reports would be drawn, but every patient has four: nobody asked for a test, so that there is none."""
    rows = [(f"s{n}", f"p{n // 4}", f"Text {n}.") for n in range(12)]
    reports_table(tmp_path / "table.csv", rows, *HEADER)
    sets = split(tmp_path, held_out=4)
    assert [len(one) for one in (sets.training, sets.held_out, sets.test)] == [8, 4, 0]
    with pytest.raises(RecipeError, match=r"reports\.test 2: every patient or text of"):
        split(tmp_path, held_out=4, test=2)


def test_tables_of_their_own_are_used_whole(tmp_path: Path) -> None:
    for name, span in (("table", (0, 20)), ("held", (20, 30)), ("test", (30, 36))):
        reports_table(tmp_path / f"{name}.csv", with_patients(*span), *HEADER)
    sets = split(tmp_path, held_out="held.csv", test="test.csv")
    assert sets.summary == "20 to train, 10 held out, 6 to test; separated by patient"
    assert [len(one) for one in (split(tmp_path, held_out="held.csv", test=4).test, sets.held_out)] == [4, 10]
    assert len(split(tmp_path, held_out="held.csv").test) == 4  # a quarter of 20 is five; patients stay whole
    reports_table(tmp_path / "held.csv", [("s99", "Other.")], "study_id", "report")
    assert "since a table has no column of patient ids" in split(tmp_path, held_out="held.csv", test=4).summary


OVERLAPS: list[tuple[list[tuple[str, ...]], str]] = [
    ([("s1", "x1", "Other one."), ("s2", "x2", "Other two.")], "2 report ids are also in"),
    ([("x1", "p1", "Other one."), ("x2", "p1", "Other two.")], "1 patients are also in"),
    ([("x1", "x1", "SECRET  text 3"), ("x2", "x2", "Other two.")], "1 report texts are also in"),
    ([("s1", "p1", "secret text 3")], "1 report ids, 1 patients, 1 report texts are also in"),
]


@pytest.mark.parametrize("key", ["held_out", "test"])
@pytest.mark.parametrize(("rows", "message"), OVERLAPS)
def test_tables_that_overlap_are_refused_with_counts(
    key: str, rows: list[tuple[str, ...]], message: str, tmp_path: Path
) -> None:
    reports_table(tmp_path / "table.csv", with_patients(0, 20), *HEADER)
    reports_table(tmp_path / "own.csv", rows, *HEADER)
    with pytest.raises(RecipeError) as refused:
        split(tmp_path, **({"held_out": 2} | {key: "own.csv"}))
    assert f"reports.{key}: {message} table.csv" in str(refused.value)
    assert "secret" not in str(refused.value).casefold()


def test_held_out_and_test_tables_that_overlap_are_refused(tmp_path: Path) -> None:
    reports_table(tmp_path / "table.csv", with_patients(0, 20), *HEADER)
    reports_table(tmp_path / "held.csv", with_patients(20, 30), *HEADER)
    reports_table(tmp_path / "test.csv", [("new", "p14", "New.")], *HEADER)
    with pytest.raises(RecipeError, match=r"reports.test: 1 patients are also in held.csv"):
        split(tmp_path, held_out="held.csv", test="test.csv")
    with pytest.raises(RecipeError, match=r"reports.test: held.csv is held.csv again"):
        split(tmp_path, held_out="held.csv", test="held.csv")


def test_an_id_that_looks_like_a_line_is_an_id_if_a_column_gives_it(tmp_path: Path) -> None:
    for name, word in (("table", "One"), ("held", "Two")):
        reports_table(tmp_path / f"{name}.csv", [(f"row-{n}", f"{word} {n}") for n in range(8)], "id", "report")
    with pytest.raises(RecipeError, match=r"reports.held_out: 8 report ids are also in table.csv"):
        split(tmp_path, held_out="held.csv")


def test_rows_named_by_their_line_are_compared_by_text(tmp_path: Path) -> None:
    reports_table(tmp_path / "table.csv", [(f"One {n}",) for n in range(8)], "report")
    reports_table(tmp_path / "held.csv", [(f"Two {n}",) for n in range(8)], "report")
    assert len(split(tmp_path, held_out="held.csv").held_out) == 8
    reports_table(tmp_path / "held.csv", [(f"Two {n}",) for n in range(8)] + [("one 3.",)], "report")
    with pytest.raises(RecipeError, match=r"reports.held_out: 1 report texts are also in table.csv"):
        split(tmp_path, held_out="held.csv")


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"held_out": 20}, "reports.held_out 20: "),
        ({"held_out": 12, "test": 8}, "reports.held_out 12 and reports.test 8: "),
        ({"held_out": 1, "test": 0}, "every patient or text of"),
    ],
)
def test_sets_that_cannot_be_drawn_are_refused(section: dict[str, Any], message: str, tmp_path: Path) -> None:
    reports_table(tmp_path / "table.csv", with_patients(0, 20), *HEADER)
    with pytest.raises(RecipeError) as refused:
        split(tmp_path, **section)
    assert message in str(refused.value)


def test_a_set_that_stays_smaller_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reports_table(tmp_path / "table.csv", with_patients(0, 20), *HEADER)
    assert len(split(tmp_path, held_out=5, test=0).held_out) == 4
    assert "reports.held_out 5: 4 reports, since patients and repeated texts stay together" in capsys.readouterr().err
