"""Weights that the loss depends on, but that no optimizer holds: they remain as they are, and somebody is told."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from kdlib.errors import some_of
from kdlib.trainable import Optimizers, WeightsNotTrained, weights_of

__all__ = ["WatchedObjective"]

# At most so many are looked at: torch frees nodes that Python has seen one within the other, and a chain of 50,000
# overflows the stack.
NODES = 10_000


class WatchedObjective:
    """The objective of a training, with the weights that its first loss depends on.

    What a reentrant checkpoint of torch computes is not seen, as it is in no graph; nor is what lies deep in a graph of
    more than 10,000 nodes.
    """

    def __init__(self, objective: Callable[[Any, Any], Tensor], network: nn.Module, extras: Mapping[str, Any]) -> None:
        self.objective, self.network = objective, network
        modules = {name: each for name, each in extras.items() if isinstance(each, nn.Module)}
        self.extras = {
            f"{start}.{name}": value for start, each in modules.items() for name, value in each.named_parameters()
        }
        self.stale = {name for name, value in self.extras.items() if value.grad is not None}
        self.seen: list[tuple[nn.Parameter, float]] | None = None  # with the sum of their numbers

    def __call__(self, outputs: Any, batch: Any) -> Tensor:
        """Return the loss."""
        loss = self.objective(outputs, batch)
        if self.seen is None:
            own = {id(value) for value in self.network.parameters()}
            self.seen = [(value, _sum(value)) for value in _weights_below(loss) if id(value) not in own]
        return loss

    def warn(self, optimizers: Optimizers) -> None:
        """Warn (WeightsNotTrained) of weights that are not the network's and that no optimizer holds.

        It is called after the first epoch and its body. They are those of the first loss, unless something has changed
        them since, and those of extras that have got gradients: an average of weights has none.
        """
        held = {id(value) for value in weights_of(optimizers)}
        seen = [value for value, before in self.seen or () if id(value) not in held and _sum(value) == before]
        self.seen = []  # a layer that is replaced later can be freed
        below = {id(value) for value in seen}
        left = [
            name
            for name, value in self.extras.items()
            if id(value) not in held and (id(value) in below or (value.grad is not None and name not in self.stale))
        ]
        if left:
            warnings.warn(
                f"the loss depends on {some_of(left)} of the extras, and no optimizer of this training holds them, so "
                "they remain as they are. Make the optimizer of the model's and the extra's weights, as in "
                "Adam([*model.parameters(), *layer.parameters()]); of a teacher, call requires_grad_(False)",
                WeightsNotTrained,
                stacklevel=3,
            )
        known = {id(value) for value in self.extras.values()}
        if others := [value for value in seen if id(value) not in known]:
            warnings.warn(
                "the loss depends on weights that are neither the model's nor in extras, and no optimizer of this "
                f"training holds them, so they remain as they are: {len(others)} in all, one of shape "
                f"{tuple(others[0].shape)}. Give a layer that is to learn to the optimizer, as in "
                'Adam([*model.parameters(), *layer.parameters()]), and to Progress(..., extras={"layer": layer}); of a '
                "teacher, call requires_grad_(False), as its gradients take time and memory",
                WeightsNotTrained,
                stacklevel=3,
            )


def _sum(value: Tensor) -> float:
    return float(value.detach().double().sum())


def _weights_below(loss: object) -> list[nn.Parameter]:
    """The parameters that the graph of a loss leads to, each once, as far as the nodes next to the loss do."""
    waiting, found = deque([getattr(loss, "grad_fn", None)]), list[nn.Parameter]()
    seen = set[Any]()  # of the nodes themselves: torch makes another object, with the same id, of one that is let go
    while waiting and len(seen) < NODES:
        node = waiting.popleft()
        if node is None or node in seen:
            continue
        seen.add(node)
        waiting += [below for below, _ in node.next_functions]
        if type(node).__name__ == "AccumulateGrad" and isinstance(node.variable, nn.Parameter):
            found.append(node.variable)
    return [value for value in found if not value.is_inference()]  # nothing can train these
