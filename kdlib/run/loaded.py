"""What keeps the runs of a process apart: data that are read once, modules, and the seeds of students side by side."""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch

from kdlib.contents import digest_of_numbers
from kdlib.errors import DataChanged, KDError, error_in_user_code, some_of
from kdlib.parts import Parts
from kdlib.precision import usual_settings
from kdlib.run.environment import source_files
from kdlib.seeds import derive_seed, seed_globally, seeded

__all__ = ["LoadedOnce", "Members", "modules_put_back"]


@dataclass
class _Loaded:
    read: dict[str, Any]  # the fields of the configuration that the loader has looked at
    folders: dict[str, Path]
    data: Any
    before: Parts | None = None  # as they were loaded, as soon as a run needs to know


class LoadedOnce:
    """Calls `load_data` once for all configurations with the same values in the fields that it reads."""

    KEPT = 2  # data sets in memory

    def __init__(self, load: Callable[[Any, Mapping[str, Path]], Any]) -> None:
        self.load = load
        self.known: list[_Loaded] = []

    def __call__(self, config: Any, folders: Mapping[str, Path]) -> Any:
        """Return the data of a configuration. What they draw from global generators is the same in each process.

        What `load_data` sets for the whole process is put back: it is called for the first of several runs alone.
        """
        for each in self.known:
            # As text: 1 and True are equal, and not the same.
            same = all(repr(getattr(config, name)) == repr(value) for name, value in each.read.items())
            if same and each.folders == folders:
                return each.data
        watched = _watched(config)
        try:
            with usual_settings(torch.device("cpu")), seeded(0):
                data = self.load(watched, folders)
        except KDError:
            raise
        except (Exception, SystemExit) as error:
            raise error_in_user_code("load_data", error, "a function that reads the data") from error
        watched._is_loading = False
        self.known = [*self.known, _Loaded(watched._read, dict(folders), data)][-self.KEPT :]
        return data

    @contextmanager
    def unchanged(self, label: str) -> Iterator[Callable[[], None]]:
        """Put back what a training adds to the data, takes away or replaces: other runs have the same data.

        Refuse (DataChanged) changes of numbers in place, which cannot be put back, and read the data again afterwards.
        The function that it yields refuses them at once.
        """
        before = list[Parts]()
        for each in self.known:
            each.before = each.before or Parts([("", each.data)])
            before.append(each.before)
        told = (
            f"{label}: expected a training function that leaves the data as they are",
            "; write x = x - mean instead of x.sub_(mean), or do it in load_data",
        )
        try:
            yield lambda: _refuse([name for parts in before for name in parts.changed()], *told)
        finally:
            changed = [name for parts in before for name in parts.put_back()]
            self.known = [] if changed else self.known
        _refuse(changed, *told)


def _refuse(changed: Sequence[str], expected: str, remedy: str) -> None:
    if changed:
        raise DataChanged(f"{expected}, found that it changed {some_of(changed)} in place{remedy}")


_spoiled: list[tuple[Any, str]] = []  # tables at the top of modules that a run has changed, and their first digests


@contextmanager
def modules_put_back(folder: Path) -> Iterator[Callable[[], None]]:
    """Put back what a run changes at the top of its experiment's modules, such as a network that is made there.

    Else the next run of the process would go on with it. The function that it yields refuses (DataChanged), at once,
    what cannot be put back.
    """
    files = {str(path) for path in source_files(folder)}
    modules = [
        module
        for name, module in [*sys.modules.items()]
        if name.startswith("replications.") and str(getattr(module, "__file__", None)) in files
    ]
    known = [(module, {name: value for name, value in vars(module).items() if name[:2] != "__"}) for module in modules]
    parts = Parts([item for _, names in known for item in names.items()], numbers="kept")
    others = [p for p, part, now in parts.digests if any(part is each and now != first for each, first in _spoiled)]
    if others:
        raise KDError(
            f"this run was not begun: an earlier one of the process has changed {some_of(others)} in place; mend that "
            "run, and run the same command again"
        )
    told = (
        "expected a training function that leaves what is at the top of its modules",
        ", which cannot be put back; change a copy of it",
    )
    try:
        yield lambda: _refuse(parts.changed(), *told)
    finally:
        for module, names in known:
            for name, value in [*vars(module).items()]:
                if name[:2] != "__" and name not in names and not issubclass(type(value), ModuleType):
                    delattr(module, name)
            for name, value in names.items():
                setattr(module, name, value)
        changed = parts.put_back()
        for _, names in known:
            for value in names.values():
                if inspect.getattr_static(value, "cache_clear", None) is None:  # some objects answer to any name
                    continue
                if str(getattr(value, "__module__", "")).startswith("replications."):
                    value.cache_clear()  # it may hold a network that the run has trained
        _spoiled.extend(
            (part, first) for _, part, first in parts.digests if changed and digest_of_numbers(part) != first
        )
    _refuse(changed, *told)


class Members(list[Any]):
    """The runs of a mapped arm. Until a training begins, taking a run seeds the global generators with its seed.

    A student then gets the same first weights from torch in every group of runs.
    """

    def __iter__(self) -> Iterator[Any]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        if not isinstance(key, slice) and not any(run.trainings for run in super().__iter__()):
            seed_globally(derive_seed(found.seed, "global"))
        return found


def _watched(config: Any) -> Any:
    """Return what `load_data` gets: a `_Watched` that Python and `dataclasses` take for the configuration."""
    kind = type(config)
    special = {
        name: _of_whole(name)
        for name in dir(kind)
        if name[:2] == "__" and isinstance(getattr(kind, name), FunctionType) and name not in _NOT_OF_WHOLE
    }
    own = {"__module__": __name__, "__slots__": (), "__class__": property(lambda self: kind)}
    fields_of = {"__dataclass_fields__": kind.__dataclass_fields__} if is_dataclass(kind) else {}
    return type("_Watched", (_Watched,), special | own | fields_of)(config)


# How an object is made, read, set and deleted.
_NOT_OF_WHOLE = {"__init__", "__new__", "__getattr__", "__getattribute__", "__setattr__", "__delattr__", "__del__"}


def _of_whole(name: str) -> Callable[..., Any]:
    return lambda self, *others: getattr(self._whole(), name)(*others)


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
