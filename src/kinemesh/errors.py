"""The errors that kinemesh raises on purpose.

Each message names the file or argument, says what was expected and what was found, and ends with
what to do next. The command line prints these messages without a traceback.
"""


class KinemeshError(Exception):
    """Base of every error that a user can cause and mend."""


class InputError(KinemeshError, ValueError):
    """A file or an argument is not what the called function needs."""


class MissingExtraError(KinemeshError, ImportError):
    """A package of an optional extra is needed and not installed."""
