"""Data that are read once for all runs that need the same, and refused if a run changes them."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from torch import Tensor

from kdlib.errors import KDError, error_in_user_code
from kdlib.files import array_digest, sha256

__all__ = ["LoadedOnce"]

PLAIN = bool | int | float | complex | str | bytes | None
SHOWN = 3  # changed parts that an error names


@dataclass
class _Loaded:
    read: dict[str, Any]  # the fields of the configuration that the loader has looked at
    folders: dict[str, Path]
    data: Any
    contents: dict[str, str] | None = None  # as they were loaded, as soon as a run needs to know


class LoadedOnce:
    """Calls `load_data` once for all configurations with the same values in the fields that it reads."""

    KEPT = 2  # data sets in memory

    def __init__(self, load: Callable[[Any, Mapping[str, Path]], Any]) -> None:
        self.load = load
        self.known: list[_Loaded] = []

    def __call__(self, config: Any, folders: Mapping[str, Path]) -> Any:
        """Return the data of a configuration."""
        for each in self.known:
            if each.folders == folders and all(getattr(config, name) == value for name, value in each.read.items()):
                return each.data
        watched = _Watched(config)
        try:
            data = self.load(watched, folders)
        except KDError:
            raise
        except (Exception, SystemExit) as error:
            raise error_in_user_code("load_data", error, "a function that reads the data") from error
        object.__setattr__(watched, "_is_loading", False)
        self.known = [*self.known, _Loaded(watched._read, dict(folders), data)][-self.KEPT :]
        return data

    @contextmanager
    def unchanged(self, label: str) -> Iterator[None]:
        """Refuse (KDError) a training that changes the data, or replaces a part of them; read them again afterwards.

        The other runs of this process have the same data. What the data make when they are first asked may be added.
        """
        for each in self.known:
            each.contents = _contents(each.data) if each.contents is None else each.contents
        yield
        for each in self.known:
            before, now = each.contents or {}, _contents(each.data)
            if changed := [name for name, content in before.items() if now.get(name) != content]:
                self.known = []
                more = f" and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
                raise KDError(
                    f"{label}: expected a training function that leaves the data as they are, found that it changed "
                    f"{', '.join(changed[:SHOWN])}{more}; write x = x - mean instead of x.sub_(mean), and train = "
                    "run.data.train.select(rows) instead of run.data.train = ..., or do it in load_data"
                )
            each.contents = now


def _contents(data: Any) -> dict[str, str]:
    """A digest of each tensor, array and plain value of the data, by its place: `train.inputs`, for example.

    Parts of other kinds (functions, generators, open files) are left out.
    """
    found: dict[str, str] = {}
    _look(data, "", found, set())
    return found


def _look(value: Any, place: str, found: dict[str, str], seen: set[int]) -> None:
    if isinstance(value, Tensor | np.ndarray):
        content = _digest(value)
        found |= {} if content is None else {place or "the data": content}
        return
    if isinstance(value, PLAIN | Path):
        found[place] = repr(value)
        return
    if id(value) in seen or isinstance(value, type | ModuleType) or inspect.isroutine(value):
        return
    seen.add(id(value))
    if isinstance(value, list | tuple) and all(isinstance(part, PLAIN | Path) for part in value):  # many names of files
        found[place] = sha256(repr(value).encode(errors="backslashreplace"))
        return
    start = f"{place}." if place else ""
    if isinstance(value, list | tuple):
        found[f"the length of {place}"] = str(len(value))
        parts = {f"{place}[{number}]": part for number, part in enumerate(value)}
    elif isinstance(value, Mapping):
        parts = {f"{place}[{key!r}]": part for key, part in value.items()}
    else:
        slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
        names = dict.fromkeys([*getattr(value, "__dict__", {}), *(name for name in slots if hasattr(value, name))])
        parts = {f"{start}{name}": getattr(value, name) for name in names}
    for name, part in parts.items():
        _look(part, name, found, seen)


def _digest(value: Tensor | np.ndarray[Any, Any]) -> str | None:
    """The digest of an array; None of one without numbers, or of a kind that has none."""
    try:
        return array_digest(value)
    except (KDError, TypeError, ValueError, RuntimeError):
        return None


class _Watched:
    """A configuration that remembers which of its fields were read while the data were loaded."""

    def __init__(self, config: Any) -> None:
        self._config, self._read, self._is_loading = config, dict[str, Any](), True

    def __getattr__(self, name: str) -> Any:
        if name in ("_config", "_read", "_is_loading"):  # while it is copied
            raise AttributeError(name)
        value = getattr(self._config, name)
        if name.startswith("__"):
            return value
        if not self._is_loading and name not in self._read:
            raise KDError(
                f"load_data: expected data that know all they need of the configuration, found that they asked for "
                f"{name!r} afterwards: they are also those of runs with another {name}. Read config.{name} in load_data"
            )
        self._read[name] = copy.deepcopy(value)
        return copy.deepcopy(value)
