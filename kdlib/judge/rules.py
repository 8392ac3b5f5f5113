"""The rules that turn differences into outcomes, for many samples at once: a verdict needs one, its firmness thousands.

A sample has one difference for each seed; a claim about several rivals has one column for each. `Moments` holds what a
rule needs of samples. `results/README.md` says the rules in words.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from kdlib.judge.intervals import Floats, holm, t_quantile

__all__ = ["Best", "Bounded", "Codes", "Directed", "Moments", "Outcome", "Rule", "Sized", "all_equal", "outcome_of"]

Codes = NDArray[np.int64]  # places of outcomes in `list(Outcome)`


class Outcome(StrEnum):
    """The possible outcomes of a claim, from best to worst."""

    REPLICATED = "replicated"
    LARGER = "effect replicated, magnitude differs (larger)"
    SMALLER = "effect replicated, magnitude differs (smaller)"
    MUCH_SMALLER = "much smaller than reported"
    INCONCLUSIVE = "inconclusive"
    TOO_FEW_SEEDS = "inconclusive (too few seeds)"
    INTERIM = "interim, no verdict"
    NOT_REPLICATED = "not replicated"
    NO_DIFFERENCE = "no difference"
    CONTRADICTED = "contradicted"
    NOT_REPLICATED_REVERSED = "not replicated (reversed)"
    REVERSED = "reversed"


_OUTCOMES = list(Outcome)


def outcome_of(code: int) -> Outcome:
    """Return the outcome at a place in `list(Outcome)`."""
    return _OUTCOMES[code]


def all_equal(sample: ArrayLike) -> bool:
    """Return whether s = 0: the numbers differ by rounding at most, as 0.81 - 0.78 and 0.82 - 0.79 do."""
    values = np.asarray(sample, dtype=np.float64)
    return len(values) < 2 or bool(_constant(values, axis=0))


def _constant(values: Floats, axis: int) -> NDArray[np.bool_]:
    constant: NDArray[np.bool_] = np.ptp(values, axis=axis) <= 1e-12 * np.maximum(1.0, np.abs(values).max(axis=axis))
    return constant


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation (samples, rivals) of samples of n differences."""

    mean: Floats
    std: Floats
    n: int

    @classmethod
    def of(cls, samples: Floats) -> Moments:
        """Return the moments of `samples` (samples, n, rivals), n >= 2; numbers that are all equal have s = 0."""
        std = np.where(_constant(samples, axis=1), 0.0, samples.std(axis=1, ddof=1))
        return cls(samples.mean(axis=1), std, samples.shape[1])

    def shifted(self, shifts: Floats) -> Moments:
        """Return one sample's moments with all its means moved by each of `shifts` (m,)."""
        return Moments(self.mean + shifts[:, None], np.repeat(self.std, len(shifts), axis=0), self.n)

    def half_width(self, probability: float) -> Floats:
        """Return the distance (samples, rivals) from the mean to the bound with this t quantile."""
        return t_quantile(probability, self.n - 1) * (self.std / math.sqrt(self.n))


class Rule(Protocol):
    """What turns samples into outcomes."""

    def outcomes(self, of: Moments) -> Codes:
        """Return the outcome (samples,) of each sample, as its place in `list(Outcome)`."""

    def limits(self, of: Moments) -> Floats:
        """Return how far one sample's means would have to move until a bound meets a limit, for each pair of both."""


def _shifts(limits: Sequence[float], of: Moments) -> Floats:
    shifts: Floats = np.array(limits) - of.mean[0, 0]
    return shifts


def _select(*cases: tuple[NDArray[np.bool_], Outcome], otherwise: Outcome) -> Codes:
    codes = [_OUTCOMES.index(outcome) for _, outcome in cases]
    return np.select([case for case, _ in cases], codes, _OUTCOMES.index(otherwise))


