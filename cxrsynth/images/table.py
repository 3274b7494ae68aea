"""Tables of image metadata, looked up by file name."""

import json
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from cxrsynth.address import Location
from cxrsynth.console import counted
from cxrsynth.errors import ReportsError
from cxrsynth.images import dicom, pictures
from cxrsynth.images.layouts.paths import plain
from cxrsynth.images.listed import LISTED, label_cells, may_list
from cxrsynth.images.metadata import is_metadata, unclear_roles
from cxrsynth.reports.table.columns import (
    ColumnNames,
    column_names,
    find_labels,
    find_roles,
    listed,
    named_alike,
    template_columns,
)
from cxrsynth.reports.table.records import read_records
from cxrsynth.reports.table.source import checked
from cxrsynth.reports.template import PromptTemplate

# In order of preference.
_FILE_COLUMNS = (
    "path", "filename", "file", "filepath", "imagepath", "image", "imageid", "dicomid", "imageindex", "imagefilename",
    "id", "key",
)  # fmt: skip
_SUFFIXES = tuple(f".{extension}" for extension in (*pictures.EXTENSIONS, *dicom.EXTENSIONS))
_AMBIGUOUS = -1


@dataclass(frozen=True, slots=True)
class Row:
    """One row by column name, and the line on which it starts; `is_of_table` where a user's table has it."""

    line: int
    record: Mapping[str, Any] = field(repr=False)
    is_of_table: bool = False


@dataclass(frozen=True, slots=True)
class Matches:
    """How many of some images have a row in a table, and how many of its rows describe one of them."""

    images: int
    with_row: int
    rows: int
    matched: int
    shared: int = 0  # images that have none, since its name fits other images as well

    @property
    def is_whole(self) -> bool:
        """Whether each image has a row of its own."""
        return self.with_row == self.images == self.matched

    def __str__(self) -> str:
        images = f"{self.with_row:,} of {counted(self.images, 'image')} have a row"
        said = f"{images}; {self.rows - self.matched:,} of {counted(self.rows, 'row')} match no image"
        if self.shared:
            said += f"; {counted(self.shared, 'image')} are left without, for names that fit several: give paths"
        if self.with_row > self.matched:
            said += f"; {self.with_row - self.matched:,} share a row with another image"
        return said


@dataclass(frozen=True, slots=True)
class Unread:
    """A line of a table that cannot be read, and why."""

    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class Unclear:
    """A column some of whose cells are not understood: how many rows, the first line, and whether any cell is read."""

    rows: int
    line: int
    is_read: bool
    is_list: bool


class ImageRows:
    """Rows of a table by file name. All are held in memory, compressed: about 0.5 kB per row of labels."""

    def __init__(
        self,
        column: str,
        rows: Iterable[Row | Unread],
        *,
        examine: Callable[[Row], None] = lambda row: None,
    ) -> None:
        """Raise ReportsError, without naming the table, if two rows name the same file.

        `examine` sees each row that names one.
        """
        self.used = ""
        self.unclear: Mapping[str, Unclear] = {}
        self._examine = examine
        self.unread: list[Unread] = []
        self._packed: list[bytes] = []
        self._by_name: dict[str, int] = {}
        self._by_stem: dict[str, int] = {}
        self._by_file: dict[str, int] = {}
        for row in rows:
            name = "" if isinstance(row, Unread) else _name(row.record.get(column))
            if isinstance(row, Row) and name:
                self._add(row, name)
            else:
                self.unread.append(row if isinstance(row, Unread) else Unread(row.line, f"no {column}"))

    def find(self, relative: str, root: PurePosixPath | None = None) -> Row | None:
        """The row of a file, by its path in the collection at `root`, with or without its extension.

        Paths in a table may start above the root, at it or below it; the longest match counts. A row whose path does
        not match still applies to a file outside any folder, if no other row has that file name.
        """
        place = self.place_of(relative, root)
        return None if place is None else self._row(place)

    def place_of(self, relative: str, root: PurePosixPath | None = None) -> int | None:
        """Which row `find` gives, counted from 0."""
        parts = (PurePosixPath(relative) if root is None else root / relative).parts
        for start in range(len(parts)):
            name = "/".join(parts[start:])
            for index in (self._by_name.get(name), self._by_stem.get(_stem(name), _AMBIGUOUS)):
                if index is not None and index != _AMBIGUOUS:
                    return index
        # A path with folders is never found here: the keys are bare file names.
        index = self._by_file.get(_stem(relative), _AMBIGUOUS)
        return None if index == _AMBIGUOUS else index

    def unclear_among(self, names: Iterable[str], root: PurePosixPath | None = None) -> frozenset[str]:
        """The files, of all in a collection, whose row fits others as well: that of `1.png` fits `a/1.png`, `b/1.png`.

        A row is a file's own where it names all of its path in the collection.
        """
        by_place: dict[int, list[str]] = {}
        for name in names:
            if (place := self.place_of(name, root)) is not None:
                by_place.setdefault(place, []).append(name)
        return frozenset(
            name
            for place, fitting in by_place.items()
            if len(fitting) > 1
            for name in fitting
            if place not in (self._by_name.get(name), self._by_stem.get(_stem(name)))
        )

    def __len__(self) -> int:
        return len(self._packed)

    def _row(self, index: int) -> Row:
        line, record = json.loads(zlib.decompress(self._packed[index]))
        return Row(line, record, is_of_table=True)

    def _add(self, row: Row, name: str) -> None:
        index = len(self._packed)
        if name in self._by_name:
            first = self._row(self._by_name[name]).line
            raise ReportsError(f"lines {first} and {row.line} describe the same image\n  expected one row per image")
        self._by_name[name] = index
        self._examine(row)
        for known, short in ((self._by_stem, _stem(name)), (self._by_file, _stem(name.rpartition("/")[2]))):
            known[short] = _AMBIGUOUS if short in known else index
        self._packed.append(zlib.compress(json.dumps([row.line, row.record]).encode()))


