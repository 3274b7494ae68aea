"""Running out of memory, reported with the setting to lower."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from cxrsynth.errors import ModelError

# Where torch has no error class of its own, only these texts: of its allocators for the CPU and for Apple's GPUs, and
# of CUDA's driver and libraries (CUBLAS_STATUS_ALLOC_FAILED and others), which allocate past torch's allocator.
_TEXTS = (
    "can't allocate memory",
    "MPS backend out of memory",
    "CUDA error: out of memory",
    "_STATUS_ALLOC_FAILED",
)

# Where networks are loaded: no size of a batch matters yet.
LOADING_ADVICE = "free some, or use another device, such as cpu: the networks do not fit"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch, on any device, or Python ran out of memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _TEXTS)


@contextmanager
def memory_advice(advice: str) -> Iterator[None]:
    """Turn out-of-memory errors of torch and Python, on any device, into a ModelError with this advice.

    Raises:
        ModelError: if memory runs out.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise ModelError(f"out of memory\n  {advice}") from None
