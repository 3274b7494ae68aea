"""Diagnosis: does the image show the findings its report states, and none that it rules out?"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cxrsynth.reports.labels import Status
from cxrsynth.reports.table.rows import Report


class DiagnosisReward:
    """Mean log-likelihood of the report's labels under a finding classifier, in nats.

    Present and absent findings carry the same total weight, because reports rule out more findings than they state.
    Uncertain and unmentioned findings do not count, nor do findings for which the classifier has no trained head. A
    report with no finding left gives nan.

    Args:
        logits: images [B, 1, H, W] in [0, 1] -> calibrated logits [B, K].
        heads: names of the K outputs; names that are not findings of the reports are never used.
    """

    unit = "nats, mean over mentioned findings, present and absent balanced"
    low, high = -math.inf, 0.0
    needs_report = True

    def __init__(self, logits: Callable[[Tensor], Tensor], heads: Sequence[str]) -> None:
        self._logits = logits
        self.heads = tuple(heads)

    @torch.inference_mode()
    def __call__(self, images: Tensor, reports: Sequence[Report]) -> Tensor:
        """[B, 1, H, W] in [0, 1] and B reports with labels -> [B]."""
        return self.likelihood(self.logits(images), reports)

    @torch.inference_mode()
    def logits(self, images: Tensor) -> Tensor:
        """Images [B, 1, H, W] in [0, 1] -> calibrated logits of `heads`, [B, K] float32 on the CPU."""
        return self._logits(images).float().cpu()

    def likelihood(self, logits: Tensor, reports: Sequence[Report]) -> Tensor:
        """Logits [B, K] and B reports with labels -> the reward, [B]."""
        present, absent = self._mask(reports, Status.PRESENT), self._mask(reports, Status.ABSENT)
        likelihoods = [
            (mask * values).sum(1) / mask.sum(1)  # nan where no head counts
            for mask, values in (
                (present, torch.nn.functional.logsigmoid(logits)),
                (absent, torch.nn.functional.logsigmoid(-logits)),
            )
        ]
        return torch.stack(likelihoods, 1).nanmean(1)

    def _mask(self, reports: Sequence[Report], status: Status) -> Tensor:
        """1 where a report gives a head this status, float32 [B, K]."""
        return torch.tensor(
            [
                [float(head in report.labels and report.labels[head].status is status) for head in self.heads]
                for report in reports
            ]
        )
