"""The numbers of the CSV files and of `bands.toml`, from records, and their comparison with the files."""

from __future__ import annotations

import csv
import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kdlib.run.experiment import Experiment
from tests.audit.claims import Claim, Source, value_of
from tests.audit.faults import Faults, compare
from tests.audit.records import Groups, Record
from tests.audit.rule import TOO_FEW, columns, differences, firmness, margin, verdict
from tests.audit.statistics import LEAST, NAN, Sample, half_width, prediction, sample


class Verdict(NamedTuple):
    """An outcome, and what it is judged by."""

    outcome: str
    judged_by: Sample
    columns: list[list[float]]  # the numbers themselves, a list for each rival; none without a verdict


Rows = dict[str, dict[str, Any]]  # by name and column; nan and "" are empty cells
NAMED = {"arms": ["arm"], "claims": ["claim", "mode"], "ingredients": ["ingredient"]}
NAMED["front"] = ["replication", "claim", "part"]  # the cells that name a row
FURTHER = ("agreement", "teacher_kl", "entropy", "parameters", "epochs")


def series(records: Sequence[Record], metric: str, least: int = 1) -> dict[str, dict[int, float]]:
    """Return a metric by arm and seed, of arms with at least so many seeds; a training loss is the last epoch's."""
    found: dict[str, dict[int, float]] = {}
    for record in records:
        for arm, snapshot in record["arms"].items():
            metrics = record["metrics"][snapshot]
            last = record["history"][: metrics.get("epochs")][-1:] if metric == "training_loss" else []
            value = metrics.get(metric, *(entry.get(metric) for entry in last))
            if isinstance(value, int | float):
                found.setdefault(arm, {})[record["seed"]] = value
    return {arm: dict(sorted(seeds.items())) for arm, seeds in found.items() if len(seeds) >= least}


def verdicts(source: Source, records: Sequence[Record], declared: int | None) -> dict[tuple[str, str], Verdict]:
    """Return the verdict on each claim in each mode, by the declared seeds only if a number is given."""
    if declared is not None:
        records = [record for record in records if record["seed"] < declared]
    found = {}
    for name, claim in source.claims.items():
        measured = series(records, claim.metric)
        taken = {new: choice(keys, records) for new, keys in source.chosen.items()}
        measured |= {new: measured[arm] for new, arm in taken.items() if arm in measured}
        for key, mode in claim.modes.items():
            outcome, judged_by = verdict(claim, mode, measured)
            if declared is not None and claim.kind != "exact" and judged_by.n < declared:
                outcome = f"interim, {judged_by.n} of {declared} seeds, no verdict"
            firm = claim.kind != "exact" and not outcome.startswith("interim")
            found[name, key] = Verdict(outcome, judged_by, columns(claim, mode, measured) if firm else [[]])
    return found


def given(found: Mapping[tuple[str, str], Verdict]) -> dict[tuple[str, str], Verdict]:
    """Return the verdicts proper, without those that are interim or of too few seeds."""
    return {key: one for key, one in found.items() if one.outcome != TOO_FEW and not one.outcome.startswith("interim")}


def choice(keys: Mapping[str, Any], records: Sequence[Record]) -> str:
    """Return the arm with the best mean of a metric, if all arms have it for the same seeds; else nothing."""
    found, among = series(records, keys["by"]), keys["among"]
    if len({tuple(found.get(arm, {})) for arm in among}) > 1 or among[0] not in found:
        return ""
    sign = -1 if keys.get("lower_is_better") else 1
    # Sums that only differ in their last digits are equal: the first arm is meant then.
    return str(max(among, key=lambda arm: sign * round(float(np.sum(list(found[arm].values()))), 9)))


def arm_rows(experiment: Experiment, source: Source, records: Sequence[Record], expected: bool) -> Rows:
    """Return a row for each arm that has records, in the experiment's order.

    `expected`: the runs should reach the source's numbers, because their profile is the judged one or not reduced.
    """
    rows: Rows = {}
    for arm in experiment.arms:
        if found := [record["metrics"][record["arms"][arm.name]] for record in records if arm.name in record["arms"]]:
            row: dict[str, Any] = {"n": len(found)}
            for metric in source.metrics:
                row |= _of_metric(source, arm.name, metric, found, expected)
            rows[arm.name] = row | {
                name: _mean([metrics[name] for metrics in found if name in metrics]) for name in FURTHER
            }
    return rows


