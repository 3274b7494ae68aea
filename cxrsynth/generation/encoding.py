"""Drawn images encoded as members of a shard: on the thread that writes, or in worker processes beside it."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import torch

from cxrsynth.errors import ShardError
from cxrsynth.generation.batches import Batch
from cxrsynth.generation.draw import Drawn
from cxrsynth.runtime.processes import read_launch
from cxrsynth.runtime.worker_processes import WorkerLost, WorkerProcesses
from cxrsynth.shards.encode import Encoder
from cxrsynth.shards.sample import Sample

# A card fast enough to keep more of them busy was not seen.
_MOST_WORKERS = 4


@dataclass(frozen=True)
class Encoded:
    """A batch that is ready to be written: its images, and of each the members, extension -> content.

    None instead of members where the image is left out of the shard.
    """

    batch: Batch
    images: list[Drawn]
    members: list[dict[str, bytes] | None]


class EncodingPool:
    """Encodes batches in their order; use it as a context. `workers` 0: on the caller's thread.

    The bytes do not depend on the number of workers. At most two batches more than there are workers wait or are
    encoded, beside those that are drawn.
    """

    def __init__(self, encoder: Encoder, *, workers: int, only_accepted: bool) -> None:
        self._encoder = encoder
        self._only_accepted = only_accepted
        self._processes = WorkerProcesses(workers)

    def encode(self, drawn: Iterator[tuple[Batch, list[Drawn]]]) -> Iterator[Encoded]:
        """Each batch with the members of its images.

        Raises:
            ShardError: if a worker process was killed.
        """
        try:
            for (batch, images), members in self._processes.map_in_order(self._encoder.encode, self._jobs(drawn)):
                of_written = iter(members)
                yield Encoded(batch, images, [next(of_written) if self._writes(image) else None for image in images])
        except WorkerLost as lost:
            raise ShardError(_lost(lost)) from None

    def _jobs(
        self, drawn: Iterator[tuple[Batch, list[Drawn]]]
    ) -> Iterator[tuple[tuple[Batch, list[Drawn]], list[Sample]]]:
        for batch, images in drawn:
            yield (batch, images), [image.sample for image in images if self._writes(image)]

    def _writes(self, image: Drawn) -> bool:
        return not self._only_accepted or image.outcome is None or image.outcome.accepted

    def __enter__(self) -> Self:
        try:
            self._processes.__enter__()
        except WorkerLost as lost:
            raise ShardError(_lost(lost)) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._processes.__exit__(kind, error, trace)


def default_workers(device: torch.device) -> int:
    """Worker processes where the user leaves it open.

    None where the cores draw. Beside a CUDA device, up to four of the cores that the processes of this machine have
    each, less one that draws and one that writes.
    """
    if device.type != "cuda":
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(0, min(_MOST_WORKERS, cores // read_launch().local_world_size - 2))


def _lost(lost: WorkerLost) -> str:
    return (
        f"--workers: a process that encodes images {lost}; the system ends processes so when memory is short\n"
        "  run the same command again to resume, with fewer --workers, or 0 to encode without such processes"
    )
