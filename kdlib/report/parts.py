"""Parts that several figures have: arms side by side, paired differences, and maps of arms by alpha and T."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle

from kdlib.judge.judging import Metrics, values_of
from kdlib.report.figures import Part
from kdlib.report.panels import ACCURACY, GAIN, Panel, Quantity, Spot
from kdlib.report.roles import COLORS, role_of
from kdlib.run.experiment import Arm

__all__ = ["OTHERS", "colors_of", "differences", "height_of", "maps", "seeds", "strip"]

# For series that are no roles: light to dark green, so that each is distinguished in print, too.
OTHERS = ("#99cc66", "#228833", "#0b4522")
Names = Sequence[Sequence[str]]  # of arms, in rows and columns
Ticks = tuple[Sequence[float], Sequence[float]]  # of rows and columns


def colors_of(arms: Sequence[Arm]) -> dict[str, str]:
    """Return the colour of each arm's role."""
    return {arm.name: COLORS[role_of(arm, arms)] for arm in arms}


def strip(
    name: str, quantity: Quantity, arms: Sequence[tuple[str, str]], colors: Mapping[str, str], **more: Any
) -> Part:
    """Return a part with arms (name, label) side by side, next to the source's numbers."""

    def draw(panel: Panel) -> None:
        there = [(arm, label) for arm, label in arms if arm in panel.found]
        spots = [Spot(arm, place, label, colors[arm]) for place, (arm, label) in enumerate(there)]
        for spot in spots:
            panel.arm(spot)
            panel.theirs(spot)
        panel.ticks(spots)

    more = {"width": 1.25, "metric": quantity.metric, **more}
    return Part(name, quantity, [arm for arm, _ in arms], draw, aside=0.22, **more)


def differences(
    name: str,
    quantity: Quantity,
    pairs: Sequence[tuple[str, str, str]],
    found: Metrics,
    colors: Mapping[str, str],
    claim: tuple[str, str, str, float] | None = None,
    **more: Any,
) -> Part:
    """Return a part with paired differences (label, arm, rival), the first on top, in the colour of the arm.

    `claim`: the reported difference, as label, arm, rival and value.
    """
    there = [pair for pair in pairs if values_of(found, quantity.metric, pair[1], pair[2])]

    def draw(panel: Panel) -> None:
        spots = [
            Spot(arm, row, textwrap.fill(label, 34), colors[arm], over) for row, (label, arm, over) in enumerate(there)
        ]
        for spot in spots:
            mean = panel.arm(spot)
            panel.axes.barh(spot.place, mean or 0.0, height=0.62, color=spot.color, alpha=0.22, linewidth=0)
        panel.axes.axvline(0, color="black", linewidth=0.8)
        if claim:
            panel.claimed(*claim)
            dashed = textwrap.fill(f"dashed: reported, {claim[0]}", 50)
            panel.axes.set_xlabel(f"{quantity.label}\n{dashed}")
        panel.ticks(spots)

    more = {"named": [name for _, *names in pairs for name in names], "metric": quantity.metric, **more}
    return Part(name, quantity, [arm for _, arm, _ in there], draw, across=True, aside=0.2, **more)


def height_of(differences: Part) -> float:
    """Return a height in inches at which the names of the differences do not touch each other."""
    return 1.0 + 0.46 * max(2, len(differences.arms))


