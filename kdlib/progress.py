"""The state of a training, and its checkpoint: a training that is killed at any instruction goes on from there.

Between epochs, a checkpoint holds the state of network and optimizer, the history, the weights that were kept, and the
trace. Within an epoch, it also holds the losses of the steps done and the states of the generators that a step draws
from, so that the training ends in the same bytes as one without interruption. A checkpoint of another is refused.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsFloat

import torch
from torch import Tensor, nn

from kdlib.batches import Batch
from kdlib.checkpoint import (
    REMEDY,
    as_of_a_checkpoint,
    checkpoint_path,
    sound_checkpoint,
    tensors_of_epoch,
    unpacked,
    write_checkpoint,
)
from kdlib.descriptions import description
from kdlib.epoch import Unfinished, marks_of
from kdlib.errors import KDError
from kdlib.files import identity, tensor_digest
from kdlib.layers import Layers, in_order
from kdlib.ownership import (
    first_of,
    loop_of,
    named,
    owner_of,
    refuse_another,
    refuse_another_loop,
    refuse_changed,
    refuse_late_copy,
    refuse_more_epochs,
    refuse_replaced,
    refuse_second_start,
    warn_of_other_start,
)
from kdlib.packing import device_of, pack, unwrapped
from kdlib.rates import Rates
from kdlib.replicas import layer_generators
from kdlib.trace import Tracer
from kdlib.trainable import check_measurement, check_optimizers, check_training, load_state, state_of

__all__ = ["CHECKPOINT_SECONDS", "Progress"]

CHECKPOINT_SECONDS = 120.0  # so a kill costs at most this much work, one step and one evaluation


class Progress:
    """The state of a training run: model, optimizer, history of epochs, and copies of the weights under a name.

    If there is a file at `checkpoint`, the state of the interrupted run is loaded from it. A damaged checkpoint is
    renamed to `<name>.damaged`, and training goes on from the one before it, or starts from the first epoch; `notice`
    then says so. KDError if it is the checkpoint of a training with another label, `about`, network or
    optimizer; `epochs` compares seeds and data. With a checkpoint, a Progress trains one loop.

    `about` holds what else tells this training from others, for example {"temperature": 4.0}: numbers, texts, lists
    and dicts. The loop cannot see such numbers in an objective.

    `extras` are further objects, under a name, whose state belongs to the training and is in the checkpoint: a
    scheduler, a second optimizer, an average of weights, anything with `state_dict` and `load_state_dict`. Your code
    updates them, in the body of the loop.

    A checkpoint is written after each epoch, and within an epoch when the last one is CHECKPOINT_SECONDS old; the one
    before it is kept as `previous-<name>`. `on_epoch` is called after each epoch's checkpoint, `on_step` after each
    step: it then decides about checkpoints within an epoch. `graphs`: on a CUDA device, the loop replays recorded steps
    (`kdlib.captured`). `traced`: `traces` says what the loop did; for this, the objective is called on random outputs
    before the first step and after each epoch, without a change of anything (`kdlib.probe`).
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        checkpoint: Path | str | None = None,
        label: str = "",
        about: Mapping[str, Any] | None = None,
        extras: Mapping[str, Any] | None = None,
        on_epoch: Callable[[Progress], None] | None = None,
        on_step: Callable[[Progress], None] | None = None,
        graphs: bool = False,
        traced: bool = False,
    ) -> None:
        self.model, self.optimizer, self.label = model, optimizer, label
        self.checkpoint = None if checkpoint is None else checkpoint_path(checkpoint)
        self.extras = named(extras)
        self.on_epoch, self.on_step, self.graphs, self.traced = on_epoch, on_step, graphs, traced
        self.history: list[dict[str, float]] = []
        self.losses: list[Tensor] = []  # of the steps of the current epoch; empty between epochs
        self.resumed = Unfinished()  # the steps of the current epoch that the checkpoint holds
        self.saved_at = time.monotonic()
        self.kept: dict[str, dict[str, Tensor]] = {}
        self.notice = ""
        self.count = 0  # epochs to train in all; the loop sets it
        self.tracer = Tracer(self)
        self._loop: dict[str, Any] | None = None  # seeds and data of the loop that trains
        self._is_begun = False
        check_training(model, optimizer, self.extras, self._place())
        self._owner = owner_of(label, about, self.extras, self._place())
        self._others = {name: each for name, each in self.extras.items() if isinstance(each, torch.optim.Optimizer)}
        self.rates = Rates(self.optimizers, self.extras)
        self.layers = Layers(self.network, self.extras, self.optimizers, self._place())
        self._first: dict[str, Any] = {**self.rates.first, "network": self.layers.settings()}
        self._first["weights"] = self.layers.weights
        self._begun_with: dict[str, Any] = {}  # the rates at the beginning of the current epoch
        self._loaded: dict[str, Any] = {}  # the rates of the checkpoint
        self._loaded_state = ""  # SHA-256 of its weights and of its optimizer's state
        self._marks: dict[str, Tensor] | None = None  # of the batch of the last step of the current epoch
        self._own_file: tuple[int, int] | None = None  # the checkpoint as this training has read or written it
        if self.checkpoint is not None:
            self._packed({})  # what a checkpoint cannot hold is refused now, not after an epoch
            self._first |= {"start": self.layers.prove(self.optimizers), "extras": first_of(self.extras)}
            self._load(self.checkpoint)

    @property
    def traces(self) -> list[dict[str, Any]]:
        """What the loop did, for each student, if it is `traced` (`kdlib.trace`)."""
        return self.tracer.traces

    @property
    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """The optimizer of the loop under the name "", and those among the extras."""
        return {"": self.optimizer, **self._others}

    @property
    def network(self) -> nn.Module:
        """The model without the wrappers of torch.compile and of data parallelism: files keep its names of weights."""
        return unwrapped(self.model)

    @property
    def epoch(self) -> int:
        """The number of epochs trained so far, including the current one."""
        return len(self.history)

    def record(self, **metrics: SupportsFloat) -> None:
        """Add measurements to the current epoch's entry of the history; NonFiniteLoss if one is NaN or infinite."""
        if not self.history:
            raise KDError("expected a trained epoch to record for, found none; call record within the loop over epochs")
        for name, value in metrics.items():
            check_measurement(name, value, self.label or "training", self.epoch)
        self.history[-1].update({name: float(value) for name, value in metrics.items()})

    def is_lowest(self, metric: str) -> bool:
        """Return whether the current epoch's `metric` is strictly below that of every earlier epoch that has it."""
        *earlier, now = self.history or [{}]
        if metric not in now:
            raise KDError(
                f"expected a measurement {metric!r} of the current epoch, found {[*now]}; call record({metric}=...) "
                "first, within the loop over epochs"
            )
        return all(now[metric] < entry[metric] for entry in earlier if metric in entry)

    def keep(self, name: str) -> None:
        """Copy the model's current weights under `name`; this replaces an older copy of that name.

        Before the loop of a training that goes on, the copy that its checkpoint holds remains; KDError if it has none.
        """
        if self._loaded_state and not self._is_begun:
            refuse_late_copy(name, self.kept, self._place())
        else:
            self.tracer.keeps(name, self.epoch)
            self.kept[name] = self.layers.state("copy the weights yourself")

    def restore(self, name: str) -> None:
        """Load the weights kept under `name` into the model; KDError if there are none."""
        if name not in self.kept:
            raise KDError(f"expected weights kept under {name!r}, found {[*self.kept]}; call keep({name!r}) first")
        self.network.load_state_dict(self.kept[name])

    @property
    def due(self) -> bool:
        """Whether the last checkpoint is so old that one is to be written within the epoch."""
        return self.checkpoint is not None and time.monotonic() - self.saved_at >= CHECKPOINT_SECONDS

    def loop_begins(
        self, batches: Any, seeds: Sequence[int], count: int, *, numbers: Mapping[str, Any], rate: bool
    ) -> None:
        """Take a loop of `count` epochs in all, with `numbers` of its functions; `rate`: it sets the learning rates.

        KDError if the checkpoint's epochs were trained with other seeds, data or rates, or are too many, if the weights
        were changed after they were loaded, for a second loop with one checkpoint, and an optimizer of other weights.
        """
        self.count, place = count, self._place()
        if self._is_begun:
            refuse_second_start(self.epoch, len(self.losses), count, self.checkpoint is not None, place)
        check_optimizers(self.network, self.optimizers, None if self.checkpoint is None else self.extras)
        self.rates.loop_begins(rate, self.optimizers, self.checkpoint is not None, place)
        loop = loop_of(batches, seeds, self.layers.frozen_names(), numbers, place)
        if self._loaded_state:
            self._go_on(loop, place)
        self._loop, self._is_begun = loop, True

    def _go_on(self, loop: dict[str, Any], place: str) -> None:
        """Go on from the checkpoint with this loop, or refuse it (KDError)."""
        refuse_another_loop(self._loop or loop, loop, place)
        refuse_more_epochs(self.epoch, bool(self.resumed.losses), self.count, place)
        refuse_changed(self.tracer.digest() != self._loaded_state, place)
        self.rates.refuse_others(self._first, place, REMEDY)
        # Again: code after Progress may have set what this loop had changed when it stopped.
        self.rates.restore(self.optimizers, self._loaded)
        self.layers.go_on()

    def epoch_begins(self) -> int:
        """Take over the steps of this epoch that the checkpoint holds, and return their number."""
        self.losses = [*self.resumed.losses]
        if self.losses:  # the batches of these steps may change the learning rate again
            self.rates.restore(self.optimizers, self._begun_with)
        elif self.checkpoint is not None:
            self._begun_with = self.rates.values(self.optimizers)
        return len(self.losses)

    def steps_are_skipped(self, batch: Batch) -> None:
        """Set the generators, learning rates and extras as they were after the checkpoint's last step."""
        self.resumed.restore(batch, self.network, self.extras, self._place())
        self.rates.restore(self.optimizers, self._loaded)

    def step_begins(self, batch: Batch) -> dict[str, Tensor]:
        """Return what `step_ends` is to know of the batch, before the step changes it."""
        return {} if self.checkpoint is None else marks_of(batch)

    def step_ends(self, loss: Tensor, marks: dict[str, Tensor]) -> None:
        """Take the loss of a step, and write a checkpoint if one is due."""
        self.losses.append(loss)
        self._marks = marks
        if self.on_step is not None:
            self.on_step(self)
        elif self.due:
            self.save()

    def epoch_ends(self, entry: dict[str, float]) -> None:
        """Add an epoch to the history."""
        self.history.append(entry)
        self.losses, self.resumed, self._marks = [], Unfinished(), None

    def save(self) -> None:
        """Write the checkpoint atomically; without a path, do nothing.

        Within an epoch, do nothing if a loss is not finite, or if there is an optimizer among the extras: the batches
        may use it, and a checkpoint holds no gradients.
        """
        within = bool(self.losses)
        if self.checkpoint is None or (within and (self._others or not torch.stack(self.losses).isfinite().all())):
            return
        if (within and self._marks is None) or (self._loaded_state and not self._is_begun):
            return  # nothing is new since the checkpoint, which may hold steps of an epoch that are not taken over yet
        self.rates.refuse_more_groups(self.optimizers, self._place())
        tensors: dict[str, Tensor] = {}
        notes: dict[str, Any] = {"owner": self._owner, "first": self._first, "loop": self._loop, "batch": ""}
        if self._marks is not None:
            self.tracer.note_state()
            tensors = tensors_of_epoch(self.losses, [each.get_state() for each in layer_generators(self.network)])
            notes["batch"] = tensor_digest(self._marks)
        notes |= {"history": self.history, "traces": self.traces, "state": self.tracer.state}
        notes |= {"settings": {name: description(each) for name, each in self.optimizers.items()}}
        notes |= self.layers.notes(self.optimizers) | self._packed(tensors)
        refuse_replaced(self.checkpoint, self._own_file, (self._owner, self.history, self._loop), self._place())
        write_checkpoint(self.checkpoint, tensors, notes, self._place())
        self._own_file = identity(self.checkpoint)
        self.saved_at = time.monotonic()

    def _packed(self, tensors: dict[str, Tensor]) -> dict[str, Any]:
        """The states of all objects as JSON; their tensors are added to `tensors`."""
        parts = {
            "model": self.network.state_dict(),
            "buffers": self.layers.buffers(),
            "kept": self.kept,
            "optimizers": {name: state_of(optimizer) for name, optimizer in self.optimizers.items()},
            "extras": {name: value.state_dict() for name, value in self.extras.items() if name not in self._others},
            "rates": self.rates.values(self.optimizers),
            "begun_with": self._begun_with if self.losses else {},
        }
        return {name: pack(state, name, tensors) for name, state in parts.items()}

    def _place(self) -> str:
        return self.label or "training" if self.checkpoint is None else f"{self.label or 'training'}, {self.checkpoint}"

    def _load(self, path: Path) -> None:
        found, self._own_file, self.notice = sound_checkpoint(path, self._place())
        if found is None:
            return
        tensors, notes = found
        own = {**self._packed({}), "owner": self._owner, "first": self._first, "layers": self.layers}
        with as_of_a_checkpoint(path):
            parts = unpacked(notes, tensors, device_of(self.model))
            refuse_another(notes, own, self._place())
            began_with, own_start = notes["first"], self._first
            self._take(notes, parts)
            self._loaded_state = self.tracer.digest()
        warn_of_other_start(began_with, own_start, self.epoch, self._place())

    def _take(self, notes: dict[str, Any], parts: dict[str, Any]) -> None:
        """Take the state of a checkpoint, as `read_checkpoint` and `unpacked` return it."""
        self.network.load_state_dict(parts["model"])
        self.kept, self._loaded, self._begun_with = parts["kept"], parts["rates"], parts["begun_with"]
        self.layers.take(notes, parts["buffers"])
        before, now = notes["first"]["weights"], self.layers.weights
        for name, optimizer in self.optimizers.items():
            load_state(optimizer, in_order(parts["optimizers"][name], before[name], now[name]))
        losses, states = parts["epoch"]
        self.resumed = Unfinished(losses, states, copy.deepcopy(parts["extras"]) if losses else {}, notes["batch"])
        for name, state in parts["extras"].items():
            self.extras[name].load_state_dict(state)
        self.rates.restore(self.optimizers, self._loaded)
        self.optimizer._opt_called = True  # type: ignore[attr-defined] # else torch warns that schedulers step first
        self._first, self._loop = {**notes["first"], "weights": self.layers.weights}, notes["loop"]
        self.history = notes["history"]
        self.tracer.traces, self.tracer.state = notes["traces"], notes["state"]
