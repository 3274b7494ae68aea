"""Work side by side on threads, its results in the order of the work."""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Full, Queue
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


Job = TypeVar("Job")


# Images in flight for each worker: enough to fill a batch while the last one is scored.
_AHEAD = 8


_PATIENCE_S = 0.05


def in_order(jobs: Iterable[Job], work: Callable[[Job], Result], *, workers: int) -> Iterator[Result]:
    """`map(work, jobs)` in order, by `workers` threads; one more thread takes the jobs.

    At most 8 jobs a worker are in flight, done or not. What a job or the taking of one raises is raised here, at its
    place. Closing the iterator stops the threads.

    Raises:
        ValueError: if `workers` is not above zero.
    """
    if workers < 1:
        raise ValueError(f"{workers} workers, expected at least one")
    return _results(jobs, work, workers)


def _results(jobs: Iterable[Job], work: Callable[[Job], Result], workers: int) -> Generator[Result, None, None]:
    window: Queue[Future[Result] | None] = Queue(maxsize=_AHEAD * workers)
    stopped = threading.Event()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="images")
    feeder = threading.Thread(target=_feed, args=(jobs, work, pool, window, stopped), name="images-feed", daemon=True)
    feeder.start()
    try:
        while (future := window.get()) is not None:
            yield future.result()
    finally:
        stopped.set()
        feeder.join()
        pool.shutdown(cancel_futures=True)


def _feed(
    jobs: Iterable[Job],
    work: Callable[[Job], Result],
    pool: ThreadPoolExecutor,
    window: "Queue[Future[Result] | None]",
    stopped: threading.Event,
) -> None:
    iterator = iter(jobs)
    try:
        for job in iterator:
            if not _put(window, pool.submit(work, job), stopped):
                break
    except BaseException as error:  # not dropped: it is raised where the results are taken
        failed: Future[Result] = Future()
        failed.set_exception(error)
        _put(window, failed, stopped)
    finally:
        if isinstance(iterator, Generator):
            iterator.close()
    _put(window, None, stopped)


def _put(window: "Queue[Future[Result] | None]", item: Future[Result] | None, stopped: threading.Event) -> bool:
    """Wait for room; False where the results are no longer wanted."""
    while not stopped.is_set():
        try:
            window.put(item, timeout=_PATIENCE_S)
        except Full:
            continue
        return True
    return False
