"""Tables as streams of records: a line number, and either values by column name or a reason."""

from collections.abc import Iterator, Mapping
from typing import Any

from cxrsynth.address import Location
from cxrsynth.reports.table import delimited, json_records, parquet, workbook
from cxrsynth.reports.table.source import Kind, kind_of


def read_header(path: Location) -> tuple[str, ...]:
    """Column names in file order; of JSON, those of the first rows.

    Raises:
        ReportsError: if the file cannot be read, or has no usable header.
    """
    kind = kind_of(path)
    if kind is Kind.CSV:
        return delimited.read_header(path)
    if kind is Kind.PARQUET:
        return parquet.read_header(path)
    return workbook.read_header(path) if kind is Kind.EXCEL else json_records.read_header(path)


def read_records(path: Location, columns: list[str]) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
    """Line number, and column name -> value or the reason why the row cannot be read; lazily, in file order.

    `columns` are the columns to read from a Parquet file; other formats yield all they have. In a table with a header,
    line 1 is the header; an array of JSON counts its elements from 1.

    Raises:
        ReportsError: if the file cannot be read, or is broken where no row begins.
    """
    kind = kind_of(path)
    if kind is Kind.CSV:
        return delimited.read_records(path)
    if kind is Kind.PARQUET:
        return parquet.read_records(path, columns)
    return workbook.read_records(path) if kind is Kind.EXCEL else json_records.read_records(path)
