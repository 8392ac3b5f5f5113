"""Bands and verdicts of the recorded runs (`bands.toml`), which a command writes.

[bands."<data digest>".<profile>."<arm>.<metric>"]   low, high, mean, n, seeds, values, commit
[verdicts."<data digest>".<profile>.<claim>]         "<mode>" = "<outcome>"
[inside."<data digest>".<profile>]                   "<arm>.<metric>" = true: within the reported range
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from kdlib.errors import KDError
from kdlib.files import atomic_write
from kdlib.judge.claims import MODES, Reported, reported_range
from kdlib.judge.intervals import prediction_interval
from kdlib.judge.judging import Metrics, outcomes
from kdlib.judge.schema import SchemaError, Table, read_toml
from kdlib.judge.verdicts import MIN_SEEDS, Outcome, all_equal

__all__ = [
    "Band",
    "Bands",
    "band_of",
    "bands_of",
    "inside_ranges",
    "read_bands",
    "write_bands",
]

MOST_BYTES = 10_000_000
MOST_VALUES = 10_000  # of a band: as many as a session may have seeds
LARGEST = 1e60  # a bound of numbers of which records hold at most 1e50
MOST_COMMITS = 20  # that a band names
_TEXT = r'"(?:[^"\\]|\\.)*+"'
# Of what `write_bands` writes: a comment, a table's head, a key with one value or with a list of numbers, or nothing.
LINE = re.compile(rf"#.*|\[\w+(?:\.{_TEXT}){{2,3}}\]|(?:\w+|{_TEXT}) = (?:{_TEXT}|[\w.+-]+|\[[\w.+, -]*\])|")

BAND_LEVEL = 0.99


@dataclass(frozen=True)
class Band:
    """Where one more run of an arm should lie: mean -+ t s sqrt(1 + 1/n) of the runs on record."""

    low: float
    high: float
    mean: float
    seeds: tuple[int, ...]
    values: tuple[float, ...]
    commit: str


@dataclass(frozen=True)
class Bands:
    """Bands, verdicts and ranges of one data digest and profile."""

    bands: Mapping[str, Band] = field(default_factory=dict)  # by `<arm>.<metric>`
    verdicts: Mapping[str, Mapping[str, Outcome]] = field(default_factory=dict)  # by claim and mode
    inside: Mapping[str, bool] = field(default_factory=dict)  # `<arm>.<metric>`: its mean lies in the reported range


# ---- from metrics


def band_of(values: Mapping[int, float], commit: str) -> Band:
    """Return the prediction band of one more run, from `values` of at least 5 seeds (seed -> value)."""
    seeds = tuple(sorted(values))
    sample = np.array([values[seed] for seed in seeds], dtype=np.float64)
    if len(sample) < MIN_SEEDS or not np.isfinite(sample).all():
        raise KDError(f"a band needs {MIN_SEEDS} finite values, found {sample.tolist()}: run more seeds")
    # Equal numbers have a band of no width: rounding may leave their computed s slightly above 0.
    mean, s = float(sample.mean()), 0.0 if all_equal(sample) else float(sample.std(ddof=1))
    low, high = prediction_interval(mean, s, len(sample), level=BAND_LEVEL)
    return Band(low, high, mean, seeds, tuple(float(value) for value in sample), commit)


def bands_of(
    metrics: Metrics,
    banded: Collection[str],
    commits: Mapping[str, str],
    reported: Reported | None = None,
    declared: int = 0,
) -> Bands:
    """Return the bands of the metrics `banded`, for every arm with enough seeds; `commits` by arm.

    With `reported`, for runs of the judged profile, also the verdicts on claims whose arms have all `declared` seeds,
    and the places in the reported ranges.
    """
    enough = {arm: seeds for arm, seeds in metrics.items() if len(seeds) >= MIN_SEEDS}
    found = {}
    for arm, seeds in enough.items():
        for name in banded:
            values = {seed: measured[name] for seed, measured in seeds.items() if name in measured}
            if values:
                if len(values) < len(seeds):
                    lack = ", ".join(str(seed) for seed in sorted(seeds.keys() - values.keys()))
                    raise KDError(
                        f"{arm}: expected {name} of all {len(seeds)} runs, found none in that of seed {lack}; correct "
                        "the training function, raise `protocol` in experiment.py and record again"
                    )
                found[f"{arm}.{name}"] = band_of(values, commits[arm])
    if reported is None:
        return Bands(found)
    return Bands(found, outcomes(reported, metrics, declared), inside_ranges(reported, enough))


def inside_ranges(reported: Reported, metrics: Metrics) -> dict[str, bool]:
    """Return, for each measured mean next to a reported number, whether it lies in that number's range."""
    inside = {}
    for value in reported.values.values():
        for arm in value.arms:
            found = [m[value.metric] for m in metrics.get(arm, {}).values() if value.metric in m]
            if found:
                low, high = reported_range(value, len(found))
                inside[f"{arm}.{value.metric}"] = low <= float(np.mean(found)) <= high
    return inside


