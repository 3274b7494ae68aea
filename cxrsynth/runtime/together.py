"""Several processes of one run end together: where one fails, the others do not wait for it.

Who fails writes its rank into the store that the launcher set up, and a thread in each process looks there. The main
thread notices at its next collective operation. Where it cannot, because it hangs in one or has minutes of work before
it, the thread ends the process: files are written atomically, so nothing is lost that a kill would not lose, too.
"""

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Final, TypeVar

from torch.distributed import DistError  # type: ignore[attr-defined]

from cxrsynth import console
from cxrsynth.errors import LaunchError
from cxrsynth.runtime.meeting import Meeting

Result = TypeVar("Result")

_POLL_S: Final = 0.5
_GRACE_S: Final = 5.0  # in which a process may end by itself, with its own message
_REPORT_S: Final = 2.0  # within which the failure of a process whose connection broke has been reported
_CONNECT: Final = timedelta(seconds=30)
_UNKNOWN: Final = -1
_FAILED: Final = "failed"


class Lookout:
    """Sees whether another process of the run has failed, and lets the others see that this one has.

    Args:
        rank: of this process.
        meeting: the processes of the run.
        wait: how long collective operations wait for other processes, for messages.
    """

    def __init__(self, rank: int, meeting: Meeting, *, wait: timedelta) -> None:
        self._rank, self._wait = rank, wait
        self._failed: int | None = None
        self._seen, self._closed = threading.Event(), threading.Event()
        # A connection of its own: the process group may hold the lock of the usual one while it waits.
        self._store = meeting.store(_CONNECT)
        threading.Thread(target=self._look, daemon=True).start()

    def report(self) -> None:
        """Tell the others that this process has failed."""
        try:
            if not self._store.check([_FAILED]):
                self._store.set(_FAILED, str(self._rank))
        except RuntimeError:
            pass  # the process that had the store has ended, which the others see

    def close(self) -> None:
        """Look no further."""
        self._closed.set()

    def collective(self, operation: Callable[[], Result]) -> Result:
        """Run an operation for which all processes meet.

        Raises:
            LaunchError: if another process has failed, or does not come in time.
        """
        if self._seen.is_set():
            raise LaunchError(self._explanation())
        try:
            return operation()
        except RuntimeError as error:
            if not of_network(error):
                raise
            if not self._seen.wait(_REPORT_S) and "time" in str(error).lower():
                raise LaunchError(
                    f"the other processes did not answer for {self._wait.total_seconds() / 60:g} minutes\n"
                    "  see what they say; if they only need longer, give --max-wait"
                ) from None
            raise LaunchError(self._explanation()) from None

    def _look(self) -> None:
        while not self._closed.wait(_POLL_S):
            try:
                if not self._store.check([_FAILED]):
                    continue
                self._failed = int(self._store.get(_FAILED))
            except RuntimeError:
                self._failed = _UNKNOWN
            if self._failed == self._rank:
                return
            self._seen.set()
            if self._closed.wait(_GRACE_S):
                return
            console.fail(f"[rank {self._rank}] {self._explanation()}")
            sys.stdout.flush()
            os._exit(2)

    def _explanation(self) -> str:
        known = self._failed is not None and self._failed != _UNKNOWN
        who = f"process {self._failed} has failed, and its message says why" if known else "another process has ended"
        return f"{who}: this one ends, too\n  the last checkpoint is kept; mend that, then run the same command again"


def of_network(error: RuntimeError) -> bool:
    """Whether a collective operation failed because of another process or the way to it."""
    return isinstance(error, DistError) or "gloo" in str(error)


@contextmanager
def ending_together(
    rank: int, meeting: Meeting | None, *, wait: timedelta, leave: Callable[[], None]
) -> Iterator[Lookout | None]:
    """All processes end this context together, or within seconds of the first that fails in it.

    Args:
        rank: of this process.
        meeting: the processes; a single one has none, and gets None.
        wait: how long collective operations wait for other processes, for messages.
        leave: returns when all processes have come to the end of the context.

    Raises:
        LaunchError: if another process has failed, or cannot be reached.
    """
    if meeting is None:
        yield None
        return
    lookout = Lookout(rank, meeting, wait=wait)
    try:
        yield lookout
        lookout.collective(leave)
    except BaseException:
        lookout.report()
        raise
    finally:
        lookout.close()
