"""Intervals of a mean over seeds, of further runs, and over the examples of a finite test set.

KDError for numbers that are NaN, infinite or out of range: no bound follows from them.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from kdlib.checks import check_number
from kdlib.errors import KDError
from kdlib.metrics import f1_by_class

__all__ = [
    "Interval",
    "accuracy_interval",
    "f1_interval",
    "floats",
    "holm",
    "kendall_tau",
    "limits",
    "needed_seeds",
    "prediction_interval",
    "sample_std",
    "t_interval",
    "t_quantile",
    "whole_number",
]

MOST_SEEDS = 10_000  # above this number, "run more seeds" is no useful advice
Floats = NDArray[np.float64]


class Interval(NamedTuple):
    """Bounds of a mean: the two-sided 95% interval, the one-sided 95% bounds, the two-sided p value against zero."""

    low: float
    high: float
    one_sided_low: float
    one_sided_high: float
    p: float = math.nan


def limits(metric: str) -> tuple[float, float]:
    """Return the least and the largest value that a metric can have: shares lie in 0 to 1, losses and nats above 0."""
    if metric.endswith(("accuracy", "f1", "agreement")):
        return 0.0, 1.0
    if metric == "errors" or metric.endswith(("loss", "entropy", "kl")):
        return 0.0, math.inf
    return -math.inf, math.inf


# ---- what has no interval


def floats(values: ArrayLike) -> Floats:
    """Return numbers as float64; KDError for what is no array of numbers."""
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise KDError(f"expected an array of numbers, found {type(values).__name__}: {error}") from error


def whole_number(name: str, value: float, low: int, remedy: str) -> int:
    """Return a whole number of at least `low`; KDError, with the name, for another."""
    number = check_number(name, value, low, math.inf, remedy)
    if number != int(number):
        raise KDError(f"{name}: expected a whole number from {low}, found {number:g}; {remedy}")
    return int(number)


# ---- over seeds and runs


@lru_cache(maxsize=4096)
def t_quantile(probability: float, freedom: int) -> float:
    """Return a quantile of Student's t distribution."""
    return float(special.stdtrit(freedom, probability))


def t_interval(sample: ArrayLike) -> Interval:
    """Return Student's t interval of the mean of `sample` (n,), n >= 2, not all equal."""
    values = floats(sample)
    if values.ndim != 1 or not np.isfinite(values).all() or len(np.unique(values)) < 2:
        raise KDError(
            f"expected at least 2 finite numbers (n,) that are not all equal, found {values.tolist()}; run more seeds"
        )
    freedom = len(values) - 1
    mean, error = float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values))
    wide, narrow = t_quantile(0.975, freedom) * error, t_quantile(0.95, freedom) * error
    p = 2 * float(special.stdtr(freedom, -abs(mean) / error))
    return Interval(mean - wide, mean + wide, mean - narrow, mean + narrow, p)


def prediction_interval(
    mean: float, std: float, runs: int, further: int = 1, level: float = 0.95
) -> tuple[float, float]:
    """Return where the mean of `further` new runs lies with probability `level`.

    `mean` and `std` (n - 1) are those of `runs` >= 2 earlier runs.
    """
    check_number("mean", mean, -math.inf, math.inf, "give the mean of the earlier runs")
    check_number("std", std, 0, math.inf, "give the standard deviation of the earlier runs")
    check_number("level", level, 0, 1, "0.95 is usual")
    runs = whole_number("runs", runs, 2, "one run has no standard deviation")
    further = whole_number("further", further, 1, "1 is the next run")
    half = t_quantile((1 + level) / 2, runs - 1) * std * math.sqrt(1 / further + 1 / runs)
    return mean - half, mean + half


def sample_std(std: float, runs: int, kind: str) -> float:
    """Return the n - 1 standard deviation, from one of `kind` "population" or "sample"."""
    if kind not in ("population", "sample"):
        raise KDError(f'kind: expected "population" or "sample", found {kind!r}; say how the source divides')
    check_number("std", std, 0, math.inf, "give what the source states")
    runs = whole_number("runs", runs, 2, "one run has no standard deviation")
    return std * math.sqrt(runs / (runs - 1)) if kind == "population" else std


@lru_cache(maxsize=1)
def _unit_half_widths() -> Floats:
    n = np.arange(2, MOST_SEEDS + 1)
    widths: Floats = special.stdtrit(n - 1, 0.975) / np.sqrt(n)
    return widths


