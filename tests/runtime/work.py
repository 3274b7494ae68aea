"""What tests have done in worker processes; imports nothing that they would notice."""

import os
import signal
import sys
import time


def slow_square(number: int) -> int:
    """The square; the first numbers take longest."""
    time.sleep(0.3 / (1 + number))
    return number**2


def inverse(number: int) -> float:
    """Fails for 0."""
    return 1 / number


def inverse_or_zero(number: int) -> float:
    """Never fails."""
    return 1 / number if number else 0.0


def die(number: int) -> None:
    """End the process by a signal."""
    os.kill(os.getpid(), number)


def own_pid(_: object) -> int:
    """The process's number."""
    return os.getpid()


def has_torch(_: object) -> bool:
    """Whether torch was imported."""
    return "torch" in sys.modules


def printed(text: str) -> str:
    """Print before answering."""
    sys.stdout.write(text)
    sys.stdout.flush()
    return text


def ignored(name: str) -> bool:
    """Whether a signal is ignored."""
    return signal.getsignal(signal.Signals[name]) is signal.SIG_IGN
