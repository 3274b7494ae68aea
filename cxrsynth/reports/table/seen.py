"""Which ids a table has had: on disk, so that a table of millions takes no more memory than a small one."""

import hashlib
import sqlite3
from types import TracebackType
from typing import Final, Self

from cxrsynth.errors import ReportsError, in_words

_CACHE_KIB: Final = 16 << 10


class SeenIds:
    """How often each id has occurred, by 16-byte hashes; use it as a context.

    SQLite keeps it in memory as long as it is small, then in a temporary file without a name (in TMPDIR).
    """

    def __init__(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        for setting in ("journal_mode = OFF", "synchronous = OFF", f"cache_size = -{_CACHE_KIB}"):
            self._database.execute(f"PRAGMA {setting}")
        self._database.execute("CREATE TABLE seen (id BLOB PRIMARY KEY, times INTEGER) WITHOUT ROWID")
        self._database.execute("BEGIN")
        self._cursor = self._database.cursor()

    def add(self, one: str) -> int:
        """Add an id; how often it was there before.

        Raises:
            ReportsError: if the temporary file cannot be written.
        """
        digest = hashlib.blake2b(one.encode("utf-8", "surrogateescape"), digest_size=16).digest()
        try:
            self._cursor.execute("INSERT OR IGNORE INTO seen VALUES (?, 1)", (digest,))
            if self._cursor.rowcount == 1:
                return 0
            before = int(self._cursor.execute("SELECT times FROM seen WHERE id = ?", (digest,)).fetchone()[0])
            self._cursor.execute("UPDATE seen SET times = times + 1 WHERE id = ?", (digest,))
        except sqlite3.Error as error:
            raise ReportsError(
                f"temporary files: cannot write the ids of the table ({in_words(error)})\n"
                "  set TMPDIR to a folder with room for 50 bytes a row, then run the same command again"
            ) from None
        return before

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._database.close()
