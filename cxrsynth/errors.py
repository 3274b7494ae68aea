"""Errors the user can fix: one message, no traceback, exit code 2."""


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
