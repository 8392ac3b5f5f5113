"""What functions of a user's program lead to: closures, the names that they use, attributes, entries of lists."""

from __future__ import annotations

import dis
import functools
import gc
import os
import re
import time
import types
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from torch import Tensor, nn

from kdlib.attributes import content
from kdlib.copies import sample
from kdlib.parts import is_of_library, names_of, slots_of

__all__ = ["is_data", "is_users", "numbers_of", "reached"]

MOST = 10_000  # objects that are looked into, the nearest ones first
ENTRIES = 100  # of a list or a dictionary that is looked into: a longer one is data
LARGEST = 1e8  # of a number that a user chooses: seconds since 1970 are more
LONGEST = 100  # characters of a name, of which the last ones say what it is
CONTAINERS = dict, list, tuple, set, deque
PLAIN = *CONTAINERS, OrderedDict, defaultdict
LEAVES = int, float, bool, str, bytes, type(None)
CALLED = types.FunctionType, types.MethodType, functools.partial, staticmethod, classmethod, property
ENTRY = "STORE_SUBSCR"  # changes an entry of a dictionary, whose key is not known
GIVES_ALL = "DICT_MERGE"  # gives all entries of a dictionary to a function
MAKERS = "__init__", "__post_init__", "__new__", "__setstate__"  # what they change is not changed later
# Methods that are used without their names; others of Python's show, compare or copy an object.
UNNAMED = "__call__", "__getitem__", "__iter__", "__next__", "__len__", "__getattr__", "__enter__", "__exit__"
BEGAN = time.monotonic()
SETTINGS = "argparse.Namespace", "types.SimpleNamespace"


def reached(
    roots: Iterable[Any], known: Collection[int], through: Callable[[Any], bool] = lambda value: True
) -> dict[int, Any]:
    """Return what functions and objects lead to, by their ids, `through` those of which this is true.

    What is `known` is left out, with all that only it leads to.
    """
    waiting, found = deque(roots), dict[int, Any]()
    while waiting and len(found) < MOST:
        value = waiting.popleft()
        with suppress(Exception):  # of somebody else's objects
            if id(value) not in found and id(value) not in known and through(value):
                found[id(value)] = value
                waiting += [part for _, _, part in _parts(value) if type(part) not in LEAVES]
    return found


def is_data(value: Any) -> bool:
    """Return whether a value is no function or class, which nothing saves with the object that has it."""
    return not issubclass(type(value), (*CALLED, type))


def numbers_of(roots: Sequence[Any], known: Collection[int]) -> dict[str, str]:
    """Return the numbers that functions use: written in them, of names, attributes and keys that they name.

    Of names, attributes and keys, flags, short texts that choose a method, and digests of tensors that are not `known`
    are returned, too.

    Of a class, the methods are looked at that these functions, or such methods, name. What any method or function
    changes itself is a counter, and no number of it.
    """
    uses = _Uses(roots)
    values = uses.reached(roots, known)
    codes = [code for value in (*values, *uses.methods.values()) for code in _codes(value)]
    changed = {name for code in codes for name in _changed_by(code)}
    gives_all = any(step.opname == GIVES_ALL for value in values for code in _codes(value) for step in _steps(code))
    found: dict[str, list[str]] = {}
    for value in values:
        own: dict[str, list[str]] = {}
        with suppress(Exception):  # of somebody else's objects
            owner = (value if issubclass(type(value), type | types.FunctionType) else type(value)).__qualname__
            for place, key, part in [each for each in [*_parts(value), *_constants(value)] if each[0]]:
                is_used = place in ("number", "given") or str(key) in uses.names or type(key) is not str
                if place == "key":
                    is_used = (is_used or gives_all) and ENTRY not in changed
                if is_used and str(key) not in changed and id(part) not in known and (texts := _texts(part)):
                    name = ascii(str(key) if place == "key" else f"{owner}.{key}")[1:-1]
                    own.setdefault(name[-LONGEST:], []).extend(texts)
        for name, texts in own.items():
            found.setdefault(name, []).append(", ".join(texts))
    # A set has its objects in another order in each process.
    return {name: ", ".join(sorted(texts)) for name, texts in found.items()}


