"""A table of reports (CSV, JSON, Parquet or Excel) as a stream: each row becomes a `Report` or a `Rejected` line.

Rows are read one at a time. No memory grows with the table: `SeenIds` keeps ids, to find duplicates, and beyond a few
megabytes in a temporary file.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from cxrsynth.address import Location, parse_location
from cxrsynth.errors import ReportsError
from cxrsynth.reports.table.columns import (
    TEXT_ROLES,
    ColumnNames,
    column_names,
    find_labels,
    find_roles,
    listed,
    named_alike,
    template_columns,
)
from cxrsynth.reports.table.records import read_records
from cxrsynth.reports.table.rows import Rejected, Report, UnusableError, to_report
from cxrsynth.reports.table.seen import SeenIds
from cxrsynth.reports.table.source import checked, reading
from cxrsynth.reports.template import PromptFormat, PromptTemplate
from cxrsynth.runtime.files import file_sha256

DUPLICATE = "duplicate id"
# Roles that a template may have as fields, and that are missing in every row of a table without them.
_NEEDED = ("age", "sex", "view", "race")


@dataclass(frozen=True, slots=True)
class Table:
    """A checked table. `roles`: role -> column name; `labels`: column name -> CheXpert observation.

    `fields`: field of a prompt template -> column whose text it takes. The role `race` is read for such fields alone.
    """

    path: Location
    columns: tuple[str, ...]
    roles: Mapping[str, str]
    labels: Mapping[str, str]
    fields: Mapping[str, str] = field(default_factory=dict)

    def for_prompts(self, prompt_format: PromptFormat) -> "Table":
        """The table with the columns read that prompts of a format need.

        Raises:
            ReportsError: if it lacks one, or one must not be part of a prompt.
        """
        if not isinstance(prompt_format, PromptTemplate):
            return self
        fields = template_columns(self.path, self.columns, prompt_format, roles=self.roles)
        for name in prompt_format.outside:
            role = "age" if name == "age_group" else name
            if role in _NEEDED and role not in self.roles:
                raise ReportsError(
                    f"{self.path}: the prompt template has {{{name}}} outside of brackets, but no column holds the"
                    f" {role}\n  columns: {listed(self.columns)}\n  name the column (--{role}-column, or columns in a"
                    f" recipe), or write a clause that can go, as [{{{name}}} ]"
                )
        return replace(self, fields=fields)

    def rows(self, *, strict: bool = False, per_image: bool = False) -> Iterator[Report | Rejected]:
        """Rows in file order, read lazily; every call starts from the beginning.

        A cell of view, sex, age or a label that is not understood is left out; if `strict`, it costs the row. A row
        with the id of an earlier one is rejected; if `per_image`, it is another image of the same report, and has its
        number as `repeat`.

        Without an id column, a row is called `row-<line>`: it keeps that id as long as the lines above it stay. Its
        `has_id` is False, unlike that of a row with such an id in its column.

        Raises:
            ReportsError: if the file can no longer be read, or its Parquet pages are broken.
        """
        # What no prompt needs cannot cost a row.
        roles = {role: name for role, name in self.roles.items() if role != "race"}
        columns = dict.fromkeys((*roles.values(), *self.labels, *self.fields.values()))
        with SeenIds() as seen:
            for line, record in read_records(self.path, list(columns)):
                try:
                    if isinstance(record, str):
                        raise UnusableError(record)
                    report = to_report(line, record, roles=roles, fields=self.fields, strict=strict)
                    before = seen.add(report.report_id) if "report_id" in self.roles else 0
                    if before and not per_image:
                        raise UnusableError(DUPLICATE)
                    if before:
                        report = replace(report, repeat=before)
                except UnusableError as unusable:
                    yield Rejected(line, str(unusable))
                else:
                    yield report

    def digest(self) -> str:
        """SHA-256 of the file's bytes, in hex."""
        with reading(self.path):
            return file_sha256(self.path)


def open_table(path: Location | str, *, columns: ColumnNames | None = None) -> Table:
    """Check the file and header of a table, and find its columns.

    Raises:
        ReportsError: if the file cannot be read, has an unknown format or no usable header, lacks one of `columns`, or
            has neither a text nor a label column.
    """
    path = parse_location(path) if isinstance(path, str) else path
    path = checked(path)
    names = column_names(path)
    roles = find_roles(path, names, asked=columns or ColumnNames())
    labels = find_labels(path, names, taken={name for role, name in roles.items() if role != "race"})
    if not labels and not any(role in roles for role in TEXT_ROLES):
        alike = named_alike(names, roles=roles, read=set(roles.values()))
        raise ReportsError(
            f"{path}: no column holds report text or finding labels\n  columns: {listed(names)}\n"
            + (f"  named alike: {alike}\n" if alike else "")
            + "  expected report, text, findings or impression, or CheXpert observations; or name the columns"
        )
    return Table(path, names, roles, labels)
