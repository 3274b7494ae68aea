"""Batches side by side: on a CPU each batch has cores of its own, and results come back in order.

Splitting every operation of a small network over the cores costs more than it gains, and its rounding depends on how
many cores there are. A batch per core is faster, and its bytes are the same on a laptop and on a server.
"""

from pathlib import Path

import psutil
import torch

from cxrsynth.diffusion.model import DiffusionModel
from cxrsynth.runtime.pool import OrderedPool
from cxrsynth.runtime.processes import read_launch

# Activations alive at once, in units of one feature map of the first level: a generous guess from the architecture,
# not measured.
_LIVE_MAPS_DECODER = 8
_LIVE_MAPS_UNET = 80
_CGROUP = Path("/sys/fs/cgroup")


class SamplingPool(OrderedPool):
    """Threads that sample batches of a model: as many as cores and memory allow.

    `stopped` is looked at between denoising steps.
    """

    def __init__(self, model: DiffusionModel, *, batch_size: int, threads_per_batch: int) -> None:
        batches = batches_at_once(model, batch_size=batch_size, threads_per_batch=threads_per_batch)
        on_cpu = model.device.type == "cpu"
        super().__init__(batches, threads=threads_per_batch if on_cpu else torch.get_num_threads())


def batches_at_once(model: DiffusionModel, *, batch_size: int, threads_per_batch: int) -> int:
    """1 on an accelerator; on a CPU as many as cores and memory allow.

    The cores are those torch would use itself (`OMP_NUM_THREADS`, or what the launcher left to this process); the
    memory is shared with the other processes the launcher started here.
    """
    if model.device.type != "cpu":
        return 1
    cores = torch.get_num_threads() // threads_per_batch
    share = available_bytes() / read_launch().local_world_size
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