class _Uses:
    """The names that functions use, and the methods of the classes that they lead to."""

    def __init__(self, roots: Iterable[Any]) -> None:
        self.names = {"forward", *(str(getattr(root, "__name__", "")) for root in roots)}
        self.methods: dict[int, Any] = {}
        self.named: dict[int, str] = {}  # the name of each method in its class

    def reached(self, roots: Iterable[Any], known: Collection[int]) -> list[Any]:
        """Return what functions lead to through methods that they name, functions, and objects of the user."""
        count = -1
        while count < len(self.names):
            count = len(self.names)
            values = [*reached(roots, known, through=self._is_through).values()]
            self.names |= {name for value in values for code in _codes(value) for name in _named_by(code)}
        return values

    def _is_through(self, value: Any) -> bool:
        if not _is_of_user(value):
            return False
        if issubclass(type(value), type):  # it is looked at before its methods
            for _, name, part in _parts(value):
                for method in _functions_of(part):
                    self.methods[id(method)], self.named[id(method)] = method, str(name)
        name = self.named.get(id(value), "__call__")
        return name in self.names or name in UNNAMED


def _functions_of(part: Any) -> list[Any]:
    """The functions of a method or a property of a class."""
    if issubclass(type(part), types.FunctionType):
        return [part]
    is_wrapped = issubclass(type(part), staticmethod | classmethod | property)
    return [each for _, _, each in _parts(part) if issubclass(type(each), types.FunctionType)] if is_wrapped else []


def _named_by(code: types.CodeType) -> set[str]:
    return {*code.co_names, *(each for each in code.co_consts if type(each) is str)}


def _changed_by(code: types.CodeType) -> Iterator[str]:
    """The names and keys of what a function changes that outlives it; ENTRY for a key that is not known."""
    steps = [] if code.co_name in MAKERS else _steps(code)
    for container, key, step in zip([None, None, *steps], [None, *steps], steps, strict=False):
        if step.opname in ("STORE_GLOBAL", "STORE_ATTR") or (
            step.opname == "STORE_DEREF" and step.argval in code.co_freevars
        ):
            yield str(step.argval)
        elif step.opname == ENTRY and key and container:
            if key.opname == "LOAD_CONST" and type(key.argval) is str:
                yield key.argval
            elif container.opname != "LOAD_FAST" or not key.opname.startswith("LOAD_"):  # of a local name: a tensor
                yield ENTRY


@functools.cache  # the same functions are searched again after epochs
def _steps(code: types.CodeType) -> list[dis.Instruction]:
    return [*dis.get_instructions(code)]


def _texts(part: Any) -> list[str]:
    """The numbers, flags and choices of a value or a tuple; those in a list are counters, more often than not.

    A tensor or an array has a digest of some of its numbers.
    """
    if issubclass(type(part), Tensor | np.ndarray):
        return [found[:16]] if (found := sample(part)) else []
    if type(part) in (tuple, frozenset):
        texts = [text for each in part for text in _texts(each)] if len(part) <= ENTRIES else []
        return texts if len(texts) <= ENTRIES else []
    if type(part) is bool or (type(part) is str and _is_choice(part)):
        return [repr(part)]
    if type(part) not in (int, float) and not isinstance(part, np.integer | np.floating):
        return []
    value = part if type(part) is int else float(part)
    is_time = type(value) is float and value % 1 and 0 <= time.monotonic() - value <= time.monotonic() - BEGAN
    return [] if abs(value) > LARGEST or value == os.getpid() or is_time else [repr(value)]


def _is_choice(text: str) -> bool:
    """Whether a text may choose between methods, and is no path, device or name of a session."""
    is_word = re.fullmatch(r"[A-Za-z][\w+.-]{0,39}", text) and not re.fullmatch("cpu|cuda|mps|xpu", text)
    return bool(is_word) and sum(map(str.isdigit, text)) < 6  # a name with a date has more


def _is_of_user(value: Any) -> bool:
    kind = type(value)
    if issubclass(kind, type):
        return is_users(value.__module__)
    is_known = issubclass(kind, CALLED) or kind in PLAIN or issubclass(kind, nn.modules.loss._Loss)
    return is_known or f"{kind.__module__}.{kind.__qualname__}" in SETTINGS or is_users(kind.__module__)


