"""Figures from shared parts: the file of each, its text alternative, and its data as a table.

A replication's `figures.py` says which parts its figure has. A part without records is left out.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from kdlib.errors import UnknownName
from kdlib.files import atomic_write
from kdlib.judge.claims import Reported
from kdlib.judge.judging import Metrics
from kdlib.report.panels import COLUMNS, Panel, Quantity
from kdlib.report.roles import COLORS

matplotlib.use("Agg")
from matplotlib import pyplot as plt

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["WIDTH", "Drawing", "Part", "compose", "files_of", "save", "style"]

WIDTH = 10.0  # inches
# Text becomes outlines: it looks the same where the font is missing. The salt makes the names of parts repeat.
_STYLE: Any = {
    "svg.fonttype": "path",
    "svg.hashsalt": "kdlib",
    "font.size": 9,
    "axes.titlesize": 10,
    "text.parse_math": False,
}


def style() -> AbstractContextManager[None]:
    """Return the context in which each figure is drawn and saved."""
    return matplotlib.rc_context(_STYLE)


class Drawing(NamedTuple):
    """A figure, one or two sentences for those who cannot see it, and a row for each mark in it."""

    figure: Figure
    alt: str
    data: pd.DataFrame


class Part(NamedTuple):
    """A panel that may be drawn: it is left out unless `least` of its arms have records.

    `named`: further arms that it may show. `metric`: that of its runs, if its quantity is one.
    """

    name: str
    quantity: Quantity
    arms: Collection[str]
    draw: Callable[[Panel], None]
    least: int = 1
    width: float = 1.0
    aside: float = 0.0
    across: bool = False
    named: Collection[str] = ()
    metric: str = ""


def compose(
    rows: Sequence[tuple[float, Sequence[Part]]], found: Metrics, reported: Reported, symbols: Sequence[Line2D] = ()
) -> Drawing | None:
    """Return rows of parts, each with its height in inches, over an explanation of the symbols; None without records.

    `symbols` are those of this figure only. KDError for a part that names an arm or a metric that `reported` does not
    know, also without records.
    """
    for part in (part for _, parts in rows for part in parts):
        _refuse_unknown(part, reported)
    kept = [(high, [part for part in parts if len(found.keys() & {*part.arms}) >= part.least]) for high, parts in rows]
    kept = [(high, parts) for high, parts in kept if parts]
    if not kept:
        return None
    with style():
        heights = [*(high for high, _ in kept), 0.6]
        figure = plt.figure(figsize=(WIDTH, sum(heights)), layout="constrained")
        subfigures: Any = figure.subfigures(len(heights), 1, height_ratios=heights)
        *strips, foot = subfigures
        panels = []
        for strip_of, (_, parts) in zip(strips, kept, strict=True):
            widths = [part.width for part in parts]
            for axes, part in zip(
                strip_of.subplots(1, len(parts), width_ratios=widths, squeeze=False)[0], parts, strict=True
            ):
                panels.append(_drawn(part, axes, found, reported))
        _explain(foot, panels, symbols)
        return Drawing(figure, _alt(panels), _data(panels))


def _refuse_unknown(part: Part, reported: Reported) -> None:
    """A part without records is left out, so a wrong name would not be seen."""
    named = {
        "arm": dict.fromkeys([*part.arms, *part.named]),
        "metric": dict.fromkeys([part.metric] * bool(part.metric)),
    }
    for what, known in (("arm", reported.arms), ("metric", reported.metrics)):
        if known and (unknown := [name for name in named[what] if name not in known]):
            raise UnknownName(
                f"figure '{' '.join(part.name.split())}': expected names of {what}s, found {', '.join(unknown)}; there "
                f"are {', '.join(known)}"
            )


def _drawn(part: Part, axes: Any, found: Metrics, reported: Reported) -> Panel:
    panel = Panel(axes, part.name, part.quantity, found, reported, part.aside, part.across)
    axes.set_title(part.name)
    (axes.set_xlabel if part.across else axes.set_ylabel)(part.quantity.label)
    part.draw(panel)
    if axes.get_legend_handles_labels()[0] and axes.get_legend() is None:
        axes.legend(frameon=False, fontsize=8.5)
    return panel


def _symbols(panels: Sequence[Panel]) -> list[Line2D]:
    """Explain the marks that the panels have."""
    rows = [row for panel in panels for row in panel.rows]
    marks = {row["mark"] for row in rows}
    any_interval = any(row["mark"] == "mean" and row["low"] != "" for row in rows)
    any_range = any(row["mark"] == "reported" and row["low"] != "" for row in rows)
    shown: list[tuple[bool, str, dict[str, Any]]] = [
        ("seed" in marks, "a seed", {"marker": "o", "markersize": 3.2, "alpha": 0.55}),
        ("mean" in marks, "mean of the seeds", {"marker": "s", "markersize": 6.5}),
        (any_interval, "its 95% interval (from 3 seeds on)", {"linestyle": "-", "linewidth": 1.8}),
        (
            "reported" in marks,
            "reported",
            {"marker": "D", "markersize": 5.5, "markeredgecolor": "black", "color": "white"},
        ),
        (any_range, "range for a mean of our n", {"linestyle": "-", "linewidth": 0.9, "color": "black"}),
    ]
    return [
        Line2D([], [], **{"color": "#444444", "linestyle": "", **how}, label=label)
        for there, label, how in shown
        if there
    ]


def _explain(foot: Any, panels: Sequence[Panel], symbols: Sequence[Line2D]) -> None:
    """Write below the panels what colours and symbols mean."""
    used = {color for panel in panels for color in panel.colors}
    roles = [Patch(color=color, label=role) for role, color in COLORS.items() if color in used]
    how = {"frameon": False, "fontsize": 8.5, "columnspacing": 1.4, "borderaxespad": 0.0}
    if roles:
        foot.legend(handles=roles, loc="upper center", ncols=len(roles), **how)
    handles = [*_symbols(panels), *symbols]
    foot.legend(handles=handles, loc="lower center", ncols=len(handles), **how)


def _data(panels: Sequence[Panel]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame([row for panel in panels for row in panel.rows], columns=COLUMNS, dtype=object)


def _alt(panels: Sequence[Panel]) -> str:
    """Say what the first two panels show, and name the others."""
    told = [text for panel in panels if (text := _told(panel))]
    others = [panel.name for panel in panels if _told(panel) in told[2:]]
    return " ".join([*told[:2], *([f"Other panels: {'; '.join(others)}."] if others else [])])


def _told(panel: Panel) -> str:
    """Return the means of a panel in a sentence; of many only the lowest and the highest."""
    rows = [row for row in panel.rows if row["mark"] in ("mean", "curve")]
    rows = list({(row["series"], row["arm"], row["over"]): row for row in rows}.values())  # a curve: its end
    texts = [_number(panel, row, rows) for row in rows]
    if len(rows) > 8:
        order = sorted(range(len(rows)), key=lambda place: float(rows[place]["value"]))
        texts = [f"from {texts[order[0]]} to {texts[order[-1]]}"]
    claimed = [row for row in panel.rows if row["mark"] == "reported" and row["over"]]
    texts += [f"reported, {row['at']}: {row['value']:{panel.quantity.form}}" for row in claimed]
    unit = panel.quantity.label
    return f"{panel.name.replace(chr(10), ' ')}. Means over the seeds, {unit}: {'; '.join(texts)}." if rows else ""


def _number(panel: Panel, row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a mean, with its name, and the reported number next to it."""
    name = row["arm"] if row["mark"] == "curve" else row["at"]
    if [other["at"] for other in rows].count(row["at"]) > 1 and row["series"]:
        name = f"{row['series']}, {name}"
    same = [r for r in panel.rows if r["mark"] == "reported" and r["arm"] == row["arm"] and not r["over"]]
    form = panel.quantity.form
    theirs = [] if row["over"] or row["mark"] == "curve" else [f" (reported {r['value']:{form}})" for r in same[:1]]
    return f"{name}: {row['value']:{form}}{''.join(theirs)}"


