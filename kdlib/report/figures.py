"""Drawing for the figures of several replications: arms side by side with a dot for each seed, means and intervals."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from kdlib.files import atomic_write
from kdlib.judge.claims import Reported
from kdlib.judge.intervals import t_interval

matplotlib.use("Agg")
from matplotlib import pyplot as plt

__all__ = [
    "Metrics",
    "Numbers",
    "accuracies",
    "bars",
    "claim",
    "differences",
    "heat",
    "maps",
    "mean_and_interval",
    "means",
    "reported_means",
    "save",
    "seeds",
    "strip",
]

Metrics = Mapping[str, Mapping[int, Mapping[str, float]]]  # by arm and seed
Numbers = NDArray[np.float64]
Names = Sequence[Sequence[str]]  # of arms, in rows and columns
Ticks = tuple[Sequence[float], Sequence[float]]  # of rows and columns


def accuracies(found: Metrics, arm: str) -> Numbers:
    """Return the test accuracy of each seed, in percent; empty if the arm is not recorded."""
    return 100 * np.array([metrics["accuracy"] for _, metrics in sorted(found.get(arm, {}).items())])


def mean_and_interval(axes: Axes, place: float, values: Numbers, color: str) -> None:
    """Draw a square at the mean and, for two values or more, a line along the 95% interval (Student's t)."""
    axes.plot(place, values.mean(), "s", color=color, markersize=5)
    if len(values) > 1 and np.ptp(values) > 0:
        bounds = t_interval(values)
        axes.plot([place, place], [bounds.low, bounds.high], color=color, linewidth=1.5)


def strip(axes: Axes, found: Metrics, reported: Reported, arms: Sequence[tuple[str, str, str]]) -> None:
    """Draw accuracies of arms (name, label, colour): a dot for each seed, mean and interval; in black the source's."""
    for place, (arm, _, color) in enumerate(arms):
        if value := reported.value(arm, "accuracy"):
            spread = 100 * value.std if value.std else None
            axes.errorbar(
                place + 0.32,
                100 * value.value,
                yerr=spread,
                fmt="D",
                color="black",
                markersize=4,
                capsize=3,
                linewidth=1,
            )
        if len(values := accuracies(found, arm)):
            aside = np.linspace(-0.18, 0.18, len(values)) if len(values) > 1 else 0
            axes.plot(place - 0.1 + aside, values, "o", color=color, markersize=3.5, alpha=0.7)
            mean_and_interval(axes, place + 0.18, values, color)
    axes.set_xticks(range(len(arms)), [label for _, label, _ in arms], fontsize=8)
    axes.set(ylabel="accuracy on test (%); black: reported", xlim=(-0.5, len(arms) - 0.5))


def differences(
    found: Metrics, metric: str, pairs: Sequence[tuple[str, str, str]], scale: float = 1
) -> dict[str, Numbers]:
    """Return differences times `scale` of pairs (label, arm, rival), by label, one for each seed that both have."""
    values = {}
    for label, arm, over in pairs:
        if both := sorted(found.get(arm, {}).keys() & found.get(over, {}).keys()):
            values[label] = scale * np.array([found[arm][seed][metric] - found[over][seed][metric] for seed in both])
    return values


def bars(axes: Axes, values: Mapping[str, Numbers], xlabel: str, title: str) -> None:
    """Draw paired differences, the first on top: a bar to the mean, a line along the 95% interval, a dot a seed."""
    for row, each in enumerate(values.values()):
        axes.barh(row, float(each.mean()), color="#4477aa", alpha=0.8, height=0.6)
        axes.plot(each, np.full(len(each), row), "o", color="white", markeredgecolor="black", markersize=3)
        if len(each) > 1 and np.ptp(each) > 0:
            bounds = t_interval(each)
            axes.plot([bounds.low, bounds.high], [row, row], color="black", linewidth=1.2)
    axes.set_yticks(range(len(values)), [textwrap.fill(label, 30) for label in values], fontsize=8)
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set(xlabel=xlabel, title=f"{title} (95% interval; dots: seeds)")
    axes.title.set_fontsize(10)


def claim(axes: Axes, value: float, of: str) -> None:
    """Mark the reported difference among the bars, and say which difference it is."""
    axes.axvline(value, color="black", linestyle="--", linewidth=0.8)
    axes.set_xlabel(f"{axes.get_xlabel()}\ndashed: reported, {of}")


def means(found: Metrics, arms: Names) -> Numbers:
    """Return mean accuracies over the seeds, in percent; NaN for an arm that is not recorded."""
    return np.array(
        [[values.mean() if len(values := accuracies(found, arm)) else np.nan for arm in row] for row in arms]
    )


def reported_means(reported: Reported, arms: Names) -> Numbers:
    """Return the source's accuracies in percent; NaN for an arm that it does not report."""
    values = [[reported.value(arm, "accuracy") for arm in row] for row in arms]
    return np.array([[100 * value.value if value else np.nan for value in row] for row in values])


def seeds(counts: Sequence[int]) -> str:
    """Return the number of seeds as text: 'n = 5' or 'n = 1 to 5'."""
    return f"n = {' to '.join(map(str, dict.fromkeys((min(counts, default=0), max(counts, default=0)))))}"


def maps(axes: Sequence[Axes], found: Metrics, reported: Reported, arms: Names, ticks: Ticks) -> None:
    """Three heat maps of arms by alpha (down) and T (across): measured, reported, and their difference."""
    ours, theirs = means(found, arms), reported_means(reported, arms)
    counts = [len(found[arm]) for row in arms for arm in row if arm in found]
    scale = Normalize(np.nanmin([ours, theirs]), np.nanmax([ours, theirs]))
    largest = max(1.0, np.nanmax(np.abs(ours - theirs), initial=0))
    title = f"measured: {len(counts)} of {ours.size} cells recorded" + (f", {seeds(counts)}" if counts else "")
    heat(axes[0], ours, ticks, title, "viridis", scale)
    heat(axes[1], theirs, ticks, "reported, one run a cell", "viridis", scale)
    heat(axes[2], ours - theirs, ticks, "measured - reported", "RdBu", Normalize(-largest, largest), "+.2f")


def heat(
    axes: Axes, values: Numbers, ticks: Ticks, title: str, colors: str, scale: Normalize, form: str = ".2f"
) -> None:
    """Draw values by alpha (down) and T (across) as colours and numbers; a place without a number is hatched."""
    axes.patch.set(hatch="////", facecolor="white", edgecolor="#cccccc")
    image = axes.imshow(values, cmap=colors, norm=scale, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            red, green, blue, _ = image.cmap(scale(value))
            dark = 0.3 * red + 0.6 * green + 0.1 * blue < 0.5
            axes.text(
                column,
                row,
                format(value, form),
                ha="center",
                va="center",
                fontsize=8,
                color="white" if dark else "black",
            )
    alphas, temperatures = ticks
    axes.set_xticks(range(len(temperatures)), [str(t) for t in temperatures])
    axes.set_yticks(range(len(alphas)), [str(alpha) for alpha in alphas])
    axes.set(xlabel="T", ylabel="alpha, the teacher's weight")
    axes.set_title(title, fontsize=10)


def save(figure: Figure, path: Path) -> None:
    """Write the figure and close it; without the versions of the libraries, so that equal numbers give equal bytes."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=130, metadata={"Software": None})
    plt.close(figure)
    atomic_write(path, content.getvalue())
