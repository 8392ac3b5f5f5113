"""The bytes of arrays and tensors, from which digests are made, and digests of numbers of any kind."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdlib.errors import KDError

__all__ = ["content_of", "digest_of_numbers"]


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


def _views(value: np.ndarray[Any, Any]) -> Iterator[np.ndarray[Any, Any]]:
    """An array, and those that it is a view of."""
    part: Any = value
    while isinstance(part, np.ndarray):
        yield part
        part = part.base


def digest_of_numbers(value: Any) -> str | None:
    """Return the digest of the numbers in a tensor, an array, a table of pandas or a read-only map.

    None for arrays that cannot be written to, and for a kind that has none.
    """
    try:
        if isinstance(value, np.ndarray) and not any(part.flags.writeable for part in _views(value)):
            return None
        if isinstance(value, Tensor):
            kind, contents = f"{value.dtype} {tuple(value.shape)} {_digest_of_gradient(value)}", _bytes_of(value)
        elif isinstance(value, np.ndarray) and not value.dtype.hasobject:
            kind = f"{value.dtype} {value.shape}"
            contents = [np.ascontiguousarray(value).reshape(-1).view(np.uint8)]
        elif isinstance(value, np.ndarray):
            kind, contents = f"{value.dtype} {value.shape}", [_text(value.reshape(-1).tolist())]
        elif isinstance(value, MappingProxyType):
            kind, contents = "", [_text([part for item in value.items() for part in item])]
        else:
            names = repr([[*getattr(value, part, ())] for part in ("columns", "index")])
            kind, contents = names, [str(digest_of_numbers(value.to_numpy())).encode()]
        found = hashlib.blake2b(kind.encode(errors="backslashreplace"), digest_size=16)
        for content in contents:
            found.update(content)
        return found.hexdigest()
    except Exception:  # of a kind without plain numbers, or too large for the memory
        return None


def _text(objects: list[Any]) -> bytes:
    """Objects as text; what has no short one, such as an array within, is a part of its own."""
    plain = (str, bytes, int, float, complex, bool, type(None))
    every = [repr(each) if isinstance(each, plain) else id(each) for each in objects]
    return repr(every).encode(errors="backslashreplace")


def _bytes_of(value: Tensor) -> list[Any]:
    if value.layout == torch.sparse_coo:
        return [*_bytes_of(value._indices()), *_bytes_of(value._values())]
    if value.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [
            each for part in (value.crow_indices(), value.col_indices(), value.values()) for each in _bytes_of(part)
        ]
    return [value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()]


def _digest_of_gradient(value: Tensor) -> str | None:
    return digest_of_numbers(value.grad) if value.is_leaf and value.grad is not None else None
