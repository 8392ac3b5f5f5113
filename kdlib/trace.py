"""The trace of a training: what the loop did, in digests small enough to keep with every run.

The loop writes it, not the experiment, so two runs that are said to differ in one thing can be compared by what they
did. A resumed run has the same trace as one without interruption; a member of a stack has that of one trained alone.

    network       digest of the layers, with the rates of dropout, and of names, types and shapes of weights and buffers
    start         SHA-256 of the initial weights and buffers
    optimizer     its class, and the hyper-parameters of its groups without learning rates
    data          digest and view of the examples, batch size, and where the soft targets came from
    first_loss    the loss of the first batch, before any step
    probe         the loss that the objective gives to one fixed set of outputs, labels and soft targets, after the
                  first step. Two objectives can be compared by it, whatever else differs. null without soft targets,
                  or if the objective needs more than these, or changes a tensor (`kdlib.probe`)
    probes        [epoch, value] where the probe at an epoch's end is another one than before: a loss that changes. None
                  of an objective that uses what is trained, such as a penalty of the weights
    settings      digest of what layers and optimizer say of themselves (strides, momentum), and of their hooks
    outputs       the mean square of the network's outputs for the first batch, before any step
    ends          digests of weights and buffers at the end of each epoch. A record has `loose` instead: the snapshots
                  whose weights are of no epoch's end
    steps         number of optimizer steps
    mixed         whether labels were mixed
    epochs        digests after each epoch, each over all epochs so far: `rows` (row numbers in order), `labels`,
                  `sizes` (of the batches), `rates` (learning rates of all groups, by step; with the optimizer, while
                  it is not the first one), `targets` (soft targets as they were used), `layers` (seed of dropout)
    changed       epochs before which something outside the loop changed the weights or the optimizer's state
"""

from __future__ import annotations

import hashlib
import math
import re
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from kdlib.batches import Batch
from kdlib.errors import KDError
from kdlib.files import canonical_json, sha256, tensor_digest
from kdlib.packing import pack, tensors_of_state
from kdlib.probe import probed
from kdlib.replicas import Replicas

if TYPE_CHECKING:
    from kdlib.progress import Progress

__all__ = ["Objective", "Tracer", "description", "with_loose"]

ROLLING = ("rows", "labels", "sizes", "rates", "targets", "layers")
DIGITS = 16  # of the digests after each epoch
MASKED = 1e4  # such numbers are of masks that are added to logits, and no outputs
PROBE = 1e-5  # relative: a probe that differs by more is another one
# Of an optimizer's groups: names of weights are others in a network that torch.compile has wrapped.
NOT_DESCRIBED = "params", "param_names", "lr", "initial_lr"

Objective = Callable[[Any, Batch], Tensor]  # a model may return several tensors


