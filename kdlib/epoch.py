"""The batches of an epoch: what they must be, and what a checkpoint holds of an epoch that was interrupted."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kdlib.batches import Batch, Batches
from kdlib.checkpoint import REMEDY
from kdlib.errors import KDError
from kdlib.files import tensor_digest
from kdlib.replicas import layer_generators

__all__ = ["OtherBatches", "Unfinished", "checked", "marks_of"]


class OtherBatches(UserWarning):
    """An epoch goes on from a checkpoint within it, but its batches are not those of the steps that were made."""


def checked(batches: Iterable[Batch], epoch: int, done: int) -> Iterator[Batch]:
    """Pass on the batches of an epoch of which `done` steps are made already.

    KDError if there is none, or fewer than these steps, and for anything but a Batch of tensors.
    """
    if not isinstance(batches, Iterable) and not hasattr(batches, "__getitem__"):
        uses = isinstance(batches, Batches)
        remedy = "pass the Batches themselves" if uses else "yield the batches one by one, or return a list of them"
        raise KDError(
            f"expected that batches(epoch) gives the batches of an epoch, found {type(batches).__name__}; {remedy}"
        )
    count = 0
    for batch in batches:
        count += 1
        if wrong := [batch] if not isinstance(batch, Batch) else _no_tensors(batch):
            raise KDError(
                "expected batches that are Batch(inputs, labels, row numbers, soft targets), all of them tensors, "
                f"found {type(wrong[0]).__name__} in epoch {epoch}; make them as kdlib/README.md does for a DataLoader"
            )
        yield batch
    if not count:
        raise KDError(
            f"expected batches in epoch {epoch}, found none; batches(epoch) must make new ones each time that it is "
            "called, and there must be examples"
        )
    if count < done:
        raise KDError(
            f"expected the batches of epoch {epoch} again, of which {done} were trained before the interruption, found "
            f"{count} in all; batches(epoch) must make the same ones each time that it is called. Use batches of the "
            f"size of before, and no loader that remembers its place, or {REMEDY}"
        )


def _no_tensors(batch: Batch) -> list[object]:
    """What is not a tensor among the parts of a batch that it has; inputs may be a dictionary, for example."""
    parts: tuple[object, ...] = (batch.labels, batch.indices, batch.soft)
    arrays: list[object] = [batch.inputs] if isinstance(batch.inputs, np.ndarray) else []
    return arrays + [part for part in parts if part is not None and not isinstance(part, Tensor)]


def marks_of(batch: Batch) -> dict[str, Tensor]:
    """Return what tells a batch from others: copies of its labels and row numbers, as the step has not changed them.

    What is no dense tensor is left out, and so are mixed labels: when steps are skipped, they may be drawn anew.
    """
    parts = {"labels": batch.labels, "indices": batch.indices}
    if isinstance(batch.labels, Tensor) and batch.labels.is_floating_point():
        del parts["labels"]
    dense = {name: part for name, part in parts.items() if isinstance(part, Tensor) and part.layout == torch.strided}
    return {name: part.detach().clone() for name, part in dense.items() if not part.is_nested}


@dataclass(frozen=True)
class Unfinished:
    """The steps of an epoch that a checkpoint within it holds; without any, the checkpoint is one between epochs.

    That is: the losses, the states of the extras and of the generators that a step draws from, after the last step, and
    the SHA-256 of what tells its batch from others.
    """

    losses: Sequence[Tensor] = ()
    states: Sequence[Tensor] = ()
    extras: Mapping[str, Any] = field(default_factory=dict)
    batch: str = ""

    def restore(self, batch: Batch, network: nn.Module, extras: Mapping[str, Any], place: str) -> None:
        """Set extras and generators as they were after the last step; `batch` is the one of that step now.

        KDError for another number of generators. Warns (OtherBatches) if the batch had other labels or row numbers.
        """
        if tensor_digest(marks_of(batch)) != self.batch:
            warnings.warn(
                f"{place}: the batch of step {len(self.losses)} is not the one that was trained before the "
                "interruption, so this epoch may train some examples twice and leave out others; batches(epoch) must "
                "make the same batches each time that it is called",
                OtherBatches,
                stacklevel=4,
            )
        for name, state in self.extras.items():  # the batches may have updated them again
            extras[name].load_state_dict(state)
        generators = layer_generators(network)
        if len(generators) != len(self.states):
            raise KDError(
                f"{place}: expected the states of {len(generators)} generators of random numbers within an epoch, "
                f"found {len(self.states)}; go on with the kind of device that it was stopped on, or {REMEDY}"
            )
        for generator, state in zip(generators, self.states, strict=True):
            generator.set_state(state)
