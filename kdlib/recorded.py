"""Bands and verdicts of our own recorded runs (`recorded.toml`): written by a command, never by hand.

[bands."<data digest>".<profile>."<arm>.<metric>"]   low, high, mean, n, seeds, values, commit
[verdicts."<data digest>".<profile>.<claim>]         "<mode>" = "<outcome>"
[inside."<data digest>".<profile>]                   "<arm>.<metric>" = true: within the reported range
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from kdlib.claims import MODES, Reported, reported_range
from kdlib.errors import KDError
from kdlib.files import atomic_write
from kdlib.intervals import prediction_interval
from kdlib.judging import Metrics
from kdlib.schema import Table, read_toml
from kdlib.verdicts import MIN_SEEDS, Outcome, all_equal

__all__ = [
    "Band", "Miss", "Record", "band", "changes", "check_bands", "inside_ranges", "read_recorded",
    "record_bands", "write_recorded",
]  # fmt: skip

BAND_LEVEL = 0.99  # a check looks at several numbers: at 95% each, other processors would fail one check in four


@dataclass(frozen=True)
class Band:
    """Where one more run of an arm should lie: mean -+ t s sqrt(1 + 1/n) of the runs recorded."""

    low: float
    high: float
    mean: float
    seeds: tuple[int, ...]
    values: tuple[float, ...]
    commit: str


@dataclass(frozen=True)
class Record:
    """All that is recorded about one data digest and profile."""

    bands: Mapping[str, Band] = field(default_factory=dict)
    verdicts: Mapping[str, Mapping[str, Outcome]] = field(default_factory=dict)  # by claim and mode
    inside: Mapping[str, bool] = field(default_factory=dict)  # `<arm>.<metric>`: mean in its reported range


Recorded = Mapping[tuple[str, str], Record]  # by data digest and profile


@dataclass(frozen=True)
class Miss:
    """A measured number outside its band (nan: the run lacks the metric)."""

    arm: str
    seed: int
    metric: str
    band: Band
    observed: float

    def __str__(self) -> str:
        band = f"{self.band.low:.6g} to {self.band.high:.6g}, recorded by commit {self.band.commit}"
        return f"{self.arm}, seed {self.seed}: {self.metric} is {self.observed:.6g}, outside its band {band}"


def band(values: Mapping[int, float], commit: str) -> Band:
    """The prediction band of one more run, from those of >= 5 seeds (seed -> value)."""
    seeds = tuple(sorted(values))
    sample = np.array([values[seed] for seed in seeds], dtype=np.float64)
    if len(sample) < MIN_SEEDS or not np.isfinite(sample).all():
        raise KDError(f"a band needs {MIN_SEEDS} finite values, found {sample.tolist()}: run more seeds")
    # equal numbers have a band of no width: their computed s may be one rounding above 0
    mean, s = float(sample.mean()), 0.0 if all_equal(sample) else float(sample.std(ddof=1))
    low, high = prediction_interval(mean, s, len(sample), level=BAND_LEVEL)
    return Band(low, high, mean, seeds, tuple(float(value) for value in sample), commit)


def record_bands(metrics: Metrics, names: Collection[str], commits: Mapping[str, str]) -> dict[str, Band]:
    """Bands of the metrics `names` of every arm that has them, by `<arm>.<metric>`; `commits` by arm."""
    bands = {}
    for arm, seeds in metrics.items():
        for name in names:
            values = {seed: measured[name] for seed, measured in seeds.items() if name in measured}
            if values:
                bands[f"{arm}.{name}"] = band(values, commits[arm])
    return bands


def check_bands(bands: Mapping[str, Band], metrics: Metrics) -> list[Miss]:
    """Every measured number of a banded arm and metric that is missing, not finite or outside its band."""
    misses = []
    for key, expected in sorted(bands.items()):
        arm, _, metric = key.partition(".")
        slack = 1e-9 * max(abs(expected.low), abs(expected.high))  # a band of no width, on another machine
        for seed, measured in sorted(metrics.get(arm, {}).items()):
            observed = measured.get(metric, math.nan)
            if not expected.low - slack <= observed <= expected.high + slack:
                misses.append(Miss(arm, seed, metric, expected, observed))
    return misses


def inside_ranges(reported: Reported, metrics: Metrics) -> dict[str, bool]:
    """Whether each measured mean that a reported number stands beside lies in that number's range."""
    inside = {}
    for value in reported.values.values():
        for arm in (value.arm, *value.also):
            found = [m[value.metric] for m in metrics.get(arm, {}).values() if value.metric in m]
            if found:
                low, high = reported_range(value, len(found))
                inside[f"{arm}.{value.metric}"] = low <= float(np.mean(found)) <= high
    return inside