def needed_seeds(std: float, half_width: float) -> int | None:
    """Return the smallest n >= 5 with t(0.975, n - 1) std / sqrt(n) < half_width; None if 10,000 are too few."""
    check_number("std", std, 0, math.inf, "give that of the measured differences")
    check_number("half_width", half_width, 0, math.inf, "give half of the interval's width")
    enough = _unit_half_widths() * std < half_width
    first = int(enough.argmax())
    return max(5, first + 2) if enough[first] else None


def holm(p_values: ArrayLike) -> Floats:
    """Return Holm's step-down adjusted p values (..., m), in the order given, of each family of m (Holm 1979)."""
    p = floats(p_values)
    if not ((p >= 0) & (p <= 1)).all():
        raise KDError("expected p values from 0 to 1, found others or NaN; leave out tests that could not be made")
    order = np.argsort(p, axis=-1, kind="stable")
    ranked = np.take_along_axis(p, order, axis=-1) * np.arange(p.shape[-1], 0, -1)
    adjusted = np.empty_like(p)
    np.put_along_axis(adjusted, order, np.minimum(np.maximum.accumulate(ranked, axis=-1), 1), axis=-1)
    return adjusted


def kendall_tau(values: ArrayLike) -> float:
    """Return Kendall's tau-b of `values` (k,) with their position; 0 if all are equal."""
    row = floats(values)
    if row.ndim != 1 or np.isnan(row).any():
        raise KDError(f"expected numbers (k,), found shape {row.shape} or NaN; leave out what is missing")
    signs = np.sign(row[None, :] - row[:, None])[np.triu_indices(len(row), 1)]
    untied = np.count_nonzero(signs)
    return float(signs.sum() / math.sqrt(untied * len(signs))) if untied else 0.0


# ---- over the examples of a finite test set


def accuracy_interval(correct: int, total: int) -> Interval:
    """Return the Clopper-Pearson interval of an accuracy: `correct` of `total` examples, two counts."""
    total = whole_number("total", total, 1, "give the number of examples")
    correct = whole_number("correct", correct, 0, "give the number of right examples, not their share")
    if correct > total:
        raise KDError(f"correct: expected at most {total}, the total, found {correct}; give correct, then total")
    return Interval(*_clopper_pearson(correct, total))


def f1_interval(confusion: ArrayLike, resamples: int = 2000, seed: int = 0) -> Interval:
    """Return the percentile bootstrap of the macro F1 of a confusion matrix (K, K), one row a true class."""
    f1 = f1_by_class(confusion)  # it refuses what are no counts
    counts = np.asarray(confusion, dtype=np.int64)
    if f1.ndim != 1 or counts.sum() < 1:
        raise KDError(
            f"expected one confusion matrix (K, K) with an example, found shape {counts.shape}; give one model's"
        )
    resamples = whole_number("resamples", resamples, 1, "2000 is usual")
    draws = _multinomial(counts.ravel(), resamples, seed).reshape(-1, *counts.shape)
    return _percentiles(np.asarray(f1_by_class(draws)).mean(axis=1))


@lru_cache(maxsize=4096)  # thousands of runs on one test set have some hundred counts
def _clopper_pearson(successes: int, trials: int) -> tuple[float, float, float, float]:
    def quantile(a: int, b: int, probability: float) -> float:
        return float(special.betaincinv(a, b, probability))

    failures = trials - successes
    low, lower = (quantile(successes, failures + 1, q) if successes else 0.0 for q in (0.025, 0.05))
    high, upper = (quantile(successes + 1, failures, q) if failures else 1.0 for q in (0.975, 0.95))
    return low, high, lower, upper


def _multinomial(counts: NDArray[np.int64], resamples: int, seed: int) -> Floats:
    generator = np.random.default_rng(seed)
    return generator.multinomial(counts.sum(), counts / counts.sum(), size=resamples).astype(np.float64)


def _percentiles(scores: Floats) -> Interval:
    low, lower, upper, high = (float(bound) for bound in np.quantile(scores, [0.025, 0.05, 0.95, 0.975]))
    tail = min(int((scores <= 0).sum()), int((scores >= 0).sum())) + 1
    return Interval(low, high, lower, upper, min(1.0, 2 * tail / (len(scores) + 1)))
