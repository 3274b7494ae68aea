"""Tables of JSON objects: one a line, or all in one array."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from cxrsynth.address import Location
from cxrsynth.errors import ReportsError
from cxrsynth.reports.table.source import MAX_RECORD_CHARS, Kind, is_text, kind_of, open_bytes, open_text

# Rows that are read to learn the columns; labels are recognized in every row.
_ROWS_FOR_COLUMNS = 1000
_CHUNK_CHARS = 1 << 16
_BETWEEN = " \t\r\n,"


def read_header(path: Location) -> tuple[str, ...]:
    """Names of the first rows' columns.

    Raises:
        ReportsError: if the file cannot be read, or has none.
    """
    names: dict[str, None] = {}
    looked_at = 0
    for looked_at, (_, record) in enumerate(read_records(path), 1):
        if not isinstance(record, str):
            names.update(dict.fromkeys(name for name in record if is_text(name)))
        if names and looked_at >= _ROWS_FOR_COLUMNS:
            break
    if not names:
        raise ReportsError(
            f"{path}: none of {looked_at} rows is a JSON object with columns\n"
            "  expected: one object per line, or an array of objects"
        )
    return tuple(names)


def read_records(path: Location) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
    """Line, or place in the array from 1, and the object or the reason why it is none.

    Raises:
        ReportsError: if the file cannot be read, or an array is broken.
    """
    if kind_of(path) is Kind.JSON and _is_array(path):
        return _elements(path)
    return _lines(path)


def _is_array(path: Location) -> bool:
    with open_text(path) as file:
        while chunk := file.read(_CHUNK_CHARS):
            if start := chunk.lstrip():
                return start[0] == "["
    return False


def _lines(path: Location) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
    with open_bytes(path) as file:
        number = 0
        while raw := file.readline(MAX_RECORD_CHARS + 1):
            number += 1
            rest = raw
            while len(rest) > MAX_RECORD_CHARS and not rest.endswith(b"\n"):
                rest = file.readline(MAX_RECORD_CHARS + 1)
            if len(raw) > MAX_RECORD_CHARS:
                yield number, f"line longer than {MAX_RECORD_CHARS} bytes"
            elif raw.strip(b" \t\r\n\xef\xbb\xbf"):
                yield number, _record(raw)


def _elements(path: Location) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
    """The array's elements, of which one is held at a time. After a broken one, nothing tells where the next begins."""
    decoder = json.JSONDecoder()
    with open_text(path) as file:
        text, at, number, ended = file.read(_CHUNK_CHARS).lstrip(), 1, 0, False
        while True:
            while at < len(text) and text[at] in _BETWEEN:
                at += 1
            if text[at : at + 1] == "]":
                rest = text[at + 1 :]
                while not rest.strip() and (rest := file.read(_CHUNK_CHARS)):
                    pass
                if rest.strip():
                    raise ReportsError(
                        f"{path}: more text after the array, which ends after row {number}\n"
                        "  expected: one array of objects, or one object per line in a file .jsonl"
                    )
                return
            try:
                value, end = decoder.raw_decode(text, at)
                complete = ended or end < len(text)  # a number at the end of a chunk may go on in the next
            except (ValueError, RecursionError):
                complete = False
            if complete:
                number, at = number + 1, end
                yield number, value if isinstance(value, dict) else "not a JSON object"
            elif ended or len(text) - at > MAX_RECORD_CHARS:
                raise ReportsError(
                    f"{path}: the array is broken after row {number}, or a row is longer than {MAX_RECORD_CHARS}"
                    " characters\n  save or copy it again"
                )
            else:
                chunk = file.read(_CHUNK_CHARS)
                text, at, ended = text[at:] + chunk, 0, not chunk


def _record(raw: bytes) -> Mapping[str, Any] | str:
    try:
        value = json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return "undecodable bytes"
    except (ValueError, RecursionError):
        return "broken JSON"
    return value if isinstance(value, dict) else "not a JSON object"
