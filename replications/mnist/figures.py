"""The figure of the MNIST experiment: every accuracy beside the reported one, and the differences. Called by `kd tables`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt

from kdlib.claims import Reported
from kdlib.intervals import t_interval
from kdlib.report.evidence import Record, measured
from kdlib.report.figures import Metrics, Numbers, save, seeds, strip

# Arm, label, colour.
ARMS = (
    ("teacher", "teacher", "#999933"),
    ("baseline", "student\nfrom scratch", "#4477aa"),
    ("distilled_by_one", "distilled,\none teacher", "#cc6677"),
    ("distilled", "distilled,\nteacher per seed", "#ee6677"),
    ("sham", "sham", "#999999"),
)
# Label, arm, arm it is compared with.
DIFFERENCES = (
    ("one teacher, over scratch", "distilled_by_one", "baseline"),
    ("teacher per seed, over scratch", "distilled", "baseline"),
    ("sham, over scratch", "sham", "baseline"),
    ("teacher per seed, over sham", "distilled", "sham"),
)


def draw(records: Sequence[Record], reported: Reported, path: Path) -> None:
    """Write the figure of one profile's records."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), width_ratios=(1.2, 1), layout="constrained")
    found = measured(records)
    strip(left, found, reported, ARMS)
    counts = [len(found[arm]) for arm, *_ in ARMS if arm in found]
    left.set_title(f"Each seed ({seeds(counts)}), mean and 95% interval (reported: ± sd)", fontsize=10)
    bars(right, found)
    claimed = 100 * reported.claims["C1"].reported
    right.axvline(claimed, color="black", linestyle="--", linewidth=0.8)
    right.text(claimed, right.get_ylim()[1], " reported", fontsize=8, va="top")
    save(figure, path)


def differences(found: Metrics) -> dict[str, Numbers]:
    """By label, the paired differences of accuracy in points over the seeds that both arms have."""
    points = {}
    for label, arm, over in DIFFERENCES:
        if both := sorted(found.get(arm, {}).keys() & found.get(over, {}).keys()):
            points[label] = 100 * np.array([found[arm][s]["accuracy"] - found[over][s]["accuracy"] for s in both])
    return points


def bars(axes: plt.Axes, found: Metrics) -> None:
    points = differences(found)
    for row, values in enumerate(points.values()):
        axes.barh(row, values.mean(), color="#4477aa", alpha=0.8, height=0.6)
        axes.plot(values, np.full(len(values), row), "o", color="white", markeredgecolor="black", markersize=3)
        if len(values) > 1 and np.ptp(values) > 0:
            bounds = t_interval(values)
            axes.plot([bounds.low, bounds.high], [row, row], color="black", linewidth=1.2)
    axes.set_yticks(range(len(points)), list(points), fontsize=8)
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set(xlabel="difference of accuracy on test (points)",
             title="What the teacher adds (95% interval; dots: seeds)")
    axes.title.set_fontsize(10)
