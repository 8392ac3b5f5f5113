"""The one place that knows numba: loops compiled to machine code, and whether they can be."""

from __future__ import annotations

from typing import Any

__all__ = ["AVAILABLE", "compiled"]

compiled: Any
try:
    from numba import njit
except ImportError:  # not installed, or no build for this machine: callers take torch's own layers
    AVAILABLE = False

    def compiled(function: Any) -> Any:
        """Give the function as it is."""
        return function
else:
    AVAILABLE = True
    # a*b + c may be rounded once; sums are not reordered and there is one thread, so results repeat to the last bit.
    compiled = njit(fastmath={"contract"}, cache=True, nogil=True)
