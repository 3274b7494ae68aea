"""Tensors on their way from the card to the CPU, while the card goes on."""

import torch
from torch import Tensor


class HostCopy:
    """A copy of a tensor on the CPU. From a CUDA device it is made in pinned memory, behind the work under way there.

    Until `wait` returns, it holds nothing of use: only there is it read.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._copied = tensor.to("cpu", non_blocking=tensor.is_cuda)
        self._event: torch.cuda.Event | None = None
        if tensor.is_cuda:
            self._event = torch.cuda.Event(blocking=True)  # a thread that waits takes no core
            self._event.record(torch.cuda.current_stream(tensor.device))

    def wait(self) -> Tensor:
        """The copy, once it is whole; in any thread."""
        if self._event is not None:
            self._event.synchronize()
        return self._copied
