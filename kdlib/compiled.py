"""The one place that knows numba: loops compiled to machine code, and whether they can be."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["AVAILABLE", "compiled", "narrow", "wide"]

compiled: Any

# To see whether what it has cached is still right, numba looks at the file of the compiled function alone: after an edit of
# `wide` or `narrow`, delete the __pycache__ folders of the files that call them.


def wide(x: Any) -> Any:
    """Inside a compiled function: the float32 that x stands for, a float32 itself or the bits of a bfloat16 as uint16."""
    raise NotImplementedError("for compiled functions")


def narrow(value: Any, row: Any) -> Any:
    """Inside a compiled function: a float32 as what `row` holds, float32 or the bits of the nearest bfloat16 (ties to even)."""
    raise NotImplementedError("for compiled functions")


try:
    from numba import njit, types
    from numba.extending import overload
except ImportError:  # not installed, or no build for this machine: callers take torch's own layers
    AVAILABLE = False

    def compiled(function: Any) -> Any:
        """Give the function as it is."""
        return function
else:
    AVAILABLE = True
    # a*b + c may be rounded once; sums are not reordered and there is one thread, so results repeat to the last bit.
    compiled = njit(fastmath={"contract"}, cache=True, nogil=True)

    @overload(wide, inline="always")
    def _wide(x):  # type: ignore[no-untyped-def]
        if isinstance(x, types.Integer):
            return lambda x: np.uint32(np.uint32(x) << np.uint32(16)).view(np.float32)
        return lambda x: x

    @overload(narrow, inline="always")
    def _narrow(value, row):  # type: ignore[no-untyped-def]
        if isinstance(row.dtype, types.Integer):

            def rounded(value, row):  # type: ignore[no-untyped-def]
                bits = np.float32(value).view(np.uint32)
                nearest = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
                return np.uint16(0x7FC0) if value != value else np.uint16(nearest)  # one bit pattern for NaN

            return rounded
        return lambda value, row: value
