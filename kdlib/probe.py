"""The probe of an objective: its loss for fixed outputs of the model's form, which leaves all that it uses as it is.

An objective may have a state: an average of the weights that it updates, a queue, a counter, a batch norm. A call that
only observes must not move it.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from kdlib.batches import Batch
from kdlib.parts import Parts
from kdlib.seeds import generator, global_generators_put_back

__all__ = ["form_of", "mean_squares", "observing", "probed"]

ROWS = 4
MASKED = 1e4  # such numbers are of masks that are added to logits, and no outputs


def probed(
    objective: Callable[[Any, Batch], Tensor],
    form: Any,
    batch: Batch,
    students: int,
    used: Sequence[Any],
    later: bool = False,
) -> list[Any]:
    """Return the objective of fixed outputs, labels and soft targets, for each student; None if it has no such value.

    `form` is that of the model's outputs (`form_of`). It has none if the call fails or would change a tensor; `later`,
    in a training, also if it depends on what is trained, such as a penalty of the weights. What else it changes, in
    itself and in the objects that are `used`, is put back, and so are the global generators.
    """
    if batch.soft is None or batch.soft.ndim <= batch.indices.ndim:
        return [None] * students
    try:
        draws, axis = generator(0, "probe"), batch.indices.ndim - 1
        rows, of_students = min(ROWS, batch.soft.shape[axis]), batch.soft.shape[:axis]
        drawn = (torch.randn(rows, *batch.soft.shape[axis + 1 :], generator=draws, device="cpu") for _ in range(2))
        logits, soft = (each.to(batch.soft).expand(*of_students, *each.shape) for each in drawn)
        classes = min(soft.shape[axis + 1 :])
        labels = torch.arange(rows, device=soft.device) % classes
        if batch.labels.is_floating_point():  # mixed rows have distributions
            labels = torch.nn.functional.one_hot(labels, classes).to(batch.labels)
        elif batch.labels.ndim > axis + 1:  # of pixels or words
            shape = (rows, *batch.labels.shape[axis + 1 :])
            labels = (torch.arange(math.prod(shape), device=soft.device) % classes).view(shape)
        made: list[Tensor] = [soft]

        def fixed(part: Tensor) -> Tensor:
            """The logits, other numbers in the place of features, ones and zeros in the place of anything else."""
            shape = (rows, *part.shape[axis + 1 :])
            if part.shape[axis : axis + 1] != (0,):  # of no example
                found = torch.ones(part.shape, dtype=part.dtype, device=soft.device)
            elif shape == soft.shape[axis:] and part.is_floating_point():
                found = logits.clone()
            elif part.is_floating_point():
                found = torch.randn(shape, generator=draws, device="cpu").to(soft.device, part.dtype)
                found = found.expand(*of_students, *shape)
            else:
                found = torch.zeros(*of_students, *shape, dtype=part.dtype, device=soft.device)
            made.append(found)
            return found

        inputs = tree_map(lambda part: part.narrow(axis, 0, rows), batch.inputs)  # it may be a dictionary of tensors
        labels = labels.expand(*batch.labels.shape[:axis], *labels.shape)
        part = Batch(inputs, labels, batch.indices.narrow(axis, 0, rows), soft)
        outputs = _mapped(fixed, form)
        with torch.enable_grad(), observing([objective, *used], [*made, labels]):
            loss = objective(outputs, part)
            values = [None] * students if later and loss.requires_grad else loss.view(students).tolist()
            return [value if value is not None and math.isfinite(value) else None for value in values]
    except Exception:  # an objective that keeps what it has seen of all rows, for example
        return [None] * students


def form_of(outputs: Any, batch: Batch) -> Any:
    """Return the form of a model's outputs: the tensors without numbers, with 0 in the place of the batch's rows.

    None if a tensor is of a kind that has no such form.
    """
    axis, rows = batch.indices.ndim - 1, batch.indices.shape[-1]

    def of_part(part: Tensor) -> Tensor:
        shape = [*part.shape]
        shape[axis : axis + 1] = [0 if size == rows else size for size in shape[axis : axis + 1]]
        return torch.empty(shape, dtype=part.dtype, device="meta")

    with suppress(Exception):
        return _mapped(of_part, outputs)
    return None


def _mapped(function: Callable[[Tensor], Any], outputs: Any) -> Any:
    """Return a model's outputs with another value in the place of each tensor; the outputs remain as they are."""
    made: dict[int, Any] = {}  # objects that refer to each other have one copy each

    def of_leaf(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return function(leaf)
        if id(leaf) in made:
            return made[id(leaf)]
        with suppress(Exception):  # of somebody else's object, which has no form then
            own = dict(getattr(leaf, "__dict__", {}))
            if is_dataclass(leaf):  # it may have slots
                own |= {field.name: getattr(leaf, field.name) for field in fields(leaf)}
            if not _tensors(own):
                return leaf
            made[id(leaf)] = found = copy.copy(leaf)  # a dataclass, for example
            for name, part in own.items():
                object.__setattr__(found, name, tree_map(of_leaf, part))
            return found
        return None

    return tree_map(of_leaf, outputs)


def mean_squares(outputs: Any, students: int) -> list[Any]:
    """Return the mean square of the numbers in a model's outputs, for each student; None if there are none."""
    leaves: list[Tensor] = []
    _mapped(leaves.append, outputs)
    total, count = (torch.zeros(students, dtype=torch.float64, device="cpu") for _ in range(2))
    try:
        for leaf in (each.detach() for each in leaves if each.is_floating_point()):
            values = leaf.cpu().double().reshape(students, -1)
            usual = values.abs() < MASKED  # NaN is not
            total += torch.where(usual, values, 0.0).square().sum(1)
            count += usual.sum(1)
    except RuntimeError:  # outputs without the students' axis
        return [None] * students
    return [float(one / other) if other else None for one, other in zip(total, count, strict=True)]


class _NoChange(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Lets no operation change a tensor that was there before."""

    def __init__(self, own: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.made: dict[int, Any] = {}  # the storages that were made here; kept, else another could get the same place
        self.may_change(own)

    def may_change(self, tensors: Iterable[Tensor]) -> None:
        self.made |= {each.untyped_storage()._cdata: each.untyped_storage() for each in tensors}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(zip((each.name for each in func._schema.arguments), args, strict=False)) | (kwargs or {})
        for argument in func._schema.arguments:
            changes = argument.alias_info is not None and argument.alias_info.is_write
            # The statistics of a batch norm, which older operators change without saying so.
            changes |= argument.name in ("running_mean", "running_var") and bool(given.get("training"))
            if changes and any(
                each.untyped_storage()._cdata not in self.made for each in _tensors(given.get(argument.name))
            ):
                raise RuntimeError(f"{func} would change a tensor")
        found = func(*args, **(kwargs or {}))
        before = {each.untyped_storage()._cdata for each in _tensors([args, kwargs])}
        # A view of a tensor that was there before is no new one.
        self.may_change(each for each in _tensors(found) if each.untyped_storage()._cdata not in before)
        return found


def _tensors(values: Any) -> list[Tensor]:
    return [each for each in tree_leaves(values) if isinstance(each, Tensor)]


@contextmanager
def observing(objects: Sequence[Any], own: Iterable[Tensor]) -> Iterator[None]:
    """Let a call of somebody else's code only observe: what it draws, and what it changes in `objects`, is put back.

    RuntimeError if it would change a tensor that is not its `own`. It warns of nothing: the training will.
    """
    parts = Parts([(f"part {number}", each) for number, each in enumerate(objects)], "code")
    try:
        with global_generators_put_back(), warnings.catch_warnings(), _NoChange(own):
            warnings.simplefilter("ignore")
            yield
    finally:
        parts.put_back()
