"""Verdicts on claims, from the metrics and, where they are needed, the test predictions of finished runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdlib import intervals, verdicts
from kdlib.claims import Arms, Choice, Claim
from kdlib.errors import KDError
from kdlib.intervals import Floats, Interval
from kdlib.verdicts import Verdict

__all__ = ["Metrics", "Predictions", "chosen", "judge", "with_choices"]

Metrics = Mapping[str, Mapping[int, Mapping[str, float]]]  # arm -> seed -> metric -> value
Series = Mapping[str, Mapping[int, float]]  # one metric: arm -> seed -> value


@dataclass(frozen=True)
class Predictions:
    """Predicted classes of the test examples: labels (examples,), by_arm[arm][seed] (examples,)."""

    labels: NDArray[Any]
    classes: int
    by_arm: Mapping[str, Mapping[int, NDArray[Any]]]

    def of(self, arm: str, seeds: Sequence[int]) -> NDArray[Any] | None:
        """(seeds, examples) of an arm; None where a seed's are not at hand."""
        rows = [self.by_arm.get(arm, {}).get(seed) for seed in seeds]
        return None if any(row is None for row in rows) else np.array(rows)


def judge(
    claim: Claim, mode: str, metrics: Metrics, predictions: Predictions | None = None, analogue: bool = False
) -> Verdict:
    """The verdict on a claim in a mode, over the seeds that its arms share.

    `predictions` decide where every seed gave the same difference (s = 0). `analogue`: the data or teacher of
    these runs is not the source's. Raises KDError where a measured number is missing or not finite.
    """
    if mode not in claim.modes:
        raise KDError(f"{claim.name}: expected a mode of {', '.join(claim.modes)}, found {mode!r}")
    arms = claim.modes[mode]
    series = {arm: _series(metrics, arm, claim.metric) for arm in (*arms.arms, *arms.over)}
    return replace(_verdict(claim, arms, series, predictions), analogue=analogue or claim.analogue)


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


def _verdict(claim: Claim, arms: Arms, series: Series, predictions: Predictions | None) -> Verdict:
    match claim.kind:
        case "exact":
            expected = dict(zip(arms.arms, arms.expected, strict=True))
            return verdicts.exact({arm: list(series[arm].values()) for arm in expected}, expected)
        case "trend":
            return verdicts.trend(_along(arms, series))
        case "best":
            pairs = {rival: _pair(claim, series, arms.arms[0], rival, predictions) for rival in arms.over}
            sets = {rival: test_set for rival, (_, test_set) in pairs.items() if test_set}
            return verdicts.best({rival: differences for rival, (differences, _) in pairs.items()}, sets)
        case "value":
            return _value(claim, arms, series[arms.arms[0]], predictions)
    if claim.threshold is not None:
        arm = arms.arms[0]
        differences, test_set = _above(claim, series[arm], arm, claim.threshold, predictions)
    else:
        differences, test_set = _pair(claim, series, arms.arms[0], arms.over[0], predictions)
    match claim.kind:
        case "effect":
            spread = (claim.reported_std, claim.reported_runs)
            return verdicts.effect(differences, claim.reported, claim.rounding, *spread, test_set)
        case "direction":
            return verdicts.direction(differences, test_set)
        case "non-inferior":
            return verdicts.non_inferior(differences, claim.margin, test_set)
        case _:
            return verdicts.comparable(differences, claim.margin, test_set)


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


def _pair(
    claim: Claim, series: Series, arm: str, over: str, predictions: Predictions | None
) -> tuple[Floats, Interval | None]:
    """Differences better - worse by seed and, where all of them are equal, the test set's interval."""
    better, worse = (over, arm) if claim.lower_is_better else (arm, over)
    seeds = _shared_seeds(series, better, worse)
    differences = np.array([series[better][seed] - series[worse][seed] for seed in seeds])
    if not seeds or not verdicts.all_equal(differences) or predictions is None:
        return differences, None
    first, second = predictions.of(better, seeds), predictions.of(worse, seeds)
    if first is None or second is None:
        return differences, None
    if claim.metric == "accuracy":
        return differences, intervals.mcnemar(first == predictions.labels, second == predictions.labels)
    if claim.metric == "macro_f1":
        return differences, intervals.f1_bootstrap(predictions.labels, first, second, predictions.classes)
    return differences, None


def _above(
    claim: Claim, values: Mapping[int, float], arm: str, origin: float, predictions: Predictions | None
) -> tuple[Floats, Interval | None]:
    """What one arm exceeds `origin` by, by seed, and where all are equal the test set's interval of it."""
    above = np.array([value - origin for value in values.values()])
    if claim.lower_is_better:
        return -above, None
    if not values or not verdicts.all_equal(above) or predictions is None:
        return above, None
    found = predictions.of(arm, list(values)[:1])
    if found is None:
        return above, None
    if claim.metric == "accuracy":
        interval = intervals.accuracy_interval(int((found == predictions.labels).sum()), found.size)
    elif claim.metric == "macro_f1":
        confusion = np.zeros((predictions.classes, predictions.classes), dtype=np.int64)
        np.add.at(confusion, (predictions.labels, found[0]), 1)
        interval = intervals.f1_interval(confusion)
    else:
        return above, None
    return above, Interval(*(bound - origin for bound in interval[:4]))


def _value(
    claim: Claim, arms: Arms, values: Mapping[int, float], predictions: Predictions | None
) -> Verdict:
    above, test_set = _above(claim, values, arms.arms[0], claim.trivial, predictions)
    spread = (claim.reported_std, claim.reported_runs)
    reported = abs(claim.reported - claim.trivial)
    return verdicts.value(above, reported, claim.margin, claim.rounding, *spread, test_set)
