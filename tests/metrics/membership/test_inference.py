"""Attacks told apart: guessing gives 0.5, a planted leak is found, and what the images alone tell is shown beside."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from cxrsynth.metrics.membership.inference import COMBINED, WITHOUT_MODEL, _area, _curves, _halves, measure_attacks

Found = dict[str, dict[str, dict[str, float]]]


def attacked(
    leak: float, *, difference: float = 0.0, each: int = 100, images: int = 1, seed: int = 0, rounds: int = 100
) -> Found:
    """Attacks of three columns, members `leak` standard deviations ahead; features that differ by `difference`."""
    rng = np.random.default_rng(seed)
    members = np.repeat([True, False], each * images)
    own = np.repeat(rng.normal(size=(2 * each, 3)), images, axis=0)  # images of one patient are alike
    features = rng.normal(size=(len(members), 8)) + difference * members[:, None]
    patients = [str(place // images) for place in range(len(members))]
    return measure_attacks({"loss": own + leak * members[:, None]}, features, members, patients, seed=0, rounds=rounds)


@pytest.mark.slow
def test_without_a_leak_the_interval_holds_one_half_as_often_as_it_says() -> None:
    runs = [attacked(0.0, each=40, seed=seed, rounds=60) for seed in range(25)]
    for name in ("loss", COMBINED):
        hits = [found[name]["auc"]["low"] <= 0.5 <= found[name]["auc"]["high"] for found in runs]
        assert np.mean(hits) >= 0.85, (name, np.mean(hits))


def test_a_leak_is_found_and_counted_at_few_false_alarms() -> None:
    found = attacked(2.0, each=200)
    for name in ("loss", COMBINED):
        assert found[name]["auc"]["low"] > 0.95
        assert found[name]["true_positives"]["0.01"]["value"] > 0.7
    assert found[WITHOUT_MODEL]["auc"]["low"] < 0.5 < found[WITHOUT_MODEL]["auc"]["high"]


def test_sets_that_differ_in_themselves_show_without_the_model() -> None:
    found = attacked(0.0, difference=1.0)
    assert found[WITHOUT_MODEL]["auc"]["low"] > 0.9
    assert found["loss"]["auc"]["low"] < 0.5 < found["loss"]["auc"]["high"]


def test_the_combination_is_fitted_on_other_patients() -> None:
    """Ten images of each patient: a regression fitted on some of them would recognize the others."""
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(60), 10)
    columns = rng.normal(size=(60, 50))[patients] + 0.01 * rng.normal(size=(600, 50))
    members = patients < 30
    found = measure_attacks({"loss": columns}, columns, members, [str(one) for one in patients], seed=0, rounds=50)
    assert found[COMBINED]["auc"]["low"] < 0.5 < found[COMBINED]["auc"]["high"]


def test_images_of_one_patient_do_not_count_as_many() -> None:
    def width(found: Found) -> float:
        return found["loss"]["auc"]["high"] - found["loss"]["auc"]["low"]

    assert width(attacked(0.3, images=9)) > 0.8 * width(attacked(0.3, images=1))


def test_a_share_of_false_alarms_needs_as_many_others() -> None:
    found = attacked(1.0, each=100)["loss"]["true_positives"]
    assert found["0.01"] is not None
    assert found["0.001"] is None


def test_true_positives_are_counted_at_no_more_than_the_share() -> None:
    """99 of 100 others lie below 30 of the 60 members, one above all."""
    score = np.concatenate([np.full(30, 5.0), np.full(30, -1.0), np.zeros(99), [9.0]])
    members = np.repeat([True, False], [60, 100])
    features = np.random.default_rng(0).normal(size=(160, 2))
    found = measure_attacks({"loss": score[:, None]}, features, members, [""] * 160, seed=0, rounds=20)["loss"]
    assert found["true_positives"]["0.01"]["value"] == pytest.approx(0.5)
    assert found["auc"]["value"] == pytest.approx(0.5 * 0.99)


def test_curves_are_sklearns_with_weights_and_ties() -> None:
    rng = np.random.default_rng(0)
    score, members = rng.integers(0, 6, 50).astype(np.float64), rng.random(50) < 0.4
    weights = rng.integers(0, 3, (5, 50)).astype(np.float64)
    weights[:, score == 3] = 0  # a threshold that no image is left of
    weights[0] = 1
    for weight, (false, true) in zip(weights, _curves(score, members, weights), strict=True):
        assert _area(false, true) == pytest.approx(roc_auc_score(members, score, sample_weight=weight))
        expected = np.stack(roc_curve(members, score, sample_weight=weight, drop_intermediate=False)[:2])
        assert np.unique(np.stack([false, true]), axis=1) == pytest.approx(np.unique(expected, axis=1))


def test_the_fewest_patients_give_numbers() -> None:
    for seed in range(3):
        for attack in attacked(0.0, each=10, seed=seed).values():
            assert np.isfinite([attack["auc"][name] for name in ("value", "low", "high")]).all()


def test_one_patient_with_most_images_does_not_stand_for_a_side() -> None:
    """Ten member patients, one of them with 191 images: the half that is tested must not be of that one alone."""
    patients = ["p0"] * 191 + [f"p{place}" for place in range(1, 10)] + [f"q{place}" for place in range(200)]
    members = np.repeat([True, False], 200)
    groups = np.unique(patients, return_inverse=True)[1]
    for seed in range(5):
        for half in _halves(groups, members, seed=seed):
            assert len(np.unique(groups[half][members[half]])) == 5
            assert len(np.unique(groups[half][~members[half]])) >= 50
        first, second = (set(groups[half].tolist()) for half in _halves(groups, members, seed=seed))
        assert not first & second


def test_too_few_patients_are_refused() -> None:
    with pytest.raises(ValueError, match="expected at least 10"):
        attacked(0.0, each=9)
