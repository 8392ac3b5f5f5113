"""What tells two states of somebody's object apart: generators, tensors, networks, and what has a `state_dict`."""

from __future__ import annotations

import random
from collections.abc import Collection
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from kdlib.attributes import GENERATORS
from kdlib.copies import sample
from kdlib.packing import state_digest
from kdlib.seeds import global_generators_put_back

__all__ = ["mark", "modules_of", "tensors_of"]

STATES = "state_dict", "load_state_dict"


def modules_of(value: Any) -> list[nn.Module]:
    """Return a module and those within it; none of anything else, and of a module that is half made."""
    with suppress(Exception):
        return [*value.modules()] if issubclass(type(value), nn.Module) else []
    return []


def tensors_of(value: Any) -> dict[str, Tensor]:
    """Return the weights and buffers of a module, those of the state of an optimizer, and no others."""
    if issubclass(type(value), torch.optim.Optimizer):
        return {str(n): each for n, each in enumerate(tree_leaves([*value.state.values()])) if isinstance(each, Tensor)}
    return {
        f"{number} {name}": each
        for number, part in enumerate(modules_of(value))
        for name, each in (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False))
    }


def mark(value: Any, saved: Collection[int]) -> Any:
    """Return what tells two states of a value apart, but for tensors that are saved; None if it has no state.

    Weights and other tensors are known by some of their numbers, since a teacher's would take long to digest. What can
    be iterated is not asked for its `state_dict`: the question begins the iterator of some loaders.
    """
    with suppress(Exception):  # of somebody else's objects
        if issubclass(type(value), GENERATORS):
            return _state(value)
        if issubclass(type(value), Tensor | np.ndarray):
            return sample(value)
        if issubclass(type(value), nn.Module):
            own = {name: each for name, each in tensors_of(value).items() if id(each) not in saved}
            return {name: sample(each) for name, each in own.items()} or None
        kind = type(value)
        if not hasattr(kind, "__iter__") and all(callable(getattr(kind, name, None)) for name in STATES):
            with global_generators_put_back():
                return state_digest(value.state_dict(), "state")
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
