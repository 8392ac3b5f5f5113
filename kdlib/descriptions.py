"""What layers and optimizers say of themselves, for the trace of a training."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kdlib.files import canonical_json
from kdlib.probe import observing
from kdlib.seeds import generator

__all__ = ["description", "settings"]

# Of an optimizer's groups: names of weights are others in a network that torch.compile has wrapped.
NOT_DESCRIBED = "params", "param_names", "lr", "initial_lr"


def settings(layers: Iterable[tuple[str, nn.Module]], optimizer: torch.optim.Optimizer) -> list[Any]:
    """Return what layers say of themselves, which weights learn, and the hooks of layers, weights and optimizer."""
    return [*map(_settings_of, layers), _hooks(optimizer)]


def _settings_of(layer: tuple[str, nn.Module]) -> tuple[str, str, list[str]]:
    name, module = layer
    own = _hooks(module)
    for place, value in module.named_parameters(recurse=False):
        own += [*_hooks(value), *([] if value.requires_grad else [f"{place} is frozen"])]
    try:
        return name, _without_place(module.extra_repr()), own
    except Exception:  # it is the user's own
        return name, "", own


def _hooks(value: Any) -> list[str]:
    """The hooks of a layer, a weight or an optimizer, but those of the forward pass: the outputs tell what they do."""
    of_tensors = ("_backward_hooks", "_post_accumulate_grad_hooks")  # torch keeps these elsewhere
    names = of_tensors if isinstance(value, Tensor) else sorted(name for name in vars(value) if "hook" in name)
    found = []
    for name in names:
        hooks = getattr(value, name, None)
        for hook in hooks.values() if isinstance(hooks, Mapping) and not name.startswith("_forward") else ():
            said = str(getattr(hook, "__qualname__", type(hook).__name__))
            changes = _change_of(hook, value) if isinstance(value, Tensor) and name == "_backward_hooks" else ""
            found += [f"{name} {said}{changes}"] if changes is not None else []
    return found


def _change_of(hook: Callable[[Tensor], Any], weight: Tensor) -> str | None:
    """What a hook makes of one fixed gradient, such as a limit; None if it leaves it as it is.

    Of a hook that changes a tensor, such as a running mean, or fails, nothing is known.
    """
    try:
        before = torch.randn(weight.shape, generator=generator(0, "hook"), device="cpu").to(weight)
        given = before.clone()
        with torch.no_grad(), observing([hook], [given]):
            found = hook(given)
            found = given if found is None else found
            return None if torch.equal(found, before) else f" {float(found.double().square().mean()):.6g}"
    except Exception:  # of somebody else's code
        return ""


def description(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return an optimizer's class and the hyper-parameters of its groups, without learning rates."""
    groups = [
        {str(name): _plain(value) for name, value in group.items() if name not in NOT_DESCRIBED}
        | {"tensors": len(group["params"])}
        for group in optimizer.param_groups
    ]
    return {"class": type(optimizer).__name__, "groups": groups}


def _plain(value: Any) -> Any:
    """The value if JSON can hold it, else its text."""
    try:
        canonical_json(value)
    except (TypeError, ValueError):
        return _without_place(repr(value))
    return list(value) if isinstance(value, tuple) else value


def _without_place(text: str) -> str:
    """A text without places in memory, which are others in each process."""
    return re.sub(" at 0x[0-9a-fA-F]+", "", text)
