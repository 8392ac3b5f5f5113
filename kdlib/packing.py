"""States of any shape as tensors and JSON, so that a file without a pickle can hold them."""

from __future__ import annotations

import functools
import math
from collections import Counter, OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from kdlib.errors import KDError
from kdlib.files import canonical_json, sha256, tensor_digest

__all__ = [
    "can_be_saved",
    "device_of",
    "layout_of",
    "lazy_names",
    "pack",
    "state_digest",
    "tensors_of_state",
    "unpack",
    "unwrapped",
    "with_versions",
]


def pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Return a JSON value that describes a state; its tensors are added to `tensors`, under names below `name`.

    A state consists of tensors, NumPy arrays, numbers, texts, bytes, None, and of dicts, lists and tuples of them.
    KDError, with the name, for anything else.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if type(value) is str:
        return _packed_text(value, name)
    if value is None or type(value) in (bool, int) or (type(value) is float and math.isfinite(value)):
        return value
    if type(value) is float:  # JSON has no infinity
        return {"float": repr(value)}
    if isinstance(value, bytes | bytearray):
        return {"bytes": value.hex()}
    if isinstance(value, Tensor | np.ndarray):
        return _packed_tensor(value, name, tensors)
    if type(value) in (dict, OrderedDict, Counter):
        kind = "counter" if type(value) is Counter else "dict"
        pairs = [[pack(key, name, {}), pack(part, f"{name}/{key}", tensors)] for key, part in value.items()]
        versions = getattr(value, "_metadata", None)  # of layers, in a module's state_dict: torch may ask for them
        return {kind: pairs} | ({} if versions is None else {"versions": pack(versions, name, tensors)})
    if type(value) in (list, tuple):
        parts = [pack(part, f"{name}/{number}", tensors) for number, part in enumerate(value)]
        return {type(value).__name__: parts}
    raise KDError(
        f"{name}: expected a state of tensors, numbers, texts, dicts and lists, found {type(value).__name__}, which a "
        "checkpoint cannot hold; let state_dict or get_extra_state return one of those"
    )


def state_digest(value: Any, name: str) -> str:
    """Return the SHA-256 of a state as `pack` describes it; KDError, with the name, for what it cannot hold."""
    tensors: dict[str, Tensor] = {}
    notes = pack(value, name, tensors)
    return sha256((tensor_digest(tensors) + canonical_json(notes)).encode())


def _packed_text(value: str, name: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as error:  # Python has such text for names of files that are not UTF-8
        raise KDError(
            f"{name!a}: expected text that a file can hold, found {value!a}; use value.encode(errors='replace')"
        ) from error
    return value


def _packed_tensor(value: Tensor | np.ndarray[Any, Any], name: str, tensors: dict[str, Tensor]) -> Any:
    kind = "tensor" if isinstance(value, Tensor) else "array"
    if isinstance(value, np.ndarray):
        try:
            value = torch.from_numpy(value)
        except (TypeError, ValueError) as error:
            raise KDError(f"{name}: expected an array of numbers, found one of {value.dtype} ({error})") from error
    if value.layout != torch.strided:
        raise KDError(f"{name}: expected a dense tensor, found one of layout {value.layout}; use to_dense()")
    if not _is_kept(value.dtype):
        raise KDError(f"{name}: expected a tensor of a type that safetensors holds, found {value.dtype}; use another")
    while name in tensors:  # "a/b" is the name of one entry, and of an entry of an entry
        name += "'"
    tensors[name] = value.detach()
    return {kind: name, "layout": _layout(value)} | ({} if value.device.type == "cpu" else {"device": True})


def can_be_saved(value: Tensor) -> bool:
    """Return whether a checkpoint can hold a tensor: a dense one, of a type that safetensors has."""
    return value.layout == torch.strided and _is_kept(value.dtype)


@functools.cache
def _is_kept(dtype: torch.dtype) -> bool:
    try:
        safetensors.torch.save({"": torch.empty(0, dtype=dtype, device="cpu")})
    except Exception:  # KeyError or others, by its version
        return False
    return True


def _layout(value: Tensor) -> str:
    return f"{value.dtype} {tuple(value.shape)}".removeprefix("torch.")


def unpack(packed: Any, tensors: Mapping[str, Tensor], device: torch.device) -> Any:
    """Return the state that `pack` described; tensors that were not on the CPU come back on `device`.

    ValueError for a tensor that is not as described; other built-in exceptions for what `pack` does not make.
    """
    if not isinstance(packed, dict):
        return packed
    kind, content = next(item for item in packed.items() if item[0] not in ("device", "layout"))
    if kind == "float":
        return float(content)
    if kind == "bytes":
        return bytes.fromhex(content)
    if kind in ("tensor", "array"):
        found = tensors[content]
        if (layout := _layout(found)) != packed["layout"]:
            raise ValueError(f"{content}: expected {packed['layout']}, found {layout}")
        found = found.to(device) if "device" in packed else found
        return found if kind == "tensor" else found.numpy()
    if kind in ("list", "tuple"):
        parts = [unpack(part, tensors, device) for part in content]
        return parts if kind == "list" else tuple(parts)
    pairs = {unpack(key, tensors, device): unpack(part, tensors, device) for key, part in content}
    if "versions" in packed:
        return with_versions(pairs, unpack(packed["versions"], tensors, device))
    return Counter(pairs) if kind == "counter" else pairs


def with_versions(state: Mapping[str, Any], versions: Any) -> OrderedDict[str, Any]:
    """Return a module's state with the versions of its layers, as its own `state_dict` has them."""
    found = OrderedDict(state)
    found._metadata = versions  # type: ignore[attr-defined]
    return found


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a network, the CPU if it has no parameter."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def layout_of(packed: Any) -> dict[str, str]:
    """Return the type and shape of each tensor of a module's packed state, by its name."""
    found = {}
    for name, value in packed["dict"]:
        found[name] = value["layout"] if isinstance(value, dict) and "layout" in value else "an extra state"
    return found


def tensors_of_state(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return a module's state as tensors only: an extra state that is none becomes the bytes of its description."""
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        if isinstance(value, Tensor):
            found[name] = value
        else:
            text = canonical_json(pack(value, name, found))
            found[f"{name} (packed)"] = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
    return found


def lazy_names(model: nn.Module) -> list[str]:
    """Return the names of the weights and buffers that have no values before the first call."""
    return [name for name, value in [*model.named_parameters(), *model.named_buffers()] if is_lazy(value)]


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the network itself, without the wrappers of torch.compile and of torch's data parallelism."""
    while True:
        if "_orig_mod" in model._modules:
            model = model.get_submodule("_orig_mod")
        elif isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        else:
            return model
