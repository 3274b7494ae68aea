"""Obedience: do images show the findings that were asked for? By the classifier of the diagnosis reward."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from cxrsynth.metrics.fidelity import Features
from cxrsynth.metrics.utility import auroc_interval
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
    """How well a classifier tells images that were asked to show a finding from those that were not.

    An AUROC of 0.5 means that the request leaves no trace that the classifier sees: the model does not show the
    finding, or the classifier does not recognize it. The classifier errs on real images, too, and findings that are
    often asked for together lend each other their traces.

    Args:
        present: findings that each of N images was asked to show.
        logits: of the classifier, [N, K].
        heads: names of its K outputs.
        patients: of each image, empty where unknown; images of one patient, or of one report, are resampled together.
        least: images that ask for a finding, and that do not, needed to measure it.
        rounds: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        One row per finding that is asked for, in CheXpert's order: `finding`, how many images were `asked` for it and
        `not_asked`, and `auroc` with its 95% interval; None where there are too few images, or no output for it.
    """
    asked_for = set[str]().union(*present)
    rows = []
    for finding in OBSERVATIONS:
        if finding not in asked_for:
            continue
        asked = np.asarray([finding in names for names in present])
        row: dict[str, Any] = {"finding": finding, "asked": int(asked.sum()), "not_asked": int((~asked).sum())}
        known = finding in heads and min(row["asked"], row["not_asked"]) >= least
        area = None
        if known:
            scores = logits[:, list(heads).index(finding)].astype(np.float64)
            area = asdict(auroc_interval(scores, asked, patients, rounds=rounds, seed=seed))
        rows.append(row | {"auroc": area})
    return rows
