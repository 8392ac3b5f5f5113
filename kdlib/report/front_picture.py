"""The front picture, its text alternative and its files: the reported gains, the measured ones, and their parts."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from kdlib.files import atomic_write
from kdlib.judge.claims import fixed_rival
from kdlib.report.chains import PARTS
from kdlib.report.figures import WIDTH, save, style
from kdlib.report.front import Mark, Row, front_rows, table_of
from kdlib.report.markdown import Scale, aim
from kdlib.report.roles import COLORS

matplotlib.use("Agg")
from matplotlib import pyplot as plt

__all__ = ["CAPTION", "alt_of", "draw", "write_front"]

COLUMNS = (  # parts, head, colour
    (("reported", "measured"), "the gain:\nreported and measured", "black"),
    (("schedule",), "schedule, batch, data:\nno teacher, or the same", COLORS["baseline"]),
    (("softness",), "softness of each class:\nsham over no teacher", COLORS["sham"]),
    (("transfer",), "transfer proper:\ntaught over sham", COLORS["distilled"]),
)
CAPTION = (
    "Each primary claim has one row. If the parts add up to the measured gain in some mode, the row is of that mode; "
    "the table below has the mode with the worst verdict. A gain is positive if the claim's arm does better: with "
    "fewer errors, for example. Filled parts are steps of the measured gain and add up to it; hollow ones compare "
    "other arms, or are of other seeds. Intervals are 95% over the seeds, from 3 seeds on. Runs in profile `quick` "
    "are shortened and decide nothing. Each row has its own scale, the same in all its columns, because the units and "
    "sizes differ too much for a common one. The numbers are in [results/front.csv](results/front.csv)."
)
ROW = 0.86  # inches
HEAD, FOOT = 0.62, 0.34  # inches


def write_front(root: Path) -> str:
    """Write `results/front.svg`, `.png`, `.csv` and `.txt`; return the text alternative."""
    rows, folder = front_rows(root), root / "results"
    save(draw(rows), folder / "front.svg", folder / "front.png")
    content = table_of(rows).to_csv(index=False, lineterminator="\n")
    atomic_write(folder / "front.csv", content.encode())
    alt = alt_of(rows)
    atomic_write(folder / "front.txt", f"{alt}\n".encode())
    return alt


def draw(rows: Sequence[Row]) -> Figure:
    """Return the picture: a line for each claim, a column for the gain and for each of its parts."""
    with style():
        height = ROW * len(rows) + HEAD + FOOT
        figure = plt.figure(figsize=(WIDTH, height))
        edges = {"left": 0.01, "right": 0.99, "top": 1 - HEAD / height, "bottom": FOOT / height}
        widths = (1.3, 1.42, 1.03, 1.03, 1.03)
        grid = figure.add_gridspec(len(rows), len(widths), width_ratios=widths, wspace=0.0, hspace=0.0, **edges)
        for line, row in enumerate(rows):
            _label(figure.add_subplot(grid[line, 0]), row)
            for column, (parts, head, color) in enumerate(COLUMNS, 1):
                axes = figure.add_subplot(grid[line, column])
                _cell(axes, row, parts, color)
                if not line:
                    axes.set_title(head, fontsize=9, pad=9)
                    axes.plot(
                        [0.02, 0.98], [1.06, 1.06], color=color, linewidth=3, transform=axes.transAxes, clip_on=False
                    )
        _explain(figure)
        return figure


def _label(axes: Axes, row: Row) -> None:
    axes.set_axis_off()
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.text(0, 0.80, f"{row.replication} {row.claim.name}", weight="bold", va="center", fontsize=10)
    for place, text in zip((0.53, 0.32, 0.11), _about(row), strict=False):
        axes.text(0, place, text, va="center", fontsize=8.5, color="#333333")


def _about(row: Row) -> list[str]:
    """Return what a row compares, in which mode and runs, and its unit."""
    compared = row.claim.modes[row.mode]
    arms = f"{compared.arms[0]} over {', '.join(compared.rivals) or fixed_rival(row.claim)}"
    return [textwrap.shorten(arms, 44, placeholder=" …"), f"{row.mode}; {_runs(row)}", row.unit]


def _runs(row: Row) -> str:
    mark = row.mark("measured")
    if mark is None:
        return f"{row.profile}: other arms only" if row.profile else "not run"
    return f"{row.profile}, n = {mark.n}" + (f" of {row.seeds}" if row.seeds > int(mark.n) else "")


def _cell(axes: Axes, row: Row, parts: Sequence[str], color: str) -> None:
    """Draw the marks of one cell around 0, and write their numbers above them."""
    marks = [mark for part in parts if (mark := row.mark(part))]
    axes.set(xlim=(-1.12, 1.12), ylim=(0, 1), xticks=[], yticks=[])
    for side in axes.spines.values():
        side.set(color="#dddddd")
    size = _size(row)
    if marks:
        axes.axvline(0, 0, 0.52, color="#999999", linewidth=0.8)
    for mark in marks:
        _draw(axes, mark, size, color)
    texts = _gain(row) if parts[0] == "reported" else _numbers(row, marks) or [_lacks(row, parts[0])]
    for place, text in zip((0.85, 0.64) if len(texts) > 1 else (0.72,), texts, strict=True):
        axes.text(0, place, text, ha="center", va="center", fontsize=8.4)


def _gain(row: Row) -> list[str]:
    """Return the reported and the measured gain as text."""
    mark = row.mark("measured")
    return [f"reported {aim(row.claim, row.shown)}", *(_numbers(row, [mark]) if mark else ["measured: not run"])]


def _lacks(row: Row, part: str) -> str:
    return "not run" if part in row.declared else "no part of this claim"


def _size(row: Row) -> float:
    """Return the largest number of a row, with the ends of its intervals: it reaches the edge of a cell."""
    numbers = [number for mark in row.marks for number in (mark.value, mark.low, mark.high) if number != ""]
    return max((abs(float(number)) for number in numbers), default=0.0) or 1.0


def _draw(axes: Axes, mark: Mark, size: float, color: str) -> None:
    if mark.part == "reported":
        axes.plot(mark.value / size, 0.38, "D", color="white", markeredgecolor="black", markersize=5.5)
        return
    place = 0.2 if mark.part == "measured" else 0.3
    axes.barh(place, mark.value / size, height=0.2, color=color, alpha=0.2, linewidth=0)
    if mark.low != "":
        axes.plot([float(mark.low) / size, float(mark.high) / size], [place] * 2, color=color, linewidth=1.8)
    face = color if mark.own else "white"
    axes.plot(mark.value / size, place, "s", color=face, markeredgecolor=color, markersize=6)


def _rounded(row: Row) -> Scale:
    """Return the row's scale with so few decimals that the largest number has 3 digits, or its own if it has fewer."""
    largest = math.floor(math.log10(max(abs(mark.value) for mark in row.marks) or 1.0)) if row.marks else 0
    return replace(row.shown, decimals=min(row.shown.decimals, max(2 * row.shown.percent, 2 - largest)))


