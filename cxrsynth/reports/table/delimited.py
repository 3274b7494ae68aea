"""Tables of text with a separator between columns: CSV as programs write it, with commas, semicolons, tabs or bars."""

import csv
import re
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

from cxrsynth.address import Location
from cxrsynth.errors import ReportsError
from cxrsynth.reports.table.source import MAX_RECORD_CHARS, is_text, open_text

# In the order of preference where a header has as many of one as of the other.
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
# Excel's own first line.
_STATED = re.compile(r"\"?sep=([^\w\s\"]|\t)\"?", re.IGNORECASE)
_QUOTED = re.compile(r"\"[^\"]*\"?")


def read_header(path: Location) -> tuple[str, ...]:
    """Column names in file order.

    Raises:
        ReportsError: if the file cannot be read, or has no usable header.
    """
    _, _, header = next(rows(path), (0, 0, "no header line"))
    if isinstance(header, str):
        raise ReportsError(f"{path}: no usable header: {header}\n  expected a first line of column names")
    if not is_text("".join(header)):
        raise ReportsError(f"{path}: the header is not UTF-8 text\n  save the table as UTF-8")
    return tuple(header)


def read_separator(path: Location) -> str:
    """What stands between its columns.

    Raises:
        ReportsError: if the file cannot be read.
    """
    with open_text(path) as file:
        return _Lines(file).take_separator(path.name)


def _is_tab_separated(name: str) -> bool:
    return name.lower().removesuffix(".gz").endswith(".tsv")


def read_records(path: Location) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
    """Line, and column name -> text or the reason why the row cannot be read."""
    found = rows(path)
    header = next(found, (0, 0, [""]))[2]
    for first, last, row in found:
        if isinstance(row, str):
            yield first, row
        elif len(row) != len(header):
            where = f" (lines {first} to {last})" if last > first else ""
            yield first, f"{len(row)} fields where the header has {len(header)}{where}"
        else:
            yield first, dict(zip(header, row, strict=True))


def rows(path: Location) -> Iterator[tuple[int, int, list[str] | str]]:
    """First line, last line, and the fields or a reason; blank lines, and Excel's line `sep=;`, are skipped.

    After a broken quote, the next lines may still belong to the broken record. Those with an odd number of quotes are
    rejected as well, until a row can be read. A continuation line with the right number of fields and no quote cannot
    be distinguished from a row.
    """
    with open_text(path) as file:
        lines = _Lines(file)
        separator = lines.take_separator(path.name)
        wary = False
        while True:
            lines.start()
            # A new reader for each record: its state after an error is undefined.
            reader = csv.reader(lines, strict=True, delimiter=separator)
            reason = ""
            row: list[str] = []
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                # If a field of many lines is too long, its quote most likely never closes.
                too_long = "field limit" in str(error) and len(lines.taken) == 1
                reason = "field too long" if too_long else "a quote is misplaced or never closed"
            first, last = lines.taken[0][0], lines.taken[-1][0]
            if len(lines.taken[0][1]) > MAX_RECORD_CHARS:
                reason = f"line longer than {MAX_RECORD_CHARS} characters"
            elif not reason and lines.chars > MAX_RECORD_CHARS:
                reason = "a quote is misplaced or never closed"
            if not reason and not any(row) and not "".join(text for _, text in lines.taken).strip():
                continue
            if not reason and wary and sum(text.count('"') for _, text in lines.taken) % 2:
                reason = "follows a broken quote"
            if reason:
                lines.keep_first_only()
                last = first
            wary = bool(reason)
            yield first, last, reason or row


class _Lines:
    """The physical lines of one CSV record for `csv.reader`, and a way to return them.

    With a quote that never closes, the reader would take the rest of the file as one field. Here it gets at most
    `MAX_RECORD_CHARS`; then only the first line of the record is rejected, and the others are read again.
    """

    def __init__(self, file: TextIO) -> None:
        self._source = _numbered_lines(file)
        self._back: deque[tuple[int, str]] = deque()
        self.taken: list[tuple[int, str]] = []
        self.chars = 0

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        if self.chars > MAX_RECORD_CHARS:
            raise StopIteration
        number, text = self._back.popleft() if self._back else next(self._source)
        self.taken.append((number, text))
        self.chars += len(text)
        return text

    def start(self) -> None:
        self.taken, self.chars = [], 0

    def keep_first_only(self) -> None:
        self._back.extendleft(reversed(self.taken[1:]))

    def take_separator(self, name: str) -> str:
        """What stands between columns, by the file's name or its first line, before any line is taken."""
        first = next(self._source, None)
        if first is None:
            return ","
        stated = _STATED.fullmatch(first[1].strip(" \r\n"))
        if stated is not None:
            return stated[1]
        self._back.append(first)
        return "\t" if _is_tab_separated(name) else separator_of(first[1])


def separator_of(header: str) -> str:
    """The separator that a header has most of, outside of quotes: a comma, a semicolon, a tab or a bar."""
    unquoted = _QUOTED.sub("", header)
    return max(SEPARATORS, key=unquoted.count)  # the first of equals: a comma where there is none


def _numbered_lines(file: TextIO) -> Iterator[tuple[int, str]]:
    """Lines, numbered from 1. Only the start of a line over the limit is kept, so that memory stays bounded."""
    number = 0
    while text := file.readline(MAX_RECORD_CHARS + 1):
        number += 1
        rest = text
        while len(rest) > MAX_RECORD_CHARS and not rest.endswith(("\n", "\r")):
            rest = file.readline(MAX_RECORD_CHARS + 1)
        yield number, text
