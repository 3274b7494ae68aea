"""CSV, JSONL and Parquet files as streams of records: a line number, and either values by column name or a reason."""

import csv
import json
import re
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO

from cxrsynth.address import Address, Location
from cxrsynth.errors import ReportsError

# Longest CSV record in characters, and longest JSONL line in bytes. A longer one is rejected without being held in
# memory.
MAX_RECORD_CHARS = 1 << 20
# Rows of a JSONL table that are read to learn its columns; labels are recognized in every row.
_JSONL_ROWS_FOR_COLUMNS = 1000


def read_header(path: Location) -> tuple[str, ...]:
    """Column names in file order; of JSONL, those of the first rows.

    Raises:
        ReportsError: if the file cannot be read, or has no usable header.
    """
    suffix = path.suffix.lower()
    if suffix == ".csv":
        return _csv_header(path)
    if suffix == ".parquet":
        return tuple(_parquet_file(path).schema_arrow.names)
    return _json_columns(path)


def read_records(path: Location, columns: list[str]) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
    """Line number, and column name -> value or the reason why the row cannot be read; lazily, in file order.

    `columns` are the columns to read from a Parquet file; other formats yield all they have. In a CSV or Parquet table,
    line 1 is the header.

    Raises:
        ReportsError: if the file cannot be read, or its Parquet pages are broken.
    """
    if path.suffix.lower() == ".csv":
        return _csv_records(path)
    if path.suffix.lower() == ".parquet":
        return _parquet_records(path, columns)
    return _json_records(path)


@contextmanager
def reading(path: Location) -> Iterator[None]:
    """Turn errors in opening or reading a file into a `ReportsError` that names it."""
    try:
        yield
    except FileNotFoundError:
        raise ReportsError(f"{path}: no such file\n  check the path") from None
    except OSError as error:
        raise ReportsError(f"{path}: cannot be read: {error.strerror or 'input error'}") from None


def fetched(path: Location) -> Location:
    """A table of an object store, copied to this machine, since it is read more than once; another as it is.

    Raises:
        ReportsError: if it cannot be read.
    """
    if not isinstance(path, Address):
        return path
    with reading(path):
        return path.fetch()


def is_text(text: str) -> bool:
    """False if bytes that are not UTF-8 were kept as lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


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


def _numbered_lines(file: TextIO) -> Iterator[tuple[int, str]]:
    """Lines, numbered from 1. Only the start of a line over the limit is kept, so that memory stays bounded."""
    number = 0
    while text := file.readline(MAX_RECORD_CHARS + 1):
        number += 1
        rest = text
        while len(rest) > MAX_RECORD_CHARS and not rest.endswith(("\n", "\r")):
            rest = file.readline(MAX_RECORD_CHARS + 1)
        yield number, text


def _csv_rows(path: Location) -> Iterator[tuple[int, int, list[str] | str]]:
    """First line, last line, and the fields or a reason; blank lines are skipped.

    After a broken quote, the next lines may still belong to the broken record. Those with an odd number of quotes are
    rejected as well, until a row can be read. A continuation line with the right number of fields and no quote cannot
    be distinguished from a row.
    """
    with reading(path), path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        lines = _Lines(file)
        wary = False
        while True:
            lines.start()
            # A new reader for each record: its state after an error is undefined.
            reader = csv.reader(lines, strict=True)
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


def _csv_header(path: Location) -> tuple[str, ...]:
    _, _, header = next(_csv_rows(path), (0, 0, "no header line"))
    if isinstance(header, str):
        raise ReportsError(f"{path}: no usable header: {header}\n  expected a first line of column names")
    if not is_text("".join(header)):
        raise ReportsError(f"{path}: the header is not UTF-8 text\n  save the table as UTF-8")
    if len(header) == 1 and re.search("[;\t]", header[0]):
        raise ReportsError(f"{path}: the header has no comma\n  expected: commas between columns")
    return tuple(header)


def _csv_records(path: Location) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
    rows = _csv_rows(path)
    header = next(rows, (0, 0, [""]))[2]
    for first, last, row in rows:
        if isinstance(row, str):
            yield first, row
        elif len(row) != len(header):
            where = f" (lines {first} to {last})" if last > first else ""
            yield first, f"{len(row)} fields where the header has {len(header)}{where}"
        else:
            yield first, dict(zip(header, row, strict=True))


def _json_records(path: Location) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
    with reading(path), path.open("rb") as file:
        number = 0
        while raw := file.readline(MAX_RECORD_CHARS + 1):
            number += 1
            rest = raw
            while len(rest) > MAX_RECORD_CHARS and not rest.endswith(b"\n"):
                rest = file.readline(MAX_RECORD_CHARS + 1)
            if len(raw) > MAX_RECORD_CHARS:
                yield number, f"line longer than {MAX_RECORD_CHARS} bytes"
            elif raw.strip(b" \t\r\n\xef\xbb\xbf"):
                yield number, _json_record(raw)


def _json_record(raw: bytes) -> Mapping[str, Any] | str:
    try:
        value = json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return "undecodable bytes"
    except (ValueError, RecursionError):
        return "broken JSON"
    return value if isinstance(value, dict) else "not a JSON object"


def _json_columns(path: Location) -> tuple[str, ...]:
    names: dict[str, None] = {}
    looked_at = 0
    for looked_at, (_, record) in enumerate(_json_records(path), 1):
        if not isinstance(record, str):
            names.update(dict.fromkeys(name for name in record if is_text(name)))
        if names and looked_at >= _JSONL_ROWS_FOR_COLUMNS:
            break
    if not names:
        raise ReportsError(f"{path}: none of {looked_at} lines is a JSON object with columns\n  expected: one per line")
    return tuple(names)


def _parquet_file(path: Location) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with reading(path):
        try:
            return pq.ParquetFile(path.open("rb") if isinstance(path, Address) else path)
        except pa.ArrowException:
            raise ReportsError(f"{path}: not a complete Parquet file\n  save or copy it again") from None


def _parquet_records(path: Location, columns: list[str]) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
    import pyarrow as pa

    line = 1
    file = _parquet_file(path)
    with reading(path), file:
        try:
            for batch in file.iter_batches(batch_size=256, columns=columns):
                values = {name: _parquet_values(batch.column(name)) for name in columns}
                for index in range(batch.num_rows):
                    line += 1
                    yield line, {name: column[index] for name, column in values.items()}
        except pa.ArrowException:
            raise ReportsError(f"{path}: damaged after row {line}\n  save or copy it again") from None


# Types of Arrow that hold text, some of them in files of newer writers alone.
_TEXTS = frozenset({"string", "large_string", "string_view", "binary", "large_binary", "binary_view"})


def _parquet_values(column: Any) -> list[Any]:
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
