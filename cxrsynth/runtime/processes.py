"""Work shared between processes, as `torchrun` and `accelerate launch` start them."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, TypeVar

from cxrsynth.errors import LaunchError, in_words

# `generate` and `audit` meet only when all their work is done: a process with little of it waits for the slowest one.
PATIENCE: Final = timedelta(days=30)

if TYPE_CHECKING:
    from torch import Tensor

    from cxrsynth.runtime.meeting import Meeting
    from cxrsynth.runtime.together import Lookout

_VARIABLES: Final = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
# Those of MPI's launchers: accelerate reads them, we do not. With these alone, every process would be a run by itself.
_MPI_SIZES: Final = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_MPI: Final = (
    *_MPI_SIZES,
    *("PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK"),
    *("MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK"),
    *("MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE", "MV2_COMM_WORLD_LOCAL_SIZE"),
)
# Where the processes of a run find each other.
_MEETING: Final = ("MASTER_ADDR", "MASTER_PORT")
_MOST_PORT: Final = 65535
_DONE: Final = "done"
_POLL_S: Final = 0.2

# With these, accelerate would spread the weights over processes, which `tune` does not expect.
_SHARDED: Final = (
    *("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP", "ACCELERATE_USE_MEGATRON_LM"),
    "ACCELERATE_USE_PARALLELISM_CONFIG",
)

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Launch:
    """What the launcher's environment variables say of this process; started without one, it is the only process."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1


def read_launch() -> Launch:
    """Read RANK, LOCAL_RANK, WORLD_SIZE and LOCAL_WORLD_SIZE; nothing else in cxrsynth reads them.

    An empty variable counts as unset, and is removed from the environment: accelerate takes it for a number.

    Raises:
        LaunchError: if one is not a number, they contradict each other, several processes do not know where to meet, or
            MPI started several.
    """
    names = (*_VARIABLES, *_MPI, *_MEETING)
    found = {name: value.strip() for name in names if (value := os.environ.get(name)) is not None}
    for name in [name for name, value in found.items() if not value]:
        del os.environ[name], found[name]
    for name, value in found.items():
        if name != "MASTER_ADDR" and not (value.isascii() and value.isdecimal()):
            raise _refused(f"{name}={value!r}", "a whole number, 0 or above")
    number = {name: int(value) for name, value in found.items() if name != "MASTER_ADDR"}
    for name in _MPI_SIZES:
        if number.get(name, 1) > 1 and "WORLD_SIZE" not in number:
            raise _refused(f"{name}={number[name]}, of an MPI launcher, without WORLD_SIZE", "torch's variables")
    world_size, rank = number.get("WORLD_SIZE", 1), number.get("RANK", 0)
    if world_size < 1:
        raise _refused("WORLD_SIZE=0", "at least 1 process")
    if world_size > 1 and "RANK" not in number:
        raise _refused(f"WORLD_SIZE={world_size} without RANK", "both")
    if rank >= world_size:
        raise _refused(f"RANK={rank}", f"a rank below WORLD_SIZE, which is {world_size}")
    local_world_size, local_rank = number.get("LOCAL_WORLD_SIZE", 1), number.get("LOCAL_RANK", 0)
    if not 1 <= local_world_size <= world_size:
        raise _refused(f"LOCAL_WORLD_SIZE={local_world_size}", f"1 to WORLD_SIZE, which is {world_size}")
    limit = "LOCAL_WORLD_SIZE" if "LOCAL_WORLD_SIZE" in number else "WORLD_SIZE"
    if local_rank >= number.get(limit, 1):
        raise _refused(f"LOCAL_RANK={local_rank}", f"a rank below {limit}, which is {number.get(limit, 1)}")
    if world_size > 1 and (missing := [name for name in _MEETING if name not in found]):
        raise _refused(f"WORLD_SIZE={world_size} without {' and '.join(missing)}", "where the processes meet")
    if world_size > 1 and not 1 <= number["MASTER_PORT"] <= _MOST_PORT:
        raise _refused(f"MASTER_PORT={number['MASTER_PORT']}", f"a port, 1 to {_MOST_PORT}")
    return Launch(rank, local_rank, world_size, local_world_size)


def refuse_sharding() -> None:
    """Refuse a launch that spreads the weights over processes: every process of `tune` holds the whole model.

    Raises:
        LaunchError: if the environment asks for it.
    """
    found = [
        name for name in _SHARDED if os.environ.get(name, "").strip().lower() in ("1", "true", "yes", "on", "y", "t")
    ]
    if found:
        raise LaunchError(
            f"environment: {', '.join(f'{name}={os.environ[name]}' for name in found)}\n"
            "  expected: every process holds the whole model; DeepSpeed, FSDP and the like are not supported\n"
            "  start with torchrun or accelerate launch --multi_gpu, or unset them"
        )