def _of_metric(
    source: Source, arm: str, metric: str, found: Sequence[Mapping[str, Any]], expected: bool
) -> dict[str, Any]:
    values = [metrics[metric] for metrics in found if metric in metrics]
    (mean, low, high), reported = _interval(values, *ends(metric)), value_of(source.values, arm, metric)
    confusions = [tuple(map(tuple, metrics["confusion"])) for metrics in found if "confusion" in metrics]
    ranged = reported is not None and len(values) > 0 and expected
    least, most = _cut(*reported.range(len(values)), *ends(metric)) if reported and ranged else (NAN, NAN)
    row = {
        "": mean,
        "_std": float(np.std(values, ddof=1)) if len(values) > 1 else NAN,
        "_low": low,
        "_high": high,
        "_test_set": _mean([half_width(metric, confusion) for confusion in confusions]),
        "_reported": float(reported.keys["value"]) if reported else NAN,
        "_reported_std": reported.std if reported and reported.std is not None else NAN,
        "_range_low": least,
        "_range_high": most,
        "_inside": bool(least <= mean <= most) if ranged else "",
    }
    return {metric + end: value for end, value in row.items()}


def _interval(values: Sequence[float], least: float, most: float) -> tuple[float, float, float]:
    """Return the mean and its bounds, which two values do not have, between the ends of the metric."""
    found = sample(values)
    low, high = (found.low, found.high) if found.std and found.n > 2 else (NAN, NAN)
    return found.mean, *_cut(low, high, least, most)


def ends(metric: str) -> tuple[float, float]:
    """Return the least and the largest value of a metric; infinite if it has none."""
    if re.search(r"(accuracy|f1|agreement)$", metric):
        return 0.0, 1.0
    return (0.0 if re.search(r"(loss|entropy|kl|^errors)$", metric) else -math.inf), math.inf


def _differences(metric: str) -> tuple[float, float]:
    """Return the ends of a difference of two values of a metric."""
    most = 1.0 if ends(metric) == (0.0, 1.0) else math.inf
    return -most, most


def _cut(low: float, high: float, least: float, most: float) -> tuple[float, float]:
    """Return bounds that are not beyond the ends; nan stays."""
    return float(np.clip(low, least, most)), float(np.clip(high, least, most))


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else NAN


def claim_rows(
    experiment: Experiment, source: Source, records: Sequence[Record], judged: Sequence[Record], is_judged: bool
) -> Rows:
    """Return a row for each claim and mode; the verdicts of the `judged` runs are shown next to those of others."""
    declared = experiment.profiles[experiment.judged].seeds
    before, rows = given(verdicts(source, judged, declared)), {}
    for (name, mode), (outcome, found, numbers) in verdicts(source, records, declared if is_judged else None).items():
        claim = source.claims[name]
        measured, low, high = _on_scale(claim, found)
        rows[f"{name}, {mode}"] = {
            "differs": _differs(claim.modes[mode].differs) if claim.pairs(mode) else "",
            "reported": float(claim.keys["reported"]) if claim.kind in ("effect", "value") else NAN,
            "measured": measured,
            "low": low,
            "high": high,
            "n": found.n,
            "verdict": outcome if is_judged else "",
            "recorded": before[name, mode].outcome if (name, mode) in before else "",
        }
        if is_judged:
            far, beyond = margin(claim, numbers)
            rows[f"{name}, {mode}"] |= {"firmness": firmness(claim, numbers), "margin": far, "next_outcome": beyond}
    return rows


def ingredient_rows(source: Source, records: Sequence[Record]) -> Rows:
    """Return a row for each ingredient: the paired differences in the primary claim's metric."""
    primary = next(claim for claim in source.claims.values() if claim.keys.get("primary"))
    metric, sign = primary.metric, -1 if primary.keys.get("lower_is_better") else 1
    found, rows = series(records, metric), {}
    for part in source.ingredients:
        values = [sign * value for value in differences(found, part["arm"], part["over"])]
        row = dict(zip(("difference", "low", "high"), _interval(values, *_differences(metric)), strict=True))
        named = {"arm": part["arm"], "over": part["over"], "differs": _differs(part["differs"])}
        rows[part["label"]] = {**named, "metric": metric, **row, "n": len(values)}
    return rows


