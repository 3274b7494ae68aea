"""Ctrl-C and SIGTERM: in a loop that has something to finish, a flag; elsewhere, an exception that is not lost."""

import _thread
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

from cxrsynth import console


class Stop:
    """Inside this context, SIGTERM and the first SIGINT only set `asked`; outside the main thread, nothing changes.

    Batch systems send SIGTERM some time before they kill.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {
                signal.SIGINT: signal.signal(signal.SIGINT, self._interrupted),
                signal.SIGTERM: signal.signal(signal.SIGTERM, self._interrupted),
            }
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
def kept_interrupts() -> Iterator[None]:
    """Inside this context, a Ctrl-C that arrives while an object is being cleared up is raised again after that.

    Python discards exceptions in `__del__` and in callbacks of weak references: the command would run on as if the key
    had not been pressed. Closing a shard is such a moment, and after its write to disk a likely one.
    """
    before = sys.unraisablehook
    timers = []

    def hook(unraisable: Any) -> None:
        if unraisable.exc_type is KeyboardInterrupt:
            # From another thread, a moment later: raised at once, it would be discarded with this hook.
            timers.append(threading.Timer(0.01, _interrupt_main_thread))
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


def _interrupt_main_thread() -> None:
    if hasattr(signal, "pthread_kill"):  # ends its waits, too
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    else:
        _thread.interrupt_main()
