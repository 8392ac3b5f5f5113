"""Labels that are numbers of classes, for all that takes them by class."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from kdlib.checks import tensor_of
from kdlib.errors import KDError

__all__ = ["class_numbers", "whole_labels"]


def whole_labels(values: Any, what: str = "labels") -> Tensor:
    """Return whole numbers of any shape and type as int64; KDError for fractions, NaN and complex numbers."""
    found = tensor_of(values, what)
    if found.is_complex() or (found.is_floating_point() and not bool((found == found.round()).all())):  # also NaN
        raise KDError(f"expected {what} that are whole numbers, found others; use the number of each row's class")
    return found.long()


def class_numbers(labels: Any) -> Tensor:
    """Return labels (N,) as int64, also those of bool and of any number of bits.

    KDError for another shape, for a type with fractions, and for a number below 0.
    """
    found = tensor_of(labels, "labels (N,)")
    if found.ndim != 1 or found.is_floating_point() or found.is_complex():
        raise KDError(
            f"expected labels (N,), whole numbers of classes, found {found.dtype} of shape {tuple(found.shape)}; use "
            "labels.argmax(1) for rows of 0 and 1, labels.long() for whole numbers"
        )
    found = found.long()
    if bool((found < 0).any()):
        row = int((found < 0).nonzero()[0])
        raise KDError(
            f"expected labels from 0, found {int(found[row])} in row {row}; leave out the rows without a class first, "
            "here and in the inputs"
        )
    return found
