"""Work side by side on threads, its results in the order of the work."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self, TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


class OrderedPool:
    """Threads that work on batches, each with `threads` of torch's own for every operation; use as a context.

    `stopped` is set when the context is left: long work under way looks at it between its steps.
    """

    def __init__(self, workers: int, *, threads: int) -> None:
        self.stopped = threading.Event()
        self.batches = workers
        self._threads_before = torch.get_num_threads()
        # The number of threads of an operation belongs to the Python thread that calls it.
        self._pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(threads,))

    def map_in_order(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[tuple[Item, Result]]:
        """Each item with its result, in the items' order; reads ahead only as far as keeps the threads busy."""
        waiting: deque[tuple[Item, Future[Result]]] = deque()
        source, failure = iter(items), None
        while True:
            try:
                item = next(source)
            except StopIteration:
                break
            except Exception as error:
                failure = error  # raised in its turn: what was read before it is owed first
                break
            waiting.append((item, self._pool.submit(function, item)))
            # One batch more than threads: nobody waits while the caller writes the oldest one.
            if len(waiting) > self.batches + 1:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
        if failure is not None:
            raise failure

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopped.set()
        self._pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(self._threads_before)
