"""How well attacks tell members of a training set from others: AUC, true positives at few false ones, intervals."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cxrsynth.metrics.fidelity import Interval

Values = npt.NDArray[np.float64]
Members = npt.NDArray[np.bool_]
Places = npt.NDArray[np.int64]

COMBINED, WITHOUT_MODEL = "combined", "without the model"
FALSE_POSITIVES = (0.01, 0.001)
_STRENGTH = 0.1  # inverse of the penalty, for standardized columns
LEAST = 10  # patients of each kind


def measure_attacks(
    attacks: Mapping[str, Values],
    features: Values,
    members: Members,
    patients: Sequence[str],
    *,
    seed: int,
    rounds: int = 500,
) -> dict[str, dict[str, Any]]:
    """How well each attack tells members from others.

    Two more are added. `combined` weighs all columns by a logistic regression, fitted on one half of the patients and
    measured on the other. (By cross-validation the folds depend on each other: in a simulation without any leak, three
    times as many intervals lay above 0.5 as should have.) `without the model` is the same on `features`, which know
    nothing of the model: where it is better than guessing, members and others differ in themselves, and attacks on the
    model cannot be told from that.

    Args:
        attacks: columns [N, K] by attack, higher for members; their standardized sum is the attack.
        features: of the images, [N, D].
        members: whether each image is one, [N].
        patients: of each image, none of them in both.
        seed: of the halves and the bootstrap.
        rounds: of the bootstrap, which resamples patients of members and of others.

    Returns:
        By attack: `auc` and `true_positives` by share of false positives (`0.01`, `0.001`), each with value, low and
        high; None where there are not enough others to have such a share.

    Raises:
        ValueError: for fewer than `LEAST` patients of either kind.

    Source: true positives at few false ones: Carlini et al., arXiv:2112.03570. A baseline without the model: Das et
    al., arXiv:2406.16201.
    """
    groups = _numbered(patients)
    if (fewest := _fewest(groups, members)) < LEAST:
        raise ValueError(f"{fewest} patients, expected at least {LEAST}")
    weights = _resampled(groups, members, rounds=rounds, seed=seed)
    found = {name: _measured(_standardized(columns).sum(1), members, weights) for name, columns in attacks.items()}
    fitted, tested = _halves(groups, members, seed=seed)
    own = _resampled(groups[tested], members[tested], rounds=rounds, seed=seed)
    every = np.concatenate(list(attacks.values()), axis=1)
    for name, columns in ((COMBINED, every), (WITHOUT_MODEL, features)):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=_STRENGTH, class_weight="balanced", max_iter=1000))
        model.fit(columns[fitted], members[fitted])
        found[name] = _measured(model.decision_function(columns[tested]), members[tested], own)
    return found


def _halves(groups: Places, members: Members, *, seed: int) -> tuple[Places, Places]:
    """Places in two halves that share no patient, as equal in images as that allows.

    Where a few patients have most images, those would fill one half: then each half has as many patients of a side.
    """
    folds = StratifiedGroupKFold(2, shuffle=True, random_state=seed)
    fitted, tested = next(folds.split(groups, members, groups))
    if min(_fewest(groups[half], members[half]) for half in (fitted, tested)) >= LEAST // 2:
        return fitted, tested
    rng = np.random.default_rng(seed)
    taken = [
        rng.permutation(patients)[: len(patients) // 2]
        for patients in (np.unique(groups[kind]) for kind in (members, ~members))
    ]
    first = np.isin(groups, np.concatenate(taken))
    return np.flatnonzero(first), np.flatnonzero(~first)


def _fewest(groups: Places, members: Members) -> int:
    """How many patients there are of members or of others, whichever are fewer."""
    return min(len(np.unique(groups[kind])) for kind in (members, ~members))


def _measured(score: Values, members: Members, weights: Values) -> dict[str, Any]:
    """AUC and true positives of one score, [N]."""
    others = int((~members).sum())
    curves = list(_curves(score, members, weights))
    return {
        "auc": asdict(_interval([_area(false, true) for false, true in curves])),
        "true_positives": {
            f"{share:g}": asdict(_interval([float(true[false <= share + 1e-9].max()) for false, true in curves]))
            if others * share >= 1
            else None
            for share in FALSE_POSITIVES
        },
    }


def _curves(score: Values, members: Members, weights: Values) -> Iterator[tuple[Values, Values]]:
    """For each row of `weights`, the shares of others and of members at or above each threshold, from none to all.

    As sklearn.metrics.roc_curve with weights, which checks and sorts everything anew for each row.
    """
    order = np.argsort(-score, kind="stable")
    last = np.flatnonzero(np.diff(score[order], append=np.nan) != 0)  # of equal scores
    for weight in weights[:, order]:
        true, false = (np.append(0.0, np.cumsum(weight * kind[order])[last]) for kind in (members, ~members))
        yield false / false[-1], true / true[-1]


def _area(false: Values, true: Values) -> float:
    """Under the curve of true over false positives."""
    return float((np.diff(false) * (true[1:] + true[:-1])).sum() / 2)


def _interval(values: Sequence[float]) -> Interval:
    """A measure of all images, which comes first, and the 95% percentile interval of its resampled values."""
    value, *sampled = values
    low, high = np.quantile(sampled, [0.025, 0.975])
    return Interval(value, float(low), float(high))


def _resampled(groups: Places, members: Members, *, rounds: int, seed: int) -> Values:
    """How often each image counts: once, then as its patient is drawn; [1 + rounds, N]."""
    rng = np.random.default_rng(seed)
    weights = np.ones((1 + rounds, len(groups)))
    for kind in (members, ~members):
        patients, places = np.unique(groups[kind], return_inverse=True)
        times = rng.multinomial(len(patients), np.full(len(patients), 1 / len(patients)), size=rounds)
        weights[1:, kind] = times[:, places]
    return weights


def _standardized(columns: Values) -> Values:
    """Zero mean and unit variance by column; a column without variance is zero."""
    return np.asarray(StandardScaler().fit_transform(columns))


def _numbered(patients: Sequence[str]) -> Places:
    """Patients as numbers; an image of unknown patient counts as a patient of its own."""
    names = [patient or f"\0{place}" for place, patient in enumerate(patients)]
    return np.unique(names, return_inverse=True)[1].astype(np.int64)
