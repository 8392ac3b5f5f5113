"""Reads a `claims.toml`: the source's numbers and claims, every key checked.

Keys of the file, those after a semicolon optional:

[source]                      citation, url
[values."<arm>.<metric>"]     value, unit, decimals, place; spread with spread_kind and runs; margin; selected (how the
                              source chose the number); also (further arms that the number stands next to)
[claims.<C1>]                 kind, metric, statement, place; primary, ours, analogue, the `keys` of the kind's class
[claims.<C1>.modes]           "as described" | "as released" | "controlled" = a table, by kind:
  effect, direction,
  non-inferior, comparable    arm, over
  value                       arm; the same for a direction with a threshold
  best                        arm, over = [rivals]
  trend                       along = [arms in the order in which the metric is said to rise];
                              for a trend in a gain also over = [the arm to subtract from each]
  exact                       expected = {arm = number}
                              and, where arms are compared with each other, differs = [all that the compared arms
                              differ in, in the words of kdlib.judge.claims.DIFFERENCES]

[chosen.<arm>]                by, among: one more arm for claims, the arm of `among` with the highest mean of `by`
                                (with lower_is_better, the lowest)
[ingredients.<name>]          label, arm, over, differs: ours, about the primary claim's metric: what its difference is
                              made of
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from kdlib.judge import intervals
from kdlib.judge.claims import (
    DIFFERENCES,
    KINDS,
    MODES,
    ROLES,
    Best,
    Choice,
    Claim,
    Comparison,
    Effect,
    Exact,
    Ingredient,
    Reported,
    ReportedValue,
    Source,
    Trend,
    Value,
    fixed_rival,
)
from kdlib.judge.schema import Table, read_toml
from kdlib.judge.sizes import decimals_of, limits_of, widest

__all__ = ["load_claims"]

_NAME = r"[a-z][a-z0-9_]{0,59}"
_LINK = r"https://[^\s\"']+"
_OF_VALUE = {"value", "unit", "decimals", "place", "spread", "spread_kind", "runs", "selected", "margin", "also"}
_OF_ALL = {"kind", "metric", "statement", "place", "primary", "ours", "analogue", "modes"}


def load_claims(path: Path, arms: Collection[str], metrics: Collection[str] = ()) -> Reported:
    """Read a `claims.toml` about the experiment's `arms` and `metrics`; SchemaError names file, line and key.

    Without `metrics`, those of the file are not compared with the experiment's.
    """
    root = read_toml(path)
    root.only({"source", "values", "claims", "ingredients", "chosen"})
    source = _source(root.table("source"))
    values: dict[str, ReportedValue] = {}
    for key, table in root.table("values", needed=False).tables():
        value = _value(key, table, arms, metrics)
        for arm in value.arms:
            if _next_to(values, arm, value.metric):
                raise table.error("also", f"one reported {value.metric} for {arm}", "a second one")
        values[key] = value
    choices = tuple(_choice(key, table, arms, metrics) for key, table in root.table("chosen", needed=False).tables())
    judged = [*arms, *(choice.name for choice in choices)]
    claims = {key: _claim(key, table, judged, values, metrics) for key, table in root.table("claims").tables()}
    if not any(claim.primary for claim in claims.values()):
        raise root.error("claims", "at least one claim with primary = true", ", ".join(claims))
    ingredients = [_ingredient(table, arms) for _, table in root.table("ingredients", needed=False).tables()]
    return Reported(source, values, claims, tuple(ingredients), choices, tuple(arms), tuple(metrics))


def _source(table: Table) -> Source:
    table.only({"citation", "url"})
    return Source(table.text_of("citation"), table.text_of("url", "", _LINK, "a link that begins with https://"))


def _next_to(values: Mapping[str, ReportedValue], arm: str, metric: str) -> ReportedValue | None:
    return next((v for v in values.values() if v.metric == metric and arm in v.arms), None)


def _metric(table: Table, key: str, metrics: Collection[str]) -> str:
    name = table.text_of(key, pattern=_NAME, expected="a metric's name, as macro_f1")
    return _known(table, key, name, metrics)


def _known(table: Table, key: str, name: str, metrics: Collection[str]) -> str:
    if metrics and name not in metrics:
        raise table.error(key, f"a metric of this experiment ({', '.join(sorted(metrics))})", name)
    return name


def _choice(name: str, table: Table, arms: Collection[str], metrics: Collection[str]) -> Choice:
    table.only({"by", "among", "lower_is_better"})
    if name in arms or not re.fullmatch(_NAME, name):
        raise table.error("", "a name in small letters that no arm has", name)
    among = _arms(table, "among", arms, 2)
    if len(set(among)) < len(among):
        raise table.error("among", "arms that are all different")
    return Choice(name, _metric(table, "by", metrics), among, table.flag("lower_is_better"))


def _ingredient(table: Table, arms: Collection[str]) -> Ingredient:
    table.only({"label", "arm", "over", "differs", "role"})
    arm, rival = (_arm(table, key, table.content.get(key, ""), arms) for key in ("arm", "over"))
    if arm == rival:
        raise table.error("over", f"another arm than {arm}")
    role = table.choice("role", ROLES, "")
    return Ingredient(table.text_of("label"), arm, rival, _differs(table), role)


def _differs(table: Table) -> tuple[str, ...]:
    expected = f"a list of all that the arms differ in, in the words {', '.join(DIFFERENCES)}"
    if "differs" not in table.content:
        raise table.error("differs", expected)
    words = table.list_of("differs")
    if unknown := [word for word in words if word not in DIFFERENCES]:
        raise table.error("differs", expected, unknown[0])
    if len(set(words)) < len(words):
        raise table.error("differs", "words that are all different")
    return tuple(words)


# ---- reported values


def _value(key: str, table: Table, arms: Collection[str], metrics: Collection[str]) -> ReportedValue:
    table.only(_OF_VALUE)
    arm, dot, metric = key.partition(".")
    if not dot or arm not in arms or not re.fullmatch(_NAME, metric):
        known = ", ".join(sorted(arms))
        raise table.error("", f'a table named "<arm>.<metric>", the arm one of {known}', key)
    _known(table, "", metric, metrics)
    runs = table.integer("runs", 1, 100_000) if "runs" in table.content else None
    number = table.number("value", *limits_of(metric))
    return ReportedValue(
        arm,
        metric,
        number,
        table.text_of("unit"),
        decimals_of(table, number),
        table.text_of("place"),
        _margin(table, metric),
        _spread(table, runs, metric) if {"spread", "spread_kind"} & set(table.content) else None,
        runs,
        table.text_of("selected", ""),
        tuple(_arm(table, "also", name, arms) for name in table.list_of("also")),
    )


def _spread(table: Table, runs: int | None, metric: str) -> float:
    if runs is None or runs < 2:
        raise table.error("runs", "the number of runs that the spread is over, at least 2")
    kind = table.choice("spread_kind", ("population", "sample"))
    return intervals.sample_std(table.number("spread", 0.0, widest(metric)), runs, kind)


def _margin(table: Table, metric: str) -> float:
    for name, usual in (("accuracy", 0.01), ("f1", 0.02)):
        if metric.endswith(name):
            return table.number("margin", 0.0, widest(metric), default=usual)
    return table.number("margin", 0.0)


# ---- claims


def _claim(
    name: str,
    table: Table,
    arms: Collection[str],
    values: Mapping[str, ReportedValue],
    metrics: Collection[str],
) -> Claim:
    kind = KINDS[table.choice("kind", KINDS)]
    table.only(_OF_ALL | kind.keys)
    if not re.fullmatch(r"[A-Z][A-Za-z0-9]{0,19}", name):
        raise table.error("", "a claim named by a capital and a number, as C1", name)
    primary, ours = table.flag("primary"), table.flag("ours")
    if primary and ours:
        raise table.error("primary", "false: only the source's claims are primary")
    place = table.text_of("place", "") if ours else table.text_of("place")
    metric = _metric(table, "metric", metrics)
    bare = kind(
        name=name,
        metric=metric,
        statement=table.text_of("statement"),
        place=place,
        primary=primary,
        ours=ours,
        analogue=table.flag("analogue"),
        lower_is_better=table.flag("lower_is_better"),
        modes={},
        **_size(table, kind, metric),
    )
    modes = table.table("modes")
    modes.only(MODES)
    if not modes.content:
        raise table.error("modes", f"at least one of {', '.join(MODES)}", "no mode")
    compared = {mode: _comparison(bare, inner, arms) for mode, inner in modes.tables()}
    claim = replace(bare, modes=compared)
    if not isinstance(claim, Effect | Value):
        return claim
    spreads = [_source_spread(claim, modes.table(mode), compared[mode], values) for mode in compared]
    # A spread belongs to the reported number, so it also holds in modes whose arms the source does not report.
    std, runs = next((spread for spread in spreads if spread), (None, None))
    return replace(claim, std=std, runs=runs)


def _size(table: Table, kind: type[Claim], metric: str) -> dict[str, Any]:
    """The fields that say what is reported and how exactly, by the kind of claim."""
    low, high = limits_of(metric)
    if kind is Effect:
        reported = table.number("reported", 0.0, high, above=True)
        # A difference is as exact as its coarser number, and may have one more decimal.
        return {"reported": reported, "decimals": decimals_of(table, reported, more=1)}
    if kind is Value:
        reported, trivial = table.number("reported", low, high), table.number("trivial", low, high)
        if reported == trivial or (reported < trivial) != table.flag("lower_is_better"):
            raise table.error("reported", f"a value better than the trivial one, {trivial:g}")
        decimals, margin = decimals_of(table, reported), _margin(table, metric)
        return {"reported": reported, "trivial": trivial, "decimals": decimals, "margin": margin}
    if "margin" in kind.keys:
        return {"margin": table.number("margin", 0.0, widest(metric), above=True)}
    if "threshold" in table.content:
        return {"threshold": table.number("threshold", low, high)}
    return {}


def _comparison(claim: Claim, table: Table, arms: Collection[str]) -> Comparison:
    if isinstance(claim, Exact):
        table.only({"expected"})
        expected = table.table("expected")
        names = tuple(_arm(expected, name, name, arms) for name in expected.content)
        if not names:
            raise table.error("expected", "at least one arm = number", "none")
        return Comparison(names, expected=tuple(expected.number(name, *limits_of(claim.metric)) for name in names))
    if isinstance(claim, Trend):
        table.only({"along", "over", "differs"})
        along = _arms(table, "along", arms, 3)
        rivals = _arms(table, "over", arms, 3) if "over" in table.content else ()
        if rivals and len(rivals) != len(along):
            raise table.error("over", f"as many arms as in along, {len(along)}")
        return Comparison(along, rivals, differs=_differs(table))
    alone = fixed_rival(claim) is not None
    table.only({"arm"} if alone else {"arm", "over", "differs"})
    arm = _arm(table, "arm", table.content.get("arm", ""), arms)
    if alone:
        return Comparison((arm,))
    if isinstance(claim, Best):
        rivals = _arms(table, "over", arms, 2)
    else:
        rivals = (_arm(table, "over", table.content.get("over", ""), arms),)
    if arm in rivals or len(set(rivals)) < len(rivals):
        raise table.error("over", f"different arms, none of them {arm}")
    return Comparison((arm,), rivals, differs=_differs(table))


def _arm(table: Table, key: str, name: Any, arms: Collection[str]) -> str:
    if not isinstance(name, str) or name not in arms:
        raise table.error(key, f"an arm of this experiment ({', '.join(sorted(arms))})", name)
    return name


def _arms(table: Table, key: str, arms: Collection[str], fewest: int) -> tuple[str, ...]:
    names = tuple(_arm(table, key, name, arms) for name in table.list_of(key, fewest))
    if key == "along" and len(set(names)) < len(names):
        raise table.error(key, "arms that are all different")
    return names


def _source_spread(
    claim: Effect | Value, table: Table, compared: Comparison, values: Mapping[str, ReportedValue]
) -> tuple[float, int] | None:
    """Std and runs of the source's value or difference; a claim that its own values contradict is refused."""
    found = [_next_to(values, arm, claim.metric) for arm in (*compared.arms, *compared.rivals)]
    reported = [value for value in found if value]
    if len(reported) < len(found):
        return None
    size = reported[0].value - sum(value.value for value in reported[1:])
    size = -size if isinstance(claim, Effect) and claim.lower_is_better else size
    if abs(size - claim.reported) > claim.rounding * (1 + 1e-9):
        raise table.error("arm", f"what the reported values give for these arms, {size:.6g}", claim.reported)
    spreads = [(value.std, value.runs) for value in reported if value.std is not None and value.runs]
    if len(spreads) < len(reported):
        return None
    return math.hypot(*(std for std, _ in spreads)), min(runs for _, runs in spreads)
