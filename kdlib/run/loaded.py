"""Data that are read once for all runs that need the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from kdlib.batches import Examples
from kdlib.errors import KDError, error_in_user_code


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
        try:
            data = self.load(watched, folders)
        except KDError:
            raise
        except (Exception, SystemExit) as error:
            raise error_in_user_code("load_data", error, "a function that reads the data") from error
        self.known = [*self.known, (watched._read, dict(folders), data)][-self.KEPT :]
        return data

    @contextmanager
    def unchanged(self, label: str) -> Iterator[None]:
        """Refuse (KDError) a training that changes a tensor of the data in place, and read them again afterwards.

        The other runs of this process have the same data.
        """
        before = [_versions(data) for _, _, data in self.known]
        yield
        for (_, _, data), versions in zip(self.known, before, strict=False):
            changed = [name for name, version in _versions(data).items() if versions.get(name, version) != version]
            if changed:
                self.known = []
                raise KDError(
                    f"{label}: expected a training function that leaves the data as they are, found that it changed "
                    f"{', '.join(changed)} in place; write x = x - mean instead of x.sub_(mean), or do it in load_data"
                )


def _versions(data: Any) -> dict[str, int]:
    """How often each tensor of the data was changed in place, as torch counts it."""
    found: dict[str, int] = {}
    for name, part in getattr(data, "__dict__", {}).items():
        parts = {f"{name}.{key}": value for key, value in vars(part).items()} if isinstance(part, Examples) else {}
        found |= {
            key: value._version
            for key, value in (parts or {name: part}).items()
            if isinstance(value, Tensor) and not value.is_inference()
        }
    return found


class _Watched:
    """A configuration that remembers which of its fields were read."""

    def __init__(self, config: Any) -> None:
        self._config, self._read = config, dict[str, Any]()

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._config, name)
        self._read[name] = value
        return value
