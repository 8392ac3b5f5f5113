"""The figure of the ECG replication: macro F1 by epoch, and the effect of each ingredient. `kd tables` draws it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from numpy.typing import NDArray

from kdlib.judge.claims import Effect, Reported
from kdlib.report.figures import bars, claim, differences, save
from kdlib.run.records import Record, measured

CURVES = {"baseline": "#4477aa", "baseline_mixup": "#228833", "distilled": "#ee6677", "sham": "#999999"}


def draw(records: Sequence[Record], reported: Reported, path: Path) -> None:
    """Write the figure of one profile's records."""
    parts = [(part.label, part.arm, part.rival) for part in reported.ingredients]
    # A pair has no bar if one of its arms is not recorded; the page's table names it.
    values = differences(measured(records), "macro_f1", parts)
    size = 11, max(4.2, 1 + 0.4 * len(values))  # so high that the bars' names do not touch each other
    figure, (left, right) = plt.subplots(1, 2, figsize=size, width_ratios=(1.1, 1), layout="constrained")
    config = records[0].description["config"]
    for arm, color in CURVES.items():
        if curves := [selected(r.history) for r in records if r.arms.get(arm) == "final"]:
            band(left, np.array(curves), arm, color)
    if any("released_baseline" in record.arms for record in records):
        left.axvline(config["released_epochs"], color="black", linewidth=0.8, linestyle=":")
        left.text(
            config["released_epochs"],
            left.get_ylim()[0],
            "released baseline stops ",
            va="bottom",
            ha="right",
            fontsize=8,
        )
    left.set(
        xlabel="epochs trained",
        ylabel="macro F1 on test",
        title="F1 of the weights chosen so far (lowest validation loss; band: all seeds)",
    )
    left.title.set_fontsize(10)
    if left.get_legend_handles_labels()[0]:  # matplotlib warns of a legend without entries
        left.legend(frameon=False, fontsize=8, loc="lower right")
    bars(right, values, "difference of macro F1 on test", "What each ingredient adds")
    first = reported.claims["C1"]
    assert isinstance(first, Effect)
    claim(right, first.reported, "distilled over baseline")
    save(figure, path)


def selected(history: Sequence[Mapping[str, float]]) -> list[float]:
    """Return after each epoch the test F1 of the weights chosen so far: those of the lowest validation loss."""
    chosen, lowest, best = list[float](), float("inf"), float("nan")
    for entry in history:
        if entry["validation_loss"] < lowest:
            lowest, best = entry["validation_loss"], entry["test_macro_f1"]
        chosen.append(best)
    return chosen


def band(axes: Axes, curves: NDArray[np.float64], label: str, color: str) -> None:
    epochs = np.arange(1, curves.shape[1] + 1)
    axes.plot(epochs, curves.mean(0), color=color, label=f"{label} (n = {len(curves)})")
    axes.fill_between(epochs, curves.min(0), curves.max(0), color=color, alpha=0.2, linewidth=0)
