"""A table of reports, CSV, JSONL or Parquet, as a stream: each row becomes a `Report` or a `Rejected` line.

Rows are read one at a time. What grows with the table is 16 bytes an id, about 100 in Python's set, to find
duplicates: a million ids take about 100 MB, a table without an id column nothing.
"""

import csv
import difflib
import hashlib
import json
import math
import re
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Literal, TextIO

from cxrsynth.errors import ReportsError
from cxrsynth.reports.labels import OBSERVATIONS, FindingLabel, Status

MAX_RECORD_CHARS = 1 << 20
MAX_ID_CHARS = 256
MAX_AGE_YEARS = 130
FORMATS = (".csv", ".jsonl", ".ndjson", ".parquet")

# First come, first taken: a table with both `report` and `text` is read by `report`.
_USUAL_NAMES = {
    "report": ("report", "reporttext", "text"),
    "findings": ("findings",),
    "impression": ("impression",),
    "report_id": ("reportid", "studyid", "id", "uid"),
    "view": ("view", "viewposition"),
    "sex": ("sex", "gender", "patientsex", "patientgender"),
    "age": ("age", "patientage"),
}
_TEXT_ROLES = ("report", "findings", "impression")
# Rows of a JSONL table looked at to learn its columns; labels are recognised in every row.
_JSONL_ROWS_FOR_COLUMNS = 1000

_UNKNOWN = frozenset({"", "unknown", "unk", "na", "n/a", "nan", "none", "null", "other", "o", "u", "-", "?"})
_SEXES: dict[str, Literal["M", "F"]] = {
    **dict.fromkeys(("m", "male", "man", "boy"), "M"),
    **dict.fromkeys(("f", "female", "woman", "girl"), "F"),
}
_STATUSES = {
    **dict.fromkeys(("1", "1.0", "present", "positive", "true", "yes"), Status.PRESENT),
    **dict.fromkeys(("0", "0.0", "absent", "negative", "false", "no"), Status.ABSENT),
    **dict.fromkeys(("-1", "-1.0", "uncertain"), Status.UNCERTAIN),
}
_NOT_MENTIONED = frozenset({"", "nan", "none", "null", "not mentioned"})
_VIEW_WORDS = {
    **dict.fromkeys(("pa", "posteroanterior"), "PA"),
    **dict.fromkeys(("ap", "anteroposterior", "portable", "supine", "semierect", "bedside"), "AP"),
    **dict.fromkeys(("lateral", "lat", "ll", "rl", "l"), "LATERAL"),
}
# Words that say something of the picture without naming its view.
_VIEW_EXTRAS = frozenset(
    {"chest", "view", "views", "erect", "upright", "horizontal", "axial", "frontal", "and", "left"}
)
_VIEW_EXTRAS |= {"right", "semi", "projection", "decubitus", "lld", "rld", "xray", "x", "ray", "standing", "sitting"}
_AGE = re.compile(r"(?:>|over\s+)?\s*(\d{1,4}(?:\.\d{1,6})?)\s*\+?\s*([a-z/.]{0,5}(?:\s+old)?)", re.ASCII)
_YEARS_PER_UNIT = {
    **dict.fromkeys(("", "y", "yr", "yrs", "year", "years", "yo", "y/o", "y.o.", "years old", "year old"), 1.0),
    **dict.fromkeys(("m", "mo", "month"), 1 / 12),
    **dict.fromkeys(("w", "wk", "week", "weeks"), 7 / 365.25),
    **dict.fromkeys(("d", "day", "days"), 1 / 365.25),
}


