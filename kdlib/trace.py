"""The trace of a training: what the loop did, in digests small enough to keep with every run.

The loop writes it, not the experiment, so two runs that are said to differ in one thing can be compared by what they
did. A resumed run has the same trace as one without interruption; a member of a stack has that of one trained alone.

    network       digest of the layers, with the rates of dropout, and of names, types and shapes of weights and buffers
    start         SHA-256 of the initial weights and buffers
    optimizer     its class, and the hyper-parameters of its groups without learning rates
    data          digest and view of the examples, batch size, and where the soft targets came from
    first_loss    the loss of the first batch, before any step
    probe         the loss that the objective gives to one fixed set of outputs, labels and soft targets, before the
                  first step. Two objectives can be compared by it, whatever else differs. null without soft targets,
                  or if the objective needs the numbers of all rows, or changes a tensor (`kdlib.probe`)
    probes        [epoch, value] where the probe at an epoch's end is another one than before: a loss that changes. None
                  of an objective that uses what is trained, such as a penalty of the weights
    settings      digest of what layers say of themselves (a stride), of which weights learn, and of hooks, but those
                  of the forward pass
    outputs       the mean square of the network's outputs for the first batch, before any step
    ends          digests of weights and buffers at the end of each epoch; `tensors`, what they are of: names, types
                  and shapes. A record has `epoch_of` instead: the epoch at whose end each snapshot has its weights. It
                  is 0 before the first step, and null at no end; a snapshot of other tensors is left out
    kept          the epochs in which weights were kept, for each name. A record has `may_be_best` instead: the
                  snapshots of an epoch in which weights were kept under a name that other epochs have had too
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
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kdlib.batches import Batch
from kdlib.descriptions import description, settings
from kdlib.errors import KDError
from kdlib.files import canonical_json, sha256, tensor_digest
from kdlib.packing import pack, tensors_of_state
from kdlib.parts import Parts
from kdlib.probe import form_of, mean_squares, probed
from kdlib.replicas import Replicas
from kdlib.seeds import global_generators_put_back

if TYPE_CHECKING:
    from kdlib.progress import Progress

__all__ = ["Objective", "Tracer", "with_snapshots"]

ROLLING = ("rows", "labels", "sizes", "rates", "targets", "layers")
DIGITS = 16  # of the digests after each epoch
PROBE = 1e-5  # relative: a probe that differs by more is another one
HELD = 2**26  # bytes of soft targets, labels and rows that are kept until they are digested

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
        self.seen: dict[str, list[Tensor]] = {}  # since they were digested last
        self.digests: list[dict[str, Any]] = []  # of the epoch so far, for each student
        self.sizes: list[int] = []
        self.rates: list[tuple[Any, ...]] = []
        self.first: Batch | None = None  # of an epoch
        self.form, self.is_form_known = None, False  # of the model's outputs

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
            shapes = _shapes(state)
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
                    "settings": sha256(repr(settings(self._layers(), optimizer)).encode())[:DIGITS],
                    "outputs": None,
                    "ends": [],
                    "tensors": [[name, kind, [*size]] for name, kind, size in shapes],  # as JSON has them
                    "kept": {name: [0] for name in self.progress.kept},
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
        self.seen, self.sizes, self.rates = {"rows": [], "labels": [], "targets": []}, [], []
        held = 0
        self.digests = [{name: _goes_on(trace, name) for name in self.seen} for trace in self.traces]
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
            self.sizes.append(batch.indices.shape[-1])
            for name, part in (("rows", batch.indices), ("labels", batch.labels), ("targets", batch.soft)):
                if part is not None:
                    self.seen[name].append(part)
                    held += part.numel() * part.element_size()
            if held > HELD:
                self._digest_seen()
                held = 0
            self.first = batch if step == 0 else self.first
            yield batch

    def _digest_seen(self) -> None:
        """Digest the rows, labels and soft targets that are held, and note whether labels are mixed."""
        for name, parts in self.seen.items():
            for trace, digests, content in zip(self.traces, self.digests, self._by_student(parts), strict=True):
                digests[name].update(_bytes(content))
                trace["mixed"] = trace["mixed"] or (name == "labels" and _is_mixed(content))
            parts.clear()

    def noting_outputs(self, called: Objective, objective: Objective) -> Objective:
        """Return `called`, which notes the form of the outputs and, before the very first step, outputs and probe."""
        if not self.progress.traced:
            return called
        is_first = not self.traces[0]["steps"] and not self.progress.resumed.losses

        def noted(outputs: Any, batch: Batch) -> Tensor:
            nonlocal is_first
            if not self.is_form_known:
                self.form, self.is_form_known = form_of(outputs, batch), True
            if is_first:
                is_first = False
                squares, values = mean_squares(outputs, len(self.traces)), self._probed(objective, batch)
                for trace, square, value in zip(self.traces, squares, values, strict=True):
                    trace |= {"outputs": square, "probe": value}
            return called(outputs, batch)

        return noted

    def _probed(self, objective: Objective, batch: Batch, later: bool = False) -> list[Any]:
        used = [self.progress.model, self.progress.optimizer, self.progress.extras]
        # Of an epoch whose last step was the checkpoint's, this process has seen no outputs.
        if not self.is_form_known and batch.soft is not None:
            self.is_form_known = True
            parts = Parts([("the network", self.progress.model)], "kept")
            with torch.no_grad(), global_generators_put_back(), suppress(Exception):
                self.form = form_of(self.progress.model(batch.inputs), batch)
            parts.put_back()
        return probed(objective, self.form, batch, len(self.traces), used, later)

    def keeps(self, name: str, epoch: int) -> None:
        """Note that weights are kept."""
        for trace in self.traces:
            kept = trace.setdefault("kept", {}).setdefault(name, [])  # a checkpoint of an older version has none
            kept += [] if epoch in kept else [epoch]

    def note_state(self) -> None:
        """Note weights, buffers and optimizer state as they are now, so that a later change is seen."""
        if self.progress.traced:
            self.state = self.digest()

    def epoch_ends(self, first_loss: Tensor, objective: Objective, epoch: int) -> None:
        """Write down what an epoch did; after the first one, also the loss of its first batch."""
        if not self.progress.traced:
            return
        self.note_state()
        assert self.first is not None
        values = self._probed(objective, self.first, later=True)
        for trace, state, value in zip(self.traces, self._states(), values, strict=True):
            trace["ends"].append(tensor_digest(state)[:DIGITS])
            before = trace["probes"][-1][1] if trace["probes"] else trace["probe"]
            if None not in (value, before) and not math.isclose(value, before, rel_tol=PROBE):
                trace["probes"].append([epoch, value])
        self._digest_seen()
        losses = first_loss.view(-1).tolist()
        for trace, digests, loss, seed in zip(self.traces, self.digests, losses, self.seeds, strict=True):
            for name, value in (("sizes", self.sizes), ("rates", self.rates), ("layers", seed)):
                digests[name] = _goes_on(trace, name, repr(value).encode())
            for name, digest in digests.items():
                trace["epochs"][name].append(digest.hexdigest()[:DIGITS])
            trace["steps"] += len(self.sizes)
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


def with_snapshots(trace: Mapping[str, Any], weights: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return a trace as a record has it: it says `epoch_of` and `may_be_best` of snapshots instead of `ends`."""
    if not trace:
        return trace
    ends = [trace["start"][:DIGITS], *trace["ends"]]
    epochs: dict[str, int | None] = {}
    for name, state in weights.items():
        if (tensors := _of_network(tensors_of_state(state), trace.get("tensors", []))) is not None:
            digest = tensor_digest(tensors)[:DIGITS]
            epochs[name] = max((epoch for epoch, end in enumerate(ends) if end == digest), default=None)
    again = {epoch for kept in trace.get("kept", {}).values() if len(kept) > 1 for epoch in kept}
    best = sorted(name for name, epoch in epochs.items() if epoch in again)
    own = {name: value for name, value in trace.items() if name not in ("ends", "tensors", "kept")}
    return own | {"epoch_of": epochs, "may_be_best": best}


