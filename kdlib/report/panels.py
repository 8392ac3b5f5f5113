"""One panel of a figure. Each mark that it draws is also a row of the figure's table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes

from kdlib.judge.claims import Reported, reported_range
from kdlib.judge.intervals import t_interval
from kdlib.judge.judging import Metrics, values_of
from kdlib.judge.verdicts import all_equal

__all__ = ["ACCURACY", "COLUMNS", "GAIN", "LEAST", "Panel", "Quantity", "Spot", "interval"]

LEAST = 3  # seeds of an interval: that of two seeds would be longer than any panel
MOST = 100  # places of a curve
MANY = 500  # dots of an arm; more are drawn as pixels, because thousands of shapes make a slow and large drawing
COLUMNS = ["panel", "series", "at", "arm", "over", "quantity", "metric", "mark", "seed", "value", "low", "high", "n"]


class Quantity(NamedTuple):
    """What an axis shows: a metric times a factor. The label contains the unit."""

    metric: str
    label: str
    factor: float = 1
    form: str = ".2f"


ACCURACY = Quantity("accuracy", "accuracy on test (%)", 100)
GAIN = Quantity("accuracy", "difference of accuracy on test (points)", 100, "+.2f")


class Spot(NamedTuple):
    """Where an arm, or its difference to the arm `over`, is drawn: at a place of the axis that is called `at`."""

    arm: str
    place: float
    at: str
    color: str
    over: str = ""
    series: str = ""
    marker: str = "s"


def interval(values: Sequence[float]) -> tuple[float | str, float | str]:
    """Return Student's 95% interval of the mean of 3 values or more; otherwise two empty texts."""
    if len(values) < LEAST or all_equal(values):
        return "", ""
    bounds = t_interval(values)
    return bounds.low, bounds.high