@dataclass(frozen=True, slots=True)
class Report:
    """One radiology report. Text never shows in its repr; `line` is where the row starts, header line 1.

    `text` is the whole report where the table has a report column; `view` is PA, AP or LATERAL.
    """

    report_id: str
    line: int
    findings: str = field(default="", repr=False)
    impression: str = field(default="", repr=False)
    text: str = field(default="", repr=False)
    view: str | None = None
    sex: Literal["M", "F"] | None = None
    age_years: float | None = None
    labels: dict[str, FindingLabel] = field(default_factory=dict)

    @property
    def full_text(self) -> str:
        """Every text the row has, whole report first, joined by blank lines."""
        return "\n\n".join(part for part in (self.text, self.findings, self.impression) if part)


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that cannot be used. The reason holds column names and counts, never a value of the row."""

    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class ColumnNames:
    """Columns by name, where a table does not use the usual ones (section 'Tables' of the reference)."""

    report: str | None = None
    findings: str | None = None
    impression: str | None = None
    report_id: str | None = None
    view: str | None = None
    sex: str | None = None
    age: str | None = None


class _UnusableError(Exception):
    """Why one row is rejected."""


@dataclass(frozen=True, slots=True)
class Table:
    """A checked table. `roles`: role -> column name; `labels`: column name -> CheXpert observation."""

    path: Path
    columns: tuple[str, ...]
    roles: Mapping[str, str]
    labels: Mapping[str, str]

    def rows(self) -> Iterator[Report | Rejected]:
        """Rows in file order, read as they are asked for; every call starts afresh.

        A row without an id column is `row-<line>`: it keeps its id as long as the lines above it stay.

        Raises:
            ReportsError: if the file can no longer be read, or its Parquet pages are broken.
        """
        seen: set[int] = set()
        for line, record in self._records():
            try:
                if isinstance(record, str):
                    raise _UnusableError(record)
                report = self._report(line, record)
                if "report_id" in self.roles:
                    _refuse_duplicate(report.report_id, seen)
            except _UnusableError as unusable:
                yield Rejected(line, str(unusable))
            else:
                yield report

    def digest(self) -> str:
        """SHA-256 of the file's bytes, in hex."""
        with _reading(self.path), self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def _records(self) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
        if self.path.suffix.lower() == ".csv":
            return _csv_records(self.path)
        if self.path.suffix.lower() == ".parquet":
            return _parquet_records(self.path, [*self.roles.values(), *self.labels])
        return _json_records(self.path)

    def _report(self, line: int, record: Mapping[str, Any]) -> Report:
        cells = {role: _cell(column, record.get(column)) for role, column in self.roles.items()}
        taken = set(self.roles.values())
        labels = _labels({column: value for column, value in record.items() if column not in taken})
        text = {role: cells.get(role, "").strip() for role in _TEXT_ROLES}
        if not labels and not any(text.values()):
            raise _UnusableError("empty text")
        return Report(
            report_id=_report_id(cells["report_id"]) if "report_id" in cells else f"row-{line}",
            line=line,
            findings=text["findings"],
            impression=text["impression"],
            text=text["report"],
            view=_view(cells.get("view", "")),
            sex=_sex(cells.get("sex", "")),
            age_years=_age_years(cells.get("age", "")),
            labels=labels,
        )


