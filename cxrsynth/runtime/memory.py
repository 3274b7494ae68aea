"""Running out of memory, told as a setting to lower."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from cxrsynth.errors import ModelError

# Torch has no error of its own for the CPU, only a text.
_CPU_ALLOCATOR = "can't allocate memory"


@contextmanager
def memory_advice(advice: str) -> Iterator[None]:
    """Turn what torch and Python raise when memory runs out, on any device, into a ModelError with this advice.

    Raises:
        ModelError: when memory ran out.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError):
        raise ModelError(f"out of memory\n  {advice}") from None
    except RuntimeError as error:
        if _CPU_ALLOCATOR in str(error):
            raise ModelError(f"out of memory\n  {advice}") from None
        raise
