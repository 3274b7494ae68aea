"""Roles of the columns of a table, by their names."""

import difflib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from functools import cache, lru_cache

from cxrsynth.address import Location
from cxrsynth.errors import ReportsError
from cxrsynth.reports.labels import OBSERVATIONS
from cxrsynth.reports.table.records import read_header
from cxrsynth.reports.template import FIELDS, PromptTemplate

# The first match counts: from a table with both `report` and `text`, `report` is read.
USUAL_NAMES = {
    "report": ("report", "reporttext", "text"),
    "findings": ("findings", "sectionfindings"),
    "impression": ("impression", "sectionimpression"),
    "report_id": ("reportid", "studyid", "id", "uid", "study", "dicomid"),
    "view": ("view", "viewposition", "ap/pa", "appa"),
    "sex": ("sex", "gender", "patientsex", "patientgender"),
    "age": ("age", "patientage"),
    "patient_id": ("patientid", "subjectid", "patient", "subject", "pid", "personid", "mrn"),
    "race": ("race", "ethnicity", "raceethnicity", "patientrace", "ethnicgroup"),
}
# Roles whose columns hold report text.
TEXT_ROLES: tuple[str, ...] = ("report", "findings", "impression")
_ID_ROLES = ("report_id", "patient_id")

# What else columns of these roles are called; with these names, one is read only where it is named.
OTHER_NAMES = {
    "report": ("narrative", "reportbody", "radiologyreport", "caption", "description", "conclusion"),
    "view": ("projection", "position", "orientation", "seriesdescription", "frontal/lateral", "frontallateral"),
    "sex": ("male", "female"),
    "age": ("years", "ageyears", "ageatstudy"),
    "report_id": ("accession", "accessionnumber", "examid", "imageid", "filename", "path"),
    "patient_id": ("person",),
}
_OF_IDS = frozenset(name for role in _ID_ROLES for names in (USUAL_NAMES[role], OTHER_NAMES[role]) for name in names)
_ID_WORDS = frozenset({"id", "ids", "uid", "uuid", "guid", "accession", "mrn", "csn", "encounter"})
_LONGEST_NAME = 40  # characters that are shown of a name; a longer one may be text
_ENOUGH = 3  # usual names that make a first row a header, whatever stands beside them
# Words by which a header is known. No word of a report's first sentence, and no name of a person, may be one.
_KNOWN_NAMES = frozenset(name for names in (*USUAL_NAMES.values(), *OTHER_NAMES.values()) for name in names) - {
    *("male", "female", "ap", "pa", "position"),
}
_KNOWN_WORDS = frozenset(
    {
        *("id", "ids", "uid", "uuid", "key", "index", "number", "accession", "mrn", "code", "codes", "version"),
        *("report", "reports", "text", "texts", "section", "notes", "note", "comment", "comments", "remarks", "title"),
        *("caption", "prompt", "narrative", "description", "label", "labels", "finding", "findings", "impression"),
        *("view", "projection", "sex", "gender", "age", "race", "ethnicity", "patient", "subject", "study", "name"),
        *("date", "time", "datetime", "year", "split", "fold", "dataset", "source", "site", "type", "class"),
        *("path", "file", "filename", "filepath", "url", "image", "images", "img", "dicom", "series", "modality"),
        *("width", "height", "rows", "columns", "score", "value", "column", "manufacturer", "language", "count"),
    }
)


_FRONTAL_ALONE, _FRONTAL_OR_LATERAL = ("ap/pa", "appa"), ("frontal/lateral", "frontallateral")


@dataclass(frozen=True, slots=True)
class ColumnNames:
    """Names of columns in a table that does not use the usual names (section 'Tables' of the reference)."""

    report: str | None = None
    findings: str | None = None
    impression: str | None = None
    report_id: str | None = None
    view: str | None = None
    sex: str | None = None
    age: str | None = None
    patient_id: str | None = None
    race: str | None = None


def column_names(path: Location) -> tuple[str, ...]:
    """Column names in file order.

    Raises:
        ReportsError: if the file cannot be read, has no usable header, or has two names that differ only in case.
    """
    names = read_header(path)
    counts: dict[str, int] = {}
    for name in names:
        counts[name.strip().casefold()] = counts.get(name.strip().casefold(), 0) + 1
    # Several unnamed columns are not ambiguous: nothing is read from them.
    twice = sorted(name for name, count in counts.items() if name and count > 1)
    if twice:
        named = listed(twice, among=names)
        raise ReportsError(f"{path}: columns named more than once: {named}\n  rename or drop one of each")
    return names