def _of_network(weights: Mapping[str, Tensor], shapes: Sequence[Sequence[Any]]) -> dict[str, Tensor] | None:
    """The weights by the network's names, which a wrapper may have put a prefix before; None if they are others."""
    first = shapes[0][0] if shapes else ""
    for prefix in [name.removesuffix(first) for name in weights if name.endswith(first)]:
        found = {name: weights[prefix + name] for name, *_ in shapes if prefix + name in weights}
        if found and _shapes(found) == [(name, kind, tuple(size)) for name, kind, size in shapes]:
            return found
    return None


def _shapes(state: Mapping[str, Tensor]) -> list[tuple[str, str, tuple[int, ...]]]:
    return [(name, str(value.dtype), tuple(value.shape)) for name, value in state.items()]


def _goes_on(trace: Mapping[str, Any], name: str, content: bytes = b"") -> Any:
    """The digest of an epoch, over that of the epochs before it."""
    digests: list[str] = trace["epochs"][name]
    return hashlib.sha256((digests[-1] if digests else "").encode() + content)


def _bytes(values: Tensor) -> bytes:
    values = values.detach().contiguous().reshape(-1)
    return values.view(torch.uint8).numpy().tobytes()  # as bytes: NumPy has no bfloat16


def _is_mixed(labels: Tensor) -> bool:
    return labels.is_floating_point() and bool(((labels > 0) & (labels < 1)).any())


def _settings(optimizer: torch.optim.Optimizer) -> Any:
    """All that `_rates` depends on, for a comparison at every step."""
    return type(optimizer), [
        (float(group["lr"]), len(group["params"]), {k: v for k, v in group.items() if k not in ("params", "lr")})
        for group in optimizer.param_groups
    ]
