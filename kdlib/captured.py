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
from kdlib.errors import KDError
from kdlib.replicas import Replicas

__all__ = ["CapturedStep"]

REFUSED = "the training step could not be recorded as a CUDA graph"
REMEDY = "launch its operations one by one (--no-graphs, or Progress(..., graphs=False))"
WARM_UP = 3  # steps that are launched one by one before a graph is recorded: libraries set themselves up in them

Step = Callable[[Batch], Tensor]
Capture = Callable[[Callable[[], Tensor]], tuple[Callable[[], object], Tensor]]


class Trained(Protocol):
    """What a step changes: a `kdlib.training.Progress`, for example."""

    model: nn.Module
    optimizer: torch.optim.Optimizer


@dataclass
class _Graph:
    """A graph that is replayed on a batch of its own, and the loss that it writes."""

    batch: Batch
    replay: Callable[[], object]
    loss: Tensor


class CapturedStep:
    """A step of the optimizer, `step(batch) -> loss`, that is recorded as a CUDA graph and replayed.

    `step` is the step itself, and `trained` has the model and the optimizer that it changes. Each shape of batch gets a
    graph after a few steps; the steps before it are launched one by one. Another learning rate, or any other change of
    the optimizer's settings, makes the graphs anew; so does `refresh()`, which the loop calls before each epoch. Until
    then a graph repeats what was recorded: numbers that the objective takes from Python, layers that are frozen.

    Raises KDError if a step cannot be recorded: it waits for a number on the CPU, or the optimizer counts there (Adam
    needs `capturable=True`).
    """

    def __init__(self, step: Step, trained: Trained, capture: Capture | None = None) -> None:
        self.step, self.trained = step, trained
        self.capture = capture or self._recorded
        self.settings: Any = None
        self.seen: dict[Any, int] = {}
        self.graphs: dict[Any, _Graph] = {}
        self.stream: Any = None

    def __call__(self, batch: Batch) -> Tensor:
        """Make one step and return its loss, on the device."""
        groups = self.trained.optimizer.param_groups
        settings = [{name: _known(value) for name, value in group.items() if name != "params"} for group in groups]
        if settings != self.settings:
            self.settings, self.seen, self.graphs = settings, {}, {}
        shape = tuple(None if part is None else (part.shape, part.dtype) for part in _parts(batch))
        if shape not in self.graphs:
            self.seen[shape] = self.seen.get(shape, 0) + 1
            if self.seen[shape] <= WARM_UP:
                return self._eager(batch)
            self.graphs[shape] = self._graph(batch)
        graph = self.graphs[shape]
        for own, given in zip(_parts(graph.batch), _parts(batch), strict=True):
            if own is not None and given is not None:
                own.copy_(given)
        graph.replay()
        return graph.loss.clone()

    def refresh(self) -> None:
        """Forget the graphs: the body of the loop may have replaced or frozen what they read and write."""
        self.seen, self.graphs = {}, {}

    def _graph(self, batch: Batch) -> _Graph:
        """Record a graph of a copy of the batch. No step is made."""
        self._refuse_counters_elsewhere()
        own = Batch(*(None if part is None else part.clone() for part in _parts(batch)))  # type: ignore[arg-type]
        try:
            replay, loss = self.capture(lambda: self.step(own))
        except RuntimeError as error:  # what comes after it on the device is not reliable: no step may follow
            raise KDError(f"{REFUSED} ({str(error).partition(chr(10))[0]}); {REMEDY}") from error
        return _Graph(own, replay, loss)

    def _refuse_counters_elsewhere(self) -> None:
        """Refuse an optimizer whose state is not on the device: a graph would not change it."""
        place = next(self.trained.model.parameters()).device
        for state in self.trained.optimizer.state.values():
            for name, value in state.items():
                if value is not None and not (isinstance(value, Tensor) and value.device == place):
                    kind = type(self.trained.optimizer).__name__
                    raise KDError(f"{REFUSED}: {kind} keeps '{name}' on the CPU; {REMEDY}")

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


def _known(value: Any) -> Any:
    """What a graph has taken a value of a group for: of a tensor on the CPU the number, on the device the tensor."""
    return value.tolist() if isinstance(value, Tensor) and value.device.type == "cpu" else value


def _parts(batch: Batch) -> list[Tensor | None]:
    return [getattr(batch, field.name) for field in fields(batch)]
