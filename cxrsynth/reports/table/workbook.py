"""Tables in Excel's workbooks."""

import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import date, time, timedelta
from typing import Any
from xml.etree.ElementTree import ParseError

from cxrsynth.address import Location
from cxrsynth.errors import ReportsError
from cxrsynth.reports.table.source import reading

# What openpyxl raises for files that are no workbooks, or damaged ones.
_DAMAGED = (zipfile.BadZipFile, ParseError, KeyError, ValueError, TypeError, IndexError, AttributeError, EOFError)


def read_header(path: Location) -> tuple[str, ...]:
    """Column names: the first row of the first sheet that is not empty.

    Raises:
        ReportsError: if the file cannot be read, or has no names there.
    """
    return _names(path, _rows(path))


def read_records(path: Location) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
    """Row as Excel numbers it, and column name -> value or the reason why the row cannot be read.

    Cells with a formula have the value that was saved with it.

    Raises:
        ReportsError: if the file cannot be read.
    """
    found = _rows(path)
    names = _names(path, found)
    for number, row in found:
        if len(row) > len(names):
            yield number, f"{len(row)} fields where the header has {len(names)}"
        else:
            cells = [*row, *[None] * (len(names) - len(row))]
            yield number, {name: _value(cell) for name, cell in zip(names, cells, strict=True)}


def _names(path: Location, rows: Iterator[tuple[int, tuple[Any, ...]]]) -> tuple[str, ...]:
    _, header = next(rows, (0, ()))
    if not header:
        raise ReportsError(f"{path}: its first sheet is empty\n  expected a first row of column names")
    return tuple("" if name is None else str(name) for name in header)


def _rows(path: Location) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """Rows of the first sheet that are not empty, without the empty cells at their end."""
    with _explained(path), path.open("rb") as file:
        import openpyxl

        book = openpyxl.load_workbook(file, read_only=True, data_only=True)
        sheets = book.worksheets
        for sheet in sheets[:1]:
            sheet.reset_dimensions()  # some programs write them wrong, and rows beyond them would be passed over
        for number, row in enumerate(sheets[0].iter_rows(values_only=True) if sheets else (), 1):
            last = max((place for place, cell in enumerate(row, 1) if cell not in (None, "")), default=0)
            if last:
                yield number, tuple(row[:last])


@contextmanager
def _explained(path: Location) -> Iterator[None]:
    with reading(path):
        try:
            yield
        except ImportError:
            raise ReportsError(
                f"{path}: reading Excel's workbooks needs openpyxl\n"
                "  pip install 'cxrsynth[excel]', or save the table as CSV"
            ) from None
        except _DAMAGED:
            raise ReportsError(f"{path}: not a complete Excel workbook\n  save it again, or as CSV") from None


def _value(cell: Any) -> Any:
    # As in Parquet: no value is read from a date, so none can be misread.
    return object() if isinstance(cell, date | time | timedelta) else cell
