"""Labels of one image, from its rows in a table of a data set."""

import ast
import json
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from cxrsynth.images.layouts.paths import plain
from cxrsynth.images.layouts.vocabulary import BROADER, Vocabulary
from cxrsynth.reports.labels import OPACITY_KINDS, Status
from cxrsynth.reports.table.columns import observation_of
from cxrsynth.reports.table.rows import MISSING_LABELS, status_of

Rows: TypeAlias = Sequence[Mapping[str, Any]]
_NOT_A_NUMBER = re.compile(r"(?<=[:\s])nan(?=\s*[,}])")  # as pandas prints it
_LONGEST_OBJECT = 10_000  # characters
_LONGEST_WORD = 45
AROUND_WORDS = " \t\n[](){}'\""  # as lists are written as text


@dataclass(frozen=True, slots=True)
class Labels:
    """Observation -> status; one that is not mentioned has no entry.

    `without` are words of the data set that stand for no observation, `unknown` those that it is not known to have.
    """

    statuses: Mapping[str, Status]
    without: frozenset[str] = frozenset()
    unknown: frozenset[str] = field(default=frozenset(), repr=False)


LabelReader: TypeAlias = Callable[[Rows], Labels]


def observed(rows: Rows) -> Labels:
    """Columns named after observations, with 1, 0, -1 or nothing: present, absent, uncertain, not mentioned."""
    statuses, unknown = {}, set()
    for column, value in rows[0].items():
        observation = observation_of(column)
        word = cell_text(value).lower()
        if observation is None or word in MISSING_LABELS:
            continue
        status = status_of(word)
        if status is None:
            unknown.add(f"{observation} {word}")
        else:
            statuses[observation] = status
    return Labels(statuses, unknown=frozenset(unknown))


def listed(column: str, vocabulary: Vocabulary, *, open_ended: bool = False) -> LabelReader:
    """A list of words, `Effusion|Mass` or `['mass', 'nodule']`. What it does not name is unknown, not absent.

    `open_ended`: words beyond the vocabulary are the data set's, too.
    """

    def read(rows: Rows) -> Labels:
        return in_words(words_in(cell_text(rows[0].get(column))), vocabulary, open_ended=open_ended)

    return read


def marked(column: str) -> LabelReader:
    """An object of observations written as text, `{'Edema': 1, 'Fracture': 0}`. Of 0, nothing is known.

    Sets that are made so write 0 for what a report denies and for what it does not mention alike.
    """

    def read(rows: Rows) -> Labels:
        given = object_in(cell_text(rows[0].get(column))) or {}
        marks = {name: status_of(cell_text(value).lower()) for name, value in given.items()}
        known = {observation: status for name, status in marks.items() if (observation := observation_of(name))}
        statuses = {name: status for name, status in known.items() if status not in (None, Status.ABSENT)}
        return Labels(statuses, unknown=frozenset(name for name in marks if observation_of(name) is None))

    return read


def object_in(text: str) -> Mapping[str, Any] | None:
    """An object that is written as text, in JSON or as Python prints it; None where there is none."""
    if not text.lstrip().startswith("{") or len(text) > _LONGEST_OBJECT:
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        try:
            # It evaluates literals only, and warns of odd escapes in them.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = ast.literal_eval(_NOT_A_NUMBER.sub("None", text.strip()))
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return None
    return {str(name): one for name, one in found.items()} if isinstance(found, dict) else None


def voted(vocabulary: Vocabulary) -> LabelReader:
    """Rows of one reader each, with 1 or 0 in columns named after words."""

    def read(rows: Rows) -> Labels:
        asked = [name for name in rows[0] if plain(name) in vocabulary]
        votes = [{name for name in asked if status_of(cell_text(row[name])) is Status.PRESENT} for row in rows]
        return _agreed(votes, asked, vocabulary)

    return read


def boxed(column: str, reader: str, vocabulary: Vocabulary) -> LabelReader:
    """Rows of one box each, `column` saying of what and `reader` whose. Every reader has a row, if of No finding."""

    def read(rows: Rows) -> Labels:
        votes: dict[str, set[str]] = {}
        for row in rows:
            votes.setdefault(cell_text(row.get(reader)), set()).add(cell_text(row.get(column)))
        return _agreed(list(votes.values()), list(vocabulary), vocabulary)

    return read


def _agreed(votes: Sequence[set[str]], asked: Sequence[str], vocabulary: Vocabulary) -> Labels:
    """What all readers saw is present, what none saw absent, the rest uncertain."""
    by_reader = [{name for word in vote for name in vocabulary.get(plain(word), ())} for vote in votes]
    statuses: dict[str, Status] = {}
    for observation in sorted({name for word in asked for name in vocabulary[plain(word)]}):
        saw = [observation in seen for seen in by_reader]
        if any(saw):
            statuses[observation] = Status.PRESENT if all(saw) else Status.UNCERTAIN
        elif observation not in BROADER:
            statuses[observation] = Status.ABSENT
    # In the observations' hierarchy, unlike in such lists, each of these is a lung opacity.
    if any(statuses.get(kind, Status.ABSENT) is not Status.ABSENT for kind in OPACITY_KINDS):
        statuses = {name: one for name, one in statuses.items() if (name, one) != ("Lung Opacity", Status.ABSENT)}
    words = set[str]().union(*votes)
    return Labels(
        statuses,
        frozenset(word for word in words if vocabulary.get(plain(word)) == ()),
        frozenset(word for word in words if plain(word) not in vocabulary),
    )


def in_words(words: Sequence[str], vocabulary: Vocabulary, *, open_ended: bool = False) -> Labels:
    """Observations that words name as present."""
    known = {word: vocabulary.get(plain(word)) for word in words}
    found = [observation for several in known.values() for observation in several or ()]
    # A sentence is no label, and must not be quoted as one.
    others = {word for word, several in known.items() if several is None}
    named = {word for word in others if open_ended and len(word) <= _LONGEST_WORD}
    unmapped = {word for word, several in known.items() if several == ()} | named
    return Labels(dict.fromkeys(found, Status.PRESENT), frozenset(unmapped), frozenset(others - named))


def words_in(text: str) -> list[str]:
    """The words of a list written as text."""
    words = [word.strip(AROUND_WORDS) for word in re.split(r"[|;,]", text)]
    return [word for word in words if word and word.casefold() not in MISSING_LABELS]


def cell_text(value: Any) -> str:
    """A cell as text: bytes, as tables in Parquet have them, are decoded; whole numbers have no fraction."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace").strip()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if value is None or value != value else str(value).strip()
