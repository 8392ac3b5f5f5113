"""Student's t, prediction intervals, Holm, Kendall and the intervals of a finite test set, from their definitions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

NAN = math.nan
LEAST = 5  # seeds of a verdict or a band


def t(probability: float, freedom: int) -> float:
    """Return the quantile of Student's t."""
    return float(special.stdtrit(freedom, probability))


@dataclass(frozen=True)
class Sample:
    """Mean, standard deviation (n - 1), two-sided and one-sided 95% bounds, two-sided p value against 0."""

    n: int
    mean: float
    std: float
    low: float = NAN
    high: float = NAN
    one_sided_low: float = NAN
    one_sided_high: float = NAN
    p: float = 1.0


def constant(values: Sequence[float]) -> bool:
    """Return whether the values differ by no more than rounding."""
    return len(values) < 2 or max(values) - min(values) <= 1e-12 * max(1.0, *map(abs, values))


def sample(values: Sequence[float]) -> Sample:
    """Return what the rule needs of one number per seed. Equal numbers have no bounds, except zeros of enough seeds."""
    n, mean = len(values), float(np.mean(values)) if len(values) else NAN
    if constant(values):
        zero = n >= LEAST and max(map(abs, values)) <= 1e-12
        return Sample(n, mean, 0.0, *((0.0 if zero else NAN,) * 4))
    std = float(np.std(values, ddof=1))
    error = std / math.sqrt(n)
    two, one = t(0.975, n - 1) * error, t(0.95, n - 1) * error
    p = 2 * float(special.stdtr(n - 1, -abs(mean / error)))
    return Sample(n, mean, std, mean - two, mean + two, mean - one, mean + one, p)


def prediction(mean: float, std: float, runs: int, further: int, level: float) -> tuple[float, float]:
    """Return where the mean of `further` runs lies with probability `level`, after `runs` runs of this mean and std."""
    half = t((1 + level) / 2, runs - 1) * std * math.sqrt(1 / further + 1 / runs)
    return mean - half, mean + half


def holm(p_values: Sequence[float]) -> list[float]:
    """Return adjusted p values: the k-th smallest of m times m - k + 1, and at least every smaller one's."""
    ranked = sorted(p_values)
    steps = np.maximum.accumulate([(len(ranked) - k) * p for k, p in enumerate(ranked)])
    return [min(1.0, float(steps[ranked.index(p)])) for p in p_values]


def kendall(values: Sequence[float]) -> float:
    """Return Kendall's tau-b of values with their places, which have no ties."""
    pairs = list(combinations(values, 2))
    rising, falling = sum(b > a for a, b in pairs), sum(b < a for a, b in pairs)
    untied = rising + falling
    return (rising - falling) / math.sqrt(untied * len(pairs)) if untied else 0.0


def f1_of(confusion: NDArray[Any]) -> NDArray[np.float64]:
    """Return the macro F1 of confusion matrices (..., classes, classes); a class without examples counts 0."""
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    sums = confusion.sum(axis=-1) + confusion.sum(axis=-2)
    return np.asarray((2 * hits / np.maximum(sums, 1)).mean(axis=-1), dtype=np.float64)


@lru_cache(maxsize=4096)
def half_width(metric: str, confusion: tuple[tuple[int, ...], ...]) -> float:
    """Return half the 95% interval of one run that the finite test set causes; nan for metrics without one.

    Macro F1: percentiles of 2,000 test sets drawn from the confusion matrix by NumPy's default generator, seed 0, as
    documented, so that the last digits agree. Accuracy: Clopper-Pearson.
    """
    counts = np.array(confusion, dtype=np.int64)
    total, right = int(counts.sum()), int(counts.trace())
    if metric == "macro_f1":
        drawn = np.random.default_rng(0).multinomial(total, counts.ravel() / total, size=2000).astype(np.float64)
        low, high = np.quantile(f1_of(drawn.reshape(-1, *counts.shape)), [0.025, 0.975])
    elif metric == "accuracy":
        low = special.betaincinv(right, total - right + 1, 0.025) if right else 0.0
        high = special.betaincinv(right + 1, total - right, 0.975) if right < total else 1.0
    else:
        return NAN
    return (float(high) - float(low)) / 2
