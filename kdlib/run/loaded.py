"""Data that are read once for all runs that need the same; what a run changes in them is put back, or refused."""

from __future__ import annotations

import copy
import hashlib
import inspect
import random
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from types import MethodType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdlib.errors import KDError, error_in_user_code
from kdlib.seeds import seeded

__all__ = ["LoadedOnce"]

SHOWN = 3  # changed parts that an error names


@dataclass
class _Loaded:
    read: dict[str, Any]  # the fields of the configuration that the loader has looked at
    folders: dict[str, Path]
    data: Any
    before: _Contents | None = None  # as they were loaded, as soon as a run needs to know


class LoadedOnce:
    """Calls `load_data` once for all configurations with the same values in the fields that it reads."""

    KEPT = 2  # data sets in memory

    def __init__(self, load: Callable[[Any, Mapping[str, Path]], Any]) -> None:
        self.load = load
        self.known: list[_Loaded] = []

    def __call__(self, config: Any, folders: Mapping[str, Path]) -> Any:
        """Return the data of a configuration. What they draw from global generators is the same in each process."""
        for each in self.known:
            if each.folders == folders and all(getattr(config, name) == value for name, value in each.read.items()):
                return each.data
        watched = _Watched(config)
        try:
            with seeded(0):
                data = self.load(watched, folders)
        except KDError:
            raise
        except (Exception, SystemExit) as error:
            raise error_in_user_code("load_data", error, "a function that reads the data") from error
        watched._is_loading = False
        self.known = [*self.known, _Loaded(watched._read, dict(folders), data)][-self.KEPT :]
        return data

    @contextmanager
    def unchanged(self, label: str) -> Iterator[None]:
        """Put back what a training adds to the data, takes away or replaces: other runs have the same data.

        Refuse (KDError) changes of numbers in place, which cannot be put back, and read the data again afterwards.
        """
        for each in self.known:
            each.before = each.before or _Contents(each.data)
        try:
            yield
        finally:
            changed = [name for each in self.known if each.before for name in each.before.put_back()]
            self.known = [] if changed else self.known
        if changed:
            more = f" and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
            raise KDError(
                f"{label}: expected a training function that leaves the data as they are, found that it changed "
                f"{', '.join(changed[:SHOWN])}{more} in place; write x = x - mean instead of x.sub_(mean), or do it in "
                "load_data"
            )


class _Contents:
    """What data consist of: their containers, to be put back, and digests of their numbers.

    Parts of Python's own classes but the usual containers (open files, locks, loggers) are left out, and arrays that
    cannot be written to have no digest.
    """

    def __init__(self, data: Any) -> None:
        self.digests: list[tuple[str, Any, str]] = []
        self.restores: list[Callable[[], object]] = []
        todo, seen = [("", data)], dict[int, Any]()  # kept: else another object could get the same id
        for place, value in todo:  # grows
            if id(value) not in seen:
                seen[id(value)] = value
                todo += self._look(place, value)

    def put_back(self) -> list[str]:
        """Put the containers back; return the places of numbers that have changed."""
        for restore in self.restores:
            restore()
        return [place or "the data" for place, value, digest in self.digests if _digest(value) != digest]

    def _look(self, place: str, value: Any) -> list[tuple[str, Any]]:
        """Note a part; return the parts within it."""
        if isinstance(value, _Watched):  # nobody can change it, and to look at it is to read it
            return []
        if isinstance(value, Tensor | np.ndarray) or hasattr(value, "to_numpy"):  # the last of pandas
            if (digest := _digest(value)) is not None:
                self.digests.append((place, value, digest))
            return []
        if (restore := _generator(value)) is not None:
            self.restores.append(restore)
            return []
        if isinstance(value, list | deque | bytearray):
            known = list(value)
            self.restores.append(partial(_refill, value, value.extend, known))
            return [] if isinstance(value, bytearray) else [(f"{place}[{n}]", part) for n, part in enumerate(known)]
        if isinstance(value, tuple):
            return [(f"{place}[{number}]", part) for number, part in enumerate(value)]
        if isinstance(value, dict):
            return [(f"{place}[{key!r}]", part) for key, part in self._keep(value).items()]
        if isinstance(value, set):
            self.restores.append(partial(_refill, value, value.update, set(value)))
            return []
        return self._attributes(place, value)

    def _attributes(self, place: str, value: Any) -> list[tuple[str, Any]]:
        kind, start = type(value), f"{place}." if place else ""
        of_python = kind.__module__.partition(".")[0] in sys.stdlib_module_names and kind is not SimpleNamespace
        if of_python or isinstance(value, type | ModuleType) or inspect.isroutine(value):
            return []
        found: dict[str, Any] = {}
        if isinstance(own := getattr(value, "__dict__", None), dict):
            found |= self._keep(own)
        for base in kind.__mro__:
            names = base.__dict__.get("__slots__", ())
            for name in (names,) if isinstance(names, str) else names:
                if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                    found[name] = getattr(value, name)
                    self.restores.append(partial(object.__setattr__, value, name, found[name]))
        return [(f"{start}{name}", part) for name, part in found.items()]

    def _keep(self, entries: dict[Any, Any]) -> dict[Any, Any]:
        known = dict(entries)

        def restore() -> None:
            if list(entries) != list(known) or any(entries[key] is not part for key, part in known.items()):
                entries.clear()
                entries.update(known)

        self.restores.append(restore)
        return known


