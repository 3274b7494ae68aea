"""Utility: does training on synthetic images help? Classifiers trained in several ways, tested on real patients."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from itertools import combinations
from typing import Any, Protocol

import numpy as np

from cxrsynth.errors import ReportsError
from cxrsynth.metrics.fidelity import Features
from cxrsynth.metrics.groups import ImageTable, Places
from cxrsynth.metrics.utility.cohorts import (
    BALANCED,
    REAL,
    Arm,
    Split,
    TrainingSet,
    Truth,
    draw_cohorts,
    split_patients,
    truth_of,
)
from cxrsynth.metrics.utility.intervals import Tested, areas, fewest_patients, interval_of, shares
from cxrsynth.metrics.utility.network import Classifier, train_networks
from cxrsynth.metrics.utility.probe import Probes, Scores
from cxrsynth.reports.labels import NO_FINDING, OBSERVATIONS

# Share of the real images without a finding, held out of training, that the threshold of a rate calls negative.
SPECIFICITY = 0.8
GAP_KINDS = ("sex", "age group")

Found = dict[str, Any]


class Learner(Protocol):
    """Classifiers for every way to train."""

    def arms(self, finding: str) -> list[Arm]:
        """Every way to train."""
        ...

    def can_train(self, finding: str, stage: str, images: TrainingSet) -> bool:
        """Whether there are enough patients to train on."""
        ...

    def scores(self, finding: str, arms: list[Arm]) -> dict[str, Scores]:
        """Scores of a finding by every way to train, by its name."""
        ...


def measure_utility(
    made: ImageTable,
    real: ImageTable,
    *,
    seed: int,
    network: Classifier | None = None,
    say: Callable[[str], None] = lambda text: None,
    least: int = 10,
    rounds: int = 500,
) -> Found:
    """How well findings are recognized in held-out real patients after training on synthetic and real images.

    Five ways to train (`TRAINED_ON`): on synthetic images, on real ones, on both together, on real ones and a cohort of
    synthetic ones that is balanced by sex and age group, and on synthetic images first and then on real ones. All are
    tested on the same images. A finding that is not stated as present, be it uncertain or not mentioned, counts as
    absent; images without any stated finding are left out. This cannot show whether the generator has seen the test
    patients.

    Args:
        made: synthetic images, with the findings that were requested.
        real: the reference, features of the same extractor: half of its patients train, half test. An image of unknown
            patient counts as a patient of its own.
        seed: of the split, of the choice of training images (`MOST` of a kind), of networks and of the bootstrap.
        network: trained on pixels, which both tables then have; None for a probe on the features.
        say: called with which network is being trained.
        least: images with a finding, and without it, needed to train on it; patients of either to test it in a group.
        rounds: of the bootstrap over test patients.

    Returns:
        `rows`: AUROC by finding, group and training set, with interval, and the number of test images; `lift`: AUROC of
        each training set minus that of real images alone, both on the same resampled patients; `mean`: AUROC and lift
        by training set, means over the findings measured with it and with real images alone; `underdiagnosis`: share of
        the test images with a finding that are called negative, where a threshold is chosen that calls `SPECIFICITY` of
        held-out training images without it negative (with `No Finding`: share of those with a finding that are called
        normal), and the share of the others called positive, by finding, group and training set; `gaps`: the difference
        of that rate between two groups; `too_few`: where fewer than `least` images had a finding or lacked it: which
        finding, in which group, `in` which training set or in `test`, how many `present` and `absent`, and how many
        `patients` if these are too few (to test, of the side that has fewer); `not_measured`: training sets that cannot
        be made, and why; `split`: images to train and to test on, and those of unknown patient; `balanced_by`: findings
        whose presence the balanced cohort of a probe balances, too; `model`: what was trained.

    Raises:
        ReportsError: if no image of the reference, or no synthetic one, has a finding stated as present, or the
            reference has too few patients.
        ValueError: if the features differ in width.
    """
    if made.features.shape[1] != real.features.shape[1]:
        raise ValueError(f"features of {made.features.shape[1]} and {real.features.shape[1]}, expected one extractor")
    _check_findings("audited images", made)
    split = check_real(real, seed=seed, network=network is not None)
    cohorts = draw_cohorts(made, real, split.train, least=least, seed=seed)
    test = Tested.of(real, split.test, rounds=rounds, seed=seed)
    findings = _findings(made, real)
    learner: Learner = Probes(cohorts, test.features)
    testable = [finding for finding in findings if _is_testable(truth_of(finding, test.present), test.patients, least)]
    if network is not None and testable:
        assert real.pixels is not None
        pixels = np.asarray(real.pixels[split.test])
        learner = train_networks(network, cohorts, testable, pixels, seed=seed, say=say)
    parts = ("rows", "lift", "mean", "underdiagnosis", "gaps", "too_few")
    found: Found = {part: [] for part in parts}
    measured = {}
    for finding in findings:
        measured[finding] = _measure_finding(finding, learner, test, found, least=least)
    found["mean"] = list(_means(measured))
    unknown = sum(not real.patients[place] for place in np.concatenate([split.train, split.test]))
    counts = {"train": len(cohorts.own), "synthetic": len(cohorts.synthetic), "test": len(split.test)}
    return found | {
        "split": counts | {"patients_unknown": unknown},
        "model": None if network is None else network.as_json(),
        "balanced_by": [name for name in findings if cohorts.balanced_by(name)],
        "not_measured": {} if cohorts.unbalanced is None else {BALANCED: cohorts.unbalanced},
    }


def check_real(real: ImageTable, *, seed: int, network: bool) -> Split:
    """The images to train and to test on, for a `network` or for a probe.

    Raises:
        ReportsError: if no real image has a finding stated as present, or those that state any are of too few patients.
    """
    _check_findings("reference", real)
    return split_patients(real, seed=seed, fewest=2 if network else 1)


def _check_findings(kind: str, table: ImageTable) -> None:
    if not any(table.present):
        raise ReportsError(
            f"{kind}: no image has a finding stated as present\n  expected: labels or reports to measure utility"
        )


def _is_enough(truth: Truth, least: int) -> bool:
    return min(int(truth.sum()), int((~truth).sum())) >= least


def _is_testable(truth: Truth, patients: Places, least: int) -> bool:
    return _is_enough(truth, least) and fewest_patients(truth, patients) >= least


def _findings(made: ImageTable, real: ImageTable) -> list[str]:
    """Findings of either side: CheXpert's in their order, then others."""
    seen = set[str]().union(*made.present, *real.present)
    return [name for name in OBSERVATIONS if name in seen] + sorted(seen - set(OBSERVATIONS))


