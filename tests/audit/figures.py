"""The numbers that the figures draw, from records: each row of `<label>-figure.csv` and of `front.csv`.

Which rows a figure has, and in which panel, is compared with the figure made again.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kdlib.run.experiment import Experiment
from tests.audit.claims import Claim, Keys, Source, value_of
from tests.audit.faults import Faults, compare
from tests.audit.records import Record
from tests.audit.statistics import sample
from tests.audit.tables import Rows, choice, parsed, series

LEAST = 3  # seeds of an interval in a figure
CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
NUMBERS = ("value", "low", "high", "n")  # the cells that are derived; the others say of what
PARTS = ("schedule", "softness", "transfer")


def check_figure(path: Path, source: Source, records: Sequence[Record], ranged: bool) -> Faults:
    """Give a fault for each number of a figure's table that the records do not give.

    `ranged`: the runs should reach the source's numbers, so next to these there is the range of a mean.
    """
    rows = list(csv.DictReader(path.read_text("utf-8").split("\n")))
    seen: dict[tuple[str, ...], list[int]] = {}
    for row in (row for row in rows if row["mark"] == "seed"):
        seen.setdefault(_key(row), []).append(int(row["seed"]))
    for number, row in enumerate(rows, 2):
        alone = row["mark"] == "mean" and _key(row) not in seen  # a mean without its seeds has no interval
        expected = MARKS["lone mean" if alone else row["mark"]](row, source, records)
        if row["mark"] == "reported" and not ranged:
            expected = [expected[0], "", "", ""]
        for column, value in zip(NUMBERS, expected, strict=True):
            yield from compare(f"line {number}, {row['arm']}, {column}", value, parsed(row[column]))
        if row["mark"] == "mean" and not alone:
            pairs = _pairs(records, row["arm"], row["over"], row["metric"])
            yield from compare(f"line {number}, {row['arm']}, its seeds", [*pairs], seen[_key(row)])


def _key(row: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(row[name] for name in ("panel", "series", "at", "arm", "over", "metric"))


def _factor(row: Mapping[str, str]) -> int:
    """Return what the records' numbers are multiplied by: the unit is in the name of the quantity."""
    if row["quantity"].startswith("fewer "):
        return -1
    return 1000 if "thousandths" in row["quantity"] else 100 if re.search(r"%|\bpoints\b", row["quantity"]) else 1


def _pairs(records: Sequence[Record], arm: str, over: str, metric: str) -> dict[int, float]:
    found = series(records, metric)
    ours, rivals = found.get(arm, {}), found.get(over, {})
    return {seed: ours[seed] - rivals[seed] if over else ours[seed] for seed in ours if not over or seed in rivals}


def _values(row: Mapping[str, str], records: Sequence[Record]) -> list[float]:
    pairs = _pairs(records, row["arm"], row["over"], row["metric"])
    return [float(_factor(row) * value) for value in pairs.values()]


def _interval(values: Sequence[float]) -> tuple[float | str, float | str]:
    found = sample(values)
    return (found.low, found.high) if len(values) >= LEAST and found.std else ("", "")


def _seed(row: Mapping[str, str], source: Source, records: Sequence[Record]) -> list[Any]:
    value = _factor(row) * _pairs(records, row["arm"], row["over"], row["metric"])[int(row["seed"])]
    return [float(value), "", "", ""]


def _mean(row: Mapping[str, str], source: Source, records: Sequence[Record]) -> list[Any]:
    values = _values(row, records)
    return [float(np.mean(values)), *_interval(values), float(len(values))]


def _lone_mean(row: Mapping[str, str], source: Source, records: Sequence[Record]) -> list[Any]:
    mean, *_, n = _mean(row, source, records)
    return [mean, "", "", n]


def _reported(row: Mapping[str, str], source: Source, records: Sequence[Record]) -> list[Any]:
    factor = _factor(row)
    if row["over"]:
        primary = next(claim for claim in source.claims.values() if claim.keys.get("primary"))
        return [float(factor * (-1 if primary.lower else 1) * primary.keys["reported"]), "", "", ""]
    value = value_of(source.values, row["arm"], row["metric"])
    assert value is not None, f"the source reports no {row['metric']} of {row['arm']}"
    n, number = len(_values({**row, "over": ""}, records)), float(factor * value.keys["value"])
    cell = "one run a cell" in row["panel"]  # of a map, which has no ranges
    if value.std is None or value.runs is None or not n or cell:
        return [number, "", "", ""]
    low, high = value.range(n)
    return [number, factor * low, factor * high, float(n)]


def _off(row: Mapping[str, str], source: Source, records: Sequence[Record]) -> list[Any]:
    values, theirs = _values(row, records), _reported(row, source, records)[0]
    return [float(np.mean(values)) - theirs, "", "", float(len(values))]


