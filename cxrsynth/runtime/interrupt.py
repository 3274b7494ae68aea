"""Ctrl-C, SIGTERM, SIGHUP: in a loop that has something to finish, a flag; elsewhere, an exception that is not lost."""

import _thread
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

from cxrsynth import console

# What batch systems send some time before they kill, and what a terminal sends when it closes.
_TERMINATING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


class Terminated(KeyboardInterrupt):
    """A signal other than Ctrl-C that ends the run as Ctrl-C does; `number` is the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class Stop:
    """Inside this context, SIGTERM, SIGHUP and the first SIGINT only set `asked`.

    Outside the main thread nothing changes, and a signal that is ignored (SIGHUP, by nohup) stays so.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            heeded = [one for one in _TERMINATING if signal.getsignal(one) is not signal.SIG_IGN]
            self._before = {one: signal.signal(one, self._interrupted) for one in (signal.SIGINT, *heeded)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, before in self._before.items():
            if before is not None:  # not set by Python, so it cannot be restored
                signal.signal(number, before)

    def _interrupted(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.asked:
            self.asked = True
            console.say("stopping once this iteration is finished and saved; Ctrl-C again stops at once, without it")


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Inside this context, SIGTERM and SIGHUP raise `Terminated` in the main thread, unless they are ignored."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in _TERMINATING:
            if signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, _terminate)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated(number)


@contextmanager
def kept_interrupts() -> Iterator[None]:
    """Inside this context, a Ctrl-C that arrives while an object is being cleared up is raised again after that.

    Python discards exceptions in `__del__` and in callbacks of weak references: the command would run on as if the key
    had not been pressed. Closing a shard is such a moment, and after its write to disk a likely one.
    """
    before = sys.unraisablehook
    timers = []

    def hook(unraisable: Any) -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            # From another thread, a moment later: raised at once, it would be discarded with this hook.
            number = getattr(unraisable.exc_value, "number", signal.SIGINT)
            timers.append(threading.Timer(0.01, _interrupt_main_thread, (number,)))
            timers[-1].start()
        else:
            before(unraisable)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before
        for timer in timers:
            timer.join()  # here and not in what follows, which may be the end of the process


def _interrupt_main_thread(number: int) -> None:
    if hasattr(signal, "pthread_kill"):  # ends its waits, too
        signal.pthread_kill(threading.main_thread().ident or 0, number)
    else:
        _thread.interrupt_main()
