"""Batches side by side: on a CPU each batch has its own cores, and results come back in order.

Splitting every operation of a small network over all cores costs more than it gains, and its rounding depends on the
number of cores. One batch per core is faster, and gives the same bytes on a laptop and on a server.
"""

from pathlib import Path

import psutil
import torch

from cxrsynth.diffusion.families.base import decoder_width
from cxrsynth.diffusion.model import DiffusionModel
from cxrsynth.runtime.pool import OrderedPool
from cxrsynth.runtime.processes import read_launch

# Activations in memory at once, in feature maps of the decoder's last level: a generous estimate from the architecture,
# not measured.
_LIVE_MAPS_DECODER = 8
_CGROUP = Path("/sys/fs/cgroup")


class SamplingPool(OrderedPool):
    """Threads that sample batches of a model: as many as cores and memory allow.

    `stopped` is checked between denoising steps.
    """

    def __init__(self, model: DiffusionModel, *, batch_size: int, threads_per_batch: int) -> None:
        batches = batches_at_once(model, batch_size=batch_size, threads_per_batch=threads_per_batch)
        on_cpu = model.device.type == "cpu"
        super().__init__(batches, threads=threads_per_batch if on_cpu else torch.get_num_threads())


def batches_at_once(model: DiffusionModel, *, batch_size: int, threads_per_batch: int) -> int:
    """1 on an accelerator; on a CPU as many as cores and memory allow.

    The cores are those torch would use by itself (`OMP_NUM_THREADS`, or what the launcher leaves this process). The
    memory is shared with the other processes that the launcher started on this machine.
    """
    if model.device.type != "cpu":
        return 1
    cores = torch.get_num_threads() // threads_per_batch
    share = available_bytes() / read_launch().local_world_size
    return max(1, min(cores, int(share * 0.8 / batch_bytes(model, batch_size))))


def available_bytes() -> int:
    """Free memory in bytes: the machine's, or what the limit of a container leaves (cgroup v2).

    Files that were read, as weights and shards are, stay in memory until it is needed, and count as used there.
    """
    available = int(psutil.virtual_memory().available)
    try:
        limit, used = ((_CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        return min(available, int(limit) - int(used) + _reclaimable())
    except (OSError, ValueError):
        return available  # no such file system, or "max": no limit


def _reclaimable() -> int:
    """Bytes of files that the kernel gives back first; 0 where it does not say."""
    try:
        lines = (_CGROUP / "memory.stat").read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("inactive_file ")))
    except (OSError, ValueError, IndexError, StopIteration):
        return 0


def batch_bytes(model: DiffusionModel, batch_size: int) -> int:
    """Rough memory use of one batch in bytes, without the weights."""
    height, width = model.image_shape
    decoder = batch_size * height * width * decoder_width(model.vae) * _LIVE_MAPS_DECODER
    denoiser = 2 * batch_size * model.family.live_values(model.denoiser, model.latent_shape)
    return int(max(decoder, denoiser) * model.dtype.itemsize)
