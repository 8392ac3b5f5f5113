"""Warns of probabilities in the place of logits: they would be softened twice."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from kdlib.checks import readable

__all__ = ["ProbabilitiesAsLogits", "warn_of_probabilities", "warn_of_sigmoid"]


class ProbabilitiesAsLogits(UserWarning):
    """Rows that are distributions, or probabilities of a sigmoid, were given as logits."""


def warn_of_probabilities(logits: Tensor, whose: str) -> None:
    """Warn (ProbabilitiesAsLogits) if all rows (N, K) are distributions that are not certain, as no logits are."""
    values = readable(logits)
    if values is None or values.ndim < 2 or values.shape[-1] < 2 or not values.numel():
        return
    values = values.flatten(0, -2)  # vmap's students are one more axis
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
    if values is None or values.numel() < 8:  # a few logits may be so by chance
        return
    low, high = (end.item() for end in values.aminmax())
    if 0 <= low < 0.5 < high <= 1 and high < 1 + low:  # no labels 0 and 1
        warnings.warn(
            f"the {values.numel()} logits of {whose} are from {low:.2g} to {high:.2g}, as probabilities are. Logits "
            "come before the sigmoid; take the model without it, or torch.logit of its probabilities",
            ProbabilitiesAsLogits,
            stacklevel=4,
        )
