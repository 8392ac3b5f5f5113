"""One function for each kind of claim, from the differences of its seeds to a verdict.

KDError for numbers that are NaN or infinite, sizes and margins that are not above 0, and other negative numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from kdlib.checks import check_number
from kdlib.errors import KDError
from kdlib.judge.firmness import Basis
from kdlib.judge.intervals import Interval, kendall_tau, whole_number
from kdlib.judge.rules import Best, Bounded, Directed, Outcome, Sized, all_equal
from kdlib.judge.verdicts import MIN_SEEDS, Sample, Verdict, finite, sample_of

__all__ = ["best", "comparable", "direction", "effect", "exact", "non_inferior", "trend", "value"]


def effect(
    differences: ArrayLike,
    reported: float,
    rounding: float,
    reported_std: float | None = None,
    reported_runs: int | None = None,
) -> Verdict:
    """Judge whether `differences` (n,) have the reported size, `reported` > 0, with a margin of reported / 2.

    `rounding` is 10^-k for the difference of numbers printed with k decimals; `reported_std` is the source's
    sample standard deviation of the difference over its `reported_runs` runs, at least 2: both or none.
    """
    size = check_number("reported", reported, 0, math.inf, _SWAP, above=True)
    return value(differences, size, size / 2, rounding, reported_std, reported_runs)


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
    size = Sized(
        check_number("reported", reported, 0, math.inf, _SWAP, above=True),
        check_number("margin", margin, 0, math.inf, "give the margin in the unit of the metric"),
        check_number("rounding", rounding, 0, math.inf, "10^-k for a difference printed with k decimals"),
        *_spread(reported_std, reported_runs),
    )
    return _sized(sample_of(above), size)


def _spread(std: float | None, runs: int | None) -> tuple[float | None, int | None]:
    if std is None and runs is None:
        return None, None
    if std is None or runs is None:
        raise KDError(
            f"expected reported_std and reported_runs, or none of them, found {std} and {runs}; a standard deviation "
            "says nothing without its number of runs"
        )
    remedy = "give what the source states, or leave out both"
    return check_number("reported_std", std, 0, math.inf, remedy), whole_number("reported_runs", runs, 2, remedy)


def _sized(sample: Sample, rule: Sized) -> Verdict:
    if rule.rounding >= rule.margin * (1 - 1e-9):  # printed too coarsely to have a size
        return _directed(sample)
    if undecidable := sample.undecidable():
        return undecidable
    if sample.identical:
        return sample.verdict(Outcome.NO_DIFFERENCE, f"No difference in any seed, {rule.reported:+.4g} reported")
    size = f" ({rule.reported:+.4g})"
    reasons = {outcome: reason + size for outcome, reason in _OF_SIZE.items()}
    return sample.judged(rule, reasons, rule.margin / 2)


_SWAP = "swap the arms if A is below B"
_OF_SIZE = {
    Outcome.REPLICATED: "The effect is there, and its size is the reported one",
    Outcome.LARGER: "The effect is there, but it is larger than reported",
    Outcome.SMALLER: "The effect is there, but it is smaller than reported",
    Outcome.MUCH_SMALLER: "The effect is there, but it is smaller than reported by more than the margin",
    Outcome.INCONCLUSIVE: "The seeds fit both no effect and one near the reported size",
    Outcome.NOT_REPLICATED: "There is no effect near the reported size",
    Outcome.NOT_REPLICATED_REVERSED: "The effect is the opposite of the reported one",
}


def direction(differences: ArrayLike) -> Verdict:
    """Judge whether A is above B, without a stated size: `differences` (n,) are A - B."""
    return _directed(sample_of(differences))


def _directed(sample: Sample) -> Verdict:
    if undecidable := sample.undecidable():
        return undecidable
    if sample.identical:
        return sample.verdict(Outcome.NO_DIFFERENCE, "No difference in any seed")
    reasons = {
        Outcome.REPLICATED: "Above zero",
        Outcome.REVERSED: "Below zero",
        Outcome.INCONCLUSIVE: "Zero cannot be ruled out",
    }
    return sample.judged(Directed(), reasons, abs(sample.mean))


def non_inferior(differences: ArrayLike, margin: float) -> Verdict:
    """Judge whether A is less than `margin` below B: `differences` (n,) are A - B."""
    margin = _margin(margin)
    return _bounded(sample_of(differences), -margin, math.inf, f"less than {margin:.4g} below")


def comparable(differences: ArrayLike, margin: float) -> Verdict:
    """Judge by two one-sided tests whether A is within `margin` of B: `differences` (n,) are A - B."""
    margin = _margin(margin)
    return _bounded(sample_of(differences), -margin, margin, f"within {margin:.4g}")


def _margin(margin: float) -> float:
    found: float = check_number("margin", margin, 0, math.inf, "give it in the unit of the metric", above=True)
    return found


def _bounded(sample: Sample, floor: float, ceiling: float, aim: str) -> Verdict:
    if undecidable := sample.undecidable():
        return undecidable
    reasons = {
        Outcome.REPLICATED: aim.capitalize(),
        Outcome.NOT_REPLICATED: f"Not {aim}",
        Outcome.INCONCLUSIVE: f"May or may not be {aim}",
    }
    room = min(abs(sample.mean - floor), abs(ceiling - sample.mean))  # to the nearest limit
    return sample.judged(Bounded(floor, ceiling), reasons, room)


def best(differences: Mapping[str, ArrayLike]) -> Verdict:
    """Judge whether A is the best of a list, Holm-adjusted: `differences` has A - rival (n,) for each rival.

    KDError without a rival, and if two rivals have different numbers of differences, and each at least 5.
    """
    samples = {rival: sample_of(d) for rival, d in differences.items()}
    if not samples:
        raise KDError("expected the differences from at least one rival, found none; give a dict, rival: differences")
    fewest = min(samples.values(), key=lambda sample: sample.n)
    if fewest.n < MIN_SEEDS and (undecidable := fewest.undecidable()):
        return undecidable
    if len(numbers := {sample.n for sample in samples.values()}) > 1:
        raise KDError(f"expected as many differences from each rival, found {sorted(numbers)}; use the seeds of all")
    ranked = sorted(samples, key=lambda rival: samples[rival].mean)  # the strongest rival first
    nearest = samples[ranked[0]]
    basis = Basis(np.stack([sample.values for sample in samples.values()], axis=1), Best())
    outcome = basis.outcome()
    if outcome is Outcome.CONTRADICTED:
        sure = dict(zip(samples, Best().sure(basis.moments)[0], strict=True))
        better = next(rival for rival in ranked if sure[rival])
        return replace(samples[better].verdict(outcome, f"{better} is better"), basis=basis)
    if outcome is not Outcome.REPLICATED and nearest.identical:
        return nearest.verdict(Outcome.NO_DIFFERENCE, f"No different from {ranked[0]}")
    surely = "Better" if outcome is Outcome.REPLICATED else "Not surely better"
    reason = f"{surely} than every rival, {ranked[0]} being the nearest"
    return replace(nearest.verdict(outcome, reason, abs(nearest.mean)), basis=basis)


def trend(measured: ArrayLike) -> Verdict:
    """Judge by each seed's Kendall tau whether a metric rises along a list of arms: `measured` is (seeds, arms)."""
    rows = finite(measured)
    if rows.size and (rows.ndim != 2 or rows.shape[1] < 2):
        raise KDError(
            f"expected numbers (seeds, arms) of at least 2 arms, found shape {rows.shape}; one row for each seed"
        )
    taus = np.array([kendall_tau(row) for row in rows])
    sample = sample_of(taus)
    if len(taus) >= MIN_SEEDS and all_equal(taus):
        # The same order in all seeds is the best evidence: tau is its own bound.
        sample = replace(sample, interval=Interval(*[float(taus[0])] * 4))
    verdict = _directed(sample)
    return replace(verdict, basis=replace(verdict.basis, ends=(-1.0, 1.0))) if verdict.basis else verdict


def exact(measured: Mapping[str, Sequence[float]], expected: Mapping[str, float]) -> Verdict:
    """Judge whether every number in `measured` (name -> one a run) equals the expected one; one run is enough."""
    if not expected:
        raise KDError("expected at least one name with its number, found none; give a dict, name: number")
    for numbers in (list(expected.values()), *(measured.get(name, ()) for name in expected)):
        finite(numbers)
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
