"""The training step on a CUDA device as one CUDA graph, so that the CPU launches one thing a step instead of hundreds.

A step of many small students is bound by the CPU: it launches some 300 kernels, one after the other. A graph records
them once and launches them together. It does to weights, optimizer state and random numbers what the same steps do when
they are launched one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from kdlib.batches import Batch
from kdlib.replicas import Replicas

__all__ = ["CapturedStep"]

WARM_UP = 3  # steps that are launched one by one before a graph is recorded: libraries set themselves up in them

Step = Callable[[Batch], Tensor]
Capture = Callable[[Callable[[], Tensor]], tuple[Callable[[], object], Tensor]]


class Trained(Protocol):
    """What a step changes: a `kdlib.training.Progress`, for example."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    notice: str


@dataclass
class _Graph:
    """A graph that is replayed on a batch of its own, and the loss that it writes."""

    batch: Batch
    replay: Callable[[], object]
    loss: Tensor


class CapturedStep:
    """A step of the optimizer, `step(batch) -> loss`, that is recorded as a CUDA graph and replayed.

    `step` is the step itself, and `trained` has the model and the optimizer that it changes. Each shape of batch gets a
    graph after a few steps, so a short last batch of an epoch is at first launched one by one. Another learning rate,
    or any other change of the optimizer's settings, makes the graphs anew; so does `refresh()` if the optimizer or its
    state was replaced. If a step cannot be recorded, for example because it waits for a number on the CPU, all steps
    are launched one by one and `trained.notice` says why.
    """

    def __init__(self, step: Step, trained: Trained, capture: Capture | None = None) -> None:
        self.step, self.trained = step, trained
        self.capture = capture or self._recorded
        self.settings: Any = None
        self.seen: dict[Any, int] = {}
        self.graphs: dict[Any, _Graph] = {}
        self.places: list[int] = []  # of the tensors that the graphs read and write
        self.failed = False
        self.stream: Any = None

    def __call__(self, batch: Batch) -> Tensor:
        """Make one step and return its loss, on the device."""
        if self.failed:
            return self.step(batch)
        groups = self.trained.optimizer.param_groups
        settings = [{name: value for name, value in group.items() if name != "params"} for group in groups]
        if settings != self.settings:
            self.settings, self.seen, self.graphs = settings, {}, {}
        shape = tuple(None if part is None else (part.shape, part.dtype) for part in _parts(batch))
        if shape not in self.graphs:
            self.seen[shape] = self.seen.get(shape, 0) + 1
            if self.seen[shape] <= WARM_UP or not self._record(shape, batch):
                return self._eager(batch)
        graph = self.graphs[shape]
        for own, given in zip(_parts(graph.batch), _parts(batch), strict=True):
            if own is not None and given is not None:
                own.copy_(given)
        graph.replay()
        return graph.loss.clone()

    def refresh(self) -> None:
        """Forget the graphs if a tensor that they write has been replaced by another."""
        if self.graphs and self.places != self._places():
            self.seen, self.graphs = {}, {}

    def _places(self) -> list[int]:
        states = [value for state in self.trained.optimizer.state.values() for value in state.values()]
        tensors = [*self.trained.model.state_dict().values(), *(value for value in states if isinstance(value, Tensor))]
        return [tensor.data_ptr() for tensor in tensors]

    def _record(self, shape: Any, batch: Batch) -> bool:
        """Record a graph of a copy of the batch; return whether that was possible. No step is made."""
        own = Batch(*(None if part is None else part.clone() for part in _parts(batch)))  # type: ignore[arg-type]
        try:
            replay, loss = self.capture(lambda: self.step(own))
        except RuntimeError as error:
            why = str(error).partition("\n")[0]
            self.trained.notice = f"the training step could not be recorded as a CUDA graph ({why})"
            self.failed = True
            return False
        self.graphs[shape], self.places = _Graph(own, replay, loss), self._places()
        return True

    def _eager(self, batch: Batch) -> Tensor:
        """Make the step on the stream on which it will be recorded, as CUDA graphs ask for."""
        if not batch.inputs.is_cuda:
            return self.step(batch)
        self.stream = self.stream or torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            loss = self.step(batch)
        torch.cuda.current_stream().wait_stream(self.stream)
        return loss

    def _recorded(self, step: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
        graph = torch.cuda.CUDAGraph()
        model = self.trained.model
        for generator in model.generators if isinstance(model, Replicas) else ():
            graph.register_generator_state(generator)
        self.trained.optimizer.zero_grad(set_to_none=True)  # the gradients then lie in the graph's own memory
        with torch.cuda.graph(graph, stream=self.stream):
            loss = step()
        return graph.replay, loss


def _parts(batch: Batch) -> list[Tensor | None]:
    return [getattr(batch, field.name) for field in fields(batch)]
