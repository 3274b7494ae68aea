"""Rewards that do not rise while others do, found in the metrics of the latest iterations."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from math import isfinite
from typing import Any

WINDOW = 10  # iterations
# Kendall's S, the number of pairs of iterations in which the later value is higher, minus those in which it is lower;
# between -45 and 45 for ten iterations. Without a trend its standard deviation is 11.2: one reward in fifty reaches 23
# by chance.
_RISING = 23
_MOVING = 11
_MARK = "/mean"


def stalled_rewards(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """Names rewards that have not risen in the last `WINDOW` iterations while others have, or None.

    Ranks are compared, not values, so that neither a reward's unit nor a single bad batch counts. A reward is named
    when it falls behind, not again as long as it stays behind.

    Args:
        rows: rows of metrics of a stage's iterations, in order; those of the last two windows are read.
    """
    if len(rows) < WINDOW:
        return None
    rising, behind = _trends(rows[-WINDOW:])
    before = _trends(rows[-2 * WINDOW : -WINDOW])[1] if len(rows) >= 2 * WINDOW else {}
    new = {name: fell for name, fell in behind.items() if before.get(name) != fell}
    if not new:
        return None
    said = [
        f"{name} has {'fallen' if fell else 'not moved'} in {WINDOW} iterations" for name, fell in sorted(new.items())
    ]
    return f"{', '.join(said)}, while {', '.join(sorted(rising))} {'rises' if len(rising) == 1 else 'rise'}"


def _trends(rows: Sequence[Mapping[str, Any]]) -> tuple[set[str], dict[str, bool]]:
    """Rewards that rise, and if there are any, those that do not: name -> whether they fall."""
    names = {key.split("/")[1] for row in rows for key in row if key.startswith("reward/") and key.endswith(_MARK)}
    scores = {name: _kendall([_gain(row, name) for row in rows]) for name in names}
    known = {name: score for name, score in scores.items() if score is not None}
    rising = {name for name, score in known.items() if score >= _RISING}
    behind = {name: score <= -_RISING for name, score in known.items() if score < _MOVING}
    return rising, behind if rising else {}


def _gain(row: Mapping[str, Any], name: str) -> float | None:
    """A reward's mean over an iteration, relative to the baseline's for the same reports; alone where there is none."""
    values = [row.get(f"reward/{name}{_MARK}"), row.get(f"reward/{name}/baseline", 0.0)]
    policy, baseline = (value if isinstance(value, int | float) and isfinite(value) else None for value in values)
    return None if policy is None or baseline is None else policy - baseline


def _kendall(values: Sequence[float | None]) -> int | None:
    """Kendall's S of values over time; None if any is missing."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    return sum((later > earlier) - (later < earlier) for earlier, later in combinations(known, 2))
