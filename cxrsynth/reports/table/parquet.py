"""Tables in Parquet."""

from collections.abc import Iterator, Mapping
from typing import Any

from cxrsynth.address import Address, Location
from cxrsynth.errors import ReportsError
from cxrsynth.reports.table.source import reading


def read_header(path: Location) -> tuple[str, ...]:
    """Column names in file order. Raises ReportsError if the file cannot be read."""
    return tuple(_open(path).schema_arrow.names)


def _open(path: Location) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with reading(path):
        try:
            return pq.ParquetFile(path.open("rb") if isinstance(path, Address) else path)
        except pa.ArrowException:
            raise ReportsError(f"{path}: not a complete Parquet file\n  save or copy it again") from None


def read_records(path: Location, columns: list[str]) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
    """Row, the header being 1, and column name -> value. Raises ReportsError if pages are broken."""
    import pyarrow as pa

    line = 1
    file = _open(path)
    with reading(path), file:
        try:
            for batch in file.iter_batches(batch_size=256, columns=columns):
                values = {name: _values(batch.column(name)) for name in columns}
                for index in range(batch.num_rows):
                    line += 1
                    yield line, {name: column[index] for name, column in values.items()}
        except pa.ArrowException:
            raise ReportsError(f"{path}: damaged after row {line}\n  save or copy it again") from None


# Types of Arrow that hold text, some of them in files of newer writers alone.
_TEXTS = frozenset({"string", "large_string", "string_view", "binary", "large_binary", "binary_view"})


def _values(column: Any) -> list[Any]:
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if str(column.type) in _TEXTS:
        # As bytes: one cell that cannot be decoded must cost its row, not the batch.
        return list(column.cast(pa.large_binary()).to_pylist())
    numbers = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_decimal)
    if any(is_number(column.type) for is_number in numbers):
        return list(column.to_pylist())
    # Dates, lists and structs: no value is read, so none can be misread. None stays None, an empty cell.
    return [object() if valid else None for valid in column.is_valid().to_pylist()]
