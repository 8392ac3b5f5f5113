"""Data sets: one module each, `fetch` to find or download them, `synthetic` for when there are none."""

from kdlib.errors import KDError

__all__ = ["DataError", "DataUnavailable"]


class DataError(KDError):
    """Something is wrong with data: names the file, what was expected, what was found, what to do."""


class DataUnavailable(DataError):
    """The real data cannot be had here (offline, no mirror, failed download): says why and what to do."""
