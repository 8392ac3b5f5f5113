"""The figure of the ECG replication: when the F1 is reached, and what each ingredient adds. Called by `kd tables`."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from numpy.typing import NDArray

from kdlib.claims import Ingredient, Reported
from kdlib.intervals import t_interval
from kdlib.report.evidence import Record, measured
from kdlib.report.figures import save

CURVES = {"baseline": "#4477aa", "baseline_mixup": "#228833", "distilled": "#ee6677", "sham": "#999999"}


def draw(records: Sequence[Record], reported: Reported, path: Path) -> None:
    """Write the figure of one profile's records."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), width_ratios=(1.1, 1), layout="constrained")
    config = records[0].description["config"]
    for arm, color in CURVES.items():
        if curves := [selected(r.history) for r in records if r.arms.get(arm) == "final"]:
            band(left, np.array(curves), arm, color)
    for epoch in (config["released_epochs"], config["epochs"]):
        left.axvline(epoch, color="black", linewidth=0.8, linestyle=":")
    left.text(config["released_epochs"], left.get_ylim()[0], " released baseline stops", va="bottom", fontsize=8)
    left.set(xlabel="epochs trained", ylabel="macro F1 on test",
             title="F1 of the weights chosen so far (lowest validation loss; band: all seeds)")
    left.title.set_fontsize(10)
    left.legend(frameon=False, fontsize=8, loc="lower right")
    bars(right, differences(measured(records), reported.ingredients))
    claimed = reported.claims["C1"].reported
    right.axvline(claimed, color="black", linestyle="--", linewidth=0.8)
    right.text(claimed, right.get_ylim()[1], " reported", fontsize=8, va="top")
    save(figure, path)


def selected(history: Sequence[Mapping[str, float]]) -> list[float]:
    """After each epoch, the test F1 of the weights a run would stop with: those of its lowest validation loss."""
    chosen, lowest = [], float("inf")
    for entry in history:
        if entry["validation_loss"] < lowest:
            lowest, best = entry["validation_loss"], entry["test_macro_f1"]
        chosen.append(best)
    return chosen


def differences(metrics: Mapping[str, Mapping[int, Mapping[str, float]]],
                ingredients: Sequence[Ingredient]) -> dict[str, NDArray[np.float64]]:
    """By ingredient, the paired differences of macro F1 over the seeds that both arms have; none where one is not recorded."""
    found = {}
    for part in ingredients:
        first, second = metrics.get(part.arm, {}), metrics.get(part.over, {})
        seeds = sorted(first.keys() & second.keys())
        found[part.label] = np.array([first[seed]["macro_f1"] - second[seed]["macro_f1"] for seed in seeds])
    return found


def band(axes: plt.Axes, curves: NDArray[np.float64], label: str, color: str) -> None:
    epochs = np.arange(1, curves.shape[1] + 1)
    axes.plot(epochs, curves.mean(0), color=color, label=f"{label} (n = {len(curves)})")
    axes.fill_between(epochs, curves.min(0), curves.max(0), color=color, alpha=0.2, linewidth=0)


def bars(axes: plt.Axes, found: Mapping[str, NDArray[np.float64]]) -> None:
    found = {label: values for label, values in found.items() if len(values)}  # the page's table names the others
    for row, values in enumerate(found.values()):
        axes.barh(row, float(values.mean()), color="#4477aa", alpha=0.8, height=0.6)
        axes.plot(values, np.full(len(values), row), "o", color="white", markeredgecolor="black", markersize=3)
        if len(values) > 1 and np.ptp(values) > 0:
            interval = t_interval(values)
            axes.plot([interval.low, interval.high], [row, row], color="black", linewidth=1.2)
    axes.set_yticks(range(len(found)), [textwrap.fill(label, 30) for label in found], fontsize=8)
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set(xlabel="difference of macro F1 on test", title="What each ingredient adds (95% interval; dots: seeds)")
    axes.title.set_fontsize(10)
