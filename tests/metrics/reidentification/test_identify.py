"""Who is recognized: thresholds, false matches and sources, on embeddings whose truth is known."""

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.metrics import roc_auc_score

from cxrsynth.metrics.reidentification.identify import (
    FALSE_MATCHES,
    best_matches,
    calibrate,
    closer_to_source,
    separation,
    source_scores,
)

Vectors = npt.NDArray[np.float32]


def unit(vectors: npt.NDArray[np.float64]) -> Vectors:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def people(
    rng: np.random.Generator, patients: int, each: int, *, noise: float
) -> tuple[Vectors, npt.NDArray[np.int64]]:
    """`each` embeddings of each patient, around one of his own."""
    own = rng.standard_normal((patients, 1, 16))
    drawn = own + noise * rng.standard_normal((patients, each, 16))
    return unit(drawn.reshape(-1, 16)), np.arange(patients).repeat(each)


def test_the_auc_is_that_of_all_pairs() -> None:
    vectors, patients = people(np.random.default_rng(0), 60, 2, noise=0.8)
    found = separation(vectors, patients, seed=0)
    upper = np.triu_indices(len(vectors), 1)
    same = (patients[:, None] == patients)[upper]
    assert found is not None
    assert found.value == pytest.approx(roc_auc_score(same, (vectors @ vectors.T)[upper]), abs=1e-6)
    assert found.low < found.value < found.high


def test_patients_with_many_images_weigh_as_much_as_others() -> None:
    rng = np.random.default_rng(1)
    alike, patients = people(rng, 20, 2, noise=0.1)
    unlike, other = people(rng, 1, 40, noise=30.0)  # one patient whose many images resemble nothing
    found = separation(np.concatenate((alike, unlike)), np.concatenate((patients, other + 20)), seed=0)
    assert found is not None
    assert found.value == pytest.approx((20 + 0.5) / 21, abs=0.02)


def test_embeddings_without_identity_give_half() -> None:
    covered = 0
    for seed in range(20):
        vectors, patients = people(np.random.default_rng(seed), 60, 3, noise=1e6)
        found = separation(vectors, patients, seed=seed)
        assert found is not None
        assert found.value == pytest.approx(0.5, abs=0.1)
        covered += found.low <= 0.5 <= found.high
    assert covered >= 16


def test_no_pair_of_one_patient_gives_no_auc() -> None:
    vectors, patients = people(np.random.default_rng(0), 120, 1, noise=0.5)
    assert separation(vectors, patients, seed=0) is None
    found = calibrate(vectors, patients, seed=0)
    assert found.auc is None
    assert found.found is None
    assert found.same == {}


def test_the_threshold_lets_the_stated_share_of_strangers_match() -> None:
    rates = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        vectors, patients = people(rng, 1500, 1, noise=0.5)
        threshold = calibrate(vectors, patients, seed=seed).threshold
        strangers, _ = people(rng, 1500, 1, noise=0.5)
        rates.append((best_matches(strangers, vectors).scores >= threshold).mean())
    assert np.mean(rates) == pytest.approx(FALSE_MATCHES, abs=0.005)


def test_false_matches_are_counted_with_the_threshold_of_others() -> None:
    vectors, patients = people(np.random.default_rng(3), 1000, 2, noise=0.5)
    found = calibrate(vectors, patients, seed=0)
    assert found.false_matches.of == 2000
    assert found.false_matches.low < FALSE_MATCHES < found.false_matches.high


@pytest.mark.parametrize(("noise", "least", "most"), [(0.1, 0.99, 1.0), (100.0, 0.0, 0.05)])
def test_follow_ups_are_found_where_the_verifier_knows_patients(noise: float, least: float, most: float) -> None:
    rng = np.random.default_rng(4)
    vectors, patients = people(rng, 300, 3, noise=noise)
    reference = np.arange(len(vectors)) % 3 > 0  # the first image of each is audited
    found = calibrate(vectors[reference], patients[reference], seed=0)
    assert found.found is not None
    assert found.found.of == 300
    assert least <= found.found.caught / found.found.of <= most
    audited = best_matches(vectors[~reference], vectors[reference]).scores >= found.threshold
    assert audited.mean() == pytest.approx(found.found.caught / found.found.of, abs=0.1)


