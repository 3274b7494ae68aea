"""metrics.jsonl: one row an iteration, cut back on resume to what the checkpoint knows."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cxrsynth.runtime.files import write_atomically


class Metrics:
    """Appends rows to a file; numbers that are none become null."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, row: Mapping[str, Any]) -> None:
        """Add one row, flushed to the file at once."""
        clean = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()
        }
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(clean) + "\n")

    def rows(self) -> list[dict[str, Any]]:
        """All whole rows; what is none, as a last line cut by a kill, is left out."""
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

    def drop_evaluation(self, *, stage: int, iteration: int) -> None:
        """Drop the rows of the evaluation after `iteration`; it will be repeated."""

        def is_dropped(row: Mapping[str, Any]) -> bool:
            of_evaluation = any(name.startswith("evaluation/") for name in row)
            return of_evaluation and (row["stage"], row["iteration"]) == (stage, iteration)

        self._replace([row for row in self.rows() if not is_dropped(row)])

    def cut(self, *, stage: int, iteration: int) -> None:
        """Drop rows of this stage after `iteration`, and of later stages: they will be written again."""
        kept = [row for row in self.rows() if (row["stage"], row["iteration"]) <= (stage, iteration)]
        self._replace(kept)

    def _replace(self, rows: Sequence[Mapping[str, Any]]) -> None:
        write_atomically(self.path, "".join(json.dumps(row) + "\n" for row in rows).encode())
