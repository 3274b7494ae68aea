"""Threads that work ahead: in order, bounded, and gone when no longer wanted."""

import threading
import time
from collections.abc import Iterator

import pytest

from cxrsynth.runtime.pool import in_order


def test_results_come_in_order_whoever_is_first() -> None:
    def slow_first(number: int) -> int:
        time.sleep(0.01 if number % 4 == 0 else 0)
        return number * number

    assert list(in_order(range(50), slow_first, workers=3)) == [number * number for number in range(50)]


def test_no_more_than_eight_a_worker_are_taken_ahead() -> None:
    taken = []

    def jobs() -> Iterator[int]:
        for number in range(1000):
            taken.append(number)
            yield number

    results = in_order(jobs(), lambda number: number, workers=2)
    assert next(results) == 0
    time.sleep(0.3)
    # 16 in the window, one in hand, and one that waits for room.
    assert 10 < len(taken) <= 18
    results.close()  # type: ignore[attr-defined]


def test_closing_stops_the_threads() -> None:
    before = threading.active_count()
    closed = threading.Event()

    def jobs() -> Iterator[int]:
        try:
            yield from range(10_000)
        finally:
            closed.set()

    results = in_order(jobs(), lambda number: number, workers=2)
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert closed.is_set()
    assert threading.active_count() == before


def test_an_error_comes_at_its_place() -> None:
    def jobs() -> Iterator[int]:
        yield 1
        raise KeyError("taking")

    results = in_order(jobs(), lambda number: number, workers=1)
    assert next(results) == 1
    with pytest.raises(KeyError, match="taking"):
        next(results)
    with pytest.raises(ZeroDivisionError):
        list(in_order([1, 0], lambda number: 1 / number, workers=2))
    with pytest.raises(ValueError, match="0 workers"):
        in_order([1], lambda number: number, workers=0)
