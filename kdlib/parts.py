"""What objects consist of: containers and attributes that can be put back, and numbers that can be compared."""

from __future__ import annotations

import copy
import inspect
import random
import sys
from array import array
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, MutableMapping, MutableSequence, Sequence
from contextlib import suppress
from functools import partial
from types import CodeType, FunctionType, MappingProxyType, MethodType, ModuleType, NoneType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kdlib.contents import columns_of, digest_of_numbers, is_table
from kdlib.errors import KDError

__all__ = ["Parts", "is_of_library", "names_of", "slots_of"]

PLAIN = (ModuleType, str, bytes, int, float, complex, NoneType)
MOST_BYTES = 2**24  # of an array that is copied for a call
MOST_ENTRIES = 1000  # of a list that is looked into for a call: a longer one is data
# Of Python's own classes with attributes. By name: only the command line imports argparse.
LOOKED_INTO = [f"collections.{name}" for name in ("UserDict", "UserList", "ChainMap")]
LOOKED_INTO += ["types.SimpleNamespace", "argparse.Namespace", "configparser.ConfigParser"]


class Parts:
    """The parts of objects, as they are now.

    `numbers`: "told" digests tensors, arrays and tables, so that `put_back` names those that have changed. "kept" keeps
    copies of tensors and arrays, and puts them back; of tables it has digests. "code" is for functions that are called
    once more: copies of arrays and gradients alone, and what the functions and the classes of objects name in their
    modules.

    Of Python's own classes but the usual containers (open files, locks, loggers), nothing is looked at, and arrays that
    cannot be written to have no digest. Maps and lists of libraries' classes, as settings, are looked at as users' are.
    Their other objects may have caches: if told, numbers are compared and nothing is put back; for a call, their own
    attributes are. What cannot be looked at is left out. KDError for iterators, unless they are to be kept.
    """

    def __init__(self, roots: Sequence[tuple[str, Any]], numbers: str = "told") -> None:
        self.numbers = numbers
        self.digests: list[tuple[str, Any, str]] = []
        self.restores: list[tuple[str, Callable[[], object]]] = []
        self.holder = "user"  # whose the part is that is looked at: "user", "settings" or "library"
        todo = [(place, value, self.holder) for place, value in roots]
        seen = dict[tuple[int, bool], Any]()  # kept: else another object could get the same id
        for place, value, self.holder in todo:  # grows
            if (key := (id(value), self.holder == "library")) in seen:
                continue
            seen[key] = value
            try:
                todo += [(*part, self.holder) for part in self._look(place, value)]
            except KDError:
                raise
            except Exception:  # of an object that cannot be looked at
                continue

    def put_back(self) -> list[str]:
        """Put the parts back; return the places of numbers that have changed, and of what cannot be put back."""
        failed = []
        for place, restore in self.restores:
            try:
                restore()
            except Exception:  # of a user's class, or an array that is locked now
                failed.append(place or "the data")
        return failed + self.changed()

    def changed(self) -> list[str]:
        """Return the places of numbers that have changed; nothing is put back."""
        return [place for place, value, digest in self.digests if digest_of_numbers(value) != digest]

    def _note(self, place: str, restore: Callable[..., object], *known: Any) -> None:
        if self.numbers != "told" or self.holder != "library":
            self.restores.append((place, partial(restore, *known)))

    def _look(self, place: str, value: Any) -> list[tuple[str, Any]]:
        """Note a part; return the parts within it."""
        kind = type(value)  # an object may say anything when it is asked itself
        if issubclass(kind, type):
            return self._class(place, value)
        if issubclass(kind, PLAIN):
            return []
        if issubclass(kind, Tensor | np.ndarray) or is_table(value):
            return self._numbers(place, value)
        if (restore := _generator(value)) is not None:
            self._note(place, restore)
            return []
        if issubclass(kind, Iterator) and kind.__module__ in ("builtins", "itertools"):
            if self.numbers == "kept":
                return []
            raise KDError(
                f"expected parts that can be read again, found a {kind.__name__} at {place or 'the data'}: who "
                "reads it first uses it up. Make a list of it"
            )
        if issubclass(kind, partial):
            return [(f"{place}.{name}", getattr(value, name)) for name in ("func", "args", "keywords")]
        if issubclass(kind, MethodType):
            return [(f"{place}.__self__", value.__self__)]
        if issubclass(kind, FunctionType):
            return self._function(place, value)
        return self._entries(place, value) + self._attributes(place, value)

    def _numbers(self, place: str, value: Any) -> list[tuple[str, Any]]:
        found: list[tuple[str, Any]] = []
        if isinstance(value, Tensor) and value.is_leaf:
            self._note(place, _put_gradient_back, value, value.requires_grad, value.grad)
            if value.grad is not None:
                found = [(f"{place}'s gradient", value.grad)]
        if self.numbers == "code":
            for _, gradient in found:
                self._copy(place, gradient)
            if isinstance(value, np.ndarray) and value.nbytes <= MOST_BYTES:
                self._copy(place, value)
            return []
        if isinstance(value, np.ndarray) and value.dtype.hasobject and value.dtype.names is None:
            known = value.copy()
            if value.flags.writeable:
                self._note(place, _fill, value, known)
            return _numbered(place, known.reshape(-1).tolist())
        if self.numbers == "kept" and isinstance(value, Tensor | np.ndarray):
            self._copy(place, value)
            return found
        if (digest := digest_of_numbers(value)) is not None:
            self.digests.append((place or "the data", value, digest))
        for name, column in columns_of(value) if is_table(value) else ():
            if column.dtype == object:
                found += _numbered(f"{place}{name}", column.to_numpy().tolist())
        return found

    def _copy(self, place: str, value: Any) -> None:
        if isinstance(value, Tensor):
            self._note(place, _copy_back, value, value.detach().clone(), digest_of_numbers(value))
        elif value.flags.writeable:
            self._note(place, _fill, value, value.copy())

    def _entries(self, place: str, value: Any) -> list[tuple[str, Any]]:
        kind = type(value)
        if issubclass(kind, list | deque | bytearray | array):
            known = list(value)
            self._note(place, _refill, value, known)
            is_plain = issubclass(kind, bytearray | array) or (self.numbers == "code" and len(known) > MOST_ENTRIES)
            return [] if is_plain else _numbered(place, known)
        if issubclass(kind, tuple):
            return _numbered(place, value)
        if issubclass(kind, dict):
            return [(f"{place}[{key!r}]", part) for key, part in self._keep(place, value).items()]
        if issubclass(kind, MappingProxyType):
            if self.numbers == "told":
                self.digests.append((place or "the data", value, str(digest_of_numbers(value))))
            return [(f"{place}[{key!r}]", part) for key, part in value.items()]
        if issubclass(kind, set):
            self._note(place, _refill, value, set(value))
        return []

    def _attributes(self, place: str, value: Any) -> list[tuple[str, Any]]:
        kind, start = type(value), f"{place}." if place else ""
        owner, is_container = kind.__module__.partition(".")[0], f"{kind.__module__}.{kind.__name__}" in LOOKED_INTO
        if owner in sys.stdlib_module_names and not is_container:
            return []
        # What holds the data themselves, or a configuration that nobody can change: to look at it is to read it.
        if inspect.isroutine(value) or kind.__module__.startswith("kdlib.run."):
            return []
        if not is_container:  # containers are their holder's
            is_users = not is_of_library(kind.__module__) or owner == "torch" or issubclass(kind, nn.Module)
            is_settings = self.holder == "settings" or issubclass(kind, MutableMapping | MutableSequence)
            self.holder = "user" if is_users else "settings" if is_settings else "library"
        if self.holder == "library" and self.numbers == "kept":
            return []
        found: dict[str, Any] = {"its class": kind} if self.numbers == "code" else {}
        with suppress(AttributeError):
            found |= self._keep(place, object.__getattribute__(value, "__dict__"))
        for slot, part in slots_of(value):
            found[slot.__name__] = part
            self._note(place, slot.__set__, value, part)
        if self.holder == "library" and self.numbers == "code":
            return []
        return [(f"{start}{name}", part) for name, part in found.items()]

    def _class(self, place: str, value: type) -> list[tuple[str, Any]]:
        """What a user's class holds for all its objects; with "code", its methods too."""
        if self.numbers == "told" or value.__module__.partition(".")[0] == "kdlib" or is_of_library(value.__module__):
            return []
        known = {name: part for name, part in vars(value).items() if name[:2] != "__" and name != "_abc_impl"}
        self._note(place, _set_back, value, known)
        methods = [part for part in vars(value).values() if isinstance(part, FunctionType) and self.numbers == "code"]
        held = [(f"{place}.{name}", part) for name, part in known.items() if not isinstance(part, FunctionType)]
        return [*held, *((f"{place}.{part.__name__}", part) for part in methods)]

    def _function(self, place: str, value: FunctionType) -> list[tuple[str, Any]]:
        """What a function holds: variables of the function around it, defaults, attributes."""
        owner = str(value.__module__)
        if owner.partition(".")[0] == "kdlib" or is_of_library(owner):  # their functions keep caches
            return []
        found: list[tuple[str, Any]] = [(f"{place}'s defaults", [value.__defaults__, value.__kwdefaults__])]
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            try:
                known = cell.cell_contents
            except ValueError:  # not set yet
                continue
            self._note(place, setattr, cell, "cell_contents", known)
            found.append((f"{place}'s {name}", known))
        if self.numbers == "code":
            names = names_of(value.__code__)
            named = {name: part for name, part in value.__globals__.items() if name in names}
            self._note(place, value.__globals__.update, named)
            found += named.items()
        return [*found, *self._keep(place, value.__dict__).items()]

    def _keep(self, place: str, entries: dict[Any, Any]) -> dict[Any, Any]:
        # A user's class may have other methods of the same names.
        plain = OrderedDict if issubclass(type(entries), OrderedDict) else dict
        known = dict(plain.items(entries))

        def restore() -> None:
            now = dict(plain.items(entries))
            if list(now) != list(known) or any(now[key] is not part for key, part in known.items()):
                plain.clear(entries)
                for key, part in known.items():
                    plain.__setitem__(entries, key, part)

        self._note(place, restore)
        return known


def slots_of(value: Any) -> list[tuple[Any, Any]]:
    """Return the slots of an object's classes that are set, each with what it holds."""
    found = []
    for base in type(value).__mro__:
        for slot in filter(inspect.ismemberdescriptor, vars(base).values() if "__slots__" in vars(base) else ()):
            with suppress(AttributeError):  # not set yet
                found.append((slot, slot.__get__(value)))
    return found


def names_of(code: CodeType) -> set[str]:
    """The names that a function, and the functions within it, use."""
    within = [each for each in code.co_consts if isinstance(each, CodeType)]
    return {*code.co_names}.union(*map(names_of, within))


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


def is_of_library(module: str) -> bool:
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
    kind = type(value)
    if issubclass(kind, torch.Generator):
        state = value.get_state()
        return lambda: value.set_state(state)
    if issubclass(kind, np.random.Generator):
        of_bits = copy.deepcopy(value.bit_generator.state)
        return lambda: setattr(value.bit_generator, "state", of_bits)
    if issubclass(kind, random.Random | np.random.RandomState):
        get, put = ("getstate", "setstate") if issubclass(kind, random.Random) else ("get_state", "set_state")
        known = getattr(value, get)()
        return lambda: getattr(value, put)(known)
    return None
