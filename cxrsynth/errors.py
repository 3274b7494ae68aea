"""Errors that are the user's to mend: one message, no traceback, exit code 2."""


class CxrsynthError(Exception):
    """Base of the errors a user can mend. The message says where, what was found, what to do.

    Report text never enters a message: rows are named by line and report id.
    """


class RecipeError(CxrsynthError):
    """A recipe that cannot be used."""


class ReportsError(CxrsynthError):
    """A table of reports that cannot be used."""


class ShardError(CxrsynthError):
    """An output folder or a shard that cannot be written or read."""


class LaunchError(CxrsynthError):
    """Environment variables of a launcher that make no sense."""


class ModelError(CxrsynthError):
    """A model folder, a device or a precision that cannot be used."""
