"""Learning rates of a training: from a function of the epoch, from torch's schedulers, or set by hand."""

from __future__ import annotations

import copy
import gc
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler
from torch.utils._pytree import tree_leaves

from kdlib.checks import check_number
from kdlib.descriptions import description
from kdlib.errors import KDError
from kdlib.packing import pack
from kdlib.trainable import Optimizers

__all__ = ["Rates"]


class Rates:
    """The values of the optimizers' groups (learning rate, momentum, ...), and the state of torch's schedulers.

    The optimizer of the loop has the name "", one among the extras that of the extra. `first` describes them as they
    were when the training began, before any step.
    """

    def __init__(self, optimizers: Optimizers, extras: Mapping[str, Any]) -> None:
        self.extras = extras
        self.schedulers = {name: value for name, value in extras.items() if isinstance(value, LRScheduler)}
        self.fresh = {name: _rates_of(optimizer) for name, optimizer in optimizers.items()}
        self.first = {
            "optimizers": {name: description(optimizer) for name, optimizer in optimizers.items()},
            "rates": self.fresh,
            "schedulers": {name: pack(value.state_dict(), name, {}) for name, value in self.schedulers.items()},
        }
        self.given = False  # whether the loop sets them from its `rate`

    def loop_begins(self, given: bool, optimizers: Optimizers, resumable: bool, place: str) -> None:
        """Refuse (KDError) learning rates that would be lost: of several groups, or of a scheduler."""
        self.given = given
        optimizer = optimizers[""]
        now = _rates_of(optimizer)
        if given and max(len({*self.fresh[""]}), len({*now})) > 1:
            raise KDError(
                f"{place}: expected groups of one learning rate with `rate`, which is that of all groups, found "
                f"{now}; leave `rate` out, and give a scheduler of torch to Progress(..., extras=...)"
            )
        own = [each for each in self.schedulers.values() if getattr(each, "optimizer", None) is optimizer]
        others = self._others([optimizer]) if given else []
        if given and (own or others):
            kinds = ", ".join(others) or "both"
            raise KDError(
                f"{place}: expected `rate` or a scheduler, found {kinds}; leave `rate` out, or delete a scheduler that "
                "is not used (del)"
            )
        if others := self._others([*optimizers.values()]) if resumable else []:
            raise KDError(
                f"{place}: expected all schedulers of the optimizer in the checkpoint, found that Progress does not "
                f"have {', '.join(others)}; name each of them in Progress(..., extras=...), such as "
                'extras={"scheduler": scheduler}, or delete one that is not used (del)'
            )

    def _others(self, optimizers: Sequence[torch.optim.Optimizer]) -> list[str]:
        """The classes of the optimizers' schedulers that are neither in the extras nor parts of those."""
        # A scheduler leaves this mark there.
        scheduled = [each for each in optimizers if any("initial_lr" in group for group in each.param_groups)]
        if found := self._found_others(scheduled) if scheduled else []:
            gc.collect()  # those of a training that is over may still wait for Python to look for cycles
            found = self._found_others(scheduled)
        return found

    def _found_others(self, optimizers: Sequence[torch.optim.Optimizer]) -> list[str]:
        known, found = [*self.extras.values()], []
        for scheduler in known:  # grows: those within a SequentialLR, or within another library's
            for part in tree_leaves(getattr(scheduler, "__dict__", {})):  # also of lists and dicts
                known += [part] if _is_scheduler(type(part)) and not any(part is one for one in known) else []
        every = gc.get_objects()  # an optimizer does not know its schedulers
        kinds = {kind for kind in {type(value) for value in every} if _is_scheduler(kind)}
        for value in every:
            if type(value) in kinds and any(getattr(value, "optimizer", None) is each for each in optimizers):
                found += [] if any(value is one for one in known) else [type(value).__name__]
        return found

    def refuse_more_groups(self, optimizers: Optimizers, place: str) -> None:
        """Refuse (KDError) groups of weights that an optimizer did not have at first: a checkpoint cannot add them."""
        for name, optimizer in optimizers.items():
            if (groups := len(optimizer.param_groups)) != len(self.fresh[name]):
                raise KDError(
                    f"{place}: expected as many groups of weights as the optimizer had at first, "
                    f"{len(self.fresh[name])}, found {groups}: a resumed training would lack some; give the optimizer "
                    "all groups at first, and requires_grad_(False) to the weights that learn later"
                )

    def refuse_others(self, first: Mapping[str, Any], place: str, remedy: str) -> None:
        """Refuse (KDError) to go on from a checkpoint whose training began with other learning rates."""
        for name, fresh in self.fresh.items():
            if (name or not self.given) and first["rates"][name] != fresh:
                new = "" if name else ", or the new ones by `rate`"
                raise KDError(
                    f"{place}: expected the learning rates that the training began with, {first['rates'][name]}, found "
                    f"{fresh}; give the optimizer{f' {name!r}' if name else ''} these{new}, or {remedy}"
                )

    def set_all(self, optimizer: torch.optim.Optimizer, value: float) -> None:
        """Set the learning rate of all groups; KDError unless it is a finite number that is not negative."""
        value = float(check_number("rate", value, 0, math.inf, "correct the function, which must return it"))
        for group in optimizer.param_groups:
            _set(group, "lr", value)

    def values(self, optimizers: Optimizers) -> dict[str, Any]:
        """Return a copy of the values of all groups, and of the schedulers' states."""
        groups = {
            name: [{key: value for key, value in group.items() if _is_held(key, value)} for group in each.param_groups]
            for name, each in optimizers.items()
        }
        schedulers = {name: scheduler.state_dict() for name, scheduler in self.schedulers.items()}
        return copy.deepcopy({"groups": groups, "schedulers": schedulers})

    def restore(self, optimizers: Optimizers, values: Mapping[str, Any]) -> None:
        """Set the groups' values and the schedulers' states, but not learning rates that the loop sets itself."""
        for name, optimizer in optimizers.items():
            for group, found in zip(optimizer.param_groups, values["groups"][name], strict=True):
                for key, value in found.items():
                    if not (key == "lr" and self.given and not name):
                        _set(group, key, value)
        for name, scheduler in self.schedulers.items():
            scheduler.load_state_dict(copy.deepcopy(values["schedulers"][name]))


def _rates_of(optimizer: torch.optim.Optimizer) -> list[float]:
    return [float(group["lr"]) for group in optimizer.param_groups]


def _is_scheduler(kind: type) -> bool:
    """Whether objects of a class are schedulers: torch's, or others that are used like them."""
    if issubclass(kind, LRScheduler):
        return True
    if "scheduler" not in kind.__name__.lower():  # a trainer may have these methods too
        return False
    names = {name for base in kind.__mro__ for name in vars(base)}
    return {"step", "state_dict", "load_state_dict"} <= names and "zero_grad" not in names


def _set(group: dict[str, Any], name: str, value: Any) -> None:
    if isinstance(own := group.get(name), Tensor):  # the same tensor: what was compiled or recorded knows it
        own.fill_(value)
    else:
        group[name] = value


def _is_held(name: str, value: Any) -> bool:
    """Whether a checkpoint can hold a value of a group; the others stay as the optimizer was made with."""
    try:
        pack(value, name, {})
    except KDError:
        return False
    return isinstance(name, str) and name != "params"