def _curve(row: Mapping[str, str], source: Source, records: Sequence[Record]) -> list[Any]:
    """A curve is of the epoch's own metric, or of the metric at the epoch so far with the lowest other one."""
    metric, _, lowest = row["metric"].partition(" of the lowest ")
    epoch, values = int(row["at"]), []
    for record in sorted(records, key=lambda record: int(record["seed"])):
        seen = record["history"][:epoch]
        if row["arm"] in record["arms"] and len(seen) == epoch:
            entry = min(seen, key=lambda entry: float(entry[lowest])) if lowest else seen[-1]
            values.append(_factor(row) * entry[metric])
    return [float(np.mean(values)), min(values), max(values), float(len(values))]


def _of_record(row: Mapping[str, str], records: Sequence[Record]) -> Mapping[str, Any]:
    (record,) = (r for r in records if row["arm"] in r["arms"] and r["seed"] == int(row["seed"]))
    return dict(record["metrics"][record["arms"][row["arm"]]])


def _bias(row: Mapping[str, str], source: Source, records: Sequence[Record]) -> list[Any]:
    curve = {float(bias): errors for bias, errors in _of_record(row, records)["curve"]}
    return [float(curve[float(row["at"])]), "", "", ""]


def _covariance(row: Mapping[str, str], source: Source, records: Sequence[Record]) -> list[Any]:
    first, second = (CIFAR.index(name) for name in row["at"].split(", "))
    return [_factor(row) * _of_record(row, records)["covariance"][first][second], "", "", ""]


MARKS = {
    "seed": _seed,
    "mean": _mean,
    "lone mean": _lone_mean,
    "reported": _reported,
    "off": _off,
    "curve": _curve,
    "bias": _bias,
    "covariance": _covariance,
}


# ---- the front picture


def front_rows(name: str, experiment: Experiment, source: Source, records: Sequence[Record]) -> Rows:
    """Return the front picture's rows of a replication: of each primary claim the gains, and the parts of ours."""
    profile, runs = "", list[Record]()
    for label in ("quick", experiment.judged):  # the judged runs, if there are any
        if found := [r for r in records if experiment.label(r["profile"], r["description"]["config"]) == label]:
            profile, runs = label, found
    if profile == experiment.judged:
        runs = [record for record in runs if record["seed"] < experiment.profiles[profile].seeds]
    rows: Rows = {}
    primary = [(key, claim) for key, claim in source.claims.items() if claim.keys.get("primary")]
    for place, (key, claim) in enumerate(primary):
        parts = [part for role in PARTS for part in source.ingredients if part.get("role") == role and place == 0]
        mode, steps = _mode(claim, parts)
        arm, over = claim.modes[mode].arms[0], claim.modes[mode].rivals[0] if claim.origin is None else ""
        about = {"mode": mode, "profile": profile, "metric": claim.metric}
        if claim.kind == "effect":
            number = {"value": float(claim.keys["reported"]), "low": "", "high": "", "n": "", "own": True}
            rows[f"{name}, {key}, reported"] = {**about, "arm": arm, "over": over, **number}
        compared = [("measured", arm, over, True)]
        seeds = _gains(source, claim, runs, arm, over).keys()
        for part in parts:
            same = _gains(source, claim, runs, part["arm"], part["over"]).keys() == seeds
            compared.append((part["role"], part["arm"], part["over"], part in steps and same))
        for role, first, second, own in compared:
            if gains := [*_gains(source, claim, runs, first, second).values()]:
                low, high = _interval(gains)
                numbers = {"value": float(np.mean(gains)), "low": low, "high": high, "n": float(len(gains)), "own": own}
                rows[f"{name}, {key}, {role}"] = {**about, "arm": first, "over": second, **numbers}
    return rows


def _gains(source: Source, claim: Claim, runs: Sequence[Record], arm: str, over: str) -> dict[int, float]:
    """Return the differences by seed, positive if the arm is better."""
    taken = {new: choice(keys, runs) for new, keys in source.chosen.items()}
    pairs = _pairs(runs, taken.get(arm, arm), taken.get(over, over), claim.metric)
    return {seed: -value if claim.lower and over else value for seed, value in pairs.items()}


def _mode(claim: Claim, parts: Sequence[Keys]) -> tuple[str, Sequence[Keys]]:
    """Return the first mode between whose arms the most parts lie, end to end."""
    best: tuple[str, Sequence[Keys]] = (next(iter(claim.modes)), ())
    for mode, compared in claim.modes.items():
        for first in range(len(parts)):
            path, at = list[Keys](), compared.rivals[0] if compared.rivals else ""
            for part in parts[first:]:
                if part["over"] != at:
                    break
                path, at = [*path, part], part["arm"]
                if at == compared.arms[0] and len(path) > len(best[1]):
                    best = (mode, path)
    return best
