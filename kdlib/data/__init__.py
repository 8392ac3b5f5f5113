"""Data sets: one module for each, `fetch` to find or download them, and synthetic stand-ins if there are none."""

from kdlib.errors import KDError, needs

__all__ = ["DataError", "DataUnavailable"]

needs("data", "PIL")  # those of downloads and of the user cache are looked for where they are used


class DataError(KDError):
    """Data are wrong: the message says which file, what was expected, what was found, and what to do."""


class DataUnavailable(DataError):
    """The real data are not available (offline, no mirror, failed download): the message says why and what to do."""
