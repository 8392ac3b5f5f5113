"""What losses, metrics and targets refuse: logits, labels and numbers that would give a wrong result without an error.

Shapes and types are always checked. Values are checked where they can be read without a wait: on a CPU, also within
`torch.vmap`; not on a CUDA device, and not while torch compiles.
"""

from __future__ import annotations

import math
import operator
from os.path import expanduser
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kdlib.errors import KDError

__all__ = [
    "check_classes",
    "check_generator",
    "check_kind",
    "check_labels",
    "check_logits",
    "check_number",
    "check_values",
    "computes_as",
    "in_float32",
    "may_be_infinite",
    "outside_zero_to_one",
    "path_of",
    "readable",
    "row_numbers",
    "tensor_of",
    "whole_number",
]

ONE_LOGIT = (
    "for one logit z of each example use binary_distillation, or make two: "
    "torch.nn.functional.pad(z.view(-1, 1), (1, 0))"
)
FLATTEN = (
    "flatten the places first, of logits and labels: logits.flatten(0, -2) for token sequences (N, L, K), "
    "logits.movedim(1, -1).flatten(0, -2) for maps (N, K, H, W), labels.flatten()"
)


def readable(values: Tensor) -> Tensor | None:
    """Return the tensor without vmap's wrappers, which may have more axes; None if its values are not to be read."""
    if torch.compiler.is_compiling():
        return None
    while torch._C._functorch.is_functorch_wrapped_tensor(values):
        axis = torch._C._functorch.maybe_get_bdim(values)
        values = torch._C._functorch.get_unwrapped(values)
        if axis > 0:  # the classes stay the last axis
            values = values.movedim(axis, 0)
    if type(values) not in (Tensor, torch.nn.Parameter):
        if type(values).__torch_dispatch__ is not Tensor.__torch_dispatch__:  # torch's own wrappers: without values
            return None
        values = values.as_subclass(Tensor)  # fastai's, MONAI's: a tensor with a name
    if not values.is_cpu:
        return None
    return values.detach() if values.requires_grad else values


def check_number(name: str, value: Any, low: float, high: float, remedy: str, above: bool = False) -> Any:
    """Return a number as a Python float, and a 0-d tensor in 32 or 64 bits: the square of 20 is no number of 8 bits.

    KDError for what is no number, and unless it is finite and from `low` to `high`; with `above`, also for `low`.
    """
    if isinstance(value, Tensor):
        value = _check_0d(name, value)
        found = readable(value)
        numbers = [] if found is None else found.flatten().tolist()
    else:
        value = _python_float(name, value, remedy)
        numbers = [value]
    for number in numbers:
        if not (low <= number <= high and math.isfinite(number)) or (above and number == low):
            bounds = f"above {low:g}" if above else f"from {low:g}"
            bounds += " and finite" if math.isinf(high) else f"{' and at most' if above else ' to'} {high:g}"
            raise KDError(f"{name}: expected a number {bounds}, found {number:g}; {remedy}")
    return value


def _check_0d(name: str, value: Tensor) -> Tensor:
    if value.ndim or value.is_complex():
        raise KDError(
            f"{name}: expected a number or a 0-d tensor, found a tensor of shape {tuple(value.shape)}, {value.dtype}; "
            "map over several with torch.vmap"
        )
    return value if value.is_floating_point() and value.dtype.itemsize >= 4 else value.float()


def _python_float(name: str, value: Any, remedy: str) -> float:
    number = value[()] if isinstance(value, np.ndarray) and value.ndim == 0 else value
    if not isinstance(number, int | float | np.integer | np.floating | np.bool_):
        raise KDError(f"{name}: expected a number, found {value!r}, {type(value).__name__}; {remedy}")
    try:
        return float(number)
    except OverflowError:  # a whole number of more than 308 digits
        return math.inf if number > 0 else -math.inf


def whole_number(name: str, value: Any, least: float = -math.inf) -> int:
    """Return a whole number, also one of NumPy, as a Python int; KDError for anything else and below `least`."""
    try:
        found = operator.index(value)
    except TypeError:
        found = None
    if found is None or found < least:
        bound = "" if least == -math.inf else f" of {least:g} or more"
        raise KDError(f"{name}: expected a whole number{bound}, found {value!r}, {type(value).__name__}")
    return found


def check_kind(name: str, value: Any, kinds: type | tuple[type, ...], remedy: str) -> None:
    """Refuse (KDError) a value of another class: often arguments in another order."""
    if not isinstance(value, kinds):
        names = [kind.__name__ for kind in (kinds if isinstance(kinds, tuple) else (kinds,))]
        raise KDError(f"{name}: expected {' or '.join(names)}, found {type(value).__name__}; {remedy}")


