"""The figure of the binary loss: accuracy against alpha, with the teacher and the controls. `kd tables` draws it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from kdlib.judge.claims import Reported
from kdlib.judge.intervals import t_interval
from kdlib.judge.judging import chosen
from kdlib.report.figures import Metrics, accuracies, bars, differences, mean_and_interval, save, seeds
from kdlib.run.records import Record, measured

from .experiment import ALPHAS, cell

BLUE, RED, GREY, OLIVE = "#4477aa", "#ee6677", "#777777", "#999933"
# Arms by alpha, label, colour, mark, shift to the right.
CONTROLS = (
    ({0.5: "sham_alpha_0_5", 0.0: "sham"}, "sham", GREY, "v", -0.012),
    ({0.5: "smoothed_alpha_0_5", 0.0: "smoothed"}, "smoothed labels", RED, "^", 0.012),
)
BEST = "best alpha"


def draw(records: Sequence[Record], reported: Reported, path: Path) -> None:
    """Write the figure of one profile's records; the teacher, far above the students, has an axis with a gap below."""
    figure, axes = plt.subplot_mosaic(
        "TD;SD", figsize=(12.5, 5), width_ratios=(1.3, 1), height_ratios=(1, 4), layout="constrained"
    )
    found = measured(records)
    best = chosen(reported.choices[0], found)
    teacher_line(axes["T"], found)
    against_alpha(axes["S"], found, best)
    bars(axes["D"], differences(found, "accuracy", pairs(best), scale=100), "", "")
    axes["D"].set_title("Differences of pairs that share a seed\n(95% interval; dots: seeds)", fontsize=10)
    axes["D"].set_xlabel("difference of accuracy on test (points)" + below_teacher(found, best))
    save(figure, path)


def below_teacher(found: Metrics, best: str | None) -> str:
    """Return what the figure says of C1, whose difference is too large to be drawn next to the others."""
    values = differences(found, "accuracy", [("C1", best or "", "teacher")], scale=100).get("C1")
    return "" if values is None else f"\n{BEST} over the teacher (C1): {values.mean():+.1f}, not drawn"


def pairs(best: str | None) -> list[tuple[str, str, str]]:
    """Return the compared arms: label, arm, rival; without the chosen arm if none could be chosen."""
    of_best = [
        (f"{BEST}, over alpha 0.5 (C2)", cell(0.5)),
        (f"{BEST}, over alpha 1, no teacher (C3)", cell(1.0)),
    ]
    over_controls = [
        (f"alpha {alpha:g}, over {label}", cell(alpha), control)
        for controls, label, *_ in CONTROLS
        for alpha, control in controls.items()
    ]
    return [*((label, best, rival) for label, rival in of_best if best), *over_controls]


def against_alpha(axes: Axes, found: Metrics, best: str | None) -> None:
    """Draw accuracy on test, and on validation, against alpha, and the controls at their alphas."""
    counts = [len(found[cell(alpha)]) for alpha in ALPHAS if cell(alpha) in found]
    rows = [(alpha, values) for alpha in ALPHAS if len(values := accuracies(found, cell(alpha)))]
    if rows:
        axes.plot(*zip(*((alpha, values.mean()) for alpha, values in rows), strict=True), color=BLUE, label="test")
        validation = [(alpha, validation_mean(found, cell(alpha))) for alpha, _ in rows]
        axes.plot(*zip(*validation, strict=True), ":", color=BLUE, label="validation, which chooses alpha")
    for alpha, values in rows:
        mean_and_interval(axes, alpha, values, BLUE)
        if cell(alpha) == best:
            label = f"{BEST}: {alpha:g}"
            axes.plot(alpha, values.mean(), "o", color="black", markersize=12, markerfacecolor="none", label=label)
    for controls, label, color, mark, aside in CONTROLS:
        shown = [(alpha + aside, v) for alpha, arm in controls.items() if len(v := accuracies(found, arm))]
        for place, values in shown:
            mean_and_interval(axes, place, values, color)
        if shown:
            means = [(place, values.mean()) for place, values in shown]
            axes.plot(*zip(*means, strict=True), mark, color=color, markersize=8, label=label)
    axes.set(xlabel="alpha, the weight of the labels (1: no teacher)", ylabel="accuracy (%)", xticks=ALPHAS)
    axes.set_title(f"students ({seeds(counts)}): means and 95% intervals", fontsize=10)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)


def validation_mean(found: Metrics, arm: str) -> float:
    values = [metrics["validation_accuracy"] for metrics in found[arm].values()]
    return 100 * sum(values) / len(values)


def teacher_line(axes: Axes, found: Metrics) -> None:
    """Draw the teacher's mean accuracy as a line, and its 95% interval as a band."""
    axes.set(xlim=(-0.05, 1.05), xticks=[], ylabel="accuracy (%)")
    values = accuracies(found, "teacher")
    axes.set_title(f"teacher ({seeds([len(values)])})", fontsize=10)
    if not len(values):
        return
    axes.axhline(float(values.mean()), color=OLIVE, label="teacher")
    if len(values) > 1 and values.std() > 0:
        bounds = t_interval(values)
        axes.axhspan(bounds.low, bounds.high, color=OLIVE, alpha=0.2, linewidth=0)
