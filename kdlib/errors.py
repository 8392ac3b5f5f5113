"""The exception that a user is meant to read, and the check of shapes that losses and metrics share."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class KDError(Exception):
    """A mistake or a missing thing that the user can mend: says what was expected, what was found and what to do."""


def same_shape(one: Tensor, other: Tensor) -> None:
    """Raise KDError unless both tensors have the same shape."""
    # Otherwise torch would broadcast (N,) and (N, 1) to all (N, N) pairs without a warning.
    if one.shape != other.shape:
        raise KDError(
            f"expected two tensors of one shape, found {tuple(one.shape)} and {tuple(other.shape)}; "
            "logits are (N, classes), labels and predicted classes (N,)"
        )
