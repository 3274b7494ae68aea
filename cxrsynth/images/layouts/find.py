"""Which layout a folder has, and the rows of its tables by image."""

import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import PurePosixPath
from typing import Any, Final

from cxrsynth.address import Location
from cxrsynth.errors import ReportsError, ShardError
from cxrsynth.images.image import Damaged
from cxrsynth.images.layouts.known import LAYOUTS
from cxrsynth.images.layouts.labels import Labels, cell_text
from cxrsynth.images.layouts.layout import Column, Layout, Recognized, Table
from cxrsynth.images.layouts.splits import split_named
from cxrsynth.images.layouts.vocabulary import class_folder, observations_of
from cxrsynth.images.limits import MAX_TEXT_BYTES, UnreadableError, open_plain
from cxrsynth.images.table import Row
from cxrsynth.reports.table.columns import column_names
from cxrsynth.reports.table.records import read_records
from cxrsynth.reports.table.source import checked, open_text

_SAMPLED: Final = 1000
_LOOKED_INTO: Final = 50  # tables of the same kind of name: some sets have one for each image
_SPLIT = "split"
_LIST: Final = ".txt"
_TABLES: Final = (".csv", ".csv.gz", _LIST)  # not x.csv.gz.md5
# Keys beside the columns of a record; no column has such a name.
_WITHOUT, _UNKNOWN = "\x03", "\x04"


@dataclass(frozen=True)
class Found:
    """A layout, and which file is which of its tables."""

    layout: Layout
    tables: Mapping[str, Table]


