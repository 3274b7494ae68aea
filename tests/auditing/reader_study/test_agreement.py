"""Kappas against published examples and values computed by hand."""

import numpy as np
import pytest

from cxrsynth.auditing.reader_study.agreement import agreement, cohen_kappa, fleiss_kappa

# Fleiss 1971, table 1: 30 patients and six psychiatrists; depression, personality disorder, schizophrenia, neurosis,
# other.
FLEISS_1971 = """
00060 03003 01401 00006 03030 20400 00402 20310 20040 00006 10050 11040 03300 10050 02031
00501 30012 51000 02040 10203 00006 01050 02013 20040 10041 05010 40002 02040 10500 00006
"""


def test_fleiss_example_of_1971() -> None:
    counts = np.array([[int(count) for count in row] for row in FLEISS_1971.split()])
    assert counts.shape == (30, 5)
    assert counts.sum(0).tolist() == [26, 26, 30, 55, 43]
    assert fleiss_kappa(counts) == pytest.approx(0.430, abs=5e-4)


def test_fleiss_at_its_ends() -> None:
    assert fleiss_kappa(np.array([[3, 0], [0, 3]])) == 1
    # Two raters who never agree.
    assert fleiss_kappa(np.array([[1, 1], [1, 1]])) == -1
    assert fleiss_kappa(np.array([[3, 0], [3, 0]])) is None
    assert fleiss_kappa(np.zeros((0, 2), dtype=np.int64)) is None
    for counts in ([[1, 0], [0, 1]], [[2, 0], [0, 3]]):
        with pytest.raises(ValueError, match="same number of raters"):
            fleiss_kappa(np.array(counts))


def test_cohen_by_hand() -> None:
    # 50 images: both yes 20, both no 15, only the first 5, only the second 10. Agreement 0.7, by chance 0.5.
    one = ["yes"] * 20 + ["no"] * 15 + ["yes"] * 5 + ["no"] * 10
    other = ["yes"] * 20 + ["no"] * 15 + ["no"] * 5 + ["yes"] * 10
    assert cohen_kappa(one, other) == pytest.approx(0.4)
    assert cohen_kappa(["yes"] * 3, ["yes"] * 3) is None
    assert cohen_kappa([], []) is None
    # Neighboring grades weigh less than distant ones.
    near, far = (cohen_kappa([1, 5, 3], [grade, 5, 3], weights="quadratic") for grade in (2, 5))
    assert near is not None
    assert far is not None
    assert near > far


def test_a_grade_that_nobody_gave_is_a_step_of_the_scale() -> None:
    """Both gave 1, 2 and 5 only: disagreement 1 of 16 and 9 of 16; by chance the mean of all nine pairs."""
    one, other, scale = [1, 2, 5, 2], [1, 1, 5, 5], [1, 2, 3, 4, 5]
    apart = np.subtract.outer(one, other) ** 2
    expected = 1 - apart.diagonal().mean() / apart.mean()
    assert cohen_kappa(one, other, weights="quadratic", scale=scale) == pytest.approx(expected)
    assert cohen_kappa(one, other, weights="quadratic") != pytest.approx(expected)
    given = {"A": dict(zip("1234", one, strict=True)), "B": dict(zip("1234", other, strict=True))}
    found = agreement(given, weights="quadratic", scale=scale)
    assert found is not None
    assert found["pairs"][0]["kappa"] == pytest.approx(expected)


def test_readers_are_compared_on_the_images_they_share() -> None:
    given = {
        "A": {"1": "real", "2": "real", "3": "synthetic", "4": "synthetic"},
        "B": {"1": "real", "2": "real", "3": "synthetic", "4": "synthetic"},
        "C": {"1": "real", "2": "synthetic", "3": "synthetic"},
    }
    found = agreement(given)
    assert found is not None
    assert [(pair["readers"], pair["images"]) for pair in found["pairs"]] == [
        (["A", "B"], 4),
        (["A", "C"], 3),
        (["B", "C"], 3),
    ]
    assert found["pairs"][0]["kappa"] == 1
    # A and C agree on two of three; by chance (2 * 1 + 1 * 2) / 9.
    assert found["pairs"][1]["kappa"] == pytest.approx((2 / 3 - 4 / 9) / (1 - 4 / 9))
    assert found["images"] == 3
    # Agreement (1 + 1/3 + 1) / 3; shares 5/9 and 4/9.
    by_chance = (5 / 9) ** 2 + (4 / 9) ** 2
    assert found["fleiss"] == pytest.approx((7 / 9 - by_chance) / (1 - by_chance))
    assert agreement({"A": given["A"]}) is None
