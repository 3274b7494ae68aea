"""The 14 CheXpert observations, each with a status and a side.

Source: Irvin et al., "CheXpert" (arXiv:1901.07031), table 1; the four-way status comes from there too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

NO_FINDING = "No Finding"
OBSERVATIONS = (
    NO_FINDING,
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)

# CheXpert's hierarchy (its figure 1): each of these is a kind of lung opacity.
OPACITY_KINDS = ("Lung Lesion", "Edema", "Consolidation", "Pneumonia", "Atelectasis")


class Status(StrEnum):
    """What a report states about an observation; one that is not mentioned has no entry at all."""

    PRESENT = "present"
    ABSENT = "absent"
    UNCERTAIN = "uncertain"


class Side(StrEnum):
    """The patient's side, as reports say it."""

    LEFT = "left"
    RIGHT = "right"
    BILATERAL = "bilateral"


@dataclass(frozen=True, slots=True)
class FindingLabel:
    """Status of one observation, and its side if the report names one."""

    status: Status
    side: Side | None = None


Labels = Mapping[str, FindingLabel]


def contradicts_no_finding(labels: Labels) -> set[str]:
    """Observations that are present or uncertain, and do not go with No Finding; Support Devices do."""
    return {
        name
        for name, label in labels.items()
        if label.status is not Status.ABSENT and name not in (NO_FINDING, "Support Devices")
    }
