"""The rows of a table, from its records: a number for each cell, unrounded; nan where a cell stays empty."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kdlib.audit.evidence import Record
from kdlib.audit.reported import Claim, Reported
from kdlib.audit.rule import INCONCLUSIVE, TOO_FEW, Ruling, ruling
from kdlib.audit.statistics import LEAST, NAN, half_width, sample
from kdlib.experiment import Experiment

Row = dict[str, Any]
FURTHER = ("agreement", "teacher_kl", "entropy", "parameters", "epochs")
FULL = "full"


def series(records: Sequence[Record], metric: str, least: int = 1) -> dict[str, dict[int, float]]:
    """A metric by arm and seed, of arms with at least so many seeds; a training loss is the last epoch's."""
    found: dict[str, dict[int, float]] = {}
    for record in records:
        for arm, snapshot in record["arms"].items():
            metrics = record["metrics"][snapshot]
            last = record["history"][: metrics.get("epochs")][-1:] if metric == "training_loss" else []
            value = metrics.get(metric, *(entry.get(metric) for entry in last))
            if isinstance(value, int | float):
                found.setdefault(arm, {})[record["seed"]] = value
    return {arm: dict(sorted(seeds.items())) for arm, seeds in found.items() if len(seeds) >= least}


def arms(experiment: Experiment, reported: Reported, records: Sequence[Record]) -> list[Row]:
    """A row for each arm that has records."""
    rows = []
    for arm in experiment.arms:
        mine = [(record, record["metrics"][record["arms"][arm.name]]) for record in records if arm.name in record["arms"]]
        if not mine:
            continue
        row: Row = {"arm": arm.name, "modes": ", ".join(arm.modes), "n": len(mine)}
        for metric in reported.metrics:
            values = [metrics[metric] for _, metrics in mine if metric in metrics]
            row |= {metric + key: number for key, number in _spread(values).items()}
            row[metric + "_test_set"] = _mean([half_width(metric, tuple(map(tuple, metrics["confusion"])))
                                               for _, metrics in mine if "confusion" in metrics])
            row |= {metric + key: number for key, number in _beside(reported, arm.name, metric, values).items()}
        row |= {name: _mean([metrics[name] for _, metrics in mine if name in metrics]) for name in FURTHER}
        rows.append(row)
    return rows


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else NAN


def _spread(values: Sequence[float]) -> Row:
    std = float(np.std(values, ddof=1)) if len(values) > 1 else NAN
    found = sample(values)
    return {"": _mean(values), "_std": std, "_low": found.low, "_high": found.high}


def _beside(reported: Reported, arm: str, metric: str, values: Sequence[float]) -> Row:
    value = reported.value(arm, metric)
    if value is None:
        return {"_reported": NAN, "_reported_std": NAN, "_range_low": NAN, "_range_high": NAN, "_inside": ""}
    low, high = value.range(len(values)) if values else (NAN, NAN)
    inside = bool(low <= np.mean(values) <= high) if values else ""
    return {"_reported": value.value, "_reported_std": NAN if value.std is None else value.std, "_range_low": low,
            "_range_high": high, "_inside": inside}


def rulings(reported: Reported, records: Sequence[Record], least: int = 1) -> dict[tuple[str, str], Ruling]:
    """The ruling on each claim in each mode; with `least`, only where all arms have so many seeds."""
    found = {}
    for claim in reported.claims:
        measured = series(records, claim.metric, least)
        taken = {name: choice(table, records, least) for name, table in reported.chosen.items()}
        measured |= {name: measured[arm] for name, arm in taken.items() if arm in measured}
        for name, mode in claim.modes.items():
            if least == 1 or measured.keys() >= set(mode.all):
                found[claim.name, name] = ruling(claim, mode, measured)
    return found


def choice(table: Mapping[str, Any], records: Sequence[Record], least: int = 1) -> str:
    """The arm with the highest mean of a metric, among arms that all have it for the same seeds; else none, ""."""
    found = series(records, table["by"], least)
    if len({tuple(found.get(arm, {})) for arm in table["among"]}) > 1 or table["among"][0] not in found:
        return ""
    # Sums that differ in their last digits only are equal: the first arm is meant then.
    means = [(round(float(np.sum(list(found[arm].values()))), 9), -place) for place, arm in enumerate(table["among"])]
    return str(table["among"][-max(means)[1]])


