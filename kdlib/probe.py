"""The probe of an objective: its loss for one fixed set of outputs, which leaves all that it uses as it is.

An objective may have a state: an average of the weights that it updates, a queue, a counter, a batch norm. A call that
only observes must not move it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from kdlib.batches import Batch
from kdlib.parts import Parts
from kdlib.seeds import generator, global_generators_put_back

__all__ = ["probed"]

ROWS = 4


def probed(
    objective: Callable[[Any, Batch], Tensor], batch: Batch, students: int, used: Sequence[Any], later: bool = False
) -> list[Any]:
    """Return the objective of fixed outputs, labels and soft targets, for each student; None if it has no such value.

    It has none if it needs more than these, or if the call would change a tensor; `later`, in a training, also if it
    depends on what is trained, such as a penalty of the weights. What else it changes, in itself and in the objects
    that are `used`, is put back, and so are the global generators.
    """
    assert batch.soft is not None
    draws, rows, axis = generator(0, "probe"), min(ROWS, batch.soft.shape[-2]), batch.indices.ndim - 1
    shape = (*batch.soft.shape[:-2], rows, batch.soft.shape[-1])
    drawn = (torch.randn(shape[-2:], generator=draws, device="cpu") for _ in range(2))
    outputs, soft = (each.to(batch.soft).expand(shape) for each in drawn)
    labels = torch.arange(rows, device=batch.soft.device) % shape[-1]
    if batch.labels.is_floating_point():  # mixed rows have distributions
        labels = torch.nn.functional.one_hot(labels, shape[-1]).to(batch.labels)
    try:
        inputs = tree_map(lambda part: part.narrow(axis, 0, rows), batch.inputs)  # it may be a dictionary of tensors
        labels = labels.expand(*batch.labels.shape[:axis], *labels.shape)
        part = Batch(inputs, labels, batch.indices.narrow(axis, 0, rows), soft)
        with (
            torch.enable_grad(),
            global_generators_put_back(),
            _put_back(objective, used),
            _NoChange([outputs, soft, labels]),
        ):
            loss = objective(outputs, part)
            values = [None] * students if later and loss.requires_grad else loss.view(students).tolist()
            return [value if value is not None and math.isfinite(value) else None for value in values]
    except Exception:  # an objective of features, for example, which needs more outputs than logits
        return [None] * students


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
def _put_back(objective: Any, used: Sequence[Any]) -> Iterator[None]:
    parts = Parts(
        [("the objective", objective), *((f"part {number}", each) for number, each in enumerate(used))], "code"
    )
    try:
        yield
    finally:
        parts.put_back()
