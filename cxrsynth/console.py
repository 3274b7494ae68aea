"""The only module that prints: messages on standard error, tables on standard output."""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

_PLAIN_EVERY_S = 10.0
_DISTANCES = ("frechet", "kid", "precision", "recall", "density", "coverage")
_MEASURES = (*_DISTANCES, "ms_ssim_within", "ms_ssim_real", "ms_ssim_to_real")


class Advance(Protocol):
    """Tells a progress display that so many images are done; `made` False for those found finished."""

    def __call__(self, images: int, *, made: bool = True) -> None: ...


def say(message: str) -> None:
    """One line for the user, on standard error."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(escape(message))


def warn(message: str) -> None:
    """One warning, on standard error."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"[yellow]warning:[/] {escape(message)}")


def fail(message: str) -> None:
    """The last line of a run that could not go on."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"[red]error:[/] {escape(message)}")


@contextmanager
def image_progress(total: int | None, *, quiet: bool = False, what: str = "images") -> Iterator[Advance]:
    """A bar with images/s and time left on a terminal; a plain line every ten seconds when piped.

    `total` None: not known beforehand.
    """
    rate = _Rate(total, what)
    if quiet:
        yield rate.count
    elif sys.stderr.isatty():
        columns = (
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.description}  {task.fields[speed]}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(what, total=total, speed="")

            def advance(images: int, *, made: bool = True) -> None:
                rate.count(images, made=made)
                bar.update(task, advance=images, speed=f"{rate.per_second:.2f}/s")

            yield advance
    else:

        def line(images: int, *, made: bool = True) -> None:
            rate.count(images, made=made)
            if rate.due():
                say(rate.text())

        yield line


@dataclass
class _Rate:
    """Images done and made, and the speed of making them."""

    total: int | None
    what: str = "images"
    done: int = 0
    made: int = 0
    started: float = field(default_factory=time.monotonic)
    told: float = 0.0

    def count(self, images: int, *, made: bool = True) -> None:
        self.done += images
        self.made += images if made else 0

    @property
    def per_second(self) -> float:
        return self.made / max(time.monotonic() - self.started, 1e-9)

    def due(self) -> bool:
        now = time.monotonic()
        if self.done != self.total and now - self.told < _PLAIN_EVERY_S:
            return False
        self.told = now
        return True

    def text(self) -> str:
        speed = f"{self.what}, {self.per_second:.2f} images/s"
        if self.total is None:
            return f"{self.done} {speed}"
        left = timedelta(seconds=round((self.total - self.done) / self.per_second)) if self.made else "unknown"
        return f"{self.done}/{self.total} {speed}, {left} left"


def print_audit(summary: Mapping[str, Any], out: Path) -> None:
    """The findings of an audit as tables on standard output; where the files are, on standard error."""
    output = Console(highlight=False, soft_wrap=True)
    kept, rejected = summary["kept"], summary["rejected"]
    damaged = summary["input"]["damaged_count"]
    output.print(f"{kept} of {kept + rejected} films kept" + (f", {damaged} damaged and skipped" if damaged else ""))
    if summary["reasons"]:
        output.print(_table("rejected for", ["films"], {name: [str(n)] for name, n in summary["reasons"].items()}))
    names = ("mean", "p5", "p50", "p95")
    rewards = {name: [_number(of[n]) for n in names] for name, of in summary["rewards"].items()}
    output.print(_table("reward", names, rewards))
    overall = next((row for row in summary["fidelity"] if row["group"] == "all" and row["frechet"]), None)
    if overall is not None:
        # Groups are many and lines are short: they are in the report.
        rows = {name: [_interval(overall[name])] for name in _MEASURES}
        output.print(_table("against the reference, all films", [f"{overall['compared']} films each"], rows))
    copies = summary["memorization"]
    if copies is not None:
        alarms = copies["false_alarms"]
        output.print(f"{copies['flagged']} films as near to a real one as a copy would be")
        caught = {name: [f"{one['caught']} of {one['of']}"] for name, one in copies["sensitivity"].items()}
        caught["false alarms on held-out real patients"] = [f"{alarms['caught']} of {alarms['of']}"]
        output.print(_table("planted copies of reference films", ["found"], caught))
    for miss in summary["failed"]:
        found = "not measured" if miss["value"] is None else f"{miss['value']:.4g}"
        output.print(f"[red]missed:[/] {escape(miss['metric'])}: {found}, stated {miss['limit']} {miss['minimum']:g}")
    say(f"{out}: report.html, summary.json, scores.parquet, keep.csv")


def _table(first: str, columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> Table:
    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column(first)
    for column in columns:
        table.add_column(column, justify="right")
    for name, cells in rows.items():
        table.add_row(escape(name), *cells)
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _interval(measured: Mapping[str, float] | None) -> str:
    return "-" if measured is None else f"{measured['value']:.3g} ({measured['low']:.3g} to {measured['high']:.3g})"
