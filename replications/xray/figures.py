"""The figure of the x-ray replication, which `kd tables` draws, and a sheet of the views, for the session's own folder.

The figure: validation accuracy by epoch, and what the difference between the source's two students is made of.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from kdlib.data.chest_xray import CLASSES
from kdlib.judge.claims import Effect, Reported
from kdlib.report.figures import bars, claim, differences, save
from kdlib.run.records import Record, measured

from .data import Data

CURVES = {
    "teacher": "#999933",
    "baseline": "#66ccee",
    "baseline_50": "#4477aa",
    "distilled_T_2": "#228833",
    "distilled_T_6_fresh": "#ee6677",
    "sham": "#999999",
}
PICTURES = 2  # of each class on the sheet


def draw(records: Sequence[Record], reported: Reported, path: Path) -> None:
    """Write the figure of one profile's records."""
    parts = [(part.label, part.arm, part.rival) for part in reported.ingredients]
    values = differences(measured(records), "unseen_accuracy", parts, scale=100)
    size = 11, max(4.2, 1 + 0.4 * len(values))  # so high that the bars' names do not touch each other
    figure, (left, right) = plt.subplots(1, 2, figsize=size, width_ratios=(1.1, 1), layout="constrained")
    for arm, color in CURVES.items():
        curves(left, [record for record in records if arm in record.arms], arm, color)
    left.set(xlabel="epochs trained", ylabel="accuracy on 300 validation pictures (%)")
    left.set_title("Each seed; thick: mean of the seeds that are still training", fontsize=10)
    if left.get_legend_handles_labels()[0]:  # matplotlib warns of a legend without entries
        left.legend(frameon=False, fontsize=8, loc="lower right")
    bars(right, values, "difference of accuracy on unseen pictures (points)", "What the difference is made of")
    first = reported.claims["C1"]
    assert isinstance(first, Effect)
    claim(right, 100 * first.reported, "distilled_T_6 over baseline, on 300 test pictures")
    save(figure, path)


def curves(axes: Axes, records: Sequence[Record], arm: str, color: str) -> None:
    """Draw the validation accuracy of each run of an arm, and their mean."""
    scores = [[100 * entry["validation_accuracy"] for entry in record.history] for record in records if record.history]
    for each in scores:
        axes.plot(range(1, len(each) + 1), each, color=color, linewidth=0.6, alpha=0.5)
    if scores:
        longest = max(map(len, scores))
        means = [np.mean([each[at] for each in scores if at < len(each)]) for at in range(longest)]
        axes.plot(range(1, longest + 1), means, color=color, linewidth=1.8, label=f"{arm} (n = {len(scores)})")


def draw_data(data: Data, path: Path) -> None:
    """Write a sheet of some training pictures, a row each, in all their views."""
    views = data.views
    labels = data.train.labels[::views]
    chosen = [row for label in range(len(CLASSES)) for row in (labels == label).nonzero()[:PICTURES, 0].tolist()]
    figure, axes = plt.subplots(len(chosen), views, figsize=(1.8 * views, 1.9 * len(chosen)), layout="constrained")
    for line, picture in zip(np.atleast_2d(axes), chosen, strict=True):
        for view, place in enumerate(line):
            place.imshow(data.train.inputs[picture * views + view, 0].numpy(), cmap="gray", vmin=0, vmax=255)
            place.set_axis_off()
        line[0].set_title(CLASSES[int(labels[picture])], fontsize=8, loc="left")
    save(figure, path)
