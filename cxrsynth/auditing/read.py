"""How the images of a collection were read, counted as they are scored: gray ranges, and rows of the user's table."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cxrsynth.images.image import Radiograph
from cxrsynth.images.table import Matches

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
