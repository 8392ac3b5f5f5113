"""Whether an optimizer treats each number of a weight alone: a stack of members must not be mixed by its steps."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["mixes_members"]

STEPS = 3
PLAIN = bool, int, float, str, type(None), list, tuple
# They look at whole tensors, some of them only after many steps; of all others, a few steps are compared.
KNOWN = re.compile(
    "adafactor|adamp|dadapt.*|k?lamb|lars|lbfgs|muon|(nv)?novograd|prodigy|sgdp|shampoo|soap", re.IGNORECASE
)


def mixes_members(optimizer: torch.optim.Optimizer) -> bool | None:
    """Return whether an optimizer's steps for a stack of two members differ from those for each of them alone.

    None if that cannot be tried: for a class that cannot be made anew, and one whose steps are random.

    A new optimizer of the same class and settings makes STEPS steps on a small matrix and a small vector. The settings
    are those of its groups and, for other arguments of the class, the optimizer's attributes of their names. Hooks are
    not called. Some classes are known by name. The random state remains as it was.
    """
    if KNOWN.fullmatch(type(optimizer).__name__):
        return True
    place = next((weight.device for group in optimizer.param_groups for weight in group["params"]), None)
    with torch.random.fork_rng([place] if place is not None and place.type == "cuda" else []):
        draws = torch.Generator("cpu").manual_seed(0)
        shapes = ((2, 3, 4), (2, 3))
        first = [torch.randn(shape, generator=draws, device="cpu").to(place) for shape in shapes]
        # The second member's gradients are a hundred times as large: a norm over both is then far from its own.
        scale = torch.tensor([1.0, 100.0], device="cpu")
        gradients = [
            [
                (scale.view(2, *[1] * (len(shape) - 1)) * torch.randn(shape, generator=draws, device="cpu")).to(place)
                for shape in shapes
            ]
            for _ in range(STEPS)
        ]
        try:
            for group in optimizer.param_groups:
                together = _trained(optimizer, group, first, gradients)
                again = _trained(optimizer, group, first, gradients)
                if not all(torch.equal(*pair) for pair in zip(together, again, strict=True)):
                    return None
                for n in (0, 1):
                    own = [[each[n] for each in step] for step in gradients]
                    alone = _trained(optimizer, group, [each[n] for each in first], own)
                    for one, other in zip(together, alone, strict=True):
                        if not torch.allclose(one[n], other, rtol=1e-3, atol=1e-5, equal_nan=True):
                            return True
        except Exception:  # of any kind, because it is another library's own
            return None
    return False


def _trained(
    optimizer: torch.optim.Optimizer,
    group: Mapping[str, Any],
    first: Sequence[Tensor],
    gradients: Sequence[list[Tensor]],
) -> list[Tensor]:
    """The weights after a step of a new optimizer like this one with each of the gradients."""
    weights = [nn.Parameter(each.clone()) for each in first]
    known = {name: value for name, value in vars(optimizer).items() if isinstance(value, PLAIN)}
    settings = {**known, **optimizer.defaults, **{name: value for name, value in group.items() if name != "params"}}
    settings["lr"] = 0.1  # a rate of a warm-up would show nothing
    arguments = inspect.signature(type(optimizer)).parameters
    own = type(optimizer)(weights, **{name: value for name, value in settings.items() if name in arguments})
    for step in gradients:
        for weight, gradient in zip(weights, step, strict=True):
            weight.grad = gradient.clone()
        own.step()
    return [weight.detach() for weight in weights]
