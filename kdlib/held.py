"""Tells slips with what the functions of a training hold: states that a stop would lose, teachers in training mode."""

from __future__ import annotations

import functools
import random
import types
import warnings
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kdlib.attributes import GENERATORS, content
from kdlib.batches import Batch
from kdlib.files import canonical_json, tensor_digest
from kdlib.modes import depends_on_mode
from kdlib.packing import pack
from kdlib.trainable import Optimizers, weights_of

__all__ = ["GeneratorNotSaved", "Held", "StateNotSaved", "TeacherInTraining"]

MOST = 10_000  # objects that are looked into, the nearest ones first
ENTRIES = 100  # of a list or a dictionary that is looked into: a longer one is data


class GeneratorNotSaved(UserWarning):
    """A generator of random numbers goes on through a training, and no checkpoint holds its state."""


class StateNotSaved(UserWarning):
    """An object that the objective or the batches hold changes in a training, and no checkpoint holds its state."""


class TeacherInTraining(UserWarning):
    """A network that does not learn is called in training mode: with dropout, and the statistics of each batch."""


class Held:
    """What functions of a training hold, but for its network and what is `saved` with it: extras and optimizers.

    Of a training without a checkpoint (`stops`), teachers are told alone.
    """

    def __init__(
        self, functions: Iterable[Any], network: nn.Module, optimizers: Optimizers, extras: Iterable[Any], stops: bool
    ) -> None:
        saved = [*extras, *optimizers.values()]
        own = [network, *(each for each in saved if isinstance(each, nn.Module))]
        of_network = {id(module) for each in own for module in each.modules()}
        known = reached([*saved, random.random, np.random.rand, *_global_generators()], of_network)
        found = [*reached(functions, of_network | known.keys()).values()]
        modules = [each for each in found if issubclass(type(each), nn.Module)]
        parts = {id(part) for each in modules for part in list(each.modules())[1:]}
        trained = {id(weight) for weight in weights_of(optimizers)}
        self.teachers = [each for each in modules if id(each) not in parts and _is_slip(each, trained)]
        found = found if stops else []
        self.generators = [(each, _state(each)) for each in found if issubclass(type(each), GENERATORS)]
        like = _shapes(network)  # an average, of which CopyNotSaved tells
        objects = [each for each in found if _has_state(each) and (like is None or _shapes(each) != like)]
        self.objects = [(each, _digest(each)) for each in objects if id(each) not in parts]

    def watching(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Pass on an epoch's batches; warn (TeacherInTraining) of a teacher that is called meanwhile."""
        hooks = [module.register_forward_pre_hook(self._called) for module in self.teachers]
        try:
            yield from batches
        finally:
            for hook in hooks:
                hook.remove()

    def _called(self, module: nn.Module, _: Any) -> None:
        if module.training and module in self.teachers:  # not one that is evaluated for this call
            self.teachers = []  # once is enough
            warnings.warn(
                f"a {type(module).__name__} that does not learn is called in training mode, as a network is that has "
                "just been made or loaded: its dropout is active, and its batch norm takes the averages of each batch. "
                "Call predict_logits(teacher, inputs), or teacher.eval() before the training",
                TeacherInTraining,
                stacklevel=2,
            )

    def look(self, place: str) -> None:
        """Warn (GeneratorNotSaved, StateNotSaved) of the first one of each kind that has changed since it was found.

        A generator of torch that has another seed now was seeded anew.
        """
        for generator, (seed, state) in self.generators:
            if _state(generator)[0] == seed and _state(generator)[1] != state:
                warnings.warn(
                    f"{place}: the objective or the batches draw from a {type(generator).__name__} of their own, whose "
                    "state no checkpoint holds: after a stop, it would begin anew. Make it in each epoch, from "
                    'generator(seed, "noise", epoch) for example, or draw from the global generators; one that is '
                    "seeded anew in each epoch loses nothing",
                    GeneratorNotSaved,
                    stacklevel=3,
                )
                break
        for each, digest in self.objects:
            if digest is not None and _digest(each) != digest:
                warnings.warn(
                    f"{place}: the objective or the batches hold a {type(each).__name__} that changes in this "
                    "training, and its checkpoint does not hold it: after a stop, it would begin anew. Name it in "
                    'Progress(..., extras=...), such as extras={"loss": loss}; one that only you read needs nothing',
                    StateNotSaved,
                    stacklevel=3,
                )
                break


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
        cells = [content(cell) for cell in value.__closure__ or ()]
        named = [value.__globals__.get(name) for name in value.__code__.co_names]
        return [*cells, *named, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
    if issubclass(kind, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if issubclass(kind, types.MethodType):
        return [value.__func__, value.__self__]
    if issubclass(kind, types.BuiltinFunctionType):
        return [value.__self__]
    if issubclass(kind, types.ModuleType | type | Tensor | np.ndarray):
        return []
    entries: list[Any] = []
    if issubclass(kind, dict | list | tuple | set | deque) and len(value) <= ENTRIES:
        entries = [*(value.values() if issubclass(kind, dict) else value)]
    return [*entries, *getattr(value, "__dict__", {}).values()]


def _global_generators() -> list[Any]:
    return [torch.default_generator, *torch.cuda.default_generators]  # none of CUDA before it is used


def _is_slip(module: nn.Module, trained: Collection[int]) -> bool:
    """Whether a network that does not learn is in training mode, and this matters."""
    with suppress(Exception):  # of somebody else's class
        weights = {id(weight) for weight in module.parameters()}
        is_taught = bool(weights & {*trained}) or isinstance(module, torch.jit.ScriptModule)
        if weights and module.training and not is_taught:
            return any(part.training and depends_on_mode(part) for part in module.modules())
    return False


def _has_state(value: Any) -> bool:
    return all(callable(getattr(type(value), name, None)) for name in ("state_dict", "load_state_dict"))


def _shapes(value: Any) -> list[torch.Size] | None:
    with suppress(Exception):  # of weights that are not made yet
        return [weight.shape for weight in value.parameters()] if issubclass(type(value), nn.Module) else None
    return None


def _digest(value: Any) -> str | None:
    """The digest of an object's state; None if it has none that a checkpoint could hold."""
    tensors: dict[str, Tensor] = {}
    with suppress(Exception):  # of somebody else's objects
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