def find_roles(path: Location, names: tuple[str, ...], *, asked: ColumnNames) -> dict[str, str]:
    """Role -> column name: the column that `asked` names, else the first with a usual name.

    Raises:
        ReportsError: if a column that `asked` names is not among `names`.
    """
    by_usual_name: dict[str, str] = {}
    for name in names:
        by_usual_name.setdefault(_plain(name), name)
    roles = {}
    for role in (entry.name for entry in fields(asked)):
        wanted = getattr(asked, role)
        if wanted is not None and wanted not in names:
            close = difflib.get_close_matches(wanted, names, n=3)
            raise ReportsError(
                f"{path}: column {wanted!r} not found\n  columns: {listed(names)}{_meant(close, among=names)}"
            )
        usual = (by_usual_name[name] for name in USUAL_NAMES[role] if name in by_usual_name)
        column = wanted if wanted is not None else next(usual, None)
        if column is not None:
            roles[role] = column
    if asked.view is None and _plain(roles.get("view", "")) in _FRONTAL_ALONE:
        # CheXpert's tables say which of the two frontal views it is in one column, and that it is none in another.
        lateral = next((by_usual_name[name] for name in _FRONTAL_OR_LATERAL if name in by_usual_name), None)
        if lateral is not None:
            roles["lateral"] = lateral
    return roles


def find_labels(path: Location, names: tuple[str, ...], *, taken: Collection[str]) -> dict[str, str]:
    """Column name -> CheXpert observation, without the columns `taken` by a role.

    Raises:
        ReportsError: if two columns are the same observation.
    """
    labels = {name: label for name in names if name not in taken and (label := observation_of(name))}
    _refuse_two_of_a_label(path, labels, names)
    return labels


# Words of a column's name that say whom or where it is about.
_PEOPLE = frozenset(
    {
        *("name", "names", "firstname", "lastname", "surname", "author", "reader", "provider", "signer"),
        *("physician", "physicians", "doctor", "radiologist", "surgeon", "nurse", "technologist"),
        *("address", "street", "city", "zip", "zipcode", "hospital", "institution"),
        *("phone", "telephone", "fax", "email", "ssn", "url", "initials", "dob", "birthdate", "postcode", "postal"),
    }
)
# Also as the end of a name written together: `patientname`, `referringmd`.
_PEOPLE_ENDS = ("name", "physician", "doctor", "radiologist", "surgeon", "address", "dob", "birthdate", "md")
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")


def template_columns(
    path: Location, names: tuple[str, ...], template: PromptTemplate, *, roles: Mapping[str, str]
) -> dict[str, str]:
    """Field of a prompt template -> column, for those that are read from the table as they are: race and named columns.

    Args:
        path: of the table, for messages.
        names: of its columns.
        template: whose fields are looked up.
        roles: role -> column name.

    Raises:
        ReportsError: if a named column is not there, or holds ids or ages.
    """
    columns = {}
    for name in template.columns:
        if name not in names:
            known = [*FIELDS, *(names if are_names(names) else ())]
            hint = _meant(difflib.get_close_matches(name, dict.fromkeys(known), n=3), among=known)
            raise ReportsError(
                f"{path}: the prompt template has {{{name}}}, but there is no such column\n  columns: {listed(names)}\n"
                f"  other fields: {', '.join(FIELDS)}{hint}"
            )
        if is_of_ids(name, roles):
            raise ReportsError(
                f"{path}: the prompt template has {{{name}}}, a column of ids\n"
                "  expected: another column; no id may be part of a prompt"
            )
        if _PEOPLE & set(map(str.casefold, _WORD.findall(name))) or _plain(name).endswith(_PEOPLE_ENDS):
            raise ReportsError(
                f"{path}: the prompt template has {{{name}}}, a column that names people or places\n"
                "  expected: another column; no name or address may be part of a prompt"
            )
        if name == roles.get("age"):
            raise ReportsError(
                f"{path}: the prompt template has {{{name}}}, the column of ages\n"
                "  use: {age}, which leaves out ages above 89"
            )
        columns[name] = name
    return columns | ({"race": roles["race"]} if template.needs_race and "race" in roles else {})


def is_of_ids(name: str, roles: Mapping[str, str]) -> bool:
    """Whether a column holds ids of reports or patients, by its role or its name."""
    words = set(map(str.casefold, _WORD.findall(name)))
    return (
        name in {roles.get(role) for role in _ID_ROLES}
        or _plain(name) in _OF_IDS
        or not words.isdisjoint(_ID_WORDS)
        or any(_plain(name).endswith(word) for word in ("uid", "mrn", "csn", "accessionnumber"))
    )


