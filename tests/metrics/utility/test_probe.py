"""The probe: scikit-learn's logistic regression without a prior, and between it and the prior with one."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from cxrsynth.metrics.utility.cohorts import PRETRAINED, REAL, SYNTHETIC, draw_cohorts
from cxrsynth.metrics.utility.probe import Probe, Probes
from tests.auditing.tables import table

Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def images(count: int, *, seed: int) -> tuple[Array, np.ndarray[tuple[int, ...], np.dtype[np.bool_]]]:
    rng = np.random.default_rng(seed)
    features = rng.normal(3, (1.0, 5.0, 0.1), (count, 3))
    return features, features[:, 0] + rng.normal(size=count) > 3.5


@pytest.mark.parametrize("strength", [0.0, 0.7])
@pytest.mark.parametrize("penalty", [1e-3, 1.0])
def test_without_a_prior_it_is_scikit_learns(strength: float, penalty: float) -> None:
    features, labels = images(200, seed=0)
    expected = LogisticRegression(C=penalty, class_weight="balanced", tol=1e-10, max_iter=10_000)
    expected.fit(StandardScaler().fit_transform(features), labels)
    probe = Probe(C=penalty, strength=strength).fit(features, labels)
    assert probe.weights_ == pytest.approx(expected.coef_[0], abs=1e-3)
    standard = StandardScaler().fit(features).transform(features)
    assert probe.decision_function(features) == pytest.approx(expected.decision_function(standard), abs=5e-3)


def test_the_penalty_pulls_towards_the_prior_by_its_strength() -> None:
    features, labels = images(200, seed=0)
    prior = np.array([0.0, 2.0, -1.0])
    strict = [Probe(C=1e-9, strength=strength, prior=prior).fit(features, labels) for strength in (0.0, 0.5, 1.0)]
    for strength, probe in zip((0.0, 0.5, 1.0), strict, strict=True):
        assert probe.weights_ == pytest.approx(strength * prior, abs=1e-3)
    loose = Probe(C=1e3, strength=1.0, prior=prior).fit(features, labels)
    assert loose.weights_ == pytest.approx(Probe(C=1e3).fit(features, labels).weights_, abs=0.05)


def test_with_a_prior_it_minimizes_the_centered_penalty() -> None:
    """Against its own objective, written down apart: no step from the optimum lowers it."""
    features, labels = images(80, seed=1)
    prior = np.array([1.0, -0.5, 0.3])
    probe = Probe(C=0.3, strength=0.5, prior=prior).fit(features, labels)
    standard = (features - features.mean(0)) / features.std(0)
    share = np.where(labels, labels.mean(), 1 - labels.mean())

    def objective(weights: Array, intercept: float) -> float:
        margins = np.where(labels, 1, -1) * (standard @ weights + intercept)
        away = weights - 0.5 * prior
        return float(0.3 * (np.log1p(np.exp(-margins)) / (2 * share)).sum() + away @ away / 2)

    best = objective(probe.weights_, probe.intercept_)
    for axis in range(3):
        for step in (-0.02, 0.02):
            assert objective(probe.weights_ + step * np.eye(3)[axis], probe.intercept_) > best
    assert min(objective(probe.weights_, probe.intercept_ + step) for step in (-0.02, 0.02)) > best


def test_where_synthetic_images_teach_nothing_the_fine_tuned_probe_is_the_real_one() -> None:
    """Without any feature that varies, the synthetic weights are 0, whatever the strength."""
    made, real = table(200, seed=2), table(200, seed=1)
    made.features[:] = 1.0
    places = np.arange(120)
    probes = Probes(draw_cohorts(made, real, places, least=10, seed=0), real.features[120:].astype(np.float64))
    scores = probes.scores("Edema", [arm for arm in probes.arms("Edema") if arm.name in (SYNTHETIC, REAL, PRETRAINED)])
    assert np.ptp(scores[SYNTHETIC].test) == 0
    assert scores[PRETRAINED].test.tolist() == scores[REAL].test.tolist()
    assert scores[PRETRAINED].held_out is not None
    assert scores[REAL].held_out is not None
    assert scores[PRETRAINED].held_out.tolist() == scores[REAL].held_out.tolist()


def test_held_out_scores_are_of_probes_that_have_not_seen_the_patient() -> None:
    """Labels without any signal, and more features than images: a probe knows by heart what it was trained on."""
    rng = np.random.default_rng(0)
    made, real = table(60, seed=2, per_patient=1, effect=0), table(120, seed=1, per_patient=1, effect=0)
    wide = [rng.normal(size=(len(one.features), 300)).astype(np.float32) for one in (made, real)]
    object.__setattr__(made, "features", wide[0])
    object.__setattr__(real, "features", wide[1])
    probes = Probes(draw_cohorts(made, real, np.arange(120), least=10, seed=0), wide[1].astype(np.float64))
    for name, one in probes.scores("Edema", probes.arms("Edema")).items():
        assert one.held_out is not None
        assert one.truth is not None
        apart = [scores[one.truth].mean() - scores[~one.truth].mean() for scores in (one.test, one.held_out)]
        spread = one.held_out.std()
        assert abs(apart[1]) < 0.5 * spread, name
        if name != SYNTHETIC:
            assert apart[0] > 2 * abs(apart[1]), name
