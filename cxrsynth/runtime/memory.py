"""Running out of memory, reported with the setting to lower."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from cxrsynth.errors import ModelError

# For the CPU, torch has no error class of its own, only this text.
_CPU_ALLOCATOR = "can't allocate memory"


# Where networks are loaded: no size of a batch matters yet.
LOADING_ADVICE = "free some, or use another device, such as cpu: the networks do not fit"


@contextmanager
def memory_advice(advice: str) -> Iterator[None]:
    """Turn out-of-memory errors of torch and Python, on any device, into a ModelError with this advice.

    Raises:
        ModelError: if memory runs out.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError):
        raise ModelError(f"out of memory\n  {advice}") from None
    except RuntimeError as error:
        if _CPU_ALLOCATOR in str(error):
            raise ModelError(f"out of memory\n  {advice}") from None
        raise
