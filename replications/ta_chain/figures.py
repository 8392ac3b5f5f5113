"""The figure of the teaching assistants: accuracy against depth, teacher and assistant, and certainty. Called by `kd tables`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt

from kdlib.claims import Reported, Value
from kdlib.intervals import t_interval
from kdlib.report.evidence import Record, measured
from kdlib.report.figures import Metrics, save

COLORS = {"as described, controlled": "#4477aa", "as released": "#ee6677"}
REPORTED = {"as described, controlled": "reported", "as released": "reported, of the released run"}


def draw(records: Sequence[Record], reported: Reported, path: Path) -> None:
    """Write the figure of one profile's records."""
    figure, axes = plt.subplots(2, 2, figsize=(11, 7.5), layout="constrained")
    found = measured(records)
    sizes = (2, 4, 6, 8, 10)
    panels = (
        ("from scratch", sizes, [f"scratch_{n}" for n in sizes], [f"released_scratch_{n}" for n in sizes],
         "number of convolutions"),
        ("student of 2, by size of its teacher", sizes[1:], [f"student_2_of_{n}" for n in sizes[1:]],
         [f"released_2_of_{n}" for n in sizes[1:]], "convolutions of the teacher"),
        ("student of 2, by assistant between it and the teacher of 10", (0, 4, 6, 8, 12),
         ["direct", "ta_4", "ta_6", "ta_8", "chain"],
         ["released_2_of_10", "released_ta_4", "released_ta_6", "released_ta_8", "released_chain"], ""),
    )
    for panel, (title, places, arms, released, label) in zip(axes.flat, panels, strict=False):
        for (mode, color), names, shift in zip(COLORS.items(), (arms, released), (-0.12, 0.12), strict=True):
            points(panel, np.array(places) + shift, [values(found, arm, "accuracy") for arm in names], color, mode)
            if names is arms or any(arm in found for arm in names):
                beside = [reported.value(arm, "accuracy") for arm in names]
                stars(panel, np.array(places) + 2.5 * shift, beside, color, REPORTED[mode])
        panel.set(title=title, xlabel=label, ylabel="accuracy on test (%)", xticks=places)
        panel.legend(frameon=False, fontsize=8)
    chains, certainty = axes.flat[2], axes.flat[3]
    chains.set_xticklabels(["none", "4", "6", "8", "8, 6, 4"])
    for arm, style in (("direct_as_ta", ":"), ("direct_as_chain", "--")):
        if series := values(found, arm, "accuracy"):
            chains.axhline(100 * float(np.mean(series)), color="black", linestyle=style, linewidth=0.8,
                           label=f"{arm} (n = {len(series)})")
    chains.legend(frameon=False, fontsize=8)
    for (mode, color), prefix in zip(COLORS.items(), ("", "released_"), strict=True):
        series = [values(found, f"{prefix}scratch_{n}", "entropy") for n in sizes]
        points(certainty, np.array(sizes), series, color, mode, scale=1)
    certainty.set(title="how certain networks from scratch are", xlabel="number of convolutions",
                  ylabel="mean entropy of test predictions (nats)", xticks=sizes)
    if certainty.lines:
        certainty.legend(frameon=False, fontsize=8)
    save(figure, path)


def values(found: Metrics, arm: str, metric: str) -> list[float]:
    return [metrics[metric] for _, metrics in sorted(found.get(arm, {}).items())]


def points(axes: plt.Axes, places: Sequence[float], series: Sequence[list[float]], color: str, label: str,
           scale: int = 100) -> None:
    """Means with 95% intervals over the seeds, and the seeds themselves; nothing where an arm has no run."""
    shown = [(place, scale * np.array(row)) for place, row in zip(places, series, strict=True) if row]
    if not shown:
        return
    counts = sorted({len(row) for _, row in shown})
    n = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else str(counts[0])
    means = [scale * np.mean(row) if row else np.nan for row in series]  # an arm without runs breaks the line
    axes.plot(places, means, "o-", color=color, linewidth=1, label=f"{label} (n = {n})")
    for place, row in shown:
        axes.plot(np.full(len(row), place), row, "o", color="white", markeredgecolor=color, markersize=3)
        if len(row) > 1 and np.ptp(row) > 0:
            interval = t_interval(row)
            axes.plot([place, place], [interval.low, interval.high], color=color, linewidth=1.5)


def stars(axes: plt.Axes, places: Sequence[float], reported: Sequence[Value | None], color: str, label: str) -> None:
    """The source's numbers; where text and code have two for one network, each beside the arm it is about."""
    shown = [(place, 100 * value.value) for place, value in zip(places, reported, strict=True) if value is not None]
    axes.plot(*zip(*shown, strict=True), "*", color=color, markeredgecolor="black", markersize=10, label=label)
