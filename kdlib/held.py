"""Finds slips in what the functions of a training hold: states that a stop would lose, teachers in training mode."""

from __future__ import annotations

import functools
import random
import types
import warnings
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from kdlib.attributes import GENERATORS, content
from kdlib.batches import Batch
from kdlib.files import canonical_json, tensor_digest
from kdlib.modes import depends_on_mode
from kdlib.packing import pack
from kdlib.parts import is_of_library, names_of, slots_of
from kdlib.seeds import global_generators_put_back
from kdlib.trainable import Optimizers, weights_of

__all__ = ["GeneratorNotSaved", "Held", "StateNotSaved", "TeacherInTraining"]

MOST = 10_000  # objects that are looked into, the nearest ones first
ENTRIES = 100  # of a list or a dictionary that is looked into: a longer one is data
STATES = "state_dict", "load_state_dict"
Weights = Sequence[tuple[Tensor, int]]  # each with torch's count of its changes


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
        saved = [*extras, *optimizers.values()]
        own = {id(part) for each in (network, *saved) for part in _modules_of(each)}
        known = reached([*saved, random.random, np.random.rand, *_global_generators()], own)
        found = [*reached(functions, own | known.keys()).values()]
        others = {str(n): each for n, each in enumerate(found) if issubclass(type(each), torch.optim.Optimizer)}
        trained = {id(weight) for weight in weights_of({**optimizers, **others})}
        parts = {id(part): part for each in found for part in _modules_of(each) if id(part) not in own}
        self.teachers = _that_depend_on_mode(parts.values(), trained)
        self.suspects: list[tuple[nn.Module, Weights]] = []  # called in training mode; an optimizer may train them
        found = found if stops else []
        self.generators = [each for each in found if issubclass(type(each), GENERATORS)]
        like = _shapes_of(network)  # those of an average, of which CopyNotSaved tells
        self.saved_tensors = {id(each) for part in (network, *saved) for each in _tensors_of(part).values()}
        within = {id(part) for each in found for part in _modules_of(each)[1:]}
        objects = [each for each in found if id(each) not in within and _shapes_of(each) != like]
        self.objects = [each for each in objects if _mark(each, self.saved_tensors) is not None]
        self.first: tuple[list[Any], list[Any]] | None = None  # states of generators and objects at the first step
        self.ends: list[Any] = []  # states of objects at the end of an epoch whose follower is looked at
        self.looks = 0

    def watching(self, batches: Iterable[Batch], place: str) -> Iterator[Batch]:
        """Pass on an epoch's batches. With the first one, warn of what goes on from the epoch before.

        What is seeded or set anew in each epoch has been so by then. TeacherInTraining tells of a call meanwhile.
        """
        # None on a layer that is evaluated: its network may be scripted, copied or saved in a step.
        layers = [(part, weights) for part, weights in self.teachers if part.training]
        hooks = [part.register_forward_pre_hook(_Hook(self, weights)) for part, weights in layers]
        try:
            for number, batch in enumerate(batches):
                if number == 0:
                    self._tell_what_goes_on(place)
                yield batch
        finally:
            for hook in hooks:
                hook.remove()

    def called(self, part: nn.Module, weights: Weights) -> None:
        """Take a call of a layer: warn if it is in training mode and, by its weights, will not learn."""
        if part.training and self.teachers:  # not one that is evaluated for this call
            if any(weight.requires_grad for weight, _ in weights):
                self.suspects.append((part, weights))
            else:
                self._tell_teacher(part)

    def _tell_teacher(self, part: nn.Module) -> None:
        self.teachers, self.suspects = [], []  # once is enough
        warnings.warn(
            f"the {type(part).__name__} of a network that does not learn is called in training mode, as all are "
            "that have just been made or loaded: dropout is active, and batch norm takes the averages of each "
            "batch. Call predict_logits(teacher, inputs), or teacher.eval() before the training; name a network "
            'that is meant so in Progress(..., extras={"teacher": teacher})',
            TeacherInTraining,
            stacklevel=3,
        )

    def epoch_ends(self) -> None:
        """Note, after an epoch and its body, the states of objects; warn of a teacher that has not learnt meanwhile."""
        same = [part for part, weights in self.suspects if all(_count(each) == before for each, before in weights)]
        if same:
            self._tell_teacher(same[0])
        self.suspects = []
        self.looks += 1
        # 1, 2, 4, 8: something may change from a later epoch on
        is_due = self.looks.bit_count() == 1
        self.ends = [_mark(each, self.saved_tensors) for each in self.objects] if is_due else []

    def _tell_what_goes_on(self, place: str) -> None:
        """Warn of the first of each kind: GeneratorNotSaved, but for a torch one with a new seed, and StateNotSaved."""
        states = [_state(each) for each in self.generators]
        marks = [_mark(each, self.saved_tensors) for each in self.objects]
        if self.first is None:
            self.first = states, marks
            return
        if self.looks.bit_count() != 1:
            return
        pairs = zip(self.generators, states, self.first[0], strict=True)
        if goes_on := [each for each, now, first in pairs if now[0] == first[0] and now[1] != first[1]]:
            warnings.warn(
                f"{place}: the objective or the batches draw from a {type(goes_on[0]).__name__} of their own, whose "
                "state no checkpoint holds: after a stop, it would begin anew. Make it in each epoch, from "
                'generator(seed, "noise", epoch) for example, or draw from the global generators; one that is '
                "seeded anew in each epoch loses nothing",
                GeneratorNotSaved,
                stacklevel=3,
            )
            self.generators, self.first = [], ([], self.first[1])  # once is enough
        four = zip(self.objects, marks, self.ends, self.first[1], strict=True)
        if goes_on := [each for each, now, end, first in four if now == end != first]:
            warnings.warn(
                f"{place}: the objective or the batches hold a {type(goes_on[0]).__name__} that changes in this "
                "training, and its checkpoint does not hold it: after a stop, it would begin anew. Name it in "
                'Progress(..., extras=...), such as extras={"loss": loss}; one that only you read needs nothing',
                StateNotSaved,
                stacklevel=3,
            )
            self.objects, self.first, self.ends = [], (self.first[0], []), []


