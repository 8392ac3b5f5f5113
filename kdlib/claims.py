"""What a source reports and claims, read from `reported.toml`; `judging` gives the verdicts.

Keys of the file, those after a semicolon optional:

[source]                      citation, url
[values."<arm>.<metric>"]     value, unit, decimals, place; spread with spread_kind and runs; margin; selected (how the
                              source chose); also (further arms that the number stands beside)
[claims.<C1>]                 kind, metric, statement, place; primary, ours, analogue, those of KINDS
[claims.<C1>.modes]           "as described" | "as released" | "controlled" = a table, by kind:
  effect, direction,
  non-inferior, comparable    arm, over
  value                       arm; so a direction with a threshold
  best                        arm, over = [rivals]
  trend                       along = [arms in the order in which the metric is to rise];
                              for a trend in a gain, over = [the arm to subtract from each]
  exact                       expected = {arm = number}

[chosen.<arm>]                by, among: another arm for claims, the one of `among` with the highest mean of the metric `by`
[ingredients.<name>]          label, arm, over: ours, of the primary claim's metric; what its difference is made of
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kdlib import intervals
from kdlib.schema import Table, read_toml

__all__ = [
    "AS_DESCRIBED", "AS_RELEASED", "CONTROLLED", "KINDS", "MODES", "SHAM", "Arms", "Choice", "Claim", "Ingredient", "Reported",
    "Source", "Value", "load_reported", "reported_range",
]  # fmt: skip

AS_DESCRIBED, AS_RELEASED, CONTROLLED, SHAM = "as described", "as released", "controlled", "sham"
MODES = (AS_DESCRIBED, AS_RELEASED, CONTROLLED)  # in which a claim can be judged; `sham` marks arms only

_NAME = r"[a-z][a-z0-9_]{0,59}"
KINDS: Mapping[str, frozenset[str]] = {  # the keys each kind has beside those of all
    "effect": frozenset({"reported", "decimals", "lower_is_better"}),
    "value": frozenset({"reported", "decimals", "trivial", "margin", "lower_is_better"}),
    "direction": frozenset({"threshold", "lower_is_better"}),
    "non-inferior": frozenset({"margin", "lower_is_better"}),
    "comparable": frozenset({"margin"}),
    "best": frozenset({"lower_is_better"}),
    "trend": frozenset(),
    "exact": frozenset(),
}
_OF_VALUE = frozenset(
    {"value", "unit", "decimals", "place", "spread", "spread_kind", "runs", "selected", "margin", "also"}
)
_OF_ALL = frozenset({"kind", "metric", "statement", "place", "primary", "ours", "analogue", "modes"})


@dataclass(frozen=True)
class Source:
    """Where the reported numbers come from."""

    citation: str
    url: str


@dataclass(frozen=True)
class Value:
    """A number the source reports; `std` is the sample (n - 1) standard deviation over its `runs`."""

    arm: str
    metric: str
    value: float
    unit: str
    decimals: int
    place: str
    margin: float
    std: float | None = None
    runs: int | None = None
    selected: str = ""
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class Arms:
    """The arms a claim is judged on in one mode."""

    arms: tuple[str, ...]
    over: tuple[str, ...] = ()
    expected: tuple[float, ...] = ()  # exact: of each of the arms


@dataclass(frozen=True)
class Claim:
    """A claim of the source, or of `ours`: the arms it is about in each mode, what they should show."""

    name: str
    kind: str
    metric: str
    statement: str
    place: str
    primary: bool
    ours: bool
    analogue: bool
    lower_is_better: bool
    reported: float = 0.0
    reported_std: float | None = None  # the source's own, of its value or difference
    reported_runs: int | None = None
    decimals: int = 0
    trivial: float = 0.0
    margin: float = 0.0
    threshold: float | None = None
    modes: Mapping[str, Arms] = field(default_factory=dict)

    @property
    def rounding(self) -> float:
        """How far the printed decimals leave it open: a difference carries the error of two numbers."""
        return 10.0**-self.decimals if self.kind == "effect" else 0.5 * 10.0**-self.decimals


@dataclass(frozen=True)
class Ingredient:
    """Two arms that differ in one thing: what that thing adds. No claim of the source, so it gets no verdict."""

    label: str
    arm: str
    over: str


@dataclass(frozen=True)
class Choice:
    """An arm that our runs choose: the one of `among` whose mean over the seeds of the metric `by` is highest."""

    name: str
    by: str
    among: tuple[str, ...]


@dataclass(frozen=True)
class Reported:
    """All of a `reported.toml`; values by `<arm>.<metric>`, claims by name."""

    source: Source
    values: Mapping[str, Value]
    claims: Mapping[str, Claim]
    ingredients: tuple[Ingredient, ...] = ()
    choices: tuple[Choice, ...] = ()

    @property
    def primary(self) -> Claim:
        """The first primary claim."""
        return next(claim for claim in self.claims.values() if claim.primary)

    def value(self, arm: str, metric: str) -> Value | None:
        """The reported number that an arm's metric stands beside."""
        return _beside(self.values, arm, metric)


