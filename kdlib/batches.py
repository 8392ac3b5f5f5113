"""Examples on the device, batches shuffled by an explicit generator, and soft targets that travel with their rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdlib.augment import Mix
from kdlib.chance import TeacherAtChance, share_of_labels
from kdlib.checks import FLATTEN, check_classes, check_kind, whole_number
from kdlib.errors import KDError
from kdlib.files import array_digest
from kdlib.probabilities import warn_of_probabilities, warn_of_sigmoid
from kdlib.seeds import generator
from kdlib.targets import SoftTargets, mix_logits, selected_rows

__all__ = ["Batch", "Batches", "Examples", "TeacherAtChance"]

# Index 32 steps at once: indexing at every step dominates for small students, and indexing a whole epoch copies the
# data set.
STEPS_PER_GATHER = 32


@dataclass(frozen=True, eq=False, init=False)
class Examples:
    """Inputs (N, ...), labels int64 (N,), the digest of the data, and the view: how the inputs are augmented.

    Without `digest`, it is computed from inputs and labels (`kdlib.files.array_digest`). A digest that you give is a
    name: soft targets and checkpoints are compared with it, not with the content. `dataclasses.replace` keeps the
    digest; give `digest=None` with other inputs.

    The labels of an unlabelled transfer set are empty rows, int64 (N, 0). Losses with a hard term refuse them.
    """

    inputs: Tensor
    labels: Tensor
    digest: str
    view: str

    def __init__(self, inputs: Tensor, labels: Tensor, digest: str | None = None, view: str = "plain") -> None:
        """Refuse labels that are not one integer for each input, nor an empty row for each (KDError)."""
        for name, values in (("inputs", inputs), ("labels", labels)):
            if not isinstance(values, Tensor):
                raise KDError(f"{name}: expected a tensor, found {type(values).__name__}; {_as_tensor(name, values)}")
        if not inputs.ndim:
            raise KDError("inputs: expected a tensor (N, ...), found one number; for one example, use inputs.view(1)")
        count = len(inputs)
        if labels.shape not in ((count,), (count, 0)) or labels.dtype != torch.int64:
            several = labels.ndim > 1 or labels.is_floating_point()
            remedy = (
                "for several labels of an input, or labels that are no classes, write a function of the epoch that "
                "yields Batch(inputs, labels, row numbers)"
                if several
                else "use labels.long()"
            )
            raise KDError(
                f"expected int64 labels of shape ({count},), one per input, found {labels.dtype} of shape "
                f"{tuple(labels.shape)}; {remedy}, or without labels "
                "labels=torch.empty(len(inputs), 0, dtype=torch.int64)"
            )
        if inputs.layout != torch.strided or inputs.is_meta:
            raise KDError(f"inputs: expected a dense tensor with values, found {inputs.layout}; use inputs.to_dense()")
        inputs = inputs.detach()  # features of an encoder may have a gradient, whose graph lives for one step
        digest = digest or array_digest(inputs, labels)
        for name, value in (("inputs", inputs), ("labels", labels), ("digest", digest), ("view", view)):
            object.__setattr__(self, name, value)  # the class is frozen

    def to(self, device: torch.device | str) -> Examples:
        """Return the same examples on a device."""
        return replace(self, inputs=self.inputs.to(device), labels=self.labels.to(device))

    def select(self, rows: Any) -> Examples:
        """Return the examples of some rows, for a transfer set: row numbers (n,) or a mask (N,), a tensor or a list.

        Their digest is made from the data's digest and the rows, so that they fit `SoftTargets.select` of the same rows
        and no other soft targets. KDError for a mask of another length.
        """
        rows, digest = selected_rows(rows, len(self.inputs), self.digest)
        rows = rows.to(self.inputs.device)
        return replace(self, inputs=self.inputs[rows], labels=self.labels[rows], digest=digest)

    def without_labels(self) -> Examples:
        """Return the same examples as an unlabelled transfer set: soft targets still fit, a hard term is refused."""
        return replace(self, labels=self.labels.new_empty(len(self.labels), 0))

    def check(self, soft: SoftTargets, view: str = "") -> float | None:
        """Return the share of examples whose label is the teacher's most probable class; None without labels.

        Refuses soft targets of other data, of another view or with another number of rows, and logits that are not (N,
        K) (KDError). Data are compared by their digests. Warns (ProbabilitiesAsLogits) if all rows are distributions:
        a softmax is then the last layer of the teacher. Warns (TeacherAtChance) if the teacher agrees with the
        labels no better than chance: often its rows are in another order than the examples.

        `view` is the view in which the student gets the inputs, if they are augmented later; by default it is the
        examples' own.
        """
        check_kind("soft", soft, SoftTargets, "predict_soft_targets returns them, SoftTargets(logits, ...) makes them")
        expected = (self.digest, view or self.view, len(self.inputs))
        found = (soft.data_digest, soft.view, len(soft.logits))
        if found != expected:
            remedy = "predict the teacher's logits again on these examples"
            if view:
                remedy += ", leave the augmentation out, or call the teacher on batch.inputs in the objective"
            raise KDError(
                "expected soft targets of these examples "
                f"(data {expected[0]}, view {expected[1]!r}, {expected[2]} rows), found those of run "
                f"{soft.teacher_run} (data {found[0]}, view {found[1]!r}, {found[2]} rows); {remedy}"
            )
        if soft.logits.ndim != 2:
            single = "one number an example is (N, 1): use logits.unsqueeze(1)"
            raise KDError(
                f"expected logits of shape (N, K), one row per example, found {tuple(soft.logits.shape)} of run "
                f"{soft.teacher_run}; {single if soft.logits.ndim < 2 else FLATTEN}"
            )
        warn_of_probabilities(soft.logits, f"run {soft.teacher_run}")
        if soft.logits.shape[1] == 1:
            warn_of_sigmoid(soft.logits, f"run {soft.teacher_run}")
        return share_of_labels(soft, self.labels) if self.labels.ndim == 1 and len(self.labels) else None


def _as_tensor(name: str, values: object) -> str:
    """What to do about values that are no tensor."""
    first = next(iter(values), None) if isinstance(values, list | tuple) else values
    if isinstance(first, Tensor):
        return f"use torch.stack({name})"
    if isinstance(first, Mapping):
        return "for several tensors an example, write a function of the epoch that yields Batch(inputs, labels, rows)"
    return f"use torch.as_tensor({name}{'.to_numpy()' if hasattr(values, 'to_numpy') else ''})"


@dataclass(frozen=True, eq=False, slots=True)
class Batch:
    """One batch, as passed to an objective."""

    inputs: Any  # a tensor (B, ...), or what else the model takes: a dictionary of tensors, for example
    labels: Tensor  # int64 (B,); if rows are mixed: float (B, K); without labels: int64 (B, 0)
    indices: Tensor  # int64 (B,), row numbers, for the trace; if rows are mixed: those of the first partner
    soft: Tensor | None = None  # the teacher's logits (B, K)


class Batches:
    """Batches of an epoch, a pure function of the epoch's number: `for batch in batches(epoch)`.

    The last batch may be short; `drop_last` leaves it out, and with it other rows in each epoch. `soft` holds the
    teacher's logits for the examples.

    `mix(epoch)` plans an epoch of mixed rows. Inputs, labels and soft targets are mixed with the same weights, and the
    labels become distributions over `classes` classes. The teacher's distributions are mixed at temperature 1. At a
    higher temperature, the mixture of two of them is softer than the mixture of its distributions at that temperature.

    `augment(epoch)` returns a function from inputs (B, ...) to inputs (B, ...). It is called on one batch after the
    other, in their order, so it may draw from a generator. `view` names what it does ("flip+shift").

    Raises KDError for soft targets of other data or of another view than the inputs of the batches, for a mix without
    `classes`, for `augment` without `view` or `view` without `augment`, for a mix together with `augment`, for a size
    below 1, for no example, and with `drop_last` for fewer examples than one batch has.
    """

    def __init__(
        self,
        examples: Examples,
        size: int,
        seed: int,
        soft: SoftTargets | None = None,
        mix: Callable[[int], Mix] | None = None,
        classes: int | None = None,
        augment: Callable[[int], Callable[[Tensor], Tensor]] | None = None,
        view: str = "",
        drop_last: bool = False,
    ) -> None:
        check_kind("examples", examples, Examples, "make them with Examples(inputs, labels)")
        if soft is not None:
            check_kind("soft", soft, SoftTargets, "make them with SoftTargets(logits, name, examples.digest)")
        size = whole_number("size", size)
        if size < 1 or len(examples.inputs) < (size if drop_last else 1):
            raise KDError(
                f"expected a batch size of at least 1, and examples for a batch, found size {size} and "
                f"{len(examples.inputs)} examples; take a smaller size or more examples"
            )
        classes = None if classes is None else whole_number("classes", classes, least=1)
        _check_mix(examples, mix, classes)
        _check_augmentation(augment, view, mix)
        if soft is not None:
            examples.check(soft, view)
        self.examples, self.size, self.mix, self.augment = examples, size, mix, augment
        self.seed = whole_number("seed", seed)
        self.soft = None if soft is None else soft.logits.to(examples.inputs.device)
        self.soft_origin = None if soft is None else soft.origin()
        self.view, self.drop_last = view or examples.view, drop_last
        if classes is not None:
            check_classes(examples.labels.cpu(), classes)
        self.one_hot = None if classes is None else F.one_hot(examples.labels, classes).to(examples.inputs)

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        count = len(self.examples.inputs)
        return count // self.size if self.drop_last else -(-count // self.size)

    def __call__(self, epoch: int) -> Iterator[Batch]:
        """Yield the epoch's batches, in an order that depends only on seed and epoch.

        Raises KDError if `mix(epoch)` does not have as many rows as there are examples.
        """
        count, order = len(self.examples.inputs), self.order(epoch)
        mix = None if self.mix is None else self.mix(epoch)
        if mix is not None:
            check_kind("mix", mix, Mix, "write a function of the epoch that returns mixup(...) or unmixed(...)")
        if mix is not None and len(mix.first) != count:
            raise KDError(f"expected a mix of {count} rows, one per example, found {len(mix.first)}")
        augment = None if self.augment is None else self.augment(epoch)
        for rows in torch.split(order, self.size * STEPS_PER_GATHER):
            batches = self._split(self._plain(rows) if mix is None else self._mixed(mix[rows]))
            yield from batches if augment is None else _augmented(batches, augment)

    def order(self, epoch: int) -> Tensor:
        """Return the row numbers (N,) of an epoch in their order, on the examples' device; with `drop_last` fewer."""
        draws = generator(self.seed, "order", epoch)
        order = torch.randperm(len(self.examples.inputs), generator=draws, device="cpu")
        if self.drop_last:
            order = order[: len(self) * self.size]
        return order.to(self.examples.inputs.device)

    def about(self) -> dict[str, Any]:
        """Return what the batches are made of, for the trace: data, view, size, and the origin of the soft targets."""
        made = {"digest": self.examples.digest, "view": self.view, "size": self.size, "soft": self.soft_origin}
        return made | {"drop_last": True} if self.drop_last else made

    def identity(self) -> dict[str, Any]:
        """Return what a resumed training must find again: `about`, labels, the order's seed, and if rows are mixed.

        `dataclasses.replace(examples, labels=...)` keeps the digest of the data.
        """
        labels = array_digest(self.examples.labels)
        return self.about() | {"labels": labels, "seed": self.seed, "mixed": self.mix is not None}

    def _plain(self, rows: Tensor) -> Batch:
        soft = None if self.soft is None else self.soft.index_select(0, rows)
        return Batch(self.examples.inputs.index_select(0, rows), self.examples.labels[rows], rows, soft)

    def _mixed(self, mix: Mix) -> Batch:
        assert self.one_hot is not None
        soft = None
        if self.soft is not None:
            soft = mix_logits(self.soft[mix.first], self.soft[mix.second], mix.weight)
        return Batch(mix.blend(self.examples.inputs), mix.blend(self.one_hot), mix.first, soft)

    def _split(self, many: Batch) -> Iterator[Batch]:
        soft = repeat(None) if many.soft is None else torch.split(many.soft, self.size)
        parts = (torch.split(part, self.size) for part in (many.inputs, many.labels, many.indices))
        return map(Batch, *parts, soft)


