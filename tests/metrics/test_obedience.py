"""Obedience: the area under the curve of what was requested, with its interval."""

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from cxrsynth.metrics.obedience import measure_obedience

HEADS = ("Edema", "Cardiomegaly")


def images(count: int, strength: float, seed: int = 0) -> tuple[list[set[str]], Any]:
    """Images of which every second one is asked for an edema, and logits that follow it so strongly."""
    rng = np.random.default_rng(seed)
    present = [{"Edema"} if place % 2 else {"No Finding"} for place in range(count)]
    logits = rng.normal(size=(count, 2)).astype(np.float32)
    logits[1::2, 0] += strength
    return present, logits


def row_of(rows: list[dict[str, Any]], finding: str) -> dict[str, Any]:
    return next(row for row in rows if row["finding"] == finding)


@pytest.mark.parametrize("strength", [0.0, 1.0, 10.0])
def test_the_area_is_that_of_sklearn_and_its_interval_holds_it(strength: float) -> None:
    present, logits = images(200, strength)
    row = row_of(measure_obedience(present, logits, HEADS, [""] * 200, seed=0), "Edema")
    expected = roc_auc_score([place % 2 for place in range(200)], logits[:, 0])
    assert row["auroc"]["value"] == pytest.approx(expected)
    assert row["auroc"]["low"] <= expected <= row["auroc"]["high"]
    assert (row["requested"], row["not_requested"]) == (100, 100)
    assert (row["auroc"]["low"] > 0.6) == (strength > 0)
    assert (row["auroc"]["low"] <= 0.5 <= row["auroc"]["high"]) == (strength == 0)


def test_images_of_one_report_count_as_one() -> None:
    """Ten copies of each of 20 images say no more than the 20: the interval must not shrink."""
    present, logits = images(20, 1.0)
    copies = [names for names in present for _ in range(10)], np.repeat(logits, 10, axis=0)
    patients = [str(place) for place in range(20) for _ in range(10)]

    def width(row: dict[str, Any]) -> float:
        return float(row["auroc"]["high"] - row["auroc"]["low"])

    once = row_of(measure_obedience(present, logits, HEADS, [""] * 20, least=5, seed=0), "Edema")
    known = row_of(measure_obedience(*copies, HEADS, patients, least=5, seed=0), "Edema")
    few = [str(place // 60) for place in range(200)]
    assert row_of(measure_obedience(*copies, HEADS, few, seed=0), "Edema")["auroc"] is None
    unknown = row_of(measure_obedience(*copies, HEADS, [""] * 200, seed=0), "Edema")
    assert width(known) == pytest.approx(width(once), rel=0.1)
    assert width(unknown) < 0.5 * width(known)


def test_what_cannot_be_measured_is_listed_without_a_number() -> None:
    present, logits = images(40, 1.0)
    present[0] = {"Cardiomegaly", "Fracture"}
    rows = measure_obedience(present, logits, HEADS, [""] * 40, seed=0)
    assert [row["finding"] for row in rows] == ["No Finding", "Cardiomegaly", "Edema", "Fracture"]
    assert row_of(rows, "Cardiomegaly") == {
        "finding": "Cardiomegaly",
        "requested": 1,
        "not_requested": 39,
        "auroc": None,
    }
    assert row_of(rows, "No Finding")["auroc"] is None  # no output of that name
    assert row_of(rows, "Edema")["auroc"] is not None


def test_nothing_asked_for_gives_no_rows() -> None:
    assert measure_obedience([set()] * 12, np.zeros((12, 2), np.float32), HEADS, [""] * 12, seed=0) == []
