"""Ctrl-C and SIGTERM in a loop that has something to finish: the first sets a flag, a second Ctrl-C ends at once."""

import signal
import threading
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
