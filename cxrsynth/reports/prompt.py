"""From a report to the prompt a model is given.

A model folder says how it wants to be asked (see `PromptSpec`). The canonical form is a fixed sentence made
from view, age group, sex and finding labels, so no free text reaches the model.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from cxrsynth.reports.labels import OBSERVATIONS, FindingLabel, Labels, Side, Status

PHRASES = {
    "No Finding": "normal chest",
    "Enlarged Cardiomediastinum": "enlarged mediastinum",
    "Cardiomegaly": "cardiomegaly",
    "Lung Opacity": "lung opacity",
    "Lung Lesion": "lung lesion",
    "Edema": "pulmonary edema",
    "Consolidation": "consolidation",
    "Pneumonia": "pneumonia",
    "Atelectasis": "atelectasis",
    "Pneumothorax": "pneumothorax",
    "Pleural Effusion": "pleural effusion",
    "Pleural Other": "pleural abnormality",
    "Fracture": "fracture",
    "Support Devices": "support device",
}
_STATUS_WORD = {Status.PRESENT: "", Status.ABSENT: "No ", Status.UNCERTAIN: "Possible "}
_STATUS_ORDER = (Status.PRESENT, Status.UNCERTAIN, Status.ABSENT)
_PERSON = {
    ("adult", "F"): "Adult woman",
    ("adult", "M"): "Adult man",
    ("child", "F"): "Girl",
    ("child", "M"): "Boy",
    ("adult", None): "Adult",
    ("child", None): "Child",
    (None, "F"): "Female patient",
    (None, "M"): "Male patient",
}


@dataclass(frozen=True, slots=True)
class Subject:
    """Who was imaged and how. `view`: PA, AP or LATERAL; `age_group`: adult, child; `sex`: F, M."""

    view: str | None = None
    age_group: str | None = None
    sex: str | None = None


def age_group(age_years: float | None) -> str | None:
    """`child` below 18 years, else `adult`; None for an unknown age."""
    if age_years is None:
        return None
    return "child" if age_years < 18 else "adult"


def finding_sentence(observation: str, label: FindingLabel) -> str:
    """One canonical sentence: `Left pleural effusion.`, `Possible pneumonia.`, `No pneumothorax.`"""
    side = f"{label.side.value} " if label.side and label.status is not Status.ABSENT else ""
    words = f"{_STATUS_WORD[label.status]}{side}{PHRASES[observation]}."
    return words[0].upper() + words[1:]


def canonical_prompt(subject: Subject, labels: Labels) -> str:
    """`PA view. Adult woman. Cardiomegaly. Left pleural effusion. No pneumothorax.`

    Findings come present first, then uncertain, then absent, each in CheXpert's order. What is unknown is left
    out; an empty string is possible and asks for any chest X-ray.
    """
    return " ".join(_sentences(subject, labels))


def _sentences(subject: Subject, labels: Labels) -> Iterator[str]:
    if subject.view:
        yield "Lateral view." if subject.view == "LATERAL" else f"{subject.view} view."
    person = _PERSON.get((subject.age_group, subject.sex))
    if person:
        yield f"{person}."
    for status in _STATUS_ORDER:
        for observation in OBSERVATIONS:
            label = labels.get(observation)
            # "No normal chest" says nothing: an absent No Finding is told by the findings themselves.
            told = label is not None and not (
                observation == "No Finding" and status is not Status.PRESENT
            )
            if told and label is not None and label.status is status:
                yield finding_sentence(observation, label)


def every_canonical_sentence() -> list[str]:
    """All sentences the canonical form can contain: the training text of nano's tokenizer."""
    people = [f"{person}." for person in _PERSON.values()]
    findings = [
        finding_sentence(observation, FindingLabel(status, side))
        for observation in OBSERVATIONS
        for status in Status
        for side in (None, *Side)
    ]
    return ["PA view.", "AP view.", "Lateral view.", *people, *findings]
