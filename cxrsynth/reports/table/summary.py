"""What was taken from a table's columns, in one line, so that one that was missed is seen before images are made."""

from cxrsynth.console import counted
from cxrsynth.reports.table.columns import are_names, named_alike
from cxrsynth.reports.table.delimited import SEPARATORS, read_separator
from cxrsynth.reports.table.source import Kind, kind_of
from cxrsynth.reports.table.table import Table


def describe_columns(table: Table) -> str:
    """`report from text, view from ViewPosition; 14 label columns; not read: Projection (view?)`."""
    roles = {role: name for role, name in table.roles.items() if role != "race" or "race" in table.fields}
    shown = are_names(table.columns)
    parts = [", ".join(f"{role} from {name}" if shown else role for role, name in roles.items())] if roles else []
    if table.labels:
        parts.append(counted(len(table.labels), "label column"))
    if kind_of(table.path) is Kind.CSV and (separator := read_separator(table.path)) != ",":
        parts.append(f"separated by {SEPARATORS.get(separator, repr(separator))}")
    read = {*table.roles.values(), *table.labels, *table.fields.values()}
    if alike := named_alike(table.columns, roles=table.roles, read=read):
        parts.append(f"not read, though named alike: {alike}")
    return "; ".join(parts)
