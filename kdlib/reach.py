"""What functions of a user's program lead to: closures, the names that they use, attributes, entries of lists."""

from __future__ import annotations

import functools
import gc
import types
from collections import deque
from collections.abc import Collection, Iterable
from contextlib import suppress
from typing import Any

import numpy as np
from torch import Tensor

from kdlib.attributes import content
from kdlib.parts import is_of_library, names_of, slots_of

__all__ = ["numbers_of", "reached"]

MOST = 10_000  # objects that are looked into, the nearest ones first
ENTRIES = 100  # of a list or a dictionary that is looked into: a longer one is data
CONTAINERS = dict, list, tuple, set, deque
CALLED = types.FunctionType, types.MethodType, functools.partial, staticmethod, classmethod, property
SETTINGS = "argparse.Namespace", "types.SimpleNamespace"


def reached(roots: Iterable[Any], known: Collection[int], of_users: bool = False) -> dict[int, Any]:
    """Return what functions and objects lead to, by their ids; `of_users`: only through functions and users' objects.

    What is `known` is left out, with all that only it leads to.
    """
    waiting, found = deque(roots), dict[int, Any]()
    while waiting and len(found) < MOST:
        value = waiting.popleft()
        if id(value) not in found and id(value) not in known and (not of_users or _is_of_user(value)):
            found[id(value)] = value
            with suppress(Exception):  # of somebody else's objects
                waiting += [part for _, part in _parts(value)]
    return found


def numbers_of(roots: Iterable[Any], known: Collection[int]) -> dict[str, str]:
    """Return the numbers that functions and users' objects hold and use, by their names, as texts."""
    found: dict[str, list[str]] = {}
    for value in reached(roots, known, of_users=True).values():
        with suppress(Exception):  # of somebody else's objects
            for name, part in [*_parts(value), *_constants(value)]:
                if name and type(name) is str and type(part) in (int, float):
                    found.setdefault(name, []).append(repr(part))
    return {name: ", ".join(sorted(values)) for name, values in found.items()}


def _is_of_user(value: Any) -> bool:
    kind = type(value)
    if issubclass(kind, type):
        return _is_users(value.__module__)
    is_known = issubclass(kind, CALLED) or kind in CONTAINERS or f"{kind.__module__}.{kind.__qualname__}" in SETTINGS
    return is_known or _is_users(kind.__module__)


def _constants(value: Any) -> list[tuple[str, Any]]:
    """The numbers that are written in a function of the user."""
    if not issubclass(type(value), types.FunctionType) or not _is_users(str(value.__module__)):
        return []
    codes = [value.__code__]
    for code in codes:  # grows: functions within it
        codes += [each for each in code.co_consts if isinstance(each, types.CodeType)]
    return [(f"{value.__qualname__}: number", each) for code in codes for each in code.co_consts]


def _parts(value: Any) -> list[tuple[Any, Any]]:
    """What a value leads to, each with a name, or with the key of a dictionary."""
    kind = type(value)
    if issubclass(kind, types.FunctionType):
        # One of kdlib may hold a user's object in a cell.
        return [] if is_of_library(str(value.__module__)) else _of_function(value)
    if issubclass(kind, functools.partial):
        name = getattr(value.func, "__qualname__", type(value.func).__name__)
        given = {**{str(place): each for place, each in enumerate(value.args)}, **value.keywords}
        return [("", value.func), *((f"{name}({key})", each) for key, each in given.items())]
    if issubclass(kind, types.MethodType):
        return [("", value.__func__), ("", value.__self__)]
    if issubclass(kind, types.BuiltinFunctionType):
        return [("", value.__self__)]
    if issubclass(kind, type):
        classes = [each for each in value.__mro__ if _is_users(each.__module__)]
        return [(f"{each.__qualname__}.{name}", part) for each in classes for name, part in vars(each).items()]
    if issubclass(kind, staticmethod | classmethod):
        return [("", value.__func__)]
    if issubclass(kind, property):
        return [("", value.fget), ("", value.fset)]
    if issubclass(kind, types.ModuleType | Tensor | np.ndarray):
        return []
    found: list[tuple[Any, Any]] = [("", kind)] if _is_users(kind.__module__) else []  # its methods
    if issubclass(kind, functools._lru_cache_wrapper):
        found += [("", part) for part in gc.get_referents(value) if type(part) is dict]  # the results so far
    if issubclass(kind, CONTAINERS) and len(value) <= ENTRIES:
        # Numbers in a list are left without a name: they are counters, more often than not.
        found += value.items() if issubclass(kind, dict) else [("", part) for part in value]
    own = [*slots_of(value), *getattr(value, "__dict__", {}).items()]
    return [*found, *((f"{kind.__qualname__}.{name}", part) for name, part in own)]


def _of_function(value: types.FunctionType) -> list[tuple[str, Any]]:
    """What a function, and the functions within it, name: of modules that are the user's, what the function names."""
    code = value.__code__
    names = sorted(names_of(code)) if _is_users(str(value.__module__)) else []
    named = [(name, value.__globals__[name]) for name in names if name in value.__globals__]
    for place, module in [each for each in named if isinstance(each[1], types.ModuleType)]:
        if _is_users(module.__name__):
            named += [(f"{place}.{name}", vars(module)[name]) for name in names if name in vars(module)]
    cells = zip(code.co_freevars, map(content, value.__closure__ or ()), strict=True)
    last = [*zip(code.co_varnames[: code.co_argcount][::-1], (value.__defaults__ or ())[::-1], strict=False)]
    given = [*cells, *last, *(value.__kwdefaults__ or {}).items()]
    return [*((f"{value.__qualname__}.{name}", each) for name, each in given), *named]


def _is_users(module: str) -> bool:
    return not is_of_library(module) and module.partition(".")[0] != "kdlib"
