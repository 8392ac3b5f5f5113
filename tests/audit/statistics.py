"""Student's t, prediction intervals, Holm, Kendall, Clopper-Pearson and the bootstrap of F1, from their definitions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np
from scipy import special

NAN = math.nan
LEAST = 5  # seeds of a verdict or a band
MOST = 10_000  # seeds beyond which no number of further seeds is named


def t(probability: float, freedom: int) -> float:
    """The quantile of Student's t."""
    return float(special.stdtrit(freedom, probability))


@dataclass(frozen=True)
class Sample:
    """Mean, standard deviation (n - 1), two-sided 95% bounds, one-sided 95% bounds, two-sided p value against 0."""

    n: int
    mean: float
    std: float
    low: float = NAN
    high: float = NAN
    lower: float = NAN
    upper: float = NAN
    p: float = 1.0


def constant(values: Sequence[float]) -> bool:
    """Whether the values differ by no more than rounding (s = 0)."""
    return len(values) < 2 or max(values) - min(values) <= 1e-12 * max(1.0, *map(abs, values))


def sample(values: Sequence[float]) -> Sample:
    """What the rule needs to know of one number a seed; without bounds where s = 0, but for zero in every seed."""
    n = len(values)
    if constant(values):
        bounds = (0.0,) * 4 if n >= LEAST and max(map(abs, values)) <= 1e-12 else (NAN,) * 4
        return Sample(n, float(np.mean(values)) if n else NAN, 0.0, *bounds)
    mean, std = float(np.mean(values)), float(np.std(values, ddof=1))
    error = std / math.sqrt(n)
    two, one = t(0.975, n - 1) * error, t(0.95, n - 1) * error
    p = 2 * float(special.stdtr(n - 1, -abs(mean / error)))
    return Sample(n, mean, std, mean - two, mean + two, mean - one, mean + one, p)


def prediction(mean: float, std: float, runs: int, further: int, level: float) -> tuple[float, float]:
    """Where the mean of `further` runs lies with probability `level`, after `runs` of this mean and std."""
    half = t((1 + level) / 2, runs - 1) * std * math.sqrt(1 / further + 1 / runs)
    return mean - half, mean + half


def deciding(std: float, half_width: float) -> int | None:
    """The smallest n >= 5 whose t interval is narrower than -+ half_width; None beyond 10,000."""
    n = np.arange(LEAST, MOST + 1)
    narrow = np.flatnonzero(special.stdtrit(n - 1, 0.975) * std / np.sqrt(n) < half_width)
    return int(n[narrow[0]]) if len(narrow) else None


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p values: the k-th smallest of m times m - k + 1, never below a smaller one's."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def kendall(values: Sequence[float]) -> float:
    """Kendall's tau-b of values with their places, which have no ties."""
    pairs = list(combinations(values, 2))
    rising, falling = sum(b > a for a, b in pairs), sum(b < a for a, b in pairs)
    untied = rising + falling
    return (rising - falling) / math.sqrt(untied * len(pairs)) if untied else 0.0


# ---- the finite test set


def f1_of(confusion: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Macro F1 of confusion matrices (..., classes, classes); a class nowhere to be seen counts 0."""
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    scores: np.ndarray[tuple[int, ...], np.dtype[np.float64]] = (
        2 * hits / np.maximum(confusion.sum(axis=-1) + confusion.sum(axis=-2), 1)).mean(axis=-1)
    return scores


@lru_cache(maxsize=4096)
def half_width(metric: str, confusion: tuple[tuple[int, ...], ...]) -> float:
    """Half the 95% interval that the finite test set leaves to one run.

    Macro F1: percentiles of 2,000 test sets drawn from the confusion matrix by NumPy's default generator, seed 0: the
    documented recipe, so that it can be compared to the last digit. Accuracy: Clopper-Pearson. Others: nan.
    """
    counts = np.array(confusion, dtype=np.int64)
    total, right = int(counts.sum()), int(counts.trace())
    if metric == "macro_f1":
        shares = counts.ravel() / total
        drawn = np.random.default_rng(0).multinomial(total, shares, size=2000).astype(np.float64)
        low, high = np.quantile(f1_of(drawn.reshape(-1, *counts.shape)), [0.025, 0.975])
    elif metric == "accuracy":
        low = special.betaincinv(right, total - right + 1, 0.025) if right else 0.0
        high = special.betaincinv(right + 1, total - right, 0.975) if right < total else 1.0
    else:
        return NAN
    return (float(high) - float(low)) / 2
