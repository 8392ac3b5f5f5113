"""Whether an optimizer treats each number of a weight alone: a stack of members must not be mixed by its steps."""

from __future__ import annotations

import inspect
import re

import torch
from torch import Tensor, nn

__all__ = ["mixes_members"]

STEPS = 3
# They look at whole tensors, some of them only after many steps; of all others, a few steps are compared.
KNOWN = re.compile(
    "adafactor|adamp|dadapt.*|k?lamb|lars|lbfgs|muon|(nv)?novograd|prodigy|sgdp|shampoo|soap", re.IGNORECASE
)


def mixes_members(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether an optimizer's steps for a stack of two members differ from those for each of them alone.

    A new optimizer of the same class and settings makes STEPS steps on small weights. One that cannot be made so is
    judged by the name of its class. The random state remains as it was.
    """
    if KNOWN.fullmatch(type(optimizer).__name__):
        return True
    place = next((weight.device for group in optimizer.param_groups for weight in group["params"]), None)
    devices = [place] if place is not None and place.type == "cuda" else []
    with torch.random.fork_rng(devices):
        draws = torch.Generator("cpu").manual_seed(0)
        # The second member's gradients are a hundred times as large: a norm over both is then far from its own.
        scale = torch.tensor([1.0, 100.0]).view(2, 1, 1)
        gradients = [scale * torch.randn(2, 3, 4, generator=draws, device="cpu") for _ in range(STEPS)]
        first = torch.randn(2, 3, 4, generator=draws, device="cpu")
        try:
            together = _trained(optimizer, first.to(place), [each.to(place) for each in gradients])
            alone = [_trained(optimizer, first[n].to(place), [each[n].to(place) for each in gradients]) for n in (0, 1)]
        except Exception:  # of any kind, because it is another library's own
            return False
    return not torch.allclose(together, torch.stack(alone), rtol=1e-3, atol=1e-5, equal_nan=True)


def _trained(optimizer: torch.optim.Optimizer, first: Tensor, gradients: list[Tensor]) -> Tensor:
    """The weight after a step of a new optimizer like this one with each of the gradients."""
    weight = nn.Parameter(first.clone())
    known = inspect.signature(type(optimizer)).parameters
    settings = {name: value for name, value in optimizer.defaults.items() if name in known}
    if isinstance(settings.get("lr"), float):
        settings["lr"] = 0.1  # a rate of a warm-up would show nothing
    own = type(optimizer)([weight], **settings)
    for gradient in gradients:
        weight.grad = gradient.clone()
        own.step()
    return weight.detach()