def _refused(found: str, expected: str) -> LaunchError:
    unset = ", ".join(name for name in (*_VARIABLES, *_MPI) if name in os.environ)
    return LaunchError(
        f"environment: {found}\n  expected: {expected}\n"
        f"  start with torchrun or accelerate launch, or unset {unset} to run one process"
    )


@dataclass(frozen=True)
class ProcessGroup:
    """This process among `count`. `state` is accelerate's PartialState if there are several, and `meeting` theirs.

    Where all processes meet, each method raises LaunchError if another one is gone. `lookout` sees that at once, and
    also whether another one has failed.
    """

    rank: int = 0
    local_rank: int = 0
    count: int = 1
    state: Any = None
    meeting: "Meeting | None" = None
    lookout: "Lookout | None" = None

    @property
    def is_main(self) -> bool:
        """Whether this process writes what is written only once."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """This process's share: every `count`-th item."""
        return items[self.rank :: self.count]

    def gather(self, rows: list[Any]) -> list[Any]:
        """The lists of all processes joined into one, in every process."""
        if self.count == 1:
            return rows
        from accelerate.utils import gather_object

        joined: list[Any] = self._meet(lambda: gather_object(rows))
        return joined

    def add_up(self, tensor: "Tensor") -> "Tensor":
        """Sum over processes, on the device of the tensor given."""
        if self.count == 1:
            return tensor
        from accelerate.utils import reduce

        return self._meet(lambda: reduce(tensor.to(self.state.device), reduction="sum").to(tensor.device))  # type: ignore[no-any-return]

    def of_first(self, tensor: "Tensor") -> "Tensor":
        """The first process's tensor, in all of them."""
        if self.count == 1:
            return tensor
        from accelerate.utils import broadcast

        return self._meet(lambda: broadcast(tensor.to(self.state.device)).to(tensor.device))  # type: ignore[no-any-return]

    def wait(self) -> None:
        """Return when all processes have come here."""
        if self.state is not None:
            self._meet(self.state.wait_for_everyone)

    @contextmanager
    def ending_with_main(self) -> Iterator[None]:
        """Where workers may be started again, none ends this context before the main process does.

        torchrun starts the main worker again only together with those of all other nodes. A node whose workers have all
        ended well is no longer there for that.

        Raises:
            LaunchError: if the main process has failed, and its node with it.
        """
        yield
        restarts = os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")
        if self.count == 1 or self.meeting is None or not self.meeting.name or restarts == "0":
            return
        store = self.meeting.store(PATIENCE)
        try:
            if self.is_main:
                store.set(_DONE, "")
            while not store.check([_DONE]):  # not a collective operation, in which no signal is heard
                time.sleep(_POLL_S)
        except RuntimeError:
            raise LaunchError(
                "the first process has ended before all was written, and its message says why\n"
                "  mend that, then run the same command again"
            ) from None

    def _meet(self, operation: Callable[[], Result]) -> Result:
        if self.lookout is not None:
            return self.lookout.collective(operation)
        from cxrsynth.runtime.together import of_network

        try:
            return operation()
        except RuntimeError as error:
            if not of_network(error):
                raise
            raise LaunchError(
                "another process has ended before the work of all was done: this one ends, too\n"
                "  its message says why, unless it was killed; then run the same command again to continue"
            ) from None


def join_processes(*, cpu: bool, timeout: timedelta = PATIENCE) -> ProcessGroup:
    """Join the process group that the launcher set up; a single process needs none.

    Args:
        cpu: whether to use no accelerator.
        timeout: how long operations wait for other processes.

    Raises:
        LaunchError: if the launcher's variables make no sense, or the other processes cannot be reached.
    """
    launch = read_launch()
    if launch.world_size == 1:
        return ProcessGroup()
    from accelerate import PartialState

    from cxrsynth.runtime.meeting import meet
    from cxrsynth.runtime.together import of_network

    meeting = meet(launch.rank, launch.world_size, timeout=timeout)
    own: dict[str, Any] = {}
    if meeting.name:
        own = {"store": meeting.store(timeout), "rank": launch.rank, "world_size": launch.world_size}
    try:
        state = PartialState(cpu=cpu, timeout=timeout, **own)
    except RuntimeError as error:
        if not of_network(error):
            raise
        raise LaunchError(
            f"environment: MASTER_ADDR={os.environ['MASTER_ADDR']}, MASTER_PORT={os.environ['MASTER_PORT']}:"
            f" the processes of this run cannot meet there ({in_words(error)})\n"
            "  expected: the machine of the first process, and a free port of it that the others can reach"
        ) from None
    return ProcessGroup(state.process_index, state.local_process_index, state.num_processes, state, meeting)
