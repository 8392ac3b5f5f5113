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
from contextlib import nullcontext
from itertools import islice
from typing import SupportsIndex

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from kdlib.batches import Batch, Examples
from kdlib.captured import CapturedStep
from kdlib.checks import check_kind, check_number, whole_number
from kdlib.copies import Copies
from kdlib.epoch import checked
from kdlib.errors import KDError, NonFiniteLoss
from kdlib.files import tensor_digest
from kdlib.held import Held
from kdlib.losses import cross_entropy
from kdlib.modes import set_modes
from kdlib.packing import device_of, tensors_of_state, unwrapped
from kdlib.predictions import evaluating, predict_logits
from kdlib.progress import Progress
from kdlib.replicas import Replicas, refusing_what_vmap_refuses
from kdlib.seeds import derive_seed, global_generators_put_back, seed_globally
from kdlib.targets import SoftTargets
from kdlib.trace import Objective
from kdlib.trainable import (
    check_weights,
    has_own_zero_grad,
    refusing_kept_gradients,
    weights_that_are_not_finite,
)
from kdlib.untrained import WatchedObjective

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


def hard_targets(outputs: Tensor, batch: Batch) -> Tensor:
    """Return the cross-entropy with the batch's labels: the objective of a network without a teacher."""
    return cross_entropy(outputs, batch.labels)


def cosine(first: float, count: int) -> Callable[[int], float]:
    """Return a `rate` for `epochs`: it falls from `first` in epoch 1 along half a cosine, to 0 after `count` epochs.

    Loshchilov and Hutter 2017 (arXiv 1608.03983, Eq. 5), changed once an epoch and without restarts. KDError in an
    epoch after `count`, where the rate would be 0 and then rise again, and for a count below 1.
    """
    count = whole_number("count of the cosine", count, least=1)

    def rate(epoch: int) -> float:
        check_number("epoch of the cosine", epoch, 1, count, "make the cosine for all epochs that are trained")
        return first / 2 * (1 + math.cos(math.pi * (epoch - 1) / count))

    return rate


