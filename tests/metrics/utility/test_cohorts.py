"""What is trained on: balanced cohorts are balanced, and each way of training has the images it says."""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cxrsynth.metrics.groups import ImageTable
from cxrsynth.metrics.utility.cohorts import BALANCED, BOTH, PRETRAINED, REAL, SYNTHETIC, Cohorts, draw_cohorts
from tests.auditing.tables import table


def cohorts(made: ImageTable, **options: Any) -> Cohorts:
    return draw_cohorts(made, table(40, seed=1), np.arange(20), **({"least": 10, "seed": 0} | options))


def mixed(count: int = 400) -> ImageTable:
    """A fifth are children; men are ill more often."""
    made = table(count, seed=2)
    rng = np.random.default_rng(0)
    sex = ["F" if one else "M" for one in rng.random(count) < 0.5]
    ill = rng.random(count) < [0.2 if one == "F" else 0.7 for one in sex]
    return replace(
        made,
        sex=sex,
        age_group=["child" if one else "adult" for one in rng.random(count) < 0.2],
        present=[{"Edema"} if one else {"No Finding"} for one in ill],
    )


def test_a_balanced_cohort_has_as_many_of_each_sex_and_age_group_and_of_the_ill_among_them() -> None:
    drawn = cohorts(mixed(), least=5)
    arms = {arm.name: arm for arm in drawn.arms("Edema")}
    balanced = arms[BALANCED].beside
    assert balanced is not None
    counts = Counter(
        (*subject, "Edema" in present)
        for subject, present in zip(balanced.subjects, balanced.present, strict=True)
        if subject
    )
    assert len(counts) == 8
    assert set(counts.values()) == {min(counts.values())}
    assert min(counts.values()) >= 5
    assert drawn.balanced_by("Edema")


def test_a_finding_too_rare_to_balance_leaves_sex_and_age_balanced() -> None:
    made = mixed()
    rare = replace(made, present=[{"Edema"} if place < 12 else {"No Finding"} for place in range(400)])
    drawn = cohorts(rare)
    balanced = {arm.name: arm for arm in drawn.arms("Edema")}[BALANCED].beside
    assert balanced is not None
    counts = Counter(balanced.subjects)
    assert (len(counts), len(set(counts.values()))) == (4, 1)
    assert len(balanced) == 4 * min(Counter(drawn.synthetic.subjects).values())
    assert not drawn.balanced_by("Edema")


def test_one_group_or_unknown_subjects_cannot_be_balanced() -> None:
    adults = replace(table(200, seed=2), age_group=["adult"] * 200)
    few = replace(adults, age_group=["child" if place in (0, 6) else "adult" for place in range(200)])
    cases = {
        "2 synthetic images show M, child, expected at least 10": replace(few, sex=["M"] * 200),
        "0 synthetic images show F, child, expected at least 10": few,
        "no synthetic image has a known sex and age group": replace(adults, sex=[None] * 200),
        "all synthetic images show one sex and age group (M, adult)": replace(adults, sex=["M"] * 200),
    }
    for reason, made in cases.items():
        assert cohorts(made).unbalanced == reason
        assert BALANCED not in {arm.name for arm in cohorts(made).arms("Edema")}


def test_images_of_a_cohort_are_drawn_once_and_by_seed() -> None:
    def rows(seed: int) -> set[bytes]:
        arms = {arm.name: arm for arm in cohorts(mixed(), least=5, seed=seed).arms("Edema")}
        features = arms[BALANCED].beside
        assert features is not None
        kept = {row.tobytes() for row in features.features}
        assert len(kept) == len(features)
        return kept

    assert rows(0) == rows(0) != rows(1)


def test_every_arm_has_the_images_it_says() -> None:
    made = mixed()
    arms = {arm.name: arm for arm in cohorts(made, least=5).arms()}
    sizes = {name: [(stage, len(images)) for stage, images in arm.stages()] for name, arm in arms.items()}
    assert sizes[SYNTHETIC] == [(SYNTHETIC, 400)]
    assert sizes[REAL] == [(REAL, 20)]
    assert sizes[BOTH] == [(BOTH, 420)]
    assert sizes[PRETRAINED] == [(SYNTHETIC, 400), (REAL, 20)]
    assert arms[PRETRAINED].beside is None


@pytest.mark.parametrize("pixels", [True, False])
def test_pixels_go_with_their_images(pixels: bool) -> None:
    count = 400
    numbered = np.arange(count, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 2), dtype=np.uint8)
    made = replace(mixed(count), pixels=numbered if pixels else None)
    made.features[:, 1] = np.arange(count, dtype=np.uint8)
    balanced = {arm.name: arm for arm in cohorts(made, least=5).arms("Edema")}[BALANCED].beside
    assert balanced is not None
    if not pixels:
        assert balanced.pixels is None
    else:
        assert balanced.pixels is not None
        assert balanced.pixels[:, 0, 0].tolist() == balanced.features[:, 1].tolist()
