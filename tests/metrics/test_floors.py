"""Real against real: halves by patient, sizes, and what has no floor."""

import numpy as np
import pytest

from cxrsynth.metrics import floors
from cxrsynth.metrics.fidelity import Features
from cxrsynth.metrics.floors import halves, measure_floor, rows_by_patient

MEASURES = ("frechet", "kid", "mmd", "precision", "recall", "density", "coverage")


def reference(patients: int, per_patient: int, *, shared: float = 0.0) -> tuple[Features, list[list[int]]]:
    """Features of width 6, `shared` of whose variance the images of a patient have in common, and each one's rows."""
    rng = np.random.default_rng(1)
    owner = np.arange(patients * per_patient) // per_patient
    features = np.sqrt(1 - shared) * rng.normal(size=(len(owner), 6))
    features += np.sqrt(shared) * rng.normal(size=(patients, 6))[owner]
    return features, rows_by_patient([f"p{one}" for one in owner], np.arange(len(owner)))


def found_for(features: Features, of_patients: list[list[int]], made: Features, least: int = 50) -> dict[str, object]:
    rng = np.random.default_rng(0)
    return measure_floor(features, of_patients, made, np.arange(len(made)), least=least, few=20, neighbours=5, rng=rng)


def test_the_halves_share_no_patient() -> None:
    patients = [f"p{place // 7}" for place in range(101)]
    patients[4] = ""
    first, second = halves(rows_by_patient(patients, np.arange(101)), np.random.default_rng(0))
    assert sorted([*first, *second]) == [place for place in range(101) if place != 4]
    assert abs(len(first) - len(second)) <= 7
    assert not {patients[place] for place in first} & {patients[place] for place in second}


def test_halves_end_at_the_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floors, "MOST", 30)
    first, second = halves([[row] for row in range(1000)], np.random.default_rng(0))
    assert len(first) == len(second) == 30


def test_the_floor_is_what_equal_sets_measure_and_others_lie_above() -> None:
    features, of_patients = reference(200, 2)
    rng = np.random.default_rng(2)
    equal, other = rng.normal(size=(150, 6)), rng.normal(0.8, 1.0, size=(150, 6))
    same, far = (found_for(features, of_patients, made) for made in (equal, other))
    assert (same["images"], same["patients"], same["splits"]) == (150, 200, 10)
    for name in MEASURES:
        floor = same[name]
        assert isinstance(floor, dict)
        assert floor["low"] < floor["value"] < floor["high"]
    assert 0.5 < same["frechet_ratio"] < 1.5  # type: ignore[operator]
    assert far["frechet_ratio"] > 5  # type: ignore[operator]
    assert abs(same["kid"]["value"]) < 0.1  # type: ignore[index]
    assert same["audited"].keys() == {*MEASURES, "frechet_infinity"}  # type: ignore[attr-defined]


def test_images_of_one_patient_in_both_halves_would_lower_the_floor() -> None:
    """Halves by image: each image's sibling is in the other half, and the sets look more alike than sets can."""
    features, of_patients = reference(150, 2, shared=0.9)
    by_patient = found_for(features, of_patients, features[:100])
    by_image = found_for(features, [[row] for row in range(len(features))], features[:100])
    assert by_patient["frechet"]["value"] > 1.15 * by_image["frechet"]["value"]  # type: ignore[index]
    assert by_patient["coverage"]["value"] < by_image["coverage"]["value"]  # type: ignore[index]


def test_a_small_reference_gives_a_floor_of_the_size_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    features, of_patients = reference(120, 1)
    made = np.random.default_rng(3).normal(size=(110, 6))
    assert found_for(features, of_patients, made)["images"] == 60
    monkeypatch.setattr(floors, "MOST", 55)
    assert found_for(features, of_patients, made)["images"] == 55


@pytest.mark.parametrize(
    ("of_patients", "why"),
    [
        ([], "real images of 0 known patients, expected at least 20"),
        (
            [list(range(9 * one, 9 * one + 9)) for one in range(19)],
            "real images of 19 known patients, expected at least 20",
        ),
        ([[row] for row in range(39)], "19 real images in one half of the patients, expected at least 20"),
    ],
)
def test_what_has_no_floor_says_why(of_patients: list[list[int]], why: str) -> None:
    with pytest.raises(ValueError, match=f"^{why}$"):
        found_for(np.zeros((200, 6)), of_patients, np.zeros((60, 6)))


def test_a_floor_of_few_real_images_says_so_by_the_halves_that_are_measured() -> None:
    """Of 101 images of uneven patients the smaller half of one split may have 50, that of another fewer."""
    of_patients = [[4 * one, 4 * one + 1, 4 * one + 2, 4 * one + 3] for one in range(24)] + [[96, 97, 98, 99, 100]]
    for seed in range(20):
        rng, features = np.random.default_rng(seed), np.random.default_rng(seed).normal(size=(101, 6))
        made = np.random.default_rng(99).normal(size=(60, 6))
        found = measure_floor(features, of_patients, made, np.arange(60), least=50, few=20, neighbours=5, rng=rng)
        assert (found["frechet"] is None) is (found["few_real"] is not None) is (found["images"] < 50)
    assert found_for(np.random.default_rng(0).normal(size=(96, 6)), of_patients[:24], made)["few_real"] == (
        "known for KID and MMD alone: 48 real images in one half of the patients, expected at least 50"
    )
    # Few audited images are a reason of their own, which stands elsewhere.
    assert found_for(np.random.default_rng(0).normal(size=(96, 6)), of_patients[:24], made[:24])["few_real"] is None


@pytest.mark.parametrize(("patients", "audited"), [(49, 60), (200, 24)])
def test_few_images_have_a_floor_of_what_does_not_depend_on_their_number(patients: int, audited: int) -> None:
    features, of_patients = reference(patients, 1)
    rng = np.random.default_rng(2)
    equal, other = rng.normal(size=(audited, 6)), rng.normal(0.8, 1.0, size=(audited, 6))
    same, far = (found_for(features, of_patients, made) for made in (equal, other))
    assert same["images"] == min(audited, patients // 2) == 24
    for name in MEASURES:
        floor, kernel = same[name], name in ("kid", "mmd")
        assert (floor is not None) is (same["audited"][name] is not None) is kernel, name  # type: ignore[index]
    assert same["frechet_ratio"] is None
    assert same["audited"]["mmd"] < same["mmd"]["high"]  # type: ignore[index]
    assert far["audited"]["mmd"] > 5 * far["mmd"]["high"]  # type: ignore[index]


def test_a_patient_who_outweighs_the_others_leaves_numbers() -> None:
    rng = np.random.default_rng(0)
    patients = [list(range(2000)), *([place] for place in range(2000, 2045))]
    features = rng.normal(size=(2045, 8))
    made = rng.normal(size=(60, 8))
    found = measure_floor(features, patients, made, np.arange(60), least=50, few=20, neighbours=5, rng=rng)
    assert np.isfinite([found["mmd"][name] for name in ("value", "low", "high")]).all()
    assert np.isfinite(found["audited"]["mmd"])
