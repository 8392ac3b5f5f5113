"""Tells what a training would lose by a stop: copies of the network, such as averages and best weights."""

from __future__ import annotations

import gc
import math
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

from kdlib.files import sha256
from kdlib.trainable import weights_of

__all__ = ["Copies", "CopyNotSaved", "sample"]

LEAST_SECONDS = 2.0  # of an epoch: a search takes a tenth of a second, and of a shorter training a stop costs little
SAMPLES = 4096  # numbers of a tensor or an array by which it is known again
NEAR = 0.7  # of the weights' norm: an average differs less from them than gradients or moments do
_known: weakref.WeakSet[nn.Module] = weakref.WeakSet()  # parts of a training with a loop of its own, and of its extras


class CopyNotSaved(UserWarning):
    """A copy of the network changes in the training, or is of an older epoch, and no checkpoint holds it."""


class Copies:
    """The copies of a network that another object holds while it is trained: networks, and maps or lists of weights."""

    def __init__(
        self,
        network: nn.Module,
        extras: Mapping[str, Any],
        optimizer: torch.optim.Optimizer,
        kept: Mapping[str, Mapping[str, Tensor]],
    ) -> None:
        self.network, self.kept, self.at = network, kept, time.monotonic()
        self.saved = [*extras.values(), optimizer]
        for part in (network, *(part for each in extras.values() for part in (each, *_held_by(each)))):
            if isinstance(part, nn.Module):
                _known.update(part.modules())
        trained = {id(weight) for weight in weights_of({"": optimizer})}
        named = {name: weight for name, weight in network.named_parameters() if id(weight) in trained}
        self.shapes = {name: weight.shape for name, weight in named.items()}
        self.name = next(iter(named), "")  # one weight is enough: an average of all changes with it
        self.before: list[tuple[Callable[[], Any], Tensor]] = []
        self.found: dict[int, tuple[weakref.ref[Tensor], str | None]] = {}  # weights of copies; a mark from elsewhere
        self.looks = self.epoch = 0
        # The last epoch with a mark. That of the first weights is never old: a training that goes on makes them again.
        self.ends: dict[str | None, float] = {self._mark(network): math.inf, None: math.inf}

    def epoch_ends(self, epoch: int) -> None:
        """Note the weights of the network, of which the body may take a copy before it changes them."""
        self.epoch = epoch
        mark = self._mark(self.network)
        self.ends[mark] = max(self.ends.get(mark, 0), epoch)

    def look(self, place: str) -> None:
        """Warn (CopyNotSaved), after an epoch's body, of a copy that has changed since the last one, or that is old.

        An old copy has the network's weights of the end of an earlier epoch. One that is filled anew in each epoch
        never has: there is a new one when it is looked at again.
        """
        seconds, self.at = time.monotonic() - self.at, time.monotonic()
        self.epoch_ends(self.epoch)
        if seconds < LEAST_SECONDS or not self.name:
            return
        is_lost = any(self._changes(copy(), value) for copy, value in self.before)
        self.before = [each for each in self.before if not isinstance(each[0], _Held)]
        if is_lost or any(self._is_old(*each) for each in self.found.values()):
            self.name = ""  # once is enough
            warnings.warn(
                f"{place}: this training has a copy of the network (an average of its weights, or older ones) that its "
                "checkpoint does not hold: after a stop, it would begin anew or be gone. Name it in Progress(..., "
                'extras=...), such as extras={"average": average}; if it is the best weights, write '
                'progress.keep("best") instead; a copy that you only look at needs nothing',
                CopyNotSaved,
                stacklevel=3,
            )
            return
        self.looks += 1
        if self.looks.bit_count() == 1:  # 1, 2, 4, 8: an average may begin late, and a search takes time
            self._search()

    def _changes(self, copy: Any, value: Tensor) -> bool:
        now = self._weight(copy)
        is_other = now is not None and now.dtype == value.dtype and not torch.equal(now, value)
        return is_other and not self._is_saved(copy)

    def _is_old(self, copy: weakref.ref[Tensor], elsewhere: str | None) -> bool:
        mark = self._mark(copy())
        if mark == elsewhere or self.ends.get(mark, math.inf) >= self.epoch or self._is_saved(copy()):
            return False
        gc.collect()  # a network that is replaced may live on in a cycle
        return copy() is not None

    def _search(self) -> None:
        known = {id(copy()) for copy, _ in self.before}
        copies: list[Callable[[], Any]] = [weakref.ref(each) for each in self._networks() if id(each) not in known]
        copies += [_Held(each) for each in self._tensors()]
        self.found = {key: each for key, each in self.found.items() if each[0]() is not None}
        for copy in copies:
            weight, mark = self._weight(copy()), self._mark(copy())
            if weight is None:
                continue
            # Numbers that the network has not had yet are of another training, although it may come to them.
            self.found.setdefault(id(weight), (weakref.ref(weight), None if mark in self.ends else mark))
            if not isinstance(copy, _Held) or self._is_near(weight):
                self.before.append((copy, weight.detach().clone()))

    def _weight(self, copy: Any) -> Tensor | None:
        """The weight of a copy; None if it is none any more, in whatever way: it is somebody else's object."""
        try:
            own = self.network.get_parameter(self.name)
            is_network = isinstance(copy, nn.Module)
            weight = copy.get_parameter(self.name) if is_network else copy if _is_tensor(copy) else self._first(copy)
            if weight.is_meta or weight.shape != own.shape:
                return None
            return weight if bool(weight.isfinite().all()) else None
        except Exception:
            return None

    def _mark(self, copy: Any) -> str | None:
        """A text that is the same for the same numbers of the weight, on any device; None if there is none."""
        return sample(self._weight(copy))

    def _first(self, copy: Any) -> Tensor:
        """The weight in a map or a list, which may have the network's names, others, or none."""
        weight: Tensor = copy[self.name] if type(copy) is not list and self.name in copy else next(iter(_values(copy)))
        return weight

    def _is_saved(self, copy: Any) -> bool:
        """Whether the state of an extra or of the optimizer, a buffer, or what Progress keeps holds these numbers."""
        with suppress(Exception):
            states = [*(each.state_dict() for each in self.saved), self.kept, [*self.network.buffers()]]
            return self._mark(copy) in {self._mark(each) for each in tree_leaves(states) if _is_tensor(each)}
        return False

    def _is_near(self, weight: Tensor) -> bool:
        own = self.network.get_parameter(self.name).detach()
        with suppress(Exception):  # a tensor of another kind
            return bool((weight.detach().to(own) - own).norm() < NEAR * own.norm())
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
        """Maps and lists of tensors with the shapes of the trained weights, that are not the same tensors."""
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
                if is_copy and first.data_ptr() != own.data_ptr():
                    yield value


