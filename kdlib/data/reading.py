"""The one way in which the modules of data sets report a file or folder that may not be read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kdlib.files import not_read

__all__ = ["reading"]


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raise KDError, which says what to mend, for a file or folder that may not be read."""
    try:
        yield
    except OSError as error:
        raise not_read(path, error) from error
