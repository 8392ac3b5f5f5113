"""What the figures of several replications share: arms side by side with a dot for each seed, means and intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from kdlib.claims import Reported
from kdlib.intervals import t_interval

matplotlib.use("Agg")
from matplotlib import pyplot as plt

__all__ = ["Metrics", "Numbers", "accuracies", "mean_and_interval", "save", "strip"]

Metrics = Mapping[str, Mapping[int, Mapping[str, float]]]  # by arm and seed
Numbers = NDArray[np.float64]


def accuracies(found: Metrics, arm: str) -> Numbers:
    """Test accuracy of each seed, in percent; empty where the arm is not recorded."""
    return 100 * np.array([metrics["accuracy"] for _, metrics in sorted(found.get(arm, {}).items())])


def mean_and_interval(axes: Axes, place: float, values: Numbers, color: str) -> None:
    """A square at the mean and, of two values or more, a line along the 95% interval (Student's t)."""
    axes.plot(place, values.mean(), "s", color=color, markersize=5)
    if len(values) > 1 and np.ptp(values) > 0:
        bounds = t_interval(values)
        axes.plot([place, place], [bounds.low, bounds.high], color=color, linewidth=1.5)


def strip(axes: Axes, found: Metrics, reported: Reported, arms: Sequence[tuple[str, str, str]]) -> None:
    """Draw accuracies of arms (name, label, colour): a dot for each seed, mean and interval; in black the source's, ± its sd."""
    legend: str | None = "reported"
    for place, (arm, _, color) in enumerate(arms):
        if value := reported.value(arm, "accuracy"):
            spread = 100 * value.std if value.std else None
            axes.errorbar(place + 0.32, 100 * value.value, yerr=spread, fmt="D", color="black", markersize=4, capsize=3,
                          linewidth=1, label=legend)
            legend = None
        if len(values := accuracies(found, arm)):
            aside = np.linspace(-0.18, 0.18, len(values)) if len(values) > 1 else 0
            axes.plot(place - 0.1 + aside, values, "o", color=color, markersize=3.5, alpha=0.7)
            mean_and_interval(axes, place + 0.18, values, color)
    axes.set_xticks(range(len(arms)), [label for _, label, _ in arms], fontsize=8)
    axes.set(ylabel="accuracy on test (%)", xlim=(-0.5, len(arms) - 0.5))
    axes.legend(frameon=False, fontsize=8)


def save(figure: Figure, path: Path) -> None:
    """Write the figure without the versions of what drew it, so that the same numbers give the same bytes; and close it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, metadata={"Software": None})
    plt.close(figure)
