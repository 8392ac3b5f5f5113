"""Verdicts: an outcome with its numbers, and the sample of differences that every kind of claim is judged by.

Seeds are the unit of every test: a difference is one number per seed, between two arms that share that seed. If all
seeds give the same number (s = 0), there is no t interval: zero in every seed is "no difference", any other number
leaves the claim undecided.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike

from kdlib.errors import KDError
from kdlib.judge.firmness import Basis
from kdlib.judge.intervals import Floats, Interval, floats, needed_seeds, t_interval
from kdlib.judge.rules import Outcome, Rule, all_equal

__all__ = [
    "MIN_SEEDS",
    "Outcome",
    "Sample",
    "Verdict",
    "all_equal",
    "finite",
    "headline",
    "interim",
    "sample_of",
]

MIN_SEEDS = 5
_NO_INTERVAL = Interval(math.nan, math.nan, math.nan, math.nan)
_ZERO = Interval(0.0, 0.0, 0.0, 0.0, 1.0)


@dataclass(frozen=True)
class Verdict:
    """A claim's outcome and its numbers; `low` and `high` bound the mean at 95% (nan: unknown)."""

    outcome: Outcome
    mean: float
    low: float
    high: float
    n: int
    needed_n: int | None  # seeds that would decide if s stayed as it is; for claims without a size, also the mean
    detail: str
    analogue: bool = False  # judged on other data, or with another teacher, than the source's
    declared: int | None = None  # seeds, of an interim verdict
    basis: Basis | None = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        """The outcome as tables show it."""
        if self.outcome is Outcome.INTERIM:
            return f"interim, {self.n} of {self.declared} seeds, no verdict"
        return str(self.outcome)

    @property
    def firmness(self) -> float:
        """The share of 10,000 redraws of the seeds with the same outcome.

        It is nan for exact claims, for s = 0, and without a verdict.
        """
        return self.basis.firmness() if self.basis else math.nan

    @property
    def margin(self) -> tuple[float, Outcome | None]:
        """How far the mean is from the nearest one with another outcome, in the claim's unit; and that outcome.

        (nan, None) where there is no firmness.
        """
        return self.basis.margin() if self.basis else (math.nan, None)


def headline(verdicts: Iterable[Verdict]) -> Verdict:
    """Return the worst of the verdicts, the first of equals; ValueError if there is none."""
    order = list(Outcome)
    return max(verdicts, key=lambda verdict: order.index(verdict.outcome))


def interim(verdict: Verdict, declared: int) -> Verdict:
    """Return what is known before all declared seeds are recorded: the numbers, and no verdict."""
    measured = f"measured {verdict.mean:+.4g} on {verdict.n}" if verdict.n else "nothing measured yet"
    detail = f"No verdict before all {declared} declared seeds are recorded: {measured}."
    return replace(verdict, outcome=Outcome.INTERIM, needed_n=None, detail=detail, declared=declared, basis=None)


# ---- what every kind starts from


@dataclass(frozen=True)
class Sample:
    """Differences (n,), their mean and standard deviation (n - 1), and the interval of the mean."""

    values: Floats
    mean: float
    std: float
    interval: Interval

    @property
    def n(self) -> int:
        """The number of seeds."""
        return len(self.values)

    def judged(self, rule: Rule, reasons: Mapping[Outcome, str], half_width: float = 0.0) -> Verdict:
        """Return the rule's verdict with its reason; an interval of mean -+ `half_width` would decide."""
        basis = Basis(self.values[:, None], rule)
        outcome = basis.outcome()
        verdict = self.verdict(outcome, reasons[outcome], half_width)
        return replace(verdict, basis=basis) if self.std > 0 else verdict

    def verdict(self, outcome: Outcome, reason: str, half_width: float = 0.0) -> Verdict:
        """Return a verdict; an interval of mean -+ `half_width` would decide."""
        low, high = self.interval.low, self.interval.high
        interval = "" if math.isnan(low) else f" (95% interval {low:+.4g} to {high:+.4g})"
        seeds = f"on {self.n} seed{'' if self.n == 1 else 's'}"
        measured = f"measured {self.mean:+.4g}{interval} {seeds}" if self.n else "nothing measured yet"
        needed = needed_seeds(self.std, half_width) if outcome is Outcome.INCONCLUSIVE and self.std > 0 else None
        return Verdict(outcome, self.mean, low, high, self.n, needed, f"{reason}: {measured}.")

    def undecidable(self) -> Verdict | None:
        """Return the verdict on a sample that no rule can judge; None if one can."""
        if self.n < MIN_SEEDS:
            return self.verdict(Outcome.TOO_FEW_SEEDS, f"A verdict needs {MIN_SEEDS} seeds")
        if math.isnan(self.interval.low):
            reason = "All seeds gave the same difference, which says nothing of other seeds"
            return self.verdict(Outcome.INCONCLUSIVE, reason)
        return None

    @property
    def identical(self) -> bool:
        """Whether the difference is zero in every seed."""
        return self.std == 0 and self.interval[:4] == (0, 0, 0, 0)


def finite(sample: ArrayLike) -> Floats:
    """Return the numbers as float64; KDError for nan, infinity and what is no array of numbers."""
    values = floats(sample)
    if not np.isfinite(values).all():
        raise KDError("expected finite numbers, found nan or infinity; leave out or measure what is missing")
    return values


def sample_of(differences: ArrayLike) -> Sample:
    """Return the sample of one difference for each seed (n,); KDError for another shape and numbers not finite."""
    values = finite(differences)
    if values.ndim != 1:
        raise KDError(f"expected one difference for each seed (n,), found shape {values.shape}; give one row or column")
    n, mean = len(values), float(values.mean()) if len(values) else math.nan
    if not all_equal(values):
        return Sample(values, mean, float(values.std(ddof=1)), t_interval(values))
    zero = n >= MIN_SEEDS and bool(np.abs(values).max() <= 1e-12)  # 1e-12: rounding
    return Sample(values, mean, 0.0, _ZERO if zero else _NO_INTERVAL)
