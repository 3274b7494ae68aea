"""Batches side by side: on a CPU each batch has cores of its own, and results come back in order.

Splitting every operation of a small network over the cores costs more than it gains, and its rounding depends on how
many cores there are. A batch per core is faster, and its bytes are the same on a laptop and on a server.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import psutil
import torch

from cxrsynth.diffusion.model import DiffusionModel

Item = TypeVar("Item")
Result = TypeVar("Result")

# Activations alive at once, in units of one feature map of the first level: a generous guess from the architecture,
# not measured.
_LIVE_MAPS_DECODER = 8
_LIVE_MAPS_UNET = 80
_CGROUP = Path("/sys/fs/cgroup")


class SamplingPool:
    """Threads that sample batches; use as a context.

    `stopped` is set when the context is left: a batch under way looks at it between denoising steps.
    """

    def __init__(self, model: DiffusionModel, *, batch_size: int, threads_per_batch: int) -> None:
        self.stopped = threading.Event()
        self.batches = batches_at_once(model, batch_size=batch_size, threads_per_batch=threads_per_batch)
        self._threads_before = torch.get_num_threads()
        threads = threads_per_batch if model.device.type == "cpu" else self._threads_before
        # The number of threads of an operation belongs to the Python thread that calls it.
        self._pool = ThreadPoolExecutor(self.batches, initializer=torch.set_num_threads, initargs=(threads,))

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

    def __enter__(self) -> "SamplingPool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopped.set()
        self._pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(self._threads_before)


def batches_at_once(model: DiffusionModel, *, batch_size: int, threads_per_batch: int) -> int:
    """1 on an accelerator; on a CPU as many as cores and memory allow.

    The cores are those torch would use itself (`OMP_NUM_THREADS`, or what the launcher left to this process); the
    memory is shared with the other processes the launcher started here.
    """
    if model.device.type != "cpu":
        return 1
    cores = torch.get_num_threads() // threads_per_batch
    share = available_bytes() / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(cores, int(share * 0.8 / batch_bytes(model, batch_size))))


def available_bytes() -> int:
    """Memory that can still be taken: the machine's, or what a container's limit leaves (cgroup v2)."""
    available = int(psutil.virtual_memory().available)
    try:
        limit, used = ((_CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        return min(available, int(limit) - int(used))
    except (OSError, ValueError):
        return available  # no such file system, or "max": no limit


def batch_bytes(model: DiffusionModel, batch_size: int) -> int:
    """Rough memory of one batch under way, in bytes, weights not counted."""
    _, height, width = model.latent_shape
    decoder = batch_size * model.image_size**2 * model.vae.config.block_out_channels[0] * _LIVE_MAPS_DECODER
    unet = 2 * batch_size * height * width * model.unet.config.block_out_channels[0] * _LIVE_MAPS_UNET
    return int(max(decoder, unet) * model.dtype.itemsize)