def check_generator(generator: Any) -> None:
    """Refuse (KDError) what is no generator of torch: with a None, torch would draw what cannot be repeated."""
    check_kind("generator", generator, torch.Generator, "write kdlib.seeds.generator(seed, 'a name')")


def path_of(name: str, value: Any) -> Path:
    """Return a path. A text that begins with ~ is in a home folder: no shell expands `--store=~/runs`.

    KDError for an empty text, which would mean the current folder, and for a path that still begins with ~.
    """
    if isinstance(value, str) and (not value.strip() or "\0" in value):
        found = repr(value[:80]) if value.strip() else "an empty text"
        raise KDError(f"{name}: expected a path, found {found}; write '.' for the current folder")
    path = Path(expanduser(value) if isinstance(value, str) else value)
    if str(path).startswith("~"):
        raise KDError(f"{name}: expected a path without ~, found {str(path)[:80]!r}; write the whole path, from / on")
    return path


def tensor_of(values: Any, what: str) -> Tensor:
    """Return values (a tensor, a NumPy array or nested lists) as a tensor; KDError for what is none of them."""
    if isinstance(values, Tensor):
        return values
    try:
        if hasattr(values, "__array__") and not isinstance(values, np.ndarray):
            values = np.array(values)  # a table of pandas, for example, whose own array cannot be written to
        return torch.as_tensor(values, device="cpu")  # whatever torch's default device is
    except (TypeError, ValueError, RuntimeError, LookupError) as error:
        raise KDError(f"expected {what}, a tensor or numbers, found {type(values).__name__} ({error})") from error


