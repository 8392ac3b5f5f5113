"""Finds slips in what the functions of a training hold: states that a stop would lose, teachers in training mode."""

from __future__ import annotations

import inspect
import random
import warnings
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import nn

from kdlib.attributes import GENERATORS
from kdlib.batches import Batch
from kdlib.copies import CopyNotSaved, sample
from kdlib.files import sha256
from kdlib.modes import depends_on_mode
from kdlib.reach import is_data, is_users, numbers_of, reached
from kdlib.states import mark, modules_of, tensors_of
from kdlib.trainable import Optimizers, weights_of

__all__ = ["GeneratorNotSaved", "Held", "StateNotSaved", "TeacherInTraining"]

Reference = Callable[[], Any]  # a weak one, else what a training replaces would live on
Weights = Sequence[tuple[Reference, Any]]  # each with a sample of its numbers


class GeneratorNotSaved(UserWarning):
    """A generator of random numbers goes on through a training, and no checkpoint holds its state."""


class StateNotSaved(UserWarning):
    """An object that the objective or the batches hold changes in a training, and no checkpoint holds its state."""


class TeacherInTraining(UserWarning):
    """A network that does not learn is called in training mode: with dropout, and the statistics of each batch."""


class Held:
    """What functions of a training hold, but for its network and what is saved with it: extras and optimizers.

    Of a training without a checkpoint (`stops`), teachers are told alone. A network learns if an optimizer has a weight
    of it, be it that of the loop or one that the functions hold.
    """

    def __init__(
        self, functions: Iterable[Any], network: nn.Module, optimizers: Optimizers, extras: Iterable[Any], stops: bool
    ) -> None:
        self.functions, self.network, self.optimizers, self.stops = [*functions], network, optimizers, stops
        saved = [*extras, *optimizers.values()]
        self.own = {id(part) for each in (network, *saved) for part in modules_of(each)}
        # What only a function of a saved object leads to is not saved with it: a trainer whose method a scheduler has.
        known = reached([*saved, *_global_generators()], self.own, through=is_data)
        self.known = self.own | known.keys()
        self.saved_tensors = {id(each) for part in (network, *saved) for each in tensors_of(part).values()}
        self.suspects: dict[int, tuple[nn.Module, Weights]] = {}  # a layer called in training mode, of each network
        self.is_told: set[type[UserWarning]] = set()  # once is enough
        self.looks = 0
        networks, states = self._search()
        self.numbers = self._numbers() if stops else {}
        self.of_before = [_reference(network) for network in networks]  # a process that goes on makes these again
        # What has a state of its own: first as it was at the first step, then as it is after an epoch.
        self.first = {id(each): (_reference(each), state) for each, state in states}
        self.ends: dict[int, Any] = {}
        self.made: list[Reference] = []  # copies of the network that the last epoch has made
        self.going_on: list[tuple[Reference, Any, str]] = []  # what has changed in one epoch and is not set anew

    def _search(self) -> tuple[list[nn.Module], list[tuple[Any, Any]]]:
        """Find teachers; return networks like the one that is trained, and other objects that have a state, with it.

        Objects may be made at their first use, so this is done again. Neither is returned if nothing is to be saved.
        """
        found = [*reached(self.functions, self.known).values()]
        others = {str(n): each for n, each in enumerate(found) if issubclass(type(each), torch.optim.Optimizer)}
        trained = {id(weight) for weight in (*weights_of(self.optimizers), *weights_of(others))}
        within, parts, outermost = set[int](), list[nn.Module](), list[nn.Module]()
        for each in found:
            if id(each) not in within and (inner := [part for part in modules_of(each) if id(part) not in self.own]):
                outermost.append(each)
                parts += inner
                within |= {id(part) for part in inner}
        self.teachers = _that_depend_on_mode(outermost, trained)
        if not self.stops:
            return [], []
        shapes = _shapes_of(self.network)
        others_of_it = [
            each for each in outermost if type(each) is not type(self.network) or _shapes_of(each) != shapes
        ]
        fixed = [own for part in others_of_it if (own := _weights_of(part)) and trained.isdisjoint(map(id, own))]
        self.teachers_weights = [[sample(weight) for weight in own] for own in fixed] if not self.looks else []
        networks = [part for part in parts if type(part) is type(self.network) and _shapes_of(part) == shapes]
        # Of networks, CopyNotSaved tells. The parts and tensors of other modules belong to the state of the outermost.
        left_out = self.saved_tensors | {id(network) for network in networks}
        left_out |= within - {id(module) for module in outermost}
        left_out |= {id(tensor) for module in outermost for tensor in tensors_of(module).values()}
        states = []
        for each in found:
            if id(each) not in left_out and (state := mark(each, self.saved_tensors)) is not None:
                states.append((each, state))
        return networks, states

    def _numbers(self) -> dict[str, str]:
        """The numbers that the functions use, the name of the objective, and digests of networks that do not learn."""
        within = [
            part for each in self.functions if not is_users(type(each).__module__) for part in _functions_in(each)
        ]
        found = numbers_of([*self.functions, *within], self.known | self.saved_tensors)
        objective = getattr(self.functions[0], "func", self.functions[0])  # of a partial
        found["the name of the objective"] = str(getattr(objective, "__qualname__", type(objective).__qualname__))
        if samples := sorted(sha256(repr(each).encode())[:16] for each in self.teachers_weights):
            found["the weights of networks that the functions hold"] = ", ".join(samples)
        return found

    def watching(self, batches: Iterable[Batch], place: str) -> Iterator[Batch]:
        """Pass on an epoch's batches. With the first one, warn of what goes on from the epoch before.

        What is seeded or set anew in each epoch has been so by then. Layers that are called in training mode are noted.
        """
        # None on a layer that is evaluated: its network may be scripted, copied or saved in a step.
        layers = [(part, weights) for each, weights in self.teachers if (part := each()) is not None and part.training]
        hooks = [part.register_forward_pre_hook(_Hook(self, weights)) for part, weights in layers]
        layers.clear()
        try:
            for number, batch in enumerate(batches):
                if number == 0:
                    self._tell_what_goes_on(place)
                yield batch
        finally:
            for hook in hooks:
                hook.remove()

    def called(self, part: nn.Module, weights: Weights) -> None:
        """Take a call of a layer in training mode: the body of the loop, or the objective, may train its network."""
        if part.training:  # not one that is evaluated for this call
            self.suspects.setdefault(id(weights), (part, weights))

    def epoch_ends(self) -> None:
        """Note, after an epoch and its body, the states of objects.

        Warn of a teacher that has not learnt meanwhile, and of a state that has gone on from the epoch before.
        """
        for part, weights in self.suspects.values():
            if all(sample(each()) == before for each, before in weights):
                self._tell(
                    TeacherInTraining,
                    f"the {type(part).__name__} of a network that does not learn is called in training mode, as all "
                    "are that have just been made or loaded: dropout is active, and batch norm takes the averages of "
                    "each batch. Call predict_logits(teacher, inputs), or teacher.eval() before the training; name a "
                    'network that is meant so in Progress(..., extras={"teacher": teacher})',
                )
        self.suspects = {}
        for candidate, end, place in self.going_on:
            if (each := candidate()) is not None and mark(each, self.saved_tensors) != end:
                self._tell(
                    StateNotSaved,
                    f"{place}: the objective or the batches hold a {type(each).__name__} that changes in this "
                    "training, and its checkpoint does not hold it: after a stop, it would begin anew. Name it in "
                    'Progress(..., extras=...), such as extras={"loss": loss}, and a tensor as a buffer of a module; '
                    "one that only you read, or that is written before it is read in each epoch, needs nothing",
                )
        self.going_on = []
        self.looks += 1
        self.ends, self.made = {}, []
        if self.looks.bit_count() == 1:  # 1, 2, 4, 8: something may change from a later epoch on
            networks, states = self._search()
            of_before = {id(known()) for known in self.of_before}
            self.made = [_reference(network) for network in networks if id(network) not in of_before]
            for each, state in states:
                known, _ = self.first.get(id(each), (None, None))
                if known is None or known() is not each:  # it is new; it may have the place of one that is gone
                    self.first[id(each)] = _reference(each), state
                self.ends[id(each)] = state

    def _tell_what_goes_on(self, place: str) -> None:
        """Warn of generators, but for a torch one with a new seed, and of copies; note the states that go on."""
        if not self.looks:
            self.first = {key: (each, mark(each(), self.saved_tensors)) for key, (each, _) in self.first.items()}
        for key, end in self.ends.items():
            known, first = self.first[key]
            each = known()
            now = mark(each, self.saved_tensors)
            if issubclass(type(each), GENERATORS):
                if now[0] == first[0] and now[1] != first[1]:
                    self._tell(
                        GeneratorNotSaved,
                        f"{place}: the objective or the batches draw from a {type(each).__name__} of their own, whose "
                        "state no checkpoint holds: after a stop, it would begin anew. Make it in each epoch, from "
                        'generator(seed, "noise", epoch) for example, or draw from the global generators; one that is '
                        "seeded anew in each epoch loses nothing",
                    )
            elif each is not None and now == end != first:  # unless it is a cache, which is full by now
                self.going_on.append((known, end, place))
        if self.made and _numbers(self.network) in [_numbers(made()) for made in self.made]:
            self._tell(
                CopyNotSaved,
                f"{place}: the objective or the batches use a copy that this training has made of its network, and its "
                "checkpoint does not hold it: after a stop, it would be gone. Make the copy before the training, name "
                'it in Progress(..., extras={"teacher": copy}), and load the weights into it in each epoch',
            )

    def _tell(self, kind: type[UserWarning], text: str) -> None:
        if kind not in self.is_told:
            self.is_told.add(kind)
            frame: FrameType | None = inspect.currentframe()
            level = 1
            while frame is not None and not is_users(frame.f_globals.get("__name__")):
                frame, level = frame.f_back, level + 1
            warnings.warn(text, kind, stacklevel=level)  # the line of the loop


