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

__all__ = ["columns_of", "content_of", "digest_of_numbers", "is_table"]


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


def is_table(value: Any) -> bool:
    """Return whether this is a table or a column of pandas, or of a library like it."""
    kind = type(value)  # an object may say that it has any name
    return hasattr(kind, "to_numpy") and (hasattr(kind, "dtype") or hasattr(kind, "columns"))


def columns_of(table: Any) -> list[tuple[str, Any]]:
    """Return the columns of a table under their names in brackets; a single column has none."""
    if not hasattr(type(table), "columns"):
        return [("", table)]
    named = table.items() if hasattr(type(table), "items") else ((column.name, column) for column in table)
    return [(f"[{name!r}]", column) for name, column in named]


def digest_of_numbers(value: Any) -> str | None:
    """Return the digest of the numbers in a tensor, an array, a table of pandas or a read-only map, in this process.

    None for arrays that cannot be written to, and for a kind that has none.
    """
    try:
        if isinstance(value, np.ndarray) and not any(part.flags.writeable for part in _views(value)):
            return None
        if isinstance(value, Tensor):
            kind, contents = f"{value.dtype} {tuple(value.shape)}", _bytes_of(value)
        elif isinstance(value, np.ndarray):
            kind, contents = f"{value.dtype} {value.shape}", _of_array(value)
        elif isinstance(value, MappingProxyType):
            kind, contents = "", [_text([part for item in value.items() for part in item])]
        else:
            indexes = [each for part in ("columns", "index") if is_table(each := getattr(value, part, None))]
            every = [*columns_of(value), *(("", each) for each in indexes)]
            names = [[getattr(each, "names", getattr(each, "name", None)), repr(each.dtype)] for _, each in every]
            kind = repr([names, getattr(value, "shape", None)])
            contents = [part for _, each in every for part in _of_column(each)]
        found = hashlib.blake2b(kind.encode(errors="backslashreplace"), digest_size=16)
        for content in contents:
            found.update(content)
        return found.hexdigest()
    except Exception:  # of a kind without plain numbers, or too large for the memory
        return None


def _of_array(value: np.ndarray[Any, Any]) -> list[Any]:
    if value.dtype.names is not None and value.dtype.hasobject:  # its rows would be made for this call
        return [part for name in value.dtype.names for part in _of_array(value[name])]
    if value.dtype.hasobject:
        return [_text(value.reshape(-1).tolist())]
    return [np.ascontiguousarray(value).reshape(-1).view(np.uint8)]


def _of_column(column: Any) -> list[Any]:
    """The values of a column or an index as they are held; text, if reading makes an object of each."""
    if hasattr(type(column), "levels"):  # an index of several columns
        return [_text([*column], held=False)]
    values: Any = getattr(column, "array", None)
    if hasattr(type(values), "codes"):
        return [repr(values.categories.dtype).encode(), *_of_array(values.codes), *_of_column(values.categories)]
    if hasattr(type(values), "asi8"):  # times, also with a zone
        return _of_array(values.asi8)
    if isinstance(column.dtype, np.dtype):
        return _of_array(column.to_numpy())
    return [_text([*column], held=False)]


def _text(objects: list[Any], held: bool = True) -> bytes:
    """Objects as text; what has no short one, such as an array within, is a part of its own if something holds it."""
    plain = (str, bytes, int, float, complex, bool, type(None))
    every: list[Any] = []
    for each in objects:
        if isinstance(each, plain):
            every.append(repr(each))
        else:
            every.append(id(each) if held else [type(each).__name__, str(each), repr(each)])
    return repr(every).encode(errors="backslashreplace")


def _bytes_of(value: Tensor) -> list[Any]:
    if value.layout == torch.sparse_coo:
        return [*_bytes_of(value._indices()), *_bytes_of(value._values())]
    if value.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [
            each for part in (value.crow_indices(), value.col_indices(), value.values()) for each in _bytes_of(part)
        ]
    return [value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()]