def _refill(value: Any, fill: Callable[[Any], None], known: Any) -> None:
    value.clear()
    fill(known)


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


def _views(value: np.ndarray[Any, Any]) -> Iterator[np.ndarray[Any, Any]]:
    """An array, and those that it is a view of."""
    part: Any = value
    while isinstance(part, np.ndarray):
        yield part
        part = part.base


def _digest(value: Any) -> str | None:
    """The digest of numbers; None of those that cannot be written to, and of a kind that has none."""
    try:
        if isinstance(value, np.ndarray) and not any(part.flags.writeable for part in _views(value)):
            return None
        if isinstance(value, Tensor):
            plain = value.detach().cpu().contiguous().reshape(-1)
            content: Any = plain.view(torch.uint8).numpy()
        elif isinstance(value, np.ndarray) and not value.dtype.hasobject:
            content = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
        elif isinstance(value, np.ndarray):
            content = repr(value.tolist()).encode(errors="backslashreplace")
        else:
            names = repr([[*getattr(value, part, ())] for part in ("columns", "index")])
            content = f"{names} {_digest(value.to_numpy())}".encode(errors="backslashreplace")
        return hashlib.blake2b(content, digest_size=16).hexdigest()
    except Exception:  # of a kind without plain numbers, or too large for the memory
        return None


class _Watched:
    """A configuration that remembers which of its fields were read while the data were loaded."""

    __slots__ = ("_config", "_is_loading", "_read")

    def __init__(self, config: Any) -> None:
        self._config, self._read, self._is_loading = config, dict[str, Any](), True

    def __getattr__(self, name: str) -> Any:
        if name in _Watched.__slots__:
            raise AttributeError(name)
        value = getattr(self._config, name)
        if name.startswith("__"):
            return value
        if inspect.ismethod(value) and value.__self__ is self._config:
            return MethodType(value.__func__, self)  # the fields that it reads are noted
        if not self._is_loading and name not in self._read:
            raise KDError(
                f"load_data: expected data that know all they need of the configuration, found that they asked for "
                f"{name!r} afterwards: they are also those of runs with another {name}. Read config.{name} in load_data"
            )
        self._read[name] = copy.deepcopy(value)
        return copy.deepcopy(value)

    def _whole(self) -> Any:
        """The configuration itself, all of whose fields count as read."""
        for each in fields(self._config):
            getattr(self, each.name)
        return copy.deepcopy(self._config)

    def __deepcopy__(self, memo: Any) -> Any:
        return self._whole()

    def __copy__(self) -> Any:
        return self._whole()

    def __reduce__(self) -> Any:
        return copy.copy, (self._whole(),)

    def __repr__(self) -> str:
        return repr(self._whole())

    @property
    def __dict__(self) -> dict[str, Any]:  # type: ignore[override]
        return dict(vars(self._whole()))
