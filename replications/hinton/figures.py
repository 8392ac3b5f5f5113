"""The figure of Hinton's experiments: errors by arm, by temperature and by bias, and the specialists' classes.

`kd tables` draws it. A session of your own also draws threes that a student recognises without having seen one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import ScalarFormatter

from kdlib.data import cifar10, fetch, mnist
from kdlib.data.pictures import Bytes
from kdlib.judge.claims import Reported
from kdlib.report.figures import Metrics, Numbers, mean_and_interval, save
from kdlib.run.records import Record, measured

from .experiment import SWEPT, swept

COLORS = {800: "#4477aa", 300: "#228833", 30: "#ee6677"}  # by width
# Arm, label.
ARMS = (
    ("teacher", "teacher"),
    ("baseline", "hard\ntargets"),
    ("distilled", "distilled"),
    ("sham", "sham"),
    ("ensemble_arithmetic", "ensemble\nof 10"),
    ("by_ensemble_arithmetic", "by\nensemble"),
)
POINTS = (
    ("no_threes_corrected", "o", "chosen on test, as the paper did"),
    ("no_threes_matched", "s", "chosen without labels"),
)
SIDE = 10  # threes in a row of the contact sheet


def draw(records: Sequence[Record], reported: Reported, path: Path) -> None:
    """Write the figure of one profile's records."""
    figure, ((arms, temperatures), (bias, classes)) = plt.subplots(2, 2, figsize=(12, 9), layout="constrained")
    found = measured(records)
    by_arm(arms, found, reported)
    against_temperature(temperatures, found)
    against_bias(bias, records, found)
    clusters(classes, records)
    save(figure, path)
    place = fetch.where("mnist")  # the pictures stay on this machine: no data set's pictures are committed
    if path.parent.name == "local" and place is not None and not records[0].data_name.startswith("synthetic"):
        contact_sheet(records, mnist.digits(place.path).test_images, path.with_name(f"{path.stem}-threes.png"))


def errors(found: Metrics, arm: str) -> Numbers:
    return np.array([metrics["errors"] for _, metrics in sorted(found.get(arm, {}).items())], np.float64)


def by_arm(axes: Axes, found: Metrics, reported: Reported) -> None:
    """Draw the errors of the main arms: seeds, mean and interval; in black the paper's."""
    for place, (arm, _) in enumerate(ARMS):
        if value := reported.value(arm, "errors"):
            axes.plot(place + 0.25, value.value, "D", color="black", markersize=5)
        if len(values := errors(found, arm)):
            axes.plot(np.full(len(values), place - 0.1), values, "o", color=COLORS[800], markersize=3.5, alpha=0.7)
            mean_and_interval(axes, place + 0.1, values, COLORS[800])
    axes.set_xticks(range(len(ARMS)), [label for _, label in ARMS], fontsize=8)
    axes.set(ylabel="errors of 10,000 test digits; black: reported", xlim=(-0.5, len(ARMS) - 0.5))
    axes.set_title("Main arms: each seed, mean and 95% interval", fontsize=10)


def against_temperature(axes: Axes, found: Metrics) -> None:
    """Draw the errors of students against T, by width."""
    for width, temperatures in SWEPT.items():
        every = sorted({*temperatures, 20.0})
        rows = [(T, values) for T in every if len(values := errors(found, swept(width, T)))]
        if rows:
            means = [values.mean() for _, values in rows]
            axes.plot([T for T, _ in rows], means, color=COLORS[width], label=f"{width} units")
        for T, values in rows:
            mean_and_interval(axes, T, values, COLORS[width])
    axes.set(xscale="log", xlabel="T", ylabel="errors of 10,000 test digits")
    axes.set_xticks(SWEPT[30], [f"{T:g}" for T in SWEPT[30]])
    axes.xaxis.minorticks_off()
    plain_logarithm(axes)
    axes.set_title("Errors against the temperature, by units per layer", fontsize=10)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)


