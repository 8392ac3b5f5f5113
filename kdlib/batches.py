"""Examples on the device, shuffled by an explicit generator; soft targets travel with their rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import repeat

import torch
import torch.nn.functional as F
from torch import Tensor

from kdlib.augment import Mix
from kdlib.errors import KDError
from kdlib.seeds import generator
from kdlib.targets import SoftTargets, mix_logits

__all__ = ["Batch", "Batches", "Examples"]

# Rows are gathered for so many steps at once: a gather at each step costs a small student dear, one for the
# whole epoch copies the data set.
STEPS_PER_GATHER = 32


@dataclass(frozen=True, eq=False)
class Examples:
    """Inputs (N, ...), labels int64 (N,), the digest of the data and the augmentation of the inputs."""

    inputs: Tensor
    labels: Tensor
    digest: str
    views: str = "plain"

    def __post_init__(self) -> None:
        """Refuse inputs and labels that cannot belong together."""
        if self.labels.shape != self.inputs.shape[:1] or self.labels.dtype != torch.int64:
            raise KDError(f"expected int64 labels of shape ({len(self.inputs)},), one per input, found "
                          f"{self.labels.dtype} of shape {tuple(self.labels.shape)}; use labels.long()")

    def to(self, device: torch.device) -> Examples:
        """The same examples on a device."""
        return replace(self, inputs=self.inputs.to(device), labels=self.labels.to(device))


@dataclass(frozen=True, eq=False, slots=True)
class Batch:
    """What an objective sees beside the student's outputs."""

    inputs: Tensor  # (B, ...)
    labels: Tensor  # int64 (B,); mixed: float (B, K)
    indices: Tensor  # int64 (B,), rows of the examples; mixed: of the first partner
    soft: Tensor | None = None  # teacher's logits (B, K)


class Batches:
    """Batches of an epoch, a pure function of the epoch's number: `for batch in batches(epoch)`.

    The last batch may be short.  `mix(epoch)`, where given, plans the epoch: inputs, labels and soft targets
    are mixed by the same weights, and `classes` says how wide the labels become.  Raises KDError for soft
    targets of other data or other views.
    """

    def __init__(self, examples: Examples, size: int, seed: int, soft: SoftTargets | None = None,
                 mix: Callable[[int], Mix] | None = None, classes: int | None = None) -> None:
        if soft is not None:
            soft.check(examples)
        if mix is not None and classes is None:
            raise KDError("expected the number of classes beside a mix, found none; pass classes=...")
        if mix is not None and not examples.inputs.is_floating_point():
            raise KDError(f"expected inputs of floating point to mix, found {examples.inputs.dtype}; use inputs.float()")
        self.examples, self.size, self.seed, self.mix = examples, size, seed, mix
        self.soft = None if soft is None else soft.logits.to(examples.inputs.device)
        self.one_hot = None if classes is None else F.one_hot(examples.labels, classes).to(examples.inputs)

    def __len__(self) -> int:
        """Steps per epoch."""
        return -(-len(self.examples.inputs) // self.size)

    def __call__(self, epoch: int) -> Iterator[Batch]:
        """The epoch's batches, in an order that depends on seed and epoch alone; KDError where a mix has too few rows or many."""
        count, device = len(self.examples.inputs), self.examples.inputs.device
        order = torch.randperm(count, generator=generator(self.seed, "order", epoch)).to(device)
        mix = None if self.mix is None else self.mix(epoch)
        if mix is not None and len(mix.first) != count:
            raise KDError(f"expected a mix of {count} rows, one per example, found {len(mix.first)}")
        for rows in torch.split(order, self.size * STEPS_PER_GATHER):
            yield from self._views(self._plain(rows) if mix is None else self._mixed(mix[rows]))

    def _plain(self, rows: Tensor) -> Batch:
        soft = None if self.soft is None else self.soft.index_select(0, rows)
        return Batch(self.examples.inputs.index_select(0, rows), self.examples.labels[rows], rows, soft)

    def _mixed(self, mix: Mix) -> Batch:
        assert self.one_hot is not None
        soft = None
        if self.soft is not None:
            soft = mix_logits(self.soft[mix.first], self.soft[mix.second], mix.weight)
        return Batch(mix.blend(self.examples.inputs), mix.blend(self.one_hot), mix.first, soft)

    def _views(self, many: Batch) -> Iterator[Batch]:
        soft = repeat(None) if many.soft is None else torch.split(many.soft, self.size)
        parts = (torch.split(part, self.size) for part in (many.inputs, many.labels, many.indices))
        return map(Batch, *parts, soft)
