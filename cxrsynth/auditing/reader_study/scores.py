"""Answers scored against the key: whether readers tell real from synthetic, and what they think of both."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from cxrsynth.auditing.reader_study.agreement import agreement
from cxrsynth.auditing.reader_study.answers import Answer, Answered, AnswerFile
from cxrsynth.auditing.reader_study.intervals import Found, difference, proportion
from cxrsynth.auditing.reader_study.key import KINDS, StudyKey
from cxrsynth.reports.labels import OBSERVATIONS

CHANCE = 0.5  # half of the images are real
_MATCHES = ("yes", "partly", "no")

_GRADES = tuple(range(1, 6))  # of quality, as `Answer` takes them


def score(answered: Answered) -> dict[str, Any]:
    """What summary.json holds of the answers: of all readers together, of each one, by finding, and their agreement.

    `sensitivity` is the share of synthetic images taken for synthetic, `specificity` that of real ones taken for real.
    """
    key, files = answered.key, answered.files
    overall = _told_apart(key, files) | {
        "chance": CHANCE,
        "quality": _quality(key, files),
        "match": None if key.text is None else _matches(key, files),
        "seconds": _times(key, files),
    }
    return overall | {
        "readers": [_reader(key, file) for file in files],
        "findings": _findings(key, files),
        "agreement": _agreement(key, files),
    }


def _reader(key: StudyKey, file: AnswerFile) -> dict[str, Any]:
    answered = sum(answer.origin is not None for answer in file.answers)
    return {
        **file.reader.model_dump(),
        "answered": answered,
        "of": len(key.images),
        **_told_apart(key, [file]),
        "quality": _quality(key, [file]),
        "match": None if key.text is None else _matches(key, [file]),
        "seconds": _times(key, [file]),
    }


def _told_apart(key: StudyKey, files: Sequence[AnswerFile]) -> dict[str, Any]:
    return {
        "accuracy": _right(key, files, list(key.images)),
        "sensitivity": _right(key, files, key.of_kind("synthetic")),
        "specificity": _right(key, files, key.of_kind("real")),
    }


def _right(key: StudyKey, files: Sequence[AnswerFile], images: Sequence[str]) -> Found:
    """How often some images were taken for what they are."""

    def is_right(answer: Answer) -> bool | None:
        return None if answer.origin is None else answer.origin == key.images[answer.image].kind

    return _share(files, images, is_right)


def _share(files: Sequence[AnswerFile], names: Sequence[str], holds: Callable[[Answer], bool | None]) -> Found:
    """How often something holds of the answers about some images; None where it was not answered."""
    places = {name: place for place, name in enumerate(names)}
    table = np.full((len(files), len(names)), np.nan)
    for row, file in enumerate(files):
        for answer in file.answers:
            value = holds(answer) if answer.image in places else None
            if value is not None:
                table[row, places[answer.image]] = value
    return proportion(table)


def _quality(key: StudyKey, files: Sequence[AnswerFile]) -> dict[str, Any]:
    """Mean quality of both kinds, and real minus synthetic by image: the mean of its readers is one value."""
    means = {}
    for kind in KINDS:
        given: dict[str, list[int]] = {}
        for answer in _answers(files, key.of_kind(kind)):
            if answer.quality is not None:
                given.setdefault(answer.image, []).append(answer.quality)
        means[kind] = [float(np.mean(several)) for several in given.values()]
    found: dict[str, Any] = {kind: float(np.mean(of)) if of else None for kind, of in means.items()}
    return found | {"difference": difference(means["real"], means["synthetic"])}


def _matches(key: StudyKey, files: Sequence[AnswerFile]) -> dict[str, Any]:
    """How often each answer was given, and the share of yes."""
    found: dict[str, Any] = {}
    for kind in KINDS:
        names = key.of_kind(kind)
        given: list[str | None] = [answer.match for answer in _answers(files, names)]
        yes = _share(files, names, lambda answer: None if answer.match is None else answer.match == "yes")
        found[kind] = {match: given.count(match) for match in _MATCHES} | {"share": yes}
    return found


def _times(key: StudyKey, files: Sequence[AnswerFile]) -> dict[str, Any]:
    """Seconds an image was looked at: quartiles, and the median of each kind."""
    seconds = {
        kind: [answer.seconds for answer in _answers(files, key.of_kind(kind)) if answer.origin is not None]
        for kind in KINDS
    }
    every = seconds["real"] + seconds["synthetic"]
    quartiles = [float(value) for value in np.quantile(every, (0.25, 0.5, 0.75))] if every else [None] * 3
    return dict(zip(("p25", "p50", "p75"), quartiles, strict=True)) | {
        kind: float(np.median(of)) if of else None for kind, of in seconds.items()
    }


def _findings(key: StudyKey, files: Sequence[AnswerFile]) -> list[dict[str, Any]]:
    """For each finding of the study: how well its images are told apart, and how often readers see it.

    `stated` are answers on images whose report states the finding, `denied` on images whose report states its absence.
    """
    rows = []
    for finding in OBSERVATIONS:
        images = [name for name, image in key.images.items() if finding in image.present]
        if not images:
            continue
        row: dict[str, Any] = {
            "finding": finding,
            "images": {kind: sum(key.images[name].kind == kind for name in images) for kind in KINDS},
            "accuracy": _right(key, files, images),
        }
        for said, where in (("stated", "present"), ("denied", "absent")):
            row[said] = {
                kind: _seen(
                    files, [name for name in key.of_kind(kind) if finding in getattr(key.images[name], where)], finding
                )
                for kind in KINDS
            }
        given = {
            file.reader.name: {
                answer.image: "seen" if finding in answer.findings else "not seen"
                for answer in file.answers
                if answer.findings
            }
            for file in files
        }
        found = agreement(given)
        rows.append(row | {"fleiss": None if found is None else found["fleiss"]})
    return rows


def _seen(files: Sequence[AnswerFile], images: Sequence[str], finding: str) -> dict[str, int]:
    given = [finding in answer.findings for answer in _answers(files, images) if answer.findings]
    return {"seen": sum(given), "of": len(given)}


def _agreement(key: StudyKey, files: Sequence[AnswerFile]) -> dict[str, Any]:
    """Kappas of each question; None for one reader. Cohen's of the quality weighs disagreements by their square."""

    def given(question: str) -> dict[str, dict[str, str | int]]:
        return {
            file.reader.name: {
                answer.image: value for answer in file.answers if (value := getattr(answer, question)) is not None
            }
            for file in files
        }

    return {
        "origin": agreement(given("origin")),
        "quality": agreement(given("quality"), weights="quadratic", scale=_GRADES),
        "match": None if key.text is None else agreement(given("match")),
    }


def _answers(files: Iterable[AnswerFile], names: Iterable[str]) -> list[Answer]:
    wanted = set(names)
    return [answer for file in files for answer in file.answers if answer.image in wanted]