def computes_as(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Return whether a layer does what torch's class `kind` does with its weights, and nothing else.

    Not so: a subclass with a forward of its own (weights of low rank, standardised weights), a forward that was
    replaced, and hooks (torch's pruning, the older norms of weights).
    """
    own = [name for name in ("forward", "_conv_forward") if hasattr(kind, name)]
    plain = all(name not in vars(layer) and getattr(type(layer), name) is getattr(kind, name) for name in own)
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    return isinstance(layer, kind) and plain and not any(hooks)


def row_numbers(rows: Any, count: int = 0) -> Tensor:
    """Return row numbers as int64, and a mask of bool as it is: torch would take numbers of uint8 for a mask.

    `count` is the number of rows, if it is known. KDError for fractions, for a single number, and for a mask of whole
    numbers: as row numbers, they would be the first two rows again and again.
    """
    found = tensor_of(rows, "row numbers or a mask")
    if not found.ndim:
        raise KDError(
            f"expected row numbers (n,) or a mask, found one number, {found}; for n rows, use torch.arange(n)"
        )
    if found.is_floating_point() or found.is_complex():
        kind = f"{found.dtype} of shape {tuple(found.shape)}"
        raise KDError(f"expected whole row numbers (n,) or a mask, found {kind}; use rows.long()")
    as_long_as_mask = found.dtype == torch.uint8 or len(found) == count  # uint8: of an older NumPy or torch
    if found.dtype != torch.bool and as_long_as_mask and len(found) > 2 and bool(((found == 0) | (found == 1)).all()):
        raise KDError(
            f"expected a mask of bool or row numbers of int64, found {found.dtype} of 0 and 1 alone; use rows.bool() "
            "for a mask, torch.tensor(rows).bool() for a list"
        )
    return found if found.dtype == torch.bool else found.long()


def outside_zero_to_one(values: Tensor) -> bool:
    """Return whether a number is not from 0 to 1, for example NaN; False where values are not read."""
    found = readable(values)
    return found is not None and not bool(((found >= 0) & (found <= 1)).all())


def check_logits(logits: Any, whose: str = "the model") -> Tensor:
    """Return logits (N, K); those in 16 bits as float32, in which the logarithms of softmax are exact enough.

    KDError for another shape, fewer than two classes, no row, or a type without fractions.
    """
    if logits is None and whose == "the teacher":
        raise KDError(
            "expected logits of the teacher, found none: the batches have no soft targets; give them with "
            "Batches(..., soft=...) or Batch(..., soft=...)"
        )
    if not isinstance(logits, Tensor):
        raise KDError(
            f"expected logits of {whose}, a tensor (N, K), found {type(logits).__name__}; pick one of the outputs, for "
            "example outputs[0] or outputs['logits'], and make a tensor of an array"
        )
    if logits.ndim != 2 or logits.shape[1] < 2 or len(logits) == 0:
        single = logits.ndim < 2 or logits.shape[-1] == 1
        remedy = ONE_LOGIT if single else FLATTEN if logits.ndim > 2 else "give at least one row and two classes"
        raise KDError(
            f"expected logits of {whose} of shape (N, K), N rows of K >= 2 classes, found "
            f"{tuple(logits.shape)}; {remedy}"
        )
    return in_float32(logits)


def in_float32(logits: Tensor) -> Tensor:
    """Return logits in 16 bits as float32, others as they are; KDError for what is no tensor of floating point."""
    if not isinstance(logits, Tensor):
        remedy = "give them with Batches(..., soft=...)" if logits is None else "pick one of the model's outputs"
        raise KDError(f"expected logits, a tensor, found {type(logits).__name__}; {remedy}")
    if not logits.is_floating_point():
        raise KDError(f"expected logits of floating point, found {logits.dtype}; use logits.float()")
    return logits.float() if logits.dtype.itemsize < 4 else logits


def check_values(logits: Tensor, whose: str = "the teacher", minus_infinity: bool = True) -> bool:
    """Refuse logits (..., K) with NaN or infinity (KDError); -inf, a class that is excluded, may be allowed.

    Return whether there may be such a class: True also where values are not read.
    """
    if not may_be_infinite(logits):
        return False
    values = readable(logits)
    if values is None:
        return True
    wrong = values.isnan() | (values == math.inf)
    wrong |= (values == -math.inf) & ((values == -math.inf).all(-1, keepdim=True) | (not minus_infinity))
    if bool(wrong.any()):
        allowed = "finite, or -inf for classes that are excluded" if minus_infinity else "finite"
        raise KDError(
            f"expected logits of {whose} that are {allowed}, found {values[wrong][0].item()} {_place(wrong)}; correct "
            f"what made them: the logarithm of a probability 0, for example, or a network that diverged"
        )
    return True


def may_be_infinite(logits: Tensor) -> bool:
    """Return whether a number may be infinite or NaN: True also where values are not read."""
    values = readable(logits)
    # The usual case by one operation. A sum of large finite numbers may overflow.
    return values is None or not math.isfinite(values.sum().item())


def check_labels(labels: Any, rows: int, classes: int) -> Tensor:
    """Return labels (N,) as int64, or distributions (N, K) as they are.

    KDError for another shape or type, for a label outside the classes, and for a row that is no distribution.
    """
    if not isinstance(labels, Tensor):
        raise KDError(f"expected labels, a tensor, found {type(labels).__name__}; use torch.as_tensor(labels)")
    kind = (rows, classes) if labels.is_floating_point() else (rows,)
    if labels.shape != kind or labels.is_complex():
        raise KDError(
            f"expected labels for logits ({rows}, {classes}): integers ({rows},), or distributions ({rows}, {classes}) "
            f"of floating point, found {labels.dtype} of shape {tuple(labels.shape)}; use "
            "labels.argmax(1) for rows of 0 and 1, labels.squeeze(1) for (N, 1), labels.long() for whole numbers"
        )
    if labels.is_floating_point():
        _check_distributions(labels)
        return labels
    check_classes(labels, classes)
    return labels.long()


def check_classes(labels: Tensor, classes: int, what: str = "labels") -> None:
    """Refuse integers that are not from 0 to `classes` - 1, with the row of the first one (KDError)."""
    values = readable(labels)
    if values is None or values.numel() == 0:
        return
    low, high = values.to(torch.int64).aminmax()
    if low.item() < 0 or high.item() >= classes:
        wrong = (values < 0) | (values >= classes)
        raise KDError(
            f"expected {what} from 0 to {classes - 1}, of {classes} classes, found {values[wrong][0].item()} "
            f"{_place(wrong)}, and {int(wrong.sum())} outside in all; leave these rows out, or number from 0"
        )


def _check_distributions(rows: Tensor) -> None:
    """Refuse rows (N, K) that are not distributions: numbers from 0 to 1 with the sum 1 (KDError)."""
    values = readable(rows)
    if values is not None:  # the tolerance is for labels in 16 bits
        sums = values.sum(-1, dtype=torch.float64)
        wrong = ~((values.amin(-1) >= 0) & ((sums - 1).abs() <= 0.01))  # also NaN
        if bool(wrong.any()):
            raise KDError(
                f"expected labels that are distributions, from 0 to 1 with sum 1, found the sum "
                f"{sums[wrong][0].item():g} or a number below 0 {_place(wrong)}; use the softmax of logits, and "
                "binary_distillation for labels that do not exclude each other"
            )


def _place(wrong: Tensor) -> str:
    """Where the first wrong value is: its row, or its indices."""
    place = wrong.nonzero()[0].tolist()
    return f"in row {place[0]}" if wrong.ndim == 1 else f"at {place}, counted from row 0"
