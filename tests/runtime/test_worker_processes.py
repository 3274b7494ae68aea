"""Processes at the end of a pipe: order, bounds, errors, and how they end."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import psutil
import pytest

from cxrsynth.runtime.worker_processes import WorkerLost, WorkerProcesses
from tests.runtime import work


@pytest.fixture(scope="module")
def two() -> Iterator[WorkerProcesses]:
    with WorkerProcesses(2) as workers:
        yield workers


@pytest.mark.parametrize("count", [0, 2])
def test_results_come_in_order_with_their_items(count: int, two: WorkerProcesses) -> None:
    workers = two if count else WorkerProcesses(0)
    found = list(workers.map_in_order(work.slow_square, [(str(n), n) for n in range(6)]))
    assert found == [(str(n), n**2) for n in range(6)]


def test_jobs_run_elsewhere_and_without_torch(two: WorkerProcesses) -> None:
    found = {pid for _, pid in two.map_in_order(work.own_pid, [(None, None)] * 4)}
    assert os.getpid() not in found
    assert not any(has for _, has in two.map_in_order(work.has_torch, [(None, None)] * 4))


def test_at_most_two_jobs_more_than_workers_are_taken(two: WorkerProcesses) -> None:
    taken = []

    def jobs() -> Iterator[tuple[int, int]]:
        for number in range(12):
            taken.append(number)
            yield number, number

    for item, _ in two.map_in_order(work.slow_square, jobs()):
        assert len(taken) <= item + 4
    assert len(taken) == 12


def test_a_result_does_not_wait_for_an_item_that_is_late(two: WorkerProcesses) -> None:
    go_on, seen = threading.Event(), []

    def jobs() -> Iterator[tuple[int, int]]:
        yield 0, 0
        time.sleep(1)  # the result of the first is there
        yield 1, 1
        assert go_on.wait(30), "the first result was not handed out before the third item was taken"
        yield 2, 2

    for item, _ in two.map_in_order(work.inverse_or_zero, jobs()):
        seen.append(item)
        go_on.set()
    assert seen == [0, 1, 2]


def test_an_error_comes_in_its_turn_and_says_where(two: WorkerProcesses) -> None:
    results = two.map_in_order(work.inverse, [(n, n) for n in (2, 1, 0, 4)])
    assert [next(results), next(results)] == [(2, 0.5), (1, 1.0)]
    with pytest.raises(ZeroDivisionError) as failed:
        next(results)
    assert "in inverse" in failed.value.__notes__[0]
    assert list(two.map_in_order(work.inverse, [(4, 4)])) == [(4, 0.25)]  # the workers live on


def test_what_a_job_prints_is_no_answer(two: WorkerProcesses) -> None:
    assert list(two.map_in_order(work.printed, [(1, "a"), (2, "b")])) == [(1, "a"), (2, "b")]


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_signals_to_everyone_do_not_reach_workers(name: str, two: WorkerProcesses) -> None:
    assert next(two.map_in_order(work.ignored, [(None, name)])) == (None, True)
    pid = next(two.map_in_order(work.own_pid, [(None, None)]))[1]
    assert os.getpgid(pid) != os.getpgid(0)


def test_a_killed_worker_is_reported() -> None:
    with WorkerProcesses(1) as workers, pytest.raises(WorkerLost, match="ended by SIGKILL"):
        list(workers.map_in_order(work.die, [(None, signal.SIGKILL)]))


def test_workers_end_with_the_context() -> None:
    with WorkerProcesses(2) as workers:
        pids = {pid for _, pid in workers.map_in_order(work.own_pid, [(None, None)] * 8)}
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_workers_end_with_a_process_that_was_killed() -> None:
    code = (
        f"import sys; sys.path[:] = {sys.path!r}\n"
        "from cxrsynth.runtime.worker_processes import WorkerProcesses\n"
        "from tests.runtime import work\n"
        "with WorkerProcesses(1) as workers:\n"
        "    for _, pid in workers.map_in_order(work.own_pid, [(None, None)]):\n"
        "        print(pid, flush=True)\n"
        "        sys.stdin.read()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    assert psutil.pid_exists(pid)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 30
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the worker outlived its parent"
        time.sleep(0.01)