def find_layout(root: Location, names: Sequence[str], images: Sequence[str]) -> Found | None:
    """The layout of a folder, None where it has none that is known.

    Args:
        root: the folder.
        names: relative paths of all its files.
        images: those of its images.

    Raises:
        ReportsError: if two files could be the same table, or it is of two data sets.
    """
    step = max(1, len(images) // _SAMPLED)
    sample = images[::step]
    found = []
    for layout in LAYOUTS:
        fitting = sum(layout.path.search(name) is not None for name in sample)
        tables = _tables(root, names, layout) if fitting else {}
        if tables or (layout.is_distinctive and 2 * fitting > len(sample)):
            found.append(Found(layout, tables))
    if len(found) > 1:
        several = " and ".join(one.layout.name for one in found)
        raise ReportsError(
            f"{root}: holds images and tables of {several}\n"
            "  name the folder of one of them, or describe the images with a table of your own (--table)"
        )
    return found[0] if found else None


def _tables(root: Location, names: Sequence[str], layout: Layout) -> dict[str, Table]:
    found: dict[str, Table] = {}
    for table in layout.tables:
        file = _file_of(root, names, table, layout)
        if file is not None and not (table.unless and _matching(names, table.unless)):
            found[file] = table
    return found


def _file_of(root: Location, names: Sequence[str], table: Table, layout: Layout) -> str | None:
    """The file of a table: the first pattern with one counts, the highest folder, and `x.csv` before `x.csv.gz`."""
    for pattern in table.files:
        highest_first = sorted(_matching(names, pattern), key=lambda name: name.count("/"))[:_LOOKED_INTO]
        fitting = [name for name in highest_first if not table.has or _has(root / name, table.has)]
        plain = {name for name in fitting if f"{name}.gz" in fitting}
        fitting = [name for name in fitting if name.removesuffix(".gz") not in plain or name in plain]
        if fitting:
            highest = min(name.count("/") for name in fitting)
            first, *others = [name for name in fitting if name.count("/") == highest]
            if others:
                raise ReportsError(
                    f"{root}: {first} and {others[0]} could both be the table of {table.gives} of {layout.name}\n"
                    "  leave one of them there, or describe the images with a table of your own (--table)"
                )
            return first
    return None


def _matching(names: Sequence[str], pattern: str) -> list[str]:
    return [name for name in names if name.endswith(_TABLES) and fnmatch(name.rpartition("/")[2], pattern)]


def _has(path: Location, columns: tuple[str, ...]) -> bool:
    try:
        return set(columns) <= set(column_names(checked(path)))
    except ReportsError:
        return False  # whatever it is, it is not this table


@dataclass
class Survey:
    """What tables say of images together: splits by image, words of labels as in `Recognized`, columns with some."""

    split_of: dict[str, str] = field(default_factory=dict)
    without: Counter[str] = field(default_factory=Counter)
    unknown: set[str] = field(default_factory=set)
    unknown_images: int = 0
    read: set[str] = field(default_factory=set)


class LayoutRows:
    """What the tables of a layout say of each image. Of all their rows only those of `images` are held, compressed."""

    def __init__(self, root: Location, found: Found, names: Sequence[str], images: Iterable[str]) -> None:
        """Read the tables; `names` are all files there. Raises ReportsError if one cannot be used."""
        self._root, self._layout = root, found.layout
        self._texts = {name for name in names if name.endswith(".txt")} if found.layout.report is not None else set()
        self._tables = [(file, table, dict[str, bytes]()) for file, table in found.tables.items()]
        matches = [match for name in images if (match := found.layout.path.search(name)) is not None]
        wanted = {table.by: {match[table.by] for match in matches} for _, table, _ in self._tables}
        self.unread: list[Damaged] = []
        for file, table, rows in self._tables:
            for key, facts in _read(root / file, table, found.layout, wanted[table.by], self.unread):
                rows[key] = zlib.compress(json.dumps(facts).encode())

    @property
    def files(self) -> list[str]:
        """Names of the tables."""
        return [file for file, _, _ in self._tables]

    def find(self, name: str, here: PurePosixPath | None = None) -> Row | None:
        """What is known of the image with this path; None of a path that the layout does not have."""
        match = self._layout.path.search(name)
        # What lies beside an image is read with it.
        if match is None or self._layout.beside:
            return None
        record = {name: value for name, value in self._facts(match).items() if name not in (_WITHOUT, _UNKNOWN)}
        report = None if self._layout.report is None else self._text(self._layout.report(match))
        return Row(1, record if report is None else {**record, "report": report})

    def survey(self, names: Sequence[str]) -> "Survey":
        """What is known of all images together, read once."""
        found = Survey()
        for name in names:
            match = self._layout.path.search(name)
            facts = {} if match is None else self._facts(match)
            if split := facts.get(_SPLIT):
                found.split_of[name] = split
            found.without.update(facts.get(_WITHOUT, ()))
            found.unknown.update(facts.get(_UNKNOWN, ()))
            found.unknown_images += _UNKNOWN in facts
        return found

    def has_row(self, name: str) -> bool:
        """Whether a table that says more than a split describes the image."""
        match = self._layout.path.search(name)
        return match is not None and any(
            match[table.by] in rows for _, table, rows in self._tables if table.labels or table.columns
        )

    @property
    def describes(self) -> bool:
        """Whether there is such a table."""
        return any(table.labels or table.columns for _, table, _ in self._tables)

    def reports_of(self, names: Iterable[str]) -> list[str]:
        """Paths of the reports of some images, as far as they are there."""
        if self._layout.report is None:
            return []
        matches = (self._layout.path.search(name) for name in names)
        return sorted({self._layout.report(match) for match in matches if match is not None} & self._texts)

    def _facts(self, match: re.Match[str]) -> dict[str, Any]:
        groups = {name: value for name, value in match.groupdict().items() if value is not None}
        facts: dict[str, Any] = dict(self._layout.constants)
        if "patient" in groups or "subject" in groups:
            facts["patient_id"] = (groups.get("patient") or groups["subject"]).casefold()
        if _SPLIT in groups:
            facts[_SPLIT] = split_named(groups[_SPLIT])
        if "label" in groups and self._layout.labels is not None:
            facts |= _as_facts(self._layout.labels(groups["label"]))
        for _, table, rows in self._tables:
            packed = rows.get(match[table.by])
            if packed is not None:
                facts = json.loads(zlib.decompress(packed)) | facts
        return facts

    def _text(self, file: str) -> str | None:
        """The text of a report, None where there is none that can be read."""
        if file not in self._texts:
            return None
        try:
            with open_plain(self._root / file) as opened:
                content = opened.read(MAX_TEXT_BYTES + 1)
        except (OSError, UnreadableError):
            return None
        return content.decode("utf-8", "replace") if len(content) <= MAX_TEXT_BYTES else None


def _as_facts(labels: Labels) -> dict[str, Any]:
    facts: dict[str, Any] = {name: status.value for name, status in labels.statuses.items()}
    if labels.without:
        facts[_WITHOUT] = sorted(labels.without)
    if labels.unknown:
        facts[_UNKNOWN] = sorted(labels.unknown)
    return facts


def _read(
    path: Location, table: Table, layout: Layout, wanted: set[str], unread: list[Damaged]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Key and facts of each wanted image, or group of images, of a table; lines that cannot be read go to `unread`."""
    rows: dict[str, list[Mapping[str, Any]]] = {}
    done: dict[str, dict[str, Any]] = {}
    for line, row in _records(path, table, unread):
        key = _key(_value(row, table.key), table, layout)
        if key not in wanted:
            continue
        if table.many:
            rows.setdefault(key, []).append(row)
            continue
        facts = _facts_of([row], table)
        if done.setdefault(key, facts) != facts:
            raise ReportsError(
                f"{path}: line {line} says something else of an image than an earlier one\n  expected one row per image"
            )
    yield from done.items()
    for key, several in rows.items():
        yield key, _facts_of(several, table)


def _records(path: Location, table: Table, unread: list[Damaged]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    path_read = path if path.name.endswith(_LIST) else checked(path)
    if path.name.endswith(_LIST):
        with open_text(path_read) as lines:
            yield from ((number, {"": line.strip()}) for number, line in enumerate(lines, 1) if line.strip())
        return
    names = column_names(path_read)
    expected = [name for name in (table.key, *table.columns.values(), *table.has) if isinstance(name, str)]
    lacking = sorted(set(expected) - set(names))
    if lacking:
        raise ReportsError(f"{path}: no column {', '.join(lacking)}\n  copy the table again, or leave it out")
    for line, record in read_records(path_read, list(names)):
        if isinstance(record, str):
            unread.append(Damaged(path.name, f"line {line}", record))
        else:
            yield line, record


def _value(row: Mapping[str, Any], column: Column) -> str:
    return cell_text(row.get(column) if isinstance(column, str) else column(row))


def _key(cell: str, table: Table, layout: Layout) -> str:
    match = layout.path.search(cell)
    return cell if match is None else str(match[table.by])


def _facts_of(rows: list[Mapping[str, Any]], table: Table) -> dict[str, Any]:
    facts: dict[str, Any] = {
        role: value for role, column in table.columns.items() if (value := _value(rows[0], column))
    }
    facts |= table.constants
    if _SPLIT in facts:
        facts[_SPLIT] = split_named(facts[_SPLIT])
    return facts | (_as_facts(table.labels(rows)) if table.labels is not None else {})


def recognized(found: Found, survey: Survey, *, split: str | None) -> Recognized:
    """What is said of a layout: what is read of it, and what its labels say that no observation does."""
    tables = {file.rpartition("/")[2]: table.gives for file, table in found.tables.items()}
    missing = tuple(
        f"{table.gives} ({' or '.join(table.files)})"
        for table in found.layout.tables
        if table.is_needed and table not in found.tables.values()
    )
    return Recognized(
        found.layout.name,
        tables,
        missing,
        without=dict(survey.without.most_common()),
        unknown_kinds=len(survey.unknown),
        unknown_images=survey.unknown_images,
        splits=dict(sorted(Counter(survey.split_of.values()).items())),
        split=split,
    )


def folders_of_classes(images: Sequence[str]) -> Recognized | None:
    """What is said of images in folders named after findings; None where no folder is."""
    folders = Counter(folder for name in images if (folder := class_folder(name)))
    known = {folder: found for folder in folders if (found := observations_of(folder)) is not None}
    if not any(known.values()):
        return None
    unknown = [count for folder, count in folders.items() if folder not in known]
    without = Counter({folder: folders[folder] for folder, found in known.items() if not found})
    return Recognized(
        "folders named after findings",
        without=dict(without.most_common()),
        unknown_kinds=len(unknown),
        unknown_images=sum(unknown),
    )


def of_split(names: Sequence[str], split_of: Mapping[str, str], split: str, *, root: Location) -> list[str]:
    """The files, or units, of one split.

    Raises:
        ShardError: if no split is known, or not this one.
    """
    chosen = [name for name in names if split_of.get(name) == split_named(split)]
    if not chosen:
        there = ", ".join(sorted(set(split_of.values())))
        advice = f"its splits: {there}" if there else "no splits are known of it; leave the option out"
        raise ShardError(f"{root}: no images of a split {split}\n  {advice}")
    return chosen


@dataclass(frozen=True)
class Laid:
    """The images of a folder that are read, and what its layout says of them; `tables` are files of the folder."""

    images: Sequence[str]
    rows: LayoutRows | None = None
    recognized: Recognized | None = None
    tables: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()


def open_layout(
    root: Location, names: Sequence[str], images: Sequence[str], *, split: str | None, has_table: bool
) -> Laid:
    """The images of a folder as its layout describes them.

    Args:
        root: the folder.
        names: relative paths of all its files.
        images: those of its images.
        split: only the images of this split.
        has_table: a table of the user's describes them: the layout then says splits alone.

    Raises:
        ReportsError: if a table cannot be used, or more than one layout fits.
        ShardError: if there are no images of the split.
    """
    found = None if has_table and split is None else find_layout(root, names, images)
    if found is None:
        return Laid(images if split is None else of_split(images, {}, split, root=root))
    rows = LayoutRows(root, found, names, images)
    survey = rows.survey(images)
    if split is not None:
        images = of_split(images, survey.split_of, split, root=root)
        survey = replace(rows.survey(images), split_of=survey.split_of)
    known_layout = recognized(found, survey, split=split)
    if has_table:
        return Laid(images, recognized=known_layout)
    return Laid(images, rows, known_layout, tuple(rows.files), found.layout.beside)
