"""Tells a copy of the network that changes with it and that no checkpoint holds: most often an average of weights."""

from __future__ import annotations

import gc
import time
import warnings
import weakref
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from kdlib.trainable import weights_of

__all__ = ["Copies", "CopyNotSaved"]

LEAST_SECONDS = 2.0  # of an epoch: a search takes a tenth of a second, and of a shorter training a stop costs little
_known: weakref.WeakSet[nn.Module] = weakref.WeakSet()  # parts of a training with a loop of its own, and of its extras


class CopyNotSaved(UserWarning):
    """A copy of the network changes in the training, but is not among the extras of Progress."""


class Copies:
    """The copies of a network that another object holds while it is trained."""

    def __init__(self, network: nn.Module, extras: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> None:
        self.network, self.at = network, time.monotonic()
        for part in (network, *(part for each in extras.values() for part in (each, *_held_by(each)))):
            if isinstance(part, nn.Module):
                _known.update(part.modules())
        trained = {id(weight) for weight in weights_of({"": optimizer})}
        # One weight is enough: an average of all changes with it.
        self.name = next((name for name, weight in network.named_parameters() if id(weight) in trained), "")
        self.before: list[tuple[weakref.ref[nn.Module], Tensor]] | None = None

    def look(self, place: str) -> None:
        """Warn (CopyNotSaved), at the end of an epoch, of a copy that has changed since the end of the last one."""
        seconds, self.at = time.monotonic() - self.at, time.monotonic()
        if seconds < LEAST_SECONDS or not self.name:
            return
        if self.before is None:
            found = [(copy, self._weight(copy)) for copy in self._found()]
            self.before = [(weakref.ref(copy), weight.clone()) for copy, weight in found if weight is not None]
            return
        for number, (reference, value) in enumerate(self.before):
            if (now := self._weight(reference())) is not None and not torch.equal(now, value):
                del self.before[number]
                warnings.warn(
                    f"{place}: a copy of the network changes in this training, and its checkpoint does not hold it: "
                    "after a stop, it would begin anew. Name it in Progress(..., extras=...), such as "
                    'extras={"average": average}; a copy that you only look at needs nothing',
                    CopyNotSaved,
                    stacklevel=3,
                )
                return

    def _weight(self, copy: nn.Module | None) -> Tensor | None:
        """The weight of a copy; None if it is none any more, in whatever way: it is somebody else's object."""
        try:
            own = self.network.get_parameter(self.name)
            weight = copy.get_parameter(self.name).detach() if copy is not None else None
            if weight is None or weight.is_meta or (weight.shape, weight.dtype) != (own.shape, own.dtype):
                return None
            return weight if bool(weight.isfinite().all()) else None
        except Exception:
            return None

    def _found(self) -> Iterator[nn.Module]:
        """Networks of the same class, with weights of the same names and shapes, that are no part of the training."""
        shapes = _shapes(self.network)
        for value in gc.get_objects():
            if type(value) is type(self.network):
                with suppress(Exception):  # one that is half made, for example
                    if value not in _known and _shapes(value) == shapes:
                        yield value


def _held_by(extra: Any) -> list[Any]:
    return tree_leaves(getattr(extra, "__dict__", {}))


def _shapes(network: nn.Module) -> list[tuple[str, torch.Size]]:
    return [(name, weight.shape) for name, weight in network.named_parameters()]
