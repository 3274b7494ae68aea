"""How work is shared: rank and world size as `accelerate launch` or `torchrun` set them."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

# A process with little to do waits for the slowest: the usual 10 or 30 minutes would end a good run.
PATIENCE = timedelta(days=30)


@dataclass(frozen=True)
class Processes:
    """One of `count` processes. `state` is accelerate's PartialState when there are several."""

    rank: int = 0
    local_rank: int = 0
    count: int = 1
    state: Any = None

    @property
    def is_main(self) -> bool:
        """Whether this process writes what there is once."""
        return self.rank == 0

    def wait(self) -> None:
        """Return when all processes have come here."""
        if self.state is not None:
            self.state.wait_for_everyone()

    def close(self) -> None:
        """Leave the process group."""
        if self.state is not None:
            self.state.destroy_process_group()


def announced(name: str, default: int) -> int:
    """A number the launcher tells by an environment variable; `default` where it tells none."""
    told = os.environ.get(name, "")
    return int(told) if told.strip().isdecimal() else default


def join_processes(*, cpu: bool) -> Processes:
    """Join the process group the launcher announced; a single process needs none."""
    count = announced("WORLD_SIZE", 1)
    if count == 1:
        return Processes()
    from accelerate import PartialState

    state = PartialState(cpu=cpu, timeout=PATIENCE)
    return Processes(state.process_index, state.local_process_index, state.num_processes, state)


_Row = TypeVar("_Row")


@dataclass(frozen=True)
class ProcessGroup:
    """This process among `count`. `gather` joins lists of (place, anything) of all processes."""

    rank: int
    count: int
    gather: Callable[[list[Any]], list[Any]]

    def share(self, batches: Sequence[_Row]) -> Sequence[_Row]:
        """This process's batches."""
        return batches[self.rank :: self.count]