@dataclass
class Panel:
    """Axes of one quantity, and the rows of all that is drawn in them.

    Seeds are `aside` to the left of their mean, reported numbers to the right. `across`: values go along the x axis.
    """

    axes: Axes
    name: str
    quantity: Quantity
    found: Metrics
    reported: Reported
    aside: float = 0.0
    across: bool = False
    rows: list[dict[str, Any]] = field(default_factory=list)
    colors: set[str] = field(default_factory=set)

    def note(self, mark: str, value: float, **cells: object) -> None:
        """Add a row to the table of what is drawn."""
        row: dict[str, Any] = {"panel": self.name, "quantity": self.quantity.label, "metric": self.quantity.metric}
        row |= {"mark": mark, "value": value} | cells
        for name in ("panel", "at"):
            row[name] = " ".join(str(row.get(name, "")).split())  # of a label in several lines
        self.rows.append(dict.fromkeys(COLUMNS, "") | row)

    def plot(self, places: Any, values: Any, *form: str, **how: Any) -> None:
        """Draw values at places of the other axis."""
        self.axes.plot(*((values, places) if self.across else (places, values)), *form, **how)

    def arm(self, spot: Spot) -> float | None:
        """Draw a dot for each seed, the mean, and its 95% interval; return the mean, None without records."""
        by_seed = values_of(self.found, self.quantity.metric, spot.arm, spot.over)
        if not by_seed:
            return None
        self.colors.add(spot.color)
        values = self.quantity.factor * np.array(list(by_seed.values()))
        cells = {"series": spot.series, "at": spot.at, "arm": spot.arm, "over": spot.over}
        for seed, value in zip(by_seed, values, strict=True):
            self.note("seed", float(value), seed=seed, **cells)
        low, high = interval(values.tolist())
        self.note("mean", float(values.mean()), low=low, high=high, n=len(values), **cells)
        spread = np.linspace(-0.8, 0.8, len(values)) * self.aside if len(values) > 1 else 0.0
        dots: dict[str, Any] = {"color": spot.color, "markersize": 3.2, "alpha": 0.55, "rasterized": len(values) > MANY}
        self.plot(spot.place - self.aside + 0.5 * spread, values, "o", **dots)
        if low != "":
            self.plot([spot.place] * 2, [low, high], color=spot.color, linewidth=1.8)
        how = {"color": spot.color, "markersize": 6.5, "markeredgecolor": "white", "markeredgewidth": 0.7}
        self.plot(spot.place, values.mean(), spot.marker, **how)
        return float(values.mean())

    def theirs(self, spot: Spot) -> float | None:
        """Draw the source's number of an arm, with the range where a mean of as many runs as ours should lie."""
        value = self.reported.value(spot.arm, self.quantity.metric)
        if value is None:
            return None
        n = len(values_of(self.found, self.quantity.metric, spot.arm))
        known = value.std is not None and value.runs is not None and n > 0
        low, high = (self.quantity.factor * bound for bound in reported_range(value, n)) if known else ("", "")
        number = self.quantity.factor * value.value
        cells = {"series": spot.series, "at": spot.at, "arm": spot.arm, "low": low, "high": high}
        self.note("reported", number, n=n if known else "", **cells)
        place = spot.place + self.aside
        if known:
            self.plot([place] * 2, [low, high], color="black", linewidth=0.9)
        self.plot(place, number, "D", color=spot.color, markeredgecolor="black", markersize=5.5)
        return number

    def line(self, spots: Sequence[Spot], label: str, **how: Any) -> None:
        """Draw arms, and a line through their means."""
        shown = [(spot, mean) for spot in spots if (mean := self.arm(spot)) is not None]
        if shown:
            places, means = zip(*((spot.place, mean) for spot, mean in shown), strict=True)
            self.plot(places, means, color=shown[0][0].color, linewidth=1.2, label=label, **how)

    def their_line(self, spots: Sequence[Spot], label: str) -> None:
        """Draw the source's numbers of arms, and a dashed line through them."""
        shown = [(spot, number) for spot in spots if (number := self.theirs(spot)) is not None]
        if shown:
            places, numbers = zip(*((spot.place + self.aside, number) for spot, number in shown), strict=True)
            self.plot(places, numbers, "--", color=shown[0][0].color, linewidth=0.9, label=label)

    def claimed(self, at: str, arm: str, over: str, value: float) -> None:
        """Mark the difference of two arms that the source reports, with a dashed line."""
        number = self.quantity.factor * value
        self.note("reported", number, at=at, arm=arm, over=over)
        (self.axes.axvline if self.across else self.axes.axhline)(number, color="black", linestyle="--", linewidth=0.9)

    def curve(self, arm: str, histories: Mapping[int, Sequence[float]], color: str) -> None:
        """Draw the mean by epoch of the seeds that are still training, and a band from the lowest to the highest."""
        longest = max(map(len, histories.values()))
        epochs = np.unique(np.linspace(1, longest, min(MOST, longest)).round().astype(int))
        rows = []
        for epoch in epochs:
            values = [
                self.quantity.factor * each[epoch - 1] for _, each in sorted(histories.items()) if epoch <= len(each)
            ]
            rows.append((float(np.mean(values)), min(values), max(values)))
            mean, low, high = rows[-1]
            self.note("curve", mean, at=int(epoch), arm=arm, low=low, high=high, n=len(values))
        means, lows, highs = zip(*rows, strict=True)
        self.colors.add(color)
        self.axes.fill_between(epochs, lows, highs, color=color, alpha=0.18, linewidth=0)
        self.axes.plot(epochs, means, color=color, linewidth=1.6, label=f"{arm} (n = {len(histories)})")

    def ticks(self, spots: Sequence[Spot]) -> None:
        """Write the spots' names along their axis."""
        places, names = [spot.place for spot in spots], [spot.at for spot in spots]
        if self.across:
            self.axes.set_yticks(places, names, fontsize=8.5)
            self.axes.set_ylim(max(places) + 0.6, min(places) - 0.6)
        else:
            self.axes.set_xticks(places, names, fontsize=8.5)
            self.axes.set_xlim(min(places) - 0.6, max(places) + 0.6)
