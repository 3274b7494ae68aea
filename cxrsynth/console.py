"""The only module that prints: messages on standard error, tables on standard output."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_PLAIN_EVERY_S = 10.0


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
def image_progress(total: int, *, quiet: bool = False) -> Iterator[Advance]:
    """A bar with images/s and time left on a terminal; a plain line every ten seconds when piped."""
    rate = _Rate(total)
    if quiet:
        yield rate.count
    elif sys.stderr.isatty():
        columns = (
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("images  {task.fields[speed]}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task("images", total=total, speed="")

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

    total: int
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
        if self.done < self.total and now - self.told < _PLAIN_EVERY_S:
            return False
        self.told = now
        return True

    def text(self) -> str:
        left = timedelta(seconds=round((self.total - self.done) / self.per_second)) if self.made else "unknown"
        return f"{self.done}/{self.total} images, {self.per_second:.2f} images/s, {left} left"
