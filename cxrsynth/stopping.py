"""Ctrl-C in a loop that has something to finish: the first one is remembered, the second ends at once."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

from cxrsynth import console


class Stop:
    """While it is entered, the first SIGINT only sets `asked`; outside the main thread nothing is changed."""

    def __init__(self) -> None:
        self.asked = False
        self._before: Any = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._interrupted)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _interrupted(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        console.say("stopping: this iteration is finished and saved first; Ctrl-C again ends at once, without it")