def _meant(close: Collection[str], *, among: Collection[str]) -> str:
    return f"\n  did you mean: {', '.join(close)}" if close and are_names(among) else ""


def _refuse_two_of_a_label(path: Location, labels: Mapping[str, str], names: Collection[str]) -> None:
    for observation in OBSERVATIONS:
        same = [name for name, label in labels.items() if label == observation]
        if len(same) > 1:
            raise ReportsError(
                f"{path}: columns {listed(same, among=names)} all mean {observation}\n  rename or drop all but one"
            )


def listed(names: Collection[str], *, among: Collection[str] | None = None) -> str:
    """Column names for a message: at most 40 names of 40 characters, and none if the header seems to be missing.

    Without a header, the "names" are the first row: words of a report, the name or the number of a patient.

    Args:
        names: to list.
        among: all names of the table, which decide; None if `names` are all.
    """
    if not are_names(names if among is None else among):
        return f"{len(names)}, not shown: the first row does not read like names of columns (is the header missing?)"
    shown = [name if len(name) <= _LONGEST_NAME else f"({len(name)} characters)" for name in list(names)[:40]]
    return ", ".join(shown) + (f" and {len(names) - 40} more" if len(names) > 40 else "")


def named_alike(names: Collection[str], *, roles: Collection[str], read: Collection[str]) -> str:
    """Columns named like a role that no column has: `Projection (view? --view-column)`; empty if there are none.

    Args:
        names: of all columns.
        roles: that have a column.
        read: columns that are read.
    """
    if not are_names(names):
        return ""
    left = {name: role for name in names if name not in read and (role := _alike(name, roles)) is not None}
    return ", ".join(f"{name} ({role}? --{role.replace('_', '-')}-column)" for name, role in left.items())


def _alike(name: str, roles: Collection[str]) -> str | None:
    plain = re.sub(r"[\W_]+", "", name).casefold()
    for role, names in OTHER_NAMES.items():
        known = (*USUAL_NAMES[role], *names)
        if role not in roles and (plain in known or any(_contains(plain, usual) for usual in known)):
            return role
    return None


def _contains(plain: str, usual: str) -> bool:
    return len(usual) > 4 and usual in plain and len(plain) <= len(usual) + 8


def are_names(names: Collection[str]) -> bool:
    """Whether all names of a table read like a header: if not, they may be its first row, and must not be shown.

    None reads like a cell, and most, or some that are no observation, are made of words that columns are named with.
    """
    given = [name for name in names if name.strip()]
    if any(map(_reads_like_content, given)):
        return False
    named = [name for name in given if observation_of(name) or _reads_like_a_name(name)]
    # An observation alone may be a cell, too.
    sure = sum(observation_of(name) is None for name in named)
    return 2 * len(named) > len(given) or sure >= _ENOUGH


def _reads_like_content(name: str) -> bool:
    """A sentence, a number, a date, or a name with one in it."""
    sentence = len(name.split()) > 6 or (" " in name and name.rstrip().endswith((".", "!", "?")))
    sentence |= re.search(r"[:;] \S", name) is not None
    return sentence or re.fullmatch(r"[\d\s./:-]*\d[\d\s./:-]*", name) is not None or bool(re.search(r"\d{4}", name))


def _reads_like_a_name(name: str) -> bool:
    """One of the usual names or nearly so, one with a word of them, or as programs write names: `lung_zone`."""
    plain = _plain(name)
    words = set(map(str.casefold, _WORD.findall(name)))
    if plain in _KNOWN_NAMES or not words.isdisjoint(_KNOWN_WORDS):
        return True
    if 6 <= len(plain) <= _LONGEST_NAME and difflib.get_close_matches(plain, _KNOWN_NAMES, n=1, cutoff=0.85):
        return True
    return re.fullmatch(r"[a-z][a-z0-9]*(?:_[a-z0-9]+)+", name) is not None


@cache
def _plain_observations() -> dict[str, str]:
    return {_plain(observation): observation for observation in OBSERVATIONS}


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name).casefold()


@lru_cache(maxsize=1024)
def observation_of(name: str) -> str | None:
    """The CheXpert observation that a column is named after, in any case and with any separators; None for others."""
    # No observation has 64 letters; longer names need not be normalized.
    return _plain_observations().get(_plain(name)) if len(name) < 64 else None
