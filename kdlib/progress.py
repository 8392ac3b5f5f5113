"""The state of a training, and its checkpoint: a training that is killed at any instruction goes on from there.

Between epochs, a checkpoint holds the weights, the optimizer's state, the history, the weights that were kept, and the
trace. Within an epoch, it also holds the losses of the steps done and the state of the generators of dropout. So the
training goes on after these steps and ends in the same bytes as one that was not interrupted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdlib.errors import KDError
from kdlib.files import DamagedFile, is_there, keep_previous, load_tensors, previous, replace, save_tensors, set_aside
from kdlib.replicas import Replicas
from kdlib.trace import Tracer, description

__all__ = ["CHECKPOINT_SECONDS", "NonFiniteLoss", "Progress"]

CHECKPOINT_SECONDS = 120.0  # so a kill costs at most this much work, one step and one evaluation


class NonFiniteLoss(KDError):
    """The training loss, or a recorded measurement, became NaN or infinite."""


class Progress:
    """The state of a training run: model, optimizer, history of epochs, and copies of the weights under a name.

    If there is a file at `checkpoint`, the state of the interrupted run is loaded from it. A damaged checkpoint is
    renamed to `<name>.damaged`, and training goes on from the one before it, or starts from the first epoch if there is
    none; `notice` then says so.

    A checkpoint is written after each epoch, and within an epoch when the last one is CHECKPOINT_SECONDS old. The one
    before it is kept as `previous-<name>`.
    `on_epoch` is called after each epoch's checkpoint. `on_step` is called after each step, and then decides about
    checkpoints within an epoch. `graphs`: on a CUDA device, the loop replays recorded steps (`kdlib.captured`).
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        checkpoint: Path | None = None,
        label: str = "",
        on_epoch: Callable[[Progress], None] | None = None,
        on_step: Callable[[Progress], None] | None = None,
        graphs: bool = False,
    ) -> None:
        self.model, self.optimizer, self.checkpoint, self.label = model, optimizer, checkpoint, label
        self.on_epoch, self.on_step, self.graphs = on_epoch, on_step, graphs
        self.history: list[dict[str, float]] = []
        self.losses: list[Tensor] = []  # of the steps of the current epoch; empty between epochs
        # Losses and states of dropout's generators, from a checkpoint within an epoch, until that epoch begins.
        self.resumed: tuple[list[Tensor], list[Tensor]] = [], []
        self.saved_at = time.monotonic()
        self.kept: dict[str, dict[str, Tensor]] = {}
        self.notice = ""
        self.count = 0  # epochs to train in all; the loop sets it
        self.tracer = Tracer(self)
        if checkpoint is not None and is_there(checkpoint):
            self._load(checkpoint)

    @property
    def traces(self) -> list[dict[str, Any]]:
        """What the loop did, for each student (`kdlib.trace`)."""
        return self.tracer.traces

    @property
    def epoch(self) -> int:
        """The number of epochs trained so far, including the current one."""
        return len(self.history)

    def record(self, **metrics: float) -> None:
        """Add measurements to the current epoch's entry of the history; NonFiniteLoss if one is NaN or infinite."""
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise NonFiniteLoss(
                    f"{self.label or 'training'}: expected a finite {name}, found {float(value)} at epoch "
                    f"{self.epoch}; lower the learning rate or check the inputs"
                )
        self.history[-1].update({name: float(value) for name, value in metrics.items()})

    def is_lowest(self, metric: str) -> bool:
        """Return whether the current epoch's `metric` is strictly below that of every earlier epoch."""
        *earlier, now = (entry[metric] for entry in self.history)
        return all(now < value for value in earlier)

    def keep(self, name: str) -> None:
        """Copy the model's current weights under `name`; this replaces an older copy of that name."""
        self.kept[name] = {key: value.detach().clone() for key, value in self.model.state_dict().items()}

    def restore(self, name: str) -> None:
        """Load the weights kept under `name` into the model."""
        self.model.load_state_dict(self.kept[name])

    @property
    def due(self) -> bool:
        """Whether the last checkpoint is so old that one is to be written within the epoch."""
        return self.checkpoint is not None and time.monotonic() - self.saved_at >= CHECKPOINT_SECONDS

    def epoch_begins(self) -> int:
        """Take over the steps of this epoch that the checkpoint holds, and return their number."""
        (self.losses, self._states), self.resumed = self.resumed, ([], [])
        return len(self.losses)

    def steps_are_skipped(self) -> None:
        """Set dropout's generators as they were after the last step that the checkpoint holds."""
        for generator, state in zip(_layer_generators(self.model), self._states, strict=True):
            generator.set_state(state)

    def step_ends(self, loss: Tensor) -> None:
        """Take the loss of a step, and write a checkpoint if one is due."""
        self.losses.append(loss)
        if self.on_step is not None:
            self.on_step(self)
        elif self.due:
            self.save()

    def epoch_ends(self, entry: dict[str, float]) -> None:
        """Add an epoch to the history."""
        self.history.append(entry)
        self.losses = []

    def save(self) -> None:
        """Write the checkpoint atomically; without a path, do nothing."""
        if self.checkpoint is None:
            return
        tensors = {f"model/{key}": value for key, value in self.model.state_dict().items()}
        tensors |= {f"kept/{name}/{key}": value for name, kept in self.kept.items() for key, value in kept.items()}
        state = self.optimizer.state_dict()
        plain: dict[str, dict[str, Any]] = {}
        for index, entries in state["state"].items():
            for key, value in entries.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer/{index}/{key}"] = value
                else:
                    plain.setdefault(str(index), {})[key] = value
        if self.losses:
            self.tracer.note_state()
            tensors["epoch/losses"] = torch.stack(self.losses)
            states = [generator.get_state() for generator in _layer_generators(self.model)]
            tensors |= {f"epoch/{number}": state for number, state in enumerate(states)}
        # Learning rates are not saved: the loop sets them each epoch from its `rate`.
        notes = {"history": self.history, "optimizer": plain, "traces": self.traces, "state": self.tracer.state}
        notes["settings"] = description(self.optimizer)
        keep_previous(self.checkpoint)
        save_tensors(self.checkpoint, tensors, notes)
        self.saved_at = time.monotonic()

    def _load(self, path: Path) -> None:
        try:
            tensors, notes = load_tensors(path)
            expected = {f"model/{name}": value.shape for name, value in self.model.state_dict().items()}
            if expected != {name: value.shape for name, value in tensors.items() if name.startswith("model/")}:
                raise DamagedFile(f"{path}: expected the weights of this network, found those of another")
            if "traces" not in notes:
                raise DamagedFile(f"{path}: expected a trace of the training, found none; an older kdlib wrote it")
        except DamagedFile as error:
            aside, goes_on = set_aside(path), is_there(previous(path))
            where = "goes on from the checkpoint before it" if goes_on else "starts from its first epoch"
            self.notice = " ".join([self.notice, f"{error}. Set aside as {aside.name}; this run {where}."]).strip()
            if goes_on:
                replace(previous(path), path)
                self._load(path)
            return
        found = description(self.optimizer)
        if notes.get("settings", found) != found:
            raise KDError(
                f"{self.label or 'training'}: expected the optimizer of the checkpoint {path}, {notes['settings']}, "
                f"found {found}; make the optimizer that the training had when it stopped, or delete the checkpoint"
            )
        model: dict[str, Tensor] = {}
        epoch: dict[str, Tensor] = {}
        state: dict[int, dict[str, Any]] = {int(i): dict(v) for i, v in notes["optimizer"].items()}
        for name, value in tensors.items():
            part, _, rest = name.partition("/")
            key, _, inner = rest.partition("/")
            if part == "model":
                model[rest] = value
            elif part == "kept":
                self.kept.setdefault(key, {})[inner] = value
            elif part == "epoch":
                epoch[rest] = value
            else:
                state.setdefault(int(key), {})[inner] = value
        self.model.load_state_dict(model)
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})
        # Fused optimizers pair weights and moments by their place in memory, so a moment needs the strides of its
        # weight. The file does not keep strides.
        for parameter, entries in self.optimizer.state.items():
            for key, value in entries.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    entries[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        self.history = notes["history"]
        self.tracer.traces, self.tracer.state = notes["traces"], notes["state"]
        if epoch:
            losses = epoch.pop("losses").to(next(self.model.parameters()).device)
            self.resumed = list(losses.unbind()), [epoch[number] for number in sorted(epoch, key=int)]


def _layer_generators(model: nn.Module) -> list[torch.Generator]:
    """The generators that dropout draws from: those of the members, or torch's global ones."""
    if isinstance(model, Replicas):
        return model.generators
    cuda = sorted({value.device.index for value in model.parameters() if value.is_cuda})
    return [torch.default_generator, *(torch.cuda.default_generators[index] for index in cuda)]
