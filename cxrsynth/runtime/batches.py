"""Batches from iterables."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")


def chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Consecutive lists of `size`; the last may be shorter. Holds one list at a time."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk
