"""What objects consist of: containers and attributes that can be put back, and numbers that can be compared."""

from __future__ import annotations

import copy
import inspect
import random
import sys
from array import array
from collections import ChainMap, UserDict, UserList, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from types import CodeType, FunctionType, MappingProxyType, MethodType, ModuleType, NoneType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kdlib.contents import digest_of_numbers
from kdlib.errors import KDError

__all__ = ["Parts"]

PLAIN = (ModuleType, str, bytes, int, float, complex, NoneType)
MOST_BYTES = 2**24  # of an array that is copied for a call
LOOKED_INTO = (SimpleNamespace, UserDict, UserList, ChainMap)  # of Python's own classes with attributes


class Parts:
    """The parts of objects, as they are now.

    `numbers`: "told" digests tensors, arrays and tables, so that `put_back` names those that have changed. "kept" keeps
    copies of tensors and arrays, and puts them back; of tables it has digests. "code" is for functions that are called
    once more: copies of arrays alone, and what the functions and the classes of objects name in their modules.

    Of Python's own classes but the usual containers (open files, locks, loggers), nothing is looked at, and arrays that
    cannot be written to have no digest. Objects of libraries' classes, which may have caches, are looked at if they are
    told. KDError for iterators, which cannot be put back, unless they are to be kept.
    """

    def __init__(self, roots: Sequence[tuple[str, Any]], numbers: str = "told") -> None:
        self.numbers = numbers
        self.digests: list[tuple[str, Any, str]] = []
        self.restores: list[Callable[[], object]] = []
        todo, seen = [*roots], dict[int, Any]()  # kept: else another object could get the same id
        for place, value in todo:  # grows
            if id(value) not in seen:
                seen[id(value)] = value
                todo += self._look(place, value)

    def put_back(self) -> list[str]:
        """Put the parts back; return the places of numbers that have changed."""
        for restore in self.restores:
            restore()
        return [place for place, value, digest in self.digests if digest_of_numbers(value) != digest]

    def _look(self, place: str, value: Any) -> list[tuple[str, Any]]:
        """Note a part; return the parts within it."""
        if isinstance(value, type):
            return self._class(place, value)
        if isinstance(value, PLAIN):
            return []
        if isinstance(value, Tensor | np.ndarray) or hasattr(value, "to_numpy"):  # the last of pandas
            return self._numbers(place, value)
        if (restore := _generator(value)) is not None:
            self.restores.append(restore)
            return []
        if isinstance(value, Iterator) and type(value).__module__ in ("builtins", "itertools"):
            if self.numbers == "kept":
                return []
            raise KDError(
                f"expected parts that can be read again, found a {type(value).__name__} at {place or 'the data'}: who "
                "reads it first uses it up. Make a list of it"
            )
        if isinstance(value, partial):
            return [(f"{place}.{name}", getattr(value, name)) for name in ("func", "args", "keywords")]
        if isinstance(value, MethodType):
            return [(f"{place}.__self__", value.__self__)]
        if isinstance(value, FunctionType):
            return self._function(place, value)
        return self._entries(place, value) + self._attributes(place, value)

    def _numbers(self, place: str, value: Any) -> list[tuple[str, Any]]:
        if self.numbers == "code":
            if isinstance(value, np.ndarray) and value.flags.writeable and value.nbytes <= MOST_BYTES:
                self.restores.append(partial(_fill, value, value.copy()))
            return []
        if isinstance(value, Tensor) and value.is_leaf:
            self.restores.append(partial(_put_gradient_back, value, value.requires_grad, value.grad))
        if isinstance(value, np.ndarray) and value.dtype.hasobject and value.dtype.names is None:
            known = value.copy()
            if value.flags.writeable:
                self.restores.append(partial(_fill, value, known))
            return _numbered(place, known.reshape(-1).tolist())
        if self.numbers == "kept" and isinstance(value, Tensor | np.ndarray):
            with suppress(Exception):  # of weights that are not made yet, for example
                if isinstance(value, Tensor):
                    self.restores.append(partial(_copy_back, value, value.detach().clone(), digest_of_numbers(value)))
                elif value.flags.writeable:
                    self.restores.append(partial(_fill, value, value.copy()))
            return []
        if (digest := digest_of_numbers(value)) is not None:
            self.digests.append((place or "the data", value, digest))
        columns = value.select_dtypes("object") if hasattr(value, "select_dtypes") else value
        if hasattr(columns, "to_numpy") and columns.to_numpy().dtype.hasobject:
            return _numbered(place, columns.to_numpy().reshape(-1).tolist())
        return []

    def _entries(self, place: str, value: Any) -> list[tuple[str, Any]]:
        if isinstance(value, list | deque | bytearray | array):
            known = list(value)
            self.restores.append(partial(_refill, value, known))
            numbers = isinstance(value, bytearray | array)
            return [] if numbers else _numbered(place, known)
        if isinstance(value, tuple):
            return _numbered(place, value)
        if isinstance(value, dict):
            return [(f"{place}[{key!r}]", part) for key, part in self._keep(value).items()]
        if isinstance(value, MappingProxyType):
            if self.numbers == "told":
                self.digests.append((place or "the data", value, str(digest_of_numbers(value))))
            return [(f"{place}[{key!r}]", part) for key, part in value.items()]
        if isinstance(value, set):
            self.restores.append(partial(_refill, value, set(value)))
        return []

    def _attributes(self, place: str, value: Any) -> list[tuple[str, Any]]:
        kind, start = type(value), f"{place}." if place else ""
        owner = kind.__module__.partition(".")[0]
        if owner in sys.stdlib_module_names and kind not in LOOKED_INTO:
            return []
        # What holds the data themselves, or a configuration that nobody can change: to look at it is to read it.
        if inspect.isroutine(value) or kind.__module__.startswith("kdlib.run."):
            return []
        is_users = not _is_of_library(kind.__module__) or owner == "torch" or isinstance(value, nn.Module)
        if self.numbers != "told" and not is_users and kind not in LOOKED_INTO:
            return []
        found: dict[str, Any] = {"its class": kind} if self.numbers == "code" else {}
        if isinstance(own := getattr(value, "__dict__", None), dict):
            found |= self._keep(own)
        for base in kind.__mro__:
            names = base.__dict__.get("__slots__", ())
            for name in (names,) if isinstance(names, str) else names:
                if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                    found[name] = getattr(value, name)
                    self.restores.append(partial(object.__setattr__, value, name, found[name]))
        return [(f"{start}{name}", part) for name, part in found.items()]

    def _class(self, place: str, value: type) -> list[tuple[str, Any]]:
        """What a user's class holds for all its objects; with "code", its methods too."""
        if self.numbers == "told" or value.__module__.partition(".")[0] == "kdlib" or _is_of_library(value.__module__):
            return []
        known = {name: part for name, part in vars(value).items() if name[:2] != "__" and name != "_abc_impl"}
        self.restores.append(partial(_set_back, value, known))
        methods = [part for part in vars(value).values() if isinstance(part, FunctionType) and self.numbers == "code"]
        held = [(f"{place}.{name}", part) for name, part in known.items() if not isinstance(part, FunctionType)]
        return [*held, *((f"{place}.{part.__name__}", part) for part in methods)]

    def _function(self, place: str, value: FunctionType) -> list[tuple[str, Any]]:
        """What a function holds: variables of the function around it, defaults, attributes."""
        owner = str(value.__module__)
        if owner.partition(".")[0] == "kdlib" or _is_of_library(owner):  # their functions keep caches
            return []
        found: list[tuple[str, Any]] = [(f"{place}'s defaults", [value.__defaults__, value.__kwdefaults__])]
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            try:
                known = cell.cell_contents
            except ValueError:  # not set yet
                continue
            self.restores.append(partial(setattr, cell, "cell_contents", known))
            found.append((f"{place}'s {name}", known))
        if self.numbers == "code":
            names = _names_of(value.__code__)
            named = {name: part for name, part in value.__globals__.items() if name in names}
            self.restores.append(partial(value.__globals__.update, named))
            found += named.items()
        return [*found, *self._keep(value.__dict__).items()]

    def _keep(self, entries: dict[Any, Any]) -> dict[Any, Any]:
        known = dict(entries)

        def restore() -> None:
            if list(entries) != list(known) or any(entries[key] is not part for key, part in known.items()):
                entries.clear()
                entries.update(known)

        self.restores.append(restore)
        return known


def _names_of(code: CodeType) -> set[str]:
    """The names that a function, and the functions within it, use."""
    within = [each for each in code.co_consts if isinstance(each, CodeType)]
    return {*code.co_names}.union(*map(_names_of, within))


def _set_back(kind: type, known: dict[str, Any]) -> None:
    now = {name for name in vars(kind) if name[:2] != "__" and name != "_abc_impl"}
    for name in now - known.keys():
        delattr(kind, name)
    for name, part in known.items():
        if vars(kind).get(name) is not part:
            setattr(kind, name, part)


def _numbered(place: str, parts: Sequence[Any]) -> list[tuple[str, Any]]:
    """The parts of a list that need a look: of many names, none does."""
    return [(f"{place}[{number}]", part) for number, part in enumerate(parts) if not isinstance(part, PLAIN)]


def _is_of_library(module: str) -> bool:
    """Whether a module is Python's or an installed one, but kdlib, which may be installed too."""
    name = module.partition(".")[0]
    if name in sys.stdlib_module_names:
        return name != "__main__"
    place = str(getattr(sys.modules.get(name), "__file__", ""))
    return name != "kdlib" and ("site-packages" in place or "dist-packages" in place)


def _refill(value: Any, known: Any) -> None:
    if isinstance(value, set):
        value.clear()
        value.update(known)
    elif len(value) != len(known) or any(own is not part for own, part in zip(value, known, strict=True)):
        while value:  # an array has no other way to become empty that a deque has too
            value.pop()
        value.extend(known)


def _fill(value: np.ndarray[Any, Any], known: np.ndarray[Any, Any]) -> None:
    if value.shape == known.shape:
        value[...] = known


def _copy_back(value: Tensor, known: Tensor, digest: str | None) -> None:
    with suppress(Exception):  # what has no digest, such as a tensor of the device "meta", has no numbers either
        if digest is not None and digest_of_numbers(value) != digest:
            if value.shape != known.shape or value.dtype != known.dtype:
                value.data = known.clone()
            else:
                with torch.no_grad():
                    value.copy_(known)


def _put_gradient_back(value: Tensor, needs_gradient: bool, gradient: Tensor | None) -> None:
    if value.is_leaf and value.requires_grad != needs_gradient:
        value.requires_grad_(needs_gradient)
    if value.is_leaf and value.grad is not gradient:
        value.grad = gradient


def _generator(value: Any) -> Callable[[], object] | None:
    """What puts the state of a generator back; None for anything else."""
    if isinstance(value, torch.Generator):
        state = value.get_state()
        return lambda: value.set_state(state)
    if isinstance(value, np.random.Generator):
        of_bits = copy.deepcopy(value.bit_generator.state)
        return lambda: setattr(value.bit_generator, "state", of_bits)
    if isinstance(value, random.Random | np.random.RandomState):
        get, put = ("getstate", "setstate") if isinstance(value, random.Random) else ("get_state", "set_state")
        known = getattr(value, get)()
        return lambda: getattr(value, put)(known)
    return None
