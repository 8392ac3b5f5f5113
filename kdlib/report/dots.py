"""Dot plots for the page: where seeds, means and intervals are, in percent of the plot's width.

Percents let one SVG fit every width without distorting its dots.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from kdlib.judge.intervals import t_interval
from kdlib.judge.verdicts import all_equal
from kdlib.report.markdown import Scale

__all__ = ["bars", "claim_plots"]

Row = dict[str, Any]
MOST_DOTS = 200  # of one arm; more are a smear
FEWEST = 3  # values with an interval: that of two says next to nothing


def claim_plots(claim: Mapping[str, Any]) -> list[Row]:
    """Return the plots of a claim: its arms' values and, for a difference, the paired differences by seed."""
    shown, of_arms = (Scale(of["percent"], of["decimals"]) for of in (claim, claim["of_arms"]))
    plots = []
    if claim["kind"] != "exact" and any(arm["values"] for arm in claim["arms"]):
        rows = [_row(arm["values"], reported=arm["reported"], band=arm["range"], **_of(arm)) for arm in claim["arms"]]
        unit = claim["of_arms"]["unit"]
        plots.append(_plot([row for row in rows if row["values"]], of_arms, "", unit))
    if claim["differences"] and claim["differences"][0]["values"]:
        effect = claim["kind"] == "effect"
        rows = [
            _row(
                each["values"],
                label=f"{each['arm']} over {each['over']}",
                role="difference",
                reported=claim["reported"] if effect else None,
                band=claim["agrees"] if effect else None,
            )
            for each in claim["differences"]
        ]
        plots.append(_plot(rows, shown, "+", claim["unit"]))
    return plots


def _of(arm: Mapping[str, Any]) -> Row:
    return {"label": arm["arm"], "role": arm["role"]}


def _row(values: Sequence[float], *, reported: float | None, band: Sequence[float] | None, **about: str) -> Row:
    low, high = t_interval(values)[:2] if len(values) >= FEWEST and not all_equal(values) else (None, None)
    mean = float(np.mean(values)) if len(values) else None  # as in the tables, to the last digit
    return {**about, "values": values, "mean": mean, "low": low, "high": high, "reported": reported, "band": band}


def _plot(rows: Sequence[Row], shown: Scale, sign: str, unit: str) -> Row:
    numbers = [x for row in rows for x in _numbers(row)] + ([0.0] if sign else [])
    axis = _Axis(numbers)
    return {
        "sign": sign,
        "unit": unit,
        "percent": shown.percent,
        "decimals": shown.decimals,
        "most": MOST_DOTS,
        "ticks": [(axis.at(tick), axis.text(tick, shown, sign)) for tick in axis.ticks],
        "zero": axis.at(0) if sign else None,
        "rows": [
            {
                **row,
                "dots": [axis.at(value) for value in row["values"][:MOST_DOTS]],
                **{
                    f"{key}_at": axis.at(row[key])
                    for key in ("mean", "low", "high", "reported")
                    if row[key] is not None
                },
                **({"band_at": [axis.at(end) for end in row["band"]]} if row["band"] else {}),
            }
            for row in rows
        ],
    }


def _numbers(row: Row) -> Iterable[float]:
    found = (*row["values"], row["low"], row["high"], row["reported"], *(row["band"] or ()))
    return (number for number in found if number is not None)


class _Axis:
    """A straight axis over some numbers, with round ticks."""

    def __init__(self, numbers: Sequence[float]) -> None:
        low, high = min(numbers), max(numbers)
        room = 0.06 * (high - low) or abs(high) * 0.05 or 1.0
        self.low, self.high = low - room, high + room
        power = 10.0 ** math.floor(math.log10(self.high - self.low))
        for self.step in (power * factor for factor in (1, 0.5, 0.2, 0.1)):  # the widest with three ticks
            first, last = math.ceil(self.low / self.step), math.floor(self.high / self.step)
            self.ticks = [number * self.step for number in range(first, last + 1)]
            if len(self.ticks) >= 3:
                break

    def at(self, number: float) -> float:
        """Return the place of a number, in percent of the width."""
        return round(100 * (number - self.low) / (self.high - self.low), 2)

    def text(self, tick: float, shown: Scale, sign: str) -> str:
        """Return the text of a tick, with the decimals that tell it from its neighbours."""
        decimals = max(0, -math.floor(math.log10(self.step) + 1e-9))
        text = Scale(shown.percent, shown.decimals).show(tick, sign, decimals)
        return text.replace("+", "", 1) if not any(digit in text for digit in "123456789") else text


def bars(rows: Sequence[Mapping[str, Any]]) -> list[Row | None]:
    """Return for each row with a `difference` the places of zero, of its mean and of its interval; else None."""
    ends = [row[key] for row in rows for key in ("difference", "low", "high") if row[key] is not None]
    if not ends:
        return [None for _ in rows]
    axis = _Axis([0.0, *ends])
    return [
        {
            "zero_at": axis.at(0),
            **{f"{key}_at": axis.at(row[key]) for key in ("difference", "low", "high") if row[key] is not None},
        }
        if row["difference"] is not None
        else None
        for row in rows
    ]
