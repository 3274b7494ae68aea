"""Work on threads, with results in the order of the work."""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self, TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

# Images in flight per worker: enough to fill a batch while the last one is scored.
_AHEAD = 8


class OrderedPool:
    """A pool of threads whose results come in order; use it as a context.

    Leaving the context sets `stopped`, cancels what has not started and waits for the rest. Long work checks `stopped`
    between its steps.

    Args:
        workers: number of threads, at least 1.
        threads: torch threads of each operation on a worker; None leaves torch's settings alone.
        ahead: items in flight at once, done or not. By default two more than workers: no thread waits while the caller
            handles the oldest result.
        results_first: hand out the oldest result, if it is there, before the next item is taken; for items that take
            longer to come than to be worked on.
    """

    def __init__(
        self, workers: int, *, threads: int | None = None, ahead: int | None = None, results_first: bool = False
    ) -> None:
        if workers < 1:
            raise ValueError(f"{workers} workers, expected at least one")
        self.stopped = threading.Event()
        self.batches = workers
        self._ahead = workers + 2 if ahead is None else ahead
        self._results_first = results_first
        self._threads_before = None if threads is None else torch.get_num_threads()
        if threads is None:
            self._pool = ThreadPoolExecutor(workers)
        else:
            # The number of threads of an operation belongs to the Python thread that calls it.
            self._pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(threads,))

    def map_in_order(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[tuple[Item, Result]]:
        """Each item with its result, in the items' order.

        Items are taken on the caller's thread, at most `ahead` of them before the oldest result is handed out. An error
        in taking an item or in working on it is raised in its turn, after the results before it.
        """
        waiting: deque[tuple[Item, Future[Result]]] = deque()
        source = iter(items)
        failure: Exception | None = None
        more = True
        try:
            while True:
                while more and len(waiting) < self._ahead:
                    if self._results_first and waiting and waiting[0][1].done():
                        break
                    try:
                        item = next(source)
                    except StopIteration:
                        more = False
                    except Exception as error:
                        failure, more = error, False
                    else:
                        waiting.append((item, self._pool.submit(function, item)))
                if not waiting:
                    break
                first, future = waiting.popleft()
                yield first, future.result()
            if failure is not None:
                raise failure
        finally:
            if isinstance(source, Generator):
                source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)  # before anything under way can end and take the next
        self.stopped.set()
        self._pool.shutdown(wait=True)
        if self._threads_before is not None:
            torch.set_num_threads(self._threads_before)


def in_order(jobs: Iterable[Item], work: Callable[[Item], Result], *, workers: int) -> Iterator[Result]:
    """`map(work, jobs)` on `workers` threads, at most 8 jobs per worker in flight; closing the iterator stops them.

    Raises:
        ValueError: if `workers` is not above zero.
    """
    pool = OrderedPool(workers, ahead=_AHEAD * workers)
    return _results(pool, jobs, work)


def _results(pool: OrderedPool, jobs: Iterable[Item], work: Callable[[Item], Result]) -> Iterator[Result]:
    with pool:
        for _, result in pool.map_in_order(work, jobs):
            yield result