# ---- the file


def read_bands(path: Path) -> dict[tuple[str, str], Bands]:
    """Read a `bands.toml`, by data digest and profile; empty if there is no such file yet."""
    if not path.exists():
        return {}
    try:
        return _read_bands(path)
    except SchemaError as error:
        raise SchemaError(f"{error}; correct it, or delete the file and let `kd tables` write it again") from error


def _read_bands(path: Path) -> dict[tuple[str, str], Bands]:
    root = read_toml(path, LINE, MOST_BYTES)
    root.only({"bands", "verdicts", "inside"})
    found: dict[tuple[str, str], Bands] = {}
    for key, table in _by_profile(root.table("bands", needed=False)):
        found[key] = Bands({name: _read_band(inner) for name, inner in table.tables()})
    for key, table in _by_profile(root.table("verdicts", needed=False)):
        verdicts = {claim: _read_outcomes(inner) for claim, inner in table.tables()}
        found[key] = replace(found.get(key, Bands()), verdicts=verdicts)
    for key, table in _by_profile(root.table("inside", needed=False)):
        inside = {name: table.flag(name) for name in table.content}
        found[key] = replace(found.get(key, Bands()), inside=inside)
    return found


def _by_profile(part: Table) -> Iterator[tuple[tuple[str, str], Table]]:
    for digest, profiles in part.tables():
        for profile, table in profiles.tables():
            yield (digest, profile), table


def _read_band(table: Table) -> Band:
    table.only({"low", "high", "mean", "n", "seeds", "values", "commit"})
    low, high, mean = (table.number(key, -LARGEST, LARGEST) for key in ("low", "high", "mean"))
    seeds, values = (table.list_of(key, MIN_SEEDS, MOST_VALUES) for key in ("seeds", "values"))
    if low > high:
        raise table.error("low", f"at most high, {high:g}")
    if not len(seeds) == len(values) == table.integer("n", MIN_SEEDS, MOST_VALUES):
        raise table.error("n", f"the number of seeds, {len(seeds)}, and of values, {len(values)}")
    if any(type(seed) is not int or not 0 <= seed < 2**63 for seed in seeds):
        raise table.error("seeds", "whole numbers of at least 0")
    if any(type(value) is not float or not math.isfinite(value) for value in values):
        raise table.error("values", "finite numbers with a decimal point")
    return Band(low, high, mean, tuple(seeds), tuple(values), table.text_of("commit"))


def _read_outcomes(table: Table) -> dict[str, Outcome]:
    table.only(MODES)
    options = [outcome.value for outcome in Outcome]
    return {mode: Outcome(table.choice(mode, options)) for mode in table.content}


def write_bands(path: Path, bands: Mapping[tuple[str, str], Bands]) -> None:
    """Write a whole `bands.toml`; the same bands always give the same bytes."""
    lines = ["# Generated from recorded runs; a change by hand is overwritten by the next recording.", ""]
    for (digest, profile), of_profile in sorted(bands.items()):
        for key, band in sorted(of_profile.bands.items()):
            lines += [_header("bands", digest, profile, key), *_band_lines(band), ""]
        for claim, modes in sorted(of_profile.verdicts.items()):
            verdicts = [f"{_quoted(mode)} = {_quoted(outcome)}" for mode, outcome in sorted(modes.items())]
            lines += [_header("verdicts", digest, profile, claim), *verdicts, ""]
        if of_profile.inside:
            places = [f"{_quoted(key)} = {str(i).lower()}" for key, i in sorted(of_profile.inside.items())]
            lines += [_header("inside", digest, profile), *places, ""]
    atomic_write(path, "\n".join(lines).encode())


def _band_lines(band: Band) -> list[str]:
    return [
        f"low = {band.low!r}",
        f"high = {band.high!r}",
        f"mean = {band.mean!r}",
        f"n = {len(band.values)}",
        f"seeds = {list(band.seeds)}",
        f"values = {list(band.values)}",
        f"commit = {_quoted(_shortened(band.commit))}",
    ]


def _shortened(commits: str) -> str:
    every = commits.split(", ")
    more = f" and {len(every) - MOST_COMMITS} more" if len(every) > MOST_COMMITS else ""
    return ", ".join(every[:MOST_COMMITS]) + more


def _header(part: str, *keys: str) -> str:
    return f"[{'.'.join([part, *(_quoted(key) for key in keys)])}]"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=True)  # JSON's escapes are TOML's
