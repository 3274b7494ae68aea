"""Areas and shares of resampled images."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from cxrsynth.metrics.utility.intervals import areas, shares


def test_areas_are_sklearns_with_weights_and_ties() -> None:
    rng = np.random.default_rng(0)
    scores, truth = rng.integers(0, 6, 50).astype(np.float64), rng.random(50) < 0.3
    times = rng.integers(0, 3, (4, 50)).astype(np.float64)
    times[3] = truth  # none without
    expected = [roc_auc_score(truth, scores), *(roc_auc_score(truth, scores, sample_weight=w) for w in times[:3])]
    drawn = areas(scores, truth, times)
    assert drawn[:4] == pytest.approx(expected)
    assert np.isnan(drawn[4])


def test_shares_are_weighted_means() -> None:
    rng = np.random.default_rng(0)
    chosen = rng.random(30) < 0.4
    times = rng.integers(0, 3, (4, 30)).astype(np.float64)
    times[3] = 0  # no image
    drawn = shares(chosen, times)
    assert drawn[:4] == pytest.approx([chosen.mean(), *(np.average(chosen, weights=w) for w in times[:3])])
    assert np.isnan(drawn[4])
