"""The report table, read once: its usable reports and rejected rows are kept in temporary files."""

import pickle
import re
import tempfile
import zlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Generic, Self, TypeVar

from cxrsynth import console
from cxrsynth.errors import ReportsError, ShardError
from cxrsynth.reports.table.rows import Rejected, Report
from cxrsynth.reports.table.summary import describe_columns
from cxrsynth.reports.table.table import DUPLICATE, Table

_ITEMS_PER_BLOCK = 256
_SORTED_AT_ONCE = 20_000  # reports; about 2 kB each
_MOST_BUCKETS = 128  # files that are open at once
_LINES = re.compile(r" \(lines \d+ to \d+\)$")

Item = TypeVar("Item")


class Rows:
    """The rows of a table that a run uses; use it as a context.

    The files have no name, can be read by this process only, and disappear with it. Memory use is 8 bytes for every 256
    rows.
    """

    def __init__(self) -> None:
        self._usable: _Spool[Report] = _Spool()
        self._rejected: _Spool[Rejected] = _Spool()
        self.reasons: Counter[str] = Counter()  # why rows were rejected, without their lines -> how many
        self.unread: Counter[str] = Counter()  # role or observation -> cells that were not understood

    @property
    def usable(self) -> int:
        """Number of reports that can be used."""
        return self._usable.count

    @property
    def rejected(self) -> int:
        """Number of rows that cannot be used."""
        return self._rejected.count

    def add(self, row: Report | Rejected) -> None:
        """Append the next row of the table."""
        if isinstance(row, Report):
            self._usable.append(row)
            self.unread.update(row.unread)
        else:
            self._rejected.append(row)
            self.reasons[_LINES.sub("", row.reason)] += 1

    def order_by(self, key: Callable[[Report], str]) -> None:
        """Put the usable reports into the order of a key: hexadecimal digits, spread evenly, as those of a hash.

        Memory stays bounded: what does not fit is distributed over files by the first digits, and sorted file by file.

        Raises:
            ShardError: if the temporary files cannot be written.
        """
        ordered: _Spool[Report] = _Spool()
        buckets: list[_Spool[Report]] = [self._usable]
        try:
            if self.usable > _SORTED_AT_ONCE:
                count = min(_MOST_BUCKETS, -(-self.usable // _SORTED_AT_ONCE))
                buckets = [_Spool(compressed=False) for _ in range(count)]  # each is read once, soon
                for report in self.reports():
                    buckets[int(key(report)[:8], 16) * len(buckets) >> 32].append(report)
                self._usable.close()
            for bucket in buckets:
                for report in sorted(bucket.items(0, bucket.count), key=key):
                    ordered.append(report)
                bucket.close()
        except BaseException:
            for spool in (ordered, *buckets):
                spool.close()
            raise
        self._usable = ordered

    def reports(self, first: int = 0, last: int | None = None) -> Iterator[Report]:
        """Usable reports number `first` up to, but not including, `last`, in table order, or that of `order_by`."""
        return self._usable.items(first, self.usable if last is None else min(last, self.usable))

    def rejected_rows(self) -> Iterator[Rejected]:
        """Rejected rows in table order."""
        return self._rejected.items(0, self.rejected)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._usable.close()
        self._rejected.close()


def read_rows(table: Table, *, limit: int | None, strict: bool, per_image: bool = False) -> Rows:
    """Read the table, up to `limit` usable reports.

    Raises:
        ReportsError: if the table cannot be read, or, with `strict`, has a row that cannot be used.
        ShardError: if the temporary files cannot be written.
    """
    rows = Rows()
    try:
        for row in table.rows(strict=strict, per_image=per_image):
            if limit is not None and rows.usable >= limit:
                break
            if strict and isinstance(row, Rejected):
                raise ReportsError(
                    f"{table.path}: line {row.line}: {row.reason}\n"
                    "  fix the row, or leave out --strict to leave such rows out and list them"
                )
            rows.add(row)
    except BaseException:
        rows.__exit__(None, None, None)
        raise
    return rows


def refuse_unusable(table: Table, rows: Rows, listed: Path | None) -> None:
    """Raise ReportsError if no row can be used; `listed` is the file that lists the rejected ones, if any."""
    if rows.usable:
        return
    first = next(rows.rejected_rows(), None)
    why = "" if first is None else f"; the first: line {first.line}: {first.reason}"
    others = f"\n  reasons: {listed_counts(rows.reasons)}" if len(rows.reasons) > 1 else ""
    where = f"\n  all of them by line: {listed}" if listed is not None and rows.rejected else ""
    raise ReportsError(
        f"{table.path}: no usable row ({rows.rejected} rejected{why}){others}{where}\n"
        f"  columns: {describe_columns(table)}\n"
        "  expected: at least one row with report text or finding labels"
    )


def say_left_out(table: Table, rows: Rows, listed: Path | None) -> None:
    """Warn of rows that were rejected, and of cells that were not understood.

    `listed` is the file that will list the rows, if any.
    """
    if rows.rejected:
        where = "" if listed is None else f"; by line, at the end: {listed}"
        hint = "\n  one row for each image? --per-image" if rows.reasons[DUPLICATE] else ""
        rejected = f"{console.counted(rows.rejected, 'row')} rejected: {listed_counts(rows.reasons)}"
        console.warn(f"{table.path}: {rejected}{where}{hint}")
    if rows.unread:
        cells = console.counted(rows.unread.total(), "cell")
        console.warn(
            f"{table.path}: {cells} not understood and left out: {listed_counts(rows.unread)}; --strict stops at the"
            " first"
        )


def listed_counts(counts: Mapping[str, int], *, most: int = 5) -> str:
    """`empty text 12, duplicate id 3`, the most frequent first."""
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    more = sum(count for _, count in ordered[most:])
    return ", ".join(f"{name} {count:,}" for name, count in ordered[:most]) + (f", others {more:,}" if more else "")


class _Spool(Generic[Item]):
    """A list on disk: blocks of pickled items, compressed or not, in a temporary file without a name."""

    def __init__(self, *, compressed: bool = True) -> None:
        self._compressed = compressed
        with _file_errors("write"):
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        self._ends = array("Q", [0])  # where each block begins, then where the last one ends
        self._tail: list[Item] = []  # not in the file yet

    @property
    def count(self) -> int:
        return (len(self._ends) - 1) * _ITEMS_PER_BLOCK + len(self._tail)

    def append(self, item: Item) -> None:
        self._tail.append(item)
        if len(self._tail) == _ITEMS_PER_BLOCK:
            block = pickle.dumps(self._tail, protocol=pickle.HIGHEST_PROTOCOL)
            block = zlib.compress(block, 1) if self._compressed else block
            with _file_errors("write"):
                self._file.write(block)
                self._file.flush()
            self._ends.append(self._ends[-1] + len(block))
            self._tail = []

    def items(self, first: int, last: int) -> Iterator[Item]:
        while first < last:
            number, skipped = divmod(first, _ITEMS_PER_BLOCK)
            block = self._block(number)[skipped : skipped + last - first]
            yield from block
            first += len(block)

    def _block(self, number: int) -> list[Item]:
        if number == len(self._ends) - 1:
            return self._tail
        start, end = self._ends[number], self._ends[number + 1]
        with _file_errors("read"):
            self._file.seek(start)
            block = self._file.read(end - start)
        found: list[Item] = pickle.loads(zlib.decompress(block) if self._compressed else block)
        return found

    def close(self) -> None:
        self._file.close()


@contextmanager
def _file_errors(what: str) -> Iterator[None]:
    """Name the temporary file, which has no name of its own, in a ShardError."""
    try:
        yield
    except OSError as error:
        raise ShardError(
            f"temporary files: cannot {what} the rows of the table ({error.strerror or error})\n"
            "  set TMPDIR to a folder with room for a copy of the table, then run the same command again"
        ) from None