def reported_range(value: Value, n: int = 1) -> tuple[float, float]:
    """Where a mean of `n` runs should lie: the source's prediction interval or the margin; and rounding."""
    rounding = 0.5 * 10.0**-value.decimals
    if value.std is None or value.runs is None:
        return value.value - value.margin - rounding, value.value + value.margin + rounding
    low, high = intervals.prediction_interval(value.value, value.std, value.runs, n)
    return low - rounding, high + rounding


# ---- reading

_LINK = r"https://[^\s\"']+"


def load_reported(path: Path, arms: Collection[str]) -> Reported:
    """Read a `reported.toml` about the experiment's `arms`; SchemaError names file, line and key."""
    root = read_toml(path)
    root.only({"source", "values", "claims", "ingredients", "chosen"})
    source = _source(root.table("source"))
    values: dict[str, Value] = {}
    for key, table in root.table("values", needed=False).tables():
        value = _value(key, table, arms)
        for arm in (value.arm, *value.also):
            if _beside(values, arm, value.metric):
                raise table.error("also", f"one reported {value.metric} for {arm}", "a second one")
        values[key] = value
    choices = tuple(_choice(key, table, arms) for key, table in root.table("chosen", needed=False).tables())
    judged = [*arms, *(choice.name for choice in choices)]
    claims = {key: _claim(key, table, judged, values) for key, table in root.table("claims").tables()}
    if not any(claim.primary for claim in claims.values()):
        raise root.error("claims", "at least one claim with primary = true", ", ".join(claims))
    ingredients = [_ingredient(table, arms) for _, table in root.table("ingredients", needed=False).tables()]
    return Reported(source, values, claims, tuple(ingredients), choices)


def _choice(name: str, table: Table, arms: Collection[str]) -> Choice:
    table.only({"by", "among"})
    if name in arms or not re.fullmatch(_NAME, name):
        raise table.error("", "a name of its own, in small letters, that no arm has", name)
    among = _list(table, "among", arms, 2)
    if len(set(among)) < len(among):
        raise table.error("among", "arms that are all different")
    return Choice(name, table.text_of("by", pattern=_NAME, expected="a metric's name"), among)


def _ingredient(table: Table, arms: Collection[str]) -> Ingredient:
    table.only({"label", "arm", "over"})
    arm, over = (_arm(table, key, table.content.get(key, ""), arms) for key in ("arm", "over"))
    if arm == over:
        raise table.error("over", f"another arm than {arm}")
    return Ingredient(table.text_of("label"), arm, over)


def _source(table: Table) -> Source:
    table.only({"citation", "url"})
    return Source(table.text_of("citation"), table.text_of("url", "", _LINK, "a link that begins with https://"))


def _beside(values: Mapping[str, Value], arm: str, metric: str) -> Value | None:
    found = (v for v in values.values() if v.metric == metric and arm in (v.arm, *v.also))
    return next(found, None)


def _value(key: str, table: Table, arms: Collection[str]) -> Value:
    table.only(_OF_VALUE)
    arm, dot, metric = key.partition(".")
    if not dot or arm not in arms or not re.fullmatch(_NAME, metric):
        known = ", ".join(sorted(arms))
        raise table.error("", f'a table named "<arm>.<metric>", the arm one of {known}', key)
    also = tuple(_arm(table, "also", name, arms) for name in table.list_of("also"))
    runs = table.integer("runs", 1, 100_000) if "runs" in table.content else None
    std = _spread(table, runs) if {"spread", "spread_kind"} & set(table.content) else None
    return Value(
        arm, metric, table.number("value", *_limits(metric)), table.text_of("unit"),
        table.integer("decimals", -9, 15), table.text_of("place"), _margin(table, metric), std, runs,
        table.text_of("selected", ""), also,
    )  # fmt: skip


def _spread(table: Table, runs: int | None) -> float:
    if runs is None or runs < 2:
        raise table.error("runs", "the number of runs that the spread is over, at least 2")
    kind = table.choice("spread_kind", ("population", "sample"))
    return intervals.sample_std(table.number("spread", 0.0), runs, kind)


def _limits(metric: str) -> tuple[float, float]:
    """Percent exists only in tables: shares are written as shares."""
    return (0.0, 1.0) if metric.endswith(("accuracy", "f1")) else (-1e15, 1e15)


def _margin(table: Table, metric: str) -> float:
    for name, usual in (("accuracy", 0.01), ("f1", 0.02)):
        if metric.endswith(name):
            return table.number("margin", 0.0, default=usual)
    return table.number("margin", 0.0)


