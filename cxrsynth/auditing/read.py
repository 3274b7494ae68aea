"""How the images of a collection were read, counted as they are scored: gray ranges, and rows of the user's table."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cxrsynth.console import counted
from cxrsynth.images.image import Radiograph
from cxrsynth.images.table import Matches, Unclear
from cxrsynth.reports.labels import OBSERVATIONS

_OF_MORE_BITS = re.compile(r"\d+ of \d+ bits")


@dataclass
class Reading:
    """Counts of some images: how many, how many with a row in the table, which lines, and which gray ranges."""

    images: int = 0
    with_row: int = 0
    lines: set[int] = field(default_factory=set)
    ranges: Counter[str] = field(default_factory=Counter)

    def add(self, radiograph: Radiograph) -> None:
        """Count one image."""
        self.images += 1
        self.ranges[radiograph.gray_range] += 1
        if radiograph.table_line is not None:
            self.with_row += 1
            self.lines.add(radiograph.table_line)

    def as_json(self) -> dict[str, Any]:
        """What `of_json` reads."""
        return {
            "images": self.images,
            "with_row": self.with_row,
            "lines": sorted(self.lines),
            "ranges": dict(sorted(self.ranges.items())),
        }

    @classmethod
    def of_json(cls, record: Mapping[str, Any]) -> "Reading":
        """The counts that `as_json` gave."""
        return cls(record["images"], record["with_row"], set(record["lines"]), Counter(record["ranges"]))

    @classmethod
    def together(cls, parts: Iterable["Reading"]) -> "Reading":
        """The counts of all parts."""
        whole = cls()
        for part in parts:
            whole.images += part.images
            whole.with_row += part.with_row
            whole.lines |= part.lines
            whole.ranges += part.ranges
        return whole

    def matches(self, rows: int) -> Matches:
        """The images beside a table of so many rows."""
        return Matches(self.images, self.with_row, rows, len(self.lines))


def mixed_ranges(ranges: Mapping[str, int]) -> str | None:
    """What is said of a set whose pictures of 16 bits use different numbers of them; None where all use the same."""
    found = [f"{count:,} with {name}" for name, count in sorted(ranges.items()) if _OF_MORE_BITS.fullmatch(name)]
    if len(found) < 2:
        return None
    return f"white is not the same value in all pictures: {', '.join(found)}; those of fewer bits may look too bright"


def unclear_cells(unclear: Mapping[str, Unclear]) -> list[tuple[str, str]]:
    """What is said of each column of a table some of whose cells are not understood, and what to do about it.

    Names of columns stand in it, never what a cell says.
    """
    found = []
    for name, of in unclear.items():
        rows = counted(of.rows, "row")
        if not of.is_list:
            found.append(
                (
                    f"the column {name} of {rows} is not understood (the first: line {of.line}), and stays unknown",
                    "expected PA, AP or LATERAL for a view, M or F for a sex, years for an age",
                )
            )
        elif of.is_read:
            found.append(
                (
                    f"the labels of {rows} have words that stand for no observation (the first: line {of.line});"
                    " these findings stay unknown",
                    f"observations: {', '.join(OBSERVATIONS)}",
                )
            )
        else:
            found.append(
                (
                    f"the column {name} names no observation in any of {rows}, and is not read",
                    "write names of observations in it; where its 1 and 0 mark one of them, give the column that name:"
                    f" {', '.join(OBSERVATIONS)}",
                )
            )
    return found
