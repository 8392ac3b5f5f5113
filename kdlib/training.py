"""The training loop as a generator over epochs; a run that is killed at any instruction can be resumed.

    progress = Progress(model, optimizer, checkpoint=path)
    for epoch in epochs(progress, batches, objective, count=10, seed=0):
        progress.record(validation_loss=...)
        if progress.is_lowest("validation_loss"):
            progress.keep("best")
    progress.restore("best")

The loop knows nothing about teachers: a method is an `objective(outputs, batch)`, and a batch carries its soft targets.
The checkpoint is written after the body of the loop, with everything that the body recorded or kept. Schedules,
selection and early stopping therefore resume correctly if they are functions of `progress.history`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdlib.batches import Batch
from kdlib.errors import KDError
from kdlib.files import DamagedFile, load_tensors, save_tensors
from kdlib.losses import cross_entropy
from kdlib.replicas import Replicas
from kdlib.seeds import derive_seed
from kdlib.trace import Tracer

Objective = Callable[[Tensor, Batch], Tensor]


def hard_targets(outputs: Tensor, batch: Batch) -> Tensor:
    """Return the cross-entropy with the batch's labels: the objective of a network without a teacher."""
    return cross_entropy(outputs, batch.labels)


class NonFiniteLoss(KDError):
    """The training loss, or a recorded measurement, became NaN or infinite."""


class Progress:
    """The state of a training run: model, optimizer, history of epochs, and copies of the weights under a name.

    If there is a file at `checkpoint`, the state of the interrupted run is loaded from it. A damaged checkpoint is
    renamed to `<name>.damaged` and training starts from the first epoch; `notice` then says so.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        checkpoint: Path | None = None,
        label: str = "",
        on_epoch: Callable[[Progress], None] | None = None,
    ) -> None:
        self.model, self.optimizer, self.checkpoint, self.label = model, optimizer, checkpoint, label
        self.on_epoch = on_epoch
        self.history: list[dict[str, float]] = []
        self.kept: dict[str, dict[str, Tensor]] = {}
        self.notice = ""
        self.count = 0  # epochs to train in all; the loop sets it
        self.tracer = Tracer(self)
        if checkpoint is not None and checkpoint.exists():
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
        # Learning rates are not saved: the loop sets them each epoch from its `rate`.
        notes = {"history": self.history, "optimizer": plain, "traces": self.traces, "state": self.tracer.state}
        save_tensors(self.checkpoint, tensors, notes)

    def _load(self, path: Path) -> None:
        try:
            tensors, notes = load_tensors(path)
            expected = {f"model/{name}": value.shape for name, value in self.model.state_dict().items()}
            if expected != {name: value.shape for name, value in tensors.items() if name.startswith("model/")}:
                raise DamagedFile(f"{path}: expected the weights of this network, found those of another")
            if "traces" not in notes:
                raise DamagedFile(f"{path}: expected a trace of the training, found none; an older kdlib wrote it")
        except DamagedFile as error:
            aside = path.with_name(path.name + ".damaged")
            path.replace(aside)
            self.notice = f"{error}. Set aside as {aside.name}; this run starts from its first epoch."
            return
        model: dict[str, Tensor] = {}
        state: dict[int, dict[str, Any]] = {int(i): dict(v) for i, v in notes["optimizer"].items()}
        for name, value in tensors.items():
            part, _, rest = name.partition("/")
            key, _, inner = rest.partition("/")
            if part == "model":
                model[rest] = value
            elif part == "kept":
                self.kept.setdefault(key, {})[inner] = value
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


def epochs(
    progress: Progress,
    batches: Callable[[int], Iterable[Batch]],
    objective: Objective,
    *,
    count: int,
    seed: int | Sequence[int],
    rate: Callable[[int], float] | None = None,
) -> Iterator[int]:
    """Train until `count` epochs are done; yield each epoch's number (from 1) after its last step.

    `batches(epoch)` returns the epoch's batches and must depend only on the epoch. `rate(epoch)` is the learning rate;
    without it the optimizer keeps its own. torch's global generators, from which dropout draws, get a new seed each
    epoch, so a resumed run is equal to one without interruption. Replicas need one seed for each member.

    The mean loss of the epoch is recorded as `training_loss`, that of replica r as `training_loss/r`. Raises
    NonFiniteLoss, with run, epoch and step, if a loss is NaN or infinite.
    """
    progress.count = count
    tracer = progress.tracer
    if not tracer.traces:
        tracer.begin(batches)
    for epoch in range(progress.epoch + 1, count + 1):
        if rate is not None:
            for group in progress.optimizer.param_groups:
                group["lr"] = rate(epoch)
        tracer.epoch_begins(epoch, _seed_layers(progress.model, [seed] if isinstance(seed, int) else seed, epoch))
        progress.model.train()
        losses = [
            train_step(progress.model, progress.optimizer, objective, batch)
            for batch in tracer.watch(batches(epoch), objective)
        ]
        progress.history.append(_mean_losses(losses, epoch, progress.label))
        tracer.epoch_ends(losses[0])
        yield epoch
        progress.save()
        if progress.on_epoch is not None:
            progress.on_epoch(progress)


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, objective: Objective, batch: Batch) -> Tensor:
    """Make one step of the optimizer on one batch; return the loss before the step, 0-d or for Replicas (R,).

    The loss stays on its device.
    """
    optimizer.zero_grad(set_to_none=True)
    loss = objective(model(batch.inputs), batch)
    loss.sum().backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.detach()


def _seed_layers(model: nn.Module, seeds: Sequence[int], epoch: int) -> list[int]:
    """Seed dropout for an epoch and return the seeds, one for each student."""
    derived = [derive_seed(seed, "layers", epoch) for seed in seeds]
    if isinstance(model, Replicas):
        model.seed_layers(derived)
    else:
        torch.manual_seed(*derived)
    return derived


def _mean_losses(losses: list[Tensor], epoch: int, label: str) -> dict[str, float]:
    # Read once an epoch, not at each step: reading a loss makes the CPU wait for the accelerator.
    every = torch.stack(losses).double()
    finite = torch.isfinite(every.view(len(losses), -1)).all(1)
    if not bool(finite.all()):
        step = int((~finite).nonzero()[0]) + 1
        first = every[step - 1]
        which = f" of replica {int((~torch.isfinite(first)).nonzero()[0])}, counted from 0," if first.ndim else ""
        raise NonFiniteLoss(
            f"{label or 'training'}: expected a finite loss, found {first.tolist()}{which} at epoch "
            f"{epoch}, step {step} of {len(losses)}; lower the learning rate or check the inputs"
        )
    if every.ndim == 1:
        return {"training_loss": math.fsum(every.tolist()) / len(losses)}
    means = [math.fsum(column) / len(losses) for column in every.t().tolist()]
    return {"training_loss": math.fsum(means) / len(means)} | {
        f"training_loss/{r}": mean for r, mean in enumerate(means)
    }


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch to evaluation mode without gradients; afterwards, also after an error, restore the mode of each module."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def predict_logits(model: nn.Module, inputs: Tensor, size: int = 1024) -> Tensor:
    """Return logits (N, K) of inputs (N, ...), computed `size` rows at a time in evaluation mode.

    Afterwards the model is in its mode of before.
    """
    with evaluating(model):
        return torch.cat([model(part) for part in torch.split(inputs, size)])
