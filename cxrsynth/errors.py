"""Errors the user can fix: one message, no traceback, exit code 2."""

import re
from typing import Final

_LONGEST: Final = 300  # characters of a library's own message
# Some libraries quote what they stumbled over as Python prints it.
_CLASS = re.compile(r"\b\w+(?:Error|Exception)\b:?\s*")


class CxrsynthError(Exception):
    """Base class. The message says where, what was found, what was expected, what to do.

    Report text never enters a message: rows are named by line and report id.
    """


class RecipeError(CxrsynthError):
    """A recipe that cannot be used."""


class ReportsError(CxrsynthError):
    """A table of reports that cannot be used."""


class ShardError(CxrsynthError):
    """An output folder or a shard that cannot be written or read."""


class LaunchError(CxrsynthError):
    """A launcher's environment variables that make no sense."""


class ModelError(CxrsynthError):
    """A model folder, a device or a precision that cannot be used."""


def in_words(error: BaseException) -> str:
    """What an exception of a library says, on one line, for the end of a message: never the name of its Python class.

    For errors whose text cannot quote a report.
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, KeyError):
        return f"{error} is missing"
    return in_one_line(str(error)) or "no reason is given"


def in_one_line(said: str) -> str:
    """What a library says, for messages: its first line, no longer than a few of a terminal, without Python's names.

    A line that ends with a colon goes on with the next.
    """
    first, _, others = said.strip().partition("\n")
    text = _CLASS.sub("", " ".join([first, *others.split()]) if first.rstrip().endswith(":") else first).strip()
    return f"{text[:_LONGEST]}..." if len(text) > _LONGEST else text
