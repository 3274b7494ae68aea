"""Obedience: do images show the findings that were requested? By the classifier of the diagnosis reward."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from cxrsynth.metrics.fidelity import Features
from cxrsynth.metrics.utility.intervals import auroc_interval, fewest_patients
from cxrsynth.reports.labels import OBSERVATIONS


def measure_obedience(
    present: Sequence[set[str]],
    logits: Features | npt.NDArray[np.float32],
    heads: Sequence[str],
    patients: Sequence[str],
    *,
    least: int = 10,
    rounds: int = 500,
    seed: int,
) -> list[dict[str, Any]]:
    """How well a classifier separates images that were requested with a finding from those that were not.

    An AUROC of 0.5 means that the request leaves no trace that the classifier sees: the model does not show the
    finding, or the classifier does not recognize it. The classifier errs on real images, too, and findings that are
    often requested together lend each other their traces.

    Args:
        present: findings that each of N images was requested to show.
        logits: of the classifier, [N, K].
        heads: names of its K outputs.
        patients: of each image, empty where unknown; images of one patient, or of one report, are resampled together.
        least: patients, or reports, of images requested with a finding, and of those without it, needed to measure it.
        rounds: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        One row per requested finding, in CheXpert's order: `finding`, how many images were `requested` with it and
        `not_requested`, and `auroc` with its 95% interval; None where there are too few images, or no output for it.
    """
    ever_requested = set[str]().union(*present)
    names = [name or f"\0{place}" for place, name in enumerate(patients)]
    numbers = np.unique(names, return_inverse=True)[1].astype(np.int64)
    rows = []
    for finding in OBSERVATIONS:
        if finding not in ever_requested:
            continue
        requested = np.asarray([finding in names for names in present])
        row: dict[str, Any] = {
            "finding": finding,
            "requested": int(requested.sum()),
            "not_requested": int((~requested).sum()),
        }
        known = finding in heads and fewest_patients(requested, numbers) >= least
        area = None
        if known:
            scores = logits[:, list(heads).index(finding)].astype(np.float64)
            area = asdict(auroc_interval(scores, requested, patients, rounds=rounds, seed=seed))
        rows.append(row | {"auroc": area})
    return rows
