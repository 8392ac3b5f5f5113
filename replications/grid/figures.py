"""The figure of the grid: measured and reported cells, accuracy against amount of data, and the first claims' arms.

`kd tables` draws it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle

from kdlib.judge.claims import Reported
from kdlib.report.figures import Metrics, accuracies, heat, maps, mean_and_interval, means, save, seeds, strip
from kdlib.run.records import Record, measured
from replications.course_report.cifar import ALPHAS, TEMPERATURES, cell

from .experiment import PERCENT

BLUE, RED = "#4477aa", "#ee6677"
ARMS = [[cell(alpha, t) for t in TEMPERATURES] for alpha in ALPHAS]
SHARES = (*PERCENT, 100)  # with all of the data it is experiment 2
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
    figure, axes = plt.subplot_mosaic("MRDB;AASS", figsize=(15, 8), height_ratios=(1, 1.1), layout="constrained")
    found = measured(records)
    maps([axes[name] for name in "MRD"], found, reported, ARMS, (ALPHAS, TEMPERATURES))
    over_baseline(axes["B"], found)
    amount(axes["A"], found, reported)
    # Profile quick has fewer pictures; the reported shares are of 50,000.
    pictures = records[0].description["config"]["train_pictures"]
    axes["A"].set_xlabel(f"share of the training pictures (%); measured: of {pictures:,}")
    strip(axes["S"], found, reported, STRIP)
    axes["S"].set_title("The first claims' arms: each seed, mean and 95% interval", fontsize=10)
    save(figure, path)


def over_baseline(axes: Axes, found: Metrics) -> None:
    """Draw each cell's gain over the student from scratch with as many steps; the highest of them gets no verdict."""
    gains = means(found, ARMS) - means(found, [["baseline"]])
    largest = max(1.0, np.nanmax(np.abs(gains), initial=0))
    scale = Normalize(-largest, largest)
    heat(axes, gains, (ALPHAS, TEMPERATURES), "measured - from scratch, batch 32", "RdBu", scale, "+.2f")
    if np.isfinite(gains).any():
        row, column = np.unravel_index(np.nanargmax(gains), gains.shape)
        axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="black", linewidth=2))
        axes.set_xlabel("T (framed: best on test, no verdict)")


def amount(axes: Axes, found: Metrics, reported: Reported) -> None:
    """Draw accuracy against the share of the training pictures, from scratch and distilled."""
    series = (
        (FROM_SCRATCH, "from scratch", BLUE, "x", "from scratch (at 100%: batch 64)"),
        (DISTILLED, "distilled, alpha 0.6, T 8", RED, "*", "distilled"),
    )
    for arms, name, color, mark, theirs in series:
        values = [reported.value(arm, "accuracy") for arm in arms]
        # A little to the right of ours, so that neither hides the other.
        shown = [(1.07 * share, 100 * value.value) for share, value in zip(SHARES, values, strict=True) if value]
        axes.plot(*zip(*shown, strict=True), mark, color="black", markersize=6, label=f"reported, {theirs}")
        every = [(share, accuracies(found, arm)) for share, arm in zip(SHARES, arms, strict=True)]
        rows = [(share, row) for share, row in every if len(row)]
        if rows:
            label = f"{name} ({seeds([len(row) for _, row in rows])})"
            shares, heights = [share for share, _ in rows], [row.mean() for _, row in rows]
            axes.plot(shares, heights, color=color, linewidth=1, label=label)
        for share, row in rows:
            mean_and_interval(axes, share, row, color)
    axes.set_xscale("log")
    axes.set_xticks(SHARES, [str(share) for share in SHARES])
    axes.minorticks_off()
    axes.set(ylabel="accuracy on test (%)")
    axes.set_title("Amount of data: means and 95% intervals, batch 32", fontsize=10)
    axes.legend(frameon=False, fontsize=8, loc="upper left")
