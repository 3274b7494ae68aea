"""metrics.jsonl: one row per iteration; rows newer than the checkpoint are dropped on resume."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cxrsynth.runtime.files import write_atomically


class Metrics:
    """Appends rows to a file; NaN and infinity become null."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, row: Mapping[str, Any]) -> None:
        """Add one row; it is in the file when this returns."""
        clean = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()
        }
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(clean) + "\n")

    def rows(self) -> list[dict[str, Any]]:
        """All whole rows. Lines that are not rows, such as a last line cut off by a kill, are left out."""
        if not self.path.exists():
            return []
        found = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict) and all(type(row.get(name)) is int for name in ("stage", "iteration")):
                found.append(row)
        return found

    def state(self) -> dict[str, Any]:
        """For a checkpoint: how many lines there are, and the SHA-256 of these."""
        lines = self._lines()
        return {"lines": len(lines), "sha256": _sha256(lines)}

    def begins_with(self, state: Mapping[str, Any]) -> bool:
        """Whether the lines that a checkpoint knows of are still as they were."""
        lines = self._lines()[: state["lines"]]
        return bool(len(lines) == state["lines"] and _sha256(lines) == state["sha256"])

    def _lines(self) -> list[bytes]:
        return self.path.read_bytes().splitlines() if self.path.exists() else []

    def drop_evaluation(self, *, stage: int, iteration: int) -> None:
        """Drop the rows of the evaluation after `iteration`; it will be repeated."""

        def is_dropped(row: Mapping[str, Any]) -> bool:
            return _begins(row, "evaluation/") and (row["stage"], row["iteration"]) == (stage, iteration)

        self._replace([row for row in self.rows() if not is_dropped(row)])

    def drop_test(self, *, stage: int) -> None:
        """Drop the row of a stage's test, if it is there; it will be repeated."""
        self._replace([row for row in self.rows() if not (_begins(row, "test/") and row["stage"] == stage)])

    def cut(self, *, stage: int, iteration: int) -> None:
        """Drop rows of this stage after `iteration`, and of its test; they will be written again.

        Each stage does so when it resumes.
        """

        def is_kept(row: Mapping[str, Any]) -> bool:
            return row["stage"] != stage or (row["iteration"] <= iteration and not _begins(row, "test/"))

        kept = [row for row in self.rows() if is_kept(row)]
        self._replace(kept)

    def _replace(self, rows: Sequence[Mapping[str, Any]]) -> None:
        write_atomically(self.path, "".join(json.dumps(row) + "\n" for row in rows).encode())


def _sha256(lines: Sequence[bytes]) -> str:
    """Of what the lines say but for times, which differ between runs that are otherwise equal."""
    return hashlib.sha256(b"\n".join(map(_without_times, lines))).hexdigest()


def _without_times(line: bytes) -> bytes:
    try:
        row = json.loads(line)
    except ValueError:
        return line
    if not isinstance(row, dict):
        return line
    return json.dumps({name: value for name, value in row.items() if not name.startswith("time/")}).encode()


def _begins(row: Mapping[str, Any], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in row)
