"""Arms beside the reported numbers and claims beside their verdicts, as pandas frames; nothing is rounded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kdlib import intervals, recorded
from kdlib.claims import Claim, Reported, reported_range
from kdlib.experiment import Arm
from kdlib.judging import judge, with_choices
from kdlib.report.evidence import Record, measured
from kdlib.report.markdown import mark
from kdlib.verdicts import Outcome, Verdict, all_equal

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["arms_table", "claims_table", "ingredients_table", "is_full", "metrics_of", "on_claims_scale", "says"]

FULL = "full"  # the profile whose runs get verdicts
NAN = float("nan")

# ---- arms


def arms_table(
    experiment_arms: Sequence[Arm], reported: Reported, records: Sequence[Record], synthetic: bool = False
) -> pd.DataFrame:
    """One row per arm with records, in the experiment's order; shares stay shares, nothing is rounded.

    Per metric of the source: mean, std, 95% t interval over seeds, the mean half-width of the test set's own
    95% interval, the reported number with its range, and whether the mean lies inside (None: cannot be said).
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
            row |= _metric(arm.name, metric, seeds, reported, _confusions(arm.name, records), synthetic)
        for key in ("agreement", "teacher_kl", "entropy", "parameters", "epochs"):
            row[key] = _mean([run[key] for run in seeds.values() if key in run])
        rows.append(row)
    return pd.DataFrame(rows)


def metrics_of(reported: Reported) -> list[str]:
    """The metrics that the source claims or reports something of, but for those of exact claims."""
    claims = list(reported.claims.values())
    exact = {claim.metric for claim in claims if claim.kind == "exact"}
    named = [*(c.metric for c in claims if not c.ours), *(v.metric for v in reported.values.values())]
    return [metric for metric in dict.fromkeys(named) if metric not in exact]


def _metric(
    arm: str, metric: str, seeds: Mapping[int, Mapping[str, float]], reported: Reported,
    confusions: Sequence[Any], synthetic: bool,
) -> dict[str, Any]:  # fmt: skip
    values = [run[metric] for run in seeds.values() if metric in run]
    mean, several = _mean(values), len(values) > 1
    low, high = intervals.t_interval(values)[:2] if several and not all_equal(values) else (NAN, NAN)
    value = reported.value(arm, metric)
    span = reported_range(value, len(values)) if value and values else (NAN, NAN)
    known = {
        "": mean, "_std": float(np.std(values, ddof=1)) if several else NAN, "_low": low, "_high": high,
        "_test_set": _mean([_test_set(metric, confusion) for confusion in confusions]),
        "_reported": value.value if value else NAN,
        "_reported_std": NAN if value is None or value.std is None else value.std,
        "_range_low": span[0], "_range_high": span[1],
        # numbers of made-up data lie in no range of the source's but by chance
        "_inside": span[0] <= mean <= span[1] if value and values and not synthetic else None,
    }  # fmt: skip
    return {metric + key: number for key, number in known.items()}


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else NAN


def _confusions(arm: str, records: Iterable[Record]) -> list[Any]:
    found = (record.metrics[record.arms[arm]].get("confusion") for record in records if arm in record.arms)
    return [confusion for confusion in found if confusion is not None]


def _test_set(metric: str, confusion: Any) -> float:
    """Half the width of the 95% interval that the finite test set leaves to one run."""
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
    full_record: recorded.Record | None,
    synthetic: bool = False,
    analogue: bool = False,
) -> pd.DataFrame:
    """One row per claim and mode: what is reported and measured, with verdicts; nothing is rounded.

    `full_record` holds the verdicts of the full runs on the same data. Full runs have a `verdict`, all others
    instead `says`; runs on synthetic data have neither. `analogue`: these are other data than the source's.
    """
    import pandas as pd

    full = is_full(records)
    numbers = with_choices(reported.choices, measured(records))
    rows = []
    for claim in reported.claims.values():
        for mode in claim.modes:
            verdict = judge(claim, mode, numbers, analogue=analogue)
            before = (
                full_record.verdicts.get(claim.name, {}).get(mode) if full_record and not synthetic else None
            )
            value, low, high = on_claims_scale(claim, verdict)
            rows.append({
                "claim": claim.name, "mark": mark(claim), "kind": claim.kind, "metric": claim.metric,
                "statement": claim.statement, "mode": mode,
                "reported": claim.reported if claim.kind in ("effect", "value") else NAN,
                "measured": value, "low": low, "high": high, "n": verdict.n,
                "needed_n": NAN if verdict.needed_n is None else verdict.needed_n,
                "verdict": str(verdict.verdict) if full and not synthetic else "",
                "recorded": str(before or ""),
                "says": "" if full or synthetic else says(verdict.verdict, before),
                "analogue": verdict.analogue, "detail": verdict.detail if full and not synthetic else "",
            })  # fmt: skip
    return pd.DataFrame(rows)


def ingredients_table(reported: Reported, records: Sequence[Record]) -> pd.DataFrame:
    """One row per ingredient: the mean paired difference of the primary claim's metric, with its 95% t interval."""
    import pandas as pd

    numbers, metric = measured(records), reported.primary.metric
    rows = []
    for part in reported.ingredients:
        first, second = numbers.get(part.arm, {}), numbers.get(part.over, {})
        found = [first[seed][metric] - second[seed][metric] for seed in sorted(first.keys() & second.keys())]
        low, high = intervals.t_interval(found)[:2] if not all_equal(found) else (NAN, NAN)
        rows.append({"ingredient": part.label, "arm": part.arm, "over": part.over, "difference": _mean(found),
                     "low": low, "high": high, "n": len(found)})
    return pd.DataFrame(rows)


def is_full(records: Iterable[Record]) -> bool:
    """Whether these are runs of the full profile, which alone give verdicts."""
    return {record.profile for record in records} == {FULL}


def on_claims_scale(claim: Claim, verdict: Verdict) -> tuple[float, float, float]:
    """Mean and bounds on the scale of the claim: a verdict on a value is about what it exceeds another by."""
    if claim.kind != "value" and claim.threshold is None:
        return verdict.mean, verdict.low, verdict.high
    origin = claim.trivial if claim.kind == "value" else float(claim.threshold or 0.0)
    if claim.lower_is_better:
        return origin - verdict.mean, origin - verdict.high, origin - verdict.low
    return origin + verdict.mean, origin + verdict.low, origin + verdict.high


_GISTS = (
    {Outcome.REPLICATED, Outcome.LARGER, Outcome.SMALLER},
    {Outcome.MUCH_SMALLER},
    {Outcome.INCONCLUSIVE},
    {Outcome.NOT_REPLICATED, Outcome.NO_DIFFERENCE},
    {Outcome.CONTRADICTED, Outcome.NOT_REPLICATED_REVERSED, Outcome.REVERSED},
)


def says(verdict_here: Outcome, recorded_verdict: Outcome | None) -> str:
    """What runs that give no verdict of their own say of the full runs': agrees, disagrees or too few seeds.

    An effect that is replicated but larger or smaller than reported agrees with one of the size reported, as
    reduced runs are not expected to keep sizes; one that is much smaller does not.
    """
    if recorded_verdict in (None, Outcome.TOO_FEW_SEEDS):
        return "no full record yet"
    if verdict_here is Outcome.TOO_FEW_SEEDS:
        return "too few seeds"
    if any({verdict_here, recorded_verdict} <= gist for gist in _GISTS):
        return "agrees"
    return "too few seeds" if verdict_here is Outcome.INCONCLUSIVE else "disagrees"
