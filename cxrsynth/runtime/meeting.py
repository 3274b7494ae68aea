"""Where the processes of one start find each other: names of their own in a store that outlives them.

torchrun's agent has one store for as long as it runs. Workers that it starts again under `--max-restarts` find what
the killed ones wrote there, connect to addresses where nobody listens any more, and fail; torch 2.14 does not keep
them apart (https://github.com/pytorch/pytorch/issues/135712). TORCHELASTIC_RESTART_COUNT cannot: each node counts the
failures of its own workers, so that after one on another node the counts differ. So the first process invents a name,
and takes in who answers to it; what earlier starts wrote is under other names.
"""

import json
import os
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Final
from uuid import uuid4

from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from cxrsynth.errors import LaunchError

_POLL_S: Final = 0.1
_CONNECT: Final = timedelta(minutes=5)  # the agent has its store before it starts workers
_NAME: Final = "name"


@dataclass(frozen=True)
class Meeting:
    """The processes of one start. `name` is empty where the launcher's store is new for each."""

    name: str = ""

    def store(self, timeout: timedelta) -> Store:
        """A connection of its own to what these processes have of the launcher's store.

        Raises:
            LaunchError: if it cannot be reached.
        """
        return PrefixStore(f"cxrsynth/{self.name}", _connect(timeout))


def meet(rank: int, count: int, *, timeout: timedelta) -> Meeting:
    """Return, with the same name in each, once all `count` processes have called this.

    Raises:
        LaunchError: if the launcher's store cannot be reached, or it ends, or a process does not come in time.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return Meeting()  # the first process makes the store, and it ends with that process
    store = PrefixStore("cxrsynth", _connect(timeout))
    try:
        return Meeting(_invite(store, count) if rank == 0 else _answer(store, rank, timeout))
    except RuntimeError:
        raise LaunchError(
            "environment: the processes of this run did not all meet in the store of MASTER_ADDR and MASTER_PORT\n"
            "  see what the others say, then run the same command again"
        ) from None


def _invite(store: Store, count: int) -> str:
    """The first process's side: take in one answer of each of the others."""
    name = uuid4().hex
    store.set(_NAME, name)
    store.set(f"{name}/all", json.dumps([store.get(f"{name}/{rank}").decode() for rank in range(1, count)]))
    return name


def _answer(store: Store, rank: int, timeout: timedelta) -> str:
    """Another process's side. A name that an earlier start left has the answers of others, or never gets them all."""
    own, answered = uuid4().hex, ""
    deadline = time.monotonic() + timeout.total_seconds()
    while time.monotonic() < deadline:
        name = store.get(_NAME).decode()
        if name != answered:
            store.set(f"{name}/{rank}", own)
            answered = name
        if store.check([f"{name}/all"]) and json.loads(store.get(f"{name}/all"))[rank - 1] == own:
            return name
        time.sleep(_POLL_S)
    raise RuntimeError("no answer")


def _connect(timeout: timedelta) -> Store:
    try:
        store = TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            timeout=min(timeout, _CONNECT),
            wait_for_workers=False,
        )
        store.set_timeout(timeout)
        return store
    except (RuntimeError, KeyError, ValueError):
        raise LaunchError(
            "environment: the store of MASTER_ADDR and MASTER_PORT cannot be reached\n"
            "  start with torchrun or accelerate launch"
        ) from None
