"""Utility of made images: a planted help is found, no help is not, and no patient is on both sides."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cxrsynth.errors import ReportsError
from cxrsynth.metrics.groups import ImageTable
from cxrsynth.metrics.utility import cohorts
from cxrsynth.metrics.utility.cohorts import BALANCED, BOTH, PRETRAINED, SYNTHETIC, TRAINED_ON, halves, split_patients
from cxrsynth.metrics.utility.measure import check_real, measure_utility
from cxrsynth.metrics.utility.network import HELD_OUT
from tests.auditing.tables import table

FINDINGS = ("No Finding", "Edema", "Fracture")


def found(made: ImageTable, real: ImageTable, **options: Any) -> dict[str, Any]:
    return measure_utility(made, real, seed=0, rounds=100, **options)


def area(result: dict[str, Any], trained_on: str, finding: str = "Edema", group: str = "all") -> dict[str, float]:
    cell = {"finding": finding, "group": group, "trained_on": trained_on}
    return next(row["auroc"] for row in result["rows"] if cell.items() <= row.items())


def lift(result: dict[str, Any], trained_on: str = BOTH) -> dict[str, float]:
    cell = {"finding": "Edema", "group": "all", "trained_on": trained_on}
    return next(row for row in result["lift"] if cell.items() <= row.items())


def rates(result: dict[str, Any], trained_on: str, finding: str = "Edema") -> dict[str, dict[str, Any]]:
    rows = [row for row in result["underdiagnosis"] if (row["trained_on"], row["finding"]) == (trained_on, finding)]
    return {row["group"]: row for row in rows}


def noisy(radiographs: ImageTable, *, seed: int, width: int = 100) -> ImageTable:
    """More features, all useless: few images are not enough to learn which one is useful."""
    more = np.random.default_rng(seed).normal(size=(len(radiographs.features), width)).astype(np.float32)
    return replace(radiographs, features=np.hstack([radiographs.features, more]))


@pytest.mark.slow
def test_useful_images_lift_and_useless_ones_do_not() -> None:
    real = noisy(table(400, seed=1, share=0.15), seed=3)
    useful, useless = (noisy(table(800, seed=2, effect=effect), seed=4) for effect in (2.0, 0.0))
    helped, left = found(useful, real), found(useless, real)
    assert min(lift(helped)["low"], lift(helped, PRETRAINED)["low"]) > 0
    assert lift(left)["high"] < 0  # they drown the real ones
    # Of what was learned before, only as much is taken over as helps.
    assert lift(left, PRETRAINED)["value"] == pytest.approx(0, abs=0.01)
    assert lift(left, PRETRAINED)["low"] > lift(left)["high"]
    assert area(helped, "synthetic")["value"] > 0.8
    assert area(left, "synthetic")["value"] < area(left, "real")["low"]
    assert area(helped, "real") == area(left, "real")  # the same images, split and resampling
    moved = area(helped, "real + synthetic")["value"] - area(helped, "real")["value"]
    assert lift(helped)["value"] == pytest.approx(moved)


def both_ages(count: int, *, seed: int, **options: Any) -> ImageTable:
    return replace(
        table(count, seed=seed, **options), age_group=["child" if p % 4 == 0 else "adult" for p in range(count)]
    )


@pytest.mark.slow
def test_the_mean_is_that_over_findings_on_the_same_patients() -> None:
    real, made = table(300, seed=1), table(300, seed=2)
    for one in (real, made):
        for place in range(0, 300, 5):
            one.present[place].add("Fracture")
    result = found(made, real)
    means = {row["trained_on"]: row for row in result["mean"]}
    assert means["real"]["findings"] == 3
    areas = {name: [area(result, name, one)["value"] for one in FINDINGS] for name in means}
    assert means[BOTH]["auroc"]["value"] == pytest.approx(np.mean(areas[BOTH]))
    assert means[BOTH]["lift"]["value"] == pytest.approx(np.mean(areas[BOTH]) - np.mean(areas["real"]))
    assert means["real"]["lift"] is None


def test_those_who_are_missed_and_the_gap_between_groups() -> None:
    """The finding cannot be seen in men: four in five of them are missed, where one in five others is called ill."""
    real, made = both_ages(1600, seed=1, effect=3.0), both_ages(400, seed=2, effect=3.0)
    men = np.array([sex == "M" for sex in real.sex])
    real.features[men, 0] = np.random.default_rng(0).normal(size=men.sum())
    result = found(made, real)
    for name in (SYNTHETIC, "real", BOTH, PRETRAINED):
        missed = rates(result, name)
        assert missed["sex: M"]["rate"]["value"] > 0.7
        assert missed["sex: F"]["rate"]["value"] < 0.2
        assert missed["all"]["others_called_positive"] == pytest.approx(0.2, abs=0.06)
        counts = [missed[group]["images"] for group in ("sex: M", "sex: F", "all")]
        assert counts[0] + counts[1] == counts[2]
        [by_sex, by_age] = [row for row in result["gaps"] if (row["trained_on"], row["finding"]) == (name, "Edema")]
        assert (by_sex["between"], by_age["between"]) == (
            ["sex: F", "sex: M"],
            ["age group: adult", "age group: child"],
        )
        assert by_sex["value"] == pytest.approx(missed["sex: F"]["rate"]["value"] - missed["sex: M"]["rate"]["value"])
        assert by_sex["high"] < -0.4
        assert by_age["low"] < 0 < by_age["high"]
    # The two findings exclude each other: who is called normal by the one is called negative by the other.
    normal = rates(result, "real", "No Finding")
    assert normal["sex: M"]["rate"]["value"] > 0.7
    assert normal["sex: M"]["images"] == rates(result, "real")["sex: M"]["images"]


def test_a_set_without_a_balanced_cohort_is_measured_in_the_other_ways() -> None:
    result = found(table(100, seed=2), replace(table(100, seed=1), sex=[None] * 100))
    assert result["not_measured"] == {}
    result = found(replace(table(100, seed=2), sex=[None] * 100), table(100, seed=1))
    assert result["not_measured"] == {BALANCED: "no synthetic image has a known sex and age group"}
    assert {row["trained_on"] for row in result["rows"]} == {*TRAINED_ON} - {BALANCED}
    assert result["balanced_by"] == []


def test_labels_that_lie_turn_the_ranking() -> None:
    made = table(400, seed=2)
    lying = replace(made, present=[{"No Finding"} if "Edema" in names else {"Edema"} for names in made.present])
    assert area(found(lying, table(200, seed=1)), "synthetic")["high"] < 0.5


@pytest.mark.slow
def test_shuffled_labels_teach_nothing() -> None:
    areas = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        real, made = (
            replace(one, present=[one.present[place] for place in rng.permutation(len(one.present))])
            for one in (both_ages(600, seed=1), both_ages(600, seed=2))
        )
        result = found(made, real)
        areas += [area(result, trained_on) for trained_on in TRAINED_ON]
    assert np.mean([one["value"] for one in areas]) == pytest.approx(0.5, abs=0.03)
    assert np.mean([one["low"] <= 0.5 <= one["high"] for one in areas]) >= 0.8


def test_a_group_is_tested_on_its_own_images() -> None:
    real = table(600, seed=1)
    hidden = np.array([sex == "M" for sex in real.sex])
    real.features[hidden, 0] = np.random.default_rng(0).normal(size=hidden.sum())  # no signal in men's images
    result = found(table(300, seed=2), real)
    assert area(result, "real", group="sex: F")["low"] > 0.8 > area(result, "real", group="sex: M")["high"]
    assert {row["group"] for row in result["rows"]} == {"all", "sex: F", "sex: M", "view: AP", "view: PA"} | {
        "age group: adult"
    }
    radiographs = {row["group"]: row["images"] for row in result["rows"]}
    assert radiographs["sex: F"] + radiographs["sex: M"] == radiographs["all"]
    assert radiographs["all"] == result["split"]["test"]


@pytest.mark.parametrize("seed", range(5))
def test_no_patient_is_on_both_sides(seed: int) -> None:
    real = table(90, seed=1, per_patient=4)
    real.present[7].clear()  # nothing is known of it
    split = split_patients(real, seed=seed)
    sides = [{real.patients[place] for place in places} for places in (split.train, split.test)]
    assert not sides[0] & sides[1]
    assert sorted([*split.train, *split.test]) == [place for place in range(90) if place != 7]
    assert min(len(split.train), len(split.test)) >= 30


def test_images_of_no_known_patient_are_split_one_by_one_and_counted() -> None:
    real = replace(table(80, seed=1), patients=[""] * 60 + ["p"] * 20)
    split = split_patients(real, seed=0)
    assert set(range(60, 80)) <= set(split.train) or set(range(60, 80)) <= set(split.test)
    assert found(table(60, seed=2), real, least=3)["split"]["patients_unknown"] == 60


def test_too_few_are_listed_and_not_measured() -> None:
    real, made = table(200, seed=1), table(200, seed=2)
    for place in range(40):
        real.present[place].add("Fracture")
    for place in range(3):
        made.present[place].add("Fracture")
        made.present[place].add("Pneumonia")
    result = found(made, real)
    few = {(row["finding"], row["group"], row["in"]): row["present"] for row in result["too_few"]}
    assert few["Pneumonia", "all", "test"] == 0
    assert few["Fracture", "all", "synthetic"] == 3
    assert {row["trained_on"] for row in result["rows"] if row["finding"] == "Fracture"} == {"real", BOTH, BALANCED}
    assert "Pneumonia" not in {row["finding"] for row in result["rows"]}


@pytest.mark.slow
def test_a_finding_of_too_few_patients_is_listed_and_the_others_are_measured() -> None:
    """Twenty images with it to train on, all of two patients: no fold can be predicted from the others."""
    real, made = table(480, seed=1, per_patient=10), table(200, seed=2)
    split = split_patients(real, seed=0)
    to_train, to_test = (
        list(dict.fromkeys(real.patients[place] for place in part)) for part in (split.train, split.test)
    )
    chosen = {*to_train[:2], *to_test[:12]}
    for place, patient in enumerate(real.patients):
        if patient in chosen:
            real.present[place].add("Fracture")
    for place in range(100):
        made.present[place].add("Fracture")
    result = found(made, replace(made, patients=["p0"] * 100 + ["p1"] * 100))
    assert {(row["in"], row["patients"]) for row in result["too_few"] if "patients" in row} >= {("test", 1)}
    result = found(made, real)
    [few] = [row for row in result["too_few"] if "patients" in row and row["in"] != "test"]
    assert (few["finding"], few["in"], few["present"] >= 10) == ("Fracture", "real", True)
    assert {row["trained_on"] for row in result["rows"] if row["finding"] == "Fracture"} == {
        "synthetic",
        BOTH,
        BALANCED,
    }
    assert {row["trained_on"] for row in result["rows"] if row["finding"] == "Edema"} == set(TRAINED_ON)


def test_a_finding_of_one_tested_patient_has_no_interval_of_no_width() -> None:
    """Ten images with it are no ten patients: resampled patients either all have it or none."""
    real, made = table(400, seed=1, per_patient=4), table(200, seed=2)
    chosen = {real.patients[place] for place in split_patients(real, seed=0).test[:12]}
    for place, patient in enumerate(real.patients):
        if patient in chosen:
            real.present[place].add("Fracture")
    for place in range(100):
        made.present[place].add("Fracture")
    result = found(made, real)
    assert "Fracture" not in {row["finding"] for row in result["rows"]}
    assert "Fracture" not in {row["finding"] for row in result["underdiagnosis"]}
    few = next(row for row in result["too_few"] if (row["finding"], row["group"]) == ("Fracture", "all"))
    assert few == few | {"in": "test", "present": 4 * len(chosen), "patients": len(chosen)}
    assert few["present"] >= 10 > few["patients"]


def test_who_has_no_stated_finding_is_not_counted_as_ill() -> None:
    """An uncertain finding is none that a classifier of normal images misses."""
    real, made = table(400, seed=1), table(200, seed=2)
    before = rates(found(made, real), "real", "No Finding")["all"]["images"]
    ill = [place for place, names in enumerate(real.present) if "No Finding" not in names]
    for place in ill[::2]:
        real.present[place].clear()
    real = replace(real, absent=[{"Fracture"} for _ in real.present])
    after = rates(found(made, real), "real", "No Finding")["all"]["images"]
    assert after < 0.7 * before
    test = split_patients(real, seed=0).test
    assert after == sum(bool(real.present[place] - {"No Finding"}) for place in test)


@pytest.mark.slow
def test_images_of_which_all_is_denied_are_known_images() -> None:
    def by_columns(radiographs: ImageTable) -> ImageTable:
        present = [names - {"No Finding"} for names in radiographs.present]
        return replace(radiographs, present=present, absent=[set() if names else {"Edema"} for names in present])

    real, made = table(200, seed=1), table(200, seed=2)
    relabeled = found(by_columns(made), by_columns(real))
    assert relabeled["split"] == found(made, real)["split"]
    assert area(relabeled, "synthetic") == area(found(made, real), "synthetic")


@pytest.mark.slow
def test_no_more_than_the_most_are_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cohorts, "MOST", 70)
    result = found(table(200, seed=2), table(200, seed=1))
    assert (result["split"]["train"], result["split"]["synthetic"]) == (70, 70)
    assert result["split"]["test"] > 70


@pytest.mark.slow
def test_whole_patients_are_resampled() -> None:
    """Twenty copies of each image hold no more information than one: intervals must not shrink."""
    one, made = table(120, seed=1, effect=1.0, per_patient=1), table(200, seed=2, effect=1.0)
    places = np.repeat(np.arange(120), 20)
    many = ImageTable(
        features=one.features[places],
        **{
            name: [getattr(one, name)[place] for place in places]
            for name in ("view", "sex", "age_group", "present", "patients")
        },
    )
    single, copied = (area(found(made, real), "synthetic") for real in (one, many))
    assert copied["high"] - copied["low"] > 0.7 * (single["high"] - single["low"])


def test_a_reference_without_labels_is_reported() -> None:
    bare = replace(table(60, seed=1), present=[set() for _ in range(60)])
    with pytest.raises(ReportsError, match="reference: no image has a finding stated as present"):
        measure_utility(table(60, seed=2), bare, seed=0)
    alone = replace(table(60, seed=1), patients=["p"] * 60)
    with pytest.raises(ReportsError, match="of a single patient"):
        measure_utility(table(60, seed=2), alone, seed=0)
    for patients in (2, 3):
        few = replace(alone, patients=[f"p{place % patients}" for place in range(60)])
        check_real(few, seed=0, network=False)
        with pytest.raises(
            ReportsError, match=rf"of {patients} patients, 1 of them to train on\n  expected: at least 2"
        ):
            check_real(few, seed=0, network=True)
    four = replace(alone, patients=[f"p{place % 4}" for place in range(60)])
    train = [four.patients[place] for place in check_real(four, seed=0, network=True).train]
    assert all(len(part) for part in halves(train, share=HELD_OUT, seed=0))
