"""How firm a verdict is: how often redraws of its seeds come out the same, and how far another outcome is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from kdlib.judge.intervals import Floats
from kdlib.judge.rules import Moments, Outcome, Rule, outcome_of

__all__ = ["REDRAWS", "Basis"]

REDRAWS = 10_000


@dataclass(frozen=True)
class Basis:
    """What a verdict is judged by: a sample of differences (n, rivals), n >= 2, and a rule.

    `ends`: no difference lies outside, as Kendall's tau does not.
    """

    sample: Floats
    rule: Rule
    ends: tuple[float, float] = (-math.inf, math.inf)

    @property
    def moments(self) -> Moments:
        """The sample's moments (1, rivals)."""
        return Moments.of(self.sample[None])

    def outcome(self) -> Outcome:
        """Return the sample's outcome."""
        return outcome_of(int(self.rule.outcomes(self.moments)[0]))

    def firmness(self) -> float:
        """Return the share of redraws with the same outcome: a parametric bootstrap (Efron & Tibshirani 1993, 6.5).

        A redraw has n differences from a normal distribution with the sample's mean and covariance.
        """
        drawn = np.clip(self._redraws(), *self.ends)
        return float(np.mean(self.rule.outcomes(Moments.of(drawn)) == self.rule.outcomes(self.moments)))

    def _redraws(self) -> Floats:
        n, mean = len(self.sample), self.sample.mean(axis=0)
        # The triangular factor F of the covariance F' F, with a positive diagonal. For one rival it is s.
        factor = np.asarray(np.linalg.qr((self.sample - mean) / math.sqrt(n - 1), mode="r"))
        factor = factor * np.where(np.diagonal(factor) < 0, -1.0, 1.0)[:, None]
        redraws: Floats = mean + _normals(n, len(factor)) @ factor
        return redraws

    def margin(self) -> tuple[float, Outcome | None]:
        """Return how far the mean is from the nearest one with another outcome, at the same spread; and that outcome.

        With several rivals, all means move together. (nan, None) if no mean has another outcome.
        """
        limits = self.rule.limits(self.moments)
        limits = np.unique(limits[np.isfinite(limits)])
        # Between two limits the outcome is constant, so one place between them is enough.
        places = np.concatenate([limits[:1] - 1, (limits[1:] + limits[:-1]) / 2, limits[-1:] + 1])
        found = [outcome_of(code) for code in self.rule.outcomes(self.moments.shifted(places))]
        changes = [i for i in range(len(limits)) if found[i] is not found[i + 1]]
        if not changes:
            return math.nan, None
        nearest = min(changes, key=lambda i: abs(float(limits[i])))
        here = self.outcome()
        beyond = found[nearest] if found[nearest + 1] is here else found[nearest + 1]
        # Nine digits, because the last ones depend on the order in which a machine adds.
        return float(f"{abs(limits[nearest]):.9g}"), beyond


@lru_cache(maxsize=8)
def _normals(n: int, columns: int) -> Floats:
    """The same random numbers for all verdicts, so that a table does not change from one call to the next."""
    return np.random.default_rng(0).standard_normal((REDRAWS, n, columns))
