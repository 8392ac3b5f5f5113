"""Work on many objects without Python's collector of cycles."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["without_collector"]


@contextmanager
def without_collector() -> Iterator[None]:
    """Pause the collector: while thousands of records are held, it looks for cycles among them again and again.

    That takes a quarter of the time of tables. What the work itself leaves in cycles is freed later.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