def _claim(name: str, table: Table, arms: Collection[str], values: Mapping[str, Value]) -> Claim:
    kind = table.choice("kind", KINDS)
    table.only(_OF_ALL | KINDS[kind])
    if not re.fullmatch(r"[A-Z][A-Za-z0-9]{0,19}", name):
        raise table.error("", "a claim named by a capital and a number, as C1", name)
    primary, ours = table.flag("primary"), table.flag("ours")
    if primary and ours:
        raise table.error("primary", "false: only the source's claims are primary")
    place = table.text_of("place", "") if ours else table.text_of("place")
    metric = table.text_of("metric", pattern=_NAME, expected="a metric's name, as macro_f1")
    claim = Claim(
        name, kind, metric, table.text_of("statement"), place, primary, ours, table.flag("analogue"),
        table.flag("lower_is_better"), **_size(table, kind, metric),
    )  # fmt: skip
    modes = table.table("modes")
    modes.only(MODES)
    if not modes.content:
        raise table.error("modes", f"at least one of {', '.join(MODES)}", "no mode")
    judged = {mode: _arms(claim, inner, arms) for mode, inner in modes.tables()}
    spreads = [_source_spread(claim, modes.table(mode), judged[mode], values) for mode in judged]
    # a spread is the reported number's: it holds in the modes whose arms the source does not report, too
    std, runs = next((spread for spread in spreads if spread), (None, None))
    return replace(claim, modes=judged, reported_std=std, reported_runs=runs)


def _size(table: Table, kind: str, metric: str) -> dict[str, Any]:
    """What is reported and how exactly, by the kind of claim."""
    low, high = _limits(metric)
    if kind == "effect":
        reported = table.number("reported", 0.0, high, above=True)
        return {"reported": reported, "decimals": table.integer("decimals", -9, 15)}
    if kind == "value":
        reported, trivial = table.number("reported", low, high), table.number("trivial", low, high)
        if reported == trivial or (reported < trivial) != table.flag("lower_is_better"):
            raise table.error("reported", f"a value better than the trivial one, {trivial:g}")
        decimals, margin = table.integer("decimals", -9, 15), _margin(table, metric)
        return {"reported": reported, "trivial": trivial, "decimals": decimals, "margin": margin}
    if "margin" in KINDS[kind]:
        return {"margin": table.number("margin", 0.0, above=True)}
    if "threshold" in table.content:
        return {"threshold": table.number("threshold")}
    return {}


def _arms(claim: Claim, table: Table, arms: Collection[str]) -> Arms:
    if claim.kind == "exact":
        table.only({"expected"})
        expected = table.table("expected")
        names = tuple(_arm(expected, name, name, arms) for name in expected.content)
        if not names:
            raise table.error("expected", "at least one arm = number", "none")
        return Arms(names, expected=tuple(expected.number(name) for name in names))
    if claim.kind == "trend":
        table.only({"along", "over"})
        along = _list(table, "along", arms, 3)
        over = _list(table, "over", arms, 3) if "over" in table.content else ()
        if over and len(over) != len(along):
            raise table.error("over", f"as many arms as in along, {len(along)}")
        return Arms(along, over)
    alone = claim.kind == "value" or claim.threshold is not None
    table.only({"arm"} if alone else {"arm", "over"})
    arm = _arm(table, "arm", table.content.get("arm", ""), arms)
    if alone:
        return Arms((arm,))
    if claim.kind == "best":
        rivals = _list(table, "over", arms, 2)
    else:
        rivals = (_arm(table, "over", table.content.get("over", ""), arms),)
    if arm in rivals or len(set(rivals)) < len(rivals):
        raise table.error("over", f"different arms, none of them {arm}")
    return Arms((arm,), rivals)


def _arm(table: Table, key: str, name: Any, arms: Collection[str]) -> str:
    if not isinstance(name, str) or name not in arms:
        raise table.error(key, f"an arm of this experiment ({', '.join(sorted(arms))})", name)
    return name


def _list(table: Table, key: str, arms: Collection[str], fewest: int) -> tuple[str, ...]:
    names = tuple(_arm(table, key, name, arms) for name in table.list_of(key, fewest))
    if key == "along" and len(set(names)) < len(names):
        raise table.error(key, "arms that are all different")
    return names


def _source_spread(
    claim: Claim, table: Table, arms: Arms, values: Mapping[str, Value]
) -> tuple[float, int] | None:
    """Std and runs of the source's value or difference; a claim its own values contradict is refused."""
    found = [_beside(values, arm, claim.metric) for arm in (*arms.arms, *arms.over)]
    reported = [value for value in found if value]
    if claim.kind not in ("effect", "value") or len(reported) < len(found):
        return None
    size = reported[0].value - sum(value.value for value in reported[1:])
    size = -size if claim.kind == "effect" and claim.lower_is_better else size
    if abs(size - claim.reported) > claim.rounding * (1 + 1e-9):
        raise table.error("arm", f"what the reported values give for these arms, {size:.6g}", claim.reported)
    spreads = [(value.std, value.runs) for value in reported if value.std is not None and value.runs]
    if len(spreads) < len(reported):
        return None
    return math.hypot(*(std for std, _ in spreads)), min(runs for _, runs in spreads)