def claims(reported: Reported, records: Sequence[Record], full: Sequence[Record], other_data: bool = False) -> list[Row]:
    """A row for each claim and mode; `full`: the full runs on the same data; `other_data`: than the source's."""
    verdicts = records[0]["profile"] == FULL
    judged, recorded = rulings(reported, records), rulings(reported, full, LEAST)
    rows = []
    for claim in reported.claims:
        for mode in claim.modes:
            found, before = judged[claim.name, mode], recorded.get((claim.name, mode))
            measured, low, high = on_scale(claim, found)
            rows.append({
                "claim": claim.name, "mark": claim.mark, "kind": claim.kind, "metric": claim.metric,
                "statement": claim.keys["statement"], "mode": mode,
                "reported": float(claim.keys["reported"]) if claim.kind in ("effect", "value") else NAN,
                "measured": measured, "low": low, "high": high, "n": found.n,
                "needed_n": NAN if found.needed is None else found.needed, "verdict": found.outcome if verdicts else "",
                "recorded": before.outcome if before else "", "says": "" if verdicts else says(found, before),
                "analogue": other_data or bool(claim.keys.get("analogue", False)), "detail": found.explained if verdicts else "",
            })  # fmt: skip
    return rows


def ingredients(reported: Reported, records: Sequence[Record]) -> list[Row]:
    """A row for each ingredient: the differences of two arms over the seeds they share."""
    metric = next(claim.metric for claim in reported.claims if claim.mark == "primary")
    found, rows = series(records, metric), []
    for part in reported.ingredients:
        first, second = found.get(part["arm"], {}), found.get(part["over"], {})
        differences = sample([first[seed] - second[seed] for seed in first if seed in second])
        rows.append({**part, "metric": metric, "n": differences.n, "difference": differences.mean,
                     "low": differences.low, "high": differences.high})
    return rows


def on_scale(claim: Claim, found: Ruling) -> tuple[float, float, float]:
    """Mean and bounds as the claim counts: of a value itself, where it was judged by what it exceeds another."""
    if claim.kind != "value" and "threshold" not in claim.keys:
        return found.mean, found.low, found.high
    origin = float(claim.keys["trivial"] if claim.kind == "value" else claim.keys["threshold"])
    if claim.lower:
        return origin - found.mean, origin - found.high, origin - found.low
    return origin + found.mean, origin + found.low, origin + found.high


def of_one_teacher(experiment: Experiment, records: Sequence[Record]) -> list[str]:
    """The arms of several seeds whose runs have an ancestor in common."""
    above = {record["run"]: {parent.partition("/")[0] for parent in record["description"]["parents"].values()}
             for record in records}
    for _ in experiment.arms:  # no chain is longer
        above = {run: runs | {older for parent in runs for older in above.get(parent, ())} for run, runs in above.items()}
    seeds = {arm.name: [above[record["run"]] for record in records if arm.name in record["arms"]] for arm in experiment.arms}
    return [arm for arm, found in seeds.items() if len(found) > 1 and set.intersection(*found)]


_SAME = ({"replicated", "effect replicated, magnitude differs (larger)", "effect replicated, magnitude differs (smaller)"},
         {"not replicated", "no difference"}, {"contradicted", "not replicated (reversed)", "reversed"})


def says(found: Ruling, before: Ruling | None) -> str:
    """Whether runs of a reduced profile agree with the full ones' verdict."""
    if before is None or before.outcome == TOO_FEW:
        return "no full record yet"
    if found.outcome == TOO_FEW:
        return "too few seeds"
    if found.outcome == before.outcome or any({found.outcome, before.outcome} <= same for same in _SAME):
        return "agrees"
    return "too few seeds" if found.outcome == INCONCLUSIVE else "disagrees"


def empty(value: Any) -> bool:
    """Whether a cell has nothing in it."""
    return value == "" or (isinstance(value, float) and math.isnan(value))
