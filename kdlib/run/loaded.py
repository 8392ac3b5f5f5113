"""Data that are read once for all runs that need the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


class LoadedOnce:
    """Calls `load_data` once for all configurations with the same values in the fields that it reads."""

    KEPT = 2  # data sets in memory

    def __init__(self, load: Callable[[Any, Mapping[str, Path]], Any]) -> None:
        self.load = load
        self.known: list[tuple[dict[str, Any], dict[str, Path], Any]] = []

    def __call__(self, config: Any, folders: Mapping[str, Path]) -> Any:
        """Return the data of a configuration."""
        for read, places, data in self.known:
            if places == folders and all(getattr(config, name) == value for name, value in read.items()):
                return data
        watched = _Watched(config)
        data = self.load(watched, folders)
        self.known = [*self.known, (watched._read, dict(folders), data)][-self.KEPT :]
        return data


class _Watched:
    """A configuration that remembers which of its fields were read."""

    def __init__(self, config: Any) -> None:
        self._config, self._read = config, dict[str, Any]()

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._config, name)
        self._read[name] = value
        return value
