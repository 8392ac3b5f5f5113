"""What functions of a user's program lead to: closures, the names that they use, attributes, entries of lists."""

from __future__ import annotations

import dis
import functools
import gc
import os
import types
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
from torch import Tensor, nn

from kdlib.attributes import content
from kdlib.parts import is_of_library, names_of, slots_of

__all__ = ["numbers_of", "reached"]

MOST = 10_000  # objects that are looked into, the nearest ones first
ENTRIES = 100  # of a list or a dictionary that is looked into: a longer one is data
LARGEST = 1e8  # of a number that a user chooses: seconds since 1970 are more
LONGEST = 100  # characters of a name, of which the last ones say what it is
CONTAINERS = dict, list, tuple, set, deque
CALLED = types.FunctionType, types.MethodType, functools.partial, staticmethod, classmethod, property
ENTRY = "STORE_SUBSCR"  # changes an entry of a dictionary, whose key is not known
GIVES_ALL = "DICT_MERGE"  # gives all entries of a dictionary to a function
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
                waiting += [part for _, _, part in _parts(value)]
    return found


def numbers_of(roots: Iterable[Any], known: Collection[int]) -> dict[str, str]:
    """Return the numbers that functions use: written in them, of names, attributes and keys that they name.

    What a function changes itself is a counter, and no number of it.
    """
    values = [*reached(roots, known, of_users=True).values()]
    used, changed, done = set[str](), set[str](), set[str]()
    for code in (code for value in values for code in _codes(value)):
        steps = [*dis.get_instructions(code)]
        used |= {*code.co_names, *(each for each in code.co_consts if type(each) is str)}
        changed |= {str(step.argval) for step in steps if _changes(step, code)}
        done |= {step.opname for step in steps}
    found: dict[str, list[str]] = {}
    for value in values:
        with suppress(Exception):  # of somebody else's objects
            owner = getattr(value, "__qualname__", type(value).__name__)
            for place, key, part in [each for each in [*_parts(value), *_constants(value)] if each[0]]:
                is_used = place in ("number", "given") or str(key) in used or type(key) is not str
                if place == "key":
                    is_used = (is_used or GIVES_ALL in done) and ENTRY not in done
                if is_used and str(key) not in changed and (texts := _texts(part)):
                    name = ascii(str(key) if place == "key" else f"{owner}.{key}")[1:-1]
                    found.setdefault(name[-LONGEST:], []).extend(texts)
    return {name: ", ".join(texts) for name, texts in found.items()}


def _changes(step: dis.Instruction, code: types.CodeType) -> bool:
    """Whether an instruction changes something that outlives the function, but for the making of an object."""
    if code.co_name in ("__init__", "__post_init__", "__new__", "__setstate__"):
        return False
    return step.opname in ("STORE_GLOBAL", "STORE_ATTR") or (
        step.opname == "STORE_DEREF" and step.argval in code.co_freevars
    )


def _texts(part: Any) -> list[str]:
    """The numbers of a value or a tuple; those in a list are counters, more often than not."""
    if type(part) in (tuple, frozenset):
        return [text for each in part for text in _texts(each)]
    if type(part) not in (int, float) and not isinstance(part, np.integer | np.floating):
        return []
    value = part if type(part) is int else float(part)
    return [] if abs(value) > LARGEST or value == os.getpid() else [repr(value)]


def _is_of_user(value: Any) -> bool:
    kind = type(value)
    if issubclass(kind, type):
        return _is_users(value.__module__)
    is_known = issubclass(kind, CALLED) or kind in CONTAINERS or issubclass(kind, nn.modules.loss._Loss)
    return is_known or f"{kind.__module__}.{kind.__qualname__}" in SETTINGS or _is_users(kind.__module__)


def _codes(value: Any) -> Iterator[types.CodeType]:
    """The code of a function of the user, and of the functions within it."""
    if issubclass(type(value), types.FunctionType) and _is_users(str(value.__module__)):
        codes = [value.__code__]
        for code in codes:  # grows
            codes += [each for each in code.co_consts if isinstance(each, types.CodeType)]
            yield code


