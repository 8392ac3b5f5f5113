"""The figure of the teaching assistants: accuracy by depth, teacher and assistant; entropy. `kd tables` draws it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from kdlib.judge.claims import Reported
from kdlib.judge.intervals import t_interval
from kdlib.report.figures import Metrics, save
from kdlib.run.records import Record, measured

DESCRIBED, RELEASED, CONTROL = "#4477aa", "#ee6677", "black"
SIZES = (2, 4, 6, 8, 10)
# Colour, shift (so that no series hides another), arms: one for each place, "" for none.
Series = tuple[str, float, Sequence[str]]


def draw(records: Sequence[Record], reported: Reported, path: Path) -> None:
    """Write the figure of one profile's records."""
    figure, axes = plt.subplots(2, 3, figsize=(15, 8), layout="constrained")
    found = measured(records)
    scratch, taught, by_size, chains, certainty, legend = axes.flat
    panel(scratch, found, reported, "from scratch", SIZES, by_mode("scratch_", SIZES, "released_scratch_"))
    students = [f"{n}_of_10" for n in SIZES[:4]]
    panel(taught, found, reported, "taught by the network of 10", SIZES[:4], by_mode("student_", students, "released_"))
    teachers = [f"2_of_{n}" for n in SIZES[1:]]
    of_2 = by_mode("student_", teachers, "released_")
    panel(by_size, found, reported, "student of 2, by size of its teacher", SIZES[1:], of_2)
    by_size.set_xlabel("convolutions of the teacher")
    by_assistant(chains, found, reported)
    title = "how certain networks from scratch are"
    panel(certainty, found, reported, title, SIZES, by_mode("scratch_", SIZES, "released_scratch_"), "entropy", 1)
    certainty.set_ylabel("mean entropy of test predictions (nats)")
    explain(legend)
    save(figure, path)


def by_mode(prefix: str, names: Sequence[object], released: str) -> tuple[Series, Series]:
    return (
        (DESCRIBED, -0.15, [f"{prefix}{name}" for name in names]),
        (RELEASED, 0.15, [f"{released}{name}" for name in names]),
    )


def by_assistant(axes: Axes, found: Metrics, reported: Reported) -> None:
    """Draw the students of 2 by the assistant that taught them, and the direct students that they are compared with."""
    labels = ("none", "4", "6", "8", "8, 6, 4", "none,\ntwice\nas long", "none,\n4 times\nas long", "sham")
    described = ["direct", "ta_4", "ta_6", "ta_8", "chain", "", "", ""]
    released = ["released_2_of_10", "released_ta_4", "released_ta_6", "released_ta_8", "released_chain", "", "", ""]
    controls = ["", "", "", "", "", "direct_as_ta", "direct_as_chain", "sham"]
    places = range(len(labels))
    series = ((DESCRIBED, -0.12, described), (RELEASED, 0.12, released), (CONTROL, 0.0, controls))
    panel(axes, found, reported, "student of 2, by assistant between it and the teacher of 10", places, series)
    axes.set_xticks(places, labels, fontsize=8)
    axes.set_xlabel("convolutions of the assistants")


def panel(
    axes: Axes,
    found: Metrics,
    reported: Reported,
    title: str,
    places: Sequence[int],
    series: Sequence[Series],
    metric: str = "accuracy",
    scale: float = 100,
) -> None:
    """Draw each arm's mean, its 95% interval from 3 seeds on, its seeds, and next to it the source's number."""
    for color, shift, arms in series:
        for place, arm in zip(places, arms, strict=True):
            values = scale * np.array([metrics[metric] for _, metrics in sorted(found.get(arm, {}).items())])
            if len(values):
                axes.plot(place + shift, values.mean(), "o", color=color)
                seeds = np.full(len(values), place + shift)
                axes.plot(seeds, values, "o", color="white", markeredgecolor=color, markersize=3)
            # The interval of two seeds would be longer than the panel; the tables give it.
            if len(values) > 2 and np.ptp(values) > 0:
                interval = t_interval(values)
                axes.plot([place + shift] * 2, [interval.low, interval.high], color=color, linewidth=1.5)
            if value := reported.value(arm, metric):
                theirs = scale * value.value
                axes.plot(place + 2 * shift, theirs, "*", color=color, markeredgecolor="black", markersize=9)
    axes.set_title(title, fontsize=10)
    axes.set(xlabel="number of convolutions", ylabel="accuracy on test (%)", xticks=places)
    axes.set_xlim(min(places) - 0.7, max(places) + 0.7)


def explain(axes: Axes) -> None:
    """Draw the legend of all panels in a separate place, because its star inside a panel would look like a number."""
    axes.axis("off")
    black: dict[str, Any] = {"markeredgecolor": "black", "markersize": 9}
    axes.plot([], [], "o", color=DESCRIBED, label="as described, controlled: mean")
    axes.plot([], [], "o", color=RELEASED, label="as released: mean")
    axes.plot([], [], "o", color=CONTROL, label="controlled or sham only: mean")
    axes.plot([], [], "-", color="#888888", label="95% interval over 3 seeds or more (Student's t)")
    axes.plot([], [], "o", color="white", markeredgecolor="#888888", markersize=3, label="a seed")
    axes.plot([], [], "*", color=DESCRIBED, label="reported, of the text's network", **black)
    axes.plot([], [], "*", color=RELEASED, label="reported, of the released run", **black)
    axes.legend(loc="center left", frameon=False, fontsize=9)
