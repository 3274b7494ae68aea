"""Diagnosis: does the image show what the report states, and not what it denies?"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cxrsynth.reports.labels import Status
from cxrsynth.reports.table.rows import Report


class DiagnosisReward:
    """Mean log-likelihood of the report's labels under a classifier of findings, in nats.

    Present and absent findings weigh the same, however many there are of each: reports deny more than they state.
    Uncertain and unmentioned findings are left out, and so are those the classifier has no trained head for. A report
    that leaves nothing gives nan.

    Args:
        logits: images [B, 1, H, W] in [0, 1] -> calibrated logits [B, K].
        heads: names of the K outputs; those that are no observation of the reports are never asked for.
    """

    unit = "nats, mean over mentioned findings, present and absent balanced"
    low, high = -math.inf, 0.0
    needs_report = True

    def __init__(self, logits: Callable[[Tensor], Tensor], heads: Sequence[str]) -> None:
        self._logits = logits
        self._heads = tuple(heads)

    @torch.inference_mode()
    def __call__(self, images: Tensor, reports: Sequence[Report]) -> Tensor:
        """[B, 1, H, W] in [0, 1] and B reports with labels -> [B]."""
        logits = self._logits(images).float().cpu()  # [B, K]
        present, absent = self._mask(reports, Status.PRESENT), self._mask(reports, Status.ABSENT)
        likelihoods = [
            (mask * values).sum(1) / mask.sum(1)  # nan where no head is asked for
            for mask, values in (
                (present, torch.nn.functional.logsigmoid(logits)),
                (absent, torch.nn.functional.logsigmoid(-logits)),
            )
        ]
        return torch.stack(likelihoods, 1).nanmean(1)

    def _mask(self, reports: Sequence[Report], status: Status) -> Tensor:
        """Which heads each report gives this status, float32 [B, K]."""
        return torch.tensor(
            [
                [float(head in report.labels and report.labels[head].status is status) for head in self._heads]
                for report in reports
            ]
        )
