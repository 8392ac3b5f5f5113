"""The figure of teacher-free distillation: the first claims' arms, and accuracy against T for three kinds of teacher.

`kd tables` draws it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from kdlib.judge.claims import Reported
from kdlib.report.figures import Metrics, accuracies, maps, mean_and_interval, save, strip
from kdlib.run.records import Record, measured
from replications.course_report.cifar import ALPHAS, TEMPERATURES, cell

ARMS = [[f"self_{cell(alpha, t)}" for t in TEMPERATURES] for alpha in ALPHAS]
# Arm, label, colour.
STRIP = (
    ("baseline_64", "from scratch,\nbatch 64", "#66ccee"),
    ("baseline_slowed", "from scratch,\nbatch 32,\nslowed", "#4477aa"),
    ("smoothed", "label\nsmoothing", "#228833"),
    ("virtual_teacher", "virtual\nteacher", "#999933"),
    (f"self_{cell(0.2, 2)}", "taught by\nits like", "#ee6677"),
    ("sham", "sham", "#999999"),
)
# Teacher, colour, prefix of its students' arms, their alpha (the one of the report's best cell).
TEACHERS = (
    ("ResNet-18, alpha 0.6", "#4477aa", "by_resnet18", 0.6),
    ("a student, alpha 0.2", "#ee6677", "self", 0.2),
    ("a distilled student, alpha 0.4", "#aa3377", "again", 0.4),
)


def draw(records: Sequence[Record], reported: Reported, path: Path) -> None:
    """Write the figure of one profile's records."""
    figure, axes = plt.subplot_mosaic("MMRRDD;SSSTTT", figsize=(12, 8.5), height_ratios=(1, 1.1), layout="constrained")
    found = measured(records)
    maps([axes[name] for name in "MRD"], found, reported, ARMS, (ALPHAS, TEMPERATURES))
    figure.suptitle("Students taught by their like, by alpha and T; and the arms of the first claims", fontsize=10)
    strip(axes["S"], found, reported, STRIP)
    axes["S"].set_title("The first claims' arms: each seed, mean and 95% interval", fontsize=10)
    against_temperature(axes["T"], found, reported)
    save(figure, path)


def against_temperature(axes: Axes, found: Metrics, reported: Reported) -> None:
    """Draw the students' accuracy against T, by teacher: according to the report, small teachers need a small T."""
    for place, (teacher, color, prefix, alpha) in enumerate(TEACHERS):
        arms = {t: f"{prefix}_{cell(alpha, t)}" for t in TEMPERATURES}
        shown = [(t, 100 * value.value) for t, arm in arms.items() if (value := reported.value(arm, "accuracy"))]
        how: dict[str, Any] = {"color": color, "markersize": 4, "linewidth": 0.8, "alpha": 0.6}
        axes.plot(*zip(*shown, strict=True), "D--", label=f"reported: {teacher}", **how)
        every = [(t, accuracies(found, arm)) for t, arm in arms.items()]
        rows = [(t, row) for t, row in every if len(row)]
        if rows:
            temperatures, heights = [t for t, _ in rows], [row.mean() for _, row in rows]
            axes.plot(temperatures, heights, color=color, linewidth=1.5, label=f"measured: {teacher}")
        for t, row in rows:
            mean_and_interval(axes, t + 0.08 * place, row, color)
    axes.set_xticks(TEMPERATURES)
    axes.set(xlabel="T", ylabel="accuracy on test (%)")
    axes.set_title("Accuracy against T, by teacher", fontsize=10)
    axes.legend(frameon=False, fontsize=7.5, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)