class _Hook:
    """The hook of a layer; a copy or a file of its network has one that does nothing."""

    def __init__(self, held: Held | None = None, weights: Weights = ()) -> None:
        self.held, self.weights = held, weights

    def __call__(self, part: nn.Module, _: Any) -> None:
        if self.held is not None:
            self.held.called(part, self.weights)

    def __reduce__(self) -> tuple[type[_Hook], tuple[()]]:
        return _Hook, ()


def reached(roots: Iterable[Any], known: Collection[int]) -> dict[int, Any]:
    """Return what functions and objects lead to, by their ids: closures, names, attributes, and entries of short lists.

    What is `known` is left out, with all that only it leads to.
    """
    waiting, found = deque(roots), dict[int, Any]()
    while waiting and len(found) < MOST:
        value = waiting.popleft()
        if id(value) not in found and id(value) not in known:
            found[id(value)] = value
            with suppress(Exception):  # of somebody else's objects
                waiting += _parts(value)
    return found


def _parts(value: Any) -> list[Any]:
    kind = type(value)
    if issubclass(kind, types.FunctionType):
        return (
            [] if is_of_library(str(value.__module__)) else _of_function(value)
        )  # kdlib's may hold a user's in a cell
    if issubclass(kind, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if issubclass(kind, types.MethodType):
        return [value.__func__, value.__self__]
    if issubclass(kind, types.BuiltinFunctionType):
        return [value.__self__]
    if issubclass(kind, type):
        return [part for each in value.__mro__ if _is_users(each.__module__) for part in vars(each).values()]
    if issubclass(kind, staticmethod | classmethod):
        return [value.__func__]
    if issubclass(kind, property):
        return [value.fget, value.fset]
    if issubclass(kind, types.ModuleType | Tensor | np.ndarray):
        return []
    found: list[Any] = [kind] if _is_users(kind.__module__) else []  # its methods
    if issubclass(kind, dict | list | tuple | set | deque) and len(value) <= ENTRIES:
        found += value.values() if issubclass(kind, dict) else value
    return [*found, *(part for _, part in slots_of(value)), *getattr(value, "__dict__", {}).values()]


def _is_users(module: str) -> bool:
    return not is_of_library(module) and module.partition(".")[0] != "kdlib"


def _of_function(value: types.FunctionType) -> list[Any]:
    """What a function, and the functions within it, name: of modules that are the user's, what the function names."""
    names = names_of(value.__code__) if _is_users(str(value.__module__)) else []
    named = [value.__globals__[name] for name in names if name in value.__globals__]
    for module in [each for each in named if isinstance(each, types.ModuleType)]:
        if _is_users(module.__name__):
            named += [part for name, part in vars(module).items() if name in names]
    cells = [content(cell) for cell in value.__closure__ or ()]
    return [*cells, *named, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]


def _global_generators() -> list[Any]:
    return [torch.default_generator, *torch.cuda.default_generators]  # none of CUDA before it is used


def _modules_of(value: Any) -> list[nn.Module]:
    """A module and those within it; none of anything else, and of a module that is half made."""
    with suppress(Exception):
        return [*value.modules()] if issubclass(type(value), nn.Module) else []
    return []


def _weights_of(value: Any) -> list[nn.Parameter]:
    with suppress(Exception):  # of a module that is half made
        return [*value.parameters()] if issubclass(type(value), nn.Module) else []
    return []


def _shapes_of(value: Any) -> list[torch.Size]:
    with suppress(RuntimeError):  # of weights that are not made yet
        return [weight.shape for weight in _weights_of(value)]
    return []


def _that_depend_on_mode(parts: Iterable[nn.Module], trained: Collection[int]) -> list[tuple[nn.Module, Weights]]:
    """The layers of networks without weights that learn, which compute something else in training mode.

    Each has the weights of the largest network that it is a layer of.
    """
    found: dict[int, tuple[nn.Module, Weights]] = {}
    for each in parts:
        weights = [(weight, _count(weight)) for weight in _weights_of(each)]
        if weights and not any(id(weight) in trained for weight, _ in weights):
            for part in filter(_changes_with_mode, _modules_of(each)):
                found.setdefault(id(part), (part, weights))
    return [*found.values()]


def _changes_with_mode(part: nn.Module) -> bool:
    with suppress(Exception):  # of somebody else's class
        return depends_on_mode(part) and not isinstance(part, torch.jit.ScriptModule)
    return False


def _count(weight: Tensor) -> int:
    """How often a tensor has been changed, as torch counts it; not of one made in inference mode, or not made yet."""
    with suppress(Exception):
        return weight._version
    return 0


def _tensors_of(value: Any) -> dict[str, Tensor]:
    """The weights and buffers of a module, those of the state of an optimizer, and no others."""
    if issubclass(type(value), torch.optim.Optimizer):
        return {str(n): each for n, each in enumerate(tree_leaves([*value.state.values()])) if isinstance(each, Tensor)}
    return {
        f"{number} {name}": each
        for number, part in enumerate(_modules_of(value))
        for name, each in (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False))
    }