# ---- files


def files_of(drawing: Drawing, label: str) -> dict[str, bytes]:
    """Return `<label>.svg` and `.png`, `<label>-figure.txt` (the text alternative) and `<label>-figure.csv`."""
    return {
        f"{label}-figure.csv": drawing.data.to_csv(index=False, lineterminator="\n").encode(),
        f"{label}-figure.txt": f"{drawing.alt}\n".encode(),
        **_rendered(drawing.figure, f"{label}.svg", f"{label}.png"),
    }


def save(figure: Figure, *paths: Path) -> None:
    """Write the figure in the formats of the paths' ends, and close it."""
    for path, content in zip(paths, _rendered(figure, *(path.name for path in paths)).values(), strict=True):
        atomic_write(path, content)


def _rendered(figure: Figure, *names: str) -> dict[str, bytes]:
    """The figure in the formats of the names' ends; it is closed.

    Date, names and versions of libraries are left out, so that equal numbers give equal bytes.
    """
    found = {}
    try:
        with style():
            _settle(figure)
            for name in names:
                content, png = io.BytesIO(), name.endswith(".png")
                about = {"Software": None} if png else {"Date": None, "Creator": None}
                figure.savefig(content, format=name.rpartition(".")[2], dpi=130, metadata=about)
                found[name] = content.getvalue() if png else _steady(content.getvalue())
    finally:
        plt.close(figure)
    return found


def _settle(figure: Figure) -> None:
    """Lay a figure out and keep its axes where they are then, to a ten-thousandth of it.

    The layout's last digits do not always repeat, and a seventh digit may change the sixth, which a file has.
    """
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        left, bottom, width, height = axes.get_position(original=True).bounds
        axes.set_position((round(left, 4), round(bottom, 4), round(width, 4), round(height, 4)))


def _steady(svg: bytes) -> bytes:
    """Rename what matplotlib names by digests of unrounded numbers: the layout's last digits do not always repeat.

    The names begin with a digest of the file, so that several files fit in one page.
    """
    pattern = rb"\b(?:[phm]|C[0-9a-f]+_[0-9a-f]+_)[0-9a-f]{10}\b"
    numbers = {name: b"%d" % number for number, name in enumerate(dict.fromkeys(re.findall(pattern, svg)))}
    digest = hashlib.sha256(re.sub(pattern, lambda match: numbers[match[0]], svg)).hexdigest()[:8].encode()
    return re.sub(pattern, lambda match: b"x" + digest + b"-" + numbers[match[0]], svg)
