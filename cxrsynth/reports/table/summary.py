"""What was taken from a table's columns, in one line, so that one that was missed is seen before images are made."""

import re

from cxrsynth.console import counted
from cxrsynth.reports.table.columns import USUAL_NAMES, are_names
from cxrsynth.reports.table.delimited import SEPARATORS, read_separator
from cxrsynth.reports.table.source import Kind, kind_of
from cxrsynth.reports.table.table import Table

# What else columns of these roles are called; with them, a table is read only where they are named.
_OTHER_NAMES = {
    "report": ("narrative", "reportbody", "radiologyreport", "caption", "description", "conclusion"),
    "view": ("projection", "position", "orientation", "seriesdescription"),
    "sex": ("male", "female"),
    "age": ("years", "ageyears", "ageatstudy"),
    "report_id": ("accession", "accessionnumber", "examid", "imageid", "filename", "path"),
    "patient_id": ("mrn", "person", "personid", "pid"),
}


def describe_columns(table: Table) -> str:
    """`report from text, view from ViewPosition; 14 label columns; not read: Projection (view?)`."""
    roles = {role: name for role, name in table.roles.items() if role != "race" or "race" in table.fields}
    shown = are_names(table.columns)
    parts = [", ".join(f"{role} from {name}" if shown else role for role, name in roles.items())] if roles else []
    if table.labels:
        parts.append(counted(len(table.labels), "label column"))
    if kind_of(table.path) is Kind.CSV and (separator := read_separator(table.path)) != ",":
        parts.append(f"separated by {SEPARATORS.get(separator, repr(separator))}")
    left = {name: role for name in table.columns if (role := _alike(name, table)) is not None}
    if left and shown:
        named = ", ".join(f"{name} ({role}? --{role.replace('_', '-')}-column)" for name, role in left.items())
        parts.append(f"not read, though named alike: {named}")
    return "; ".join(parts)


def _alike(name: str, table: Table) -> str | None:
    """The role that a column is named like, if it is not read and no other column has that role."""
    if name in {*table.roles.values(), *table.labels, *table.fields.values()}:
        return None
    plain = re.sub(r"[\W_]+", "", name).casefold()
    for role, names in _OTHER_NAMES.items():
        known = (*USUAL_NAMES[role], *names)
        if role not in table.roles and (plain in known or any(_contains(plain, usual) for usual in known)):
            return role
    return None


def _contains(plain: str, usual: str) -> bool:
    return len(usual) > 4 and usual in plain and len(plain) <= len(usual) + 8
