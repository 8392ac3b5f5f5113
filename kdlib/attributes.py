"""What can be compared of an attribute of a network, whatever it is: two are the same if their descriptions are equal.

What cannot be looked into is the same only if it is the same object: two networks are rather told to differ than
trained as one.
"""

from __future__ import annotations

import random
import sys
import types
import weakref
from collections.abc import Mapping, Sequence, Set
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from kdlib.files import tensor_digest

__all__ = ["GENERATORS", "attributes_of", "class_of", "content", "ids_within", "same"]

_PLAIN = bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size
GENERATORS = torch.Generator, np.random.Generator, np.random.BitGenerator, np.random.RandomState, random.Random
_HEAP_TYPE = 1 << 9  # of a class's flags: not set if C code defines the class, once
_OF_C = types.MemberDescriptorType, types.GetSetDescriptorType, types.MethodDescriptorType, types.WrapperDescriptorType
_OF_EVERY_CLASS = {"__dict__", "__weakref__", "__doc__", "__module__", "__slotnames__", "_abc_impl"}


def same(first: Any, second: Any, stacked: Set[int]) -> bool:
    """Return whether two attributes are the same, of whatever type they are.

    `stacked`: the ids of tensors of which type and shape alone are compared. States of generators are left out.
    """
    return first is second or bool(_Descriptions(stacked).of(first) == _Descriptions(stacked).of(second))


def ids_within(value: Any) -> set[int]:
    """Return the ids of all that a value leads to: what it contains, and what its functions have taken with them."""
    found = _Descriptions(set(), values=False)
    found.of(value)
    return found.met


def class_of(module: nn.Module) -> Any:
    """Return the class of a module; of a traced one, which has a class of its own, the code."""
    return module.code if isinstance(module, fx.GraphModule) else type(module)


def attributes_of(module: nn.Module) -> dict[str, Any]:
    """Return the attributes of a module by name: hooks in their order, because their keys count all of the process."""
    traced = ("_graph", "_code") if isinstance(module, fx.GraphModule) else ()
    return {
        name: list(value.values()) if "hooks" in name and isinstance(value, dict) else value
        for name, value in vars(module).items()
        if name not in traced
    }


class _Descriptions:
    """Describes values, each once: what it meets again, also within itself, is the number of the first time."""

    def __init__(self, stacked: Set[int], values: bool = True) -> None:
        self._stacked, self._values = stacked, values
        self._met: dict[int, tuple[int, Any]] = {}  # with the value, so that no other one gets its id

    @property
    def met(self) -> set[int]:
        """The ids of all that was described."""
        return {*self._met}

    def of(self, value: Any) -> Any:
        """Return the description of a value, of plain numbers, texts, types and lists."""
        if type(value) in _PLAIN or isinstance(value, PurePath):
            return value if value == value else repr(value)  # NaN is never equal to itself
        if id(value) in self._met:
            return ["met", self._met[id(value)][0]]
        self._met[id(value)] = len(self._met), value
        if isinstance(value, GENERATORS):
            return type(value)
        if isinstance(value, weakref.ref):
            return ["weakref", self.of(value())]
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, np.ndarray | np.generic):
            return [type(value), str(value.dtype), value.shape, value.tobytes()]
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, types.ModuleType):
            return value.__name__
        if callable(value) or isinstance(value, (property, staticmethod, classmethod, *_OF_C)):
            return self._function(value)
        return self._object(value)

    def _tensor(self, tensor: Tensor) -> Any:
        kind = [type(tensor), str(tensor.dtype), str(tensor.device), tuple(tensor.shape), tensor.requires_grad]
        return kind if id(tensor) in self._stacked or not self._values else [*kind, tensor_digest({"values": tensor})]

    def _class(self, value: type) -> Any:
        """A class that other code can import is itself; one that a function has made is what it is made of."""
        if not value.__flags__ & _HEAP_TYPE:
            return value
        found: Any = sys.modules.get(value.__module__)
        for name in value.__qualname__.split("."):
            found = getattr(found, name, None)
        if found is value:
            return value
        own = {name: self.of(part) for name, part in dict(vars(value)).items() if name not in _OF_EVERY_CLASS}
        return [value.__qualname__, [self.of(base) for base in value.__bases__], own]

    def _function(self, value: Any) -> Any:
        if isinstance(value, types.FunctionType):
            cells = [self.of(content(cell)) for cell in value.__closure__ or ()]
            settings = self.of([value.__defaults__, value.__kwdefaults__, vars(value)])
            return [value.__qualname__, value.__code__, id(value.__globals__), cells, settings]
        if isinstance(value, types.MethodType):
            return [self.of(value.__func__), self.of(value.__self__)]
        if isinstance(value, types.BuiltinFunctionType | types.MethodWrapperType):
            return [value.__qualname__, self.of(value.__self__)]
        if isinstance(value, _OF_C):
            return [value.__qualname__, self.of(value.__objclass__)]
        if isinstance(value, property):
            return ["property", *map(self.of, (value.fget, value.fset, value.fdel))]
        if isinstance(value, staticmethod | classmethod):
            return [type(value), self.of(value.__func__)]
        return self._object(value)

    def _object(self, value: Any) -> Any:
        """Its class, what it contains, its attributes and slots, and what pickle would keep of it."""
        parts: Any = None
        if isinstance(value, nn.Module):
            return [self.of(class_of(value)), self.of(attributes_of(value))]
        if isinstance(value, Mapping):
            parts = {str(key): [self.of(type(key)), self.of(part)] for key, part in value.items()}
        elif isinstance(value, Set):
            parts = sorted(str(self.of(part)) for part in value)
        elif isinstance(value, Sequence):
            parts = [self.of(part) for part in value]
        state = object.__getstate__(value)
        whole = [self.of(type(value)), parts, self.of(state)]
        return whole if parts is not None else [*whole, self._reduced(value, bool(state))]

    def _reduced(self, value: Any, has_state: bool) -> Any:
        try:
            reduced = value.__reduce_ex__(4)
        except Exception:  # of any kind, because it is the value's own
            return None if has_state else id(value)
        return reduced if isinstance(reduced, str) else [self.of(part) for part in reduced]


def content(cell: types.CellType) -> Any:
    """Return what a function has taken with it, or a text if the variable has no value yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return "no value"