def _numbers(row: Row, marks: Sequence[Mark]) -> list[str]:
    """Return the numbers of a cell as text, in the row's unit."""
    sign, shown = "+" if fixed_rival(row.claim) is None else "", _rounded(row)
    texts = []
    for mark in marks:
        text = aim(row.claim, row.shown) if mark.part == "reported" else shown.show(mark.value, sign)
        bounds = "" if mark.low == "" else f" ({shown.between(float(mark.low), float(mark.high), sign)})"
        texts.append(f"{mark.part} " * (mark.part not in PARTS) + text + bounds)
    return texts


def _explain(figure: Figure) -> None:
    how: dict[str, Any] = {"color": "black", "linestyle": ""}
    handles = [
        Line2D([], [], label="reported", marker="D", markersize=5.5, **how | {"markerfacecolor": "white"}),
        Line2D([], [], label="mean of the seeds", marker="s", markersize=6, **how),
        Line2D([], [], label="its 95% interval (from 3 seeds on)", color="black", linewidth=1.8),
        Line2D([], [], label="hollow: of other arms or seeds", marker="s", **how | {"markerfacecolor": "white"}),
    ]
    figure.legend(handles=handles, loc="lower center", ncols=len(handles), frameon=False, fontsize=8.5)


# ---- the text alternative


def alt_of(rows: Sequence[Row]) -> str:
    """Return a sentence for each claim."""
    return " ".join(
        [
            "The gain that each primary claim reports, next to the measured one, and what the measured one is made of.",
            *(_sentence(row) for row in rows),
        ]
    )


def _sentence(row: Row) -> str:
    names = {"schedule": "schedule and data", "softness": "softness of each class", "transfer": "transfer proper"}
    told = [f"reported {aim(row.claim, row.shown)}"]
    for part in ("measured", *PARTS):
        if mark := row.mark(part):
            other = "" if mark.own else " (of other arms or seeds)"
            told.append(f"{names.get(part, '')}{other} ".lstrip() + "".join(_numbers(row, [mark])))
    missing = [] if row.mark("measured") else ["the gain is not run"]
    return f"{row.replication} {row.claim.name}, {row.mode}, {row.unit}, {_runs(row)}: {'; '.join([*told, *missing])}."
