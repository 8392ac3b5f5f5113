"""Warns of probabilities in the place of logits: they would be softened twice."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from kdlib.checks import check_logits, readable

__all__ = [
    "ProbabilitiesAsLogits",
    "checked_logits",
    "warn_of_last_sigmoid",
    "warn_of_probabilities",
    "warn_of_sigmoid",
]

LEAST_ROWS = 4  # fewer, of two classes, are distributions by chance in some step of a long training
LEAST_LOGITS = 8
SAME_VALUES = ("Alias", "Clone", "Select", "Slice", "Squeeze", "ToCopy", "Unsqueeze", "View")  # functions of autograd


class ProbabilitiesAsLogits(UserWarning):
    """Rows that are distributions, or probabilities of a sigmoid, were given as logits."""


def checked_logits(logits: Any, whose: str) -> Tensor:
    """Return logits (N, K) as `check_logits` does; warn (ProbabilitiesAsLogits) if all rows are distributions."""
    found = check_logits(logits, whose)
    warn_of_probabilities(found, whose)
    return found


def warn_of_probabilities(logits: Tensor, whose: str) -> None:
    """Warn (ProbabilitiesAsLogits) if all rows (N, K) are distributions that are not certain, as no logits are."""
    values = readable(logits)
    if values is None or values.ndim < 2 or values.shape[-1] < 2:
        return
    values = values.flatten(0, -2)  # vmap's students are one more axis
    if len(values) < LEAST_ROWS:
        return
    if abs(values.sum(dtype=torch.float64).item() - len(values)) > 0.1 * len(values):
        return  # the usual case, by one operation
    sums, largest = values.sum(1, dtype=torch.float64), values.amax(1)
    # Rows of 0 and 1 are left out; the tolerance is for numbers in 16 bits.
    if bool((values.amin(1) >= 0).all() & ((sums - 1).abs() < 0.01).all() & (largest < 1).any()):
        warnings.warn(
            f"the logits of {whose} are distributions: every row is from 0 to 1 with the sum 1. Logits come before the "
            "softmax; take the model without its last softmax, or the logarithm of the probabilities",
            ProbabilitiesAsLogits,
            stacklevel=4,
        )


def warn_of_sigmoid(logits: Tensor, whose: str) -> None:
    """Warn (ProbabilitiesAsLogits) if logits (B,) or (B, L) are all from 0 to 1, on both sides of a half."""
    values = readable(logits)
    if values is None or values.numel() < LEAST_LOGITS:  # a few may be so by chance
        return
    low, high = (end.item() for end in values.aminmax())
    if 0 <= low < 0.5 < high <= 1 and high < 1 + low:  # no labels 0 and 1
        _tell_of_sigmoid(f"the logits of {whose} are all from 0 to 1, on both sides of a half, as probabilities are")


def warn_of_last_sigmoid(logits: Tensor, whose: str) -> None:
    """Warn (ProbabilitiesAsLogits) of logits with a gradient that are what a sigmoid returned.

    Their values do not tell: a network's first logits may all be near a half.
    """
    if torch.compiler.is_compiling():
        return
    while torch._C._functorch.is_functorch_wrapped_tensor(logits):
        logits = torch._C._functorch.get_unwrapped(logits)
    node = logits.grad_fn
    while node is not None and node.name().partition("Backward")[0] in SAME_VALUES:
        node = node.next_functions[0][0]
    if node is not None and node.name().startswith("SigmoidBackward"):
        _tell_of_sigmoid(f"the logits of {whose} come from a sigmoid, so they are probabilities")


def _tell_of_sigmoid(found: str) -> None:
    # The same text at each step, so that Python shows it once.
    warnings.warn(
        f"{found}. Logits come before the sigmoid; take the model without it, or torch.logit of its probabilities",
        ProbabilitiesAsLogits,
        stacklevel=4,
    )