def open_rows(
    path: Location,
    *,
    columns: ColumnNames | None = None,
    template: PromptTemplate | None = None,
    file_column: str | None = None,
) -> ImageRows:
    """Read a table of images; of a prompt template, its fields, too.

    Args:
        path: of the table.
        columns: names that differ from the usual ones.
        template: of prompts.
        file_column: the column of file names; a usual one where it is None or not there.

    Raises:
        ReportsError: if it cannot be read, has no column of file names, lacks a requested column, has one that must not
            be part of a prompt, or describes an image twice.
    """
    path = checked(path)
    names = column_names(path)
    roles = find_roles(path, names, asked=columns or ColumnNames())
    labels = find_labels(path, names, taken=set(roles.values()))
    usual = {plain(name): name for name in reversed(names)}
    column = next((usual[name] for name in _FILE_COLUMNS if name in usual), None)
    column = file_column if file_column in names else column
    if column is None:
        raise ReportsError(
            f"{path}: no column of image file names\n  columns: {listed(names)}\n"
            "  expected path, filename, file, image, image_id, dicom_id or id; or name it with --file-column"
        )
    fields = {} if template is None else template_columns(path, names, template, roles=roles)
    used = {column, *fields.values()}
    wanted = [name for name in names if name in used or is_metadata(name, roles)]
    cells = _Cells(roles)
    try:
        rows = ImageRows(column, _rows(path, wanted, used, roles), examine=cells.examine)
    except ReportsError as error:
        raise ReportsError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from None
    rows.unclear = cells.unclear()
    rows.used = _used(column, names, roles, labels, fields=fields.values(), lists=cells.read)
    return rows


class _Cells:
    """Counts cells that are not understood, by column, and notes which columns list labels that are read."""

    def __init__(self, roles: Mapping[str, str]) -> None:
        self._roles = roles
        self._lines: dict[str, list[int]] = {}
        self._lists: set[str] = set()
        self.read: set[str] = set()

    def examine(self, row: Row) -> None:
        for name, cell in label_cells(row.record, taken=self._roles.values()).items():
            self._lists.add(name)
            if cell.is_read:
                self.read.add(name)
            if cell.rest:
                self._lines.setdefault(name, []).append(row.line)
        for name in unclear_roles(row.record, self._roles):
            self._lines.setdefault(name, []).append(row.line)

    def unclear(self) -> dict[str, Unclear]:
        """By column; without those that only might have listed labels."""
        return {
            name: Unclear(len(lines), lines[0], name in self.read, name in self._lists)
            for name, lines in self._lines.items()
            if name not in self._lists or name in self.read or plain(name) in LISTED
        }


def _used(
    column: str,
    names: tuple[str, ...],
    roles: Mapping[str, str],
    labels: Mapping[str, str],
    *,
    fields: Collection[str],
    lists: Set[str],
) -> str:
    """Which columns are read for what, and which are not read, in words."""
    read = {"file": column} | {role.replace("_id", ""): name for role, name in roles.items()}
    parts = [f"{role} from {name}" for role, name in read.items()]
    if labels:
        parts.append(counted(len(labels), "column of labels", "columns of labels"))
    taken = {column, *roles.values(), *labels, *fields}
    others = [
        name
        for name in names
        if name not in taken and is_metadata(name, roles) and (name in lists or not may_list(name))
    ]
    left = [name for name in names if name.strip() and name not in {*taken, *others}]
    if not left:
        return ", ".join([*parts, *others])
    # Images are found by their files, and no race is read: nothing is said of columns that look like these.
    alike = named_alike(names, roles={*roles, "report_id", "race"}, read={*taken, *others})
    alike = alike.replace("--patient-id-column", "--patient-column")
    not_read = f"; not read: {listed(left, among=names)}" + (f"; meant as {alike}" if alike else "")
    return ", ".join([*parts, *others]) + not_read


def _rows(path: Location, wanted: list[str], used: Set[str], roles: Mapping[str, str]) -> Iterator[Row | Unread]:
    for line, record in read_records(path, wanted):
        if isinstance(record, str):
            yield Unread(line, record)
        else:
            kept = {name: _plain_value(v) for name, v in record.items() if name in used or is_metadata(name, roles)}
            yield Row(line, {name: value for name, value in kept.items() if value is not None})


def _plain_value(value: Any) -> Any:
    """A value as JSON has it; None for other types."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return None
    return value if isinstance(value, str | int | float | list | dict) else None


def _name(value: Any) -> str:
    """The file name in a row, with forward slashes and without a leading `./` or `/`."""
    text = str(value).strip().replace("\\", "/") if isinstance(value, str | int) else ""
    while text.startswith(("./", "/")):
        text = text.removeprefix(".").removeprefix("/")
    return text


def _stem(name: str) -> str:
    """A name without an image extension; UIDs keep their dots."""
    return next((name[: -len(suffix)] for suffix in _SUFFIXES if name.lower().endswith(suffix)), name)
