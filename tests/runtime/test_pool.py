"""Threads that work ahead: in order, bounded, and gone when no longer wanted."""

import threading
import time
from collections.abc import Iterator

import pytest
import torch

from cxrsynth.runtime.pool import OrderedPool, in_order


def counted(taken: list[int], count: int = 1000) -> Iterator[int]:
    for number in range(count):
        taken.append(number)
        yield number


def test_results_come_in_order_whichever_is_first() -> None:
    def slow_first(number: int) -> int:
        time.sleep(0.01 if number % 4 == 0 else 0)
        return number * number

    assert list(in_order(range(50), slow_first, workers=3)) == [number * number for number in range(50)]
    with OrderedPool(3) as pool:
        assert list(pool.map_in_order(slow_first, range(50))) == [(number, number * number) for number in range(50)]


def test_look_ahead_is_bounded() -> None:
    taken: list[int] = []
    results = in_order(counted(taken), lambda number: number, workers=2)
    for number in range(100):
        assert next(results) == number
        assert len(taken) == number + 16  # 8 a worker, the one handed out among them
    with OrderedPool(3) as pool:
        taken.clear()
        for number, _ in pool.map_in_order(lambda number: number, counted(taken, 100)):
            assert len(taken) == min(number + 5, 100)


def test_work_goes_on_while_the_caller_is_busy() -> None:
    started = [threading.Event() for _ in range(8)]
    results = in_order(range(8), lambda number: started[number].set(), workers=1)
    next(results)
    assert all(event.wait(timeout=60) for event in started)


def test_closing_stops_the_threads() -> None:
    before = threading.active_count()
    closed = threading.Event()
    done: list[int] = []

    def jobs() -> Iterator[int]:
        try:
            yield from range(10_000)
        finally:
            closed.set()

    results = in_order(jobs(), done.append, workers=2)
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert closed.is_set()
    assert threading.active_count() == before
    assert len(done) <= 16


def test_leaving_the_context_cancels_what_has_not_begun() -> None:
    begun: list[int] = []
    with OrderedPool(2, ahead=10) as pool:

        def until_stopped(number: int) -> None:
            begun.append(number)
            if number > 0:
                assert pool.stopped.wait(timeout=60)

        next(pool.map_in_order(until_stopped, range(10)))
    assert sorted(begun) == list(range(len(begun)))
    assert len(begun) <= 3  # the first, and one on each thread


def test_an_error_comes_in_its_turn() -> None:
    def jobs() -> Iterator[int]:
        yield 1
        raise KeyError("taking")

    results = in_order(jobs(), lambda number: number, workers=1)
    assert next(results) == 1
    with pytest.raises(KeyError, match="taking"):
        next(results)
    quotients = in_order([1, 2, 0, 4], lambda number: 4 / number, workers=2)
    assert [next(quotients), next(quotients)] == [4, 2]
    with pytest.raises(ZeroDivisionError):
        next(quotients)
    with pytest.raises(ValueError, match="0 workers"):
        in_order([1], lambda number: number, workers=0)


@pytest.mark.parametrize("threads", [None, 1])
def test_torchs_threads_are_as_before(threads: int | None) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with OrderedPool(1, threads=threads) as pool:
            ((_, inside),) = pool.map_in_order(lambda _: torch.get_num_threads(), [0])
        assert torch.get_num_threads() == 2
        assert threads is None or inside == threads
    finally:
        torch.set_num_threads(before)