def open_table(path: Path | str, *, columns: ColumnNames | None = None) -> Table:
    """Check a table's file and header, and find its columns.

    Raises:
        ReportsError: if the file cannot be read, is of an unknown kind, has no usable header, or lacks a
            column that was asked for, or has neither a text nor a label column.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise ReportsError(f"{path}: unknown kind of table\n  expected a file ending in {', '.join(FORMATS)}")
    if path.is_dir():
        raise ReportsError(f"{path}: is a folder\n  expected one file; name a table inside it")
    with _reading(path), path.open("rb") as file:
        start = file.read(4)
    if not start:
        raise ReportsError(f"{path}: the file is empty\n  expected a table of reports")
    if start[:2] in (b"\xff\xfe", b"\xfe\xff") and path.suffix.lower() != ".parquet":
        raise ReportsError(f"{path}: the file is UTF-16\n  expected UTF-8: save it again as UTF-8")
    names = _column_names(path)
    roles = _roles(path, names, columns or ColumnNames())
    taken = set(roles.values())
    labels = {name: label for name in names if name not in taken and (label := _observation(name))}
    _refuse_two_of_a_label(path, labels)
    if not labels and not any(role in roles for role in _TEXT_ROLES):
        raise ReportsError(
            f"{path}: no column holds report text or finding labels\n  columns: {_listed(names)}\n"
            "  expected report, text, findings or impression, or CheXpert observations; or name the columns"
        )
    return Table(path, names, roles, labels)


def _column_names(path: Path) -> tuple[str, ...]:
    suffix = path.suffix.lower()
    if suffix == ".csv":
        names = _csv_header(path)
    elif suffix == ".parquet":
        names = tuple(_parquet_file(path).schema_arrow.names)
    else:
        names = _json_columns(path)
    counts: dict[str, int] = {}
    for name in names:
        counts[name.strip().casefold()] = counts.get(name.strip().casefold(), 0) + 1
    # Two unnamed columns are no ambiguity: nothing is read from them.
    twice = sorted(name for name, count in counts.items() if name and count > 1)
    if twice:
        raise ReportsError(f"{path}: columns named more than once: {_listed(twice)}\n  rename or drop one of each")
    return names


def _roles(path: Path, names: tuple[str, ...], asked: ColumnNames) -> dict[str, str]:
    by_usual_name: dict[str, str] = {}
    for name in names:
        by_usual_name.setdefault(_plain(name), name)
    roles = {}
    for role in (entry.name for entry in fields(asked)):
        wanted = getattr(asked, role)
        if wanted is not None and wanted not in names:
            close = difflib.get_close_matches(wanted, names, n=3)
            hint = f"\n  did you mean: {_listed(close)}" if close else ""
            raise ReportsError(f"{path}: column {wanted!r} not found\n  columns: {_listed(names)}{hint}")
        usual = (by_usual_name[name] for name in _USUAL_NAMES[role] if name in by_usual_name)
        column = wanted if wanted is not None else next(usual, None)
        if column is not None:
            roles[role] = column
    return roles


def _refuse_two_of_a_label(path: Path, labels: Mapping[str, str]) -> None:
    for observation in OBSERVATIONS:
        same = [name for name, label in labels.items() if label == observation]
        if len(same) > 1:
            raise ReportsError(f"{path}: columns {_listed(same)} are all {observation}\n  rename or drop all but one")


def _listed(names: tuple[str, ...] | list[str]) -> str:
    # A file that is no table can have a "header" of any length, made of text: show little of it.
    shown = [name if len(name) <= 40 else f"{name[:40]}..." for name in names[:40]]
    return ", ".join(shown) + (f" and {len(names) - 40} more" if len(names) > 40 else "")


@cache
def _plain_observations() -> dict[str, str]:
    return {_plain(observation): observation for observation in OBSERVATIONS}


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name).casefold()


@lru_cache(maxsize=1024)
def _observation(name: str) -> str | None:
    # No observation has 64 letters; a longer key is not worth normalising.
    return _plain_observations().get(_plain(name)) if len(name) < 64 else None


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise ReportsError(f"{path}: no such file\n  check the path") from None
    except OSError as error:
        raise ReportsError(f"{path}: cannot be read: {error.strerror or 'input error'}") from None


class _Lines:
    """The physical lines of one CSV record, handed to `csv.reader`, and a way to give them back.

    A quote that never closes would have the reader swallow the rest of the file as one field. Here it gets
    `MAX_RECORD_CHARS` at most; then the record's first line alone is rejected and the others are read anew.
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
    """Lines from 1; of a line over the limit only its start, so that memory stays bounded."""
    number = 0
    while text := file.readline(MAX_RECORD_CHARS + 1):
        number += 1
        rest = text
        while len(rest) > MAX_RECORD_CHARS and not rest.endswith(("\n", "\r")):
            rest = file.readline(MAX_RECORD_CHARS + 1)
        yield number, text


def _csv_rows(path: Path) -> Iterator[tuple[int, int, list[str] | str]]:
    """First line, last line, and the fields or a reason; blank lines are passed over.

    After a broken quote the next lines may still belong to the broken record. Those with an odd number of
    quotes are refused as well, until a row reads cleanly; a continuation line with the right number of
    fields and no quote cannot be told from a row.
    """
    with _reading(path), path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        lines = _Lines(file)
        wary = False
        while True:
            lines.start()
            # A reader per record: its state after an error is undefined.
            reader = csv.reader(lines, strict=True)
            reason = ""
            row: list[str] = []
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                # A field of many lines is too long, most often, because its quote never closes.
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


def _csv_header(path: Path) -> tuple[str, ...]:
    _, _, header = next(_csv_rows(path), (0, 0, "no header line"))
    if isinstance(header, str):
        raise ReportsError(f"{path}: no usable header: {header}\n  expected a first line of column names")
    if not _is_text("".join(header)):
        raise ReportsError(f"{path}: the header is not UTF-8 text\n  save the table as UTF-8")
    if len(header) == 1 and re.search("[;\t]", header[0]):
        raise ReportsError(f"{path}: the header has no comma\n  expected a comma between columns: save it as such")
    return tuple(header)


def _csv_records(path: Path) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
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


def _json_records(path: Path) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
    with _reading(path), path.open("rb") as file:
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


def _json_columns(path: Path) -> tuple[str, ...]:
    names: dict[str, None] = {}
    looked_at = 0
    for looked_at, (_, record) in enumerate(_json_records(path), 1):
        if not isinstance(record, str):
            names.update(dict.fromkeys(name for name in record if _is_text(name)))
        if names and looked_at >= _JSONL_ROWS_FOR_COLUMNS:
            break
    if not names:
        raise ReportsError(f"{path}: none of {looked_at} lines is a JSON object with columns\n  expected one a line")
    return tuple(names)


