"""What layers and optimizers say of themselves, for the trace of a training."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kdlib.attributes import content
from kdlib.files import canonical_json

__all__ = ["description", "settings"]

# Of an optimizer's groups: names of weights are others in a network that torch.compile has wrapped.
NOT_DESCRIBED = "params", "param_names", "lr", "initial_lr"
NUMBERS = bool, int, float


def settings(layers: Iterable[tuple[str, nn.Module]], optimizer: torch.optim.Optimizer) -> list[Any]:
    """Return what layers say of themselves, which weights learn, and the hooks of layers, weights and optimizer."""
    return [*map(_settings_of, layers), _hooks(optimizer)]


def _settings_of(layer: tuple[str, nn.Module]) -> tuple[str, str, list[str]]:
    name, module = layer
    own = _hooks(module)
    for place, value in module.named_parameters(recurse=False):
        own += [*_hooks(value), *([] if value.requires_grad else [f"{place} is frozen"])]
    try:
        return name, re.sub(" at 0x[0-9a-fA-F]+", "", module.extra_repr()), own
    except Exception:  # it is the user's own
        return name, "", own


def _hooks(value: Any) -> list[str]:
    """The hooks of a layer, a weight or an optimizer, but those of the forward pass: the outputs tell what they do."""
    of_tensors = ("_backward_hooks", "_post_accumulate_grad_hooks")  # torch keeps these elsewhere
    names = of_tensors if isinstance(value, Tensor) else sorted(name for name in vars(value) if "hook" in name)
    maps = {
        name: each
        for name in names
        if not name.startswith("_forward") and isinstance(each := getattr(value, name, None), Mapping)
    }
    return [f"{name} {_said(hook)}" for name, each in maps.items() for hook in each.values()]


def _said(hook: Callable[..., Any]) -> str:
    """A hook's name, and the numbers that it has taken with it, such as the limit of a gradient."""
    function, taken = hook, list[Any]()
    while isinstance(function, partial):
        taken += [*function.args, *function.keywords.values()]
        function = function.func
    taken += [content(cell) for cell in getattr(function, "__closure__", None) or ()]
    taken += [*(getattr(function, "__defaults__", None) or ())]
    numbers = [repr(each) for each in taken if type(each) in NUMBERS]
    return " ".join([str(getattr(function, "__qualname__", type(function).__name__)), *numbers])


def description(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return an optimizer's class and the hyper-parameters of its groups, without learning rates."""
    groups = [
        {str(name): _plain(value) for name, value in group.items() if name not in NOT_DESCRIBED}
        | {"tensors": len(group["params"])}
        for group in optimizer.param_groups
    ]
    return {"class": type(optimizer).__name__, "groups": groups}


def _plain(value: Any) -> Any:
    """The value if JSON can hold it, else its text, without a place in memory, which is another in each process."""
    try:
        canonical_json(value)
    except (TypeError, ValueError):
        return re.sub(" at 0x[0-9a-fA-F]+", "", repr(value))
    return list(value) if isinstance(value, tuple) else value