def _augmented(batches: Iterator[Batch], augment: Callable[[Tensor], Tensor]) -> Iterator[Batch]:
    for batch in batches:
        inputs = augment(batch.inputs) if callable(augment) else augment
        if not isinstance(inputs, Tensor):
            raise KDError(
                "augment: expected a function of the epoch that returns a function from inputs to inputs, two tensors, "
                f"found that it gives {type(inputs).__name__}; use augment=lambda epoch: function, say"
            )
        yield replace(batch, inputs=inputs)


def _check_mix(examples: Examples, mix: object, classes: int | None) -> None:
    if mix is not None and not callable(mix):
        raise KDError(f"mix: expected a function of the epoch, found {type(mix).__name__}; use mix=lambda epoch: ...")
    if mix is not None and classes is None:
        raise KDError("expected the number of classes with a mix, found none; pass classes=...")
    if classes is not None and examples.labels.ndim != 1:
        raise KDError("expected labels to mix, found an unlabelled transfer set; leave mix and classes out")
    if mix is not None and not examples.inputs.is_floating_point():
        raise KDError(f"expected inputs of floating point to mix, found {examples.inputs.dtype}; use inputs.float()")


def _check_augmentation(augment: object, view: str, mix: object) -> None:
    if (augment is None) != (view == ""):
        given, absent = ("view", "augment") if augment is None else ("augment", "view")
        raise KDError(
            f"expected augment and view together, found {given} without {absent}; "
            'pass both, for example augment=..., view="flip+shift"'
        )
    if augment is not None and view == "plain":
        raise KDError(
            "view: expected a name that says what augment does, found 'plain'; write view=\"flip+shift\", say"
        )
    if augment is not None and mix is not None:
        # Mixed rows would be augmented as one: both partners flipped and shifted the same way.
        raise KDError("expected a mix or an augmentation, found both; leave one of them out")