def epochs(
    progress: Progress,
    batches: Callable[[int], Iterable[Batch]],
    objective: Objective,
    *,
    count: SupportsIndex,
    seed: SupportsIndex | Sequence[SupportsIndex],
    rate: Callable[[int], float] | None = None,
) -> Iterator[int]:
    """Train until `count` epochs are done; yield each epoch's number (from 1) after its last step.

    `batches(epoch)` returns the epoch's batches and must depend only on the epoch. `rate(epoch)` is the learning rate;
    without it the optimizer keeps its own. Within an epoch, only `batches` may change the learning rate. A run that was
    interrupted within an epoch goes through the batches of the steps done again, without a step.

    The global generators of torch (from which dropout draws), NumPy and Python get a new seed each epoch, so a resumed
    run is equal to one without interruption; after the loop they are as before. Replicas need one seed for each member.
    Their dropout has these seeds; what their objective or batches draw from global generators is of the first one.

    The model is in training mode during the steps. A module that is in evaluation mode when the loop starts, or at the
    end of its body, while others are in training mode, remains so: a frozen batch norm, or a teacher within the model.

    The mean loss of the epoch is recorded as `training_loss`, that of replica r as `training_loss/r`. Raises
    NonFiniteLoss, with run and epoch, if a loss or, after an epoch, a weight is NaN or infinite. KDError for `batches`
    that is no such function, such as a DataLoader, for an epoch without batches, and for a loss that is not one number
    per student.
    """
    if not callable(batches):
        raise KDError(
            f"expected a function from the epoch to its batches, found {type(batches).__name__}; use Batches, or write "
            "a function of the epoch that yields Batch(inputs, labels, row numbers), as kdlib/README.md does for a "
            "DataLoader"
        )
    check_kind("progress", progress, Progress, "write epochs(Progress(model, optimizer), batches, objective, ...)")
    if not callable(objective) or isinstance(objective, nn.modules.loss._Loss):
        raise KDError(
            f"objective: expected a function of the model's outputs and a Batch, found {type(objective).__name__}; "
            "write lambda outputs, batch: loss(outputs, batch.labels), or use hard_targets"
        )
    if rate is not None and not callable(rate):
        raise KDError(
            f"rate: expected a function from the epoch to its learning rate, found {rate!r}; use rate=lambda epoch: "
            "0.1, say, or leave it out and give the optimizer its learning rate"
        )
    progress.layers.freeze(anew=True)
    seeds, last = _seeds(seed, progress.model), whole_number("count", count, least=0)
    functions, stops, place = [objective, batches, rate], progress.checkpoint is not None, progress.label or "training"
    held = Held(functions, progress.network, progress.optimizers, progress.extras.values(), stops)
    progress.loop_begins(batches, seeds, last, numbers=held.numbers, rate=rate is not None)
    tracer = progress.tracer
    if not tracer.traces:
        tracer.begin(batches)
    watched = WatchedObjective(objective, progress.network, progress.extras)
    make_step, first = _step(progress, tracer.noting_outputs(watched, objective)), progress.epoch + 1
    copies = Copies(progress.network, progress.extras, progress.optimizer, progress.kept)
    infinite = weights_that_are_not_finite(progress.optimizers)
    with global_generators_put_back():
        for epoch in range(first, last + 1):
            of_layers = _seed_generators(progress.model, seeds, epoch)
            if rate is not None:
                progress.rates.set_all(progress.optimizer, rate(epoch))
            tracer.epoch_begins(epoch, of_layers)
            progress.model.train()
            modes = progress.layers.begin_steps()
            done = progress.epoch_begins()
            if isinstance(make_step, CapturedStep):
                make_step.refresh()
            given = held.watching(checked(batches(epoch), epoch, done), place)
            for step, batch in enumerate(tracer.watch(given), 1):
                if step > done:
                    set_modes(progress.network, modes)
                    marks = progress.step_begins(batch)
                    loss = make_step(batch)
                    progress.step_ends(loss, marks)
                elif step == done:
                    progress.steps_are_skipped(batch)
            set_modes(progress.network, modes)
            means = _mean_losses(progress.losses, epoch, progress.label, batches)
            check_weights(progress.network, progress.optimizers, infinite, progress.label, epoch)
            tracer.epoch_ends(progress.losses[0], objective, epoch)
            progress.epoch_ends(means)
            if progress.checkpoint is not None:
                copies.epoch_ends(epoch)
            yield epoch
            held.epoch_ends()
            if epoch == first:
                watched.warn(progress.optimizers)
            progress.layers.freeze()
            progress.save()
            if progress.checkpoint is not None:
                copies.look(place)
            if progress.on_epoch is not None:
                progress.on_epoch(progress)


def _step(progress: Progress, objective: Objective) -> Callable[[Batch], Tensor]:
    """The step as a function of the batch; on a CUDA device it is recorded once and replayed."""

    def step(batch: Batch) -> Tensor:
        return train_step(progress.model, progress.optimizer, objective, batch)

    if progress.checkpoint is not None and has_own_zero_grad(progress.optimizer):
        return refusing_kept_gradients(step, progress.optimizer)
    on_cuda = device_of(progress.model).type == "cuda"
    return CapturedStep(step, progress) if on_cuda and progress.graphs else step


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, objective: Objective, batch: Batch) -> Tensor:
    """Make one step of the optimizer on one batch; return the loss before the step, 0-d or for Replicas (R,).

    The loss stays on its device. KDError for an objective that returns anything else.
    """
    optimizer.zero_grad()
    loss = objective(model(batch.inputs), batch)
    _check_loss(loss, model)
    with refusing_what_vmap_refuses() if isinstance(model, Replicas) else nullcontext():
        loss.sum().backward()  # type: ignore[no-untyped-call]
    if not any(weight.grad is not None for group in optimizer.param_groups for weight in group["params"]):
        raise KDError(
            "expected a loss that depends on the weights of the optimizer, found that none of them has a gradient; "
            "compute the loss from the outputs as they are, and look at the order of its arguments: targets have none"
        )
    optimizer.step()
    return loss.detach()


def _check_loss(loss: object, model: nn.Module) -> None:
    shape = (len(model),) if isinstance(model, Replicas) else ()
    if isinstance(loss, Tensor) and loss.is_complex():
        raise KDError(f"expected a loss of real numbers, found {loss.dtype}; take its absolute value")
    if not isinstance(loss, Tensor) or loss.shape != shape:
        found = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        remedy = (
            "map the loss of one student over all of them with torch.vmap"
            if shape
            else "take the mean over the batch, loss.mean(), and return the loss alone"
        )
        kind = f"one loss for each of the {shape[0]} replicas" if shape else "one loss for the batch, a 0-d tensor"
        raise KDError(f"expected {kind} from the objective, found {found}; {remedy}")
    if not loss.requires_grad and not torch.is_grad_enabled():
        raise KDError("expected gradients, found them switched off; train outside of torch.no_grad and inference_mode")
    if not loss.requires_grad:
        raise KDError(
            "expected a loss that depends on the model's weights, found one without a gradient; compute it from the "
            "outputs as they are, and leave at least one weight with requires_grad"
        )


