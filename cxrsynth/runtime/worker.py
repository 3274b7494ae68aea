"""What runs in a worker process: requests on standard input, answers on standard output. Imports next to nothing."""

import pickle
import signal
import sys
import traceback
from collections.abc import Callable
from typing import IO, Any


def serve() -> None:
    """Answer requests on standard input until it ends; what runs in a worker process."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        # Batch systems send these to every process: the one that sends the work decides what becomes of it.
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # whatever a library prints is no answer
    while (request := _request(requests)) is not None:
        try:
            _answer(answers, request)
        except BrokenPipeError:
            break
    # The interpreter would flush what nobody reads any more.
    sys.stdout = None  # type: ignore[assignment]


def _request(requests: IO[bytes]) -> tuple[Callable[[Any], Any], Any] | None:
    """The next function and its argument; None at the end, also in the middle of a request."""
    try:
        request: tuple[Callable[[Any], Any], Any] = pickle.load(requests)
    except (EOFError, pickle.UnpicklingError):
        return None
    return request


def _answer(answers: IO[bytes], request: tuple[Callable[[Any], Any], Any]) -> None:
    function, job = request
    answer: tuple[Any, Exception | None]
    try:
        answer = function(job), None
    except Exception as error:
        error.add_note("".join(traceback.format_exception(error)))  # where: the stack does not come along
        answer = None, error
    pickle.dump(answer, answers, protocol=pickle.HIGHEST_PROTOCOL)
    answers.flush()
