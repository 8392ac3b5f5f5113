"""Verdicts on claims, from the metrics of finished runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from kdlib import verdicts
from kdlib.claims import Arms, Choice, Claim
from kdlib.errors import KDError
from kdlib.intervals import Floats
from kdlib.verdicts import Verdict

__all__ = ["Metrics", "chosen", "judge", "with_choices"]

Metrics = Mapping[str, Mapping[int, Mapping[str, float]]]  # arm -> seed -> metric -> value
Series = Mapping[str, Mapping[int, float]]  # one metric: arm -> seed -> value


def judge(claim: Claim, mode: str, metrics: Metrics, analogue: bool = False) -> Verdict:
    """The verdict on a claim in a mode, over the seeds that its arms share.

    `analogue`: the data or teacher of these runs is not the source's.  Raises KDError where a measured number is
    missing or not finite.
    """
    if mode not in claim.modes:
        raise KDError(f"{claim.name}: expected a mode of {', '.join(claim.modes)}, found {mode!r}")
    arms = claim.modes[mode]
    series = {arm: _series(metrics, arm, claim.metric) for arm in (*arms.arms, *arms.over)}
    return replace(_verdict(claim, arms, series), analogue=analogue or claim.analogue)


def chosen(choice: Choice, metrics: Metrics) -> str | None:
    """The arm that is chosen; None unless all that it is chosen among have the metric for the same seeds."""
    found = {arm: {seed: each[choice.by] for seed, each in metrics.get(arm, {}).items() if choice.by in each}
             for arm in choice.among}
    seeds = {tuple(sorted(series)) for series in found.values()}
    if len(seeds) > 1 or not all(found.values()):
        return None
    # Rounded: of arms with as many right pictures, in whatever seeds, the first is chosen.
    return max(choice.among, key=lambda arm: round(math.fsum(found[arm].values()), 9))


def with_choices(choices: Iterable[Choice], metrics: Metrics) -> Metrics:
    """The metrics and, under its own name, those of every arm that can be chosen."""
    found = {choice.name: chosen(choice, metrics) for choice in choices}
    return {**metrics, **{name: metrics[arm] for name, arm in found.items() if arm}}


def _verdict(claim: Claim, arms: Arms, series: Series) -> Verdict:
    spread = (claim.reported_std, claim.reported_runs)
    match claim.kind:
        case "exact":
            expected = dict(zip(arms.arms, arms.expected, strict=True))
            return verdicts.exact({arm: list(series[arm].values()) for arm in expected}, expected)
        case "trend":
            return verdicts.trend(_along(arms, series))
        case "best":
            return verdicts.best({rival: _pair(claim, series, arms.arms[0], rival) for rival in arms.over})
        case "value":
            above = _above(claim, series[arms.arms[0]], claim.trivial)
            return verdicts.value(above, abs(claim.reported - claim.trivial), claim.margin, claim.rounding, *spread)
    if claim.threshold is not None:
        differences = _above(claim, series[arms.arms[0]], claim.threshold)
    else:
        differences = _pair(claim, series, arms.arms[0], arms.over[0])
    match claim.kind:
        case "effect":
            return verdicts.effect(differences, claim.reported, claim.rounding, *spread)
        case "direction":
            return verdicts.direction(differences)
        case "non-inferior":
            return verdicts.non_inferior(differences, claim.margin)
        case _:
            return verdicts.comparable(differences, claim.margin)


def _series(metrics: Metrics, arm: str, metric: str) -> dict[int, float]:
    series = {}
    for seed, measured in sorted(metrics.get(arm, {}).items()):
        found = measured.get(metric)
        if found is None or not math.isfinite(found):
            raise KDError(f"{arm}, seed {seed}: expected a finite {metric}, found {found}: rerun this arm")
        series[seed] = float(found)
    return series


def _shared_seeds(series: Series, *arms: str) -> list[int]:
    return sorted(set.intersection(*(set(series[arm]) for arm in arms)))


def _along(arms: Arms, series: Series) -> Floats:
    """(seeds, arms), less what is to be subtracted."""
    seeds = _shared_seeds(series, *arms.arms, *arms.over)
    values, base = (
        np.array([[series[arm][seed] for arm in row] for seed in seeds]) for row in (arms.arms, arms.over)
    )
    return values - base if arms.over else values


def _pair(claim: Claim, series: Series, arm: str, over: str) -> Floats:
    """Differences better - worse by seed."""
    better, worse = (over, arm) if claim.lower_is_better else (arm, over)
    return np.array([series[better][seed] - series[worse][seed] for seed in _shared_seeds(series, better, worse)])


def _above(claim: Claim, values: Mapping[int, float], origin: float) -> Floats:
    """What one arm exceeds `origin` by, or stays below it, by seed."""
    above = np.array([value - origin for value in values.values()])
    return -above if claim.lower_is_better else above