def _seeds(seed: SupportsIndex | Sequence[SupportsIndex], model: nn.Module) -> list[int]:
    seeds = [whole_number("seed", one) for one in (seed if np.ndim(seed) else [seed])]  # type: ignore[arg-type, union-attr]
    if len(seeds) != 1 and not isinstance(model, Replicas):
        raise KDError(f"expected one seed for one model, found {len(seeds)}; several are for Replicas")
    return seeds


def _seed_generators(model: nn.Module, seeds: Sequence[int], epoch: int) -> list[int]:
    """Seed dropout and the global generators for an epoch, and return the seeds of dropout, one for each student."""
    derived = [derive_seed(seed, "layers", epoch) for seed in seeds]
    if isinstance(model, Replicas):
        model.seed_layers(derived)
    seed_globally(derived[0])  # of the first student: what an objective draws for a stack is for all of it
    return derived


def _mean_losses(
    losses: list[Tensor], epoch: int, label: str, batches: Callable[[int], Iterable[Batch]]
) -> dict[str, float]:
    # Read once an epoch, not at each step: reading a loss makes the CPU wait for the accelerator.
    every = torch.stack(losses).double()
    finite = torch.isfinite(every.view(len(losses), -1)).all(1)
    if not bool(finite.all()):
        step = int((~finite).nonzero()[0]) + 1
        first = every[step - 1]
        which = f" of replica {int((~torch.isfinite(first)).nonzero()[0])}, counted from 0," if first.ndim else ""
        raise NonFiniteLoss(
            f"{label or 'training'}: expected a finite loss, found {first.tolist()}{which} at epoch "
            f"{epoch}, step {step} of {len(losses)}; {_remedy(batches, epoch, step)}"
        )
    if every.ndim == 1:
        return {"training_loss": math.fsum(every.tolist()) / len(losses)}
    means = [math.fsum(column) / len(losses) for column in every.t().tolist()]
    return {"training_loss": math.fsum(means) / len(means)} | {
        f"training_loss/{r}": mean for r, mean in enumerate(means)
    }


def _remedy(batches: Callable[[int], Iterable[Batch]], epoch: int, step: int) -> str:
    """What to do about the loss of a step that is not finite: the epoch's batches are made again and looked at."""
    try:
        batch = next(islice(batches(epoch), step - 1, None), None)
    except Exception:  # a scheduler that the batches step may be at its end: the loss matters, not this
        batch = None
    for name in ("inputs", "labels", "soft"):
        for part in tree_leaves(getattr(batch, name, None)):
            if not isinstance(part, Tensor) or not part.is_floating_point():
                continue
            wrong = ~part.isfinite() & ~((part == -math.inf) & (name == "soft"))  # a teacher may exclude classes
            if bool(wrong.any()):
                place = wrong.nonzero()[0].tolist()
                return f"the batch's {name} have {part[tuple(place)].item()} at {place}, so correct the data"
    if epoch == step == 1:
        return "no step had been made, so check the initial weights, the inputs' scale and the objective"
    return "lower the learning rate or check the inputs"


def predict_soft_targets(
    teacher: nn.Module, examples: Examples, run: str = "", size: int = 1024, output: int | str | None = None
) -> SoftTargets:
    """Return the teacher's logits (N, K) of the examples, with the examples' digest and view.

    `run` names the teacher; without it, the name is made from the SHA-256 of the weights. Warns (TeacherAtChance) as
    `Examples.check` does. `output` picks one of several outputs, as in `predict_logits`.
    """
    check_kind("examples", examples, Examples, "write predict_soft_targets(teacher, Examples(inputs, labels))")
    logits = predict_logits(teacher, examples.inputs, size, output)
    name = run or f"weights {tensor_digest(tensors_of_state(unwrapped(teacher).state_dict()))[:16]}"
    soft = SoftTargets(logits, name, examples.digest, examples.view)
    examples.check(soft)
    return soft
