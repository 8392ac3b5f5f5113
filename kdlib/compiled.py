"""The only module that imports numba: it compiles loops to machine code, and says whether numba is there."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["AVAILABLE", "compiled", "narrow", "wide"]

compiled: Any

# numba compares its cache only with the file of the compiled function. After an edit of `wide` or `narrow`, delete the
# __pycache__ folders of the files that call them.


def wide(x: Any) -> Any:
    """Return x as float32; x is a float32 or a uint16 with the bits of a bfloat16. Only for compiled functions."""
    raise NotImplementedError("for compiled functions")


def narrow(value: Any, row: Any) -> Any:
    """Return a float32 in the type of `row`: float32, or uint16 with the bits of the nearest bfloat16 (ties to even).

    Only for compiled functions.
    """
    raise NotImplementedError("for compiled functions")


try:
    from numba import njit, types
    from numba.extending import overload
except ImportError:  # not installed, or no build for this machine: callers use torch's own layers
    AVAILABLE = False

    def compiled(function: Any) -> Any:
        """Return the function as it is."""
        return function
else:
    AVAILABLE = True
    # a*b + c may be rounded only once. Sums keep their order and there is one thread: results repeat to the last bit.
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
