"""The figure of the MNIST experiment: every accuracy beside the reported one, and the differences. Called by `kd tables`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray

from kdlib.claims import Reported
from kdlib.intervals import t_interval
from kdlib.report.evidence import Record, measured

matplotlib.use("Agg")
from matplotlib import pyplot as plt

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
    strips(left, found, reported)
    bars(right, found)
    claimed = 100 * reported.claims["C1"].reported
    right.axvline(claimed, color="black", linestyle="--", linewidth=0.8)
    right.text(claimed, right.get_ylim()[1], " reported", fontsize=8, va="top")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, metadata={"Software": None})
    plt.close(figure)


def strips(axes: plt.Axes, found: Mapping[str, Mapping[int, Mapping[str, float]]], reported: Reported) -> None:
    """A dot for each seed, beside it mean and interval, and in black the source's mean and standard deviation."""
    for place, (arm, _, color) in enumerate(ARMS):
        if value := reported.value(arm, "accuracy"):
            label = {} if place else {"label": "reported (mean ± sd, where there is one)"}
            axes.errorbar(place + 0.3, 100 * value.value, yerr=100 * (value.std or 0), fmt="D", color="black", markersize=4,
                          capsize=3, linewidth=1, **label)
        if arm not in found:
            continue
        accuracies = 100 * np.array([metrics["accuracy"] for _, metrics in sorted(found[arm].items())])
        spread = np.linspace(-0.18, 0.18, len(accuracies)) if len(accuracies) > 1 else [0]
        axes.plot(place - 0.1 + np.asarray(spread), accuracies, "o", color=color, markersize=3.5, alpha=0.7)
        interval(axes, place + 0.18, accuracies, color)
    counts = sorted({len(seeds) for arm, seeds in found.items() if any(arm == shown for shown, *_ in ARMS)})
    axes.set_xticks(range(len(ARMS)), [label for _, label, _ in ARMS], fontsize=8)
    axes.set(ylabel="accuracy on test (%)",
             title=f"Each seed (n = {' to '.join(map(str, dict.fromkeys((counts[0], counts[-1]))))}), mean and 95% interval")
    axes.title.set_fontsize(10)
    axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.12))


def interval(axes: plt.Axes, place: float, values: NDArray[np.float64], color: str) -> None:
    axes.plot(place, values.mean(), "s", color=color, markersize=5)
    if len(values) > 1 and np.ptp(values) > 0:
        bounds = t_interval(values)
        axes.plot([place, place], [bounds.low, bounds.high], color=color, linewidth=1.5)


def differences(found: Mapping[str, Mapping[int, Mapping[str, float]]]) -> dict[str, NDArray[np.float64]]:
    """By label, the paired differences of accuracy in points over the seeds that both arms have."""
    points = {}
    for label, arm, over in DIFFERENCES:
        if seeds := sorted(found.get(arm, {}).keys() & found.get(over, {}).keys()):
            points[label] = 100 * np.array([found[arm][s]["accuracy"] - found[over][s]["accuracy"] for s in seeds])
    return points


def bars(axes: plt.Axes, found: Mapping[str, Mapping[int, Mapping[str, float]]]) -> None:
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
