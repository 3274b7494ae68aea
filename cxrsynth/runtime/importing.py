"""Imports of torch and its kin, which take most of the time that a command needs to start."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quick_imports() -> Iterator[None]:
    """Inside, garbage is not collected.

    Modules are made of a million objects that stay; going through them again and again is a seventh of the time.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