def _parquet_file(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _reading(path):
        try:
            return pq.ParquetFile(path)
        except pa.ArrowException:
            raise ReportsError(f"{path}: not a whole Parquet file\n  write it again, or copy it again") from None


def _parquet_records(path: Path, columns: list[str]) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
    import pyarrow as pa

    line = 1
    file = _parquet_file(path)
    with _reading(path), file:
        try:
            for batch in file.iter_batches(batch_size=256, columns=columns):
                values = {name: _parquet_values(batch.column(name)) for name in columns}
                for index in range(batch.num_rows):
                    line += 1
                    yield line, {name: column[index] for name, column in values.items()}
        except pa.ArrowException:
            raise ReportsError(f"{path}: broken after row {line}\n  write it again, or copy it again") from None


def _parquet_values(column: Any) -> list[Any]:
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        # As bytes: one undecodable cell must cost its row, not the batch.
        return list(column.cast(pa.large_binary()).to_pylist())
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_boolean(column.type):
        return list(column.to_pylist())
    # Dates, lists and structs: no value is read, so none can be misread. None stays None: an empty cell.
    return [object() if valid else None for valid in column.is_valid().to_pylist()]


def _cell(column: str, value: Any) -> str:
    """A cell as text: empty for null and NaN."""
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            raise _UnusableError(f"undecodable bytes in column {column!r}") from None
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, int) and abs(value) >= 1 << 256:
        # Python refuses to print integers of thousands of digits.
        raise _UnusableError(f"column {column!r}: number too large")
    if not isinstance(value, str | int | float):
        raise _UnusableError(f"column {column!r}: expected text or a number")
    text = str(value)
    if "\0" in text:
        raise _UnusableError(f"NUL byte in column {column!r}")
    if not _is_text(text):
        raise _UnusableError(f"undecodable bytes in column {column!r}")
    return text


def _is_text(text: str) -> bool:
    """False where bytes that are no UTF-8 were kept as lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _labels(record: Mapping[str, Any]) -> dict[str, FindingLabel]:
    labels = {}
    for column, value in record.items():
        # Asked of every row, not of the header: a JSONL row may be the first to name an observation.
        observation = _observation(column)
        if observation is None:
            continue
        word = _cell(column, value).strip().lower()
        if word in _NOT_MENTIONED:
            continue
        if word not in _STATUSES:
            raise _UnusableError(f"{observation}: value not understood; expected 1, 0, -1 or nothing")
        if observation in labels:
            raise _UnusableError(f"{observation}: given twice")
        labels[observation] = FindingLabel(_STATUSES[word])
    return labels


def _report_id(cell: str) -> str:
    report_id = cell.strip()
    if not report_id:
        raise _UnusableError("empty id")
    if len(report_id) > MAX_ID_CHARS:
        raise _UnusableError(f"id longer than {MAX_ID_CHARS} characters")
    return report_id


def _refuse_duplicate(report_id: str, seen: set[int]) -> None:
    key = int.from_bytes(hashlib.blake2b(report_id.encode(), digest_size=16).digest())
    if key in seen:
        raise _UnusableError("duplicate id")
    seen.add(key)


def _view(cell: str) -> str | None:
    """PA, AP or LATERAL; None where unknown, or where one report is of two views."""
    word = cell.strip().lower()
    if word in _UNKNOWN:
        return None
    words = re.findall(r"[a-z]+", word)
    rest = [word for word in words if word not in _VIEW_EXTRAS and word not in _VIEW_WORDS]
    if rest or not words or not re.fullmatch(r"[a-z\s_/,&()-]+", word):
        raise _UnusableError("view: value not understood; expected PA, AP or LATERAL")
    # A decubitus view is taken lying on the side: none of the three.
    named = {_VIEW_WORDS[word] for word in words if word in _VIEW_WORDS}
    return named.pop() if len(named) == 1 and not {"decubitus", "lld", "rld"} & set(words) else None


def _sex(cell: str) -> Literal["M", "F"] | None:
    word = cell.strip().lower()
    if word in _UNKNOWN:
        return None
    if word not in _SEXES:
        raise _UnusableError("sex: value not understood; expected M or F")
    return _SEXES[word]


def _age_years(cell: str) -> float | None:
    """Years: a plain number, DICOM's 067Y, 006M, 010W, 005D, or a capped `>89`, `90+`."""
    word = cell.strip().lower()
    if word in _UNKNOWN:
        return None
    match = _AGE.fullmatch(word)
    if match is None or match[2] not in _YEARS_PER_UNIT:
        raise _UnusableError("age: value not understood; expected years, or a number and Y, M, W or D")
    age_years = float(match[1]) * _YEARS_PER_UNIT[match[2]]
    if age_years > MAX_AGE_YEARS:
        raise _UnusableError(f"age: over {MAX_AGE_YEARS} years")
    return age_years
