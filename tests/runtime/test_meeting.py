"""Processes of one start find each other in a store in which earlier starts have left everything they wrote."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from cxrsynth.errors import LaunchError
from cxrsynth.runtime import meeting
from cxrsynth.runtime.meeting import Meeting, meet
from cxrsynth.runtime.processes import ProcessGroup
from cxrsynth.runtime.together import Lookout
from tests.processes import free_port, process_group

COUNT = 3
SOON = timedelta(seconds=20)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[PrefixStore]:
    """The store of an agent."""
    with process_group(COUNT) as (environment, *_):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        port = int(environment["MASTER_PORT"])
        yield PrefixStore("cxrsynth", TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False))


def meet_all(*, order: tuple[int, ...] = (0, 1, 2)) -> set[str]:
    """The names that the processes of a start agree on, each a thread here; they come in this order."""
    with ThreadPoolExecutor(COUNT) as pool:
        coming = []
        for rank in order:
            coming.append(pool.submit(meet, rank, COUNT, timeout=SOON))
            time.sleep(0.15)
        return {one.result().name for one in coming}


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_every_start_has_a_name_of_its_own(order: tuple[int, ...], store: PrefixStore) -> None:
    names = [meet_all(order=order) for _ in range(3)]
    assert all(len(one) == 1 for one in names)
    assert len(set.union(*names)) == 3


def test_a_start_whose_workers_were_killed_while_they_met_is_passed_over(store: PrefixStore) -> None:
    store.set("name", "early")
    store.set("early/1", "a worker that was killed")
    assert meet_all(order=(1, 2, 0)) != {"early"}


def test_a_start_that_had_just_met_is_passed_over(store: PrefixStore) -> None:
    store.set("name", "late")
    store.set("late/all", json.dumps(["killed", "killed, too"]))
    assert meet_all(order=(2, 0, 1)) != {"late"}


@pytest.mark.slow
def test_a_failure_of_an_earlier_start_does_not_end_this_one(store: PrefixStore) -> None:
    """The count of restarts is the same on a node none of whose workers has failed."""
    seen = []
    for failing in (True, False):
        (name,) = meet_all()
        lookouts = [Lookout(rank, Meeting(name), wait=SOON) for rank in range(2)]
        if failing:
            lookouts[0].report()
        time.sleep(1.2)
        seen.append(lookouts[1]._seen.is_set())
        for lookout in lookouts:
            lookout.close()
    assert seen == [True, False]


def test_without_an_agent_the_store_is_new_anyway(store: PrefixStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "False")
    assert meet(1, COUNT, timeout=SOON) == Meeting()


@pytest.mark.parametrize("rank", [0, 1])
def test_one_that_does_not_come_is_waited_for_only_so_long(rank: int, store: PrefixStore) -> None:
    with pytest.raises(LaunchError, match="did not all meet"):
        meet(rank, COUNT, timeout=timedelta(seconds=1))


def test_where_workers_may_be_started_again_all_end_after_the_first(
    store: PrefixStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "1")
    (name,) = meet_all()

    def end(rank: int) -> float:
        with ProcessGroup(rank, rank, 2, meeting=Meeting(name)).ending_with_main():
            time.sleep(0.5 if rank == 0 else 0)
            done = time.monotonic()
        return done if rank == 0 else time.monotonic()

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(end, range(2))
    assert second >= first


def test_a_store_that_nobody_serves_is_not_waited_for_as_long_as_processes_are(
    store: PrefixStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meeting, "_CONNECT", timedelta(seconds=1))
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    begun = time.monotonic()
    with pytest.raises(LaunchError, match="cannot be reached"):
        meet(1, COUNT, timeout=timedelta(seconds=60))
    assert time.monotonic() - begun < 30
