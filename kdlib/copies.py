"""Tells a copy of the network that changes with it and that no checkpoint holds: most often an average of weights."""

from __future__ import annotations

import gc
import time
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from kdlib.trainable import weights_of

__all__ = ["Copies", "CopyNotSaved"]

LEAST_SECONDS = 2.0  # of an epoch: a search takes a tenth of a second, and of a shorter training a stop costs little
NEAR = 0.7  # of the weights' norm: an average differs less from them than gradients or moments do
_known: weakref.WeakSet[nn.Module] = weakref.WeakSet()  # parts of a training with a loop of its own, and of its extras


class CopyNotSaved(UserWarning):
    """A copy of the network changes in the training, but is not among the extras of Progress."""


class Copies:
    """The copies of a network that another object holds while it is trained: networks, and maps or lists of weights."""

    def __init__(self, network: nn.Module, extras: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> None:
        self.network, self.at = network, time.monotonic()
        self.saved = [*extras.values(), optimizer]
        for part in (network, *(part for each in extras.values() for part in (each, *_held_by(each)))):
            if isinstance(part, nn.Module):
                _known.update(part.modules())
        trained = {id(weight) for weight in weights_of({"": optimizer})}
        named = {name: weight for name, weight in network.named_parameters() if id(weight) in trained}
        self.shapes = {name: weight.shape for name, weight in named.items()}
        self.name = next(iter(named), "")  # one weight is enough: an average of all changes with it
        self.before: list[tuple[Callable[[], Any], Tensor]] | None = None

    def look(self, place: str) -> None:
        """Warn (CopyNotSaved), at the end of an epoch, of a copy that has changed since the end of the last one."""
        seconds, self.at = time.monotonic() - self.at, time.monotonic()
        if seconds < LEAST_SECONDS or not self.name:
            return
        if self.before is None:
            found: list[Callable[[], Any]] = [weakref.ref(each) for each in self._networks()]
            found += [_Held(each) for each in self._tensors()]
            self.before = [(copy, weight.clone()) for copy in found if (weight := self._weight(copy())) is not None]
            return
        for number, (copy, value) in enumerate(self.before):
            now = self._weight(copy())
            if now is not None and not torch.equal(now, value) and not self._is_saved(now):
                del self.before[number]
                warnings.warn(
                    f"{place}: a copy of the network changes in this training, and its checkpoint does not hold it: "
                    "after a stop, it would begin anew. Name it in Progress(..., extras=...), such as "
                    'extras={"average": average}; a copy that you only look at needs nothing',
                    CopyNotSaved,
                    stacklevel=3,
                )
                break
        self.before = [each for each in self.before if not isinstance(each[0], _Held)]

    def _weight(self, copy: Any) -> Tensor | None:
        """The weight of a copy; None if it is none any more, in whatever way: it is somebody else's object."""
        try:
            own = self.network.get_parameter(self.name)
            weight = (copy.get_parameter(self.name) if isinstance(copy, nn.Module) else self._first(copy)).detach()
            if weight.is_meta or (weight.shape, weight.dtype) != (own.shape, own.dtype):
                return None
            return weight if bool(weight.isfinite().all()) else None
        except Exception:
            return None

    def _first(self, copy: Any) -> Tensor:
        """The weight in a map or a list, which may have the network's names, others, or none."""
        weight: Tensor = copy[self.name] if type(copy) is not list and self.name in copy else next(iter(_values(copy)))
        return weight

    def _is_saved(self, weight: Tensor) -> bool:
        """Whether the state of an extra, or of the optimizer, holds these numbers."""
        with suppress(Exception):
            states = tree_leaves([each.state_dict() for each in self.saved])
            return any(torch.equal(each, weight) for each in states if getattr(each, "shape", None) == weight.shape)
        return False

    def _networks(self) -> Iterator[nn.Module]:
        """Networks of the same class, with weights of the same names and shapes, that are no part of the training."""
        shapes = _shapes(self.network)
        for value in gc.get_objects():
            if type(value) is type(self.network):
                with suppress(Exception):  # one that is half made, for example
                    if value not in _known and _shapes(value) == shapes:
                        yield value

    def _tensors(self) -> Iterator[Any]:
        """Maps and lists of tensors with the shapes of the trained weights, that are near these and not the same."""
        own = self.network.get_parameter(self.name).detach()
        for value in gc.get_objects():
            if type(value) not in (dict, OrderedDict, list) or len(value) < len(self.shapes):
                continue
            with suppress(Exception):  # of somebody else's objects
                # Parameters are in maps of a network and lists of an optimizer; a copied network is found as such.
                if not _is_plain(first := self._first(value)):
                    continue
                is_by_name = type(value) is not list and self.name in value
                parts = [value[name] for name in self.shapes] if is_by_name else [*_values(value)]
                is_copy = [each.shape for each in parts] == [*self.shapes.values()]
                if is_copy and first.data_ptr() != own.data_ptr() and (first.to(own) - own).norm() < NEAR * own.norm():
                    yield value


class _Held:
    """A map or a list, to which nothing can refer weakly. It is held for one epoch."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __call__(self) -> Any:
        return self.value


def _values(copy: Any) -> Any:
    return copy if type(copy) is list else copy.values()


def _is_plain(value: Any) -> bool:  # isinstance would ask the object, which may be anybody's
    return issubclass(type(value), Tensor) and not issubclass(type(value), nn.Parameter)


def _held_by(extra: Any) -> list[Any]:
    return tree_leaves(getattr(extra, "__dict__", {}))


def _shapes(network: nn.Module) -> list[tuple[str, torch.Size]]:
    return [(name, weight.shape) for name, weight in network.named_parameters()]