def _codes(value: Any) -> Iterator[types.CodeType]:
    """The code of a function of the user, and of the functions within it."""
    if issubclass(type(value), types.FunctionType) and is_users(value.__module__):
        codes = [value.__code__]
        for code in codes:  # grows
            codes += [each for each in code.co_consts if isinstance(each, types.CodeType)]
            yield code


def _constants(value: Any) -> list[tuple[str, Any, Any]]:
    """The numbers that are written in a function of the user, but for texts, which may be keys and messages."""
    every = [each for code in _codes(value) for each in code.co_consts]
    return [("number", "numbers", each) for each in every if not isinstance(each, bool | str)]


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
        classes = [each for each in value.__mro__ if is_users(each.__module__)]
        return [("attribute", name, part) for each in classes for name, part in vars(each).items()]
    if issubclass(kind, staticmethod | classmethod):
        return [("", "", value.__func__)]
    if issubclass(kind, property):
        return [("", "", value.fget), ("", "", value.fset)]
    if issubclass(kind, types.ModuleType | Tensor | np.ndarray):
        return []
    found: list[tuple[str, Any, Any]] = [("", "", kind)] if is_users(kind.__module__) else []  # its methods
    if issubclass(kind, functools._lru_cache_wrapper):
        found += [("", "", part) for part in gc.get_referents(value) if type(part) is dict]  # the results so far
    for base in CONTAINERS:  # by its own methods: those of a user's class may do more
        if issubclass(kind, base) and base.__len__(value) <= ENTRIES:
            entries = dict.items(value) if base is dict else (("", part) for part in base.__iter__(value))
            found += [("key" if base is dict else "", key, part) for key, part in entries]
    names = getattr(kind, "_fields", ()) if issubclass(kind, tuple) else ()  # of a named tuple
    own = [*zip(names, tuple.__iter__(value), strict=True)] if names else []
    own += [*((str(getattr(name, "__name__", name)), part) for name, part in slots_of(value))]
    own += getattr(value, "__dict__", {}).items() if kind.__dictoffset__ else []  # else a user's `__getattr__` is asked
    if issubclass(kind, nn.Module) and is_of_library(kind.__module__):  # its tensors are known by it
        own = [
            (name, part) for name, part in own if name == "_modules" or "hooks" in name or not isinstance(part, dict)
        ]
    place = "given" if issubclass(kind, nn.modules.loss._Loss) else "attribute"
    return [*found, *((place, name, part) for name, part in own)]


def _of_function(value: types.FunctionType) -> list[tuple[str, Any, Any]]:
    """What a function, and the functions within it, name: of modules that are the user's, what the function names."""
    code = value.__code__
    names = sorted(names_of(code)) if is_users(value.__module__) else []
    loaded = {name for each in _codes(value) for name in _globals_of(each)}
    named = [(name, value.__globals__[name]) for name in names if name in value.__globals__ and name in loaded]
    modules = [part for _, part in named if isinstance(part, types.ModuleType) and is_users(part.__name__)]
    for module in modules:  # grows
        found = [(name, vars(module)[name]) for name in names if name in vars(module)]
        inner = [part for _, part in found if isinstance(part, types.ModuleType) and is_users(part.__name__)]
        modules += [part for part in inner if part not in modules]
        named += found
    cells = zip(code.co_freevars, map(content, value.__closure__ or ()), strict=True)
    last = [*zip(code.co_varnames[: code.co_argcount][::-1], (value.__defaults__ or ())[::-1], strict=False)]
    given = [*last, *(value.__kwdefaults__ or {}).items()]
    return [
        *(("given", name, each) for name, each in [*cells, *given]),
        *(("attribute", name, each) for name, each in named),
    ]


def _globals_of(code: types.CodeType) -> list[str]:
    return [str(step.argval) for step in _steps(code) if step.opname == "LOAD_GLOBAL"]


def is_users(module: Any) -> bool:
    """Return whether a module, by the name that it or one of its objects gives, is the user's."""
    return not is_of_library(str(module)) and str(module).partition(".")[0] != "kdlib"