def _mark(value: Any, saved: Collection[int]) -> str | None:
    """What tells two states of a loss or another module apart, but for tensors that are saved; None of other objects.

    Weights are known by torch's count of changes, since a teacher's would take long to digest. Only a loss is asked for
    a `state_dict` of its own: the question begins the iterator of some loaders.
    """
    tensors: dict[str, Tensor] = {}
    with suppress(Exception):  # of somebody else's objects
        if issubclass(type(value), nn.Module):
            own = {name: each for name, each in _tensors_of(value).items() if id(each) not in saved}
            tensors = {name: each for name, each in own.items() if not isinstance(each, nn.Parameter)}
            counts = {name: _count(each) for name, each in own.items() if name not in tensors}
            return f"{tensor_digest(tensors)} {counts}" if own else None
        if callable(value) and all(callable(getattr(type(value), name, None)) for name in STATES):
            with global_generators_put_back():
                notes = pack(value.state_dict(), "state", tensors)
            return f"{tensor_digest(tensors)} {canonical_json(notes)}"
    return None


def _state(generator: Any) -> tuple[int | None, Any]:
    """The seed of a generator, as far as it knows one, and its state."""
    if isinstance(generator, torch.Generator):
        return generator.initial_seed(), generator.get_state().tolist()
    if isinstance(generator, random.Random):
        return None, None if isinstance(generator, random.SystemRandom) else generator.getstate()
    bits = generator.bit_generator if isinstance(generator, np.random.Generator) else generator
    state = bits.state if isinstance(bits, np.random.BitGenerator) else bits.get_state(legacy=False)
    with np.printoptions(threshold=2**20):
        return None, repr(state)
