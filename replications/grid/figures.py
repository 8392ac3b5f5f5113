"""The figure of the grid: 25 cells beside the reported ones, accuracy against amount of data, and the arms of the first claims.

Called by `kd tables`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.colors import Normalize

from kdlib.claims import Reported
from kdlib.report.evidence import Record, measured
from kdlib.report.figures import Metrics, Numbers, accuracies, mean_and_interval, save, strip

from .experiment import ALPHAS, CELLS, PERCENT, TEMPERATURES, cell

BLUE, RED = "#4477aa", "#ee6677"
SHARES = (*PERCENT, 100)  # all of the data is experiment 2's
FROM_SCRATCH = (*(f"baseline_{percent}_percent" for percent in PERCENT), "baseline")
DISTILLED = (*(f"distilled_{percent}_percent" for percent in PERCENT), cell(0.6, 8))
# Arm, label, colour.
STRIP = (
    ("teacher", "teacher", "#999933"),
    ("baseline_64", "from scratch,\nbatch 64", "#66ccee"),
    ("baseline", "from scratch,\nbatch 32", BLUE),
    (cell(0.6, 8), "distilled,\nalpha 0.6, T 8", RED),
    (cell(1.0, 8), "distilled,\nalpha 1, T 8", "#cc6677"),
    ("sham", "sham", "#999999"),
)


def draw(records: Sequence[Record], reported: Reported, path: Path) -> None:
    """Write the figure of one profile's records."""
    figure, axes = plt.subplot_mosaic("MMRRDD;AAASSS", figsize=(12, 8), height_ratios=(1, 1.1), layout="constrained")
    found = measured(records)
    ours, theirs = measured_cells(found), reported_cells(reported)
    low, high = np.nanmin([ours, theirs]), np.nanmax([ours, theirs])
    heat(axes["M"], ours, f"measured: {recorded(found)}", "viridis", Normalize(low, high))
    heat(axes["R"], theirs, "reported, one run a cell", "viridis", Normalize(low, high))
    largest = max(1.0, np.nanmax(np.abs(ours - theirs), initial=0))
    heat(axes["D"], ours - theirs, "measured - reported", "RdBu", Normalize(-largest, largest), "+.2f")
    amount(axes["A"], found, reported)
    pictures = records[0].description["config"]["train_pictures"]  # fewer in profile quick; reported shares are of 50,000
    axes["A"].set_xlabel(f"share of the training pictures (%); measured: of {pictures:,}")
    strip(axes["S"], found, reported, STRIP)
    axes["S"].set_title("The first claims' arms: each seed, mean and 95% interval", fontsize=10)
    save(figure, path)


# ---- the numbers, in percent


def measured_cells(found: Metrics) -> Numbers:
    """Means over the seeds, alpha down and T across; NaN where a cell is not recorded."""
    means = [row.mean() if len(row) else np.nan for row in (accuracies(found, cell(*pair)) for pair in CELLS)]
    return np.reshape(means, (len(ALPHAS), len(TEMPERATURES)))


def reported_cells(reported: Reported) -> Numbers:
    values = [reported.value(cell(*pair), "accuracy") for pair in CELLS]
    return np.reshape([100 * value.value if value else np.nan for value in values], (len(ALPHAS), len(TEMPERATURES)))


def recorded(found: Metrics) -> str:
    """How many of the cells are recorded, with how many seeds."""
    counts = [len(found[name]) for name in (cell(*pair) for pair in CELLS) if name in found]
    return f"{len(counts)} of {len(CELLS)} cells recorded" + (f", {seeds(counts)}" if counts else "")


def seeds(counts: Sequence[int]) -> str:
    return f"n = {' to '.join(map(str, dict.fromkeys((min(counts), max(counts)))))}"


# ---- the panels


def heat(axes: plt.Axes, values: Numbers, title: str, colors: str, scale: Normalize, form: str = ".2f") -> None:
    """The cells as colours and numbers; those without a number are hatched."""
    axes.patch.set(hatch="////", facecolor="white", edgecolor="#cccccc")
    image = axes.imshow(values, cmap=colors, norm=scale, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            red, green, blue, _ = image.cmap(scale(value))
            dark = 0.3 * red + 0.6 * green + 0.1 * blue < 0.5
            axes.text(column, row, format(value, form), ha="center", va="center", fontsize=8, color="white" if dark else "black")
    axes.set_xticks(range(len(TEMPERATURES)), [str(t) for t in TEMPERATURES])
    axes.set_yticks(range(len(ALPHAS)), [str(alpha) for alpha in ALPHAS])
    axes.set(xlabel="T", ylabel="alpha, the teacher's weight")
    axes.set_title(title, fontsize=10)


def amount(axes: plt.Axes, found: Metrics, reported: Reported) -> None:
    """Accuracy against the share of the training pictures, from scratch and distilled."""
    series = ((FROM_SCRATCH, "from scratch", BLUE, "x", "from scratch (at 100%: batch 64)"),
              (DISTILLED, "distilled, alpha 0.6, T 8", RED, "*", "distilled"))
    for arms, name, color, mark, theirs in series:
        values = [reported.value(arm, "accuracy") for arm in arms]
        shown = [(1.07 * share, 100 * value.value) for share, value in zip(SHARES, values, strict=True) if value]  # beside ours
        axes.plot(*zip(*shown, strict=True), mark, color="black", markersize=6, label=f"reported, {theirs}")
        rows = [(share, row) for share, row in zip(SHARES, (accuracies(found, arm) for arm in arms), strict=True) if len(row)]
        if rows:
            label = f"{name} ({seeds([len(row) for _, row in rows])})"
            axes.plot([share for share, _ in rows], [row.mean() for _, row in rows], color=color, linewidth=1, label=label)
        for share, row in rows:
            mean_and_interval(axes, share, row, color)
    axes.set_xscale("log")
    axes.set_xticks(SHARES, [str(share) for share in SHARES])
    axes.minorticks_off()
    axes.set(ylabel="accuracy on test (%)")
    axes.set_title("Amount of data: means and 95% intervals, batch 32", fontsize=10)
    axes.legend(frameon=False, fontsize=8, loc="upper left")
