"""Work done by threads ahead of the one who takes the results, in order and within bounds."""

import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Full, Queue
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")

# Films in flight for each worker: enough to fill a batch while the last one is scored.
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
    pool = ThreadPoolExecutor(workers, thread_name_prefix="films")
    feeder = threading.Thread(target=_feed, args=(jobs, work, pool, window, stopped), name="films-feed", daemon=True)
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