class Tracer:
    """Writes the trace of each student that a loop trains: one, or the members of a stack."""

    def __init__(self, progress: Progress) -> None:
        # Not its optimizer: an experiment may put another in its place. A reference of the other kind would keep a
        # Progress, and all that it trains, in memory until Python looks for cycles.
        self._progress = weakref.ref(progress)
        self.traces: list[dict[str, Any]] = []
        self.state = ""  # SHA-256 of weights, buffers and optimizer state after the last epoch or checkpoint
        self.seeds: Sequence[int] = []
        self.seen: dict[str, list[Tensor]] = {}
        self.rates: list[tuple[Any, ...]] = []
        self.first: Batch | None = None  # of an epoch

    @property
    def progress(self) -> Progress:
        """The training that is traced."""
        progress = self._progress()
        assert progress is not None
        return progress

    def begin(self, batches: Callable[[int], Iterable[Batch]]) -> None:
        """Note what there is before the first step."""
        if not self.progress.traced:
            return
        self.state, states, optimizer = self.digest(), self._states(), self.progress.optimizer
        members = getattr(batches, "members", [batches])
        for state, member in zip(states, members if len(members) == len(states) else [None] * len(states), strict=True):
            about = getattr(member, "about", None)
            shapes = [(name, str(value.dtype), tuple(value.shape)) for name, value in state.items()]
            layers = [(name, type(layer).__name__, getattr(layer, "p", None)) for name, layer in self._layers()]
            self.traces.append(
                {
                    "network": sha256(repr([shapes, layers]).encode())[:DIGITS],
                    "start": tensor_digest(state),
                    "optimizer": description(optimizer),
                    "data": about() if callable(about) else {},
                    "mixed": False,
                    "first_loss": None,
                    "probe": None,
                    "probes": [],
                    "settings": sha256(repr([*map(_settings_of, self._layers()), _hooks(optimizer)]).encode())[:DIGITS],
                    "outputs": None,
                    "ends": [],
                    "steps": 0,
                    "epochs": {name: [] for name in ROLLING},
                    "changed": [],
                }
            )

    def epoch_begins(self, epoch: int, seeds: Sequence[int]) -> None:
        """Note the dropout seeds of an epoch, and whether weights or optimizer state changed since the last one."""
        self.seeds = seeds
        if self.progress.traced and self.state != self.digest():
            for trace in self.traces:
                trace["changed"].append(epoch)

    def watch(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Pass on an epoch's batches, and note rows, labels, soft targets and learning rates on the way."""
        if not self.progress.traced:
            yield from batches
            return
        self.seen, self.rates = {"rows": [], "labels": [], "targets": []}, []
        before: Any = None
        for step, batch in enumerate(batches):
            if batch.labels is None or batch.indices is None:  # nothing else needs them
                raise KDError(
                    "expected labels and row numbers in each batch of a traced training, as each run of a replication "
                    "is, found a batch without them; without labels, give torch.empty(len(inputs), 0, "
                    "dtype=torch.int64), and torch.arange(len(inputs)) without row numbers"
                )
            now = _settings(self.progress.optimizer)
            if now != before:
                self.rates.append((step, *self._rates()))
                before = now
            self.seen["rows"].append(batch.indices)
            self.seen["labels"].append(batch.labels)
            if batch.soft is not None:
                self.seen["targets"].append(batch.soft)
            self.first = batch if step == 0 else self.first
            yield batch

    def noting_outputs(self, objective: Objective) -> Objective:
        """Return the objective, which notes the outputs that it is given at the very first step."""
        if not self.progress.traced or self.traces[0]["steps"] or self.progress.resumed.losses:
            return objective
        is_noted = False

        def noted(outputs: Any, batch: Batch) -> Tensor:
            nonlocal is_noted
            if not is_noted:
                is_noted = True
                for trace, value in zip(self.traces, _mean_squares(outputs, len(self.traces)), strict=True):
                    trace["outputs"] = value
            return objective(outputs, batch)

        return noted

    def step_ends(self, batch: Batch, objective: Objective) -> None:
        """After the very first step, note the objective of fixed outputs."""
        if self.progress.traced and len(self.seen["rows"]) == 1 and not self.traces[0]["steps"]:
            for trace, value in zip(self.traces, self._probed(objective), strict=True):
                trace["probe"] = value

    def _probed(self, objective: Objective, later: bool = False) -> list[Any]:
        batch, progress = self.first, self.progress
        if batch is None or batch.soft is None or batch.soft.ndim < 2:
            return [None] * len(self.traces)
        return probed(objective, batch, len(self.traces), [progress.model, progress.optimizer, progress.extras], later)

    def note_state(self) -> None:
        """Note weights, buffers and optimizer state as they are now, so that a later change is seen."""
        if self.progress.traced:
            self.state = self.digest()

    def epoch_ends(self, first_loss: Tensor, objective: Objective, epoch: int) -> None:
        """Write down what an epoch did; after the first one, also the loss of its first batch."""
        if not self.progress.traced:
            return
        self.note_state()
        for trace, state, value in zip(self.traces, self._states(), self._probed(objective, later=True), strict=True):
            trace["ends"].append(tensor_digest(state)[:DIGITS])
            before = trace["probes"][-1][1] if trace["probes"] else trace["probe"]
            if None not in (value, before) and not math.isclose(value, before, rel_tol=PROBE):
                trace["probes"].append([epoch, value])
        sizes = [part.shape[-1] for part in self.seen["rows"]]
        seen = {name: self._by_student(parts) for name, parts in self.seen.items()}
        losses = first_loss.view(-1).tolist()
        for number, (trace, loss, seed) in enumerate(zip(self.traces, losses, self.seeds, strict=True)):
            for name, content in seen.items():
                _roll(trace, name, _bytes(content[number]))
            for name, value in (("sizes", sizes), ("rates", self.rates), ("layers", seed)):
                _roll(trace, name, repr(value).encode())
            trace["mixed"] = trace["mixed"] or _is_mixed(seen["labels"][number])
            trace["steps"] += len(sizes)
            if trace["first_loss"] is None:
                trace["first_loss"] = loss

    def _by_student(self, parts: Sequence[Tensor]) -> Sequence[Tensor]:
        """What all batches of an epoch hold for each student, on the CPU; of a stack, the parts are (R, B, ...)."""
        if not parts:
            return [torch.empty(0, device="cpu")] * len(self.traces)
        if isinstance(self.progress.model, Replicas):
            return torch.cat(list(parts), dim=1).cpu().unbind()
        return [torch.cat(list(parts)).cpu()]

    def _rates(self) -> list[Any]:
        """The learning rates of all groups and, if the optimizer is no longer as it was at first, what it is."""
        optimizer = self.progress.optimizer
        rates, now = [float(group["lr"]) for group in optimizer.param_groups], description(optimizer)
        return [rates] if now == self.traces[0]["optimizer"] else [rates, now]

    def _states(self) -> list[Mapping[str, Tensor]]:
        """Weights and buffers of each student, as it has them when it is trained alone."""
        model = self.progress.model
        if isinstance(model, Replicas):
            return [tensors_of_state(model.member(number).state_dict()) for number in range(len(model))]
        return [tensors_of_state(self.progress.network.state_dict())]

    def _layers(self) -> list[tuple[str, nn.Module]]:
        model = self.progress.model
        return list((model.member(0) if isinstance(model, Replicas) else self.progress.network).named_modules())

    def digest(self) -> str:
        """Return the SHA-256 of weights, buffers and optimizer state as they are now."""
        state = tensors_of_state(self.progress.network.state_dict())
        tensors = {f"model/{name}": value for name, value in state.items()}
        notes = pack(self.progress.optimizer.state_dict()["state"], "optimizer", tensors)
        return sha256(f"{tensor_digest(tensors)} {canonical_json(notes)}".encode())


def with_loose(trace: Mapping[str, Any], weights: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return a trace as a record has it: instead of `ends`, the snapshots whose weights are of no epoch's end."""
    if not trace:
        return trace
    ends = {*trace["ends"], trace["start"][:DIGITS]}
    digests = {name: tensor_digest(tensors_of_state(state))[:DIGITS] for name, state in weights.items()}
    loose = sorted(name for name, digest in digests.items() if digest not in ends)
    return {name: value for name, value in trace.items() if name != "ends"} | {"loose": loose}


def _roll(trace: dict[str, Any], name: str, content: bytes) -> None:
    digests: list[str] = trace["epochs"][name]
    before = digests[-1] if digests else ""
    digests.append(hashlib.sha256(before.encode() + content).hexdigest()[:DIGITS])


def _bytes(values: Tensor) -> bytes:
    values = values.detach().contiguous().reshape(-1)
    return values.view(torch.uint8).numpy().tobytes()  # as bytes: NumPy has no bfloat16


def _mean_squares(outputs: Any, students: int) -> list[Any]:
    """The mean square of the numbers in a model's outputs, for each student; None if there are none."""
    leaves = [each.detach() for each in tree_leaves(outputs) if isinstance(each, Tensor)]
    total, count = (torch.zeros(students, dtype=torch.float64, device="cpu") for _ in range(2))
    try:
        for leaf in (each for each in leaves if each.is_floating_point()):
            values = leaf.cpu().double().reshape(students, -1)
            usual = values.abs() < MASKED  # NaN is not
            total += torch.where(usual, values, 0.0).square().sum(1)
            count += usual.sum(1)
    except RuntimeError:  # outputs without the students' axis
        return [None] * students
    return [float(one / other) if other else None for one, other in zip(total, count, strict=True)]


def _settings_of(layer: tuple[str, nn.Module]) -> tuple[str, str, list[str]]:
    """A layer's name, what it says of itself, and the hooks of the layer and its weights."""
    name, module = layer
    own = [*_hooks(module), *(each for value in module.parameters(recurse=False) for each in _hooks(value))]
    try:
        return name, re.sub(" at 0x[0-9a-fA-F]+", "", module.extra_repr()), own
    except Exception:  # it is the user's own
        return name, "", own


def _hooks(value: Any) -> list[str]:
    """The names of hooks of a layer, a weight or an optimizer."""
    of_tensors = ("_backward_hooks", "_post_accumulate_grad_hooks")  # torch keeps these elsewhere
    names = of_tensors if isinstance(value, Tensor) else sorted(name for name in vars(value) if "hook" in name)
    maps = {name: each for name in names if isinstance(each := getattr(value, name, None), Mapping)}
    hooks = [(name, hook) for name, each in maps.items() for hook in each.values()]
    return [f"{name} {getattr(hook, '__qualname__', type(hook).__name__)}" for name, hook in hooks]


def _is_mixed(labels: Tensor) -> bool:
    return labels.is_floating_point() and bool(((labels > 0) & (labels < 1)).any())


def _settings(optimizer: torch.optim.Optimizer) -> Any:
    """All that `_rates` depends on, for a comparison at every step."""
    return type(optimizer), [
        (float(group["lr"]), len(group["params"]), {k: v for k, v in group.items() if k not in ("params", "lr")})
        for group in optimizer.param_groups
    ]


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