def _constants(value: Any) -> list[tuple[str, Any, Any]]:
    """The numbers that are written in a function of the user."""
    return [("number", "numbers", each) for code in _codes(value) for each in code.co_consts]


def _parts(value: Any) -> list[tuple[str, Any, Any]]:
    """What a value leads to: the kind of place, the name or key there, and what is there."""
    kind = type(value)
    if issubclass(kind, types.FunctionType):
        # One of kdlib may hold a user's object in a cell.
        return [] if is_of_library(str(value.__module__)) else _of_function(value)
    if issubclass(kind, functools.partial):
        given = [*enumerate(value.args), *value.keywords.items()]
        return [("", "", value.func), *(("given", f"argument {key}", each) for key, each in given)]
    if issubclass(kind, types.MethodType):
        return [("", "", value.__func__), ("", "", value.__self__)]
    if issubclass(kind, types.BuiltinFunctionType):
        return [("", "", value.__self__)]
    if issubclass(kind, type):
        classes = [each for each in value.__mro__ if _is_users(each.__module__)]
        return [("attribute", name, part) for each in classes for name, part in vars(each).items()]
    if issubclass(kind, staticmethod | classmethod):
        return [("", "", value.__func__)]
    if issubclass(kind, property):
        return [("", "", value.fget), ("", "", value.fset)]
    if issubclass(kind, types.ModuleType | Tensor | np.ndarray):
        return []
    found: list[tuple[str, Any, Any]] = [("", "", kind)] if _is_users(kind.__module__) else []  # its methods
    if issubclass(kind, functools._lru_cache_wrapper):
        found += [("", "", part) for part in gc.get_referents(value) if type(part) is dict]  # the results so far
    for base in CONTAINERS:  # by its own methods: those of a user's class may do more
        if issubclass(kind, base) and base.__len__(value) <= ENTRIES:
            entries = dict.items(value) if base is dict else (("", part) for part in base.__iter__(value))
            found += [("key" if base is dict else "", key, part) for key, part in entries]
    names = getattr(kind, "_fields", ()) if issubclass(kind, tuple) else ()  # of a named tuple
    own = [*zip(names, tuple.__iter__(value), strict=True)] if names else []
    own += [*((str(getattr(name, "__name__", name)), part) for name, part in slots_of(value))]
    own += getattr(value, "__dict__", {}).items()
    if issubclass(kind, nn.Module) and is_of_library(kind.__module__):  # its tensors are known by it
        own = [
            (name, part) for name, part in own if name == "_modules" or "hooks" in name or not isinstance(part, dict)
        ]
    place = "given" if issubclass(kind, nn.modules.loss._Loss) else "attribute"
    return [*found, *((place, name, part) for name, part in own)]


def _of_function(value: types.FunctionType) -> list[tuple[str, Any, Any]]:
    """What a function, and the functions within it, name: of modules that are the user's, what the function names."""
    code = value.__code__
    names = sorted(names_of(code)) if _is_users(str(value.__module__)) else []
    loaded = {name for each in _codes(value) for name in _globals_of(each)}
    named = [(name, value.__globals__[name]) for name in names if name in value.__globals__ and name in loaded]
    for module in [part for _, part in named if isinstance(part, types.ModuleType)]:
        if _is_users(module.__name__):
            named += [(name, vars(module)[name]) for name in names if name in vars(module)]
    cells = zip(code.co_freevars, map(content, value.__closure__ or ()), strict=True)
    last = [*zip(code.co_varnames[: code.co_argcount][::-1], (value.__defaults__ or ())[::-1], strict=False)]
    given = [*last, *(value.__kwdefaults__ or {}).items()]
    return [
        *(("given", name, each) for name, each in [*cells, *given]),
        *(("attribute", name, each) for name, each in named),
    ]


@functools.cache  # the same functions are searched again after epochs
def _globals_of(code: types.CodeType) -> list[str]:
    return [str(step.argval) for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL"]


def _is_users(module: str) -> bool:
    return not is_of_library(module) and module.partition(".")[0] != "kdlib"