def test_large_references_are_sampled_by_whole_patients() -> None:
    vectors, patients = people(np.random.default_rng(5), 1500, 2, noise=0.3)
    found = calibrate(vectors, patients, seed=0)
    assert found.false_matches.of == 2000
    assert found.found is not None
    assert found.found.of == 1000


def test_few_patients_are_refused() -> None:
    vectors, patients = people(np.random.default_rng(0), 99, 4, noise=0.5)
    with pytest.raises(ValueError, match="99 patients in the reference, expected at least 100"):
        calibrate(vectors, patients, seed=0)


def test_the_best_is_that_of_all() -> None:
    rng = np.random.default_rng(6)
    made, real = (people(rng, count, 1, noise=0.5)[0] for count in (600, 300))
    found = best_matches(made, real)
    np.testing.assert_array_equal(found.places, (made @ real.T).argmax(1))
    np.testing.assert_allclose(found.scores, (made @ real.T).max(1), rtol=1e-6)


def test_sources_are_those_named() -> None:
    rng = np.random.default_rng(7)
    made, real = (people(rng, count, 1, noise=0.5)[0] for count in (3, 50))
    scores = source_scores(made, real, [[4], [], [7, 9]])
    assert scores[0] == pytest.approx(made[0] @ real[4])
    assert np.isnan(scores[1])
    assert scores[2] == pytest.approx((made[2] @ real[7] + made[2] @ real[9]) / 2)


def test_images_made_from_their_sources_are_closer_to_them_and_others_are_not() -> None:
    rng = np.random.default_rng(8)
    real, patients = people(rng, 200, 1, noise=0.5)
    sources, kinds = [[place] for place in range(200)], np.zeros(200, np.int64)
    near = closer_to_source(unit(real + 0.3 * rng.standard_normal(real.shape)), real, sources, patients, kinds, seed=0)
    assert near is not None
    assert near.low > 0.9
    covered = 0
    for seed in range(20):
        unrelated, _ = people(np.random.default_rng(100 + seed), 200, 1, noise=0.5)
        found = closer_to_source(unrelated, real, sources, patients, kinds, seed=seed)
        assert found is not None
        covered += found.low <= 0.5 <= found.high
    assert covered >= 16


def test_images_of_reports_with_several_images_are_not_closer_to_them_by_chance() -> None:
    real, patients = people(np.random.default_rng(10), 200, 3, noise=0.9)
    sources, kinds = [[place, place + 1, place + 2] for place in range(0, 600, 3)], np.zeros(600, np.int64)
    values = []
    for seed in range(20):
        unrelated, _ = people(np.random.default_rng(100 + seed), 200, 1, noise=0.5)
        found = closer_to_source(unrelated, real, sources, patients, kinds, seed=seed)
        assert found is not None
        values.append(found.value)
    assert np.mean(values) == pytest.approx(0.5, abs=0.02)
    # Nor is one of them over the threshold of a single pair more often.
    over = source_scores(unrelated, real, sources) > calibrate(real, patients, seed=0).pair_threshold
    assert over.mean() < 0.03


def test_sources_are_compared_with_other_patients_of_their_kind() -> None:
    rng = np.random.default_rng(9)
    of_kind = rng.standard_normal((2, 16)) * 3
    kinds = np.arange(200) % 2
    real = unit(of_kind[kinds] + rng.standard_normal((200, 16)))
    made = unit(of_kind[kinds] + rng.standard_normal((200, 16)))  # what the prompt states, and nothing of the source
    sources, patients = [[place] for place in range(200)], np.arange(200)
    within = closer_to_source(made, real, sources, patients, kinds, seed=0)
    across = closer_to_source(made, real, sources, patients, np.zeros(200, np.int64), seed=0)
    assert within is not None
    assert across is not None
    assert within.low < 0.5 < within.high
    assert across.low > 0.6
    # Other images of the source's patient are no others; without others there is nothing to compare with.
    assert closer_to_source(made, real, sources, np.zeros(200, np.int64), kinds, seed=0) is None
    assert closer_to_source(made, real, sources, patients, np.arange(200), seed=0) is None
