"""`reported.toml` as the audit reads it: plain values and claims."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdlib.audit.statistics import prediction

SIZED = ("effect", "value")


@dataclass(frozen=True)
class Value:
    """A reported number; std is the sample's, over the source's runs."""

    arms: tuple[str, ...]
    metric: str
    value: float
    unit: str
    decimals: int
    margin: float
    std: float | None
    runs: int | None
    selected: str = ""

    def range(self, n: int) -> tuple[float, float]:
        """Where a mean of n runs should lie."""
        rounding = 0.5 * 10.0**-self.decimals
        if self.std is None or self.runs is None:
            return self.value - self.margin - rounding, self.value + self.margin + rounding
        low, high = prediction(self.value, self.std, self.runs, n, 0.95)
        return low - rounding, high + rounding


@dataclass(frozen=True)
class Mode:
    """The arms of a claim in one mode."""

    arms: tuple[str, ...]
    over: tuple[str, ...]
    expected: tuple[float, ...]

    @property
    def all(self) -> tuple[str, ...]:
        """Every arm it takes."""
        return (*self.arms, *self.over)


@dataclass(frozen=True)
class Claim:
    """A claim: its keys in the file, and what follows for its size."""

    name: str
    keys: Mapping[str, Any]
    modes: Mapping[str, Mode]
    std: float | None
    runs: int | None

    @property
    def kind(self) -> str:
        """Which rule judges it."""
        return str(self.keys["kind"])

    @property
    def metric(self) -> str:
        """What it is about."""
        return str(self.keys["metric"])

    @property
    def mark(self) -> str:
        """Primary, ours or neither."""
        return "primary" if self.keys.get("primary") else "ours" if self.keys.get("ours") else ""

    @property
    def lower(self) -> bool:
        """Whether less is better."""
        return bool(self.keys.get("lower_is_better", False))

    @property
    def rounding(self) -> float:
        """10^-k of a difference of two numbers printed with k decimals, half of that of one number."""
        return float(10.0 ** -self.keys["decimals"] * (1.0 if self.kind == "effect" else 0.5))

    @property
    def margin(self) -> float:
        """The declared margin, or the usual one of the metric."""
        return _margin(self.keys, self.metric)


@dataclass(frozen=True)
class Reported:
    """A whole file."""

    source: Mapping[str, str]
    values: tuple[Value, ...]
    claims: tuple[Claim, ...]
    ingredients: tuple[Mapping[str, str], ...] = ()  # label, arm, over
    chosen: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # by, among

    def value(self, arm: str, metric: str) -> Value | None:
        """The number that an arm's metric stands beside."""
        return next((value for value in self.values if value.metric == metric and arm in value.arms), None)

    @property
    def metrics(self) -> list[str]:
        """What arms are tabled by: the metrics of the source's claims and values, but for exact claims' ones."""
        exact = {claim.metric for claim in self.claims if claim.kind == "exact"}
        named = [claim.metric for claim in self.claims if claim.mark != "ours"] + [value.metric for value in self.values]
        return [metric for metric in dict.fromkeys(named) if metric not in exact]

    def scale(self, metric: str) -> tuple[bool, int]:
        """Whether a metric is shown in percent, and its decimals: one more than the source's."""
        values = [value for value in self.values if value.metric == metric]
        decimals = [value.decimals for value in values]
        decimals += [claim.keys["decimals"] for claim in self.claims if claim.metric == metric and claim.kind in SIZED]
        percent = any(re.search(r"%|\b(percent|percentage|points?)\b", value.unit) for value in values)
        return percent, min(6, max(0, max(decimals) + 1)) if decimals else 3


def read_reported(path: Path) -> Reported:
    """Read a `reported.toml`; KeyError, TypeError or ValueError where something is missing or misshapen."""
    content = tomllib.loads(path.read_text(encoding="utf-8"))
    values = tuple(_value(key, table) for key, table in content.get("values", {}).items())
    bare = Reported(content["source"], values, ())
    claims = tuple(_claim(key, table, bare) for key, table in content["claims"].items())
    return Reported(content["source"], values, claims, tuple(content.get("ingredients", {}).values()), content.get("chosen", {}))


def _value(key: str, table: Mapping[str, Any]) -> Value:
    arm, metric = key.split(".")
    std: float | None = None
    runs: int | None = table.get("runs")
    if "spread" in table and runs is not None:
        std = float(table["spread"]) * (math.sqrt(runs / (runs - 1)) if table["spread_kind"] == "population" else 1.0)
    return Value((arm, *table.get("also", ())), metric, float(table["value"]), table["unit"], table["decimals"],
                 _margin(table, metric), std, runs, table.get("selected", ""))


def _margin(table: Mapping[str, Any], metric: str) -> float:
    usual = 0.01 if metric.endswith("accuracy") else 0.02 if metric.endswith("f1") else 0.0
    return float(table.get("margin", usual))


def _claim(name: str, table: Mapping[str, Any], values: Reported) -> Claim:
    modes = {mode: _mode(table["kind"], inner) for mode, inner in table["modes"].items()}
    std, runs = None, None
    for mode in modes.values() if table["kind"] in SIZED else ():
        beside = [values.value(arm, table["metric"]) for arm in mode.all]
        if std is None and all(value is not None and value.std is not None for value in beside):
            std = math.sqrt(sum((value.std or 0.0) ** 2 for value in beside if value))
            runs = min(value.runs or 0 for value in beside if value)
    return Claim(name, table, modes, std, runs)


def _mode(kind: str, table: Mapping[str, Any]) -> Mode:
    if kind == "exact":
        return Mode(tuple(table["expected"]), (), tuple(float(number) for number in table["expected"].values()))
    return Mode(_names(table["along"] if kind == "trend" else table["arm"]), _names(table.get("over", ())), ())


def _names(names: str | Sequence[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)