def changes(
    recorded: Record, verdicts: Mapping[str, Mapping[str, Outcome]], inside: Mapping[str, bool]
) -> list[str]:
    """A sentence for each recorded verdict, or place in or out of a reported range, that is now another."""
    found = []
    for claim, modes in sorted(recorded.verdicts.items()):
        for mode, outcome in sorted(modes.items()):
            now = verdicts.get(claim, {}).get(mode, outcome)
            if now != outcome:
                found.append(f"{claim}, {mode}: recorded {outcome}, now {now}")
    for key, was in sorted(recorded.inside.items()):
        if inside.get(key, was) != was:
            places = ("outside", "inside")
            found.append(f"{key}: recorded {places[was]} its reported range, now {places[not was]}")
    return found


# ---- the file


def read_recorded(path: Path) -> dict[tuple[str, str], Record]:
    """Read a `recorded.toml`, by data digest and profile; empty where there is no such file yet."""
    if not path.exists():
        return {}
    root = read_toml(path)
    root.only({"bands", "verdicts", "inside"})
    records: dict[tuple[str, str], Record] = {}
    for key, table in _by_profile(root.table("bands", needed=False)):
        records[key] = Record({name: _read_band(inner) for name, inner in table.tables()})
    for key, table in _by_profile(root.table("verdicts", needed=False)):
        outcomes = {claim: _read_outcomes(inner) for claim, inner in table.tables()}
        records[key] = replace(records.get(key, Record()), verdicts=outcomes)
    for key, table in _by_profile(root.table("inside", needed=False)):
        inside = {name: table.flag(name) for name in table.content}
        records[key] = replace(records.get(key, Record()), inside=inside)
    return records


def _by_profile(part: Table) -> Iterator[tuple[tuple[str, str], Table]]:
    for digest, profiles in part.tables():
        for profile, table in profiles.tables():
            yield (digest, profile), table


def _read_band(table: Table) -> Band:
    table.only({"low", "high", "mean", "n", "seeds", "values", "commit"})
    low, high, mean = (table.number(key) for key in ("low", "high", "mean"))
    seeds, values = (table.list_of(key, MIN_SEEDS) for key in ("seeds", "values"))
    if low > high:
        raise table.error("low", f"at most high, {high:g}")
    if not len(seeds) == len(values) == table.integer("n", MIN_SEEDS, 1000):
        raise table.error("n", f"the number of seeds, {len(seeds)}, and of values, {len(values)}")
    if any(type(seed) is not int for seed in seeds):
        raise table.error("seeds", "whole numbers")
    if any(type(value) is not float or not math.isfinite(value) for value in values):
        raise table.error("values", "finite numbers with a decimal point")
    return Band(low, high, mean, tuple(seeds), tuple(values), table.text_of("commit"))


def _read_outcomes(table: Table) -> dict[str, Outcome]:
    table.only(MODES)
    options = [outcome.value for outcome in Outcome]
    return {mode: Outcome(table.choice(mode, options)) for mode in table.content}


def write_recorded(path: Path, recorded: Recorded) -> None:
    """Write a whole `recorded.toml`: the same records always give the same bytes."""
    lines = ["# Generated from recorded runs; a change by hand is overwritten by the next recording.", ""]
    for (digest, profile), record in sorted(recorded.items()):
        for key, recorded_band in sorted(record.bands.items()):
            lines += [_header("bands", digest, profile, key), *_band_lines(recorded_band), ""]
        for claim, modes in sorted(record.verdicts.items()):
            outcomes = [f"{_quoted(mode)} = {_quoted(outcome)}" for mode, outcome in sorted(modes.items())]
            lines += [_header("verdicts", digest, profile, claim), *outcomes, ""]
        if record.inside:
            places = [f"{_quoted(key)} = {str(i).lower()}" for key, i in sorted(record.inside.items())]
            lines += [_header("inside", digest, profile), *places, ""]
    atomic_write(path, "\n".join(lines).encode())


def _band_lines(recorded: Band) -> list[str]:
    return [
        f"low = {recorded.low!r}",
        f"high = {recorded.high!r}",
        f"mean = {recorded.mean!r}",
        f"n = {len(recorded.values)}",
        f"seeds = {list(recorded.seeds)}",
        f"values = {list(recorded.values)}",
        f"commit = {_quoted(recorded.commit)}",
    ]


def _header(part: str, *keys: str) -> str:
    return f"[{'.'.join([part, *(_quoted(key) for key in keys)])}]"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=True)  # JSON's escapes are TOML's
