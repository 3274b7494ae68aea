"""From a report to the prompt a model is given.

A model folder says how it wants to be asked (see `PromptSpec`). The canonical form is a fixed sentence made
from view, age group, sex and finding labels, so no free text reaches the model.
"""

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict

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
            # "No normal chest" says nothing: the findings themselves express an absent No Finding.
            expressible = label is not None and not (observation == "No Finding" and status is not Status.PRESENT)
            if expressible and label is not None and label.status is status:
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


class Depicts(BaseModel):
    """What a model was shown in training; what is not here is never claimed to be in its images.

    `findings` maps an observation to the number of training images that show it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    views: tuple[str, ...]
    age_groups: tuple[str, ...]
    sexes: tuple[str, ...]
    findings: dict[str, int]
    sides: bool
    uncertain: bool


@dataclass(frozen=True, slots=True)
class Request:
    """What a model is asked for: the part of a report's subject and labels it can show, and the rest."""

    subject: Subject
    labels: Labels = field(repr=False)
    unsupported_findings: tuple[str, ...]


def limit_to_supported(subject: Subject, labels: Labels, depicts: Depicts | None) -> Request:
    """Split what a report asks for into what the model was shown and what it was not.

    Returns:
        The request, with `unsupported_findings` naming the rest: `Fracture`, `Pleural Effusion (side)`,
        `Pneumonia (uncertain)`, `view LATERAL`. A denied finding that was never shown is left out
        unnamed: the image cannot contradict it.
    """
    if depicts is None:
        return Request(subject, labels, ())
    missing = [
        f"{name} {value}"
        for name, value, shown in (
            ("view", subject.view, depicts.views),
            ("age group", subject.age_group, depicts.age_groups),
            ("sex", subject.sex, depicts.sexes),
        )
        if value and value not in shown
    ]
    kept: dict[str, FindingLabel] = {}
    for observation in OBSERVATIONS:
        label = labels.get(observation)
        if label is None:
            continue
        shown = observation in depicts.findings
        if label.status is Status.UNCERTAIN and not depicts.uncertain:
            missing.append(f"{observation} (uncertain)")
        elif label.status is Status.ABSENT or shown:
            if shown:
                kept[observation] = label if depicts.sides else FindingLabel(label.status)
            if label.side and label.status is Status.PRESENT and not depicts.sides:
                missing.append(f"{observation} (side)")
        else:
            missing.append(observation)
    shown_subject = Subject(
        view=subject.view if subject.view in depicts.views else None,
        age_group=subject.age_group if subject.age_group in depicts.age_groups else None,
        sex=subject.sex if subject.sex in depicts.sexes else None,
    )
    return Request(shown_subject, kept, tuple(missing))


def cut_at_sentence(text: str, fits: Callable[[str], bool]) -> tuple[str, bool]:
    """The longest beginning of whole sentences that fits, and whether anything was cut.

    A first sentence that does not fit by itself is cut at a word.
    """
    if fits(text):
        return text, False
    sentences = re.split(r"(?<=[.!?])\s+", text)
    return _longest(sentences, fits) or _longest(sentences[0].split(), fits), True


def _longest(parts: list[str], fits: Callable[[str], bool]) -> str:
    """The longest beginning that fits, found by bisection: to try them one by one takes hours of a long text."""
    count = bisect_left(range(len(parts)), True, key=lambda last: not fits(" ".join(parts[: last + 1])))
    return " ".join(parts[:count])
