"""Work in processes of their own, with results in the order of the work.

Plain subprocesses at the end of a pipe, and not `ProcessPoolExecutor`: its workers import the caller's script again,
which a script without `if __name__ == "__main__"` does not survive, and outlive a caller that was killed. These import
nothing but what is sent to them, and end with the pipe.
"""

import json
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from queue import SimpleQueue
from types import TracebackType
from typing import Self, TypeVar

from cxrsynth.runtime.pool import OrderedPool

Item = TypeVar("Item")
Job = TypeVar("Job")
Result = TypeVar("Result")

_START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from cxrsynth.runtime.worker import serve; serve()"
_ENDING_S = 10.0


class WorkerLost(Exception):
    """A worker process ended in the middle of its work; the text says how."""


class WorkerProcesses:
    """Processes that run functions; use it as a context. With none of them, functions run in this process.

    Signals do not reach the processes: they are in a session of their own, and end once this process closes their pipe
    or ends itself, however it does.

    Args:
        workers: number of processes, 0 or more.
    """

    def __init__(self, workers: int) -> None:
        self._idle: SimpleQueue[_Worker] = SimpleQueue()
        self._workers = workers
        self._started: list[_Worker] = []
        self._pool: OrderedPool | None = None

    def map_in_order(
        self, function: Callable[[Job], Result], items: Iterable[tuple[Item, Job]]
    ) -> Iterator[tuple[Item, Result]]:
        """Each item with the result of its job, in the items' order.

        Function, jobs and results are pickled; items stay here. Of the jobs, two more than there are workers are in
        memory at once. An error in taking an item or in a job is raised in its turn, after the results before it.

        Raises:
            WorkerLost: if a worker was killed, or cannot be started.
        """
        if self._pool is None:
            for item, job in items:
                yield item, function(job)
            return

        def call(pair: tuple[Item, Job]) -> Result:
            worker = self._idle.get()
            try:
                result: Result = worker.call(function, pair[1])
            finally:
                self._idle.put(worker)
            return result

        for (item, _), result in self._pool.map_in_order(call, items):
            yield item, result

    def __enter__(self) -> Self:
        """Start the processes. Raises WorkerLost if that fails."""
        try:
            for _ in range(self._workers):
                self._started.append(_Worker())
                self._idle.put(self._started[-1])
        except BaseException:
            self._end()
            raise
        if self._workers:
            # A result that is there is handed on before the next item is waited for, which may take long.
            self._pool = OrderedPool(self._workers, results_first=True)
            self._pool.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._pool is not None:
                self._pool.__exit__(kind, error, trace)
        finally:
            self._end()

    def _end(self) -> None:
        for worker in self._started:
            worker.end()


class _Worker:
    """One process, and the pipe to it."""

    def __init__(self) -> None:
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _START, json.dumps(sys.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            raise WorkerLost(f"cannot be started ({error.strerror})") from None

    def call(self, function: Callable[[Job], Result], job: Job) -> Result:
        """What the function returns, or raises, in the process."""
        requests, answers = self._process.stdin, self._process.stdout
        assert requests is not None
        assert answers is not None
        try:
            pickle.dump((function, job), requests, protocol=pickle.HIGHEST_PROTOCOL)
            requests.flush()
            result, error = pickle.load(answers)
        except (OSError, EOFError, pickle.UnpicklingError):
            raise WorkerLost(self._how_it_ended()) from None
        if error is not None:
            raise error
        returned: Result = result
        return returned

    def end(self) -> None:
        """Close the pipe, by which the process ends, and wait for that."""
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except OSError:  # what was not sent yet
                continue
        try:
            self._process.wait(_ENDING_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _how_it_ended(self) -> str:
        try:
            code = self._process.wait(_ENDING_S)
        except subprocess.TimeoutExpired:
            return "does not answer"
        try:
            return f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        except ValueError:  # a real-time signal has no name
            return f"ended by signal {-code}"