@dataclass(frozen=True)
class Sized:
    """An effect of a reported size, with the margin that its size may differ by ."""

    reported: float
    margin: float
    rounding: float
    std: float | None = None  # the source's, over its runs
    runs: int | None = None

    def outcomes(self, of: Moments) -> Codes:
        """Return the outcome of each sample."""
        mean, wide = of.mean[:, 0], of.half_width(0.975)[:, 0]
        there, reversed_ = mean - wide > 0, mean + wide < 0
        below = mean + of.half_width(0.95)[:, 0] < self.reported - self.margin
        return _select(
            (there & (np.abs(mean - self.reported) <= self.room(of)), Outcome.REPLICATED),
            (there & below, Outcome.MUCH_SMALLER),
            (there & (mean > self.reported), Outcome.LARGER),
            (there, Outcome.SMALLER),
            (below & reversed_, Outcome.NOT_REPLICATED_REVERSED),
            (below, Outcome.NOT_REPLICATED),
            otherwise=Outcome.INCONCLUSIVE,
        )

    def limits(self, of: Moments) -> Floats:
        """Return the shifts to the limits."""
        wide, room = float(of.half_width(0.975)[0, 0]), float(self.room(of)[0])
        below = self.reported - self.margin - float(of.half_width(0.95)[0, 0])
        sizes = (self.reported - room, self.reported, self.reported + room)
        return _shifts([wide, -wide, below, *sizes], of)

    def room(self, of: Moments) -> Floats:
        """Return how far a mean (samples,) may be from the reported size.

        That is the margin, or less if both are known more exactly.
        """
        s, freedom = of.std[:, 0], of.n - 1
        if self.std is not None and self.runs is not None and self.runs >= 2:
            theirs, freedom = self.std**2 / self.runs, of.n + self.runs - 2
            error = np.sqrt(theirs + s**2 / of.n)
        else:
            error = np.sqrt(s**2 + s**2 / of.n)
        prediction = t_quantile(0.975, freedom) * error + self.rounding
        room: Floats = np.minimum(self.margin, np.maximum(prediction, self.margin / 4))
        return room


@dataclass(frozen=True)
class Directed:
    """A difference above zero, of no stated size."""

    def outcomes(self, of: Moments) -> Codes:
        """Return the outcome of each sample."""
        mean, wide = of.mean[:, 0], of.half_width(0.975)[:, 0]
        above, below = mean - wide > 0, mean + wide < 0
        return _select((above, Outcome.REPLICATED), (below, Outcome.REVERSED), otherwise=Outcome.INCONCLUSIVE)

    def limits(self, of: Moments) -> Floats:
        """Return the shifts to the limits."""
        wide = float(of.half_width(0.975)[0, 0])
        return _shifts([wide, -wide], of)


@dataclass(frozen=True)
class Bounded:
    """A difference between a floor and a ceiling, by one-sided 95% bounds."""

    floor: float
    ceiling: float

    def outcomes(self, of: Moments) -> Codes:
        """Return the outcome of each sample."""
        mean, narrow = of.mean[:, 0], of.half_width(0.95)[:, 0]
        low, high = mean - narrow, mean + narrow
        inside, outside = (low > self.floor) & (high < self.ceiling), (high < self.floor) | (low > self.ceiling)
        return _select((inside, Outcome.REPLICATED), (outside, Outcome.NOT_REPLICATED), otherwise=Outcome.INCONCLUSIVE)

    def limits(self, of: Moments) -> Floats:
        """Return the shifts to the limits."""
        narrow = float(of.half_width(0.95)[0, 0])
        return _shifts([end + way * narrow for end in (self.floor, self.ceiling) for way in (-1, 1)], of)


@dataclass(frozen=True)
class Best:
    """Better than each rival, by paired t tests whose p values are Holm-adjusted (Holm 1979)."""

    def outcomes(self, of: Moments) -> Codes:
        """Return the outcome of each sample."""
        sure = self.sure(of)
        contradicted, best = np.any(sure & (of.mean < 0), axis=1), np.all(sure, axis=1)
        return _select((contradicted, Outcome.CONTRADICTED), (best, Outcome.REPLICATED), otherwise=Outcome.INCONCLUSIVE)

    def sure(self, of: Moments) -> NDArray[np.bool_]:
        """Return which rivals (samples, rivals) differ from the arm. A rival with s = 0 has no p value: undecided."""
        error = np.where(of.std > 0, of.std, 1.0) / math.sqrt(of.n)
        p = np.where(of.std > 0, 2 * special.stdtr(of.n - 1, -np.abs(of.mean) / error), 1.0)
        sure: NDArray[np.bool_] = holm(p) < 0.05
        return sure

    def limits(self, of: Moments) -> Floats:
        """Return the shifts to the limits."""
        rivals = of.mean.shape[1]
        wide = [of.half_width(1 - 0.025 / step)[0] for step in range(1, rivals + 1)]
        shifts: Floats = (np.stack([*wide, *(-width for width in wide)]) - of.mean[0]).ravel()
        return shifts
