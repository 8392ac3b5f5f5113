"""Verdicts on claims, from plain metrics: arm -> seed -> metric -> value."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from kdlib.errors import KDError
from kdlib.judge import kinds
from kdlib.judge.claims import (
    Best,
    Choice,
    Claim,
    Comparable,
    Comparison,
    Direction,
    Effect,
    Exact,
    NonInferior,
    Reported,
    Trend,
    Value,
    fixed_rival,
)
from kdlib.judge.intervals import Floats, limits
from kdlib.judge.verdicts import Outcome, Verdict, interim

__all__ = ["Metrics", "chosen", "judge", "means_of", "of_declared", "outcomes", "values_of", "with_choices"]

Metrics = Mapping[str, Mapping[int, Mapping[str, float]]]  # arm -> seed -> metric -> value
Series = Mapping[str, Mapping[int, float]]  # one metric: arm -> seed -> value


def judge(claim: Claim, mode: str, metrics: Metrics, *, declared: int | None, analogue: bool = False) -> Verdict:
    """Return the verdict on a claim in a mode, over the seeds that all its arms share.

    `declared`: the number of seeds that the judged profile declares. Only these seeds count, and before all of them are
    there the outcome is interim; an exact claim needs one run. None: runs of a profile that declares none, which are
    only compared with the verdicts. `analogue`: the data or the teacher of these runs are not the source's. KDError if
    a measured number is missing or not finite.
    """
    if mode not in claim.modes:
        raise KDError(f"{claim.name}: expected a mode of {', '.join(claim.modes)}, found {mode!r}")
    compared = claim.modes[mode]
    metrics = of_declared(metrics, declared)
    series = {arm: _series(metrics, arm, claim.metric) for arm in (*compared.arms, *compared.rivals)}
    if not isinstance(claim, Exact):
        series = _shared(series)
    verdict = _verdict(claim, compared, series)
    if declared is not None and not isinstance(claim, Exact) and verdict.n < declared:
        verdict = interim(verdict, declared)
    return replace(verdict, analogue=analogue or claim.analogue)


def values_of(
    metrics: Metrics, metric: str, arm: str, over: str = "", *, lower_is_better: bool = False
) -> dict[int, float]:
    """Return a metric of an arm by seed; with `over`, its differences to this arm, of the seeds that both arms have.

    With `lower_is_better`, a difference is positive if `arm` has the lower number: if it does better.
    """
    values = {seed: run[metric] for seed, run in sorted(metrics.get(arm, {}).items()) if metric in run}
    if not over:
        return values
    sign, others = -1 if lower_is_better else 1, metrics.get(over, {})
    return {
        seed: sign * (value - others[seed][metric]) for seed, value in values.items() if metric in others.get(seed, {})
    }


def outcomes(reported: Reported, metrics: Metrics, declared: int) -> dict[str, dict[str, Outcome]]:
    """Return the outcome of each claim in each mode whose arms have all `declared` seeds; exact: have runs."""
    metrics = with_choices(reported.choices, of_declared(metrics, declared))
    found: dict[str, dict[str, Outcome]] = {}
    for name, claim in reported.claims.items():
        judged = {mode: judge(claim, mode, metrics, declared=declared).outcome for mode in claim.modes}
        found[name] = {mode: outcome for mode, outcome in judged.items() if outcome not in _NO_VERDICT}
    return found


AGAIN = "correct its training function, raise `protocol` in experiment.py and run again"
_NO_VERDICT = (Outcome.INTERIM, Outcome.TOO_FEW_SEEDS)


def of_declared(metrics: Metrics, declared: int | None) -> Metrics:
    """Return the metrics of the declared seeds, 0 to `declared` - 1; of all seeds if none are declared."""
    if declared is None:
        return metrics
    return {arm: {seed: found for seed, found in seeds.items() if seed < declared} for arm, seeds in metrics.items()}


def chosen(choice: Choice, metrics: Metrics) -> str | None:
    """Return the arm that is chosen; None unless all arms of the choice have the metric for the same seeds."""
    means = means_of(choice, metrics)
    best = min if choice.lower_is_better else max
    return best(choice.among, key=means.__getitem__) if means else None


def means_of(choice: Choice, metrics: Metrics) -> dict[str, float]:
    """Return the mean that chooses, for each arm; none unless all of them have the metric for the same seeds."""
    found = {
        arm: {seed: each[choice.by] for seed, each in metrics.get(arm, {}).items() if choice.by in each}
        for arm in choice.among
    }
    seeds = {tuple(sorted(series)) for series in found.values()}
    if len(seeds) > 1 or not all(found.values()):
        return {}
    # Rounded, because the same number of right pictures may come from different seeds: then the first arm is chosen.
    return {arm: round(math.fsum(series.values()), 9) / len(series) for arm, series in found.items()}


def with_choices(choices: Iterable[Choice], metrics: Metrics) -> Metrics:
    """Return the metrics and, under the name of each choice, those of the arm that is chosen."""
    found = {choice.name: chosen(choice, metrics) for choice in choices}
    return {**metrics, **{name: metrics[arm] for name, arm in found.items() if arm}}


def _verdict(claim: Claim, compared: Comparison, series: Series) -> Verdict:
    match claim:
        case Exact():
            expected = dict(zip(compared.arms, compared.expected, strict=True))
            return kinds.exact({arm: list(series[arm].values()) for arm in expected}, expected)
        case Trend():
            return kinds.trend(_along(compared, series))
        case Best():
            rivals = {rival: _differences(claim, series, compared.arms[0], rival) for rival in compared.rivals}
            return kinds.best(rivals)
        case Value():
            size = abs(claim.reported - claim.trivial)
            above = _compared(claim, compared, series)
            return kinds.value(above, size, claim.margin, claim.rounding, claim.std, claim.runs)
        case Effect():
            differences = _compared(claim, compared, series)
            return kinds.effect(differences, claim.reported, claim.rounding, claim.std, claim.runs)
        case Direction():
            return kinds.direction(_compared(claim, compared, series))
        case NonInferior():
            return kinds.non_inferior(_compared(claim, compared, series), claim.margin)
        case Comparable():
            return kinds.comparable(_compared(claim, compared, series), claim.margin)


def _series(metrics: Metrics, arm: str, metric: str) -> dict[int, float]:
    series, (low, high) = {}, limits(metric)
    low = low if math.isfinite(high) else -math.inf  # shares only: a loss of one's own may be negative
    for seed, measured in sorted(metrics.get(arm, {}).items()):
        found = measured.get(metric)
        if found is None or not (math.isfinite(found) and low <= found <= high):
            span = f" from {low:g} to {high:g}" if math.isfinite(high) else ""
            raise KDError(f"{arm}, seed {seed}: expected a finite {metric}{span}, found {found}; {AGAIN}")
        series[seed] = float(found)
    return series


def _shared(series: Series) -> dict[str, dict[int, float]]:
    seeds = sorted(set.intersection(*(set(of_arm) for of_arm in series.values())))
    return {arm: {seed: of_arm[seed] for seed in seeds} for arm, of_arm in series.items()}


def _along(compared: Comparison, series: Series) -> Floats:
    """One row for each seed, one column for each arm: the metric, or its gain over the rivals."""
    values, base = (np.array([list(series[arm].values()) for arm in row]).T for row in (compared.arms, compared.rivals))
    return values - base if compared.rivals else values


def _compared(claim: Claim, compared: Comparison, series: Series) -> Floats:
    """By seed, how much better the arm is than its rival, or than the number it is compared with."""
    rival = fixed_rival(claim)
    if rival is None:
        return _differences(claim, series, compared.arms[0], compared.rivals[0])
    above = np.array([value - rival for value in series[compared.arms[0]].values()])
    return -above if claim.lower_is_better else above


def _differences(claim: Claim, series: Series, arm: str, rival: str) -> Floats:
    better, worse = (rival, arm) if claim.lower_is_better else (arm, rival)
    return np.array([series[better][seed] - series[worse][seed] for seed in series[better]])
