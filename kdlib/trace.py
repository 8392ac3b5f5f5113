"""The trace of a training: what the loop did, in digests small enough to keep with every run.

The loop writes it, not the experiment, so two runs that are said to differ in one thing can be compared by what they
did. A resumed run has the same trace as one without interruption; a member of a stack has that of one trained alone.

    network       digest of the names, types and shapes of weights and buffers
    start         SHA-256 of the initial weights and buffers
    optimizer     its class, and the hyper-parameters of its groups without learning rates
    data          digest and view of the examples, batch size, and where the soft targets came from
    first_loss    the loss of the first batch, before any step
    steps         number of optimizer steps
    mixed         whether labels were mixed
    epochs        digests after each epoch, each over all epochs so far: `rows` (row numbers in order), `labels`,
                  `sizes` (of the batches), `rates` (learning rates of all groups, by step), `targets` (soft targets as
                  they were used), `layers` (the seed of dropout)
    changed       epochs before which something outside the loop changed the weights or the optimizer's state
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdlib.batches import Batch
from kdlib.files import canonical_json, sha256, tensor_digest
from kdlib.replicas import Replicas, of_replica

__all__ = ["Tracer"]

ROLLING = ("rows", "labels", "sizes", "rates", "targets", "layers")
DIGITS = 16  # of the digests after each epoch


class Tracer:
    """Writes the trace of each student that a loop trains: one, or the members of a stack."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.model, self.optimizer = model, optimizer
        self.traces: list[dict[str, Any]] = []
        self.state = ""  # SHA-256 of weights, buffers and optimizer state after the last epoch

    def begin(self, batches: Callable[[int], Iterable[Batch]]) -> None:
        """Note what there is before the first step."""
        self.state = self._state()
        states = self._states()
        members = getattr(batches, "members", [batches])
        for state, member in zip(states, members if len(members) == len(states) else [None] * len(states), strict=True):
            about = getattr(member, "about", None)
            self.traces.append(
                {
                    "network": sha256(repr([(n, str(v.dtype), tuple(v.shape)) for n, v in state.items()]).encode())[
                        :DIGITS
                    ],
                    "start": tensor_digest(state),
                    "optimizer": _description(self.optimizer),
                    "data": about() if about else {},
                    "mixed": False,
                    "first_loss": None,
                    "steps": 0,
                    "epochs": {name: [] for name in ROLLING},
                    "changed": [],
                }
            )

    def epoch_begins(self, epoch: int, seeds: Sequence[int]) -> None:
        """Note the dropout seeds of an epoch, and whether weights or optimizer state changed since the last one."""
        changed = self.state != self._state()
        for trace, seed in zip(self.traces, seeds, strict=True):
            _roll(trace, "layers", str(seed).encode())
            if changed:
                trace["changed"].append(epoch)

    def watch(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Pass on an epoch's batches, and note rows, sizes, soft targets and learning rates on the way."""
        rows: list[Tensor] = []
        labels: list[Tensor] = []
        targets: list[Tensor] = []
        rates: list[tuple[int, list[float]]] = []  # where they change
        for step, batch in enumerate(batches):
            now = [float(group["lr"]) for group in self.optimizer.param_groups]
            if not rates or rates[-1][1] != now:
                rates.append((step, now))
            rows.append(batch.indices)
            labels.append(batch.labels)
            if batch.soft is not None:
                targets.append(batch.soft)
            yield batch
        sizes = [part.shape[-1] for part in rows]
        mixed = any(_is_mixed(part) for part in labels)
        for number, trace in enumerate(self.traces):
            member = number if isinstance(self.model, Replicas) else None
            for name, parts in (("rows", rows), ("labels", labels), ("targets", targets)):
                _roll(trace, name, _bytes(parts, member))
            trace["mixed"] = trace["mixed"] or mixed
            _roll(trace, "sizes", repr(sizes).encode())
            _roll(trace, "rates", repr(rates).encode())
            trace["steps"] += len(sizes)

    def epoch_ends(self, first_loss: Tensor) -> None:
        """Note the state after an epoch and, after the first one, the loss of its first batch."""
        self.state = self._state()
        for trace, loss in zip(self.traces, first_loss.view(-1).tolist(), strict=True):
            if trace["first_loss"] is None:
                trace["first_loss"] = loss

    def _states(self) -> list[Mapping[str, Tensor]]:
        """Weights and buffers of each student, under the names that it has when it is trained alone."""
        state = self.model.state_dict()
        if isinstance(self.model, Replicas):
            return [of_replica(state, number) for number in range(len(self.model))]
        return [state]

    def _state(self) -> str:
        tensors = {f"model/{name}": value for name, value in self.model.state_dict().items()}
        for index, entries in self.optimizer.state_dict()["state"].items():
            for name, value in entries.items():
                tensors[f"optimizer/{index}/{name}"] = torch.as_tensor(value)
        return tensor_digest(tensors)


def _roll(trace: dict[str, Any], name: str, content: bytes) -> None:
    digests: list[str] = trace["epochs"][name]
    before = digests[-1] if digests else ""
    digests.append(hashlib.sha256(before.encode() + content).hexdigest()[:DIGITS])


def _bytes(parts: Sequence[Tensor], member: int | None) -> bytes:
    """The bytes of an epoch's tensors (B, ...), or of one member's part of stacked tensors (R, B, ...)."""
    if not parts:
        return b""
    whole = torch.cat(list(parts)) if member is None else torch.cat([part[member] for part in parts])
    return whole.detach().cpu().contiguous().numpy().tobytes()


def _is_mixed(labels: Tensor) -> bool:
    return labels.is_floating_point() and bool(((labels > 0) & (labels < 1)).any())


def _description(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    groups = [
        {name: _plain(value) for name, value in group.items() if name not in ("params", "lr", "initial_lr")}
        | {"tensors": len(group["params"])}
        for group in optimizer.param_groups
    ]
    return {"class": type(optimizer).__name__, "groups": groups}


def _plain(value: Any) -> Any:
    """The value if JSON can hold it, else its text."""
    try:
        canonical_json(value)
    except (TypeError, ValueError):
        return repr(value)
    return list(value) if isinstance(value, tuple) else value
