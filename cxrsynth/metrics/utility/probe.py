"""The probe: one logistic regression per finding on fixed features, for every way to train."""

from dataclasses import dataclass, field
from typing import Self

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_sample_weight

from cxrsynth.metrics.fidelity import Features
from cxrsynth.metrics.groups import Places
from cxrsynth.metrics.utility.cohorts import PRETRAINED, REAL, SYNTHETIC, Arm, Cohorts, TrainingSet, Truth, truth_of

_FOLDS = 3
_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # inverse strengths, for standardized features
_STRENGTHS = (0.0, 0.3, 1.0)  # of what was learned from synthetic images

Folds = list[tuple[Places, Places]]


@dataclass(frozen=True, slots=True)
class Scores:
    """How likely a finding is, by one classifier: on test images [N], and on real images held out of training [M].

    `held_out` and `truth` are None where no threshold can be chosen.
    """

    test: Features
    held_out: Features | None = None
    truth: Truth | None = None


class Probe(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Logistic regression on standardized features, classes balanced, its L2 penalty centered on `strength * prior`.

    The maximum a posteriori estimate under a normal prior whose mean is what another probe learned (Chelba and Acero,
    EMNLP 2004); scikit-learn's own penalty is always centered on 0, and so is this one at strength 0.

    Args:
        C: inverse strength of the penalty, as in sklearn.linear_model.LogisticRegression.
        strength: how much of the prior is taken over.
        prior: weights of standardized features, [D]; None for zeros.
    """

    def __init__(self, *, C: float = 1.0, strength: float = 0.0, prior: Features | None = None) -> None:
        self.C = C
        self.strength = strength
        self.prior = prior

    def fit(self, features: Features, labels: Truth) -> Self:
        """Fit features [N, D] to labels [N] of both classes."""
        self.classes_ = np.unique(labels)
        self.scaler_ = StandardScaler().fit(features)
        standard = self.scaler_.transform(features)
        prior = np.zeros(features.shape[1]) if self.prior is None else self.strength * self.prior
        offset, signs = standard @ prior, np.where(labels, 1.0, -1.0)
        weights = self.C * compute_sample_weight("balanced", labels)

        def cost(parameters: Features) -> tuple[float, Features]:
            change, intercept = parameters[:-1], parameters[-1]
            margins = signs * (standard @ change + intercept + offset)
            slopes = -weights * signs * expit(-margins)
            value = weights @ np.logaddexp(0, -margins) + change @ change / 2
            return float(value), np.append(standard.T @ slopes + change, slopes.sum())

        start = np.zeros(features.shape[1] + 1)
        found = minimize(cost, start, jac=True, method="L-BFGS-B", options={"maxiter": 1000}).x
        self.weights_, self.intercept_ = prior + found[:-1], found[-1]
        return self

    def decision_function(self, features: Features) -> Features:
        """Log-odds of features [N, D], classes balanced."""
        return np.asarray(self.scaler_.transform(features) @ self.weights_ + self.intercept_)


@dataclass(frozen=True)
class Probes:
    """Probes for every way to train.

    The penalty, and how much is taken over from synthetic images, are chosen by cross-validation with patients kept
    apart: the strongest of equally good penalties. Thresholds are chosen on the real images to train on, each scored by
    a probe that has not seen its patient.
    """

    cohorts: Cohorts
    test: Features
    _folds: dict[tuple[str, str], Folds | None] = field(default_factory=dict, repr=False)

    def arms(self, finding: str) -> list[Arm]:
        """Every way to train."""
        return self.cohorts.arms(finding)

    def can_train(self, finding: str, stage: str, images: TrainingSet) -> bool:
        """Whether there are enough patients to choose the penalty."""
        return self._folds_of(finding, stage, images) is not None

    def scores(self, finding: str, arms: list[Arm]) -> dict[str, Scores]:
        """Scores of a finding by every way to train that `can_train`, the synthetic images first."""
        found: dict[str, Scores] = {}
        prior = None
        for arm in arms:
            stage, images = arm.stages()[-1]
            folds = self._folds_of(finding, stage, images)
            assert folds is not None
            grid: dict[str, list[float]] = {"C": list(_PENALTIES)}
            if arm.name == PRETRAINED:
                grid["strength"] = list(_STRENGTHS)
            search = GridSearchCV(Probe(prior=prior), grid, scoring="roc_auc", cv=folds, error_score="raise")
            probe: Probe = search.fit(images.features, truth_of(finding, images.present)).best_estimator_
            found[arm.name] = self._scored(probe, arm, finding)
            if arm.name == SYNTHETIC:
                prior = probe.weights_
        return found

    def _scored(self, probe: Probe, arm: Arm, finding: str) -> Scores:
        own = self.cohorts.own
        truth, test = truth_of(finding, own.present), probe.decision_function(self.test)
        if arm.own is None:
            return Scores(test, probe.decision_function(own.features), truth)
        folds = self._folds_of(finding, REAL, own)
        if folds is None:
            return Scores(test)
        held_out = np.empty(len(own))
        for train, rest in folds:
            images = own.take(train) if arm.beside is None else own.take(train) + arm.beside
            fitted = clone(probe).fit(images.features, truth_of(finding, images.present))
            held_out[rest] = fitted.decision_function(own.features[rest])
        return Scores(test, held_out, truth)

    def _folds_of(self, finding: str, stage: str, images: TrainingSet) -> Folds | None:
        if (finding, stage) not in self._folds:
            self._folds[finding, stage] = _folds(images, truth_of(finding, images.present))
        return self._folds[finding, stage]


def _folds(images: TrainingSet, labels: Truth) -> Folds | None:
    """Places to train and to test on in each fold, patients kept apart; None if in a fold all images or none have it.

    That happens with many images of few patients: those with the finding may show one or two.
    """
    if len(set(images.patients)) < _FOLDS:
        return None
    folds = list(StratifiedGroupKFold(_FOLDS).split(images.features, labels, images.patients))
    both = all(0 < labels[places].sum() < len(places) for fold in folds for places in fold)
    return folds if both else None
