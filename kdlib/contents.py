"""The bytes of arrays and tensors, from which digests are made."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdlib.errors import KDError

__all__ = ["content_of"]


def content_of(array: NDArray[Any] | Tensor) -> tuple[str, bytes]:
    """Return the type and the bytes of an array or a tensor, in little-endian order.

    KDError for what is neither, and for arrays and tensors that have no such bytes.
    """
    if isinstance(array, Tensor):
        if array.dtype == torch.bfloat16:  # NumPy has no such type
            return "bfloat16", _numpy(array.detach().contiguous().view(torch.int16)).tobytes()
        array = _numpy(array.detach())
    if isinstance(array, np.ma.MaskedArray):
        raise KDError("expected arrays without a mask, found a masked array; use array.filled(VALUE)")
    if not isinstance(array, np.ndarray) or array.dtype.hasobject:
        kind = f"an array of {array.dtype}" if isinstance(array, np.ndarray) else type(array).__name__
        raise KDError(f"expected arrays or tensors of numbers, found {kind}; use numpy.asarray(..., dtype=...)")
    return str(little := array.dtype.newbyteorder("<")), np.ascontiguousarray(array, dtype=little).tobytes()


def _numpy(tensor: Tensor) -> NDArray[Any]:
    try:
        return tensor.cpu().resolve_conj().resolve_neg().numpy()
    except (TypeError, RuntimeError) as error:
        kind = f"{tensor.dtype}, {tensor.layout}"
        raise KDError(f"expected a tensor that NumPy can hold, found {kind}; use to_dense() or float()") from error
