"""Arms next to the reported numbers, claims next to their verdicts, as pandas frames; no number is rounded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kdlib.judge import intervals
from kdlib.judge.bands import Bands
from kdlib.judge.claims import (
    Claim,
    Effect,
    Exact,
    Ingredient,
    Reported,
    Trend,
    Value,
    fixed_rival,
    pairs,
    reported_range,
)
from kdlib.judge.intervals import limits
from kdlib.judge.judging import Metrics, judge, of_declared, values_of, with_choices
from kdlib.judge.verdicts import Outcome, Verdict, all_equal
from kdlib.report.markdown import mark
from kdlib.run.experiment import Arm, Profile
from kdlib.run.records import Record, measured

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "arms_table",
    "bounds",
    "claims_table",
    "ingredients_table",
    "is_reduced",
    "metrics_of",
    "on_claims_scale",
    "part_differences",
    "says",
    "spread",
]

NAN = float("nan")
LEAST = 3  # seeds of an interval: that of two is about nine times as wide as their distance

Bounds = tuple[float, float]

# ---- arms


def arms_table(
    experiment_arms: Sequence[Arm], reported: Reported, records: Sequence[Record], reduced: bool = False
) -> pd.DataFrame:
    """Return one row for each arm with records, in the experiment's order; shares stay shares.

    For each metric of the source: mean, standard deviation, 95% t interval over seeds, the mean half-width of the test
    set's own 95% interval, the reported number with its range, and whether the mean lies inside (None: unknown).
    `reduced`: the runs are shortened or on synthetic data. They are not expected to reach the source's numbers, so
    there is no range.
    """
    import pandas as pd

    numbers = measured(records)
    rows = []
    for arm in experiment_arms:
        if arm.name not in numbers:
            continue
        seeds = numbers[arm.name]
        row: dict[str, Any] = {"arm": arm.name, "modes": ", ".join(arm.modes), "n": len(seeds)}
        for metric in metrics_of(reported):
            row |= _metric(arm.name, metric, seeds, reported, _confusions(arm.name, records), reduced)
        for key in ("agreement", "teacher_kl", "entropy", "parameters", "epochs"):
            row[key] = _mean([run[key] for run in seeds.values() if key in run])
        rows.append(row)
    return pd.DataFrame(rows)


def is_reduced(profile: Profile, synthetic: bool, analogue: bool = False) -> bool:
    """Return whether runs of a profile are not expected to reach the source's numbers.

    `analogue`: they are of other data than the source's.
    """
    return synthetic or analogue or bool(profile.reduced and not profile.judged)


def metrics_of(reported: Reported) -> list[str]:
    """Return the metrics of the source's claims and numbers, without those of exact claims."""
    claims = list(reported.claims.values())
    exact = {claim.metric for claim in claims if isinstance(claim, Exact)}
    named = [*(c.metric for c in claims if not c.ours), *(v.metric for v in reported.values.values())]
    return [metric for metric in dict.fromkeys(named) if metric not in exact]


def _metric(
    arm: str,
    metric: str,
    seeds: Mapping[int, Mapping[str, float]],
    reported: Reported,
    confusions: Sequence[Any],
    reduced: bool,
) -> dict[str, Any]:
    values = [run[metric] for run in seeds.values() if metric in run]
    mean, value = _mean(values), reported.value(arm, metric)
    low, high = bounds(values, limits(metric))
    ranged = value is not None and bool(values) and not reduced
    span = within(reported_range(value, len(values)), limits(metric)) if value and ranged else (NAN, NAN)
    known = {
        "": mean,
        "_std": float(np.std(values, ddof=1)) if len(values) > 1 else NAN,
        "_low": low,
        "_high": high,
        "_test_set": _mean([_test_set(metric, confusion) for confusion in confusions]),
        "_reported": value.value if value else NAN,
        "_reported_std": NAN if value is None or value.std is None else value.std,
        "_range_low": span[0],
        "_range_high": span[1],
        "_inside": span[0] <= mean <= span[1] if ranged else None,
    }
    return {metric + key: number for key, number in known.items()}


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else NAN


def bounds(values: Sequence[float], span: Bounds) -> Bounds:
    """Return the 95% t interval of the mean within `span`, the metric's limits; (nan, nan) for fewer than 3 values."""
    if len(values) < LEAST or all_equal(values):
        return NAN, NAN
    return within(intervals.t_interval(values)[:2], span)


def within(interval: Bounds, span: Bounds) -> Bounds:
    """Return the part of an interval that lies within `span`; (nan, nan) stays."""
    return max(interval[0], span[0]), min(interval[1], span[1])


def spread(metric: str) -> Bounds:
    """Return the least and the largest difference of two values of a metric."""
    least, most = limits(metric)
    return least - most, most - least


def _confusions(arm: str, records: Iterable[Record]) -> list[Any]:
    found = (record.metrics[record.arms[arm]].get("confusion") for record in records if arm in record.arms)
    return [confusion for confusion in found if confusion is not None]


def _test_set(metric: str, confusion: Any) -> float:
    """Half the width of one run's 95% interval over the examples of the finite test set."""
    counts = np.asarray(confusion, dtype=np.int64)
    if metric == "macro_f1":
        interval = intervals.f1_interval(counts)
    elif metric == "accuracy":
        interval = intervals.accuracy_interval(int(counts.trace()), int(counts.sum()))
    else:
        return NAN
    return (interval.high - interval.low) / 2