def maps(name: str, arms: Names, ticks: Ticks, found: Metrics, baseline: str = "") -> list[Part]:
    """Return parts with arms by alpha (down) and T (across): measured, reported, their difference, gain over an arm.

    They are left out unless half of the arms have records: a strip shows a few arms better.
    """
    every = [arm for row in arms for arm in row]
    recorded = sum(arm in found for arm in every)
    n = seeds([len(found[arm]) for arm in every if arm in found])
    title = f"{name}: accuracy on test (%),\n{recorded} of {len(every)} cells recorded, {n}"
    off = GAIN._replace(label="measured - reported (points)")

    def part(title: str, quantity: Quantity, mark: str, over: str = "") -> Part:
        def draw(panel: Panel) -> None:
            _map(panel, arms, ticks, mark, over)

        named = [over] if over else []
        return Part(title, quantity, every, draw, least=len(every) // 2, named=named, metric=quantity.metric)

    parts = [
        part(title, ACCURACY, "mean"),
        part("reported: accuracy on test (%),\none run a cell", ACCURACY, "reported"),
        part("measured - reported,\npoints of accuracy on test", off, "off"),
    ]
    if baseline:
        over = GAIN._replace(label=f"gain over {baseline} (points)")
        parts.append(
            part(
                f"{name} over {baseline}, points of accuracy\n(framed: best on test, no verdict)",
                over,
                "mean",
                baseline,
            )
        )
    return parts


def _map(panel: Panel, arms: Names, ticks: Ticks, mark: str, over: str) -> None:
    values = np.full((len(arms), len(arms[0])), np.nan)
    for (row, column), _ in np.ndenumerate(values):
        arm, at = arms[row][column], f"alpha {ticks[0][row]}, T {ticks[1][column]}"
        if (number := _cell(panel, arm, mark, over)) is not None:
            values[row, column] = number
            n = "" if mark == "reported" else len(values_of(panel.found, panel.quantity.metric, arm, over))
            panel.note(mark, number, at=at, arm=arm, over=over, n=n)
    _heat(panel, values, ticks)
    if over and np.isfinite(values).any():
        row, column = np.unravel_index(np.nanargmax(values), values.shape)
        panel.axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="black", linewidth=2))


def _cell(panel: Panel, arm: str, mark: str, over: str) -> float | None:
    by_seed = values_of(panel.found, panel.quantity.metric, arm, over)
    ours = float(np.mean(panel.quantity.factor * np.array(list(by_seed.values())))) if by_seed else None
    value = panel.reported.value(arm, panel.quantity.metric)
    theirs = None if value is None else panel.quantity.factor * value.value
    if mark == "off":
        return None if ours is None or theirs is None else ours - theirs
    return theirs if mark == "reported" else ours


def _heat(panel: Panel, values: Any, ticks: Ticks) -> None:
    """Draw values as colours and numbers; a place without a number is hatched. Signed values are red and blue."""
    signed, axes = panel.quantity.form.startswith("+"), panel.axes
    known = values[np.isfinite(values)]
    largest = max(1.0, float(np.max(np.abs(known), initial=0)))
    lowest = float(np.min(known)) if known.size else 0.0
    scale = Normalize(-largest, largest) if signed else Normalize(lowest, float(np.max(known, initial=lowest)))
    axes.patch.set(hatch="////", facecolor="white", edgecolor="#cccccc")
    edges = [np.arange(size + 1) - 0.5 for size in values.shape]
    mesh = axes.pcolormesh(
        edges[1], edges[0], values, cmap="PuOr" if signed else "viridis", norm=scale, edgecolors="white", linewidth=0.8
    )
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            red, green, blue, _ = mesh.cmap(scale(value))
            color = "white" if 0.3 * red + 0.6 * green + 0.1 * blue < 0.5 else "black"
            form = panel.quantity.form
            axes.text(column, row, format(value, form), ha="center", va="center", fontsize=8.5, color=color)
    alphas, temperatures = ticks
    axes.invert_yaxis()
    axes.set_xticks(range(len(temperatures)), [str(t) for t in temperatures])
    axes.set_yticks(range(len(alphas)), [str(alpha) for alpha in alphas])
    axes.set(xlabel="T", ylabel="alpha, the teacher's weight")


def seeds(counts: Sequence[int]) -> str:
    """Return the number of seeds as text: 'n = 5' or 'n = 1 to 5'."""
    return f"n = {' to '.join(map(str, dict.fromkeys((min(counts, default=0), max(counts, default=0)))))}"
