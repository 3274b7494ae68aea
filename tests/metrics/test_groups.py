"""Fidelity by group: equal counts, too few, the floor, and laws of shift."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cxrsynth.metrics import groups
from cxrsynth.metrics.fidelity import frechet_distance
from cxrsynth.metrics.groups import ImageTable, measure_groups
from tests.auditing.tables import table

MEASURES = ("frechet", "frechet_infinity", "kid", "mmd", "precision", "recall", "density", "coverage")


def rows(made: ImageTable, real: ImageTable, **options: Any) -> dict[str, dict[str, Any]]:
    return {row["group"]: row for row in measure_groups(made, real, seed=0, **options)}


def test_equal_sets_are_near_and_shifted_ones_are_not() -> None:
    real = table(400, seed=1)
    same, shifted = (rows(table(150, seed=2, shift=shift), real)["all"] for shift in (0.0, 1.0))
    assert same["compared"] == shifted["compared"] == 150
    assert abs(same["kid"]["value"]) < 0.3 < shifted["kid"]["low"]
    assert same["floor"]["frechet_ratio"] < 2 < 10 < shifted["floor"]["frechet_ratio"]
    assert same["frechet_infinity"]["low"] < 0.2 * same["frechet"]["value"]
    assert shifted["frechet_infinity"]["low"] <= 8.0 <= shifted["frechet_infinity"]["high"]  # 8 features, shifted by 1
    assert shifted["frechet"]["low"] > same["frechet"]["high"]
    assert shifted["coverage"]["high"] < same["coverage"]["low"]
    for name in MEASURES:
        assert same[name]["low"] <= same[name]["value"] <= same[name]["high"]


def test_images_against_themselves_are_at_zero() -> None:
    real = table(120, seed=1)
    row = rows(real, real)["all"]
    assert row["frechet"]["value"] == pytest.approx(0, abs=1e-6)
    assert row["precision"]["value"] == row["recall"]["value"] == row["coverage"]["value"] == 1


def test_every_group_is_compared_at_equal_counts_or_listed_as_too_few() -> None:
    made, real = table(200, seed=2), table(300, seed=1)
    made.present[0].add("Fracture")
    found = rows(made, real)
    assert list(found) == [
        *("all", "finding: No Finding", "finding: Edema", "finding: Fracture"),
        *("view: AP", "view: PA", "sex: F", "sex: M", "age group: adult"),
    ]
    counted = sum("Edema" in names for names in made.present)
    assert found["finding: Edema"]["images"] == found["finding: Edema"]["compared"] == counted
    assert (found["finding: Fracture"]["images"], found["finding: Fracture"]["real"]) == (1, 0)
    assert all(found["finding: Fracture"][name] is None for name in (*MEASURES, "compared", "floor"))
    few = {"all": "1 audited and 0 real images, expected at least 20 of each"}
    assert found["finding: Fracture"]["not_measured"] == few
    assert len({tuple(row) for row in found.values()}) == 1
    assert rows(made, real, least=200)["view: PA"]["frechet"] is None


def test_a_group_is_its_own_images_alone() -> None:
    real, made = table(400, seed=1), table(300, seed=2)
    made.features[[place for place, view in enumerate(made.view) if view == "PA"]] += 3.0
    found = rows(made, real)
    assert found["view: PA"]["kid"]["low"] > 10 * abs(found["view: AP"]["kid"]["value"])
    other = replace(made, sex=[None] * 300)  # fewer groups, same numbers
    assert rows(other, real)["view: PA"] == found["view: PA"]


def test_no_more_than_the_most_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "MOST", 60)
    seen = []

    def counted(first: Any, second: Any) -> float:
        seen.append((len(first), len(second)))
        return frechet_distance(first, second)

    monkeypatch.setattr("cxrsynth.metrics.fidelity.frechet_distance", counted)
    row = rows(table(200, seed=2), table(150, seed=1))["all"]
    assert (row["images"], row["real"], row["compared"]) == (200, 150, 60)
    assert seen[0] == (60, 60)
    assert max(seen) == (60, 60)


def test_the_floor_wants_patients_enough() -> None:
    made = table(100, seed=2)
    row = rows(made, table(220, seed=1))["all"]
    assert (row["floor"]["images"], row["floor"]["patients"], row["not_measured"]) == (100, 110, {})
    assert rows(made, table(190, seed=1))["all"]["floor"]["images"] == 94  # what the smaller half has
    unknown = rows(made, replace(table(400, seed=1), patients=[""] * 400))["all"]
    assert unknown["floor"] is None
    assert unknown["not_measured"] == {"floor": "real images of 0 known patients, expected at least 20"}


def test_the_extrapolated_distance_has_a_floor_around_0() -> None:
    """Of all images, where a half has more of them than features."""
    real = table(700, seed=1)
    same, shifted = (rows(table(300, seed=2, shift=shift), real) for shift in (0.0, 1.0))
    floor = same["all"]["floor"]["frechet_infinity"]
    assert floor["low"] < 0 < floor["high"]
    assert abs(same["all"]["floor"]["audited"]["frechet_infinity"]) < 3 * floor["high"]
    assert shifted["all"]["floor"]["audited"]["frechet_infinity"] > 10 * floor["high"]
    assert [row["floor"]["frechet_infinity"] for name, row in same.items() if name != "all" and row["floor"]] != []
    assert {str(row["floor"]["frechet_infinity"]) for name, row in same.items() if name != "all" and row["floor"]} == {
        "None"
    }


def test_few_images_are_compared_by_what_does_not_depend_on_their_number() -> None:
    pixels = np.zeros((400, 24, 24), dtype=np.uint8)
    real = replace(table(400, seed=1, per_patient=1), pixels=pixels)
    many = {shift: table(200, seed=2, shift=shift) for shift in (0.0, 1.0)}
    same, shifted = (rows(made.take(np.arange(24)), real)["all"] for made in many.values())
    assert same["compared"] == 24
    assert same["mmd"]["low"] < 0 < same["mmd"]["high"]
    assert same["floor"]["mmd"]["low"] < 0 < same["floor"]["mmd"]["high"]
    assert shifted["mmd"]["low"] > same["floor"]["mmd"]["high"]
    of_many = rows(many[1.0], real)["all"]
    assert shifted["mmd"]["low"] < of_many["mmd"]["value"] < shifted["mmd"]["high"]
    why = "24 audited and 400 real images, expected at least 50 of each"
    left = [name for name in of_many if same[name] is None]
    assert left == ["frechet", "frechet_infinity", *MEASURES[4:], "ms_ssim_within", "ms_ssim_real", "ms_ssim_to_real"]
    assert same["not_measured"] == dict.fromkeys(left, why)
    assert set(same["warnings"]) == {"kid", "mmd"}
    fewest = rows(many[0.0].take(np.arange(19)), real)["all"]
    assert all(fewest[name] is None for name in (*MEASURES, "compared", "floor"))


def test_a_floor_of_few_images_is_one_of_the_kernel_distances() -> None:
    made = table(100, seed=2)
    row = rows(made, table(90, seed=1))["all"]
    assert row["compared"] == 90
    assert row["floor"]["images"] == 44
    assert row["floor"]["frechet"] is row["floor"]["frechet_ratio"] is None
    assert row["floor"]["mmd"]["low"] < row["floor"]["mmd"]["high"]
    why = "known for KID and MMD alone: 44 real images in one half of the patients, expected at least 50"
    assert row["not_measured"] == {}
    assert row["warnings"]["floor"] == why
    assert row["frechet"] is not None


def test_a_measure_that_means_little_at_its_size_says_so() -> None:
    wide = np.random.default_rng(0).normal(size=(240, 60)).astype(np.float32)
    made, real = (replace(table(120, seed=seed), features=wide[120 * seed :][:120]) for seed in (0, 1))
    assert rows(made, real)["all"]["warnings"] == {}
    few = rows(made.take(np.arange(70)), real)["all"]
    assert set(few["warnings"]) == {"frechet", "precision", "recall", "density", "coverage"}
    assert few["warnings"]["frechet"].startswith("70 images for 60 features")
    assert few["frechet_infinity"] is not None
    fewest = rows(made.take(np.arange(60)), real)["all"]
    assert fewest["frechet_infinity"] is None
    assert fewest["not_measured"]["frechet_infinity"] == "60 images for 60 features, expected more images than features"


def test_images_of_a_patient_widen_the_intervals() -> None:
    """Every image six times: the distances stay, and what they rest on is a sixth."""
    once, others = table(60, seed=1, per_patient=1), table(60, seed=2, shift=0.3, per_patient=1)
    real, made = once.take(np.arange(360) % 60), others.take(np.arange(360) % 60)
    known = rows(made, real)["all"]
    torn = rows(replace(made, patients=[""] * 360), replace(real, patients=[""] * 360))["all"]
    assert known["kid"] == torn["kid"] == torn["mmd"]
    assert known["mmd"]["value"] < known["kid"]["value"]  # copies are no evidence of a narrow population
    for name in ("frechet", "frechet_infinity", "mmd"):
        assert known[name]["high"] - known[name]["low"] > 1.5 * (torn[name]["high"] - torn[name]["low"]), name


def test_diversity_is_measured_where_there_are_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 24, 24)).astype(np.uint8)
    real = replace(table(60, seed=1), pixels=pixels)
    collapsed = replace(table(60, seed=2), pixels=pixels[[0] * 60])
    row = rows(collapsed, real, pairs=10)["all"]
    assert row["ms_ssim_within"]["value"] == pytest.approx(1, abs=1e-5)
    assert row["ms_ssim_real"]["high"] < 0.5
    assert row["ms_ssim_to_real"]["high"] < 0.5
    assert rows(table(60, seed=2), real)["all"]["ms_ssim_within"] is None


def test_tables_that_cannot_be_are_refused() -> None:
    good = table(60, seed=1)
    with pytest.raises(ValueError, match="expected 60 as features have"):
        replace(good, patients=["p"])
    with pytest.raises(ValueError, match="all finite"):
        replace(good, features=good.features * np.float32("nan"))
    with pytest.raises(ValueError, match="expected one extractor"):
        measure_groups(good, replace(good, features=good.features[:, :3]), seed=0)