class _Hook:
    """The hook of a layer; a copy or a file of its network has one that does nothing."""

    def __init__(self, held: Held | None = None, weights: Weights = ()) -> None:
        self.held, self.weights = held, weights

    def __call__(self, part: nn.Module, _: Any) -> None:
        if self.held is not None:
            self.held.called(part, self.weights)

    def __reduce__(self) -> tuple[type[_Hook], tuple[()]]:
        return _Hook, ()


def _functions_in(value: Any) -> list[Any]:
    """The user's functions that an object of kdlib has, such as the `augment` of Batches."""
    return [part for part in getattr(value, "__dict__", {}).values() if callable(part)]


def _global_generators() -> list[Any]:
    methods: tuple[Any, ...] = random.random, np.random.rand
    # None of CUDA before it is used.
    return [torch.default_generator, *torch.cuda.default_generators, *(method.__self__ for method in methods)]


def _weights_of(value: Any) -> list[nn.Parameter]:
    with suppress(Exception):  # of a module that is half made
        return [*value.parameters()] if issubclass(type(value), nn.Module) else []
    return []


def _shapes_of(value: Any) -> list[torch.Size]:
    with suppress(RuntimeError):  # of weights that are not made yet
        return [weight.shape for weight in _weights_of(value)]
    return []


def _that_depend_on_mode(parts: Iterable[nn.Module], trained: Collection[int]) -> list[tuple[Reference, Weights]]:
    """The layers of networks without weights that learn, which compute something else in training mode.

    Each has the weights of the largest network that it is a layer of.
    """
    found: list[tuple[Reference, Weights]] = []
    for each in parts:
        weights = _weights_of(each)
        if any(id(weight) in trained for weight in weights):
            found += _that_depend_on_mode(each.children(), trained)
        elif weights and (layers := [*filter(_changes_with_mode, modules_of(each))]):
            samples = [(_reference(weight), sample(weight)) for weight in weights]
            found += [(_reference(part), samples) for part in layers]
    return found


def _changes_with_mode(part: nn.Module) -> bool:
    with suppress(Exception):  # of somebody else's class
        return depends_on_mode(part) and not isinstance(part, torch.jit.ScriptModule)  # which can have no hook
    return False


def _reference(value: Any) -> Reference:
    with suppress(TypeError):  # of a few objects that cannot be referred to weakly
        return weakref.ref(value)
    return lambda: value


def _numbers(network: nn.Module) -> list[Any]:
    return [sample(weight) for weight in _weights_of(network)]
