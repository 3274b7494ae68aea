"""Roles of table columns, recognized by their names."""

import difflib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from functools import cache, lru_cache
from pathlib import Path

from cxrsynth.errors import ReportsError
from cxrsynth.reports.labels import OBSERVATIONS
from cxrsynth.reports.table.records import read_header

# First come, first taken: a table with both `report` and `text` is read by `report`.
_USUAL_NAMES = {
    "report": ("report", "reporttext", "text"),
    "findings": ("findings",),
    "impression": ("impression",),
    "report_id": ("reportid", "studyid", "id", "uid"),
    "view": ("view", "viewposition"),
    "sex": ("sex", "gender", "patientsex", "patientgender"),
    "age": ("age", "patientage"),
}
# Roles whose columns hold report text.
TEXT_ROLES: tuple[str, ...] = ("report", "findings", "impression")


@dataclass(frozen=True, slots=True)
class ColumnNames:
    """Columns by name, where a table does not use the usual ones (section 'Tables' of the reference)."""

    report: str | None = None
    findings: str | None = None
    impression: str | None = None
    report_id: str | None = None
    view: str | None = None
    sex: str | None = None
    age: str | None = None


def column_names(path: Path) -> tuple[str, ...]:
    """Column names in file order.

    Raises:
        ReportsError: if the file cannot be read, has no usable header, or names two columns alike but for case.
    """
    names = read_header(path)
    counts: dict[str, int] = {}
    for name in names:
        counts[name.strip().casefold()] = counts.get(name.strip().casefold(), 0) + 1
    # Two unnamed columns are no ambiguity: nothing is read from them.
    twice = sorted(name for name, count in counts.items() if name and count > 1)
    if twice:
        raise ReportsError(f"{path}: columns named more than once: {listed(twice)}\n  rename or drop one of each")
    return names


def find_roles(path: Path, names: tuple[str, ...], *, asked: ColumnNames) -> dict[str, str]:
    """Role -> column name: the column asked for, else the first with a usual name.

    Raises:
        ReportsError: if a column asked for is not among `names`.
    """
    by_usual_name: dict[str, str] = {}
    for name in names:
        by_usual_name.setdefault(_plain(name), name)
    roles = {}
    for role in (entry.name for entry in fields(asked)):
        wanted = getattr(asked, role)
        if wanted is not None and wanted not in names:
            close = difflib.get_close_matches(wanted, names, n=3)
            hint = f"\n  did you mean: {listed(close)}" if close else ""
            raise ReportsError(f"{path}: column {wanted!r} not found\n  columns: {listed(names)}{hint}")
        usual = (by_usual_name[name] for name in _USUAL_NAMES[role] if name in by_usual_name)
        column = wanted if wanted is not None else next(usual, None)
        if column is not None:
            roles[role] = column
    return roles


def find_labels(path: Path, names: tuple[str, ...], *, taken: Collection[str]) -> dict[str, str]:
    """Column name -> CheXpert observation, but for the columns `taken` by a role.

    Raises:
        ReportsError: if two columns are one observation.
    """
    labels = {name: label for name in names if name not in taken and (label := observation_of(name))}
    _refuse_two_of_a_label(path, labels)
    return labels


def _refuse_two_of_a_label(path: Path, labels: Mapping[str, str]) -> None:
    for observation in OBSERVATIONS:
        same = [name for name, label in labels.items() if label == observation]
        if len(same) > 1:
            raise ReportsError(f"{path}: columns {listed(same)} are all {observation}\n  rename or drop all but one")


def listed(names: tuple[str, ...] | list[str]) -> str:
    """Column names for a message: 40 of them at most, 40 characters of each; none of a table without a header.

    There the first row stands in their place: a report's words, or a patient's number.
    """
    if any(_reads_like_content(name) for name in names):
        return f"{len(names)}, not shown: they read like a row of content, not like names (is the header missing?)"
    # A file that is no table can have a "header" of any length, made of text: show little of it.
    shown = [name if len(name) <= 40 else f"{name[:40]}..." for name in names[:40]]
    return ", ".join(shown) + (f" and {len(names) - 40} more" if len(names) > 40 else "")


def _reads_like_content(name: str) -> bool:
    """A sentence, a number, a date, or a name with one in it."""
    sentence = len(name.split()) > 6 or (" " in name and name.rstrip().endswith((".", "!", "?")))
    return sentence or re.fullmatch(r"[\d\s./:-]*\d[\d\s./:-]*", name) is not None or bool(re.search(r"\d{4}", name))


@cache
def _plain_observations() -> dict[str, str]:
    return {_plain(observation): observation for observation in OBSERVATIONS}


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name).casefold()


@lru_cache(maxsize=1024)
def observation_of(name: str) -> str | None:
    """The CheXpert observation a column is called after, whatever its case and separators; None for any other."""
    # No observation has 64 letters; a longer key is not worth normalising.
    return _plain_observations().get(_plain(name)) if len(name) < 64 else None
