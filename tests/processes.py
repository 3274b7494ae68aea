"""`python -m MODULE` in processes of their own that spare the seconds of imports: forked off one that has them done."""

import multiprocessing
import os
import re
import runpy
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil
import pytest
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from tests import warm_worker

TIMEOUT_S = 120
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["cxrsynth.auditing.audit", "cxrsynth.generation.generate", "cxrsynth.rewards.transformers_dual"]
)


class Warm:
    """A running `python -m module arguments`, on one core, its streams in a file; Python does not clear up."""

    def __init__(self, module: str, *arguments: object, log: Path, environment: dict[str, str] | None = None) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("OMP_NUM_THREADS", "1")  # read when torch is imported, which the server does once
            forkserver.ensure_running()
        self.log = log
        told = os.environ | (environment or {})
        process = _CONTEXT.Process(target=_run, args=(module, list(map(str, arguments)), dict(told), log))
        process.start()
        self._process: BaseProcess = process

    @property
    def pid(self) -> int:
        """The process's number."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """None while it runs, minus the signal that ended it."""
        return self._process.exitcode

    def printed(self) -> str:
        """Both streams so far."""
        return self.log.read_text() if self.log.exists() else ""

    def wait(self, limit_s: float = TIMEOUT_S) -> int:
        """The exit code, once it has ended; ends it after two minutes, or `limit_s`."""
        self._process.join(limit_s)
        if self._process.exitcode is None:
            self._process.terminate()  # not killed: a launcher ends its workers when asked to end
            self._process.join()
        code = self._process.exitcode
        assert code is not None
        return code

    def kill_when(self, seen: Callable[[], bool], *, after: float = 0.0) -> None:
        """SIGKILL as soon as something is seen, or so many seconds later; fails if the process ends before."""
        self.wait_until(seen)
        time.sleep(after)
        self._process.kill()
        self._process.join()

    def kill_soon(self, seen: Callable[[], bool], after: float) -> bool:
        """SIGKILL so many seconds after something is seen; False if the process has ended before."""
        while self._process.is_alive() and not seen():
            time.sleep(0.0005)
        self._process.join(after)
        self._process.kill()
        self._process.join()
        return self.returncode == -signal.SIGKILL

    def interrupt_when(self, seen: Callable[[], bool]) -> None:
        """SIGINT, as Ctrl-C sends it, as soon as something is seen; fails if the process ends before."""
        self.wait_until(seen)
        assert self._process.pid is not None
        os.kill(self._process.pid, signal.SIGINT)

    def wait_until(self, seen: Callable[[], bool]) -> None:
        """Return as soon as something is seen; fails if the process ends before."""
        deadline = time.monotonic() + TIMEOUT_S
        while not seen():
            assert self._process.is_alive(), self.printed()
            assert time.monotonic() < deadline, self.printed()
            time.sleep(0.0005)


@contextmanager
def process_group(count: int) -> Iterator[list[dict[str, str]]]:
    """Environments of `count` processes on CPUs that form a group, as a launcher sets them.

    Their store lives here and is bound to port 0: a port that is chosen first and bound later may be taken in between.
    """
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shared = {
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "ACCELERATE_USE_CPU": "true",
    }
    yield [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
    del store


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def torchrun(*options: object, command: Sequence[object], log: Path, imports: bool = False) -> Warm:
    """`torchrun options -m cxrsynth command`.

    Args:
        options: of torchrun.
        command: of cxrsynth.
        log: for what all of them print.
        imports: workers are new processes, as `torchrun` starts them, and import everything, which takes seconds.
            Otherwise they are forked off the agent, which has its imports done; all else is torchrun's own.
    """
    environment = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    warm = ("--run-path", "--start-method", "fork", Path(warm_worker.__file__).resolve(), log)
    started = ("-m", "cxrsynth") if imports else warm
    return Warm("torch.distributed.run", *options, *started, *command, log=log, environment=environment)


def without_agents(printed: str) -> str:
    """What workers have printed: an agent logs how each that it forked has ended with a traceback of its own."""
    lines = [line for line in printed.splitlines() if not re.match(r"[EWI]\d{4} .* torch/distributed/", line)]
    return "\n".join(lines)


class Workers:
    """The `count` workers of some agents of `torchrun`, without imports of their own, to be killed again and again."""

    def __init__(self, agents: Sequence[Warm], count: int) -> None:
        self._agents, self._count = agents, count
        self._running: dict[int, psutil.Process] = {}  # by rank
        self._gone: set[int] = set()

    def kill_when(self, rank: int, seen: Callable[[], bool] = lambda: True) -> None:
        """SIGKILL one as soon as something is seen and all run, none of whom ran at the kill before this one."""
        self._agents[0].wait_until(self._all_run_anew)
        self._agents[0].wait_until(seen)
        self._gone |= {worker.pid for worker in self._running.values()}  # the others are ended by their agents
        self._running[rank].kill()

    def _all_run_anew(self) -> bool:
        self._running = {}
        for agent in self._agents:
            assert agent.returncode is None, agent.printed()
            for rank in range(self._count):
                path = warm_worker.pid_file(agent.log, rank)
                with suppress(OSError, ValueError, psutil.NoSuchProcess):  # not yet written, or ended
                    worker = psutil.Process(int(path.read_text()))
                    if worker.ppid() == agent.pid and worker.pid not in self._gone:
                        self._running[rank] = worker
        return len(self._running) == self._count


def _run(module: str, arguments: list[str], environment: dict[str, str], log: Path) -> None:
    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the server ignores it
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