# ---- claims


def claims_table(
    reported: Reported,
    records: Sequence[Record],
    judged_bands: Bands | None,
    *,
    declared: int | None,
    synthetic: bool = False,
    analogue: bool = False,
) -> pd.DataFrame:
    """Return one row for each claim and mode: what is reported, what is measured, the verdict, and how firm it is.

    `declared`: these are runs of the judged profile, which declares so many seeds; they get a `verdict`. Other runs
    (None) get `says` instead, which compares them with the verdicts in `judged_bands`, those of the judged profile on
    the same data. Runs on synthetic data have neither. `analogue`: these are other data than the source's.
    """
    import pandas as pd

    numbers = with_choices(reported.choices, of_declared(measured(records), declared))
    shown = declared is not None and not synthetic
    known = judged_bands.verdicts if judged_bands and not synthetic else {}
    rows = []
    for claim in reported.claims.values():
        for mode in claim.modes:
            verdict = judge(claim, mode, numbers, declared=declared, analogue=analogue)
            margin, beyond = verdict.margin if shown else (NAN, None)
            before = known.get(claim.name, {}).get(mode)
            value, low, high = on_claims_scale(claim, verdict)
            rows.append(
                {
                    "claim": claim.name,
                    "mark": mark(claim),
                    "kind": claim.kind,
                    "metric": claim.metric,
                    "statement": claim.statement,
                    "mode": mode,
                    "differs": _named(claim.modes[mode].differs) if pairs(claim, mode) else "",
                    "reported": claim.reported if isinstance(claim, Effect | Value) else NAN,
                    "measured": value,
                    "low": low,
                    "high": high,
                    "n": verdict.n,
                    "needed_n": NAN if verdict.needed_n is None else verdict.needed_n,
                    "verdict": str(verdict) if shown else "",
                    "firmness": verdict.firmness if shown else NAN,
                    "margin": margin,
                    "next_outcome": str(beyond or ""),
                    "recorded": str(before or ""),
                    "says": "" if declared is not None or synthetic else says(verdict.outcome, before),
                    "analogue": verdict.analogue,
                    "detail": verdict.detail if shown else "",
                }
            )
    return pd.DataFrame(rows)


def ingredients_table(reported: Reported, records: Sequence[Record]) -> pd.DataFrame:
    """Return one row for each ingredient: the mean paired difference in the primary metric, and its 95% t interval."""
    import pandas as pd

    numbers, metric = measured(records), reported.primary.metric
    rows = []
    for part in reported.ingredients:
        found = part_differences(part, numbers, reported.primary)
        low, high = bounds(found, spread(metric))
        rows.append(
            {
                "role": part.role,
                "ingredient": part.label,
                "arm": part.arm,
                "over": part.rival,
                "differs": _named(part.differs),
                "metric": metric,
                "difference": _mean(found),
                "low": low,
                "high": high,
                "n": len(found),
            }
        )
    return pd.DataFrame(rows)


def part_differences(part: Ingredient, numbers: Metrics, primary: Claim) -> list[float]:
    """Return the differences of an ingredient's two arms in the primary claim's metric, one for each seed of both.

    They are positive if the first arm does better.
    """
    found = values_of(numbers, primary.metric, part.arm, part.rival, lower_is_better=primary.lower_is_better)
    return list(found.values())


def _named(differs: Sequence[str]) -> str:
    return ", ".join(differs) or "nothing"


def on_claims_scale(claim: Claim, verdict: Verdict) -> tuple[float, float, float]:
    """Return mean and bounds on the claim's scale: if one arm is compared with a number, those of the arm itself.

    The bounds lie within that scale; they are nan for fewer than 3 seeds.
    """
    if isinstance(claim, Exact):
        return verdict.mean, verdict.low, verdict.high
    low, high = (verdict.low, verdict.high) if verdict.n >= LEAST else (NAN, NAN)
    rival, mean = fixed_rival(claim), verdict.mean
    if rival is None:
        span = (-1.0, 1.0) if isinstance(claim, Trend) else spread(claim.metric)
        return mean, *within((low, high), span)
    if claim.lower_is_better:
        return rival - mean, *within((rival - high, rival - low), limits(claim.metric))
    return rival + mean, *within((rival + low, rival + high), limits(claim.metric))


_GISTS = (
    {Outcome.REPLICATED, Outcome.LARGER, Outcome.SMALLER},
    {Outcome.MUCH_SMALLER},
    {Outcome.INCONCLUSIVE},
    {Outcome.NOT_REPLICATED, Outcome.NO_DIFFERENCE},
    {Outcome.CONTRADICTED, Outcome.NOT_REPLICATED_REVERSED, Outcome.REVERSED},
)


def says(here: Outcome, judged: Outcome | None) -> str:
    """Return what runs without a verdict say about the judged runs' one: agrees, disagrees or too few seeds.

    Reduced runs are not expected to keep the size of an effect. So an effect that is larger or smaller than reported
    agrees with one of the reported size; an effect that is much smaller does not.
    """
    if judged in (None, Outcome.TOO_FEW_SEEDS, Outcome.INTERIM):
        return "no full verdict yet"
    if here is Outcome.TOO_FEW_SEEDS:
        return "too few seeds"
    if any({here, judged} <= gist for gist in _GISTS):
        return "agrees"
    return "too few seeds" if here is Outcome.INCONCLUSIVE else "disagrees"