def against_bias(axes: Axes, records: Sequence[Record], found: Metrics) -> None:
    """Draw the errors of each student without 3s against what is added to its bias of 3, and both chosen points."""
    for record in with_arm(records, "no_threes"):
        curve = np.array(record.metrics["final"]["curve"])
        axes.plot(curve[:, 0], curve[:, 1], color="#bbbbbb", linewidth=1)
    for arm, marker, label in POINTS:
        if seeds := found.get(arm, {}).values():
            places = [metrics["bias"] for metrics in seeds], [metrics["errors"] for metrics in seeds]
            axes.plot(*places, marker, color="#4477aa" if marker == "o" else "#ee6677", label=label)
    axes.set(xlabel="added to the bias of class 3", ylabel="errors of 10,000 test digits")
    plain_logarithm(axes)
    axes.set_title("Taught without any 3: errors against the bias", fontsize=10)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)


def plain_logarithm(axes: Axes) -> None:
    """Make the scale of errors logarithmic, with plain numbers."""
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(ScalarFormatter())
    axes.tick_params(axis="y", which="minor", labelsize=7)


def clusters(axes: Axes, records: Sequence[Record]) -> None:
    """Draw the covariance of the first generalist's predictions; frames: the classes of its specialists."""
    axes.set_title("Covariance of the generalist's predictions; framed: specialists", fontsize=10)
    for record in with_arm(records, "generalist")[:1]:
        subsets = [subset for _, subset in sorted(specialists_of(records, record.seed).items())]
        order = [k for subset in subsets for k in subset]
        order += [k for k in range(len(cifar10.CLASSES)) if k not in order]
        values = 1000 * np.array(record.metrics["final"]["covariance"])[np.ix_(order, order)]
        largest = np.abs(values - np.diag(values.diagonal())).max()
        axes.figure.colorbar(axes.imshow(values, cmap="RdBu", vmin=-largest, vmax=largest), ax=axes, label="x 1/1000")
        names = [cifar10.CLASSES[k] for k in order]
        axes.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=8)
        axes.set_yticks(range(len(names)), names, fontsize=8)
        first = 0
        for subset in subsets:
            axes.add_patch(Rectangle((first - 0.5, first - 0.5), len(subset), len(subset), fill=False, linewidth=2))
            first += len(subset)


def specialists_of(records: Sequence[Record], seed: int) -> dict[str, list[int]]:
    """Return the classes of a seed's specialists, by the name of their arm."""
    return {
        arm: record.metrics[snapshot]["subset"]
        for record in records
        for arm, snapshot in record.arms.items()
        if record.seed == seed and arm.startswith("specialist_")
    }


def with_arm(records: Sequence[Record], arm: str) -> list[Record]:
    return sorted((record for record in records if arm in record.arms), key=lambda record: record.seed)


def contact_sheet(records: Sequence[Record], digits: Bytes, path: Path) -> None:
    """Write test threes (of digits uint8 (N, 1, 28, 28)) that the first student without 3s recognises."""
    for record in with_arm(records, "no_threes_corrected")[:1]:
        right = record.metrics["corrected"]["right_threes"]
        shown: Any = digits[right[: SIDE * SIDE], 0]
        sheet = np.zeros((SIDE * SIDE, *shown.shape[1:]), np.uint8)
        sheet[: len(shown)] = shown
        rows, columns = shown.shape[1:]
        sheet = sheet.reshape(SIDE, SIDE, rows, columns).swapaxes(1, 2).reshape(SIDE * rows, SIDE * columns)
        figure, axes = plt.subplots(figsize=(6, 6.4), layout="constrained")
        axes.imshow(sheet, cmap="gray_r")
        axes.axis("off")
        title = f"{len(shown)} of the {len(right)} test threes that a student recognises which never saw a 3"
        axes.set_title(f"{title}\n(seed {record.seed}; its bias of 3 corrected on test)", fontsize=10)
        save(figure, path)
