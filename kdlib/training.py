"""The training loop as a generator over epochs; it survives being killed between any two instructions.

    progress = Progress(model, optimizer, checkpoint=path)
    for epoch in epochs(progress, batches, objective, count=10, seed=0):
        progress.record(validation_loss=...)
        if progress.is_lowest("validation_loss"):
            progress.keep("best")
    progress.restore("best")

The loop knows nothing of teachers: a method is an `objective(outputs, batch)`, and a batch carries its soft targets.
What the body of the loop records or keeps is written with the checkpoint when the next epoch begins, so schedules,
selection and early stopping that are functions of `progress.history` resume right by themselves.
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
from kdlib.replicas import Replicas
from kdlib.seeds import derive_seed

Objective = Callable[[Tensor, Batch], Tensor]


class NonFiniteLoss(KDError):
    """The training loss, or a recorded measurement, became NaN or infinite."""


class Progress:
    """What a training run has reached: model, optimizer, history of epochs, and named copies of the weights.

    With a `checkpoint` path, what an interrupted run left there is taken up at once.  A damaged checkpoint is set
    aside under `<name>.damaged` and training starts from the beginning; `notice` then says so.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, *, checkpoint: Path | None = None,
                 label: str = "", on_epoch: Callable[[Progress], None] | None = None) -> None:
        self.model, self.optimizer, self.checkpoint, self.label = model, optimizer, checkpoint, label
        self.on_epoch = on_epoch
        self.history: list[dict[str, float]] = []
        self.kept: dict[str, dict[str, Tensor]] = {}
        self.notice = ""
        self.count = 0  # epochs to train in all, as the loop was told
        if checkpoint is not None and checkpoint.exists():
            self._load(checkpoint)

    @property
    def epoch(self) -> int:
        """Number of epochs trained so far (the current one included)."""
        return len(self.history)

    def record(self, **metrics: float) -> None:
        """Add measurements to the current epoch's entry of the history; NonFiniteLoss where one is NaN or infinite."""
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise NonFiniteLoss(f"{self.label or 'training'}: expected a finite {name}, found {float(value)} at epoch "
                                    f"{self.epoch}; lower the learning rate or look at the inputs")
        self.history[-1].update({name: float(value) for name, value in metrics.items()})

    def is_lowest(self, metric: str) -> bool:
        """Whether the current epoch's `metric` is strictly below that of every earlier epoch."""
        *earlier, now = (entry[metric] for entry in self.history)
        return all(now < value for value in earlier)

    def keep(self, name: str) -> None:
        """Copy the model's present weights under `name`, over an older copy of that name."""
        self.kept[name] = {key: value.detach().clone() for key, value in self.model.state_dict().items()}

    def restore(self, name: str) -> None:
        """Put the weights kept under `name` back into the model."""
        self.model.load_state_dict(self.kept[name])

    def save(self) -> None:
        """Write the checkpoint atomically (nothing where there is no path)."""
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
        # Learning rates are not restored: the loop sets them anew each epoch from its `rate`.
        save_tensors(self.checkpoint, tensors, {"history": self.history, "optimizer": plain})

    def _load(self, path: Path) -> None:
        try:
            tensors, notes = load_tensors(path)
            expected = {f"model/{name}": value.shape for name, value in self.model.state_dict().items()}
            if expected != {name: value.shape for name, value in tensors.items() if name.startswith("model/")}:
                raise DamagedFile(f"{path}: expected the weights of this network, found those of another")
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
        # A file holds rows in order; fused optimizers walk through memory, so moments must lie there as their weights do.
        for parameter, entries in self.optimizer.state.items():
            for key, value in entries.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    entries[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        self.history = notes["history"]


def epochs(progress: Progress, batches: Callable[[int], Iterable[Batch]], objective: Objective, *, count: int,
           seed: int | Sequence[int], rate: Callable[[int], float] | None = None) -> Iterator[int]:
    """Train up to `count` epochs in all, yielding each epoch's number (from 1) after its last step.

    `batches(epoch)` gives the epoch's batches and must be a function of the epoch alone; `rate(epoch)`, where given,
    is the learning rate.  torch's global generators are seeded anew for every epoch (dropout draws from them), which
    makes an interrupted and resumed run equal to an unbroken one; Replicas take one seed each.  The mean training loss
    is recorded as `training_loss` (of replica r: `training_loss/r`).  Raises NonFiniteLoss with run, epoch and step.
    """
    progress.count = count
    for epoch in range(progress.epoch + 1, count + 1):
        if rate is not None:
            for group in progress.optimizer.param_groups:
                group["lr"] = rate(epoch)
        _seed_layers(progress.model, [seed] if isinstance(seed, int) else seed, epoch)
        progress.model.train()
        losses = [train_step(progress.model, progress.optimizer, objective, batch) for batch in batches(epoch)]
        progress.history.append(_mean_losses(losses, epoch, progress.label))
        yield epoch
        progress.save()
        if progress.on_epoch is not None:
            progress.on_epoch(progress)


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, objective: Objective, batch: Batch) -> Tensor:
    """One step of the optimizer on one batch; gives the loss before the step, still on its device (of Replicas: R losses)."""
    optimizer.zero_grad(set_to_none=True)
    loss = objective(model(batch.inputs), batch)
    loss.sum().backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.detach()


def _seed_layers(model: nn.Module, seeds: Sequence[int], epoch: int) -> None:
    derived = [derive_seed(seed, "layers", epoch) for seed in seeds]
    if isinstance(model, Replicas):
        model.seed_layers(derived)
    else:
        torch.manual_seed(*derived)


def _mean_losses(losses: list[Tensor], epoch: int, label: str) -> dict[str, float]:
    # Looked at once an epoch, not each step: reading a loss makes an accelerator wait.
    every = torch.stack(losses).double()
    finite = torch.isfinite(every.view(len(losses), -1)).all(1)
    if not bool(finite.all()):
        step = int((~finite).nonzero()[0]) + 1
        first = every[step - 1]
        which = f" of replica {int((~torch.isfinite(first)).nonzero()[0])}, counted from 0," if first.ndim else ""
        raise NonFiniteLoss(f"{label or 'training'}: expected a finite loss, found {first.tolist()}{which} at epoch "
                            f"{epoch}, step {step} of {len(losses)}; lower the learning rate or look at the inputs")
    if every.ndim == 1:
        return {"training_loss": math.fsum(every.tolist()) / len(losses)}
    means = [math.fsum(column) / len(losses) for column in every.t().tolist()]
    return {"training_loss": math.fsum(means) / len(means)} | {f"training_loss/{r}": mean for r, mean in enumerate(means)}


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every module's own mode is put back afterwards, also after an error."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def predict_logits(model: nn.Module, inputs: Tensor, size: int = 1024) -> Tensor:
    """Logits (N, K) of inputs (N, ...), `size` at a time, dropout off and moving averages on, the model's mode kept."""
    with evaluating(model):
        return torch.cat([model(part) for part in torch.split(inputs, size)])