def _measure_finding(finding: str, learner: Learner, test: Tested, found: Found, *, least: int) -> dict[str, Features]:
    """Adds a finding's rows to `found`; returns areas on all test images by training set, [1 + rounds] each."""
    truth = truth_of(finding, test.present)
    groups = dict(_enough(finding, truth, test, found["too_few"], least=least))
    if not groups:
        return {}
    arms = [arm for arm in learner.arms(finding) if _can_train(finding, arm, learner, found["too_few"], least)]
    scores = learner.scores(finding, arms)
    of_group = {}
    for group, mask in groups.items():
        of_group[group] = {
            name: areas(one.test[mask], truth[mask], test.times[:, mask]) for name, one in scores.items()
        }  # that of the set itself first
        for name, area in of_group[group].items():
            cell = {"finding": finding, "group": group, "trained_on": name}
            found["rows"].append(cell | {"auroc": asdict(interval_of(area)), "images": int(mask.sum())})
            if REAL in of_group[group] and name != REAL:
                found["lift"].append(cell | asdict(interval_of(area - of_group[group][REAL])))
    for name, one in scores.items():
        _measure_missed({"finding": finding, "trained_on": name}, one, truth, test, found, least=least)
    return of_group.get("all", {})


def _can_train(finding: str, arm: Arm, learner: Learner, too_few: list[Found], least: int) -> bool:
    """Whether every set that an arm trains on has enough images and patients; those that have not are listed once."""
    enough = True
    for stage, images in arm.stages():
        labels = truth_of(finding, images.present)
        few = _few(finding, labels, "all", stage)
        if _is_enough(labels, least):
            if learner.can_train(finding, stage, images):
                continue
            few |= {"patients": len(set(images.patients))}
        enough = False
        if few not in too_few:
            too_few.append(few)
    return enough


