"""The training loop as a generator over epochs; a run that is killed at any instruction can be resumed.

    progress = Progress(model, optimizer, checkpoint=path)
    for epoch in epochs(progress, batches, objective, count=10, seed=0):
        progress.record(validation_loss=...)
        if progress.is_lowest("validation_loss"):
            progress.keep("best")
    progress.restore("best")

The loop knows nothing about teachers: a method is an `objective(outputs, batch)`, and a batch carries its soft targets.
The checkpoint is written after the body of the loop, with everything that the body recorded or kept. Schedules,
selection and early stopping therefore resume correctly if they are functions of `progress.history`. A long epoch also
has checkpoints within it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from kdlib.batches import Batch, Examples
from kdlib.captured import CapturedStep
from kdlib.files import tensor_digest
from kdlib.losses import cross_entropy
from kdlib.packing import tensors_of_state, unwrapped
from kdlib.progress import NonFiniteLoss, Progress
from kdlib.replicas import Replicas
from kdlib.seeds import derive_seed
from kdlib.targets import SoftTargets

__all__ = [
    "NonFiniteLoss",
    "Objective",
    "Progress",
    "cosine",
    "epochs",
    "evaluating",
    "hard_targets",
    "predict_logits",
    "predict_soft_targets",
    "train_step",
]

Objective = Callable[[Tensor, Batch], Tensor]


def hard_targets(outputs: Tensor, batch: Batch) -> Tensor:
    """Return the cross-entropy with the batch's labels: the objective of a network without a teacher."""
    return cross_entropy(outputs, batch.labels)


def cosine(first: float, count: int) -> Callable[[int], float]:
    """Return a `rate` for `epochs`: it falls from `first` in epoch 1 along half a cosine, to 0 after `count` epochs.

    Loshchilov and Hutter 2017 (arXiv 1608.03983, Eq. 5), changed once an epoch and without restarts.
    """
    return lambda epoch: first / 2 * (1 + math.cos(math.pi * (epoch - 1) / count))


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
    without it the optimizer keeps its own. Within an epoch, only `batches` may change the learning rate. torch's global
    generators, from which dropout draws, get a new seed each epoch, so a resumed run is equal to one without
    interruption. Replicas need one seed for each member. A run that was interrupted within an epoch goes through the
    batches of the steps done again, without a step.

    The mean loss of the epoch is recorded as `training_loss`, that of replica r as `training_loss/r`. Raises
    NonFiniteLoss, with run, epoch and step, if a loss is NaN or infinite.
    """
    seeds = [seed] if isinstance(seed, int) else [*seed]
    progress.loop_begins(batches, seeds, count, rate=rate is not None)
    tracer = progress.tracer
    if not tracer.traces:
        tracer.begin(batches)
    make_step = _step(progress, objective)
    for epoch in range(progress.epoch + 1, count + 1):
        if rate is not None:
            progress.rates.set_all(progress.optimizer, rate(epoch))
        if progress.resumed[0]:
            tracer.refuse_changes(progress.label)
        tracer.epoch_begins(epoch, _seed_layers(progress.model, seeds, epoch))
        progress.model.train()
        done = progress.epoch_begins()
        if isinstance(make_step, CapturedStep):
            make_step.refresh()
        for step, batch in enumerate(tracer.watch(batches(epoch)), 1):
            if step > done:
                loss = make_step(batch)
                tracer.step_ends(batch, objective)
                progress.step_ends(loss)
            elif step == done:
                progress.steps_are_skipped()
        means = _mean_losses(progress.losses, epoch, progress.label)
        tracer.epoch_ends(progress.losses[0])
        progress.epoch_ends(means)
        yield epoch
        progress.save()
        if progress.on_epoch is not None:
            progress.on_epoch(progress)


def _step(progress: Progress, objective: Objective) -> Callable[[Batch], Tensor]:
    """The step as a function of the batch; on a CUDA device it is recorded once and replayed."""

    def step(batch: Batch) -> Tensor:
        return train_step(progress.model, progress.optimizer, objective, batch)

    on_cuda = next(progress.model.parameters()).is_cuda
    return CapturedStep(step, progress) if on_cuda and progress.graphs else step


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


def predict_soft_targets(teacher: nn.Module, examples: Examples, run: str = "", size: int = 1024) -> SoftTargets:
    """Return the teacher's logits (N, K) of the examples, with the examples' digest and view.

    `run` names the teacher; without it, the name is made from the SHA-256 of the weights. Warns (TeacherAtChance) as
    `Examples.check` does.
    """
    logits = predict_logits(teacher, examples.inputs, size)
    name = run or f"weights {tensor_digest(tensors_of_state(unwrapped(teacher).state_dict()))[:16]}"
    soft = SoftTargets(logits, name, examples.digest, examples.view)
    examples.check(soft)
    return soft