def sample(values: Any) -> str | None:
    """Return a text that is the same for the same numbers of a tensor or an array; None if there is none.

    torch's own count of changes does not see those by `.data` or NumPy.
    """
    with suppress(Exception):  # nothing, a weight that is not made yet, an array of objects
        array = _some(values) if isinstance(values, Tensor) else values.flat[:: max(1, values.size // SAMPLES)]
        return None if array.dtype.hasobject else sha256(array.tobytes() + str(tuple(values.shape)).encode())
    return None


def _some(values: Tensor) -> Any:
    """Some numbers of a tensor, evenly spread; no copy of it is made for them."""
    every = range(0, values.numel(), max(1, values.numel() // SAMPLES))
    if values.is_contiguous():
        some = values.detach().view(-1)[:: every.step]
    else:
        some = values.detach()[torch.unravel_index(torch.tensor(every, device=values.device), values.shape)]
    return torch.view_as_real(some).cpu().double().numpy() if some.is_complex() else some.cpu().double().numpy()


class _Held:
    """A map or a list, to which nothing can refer weakly. It is held for one epoch."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __call__(self) -> Any:
        return self.value


def _values(copy: Any) -> Any:
    return copy if type(copy) is list else copy.values()


def _is_tensor(value: Any) -> bool:  # isinstance would ask the object, which may be anybody's
    return issubclass(type(value), Tensor)


def _is_plain(value: Any) -> bool:
    return _is_tensor(value) and not issubclass(type(value), nn.Parameter)


def _held_by(extra: Any) -> list[Any]:
    return tree_leaves(getattr(extra, "__dict__", {}))


def _shapes(network: nn.Module) -> list[tuple[str, torch.Size]]:
    return [(name, weight.shape) for name, weight in network.named_parameters()]