def _differs(words: Sequence[str]) -> str:
    return ", ".join(words) if words else "nothing"


def _on_scale(claim: Claim, found: Sample) -> tuple[float, float, float]:
    """Return mean and bounds of the value itself if the claim is about one arm's value."""
    if claim.kind == "exact":
        return found.mean, found.low, found.high
    low, high = (found.low, found.high) if found.n > 2 else (NAN, NAN)
    if claim.origin is None:
        return found.mean, *_cut(low, high, *((-1.0, 1.0) if claim.kind == "trend" else _differences(claim.metric)))
    if claim.lower:
        return claim.origin - found.mean, *_cut(claim.origin - high, claim.origin - low, *ends(claim.metric))
    return claim.origin + found.mean, *_cut(claim.origin + low, claim.origin + high, *ends(claim.metric))


# ---- bands


def band_tables(experiment: Experiment, source: Source, records: Sequence[Record]) -> dict[str, dict[str, Any]]:
    """Return bands of each banded metric of the arms with enough seeds; of judged runs also verdicts and places."""
    tables: dict[str, dict[str, Any]] = {"bands": {}, "verdicts": {}, "inside": {}}
    for metric in experiment.banded:
        for arm, seeds in series(records, metric, LEAST).items():
            commits = {record["environment"]["commit"][:12] for record in records if arm in record["arms"]}
            tables["bands"][f"{arm}.{metric}"] = {**_band(seeds), "commit": ", ".join(sorted(commits))}
    if records[0]["profile"] == experiment.judged:
        declared = experiment.profiles[experiment.judged].seeds
        for (claim, mode), one in given(verdicts(source, records, declared)).items():
            tables["verdicts"].setdefault(claim, {})[mode] = one.outcome
        for value in source.values:
            for arm, seeds in series(records, value.metric, LEAST).items():
                if arm in value.arms:
                    low, high = value.range(len(seeds))
                    tables["inside"][f"{arm}.{value.metric}"] = bool(low <= np.mean(list(seeds.values())) <= high)
    return tables


def _band(seeds: Mapping[int, float]) -> dict[str, Any]:
    """Return where 99% of further runs should lie, by the runs of these seeds: mean -+ t s sqrt(1 + 1/n)."""
    values = [float(value) for value in seeds.values()]
    found = sample(values)
    low, high = prediction(found.mean, found.std, len(values), 1, 0.99)
    return {"low": low, "high": high, "mean": found.mean, "n": len(values), "seeds": list(seeds), "values": values}


# ---- files


def check_csv(path: Path, rows: Rows, keys: Sequence[str]) -> Faults:
    """Give a fault for each number, verdict and row of a CSV file that differs; `keys`: the columns that name a row."""
    table = {", ".join(line[key] for key in keys): line for line in csv.DictReader(path.read_text("utf-8").split("\n"))}
    yield from compare("rows", list(rows), list(table))
    for name in (name for name in rows if name in table):
        for column, value in rows[name].items():
            expected = "" if isinstance(value, float) and math.isnan(value) else value
            yield from compare(f"row {name}, column {column}", expected, parsed(table[name][column]))


def parsed(cell: str) -> str | float | bool:
    """Return a cell of a CSV file as a number or a truth value, if it is one."""
    try:
        return float(cell)
    except ValueError:
        return {"True": True, "False": False}.get(cell, cell)


def check_bands(path: Path, experiment: Experiment, source: Source, groups: Groups) -> Faults:
    """Give a fault for each difference between a `bands.toml` and what the records say."""
    expected: dict[str, Any] = {}
    for (data, profile), records in groups.items():
        for part, table in band_tables(experiment, source, records).items():
            expected.setdefault(part, {}).setdefault(data, {})[profile] = table
    found = tomllib.loads(path.read_text("utf-8")) if path.exists() else {}
    yield from compare("tables", _filled(expected), _filled(found))


def _filled(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return the table without empty tables: a claim without a verdict may have one."""
    inner = {key: _filled(value) if isinstance(value, Mapping) else value for key, value in table.items()}
    return {key: value for key, value in inner.items() if value != {}}
