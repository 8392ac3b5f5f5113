"""The rule that turns measurements into a verdict on a claim: one pure function for each kind of claim.

Seeds are the unit of every test: a difference is one number per seed, between two arms that share that seed. If all
seeds give the same number (s = 0), there is no t interval: zero in every seed is "no difference", any other number
leaves the claim undecided.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
from numpy.typing import ArrayLike

from kdlib.judge.intervals import Floats, Interval, holm, kendall_tau, needed_seeds, t_interval, t_quantile

__all__ = [
    "MIN_SEEDS",
    "Outcome",
    "Verdict",
    "all_equal",
    "best",
    "comparable",
    "direction",
    "effect",
    "exact",
    "headline",
    "non_inferior",
    "trend",
    "value",
]

MIN_SEEDS = 5
_NO_INTERVAL = Interval(math.nan, math.nan, math.nan, math.nan)
_ZERO = Interval(0.0, 0.0, 0.0, 0.0, 1.0)


class Outcome(StrEnum):
    """The possible outcomes of a claim, from best to worst."""

    REPLICATED = "replicated"
    LARGER = "effect replicated, magnitude differs (larger)"
    SMALLER = "effect replicated, magnitude differs (smaller)"
    MUCH_SMALLER = "much smaller than reported"
    INCONCLUSIVE = "inconclusive"
    TOO_FEW_SEEDS = "inconclusive (too few seeds)"
    NOT_REPLICATED = "not replicated"
    NO_DIFFERENCE = "no difference"
    CONTRADICTED = "contradicted"
    NOT_REPLICATED_REVERSED = "not replicated (reversed)"
    REVERSED = "reversed"


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


def headline(verdicts: Iterable[Verdict]) -> Verdict:
    """Return the worst of the verdicts, the first of equals; ValueError if there is none."""
    order = list(Outcome)
    return max(verdicts, key=lambda verdict: order.index(verdict.outcome))


# ---- the sample that every kind starts from


@dataclass(frozen=True)
class _Sample:
    mean: float
    std: float
    n: int
    interval: Interval

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
        return self.std == 0 and self.interval[:4] == (0, 0, 0, 0)


def _finite(sample: ArrayLike) -> Floats:
    values = np.asarray(sample, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError("expected finite numbers, found nan or infinity")
    return values


def all_equal(sample: ArrayLike) -> bool:
    """Return whether s = 0: the numbers differ by rounding at most, as 0.81 - 0.78 and 0.82 - 0.79 do."""
    values = np.asarray(sample, dtype=np.float64)
    return len(values) < 2 or bool(np.ptp(values) <= 1e-12 * max(1.0, float(np.abs(values).max())))


def _sample(differences: ArrayLike) -> _Sample:
    values = _finite(differences)
    n, mean = len(values), float(values.mean()) if len(values) else math.nan
    if not all_equal(values):
        return _Sample(mean, float(values.std(ddof=1)), n, t_interval(values))
    zero = n >= MIN_SEEDS and bool(np.abs(values).max() <= 1e-12)  # 1e-12: rounding
    return _Sample(mean, 0.0, n, _ZERO if zero else _NO_INTERVAL)


# ---- one function for each kind of claim


def effect(
    differences: ArrayLike,
    reported: float,
    rounding: float,
    reported_std: float | None = None,
    reported_runs: int | None = None,
) -> Verdict:
    """Judge whether `differences` (n,) have the reported size, `reported` > 0, with a margin of reported / 2.

    `rounding` is 10^-k for the difference of numbers printed with k decimals; `reported_std` is the source's
    sample standard deviation of the difference over its `reported_runs` runs.
    """
    spread = (reported_std, reported_runs)
    return _sized(_sample(differences), reported, reported / 2, rounding, *spread)


def value(
    above: ArrayLike,
    reported: float,
    margin: float,
    rounding: float,
    reported_std: float | None = None,
    reported_runs: int | None = None,
) -> Verdict:
    """Judge a value by the rule of `effect`: `above` (n,) and `reported` say by how much it exceeds the trivial value.

    `margin` is the declared one, `rounding` half of 10^-k for one number printed with k decimals.
    """
    return _sized(_sample(above), reported, margin, rounding, reported_std, reported_runs)


def _sized(
    sample: _Sample,
    reported: float,
    margin: float,
    rounding: float,
    reported_std: float | None,
    reported_runs: int | None,
) -> Verdict:
    if not reported > 0:
        raise ValueError(f"expected a reported difference above 0, found {reported}: swap the arms")
    if rounding >= margin * (1 - 1e-9):  # printed too coarsely to have a size
        return _directed(sample)
    if undecidable := sample.undecidable():
        return undecidable
    if sample.identical:
        return sample.verdict(Outcome.NO_DIFFERENCE, f"No difference in any seed, {reported:+.4g} reported")
    mean, s, n = sample.mean, sample.std, sample.n
    if reported_std is not None and reported_runs is not None and reported_runs >= 2:
        std, runs, freedom = reported_std, reported_runs, n + reported_runs - 2
    else:
        std, runs, freedom = s, 1, n - 1
    prediction = t_quantile(0.975, freedom) * math.sqrt(std**2 / runs + s**2 / n) + rounding
    off, below = abs(mean - reported), sample.interval.one_sided_high < reported - margin
    if sample.interval.low > 0:
        if off <= margin and off <= max(prediction, margin / 4):
            outcome, reason = Outcome.REPLICATED, "There, and of the size reported"
        elif below:
            outcome, reason = Outcome.MUCH_SMALLER, "There, but more than the margin below the size reported"
        elif mean > reported:
            outcome, reason = Outcome.LARGER, "There, but larger than reported"
        else:
            outcome, reason = Outcome.SMALLER, "There, but smaller than reported"
    elif below and sample.interval.high < 0:
        outcome, reason = Outcome.NOT_REPLICATED_REVERSED, "The opposite of what was reported"
    elif below:
        outcome, reason = Outcome.NOT_REPLICATED, "No effect near the size reported"
    else:
        outcome, reason = Outcome.INCONCLUSIVE, "Fits both no effect and one near the size reported"
    return sample.verdict(outcome, f"{reason} ({reported:+.4g})", margin / 2)


def direction(differences: ArrayLike) -> Verdict:
    """Judge whether A is above B, without a stated size: `differences` (n,) are A - B."""
    return _directed(_sample(differences))


def _directed(sample: _Sample) -> Verdict:
    if undecidable := sample.undecidable():
        return undecidable
    if sample.identical:
        return sample.verdict(Outcome.NO_DIFFERENCE, "No difference in any seed")
    if sample.interval.low > 0:
        return sample.verdict(Outcome.REPLICATED, "Above zero")
    if sample.interval.high < 0:
        return sample.verdict(Outcome.REVERSED, "Below zero")
    return sample.verdict(Outcome.INCONCLUSIVE, "Zero cannot be ruled out", abs(sample.mean))


def non_inferior(differences: ArrayLike, margin: float) -> Verdict:
    """Judge whether A is less than `margin` below B: `differences` (n,) are A - B."""
    return _bounded(_sample(differences), -margin, math.inf, f"less than {margin:.4g} below")


def comparable(differences: ArrayLike, margin: float) -> Verdict:
    """Judge by two one-sided tests whether A is within `margin` of B: `differences` (n,) are A - B."""
    return _bounded(_sample(differences), -margin, margin, f"within {margin:.4g}")


def _bounded(sample: _Sample, floor: float, ceiling: float, aim: str) -> Verdict:
    room = min(abs(sample.mean - floor), abs(ceiling - sample.mean))  # to the nearest limit
    if undecidable := sample.undecidable():
        return undecidable
    lower, upper = sample.interval.one_sided_low, sample.interval.one_sided_high
    if lower > floor and upper < ceiling:
        return sample.verdict(Outcome.REPLICATED, aim.capitalize())
    if upper < floor or lower > ceiling:
        return sample.verdict(Outcome.NOT_REPLICATED, f"Not {aim}")
    return sample.verdict(Outcome.INCONCLUSIVE, f"May or may not be {aim}", room)


def best(differences: Mapping[str, ArrayLike]) -> Verdict:
    """Judge whether A is the best of a list, Holm-adjusted: `differences` has A - rival (n,) for each rival."""
    samples = {rival: _sample(d) for rival, d in differences.items()}
    fewest = min(samples.values(), key=lambda sample: sample.n)
    if fewest.n < MIN_SEEDS and (undecidable := fewest.undecidable()):
        return undecidable
    # A rival without a p value counts as undecided.
    p = [1.0 if math.isnan(sample.interval.p) else sample.interval.p for sample in samples.values()]
    sure = {rival for rival, adjusted in zip(samples, holm(p), strict=True) if adjusted < 0.05}
    ranked = sorted(samples, key=lambda rival: samples[rival].mean)  # the strongest rival first
    for rival in ranked:
        if rival in sure and samples[rival].mean < 0:
            return samples[rival].verdict(Outcome.CONTRADICTED, f"{rival} is better")
    nearest = samples[ranked[0]]
    if len(sure) == len(samples):
        return nearest.verdict(Outcome.REPLICATED, f"Better than every rival, {ranked[0]} being the nearest")
    if nearest.identical:
        return nearest.verdict(Outcome.NO_DIFFERENCE, f"No different from {ranked[0]}")
    reason = f"Not surely better than every rival, {ranked[0]} being the nearest"
    return nearest.verdict(Outcome.INCONCLUSIVE, reason, abs(nearest.mean))


def trend(measured: ArrayLike) -> Verdict:
    """Judge by each seed's Kendall tau whether a metric rises along a list of arms: `measured` is (seeds, arms)."""
    taus = np.array([kendall_tau(row) for row in _finite(measured)])
    sample = _sample(taus)
    if len(taus) >= MIN_SEEDS and all_equal(
        taus
    ):  # the same order in all seeds is the best evidence: tau is its own bound
        sample = replace(sample, interval=Interval(*[float(taus[0])] * 4))
    return _directed(sample)


def exact(measured: Mapping[str, Sequence[float]], expected: Mapping[str, float]) -> Verdict:
    """Judge whether every number in `measured` (name -> one a run) equals the expected one; one run is enough."""
    n = min(len(measured.get(name, ())) for name in expected)
    if n == 0:
        missing = ", ".join(name for name in expected if not measured.get(name))
        nan = math.nan
        return Verdict(Outcome.TOO_FEW_SEEDS, nan, nan, nan, 0, None, f"Nothing measured yet: {missing}.")
    runs = [(name, x) for name in expected for x in measured[name]]
    wrong = [(x - expected[name], name, x) for name, x in runs if x != expected[name]]
    off, name, found = max(wrong, key=lambda miss: abs(miss[0]), default=(0.0, "", 0.0))
    detail = f"{name} is {found:.12g}, not {expected[name]:.12g}." if wrong else "Equal in every run."
    outcome = Outcome.NOT_REPLICATED if wrong else Outcome.REPLICATED
    return Verdict(outcome, off, off, off, n, None, detail)
