"""Agreement: does an image show the view, sex and age group that its report states?"""

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from cxrsynth.errors import ModelError
from cxrsynth.reports.prompt import age_group
from cxrsynth.reports.table.rows import Report
from cxrsynth.rewards.backends import family_folder, load_reward
from cxrsynth.rewards.diagnosis import DiagnosisReward
from cxrsynth.rewards.digests import backend_digest
from cxrsynth.rewards.networks import SUBJECT_HEADS

_AP, _CHILD, _FEMALE = SUBJECT_HEADS


def _age_group(report: Report) -> str | None:
    return report.stated_age_group or age_group(report.age_years)


# Rule -> the head that answers it, what a report states, and the signs of the logit that agree with it.
_RULES: Mapping[str, tuple[str, Callable[[Report], str | None], Mapping[str, float]]] = MappingProxyType(
    {
        "view": (_AP, lambda report: report.view, {"AP": 1.0, "PA": -1.0}),
        "sex": (_FEMALE, lambda report: report.sex, {"F": 1.0, "M": -1.0}),
        "age": (_CHILD, _age_group, {"child": 1.0, "adult": -1.0}),
    }
)
AGREEMENTS = tuple(_RULES)


class AgreementReward:
    """Log-odds that the image shows what its report states, by a classifier that was trained to tell it.

    Args:
        name: `view` (AP or PA), `sex`, or `age` (adult or child).
        logits: images [B, 1, H, W] in [0, 1] -> calibrated logits [B, K] float32 on the CPU.
        heads: names of the K outputs.

    Raises:
        ValueError: if no head answers it.
    """

    unit = "log-odds of agreement"
    low, high = -math.inf, math.inf
    needs_report = True

    def __init__(self, name: str, logits: Callable[[Tensor], Tensor], heads: Sequence[str]) -> None:
        head, self._stated, self._signs = _RULES[name]
        self._logits, self._place = logits, tuple(heads).index(head)

    @torch.inference_mode()
    def __call__(self, images: Tensor, reports: Sequence[Report]) -> Tensor:
        """[B, 1, H, W] in [0, 1] and B reports -> [B]; nan where a report states nothing, or a lateral view."""
        signs = torch.tensor([self._signs.get(self._stated(report) or "", math.nan) for report in reports])
        return self._logits(images)[:, self._place] * signs


def load_agreement(name: str, backend: str, *, device: torch.device) -> AgreementReward:
    """Load `view`, `sex` or `age` from the classifier of a family.

    Raises:
        ModelError: if `backend` is no family, cannot be loaded, or its classifier has no head for it.
    """
    _refuse_others(name, backend)
    diagnosis = load_reward("diagnosis", backend, device=device)
    assert isinstance(diagnosis, DiagnosisReward)  # as of every family
    if _RULES[name][0] not in diagnosis.heads:
        raise ModelError(
            f"{name}: the classifier of {backend!r} does not tell it\n  expected: a head {_RULES[name][0]!r}, as those"
            " of nano and nano-judge have"
        )
    return AgreementReward(name, diagnosis.logits, diagnosis.heads)


def agreement_digest(name: str, backend: str) -> str:
    """SHA-256 of the classifier, as `backend_digest` gives it. Raises ModelError where `backend` is no family."""
    _refuse_others(name, backend)
    return backend_digest("diagnosis", backend)


def _refuse_others(name: str, backend: str) -> None:
    if family_folder(backend) is None:
        raise ModelError(
            f"{name}: {backend!r} is no family of reward models\n  expected: nano, nano-judge, or a folder laid out"
            f" like one, whose classifier has the head {_RULES[name][0]!r}; name it with --judge {name}=FAMILY"
        )