def _enough(
    finding: str, truth: Truth, test: Tested, too_few: list[Found], *, least: int
) -> Iterator[tuple[str, Truth]]:
    """Groups with at least `least` patients who have the finding and `least` who lack it; the others are listed."""
    for group, mask in test.groups.items():
        few = _few(finding, truth[mask], group, "test")
        if _is_testable(truth[mask], test.patients[mask], least):
            yield group, mask
        elif _is_enough(truth[mask], least):
            too_few.append(few | {"patients": fewest_patients(truth[mask], test.patients[mask])})
        else:
            too_few.append(few)


def _few(finding: str, truth: Truth, group: str, where: str) -> Found:
    """A row of `too_few`."""
    present = int(truth.sum())
    return {"finding": finding, "group": group, "in": where, "present": present, "absent": len(truth) - present}


def _means(measured: Mapping[str, Mapping[str, Features]]) -> Iterator[Found]:
    """By training set, over the findings measured with it and with real images alone."""
    names = dict.fromkeys(name for by_name in measured.values() for name in by_name)
    for name in names:
        pairs = [(found[name], found[REAL]) for found in measured.values() if name in found and REAL in found]
        if pairs:
            area, of_real = np.mean(pairs, axis=0)
            lift = None if name == REAL else asdict(interval_of(area - of_real))
            yield {"trained_on": name, "auroc": asdict(interval_of(area)), "lift": lift, "findings": len(pairs)}


def _measure_missed(
    cell: Mapping[str, str], scores: Scores, truth: Truth, test: Tested, found: Found, *, least: int
) -> None:
    """Adds the underdiagnosis rates of one classifier, and their gaps, to `found`.

    Source: Seyyed-Kalantari et al., Nature Medicine 2021, where the rate is that of ill patients called normal.
    """
    if scores.held_out is None or scores.truth is None:
        return
    sign, ill, healthy, ill_held_out = 1, truth, ~truth, scores.truth
    if cell["finding"] == NO_FINDING:  # a finding is the lack of it, but who has none stated need not be ill
        sign, healthy, ill_held_out = -1, truth, ~scores.truth
        ill = np.array([bool(names - {NO_FINDING, "Support Devices"}) for names in test.present])
    well = sign * scores.held_out[~ill_held_out]
    if len(well) < least:
        return
    negative = sign * scores.test <= np.quantile(well, SPECIFICITY, method="higher")
    rates = {}
    for group, mask in test.groups.items():
        kind = group.partition(": ")[0]
        chosen, others = mask & ill, mask & healthy
        if kind not in ("all", *GAP_KINDS) or len(np.unique(test.patients[chosen])) < least:
            continue
        rates[group] = shares(negative[chosen], test.times[:, chosen])
        false = float((~negative[others]).mean()) if others.any() else None
        counts = {"images": int(chosen.sum()), "others_called_positive": false}
        found["underdiagnosis"].append({**cell, "group": group, "rate": asdict(interval_of(rates[group])), **counts})
    for kind in GAP_KINDS:
        for one, two in combinations(sorted(group for group in rates if group.startswith(kind)), 2):
            gap = asdict(interval_of(rates[one] - rates[two]))
            found["gaps"].append({**cell, "kind": kind, "between": [one, two], **gap})
