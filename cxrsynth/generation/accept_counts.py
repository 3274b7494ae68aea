"""How many images passed, by finding: counted for each shard, and added up for the manifest."""

import csv
import hashlib
import io
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import IO, Any, Self

from cxrsynth.generation.accept import Outcome
from cxrsynth.generation.draw import Drawn
from cxrsynth.reports.labels import Status

# Group of the images whose report states no finding as present.
_NO_FINDING_STATED = "none stated"


class ShardCounts:
    """Counts over the images of one shard, as its record holds them."""

    def __init__(self) -> None:
        self._written = 0
        self._unsupported: Counter[str] = Counter()
        self._total: dict[str, int] = {}
        self._by_finding: dict[str, dict[str, int]] = {}
        self._never: list[dict[str, Any]] = []

    def add(self, drawn: Drawn, *, written: bool) -> None:
        """Count the next image, which is in the shard if it was written."""
        if written:
            self._written += 1
            self._unsupported.update(drawn.prompt.unsupported_findings)
        outcome = drawn.outcome
        if outcome is None:
            return
        _count(self._total, outcome)
        present = [name for name, label in drawn.prompt.labels.items() if label.status is Status.PRESENT]
        for name in present or [_NO_FINDING_STATED]:
            _count(self._by_finding.setdefault(name, {}), outcome)
        if not outcome.accepted:
            key = drawn.sample.key
            self._never.append({"key": key, "attempts": outcome.attempts, "failed": list(outcome.failed)})

    def record(self) -> dict[str, Any]:
        """`samples` and `unsupported_findings` of what was written; `acceptance` of all images, if they were judged."""
        counts: dict[str, Any] = {"samples": self._written, "unsupported_findings": dict(self._unsupported)}
        if self._total:
            judged = {"total": self._total, "by_finding": self._by_finding, "never_accepted": self._never}
            counts["acceptance"] = judged
        return counts


class NotAccepted:
    """The images of a set that never passed, as not_accepted.csv lists them; use it as a context.

    Collected in a temporary file, shard by shard: there may be as many as images. `reasons` counts them by rule.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by the context
        self._text = io.TextIOWrapper(self._file, encoding="utf-8", newline="", write_through=True)
        self._writer = csv.writer(self._text, lineterminator="\n")
        self._writer.writerow(["key", "attempts", "reasons"])
        self.reasons: Counter[str] = Counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self._text.close()

    def taken_from(self, record: dict[str, Any]) -> dict[str, Any]:
        """The record of the next shard, without the images that are collected here: key, draws and reasons of each."""
        for image in record.get("acceptance", {}).pop("never_accepted", ()):
            self._writer.writerow([image["key"], image["attempts"], "; ".join(image["failed"])])
            self.reasons.update(image["failed"])
        return record

    def write(self, file: IO[bytes]) -> str:
        """Write the list; its SHA-256."""
        self._text.flush()
        self._file.seek(0)
        sha256 = hashlib.file_digest(self._file, "sha256").hexdigest()
        self._file.seek(0)
        shutil.copyfileobj(self._file, file)
        return sha256


def total_acceptance(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The counts of all shards, as the manifest holds them, with the share of draws that were accepted."""
    by_finding: dict[str, dict[str, int]] = {}
    total: dict[str, int] = {}
    for record in records:
        _add(total, record["total"])
        for name, counts in record["by_finding"].items():
            _add(by_finding.setdefault(name, {}), counts)
    return {
        "total": _with_rate(total),
        "by_finding": {name: _with_rate(counts) for name, counts in sorted(by_finding.items())},
    }


def _count(counts: dict[str, int], outcome: Outcome) -> None:
    _add(
        counts,
        {
            "images": 1,
            "accepted": int(outcome.accepted),
            "accepted_at_first": int(outcome.accepted and outcome.attempts == 1),
            "draws": outcome.attempts,
        },
    )


def _add(counts: dict[str, int], more: Mapping[str, int]) -> None:
    for name, value in more.items():
        counts[name] = counts.get(name, 0) + value


def _with_rate(counts: Mapping[str, int]) -> dict[str, Any]:
    draws = counts.get("draws", 0)
    return dict(counts) | {"accepted_per_draw": round(counts["accepted"] / draws, 4) if draws else 0.0}
