"""`claims.toml` as the audit reads it: values and claims with the keys of the file."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.audit.statistics import prediction

Keys = Mapping[str, Any]


@dataclass(frozen=True)
class Value:
    """A reported number of one or several arms; std is the sample's (n - 1), over the source's runs."""

    arms: tuple[str, ...]
    metric: str
    keys: Keys
    std: float | None
    runs: int | None

    def range(self, n: int) -> tuple[float, float]:
        """Return where a mean of n runs should lie."""
        value, rounding = float(self.keys["value"]), 0.5 * 10.0 ** -self.keys["decimals"]
        if self.std is None or self.runs is None:
            room = margin(self.keys, self.metric)
            return value - room - rounding, value + room + rounding
        low, high = prediction(value, self.std, self.runs, n, 0.95)
        return low - rounding, high + rounding


@dataclass(frozen=True)
class Mode:
    """The arms of a claim in one mode, what they are compared with (rivals or numbers), and all they differ in."""

    arms: tuple[str, ...]
    rivals: tuple[str, ...] = ()
    expected: tuple[float, ...] = ()
    differs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Claim:
    """A claim; std and runs are the source's, of the size that it reports."""

    kind: str
    metric: str
    keys: Keys
    modes: Mapping[str, Mode]
    std: float | None = None
    runs: int | None = None

    @property
    def lower(self) -> bool:
        """Whether less is better."""
        return bool(self.keys.get("lower_is_better", False))

    def pairs(self, mode: str) -> list[tuple[str, str]]:
        """Return the arms that are compared with each other: of a trend neighbours, and arms and what they gain on."""
        arms, rivals = self.modes[mode].arms, self.modes[mode].rivals
        if self.kind == "trend":
            return [*pairwise(arms), *zip(arms, rivals, strict=False)]
        return [(arms[0], rival) for rival in rivals]

    @property
    def origin(self) -> float | None:
        """The number that one arm is judged against; None if arms are judged against arms."""
        number = self.keys.get("trivial" if self.kind == "value" else "threshold")
        return None if number is None else float(number)


@dataclass(frozen=True)
class Source:
    """A whole file; `chosen`: arms that our runs choose; `ingredients`: pairs of arms that differ in one thing."""

    values: Sequence[Value]
    claims: Mapping[str, Claim]
    chosen: Mapping[str, Keys]
    ingredients: Sequence[Keys]

    @property
    def metrics(self) -> list[str]:
        """The metrics in the table of arms: those of the source's claims and values, except those of exact claims."""
        exact = {claim.metric for claim in self.claims.values() if claim.kind == "exact"}
        named = [claim.metric for claim in self.claims.values() if not claim.keys.get("ours")]
        return [metric for metric in dict.fromkeys([*named, *(v.metric for v in self.values)]) if metric not in exact]


def value_of(values: Sequence[Value], arm: str, metric: str) -> Value | None:
    """Return the number that is reported for an arm's metric."""
    return next((value for value in values if value.metric == metric and arm in value.arms), None)


def margin(keys: Keys, metric: str) -> float:
    """Return the declared margin, or the usual one: 1 point of accuracy, 0.02 of F1."""
    usual = 0.01 if metric.endswith("accuracy") else 0.02 if metric.endswith("f1") else 0.0
    return float(keys.get("margin", usual))


def read_claims(path: Path) -> Source:
    """Read a `claims.toml`; LookupError, TypeError or ValueError if something is missing or misshapen."""
    content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    values = [_value(*item) for item in content.get("values", {}).items()]
    claims = {name: _claim(keys, values) for name, keys in content["claims"].items()}
    return Source(values, claims, content.get("chosen", {}), list(content.get("ingredients", {}).values()))


def _value(name: str, keys: Keys) -> Value:
    arm, metric = name.split(".")
    std, runs = None, keys.get("runs")
    if "spread" in keys and runs is not None:
        std = float(keys["spread"]) * (math.sqrt(runs / (runs - 1)) if keys["spread_kind"] == "population" else 1.0)
    return Value((arm, *keys.get("also", ())), metric, keys, std, runs)


def _claim(keys: Keys, values: Sequence[Value]) -> Claim:
    kind, metric = keys["kind"], keys["metric"]
    modes = {name: _mode(kind, mode) for name, mode in keys["modes"].items()}
    for mode in modes.values() if kind in ("effect", "value") else ():
        reported = [value_of(values, arm, metric) for arm in (*mode.arms, *mode.rivals)]
        known = [(value.std, value.runs) for value in reported if value and value.std is not None and value.runs]
        if len(known) == len(reported):  # the first mode all of whose arms have a spread
            std = math.sqrt(sum(spread**2 for spread, _ in known))
            return Claim(kind, metric, keys, modes, std, min(runs for _, runs in known))
    return Claim(kind, metric, keys, modes)


def _mode(kind: str, keys: Keys) -> Mode:
    if kind == "exact":
        return Mode(tuple(keys["expected"]), expected=tuple(map(float, keys["expected"].values())))
    arms, rivals = (
        (names,) if isinstance(names, str) else tuple(names)
        for names in (keys["along" if kind == "trend" else "arm"], keys.get("over", ()))
    )
    return Mode(arms, rivals, differs=tuple(keys["differs"]) if rivals or kind == "trend" else ())
