"""What of the plan depends on the machine: the type of its device, and the precision that `auto` stands for."""

from dataclasses import dataclass
from typing import Any

import torch

from cxrsynth import console
from cxrsynth.diffusion.model import choose_device, choose_precision
from cxrsynth.errors import ModelError
from cxrsynth.runtime.processes import read_launch
from cxrsynth.settings import Device, GenerateSettings, Precision
from cxrsynth.shards.folder import OutputFolder


@dataclass(frozen=True)
class Machine:
    """`device` is one of this machine; `device_type` and `precision` are those of the plan.

    The types differ only where no image is made: with `--finish`.
    """

    device: torch.device
    device_type: str
    precision: Precision


def choose_machine(settings: GenerateSettings) -> Machine:
    """The device and precision of a run: what the user left open is taken from a plan that binds it, or chosen.

    On mixed machines, the same command thus goes on where another machine began.

    Raises:
        ModelError: if the device is not available, or does not go with another option.
        ShardError: if the output folder cannot be read.
    """
    asked, local_rank = settings.sampling, read_launch().local_rank
    begun = _sampling(OutputFolder(settings.out).begun_plan())
    if settings.finish:
        # The images are there: the device that made them is not needed.
        device = choose_device(Device.AUTO, local_rank=local_rank)
        made_on = begun.get("device")
        left_open = made_on if made_on in (Device.CPU, Device.CUDA, Device.MPS) else device.type
        device_type = str(left_open) if asked.device is Device.AUTO else asked.device.value
    else:
        device = choose_device(asked.device, local_rank=local_rank)
        device_type = device.type
    if asked.threads_per_batch != 1 and device_type != "cpu":
        raise ModelError(
            f"--threads-per-batch {asked.threads_per_batch}: is for batches on the CPU, found {device_type}\n"
            "  leave it out, or use: --device cpu"
        )
    known = begun.get("precision") if begun.get("device") == device_type else None
    return Machine(device, device_type, _precision(settings, device, known))


def _precision(settings: GenerateSettings, device: torch.device, known: Any) -> Precision:
    asked = settings.sampling.precision
    if asked is Precision.AUTO and known in (Precision.FP32, Precision.BF16, Precision.FP16):
        if not settings.finish and read_launch().rank == 0 and choose_precision(asked, device) != known:
            console.say(f"--precision auto: {known}, with which {settings.out} was begun on another machine")
        return Precision(known)
    return asked if settings.finish and asked is not Precision.AUTO else choose_precision(asked, device)


def _sampling(plan: dict[str, Any] | None) -> dict[str, Any]:
    """That part of a plan, which a file of somebody else's may lack."""
    sampling = (plan or {}).get("sampling")
    return sampling if isinstance(sampling, dict) else {}
