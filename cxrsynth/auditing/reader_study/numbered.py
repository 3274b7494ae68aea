"""Readers by number, in what is handed on: who read, and with what experience, is for the owner of an audit."""

from collections.abc import Mapping
from typing import Any

from cxrsynth.auditing.reader_study.study import UNFINISHED


def number_readers(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The same summary with `reader 1`, `reader 2` ... in place of names, and without roles and years.

    Files of answers are numbered, too: they are often named after who gave them.
    """
    study = summary["reader_study"] or {}
    scores = study.get("scores")
    if scores is None:
        return dict(summary)
    names = {one["name"]: f"reader {number}" for number, one in enumerate(scores["readers"], 1)}
    readers = [one | {"name": names[one["name"]], "role": None, "years": None} for one in scores["readers"]]
    agreement = {question: _numbered(one, names) for question, one in scores["agreement"].items()}
    numbered = study | {"scores": scores | {"readers": readers, "agreement": agreement}}
    return dict(summary) | {
        "settings": dict(summary["settings"]) | {"reader_answers": [*names.values()]},
        "reader_study": numbered,
        "caveats": [_without_names(caveat, names) for caveat in summary["caveats"]],
    }


def _numbered(agreement: Mapping[str, Any] | None, names: Mapping[str, str]) -> dict[str, Any] | None:
    if agreement is None:
        return None
    pairs = [pair | {"readers": [names[name] for name in pair["readers"]]} for pair in agreement["pairs"]]
    return dict(agreement) | {"pairs": pairs}


def _without_names(caveat: str, names: Mapping[str, str]) -> str:
    for name, number in names.items():
        if caveat.startswith(begin := UNFINISHED.format(name)):
            return UNFINISHED.removeprefix("reader ").format(number) + caveat.removeprefix(begin)
    return caveat
