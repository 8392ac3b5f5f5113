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

from kdlib.data import cifar10
from kdlib.data.pictures import Bytes
from kdlib.judge.claims import Effect, Reported
from kdlib.report.figures import Drawing, Part, compose, save
from kdlib.report.panels import Panel, Quantity, Spot
from kdlib.report.parts import OTHERS, colors_of, differences, strip
from kdlib.run.records import Record, measured

from .config import Data
from .experiment import ARMS, SWEPT, swept

FRAMED = "Covariance of the generalist's predictions; framed: the classes of a specialist"
WIDTHS = {30: OTHERS[0], 300: OTHERS[1], 800: OTHERS[2]}  # colours
ERRORS = Quantity("errors", "errors of 10,000 test digits", form=",.1f")
FEWER = Quantity("errors", "fewer errors of 10,000", -1, form="+,.1f")
COVARIANCE = Quantity("covariance", "covariance of predicted probabilities (thousandths)", 1000)
SHOWN = (  # arm, label
    ("teacher", "teacher"),
    ("baseline", "hard\ntargets"),
    ("distilled", "distilled"),
    ("sham", "sham"),
    ("ensemble_arithmetic", "ensemble\nof 10"),
    ("by_ensemble_arithmetic", "by\nensemble"),
)
POINTS = (  # arm, marker, colour, label
    ("no_threes_corrected", "o", OTHERS[1], "chosen on test, as the paper did"),
    ("no_threes_matched", "s", OTHERS[2], "chosen without labels"),
)
SIDE = 10  # threes in a row of the contact sheet


def draw(records: Sequence[Record], reported: Reported) -> Drawing | None:
    """Return the figure of one profile's records."""
    found, colors, first = measured(records), colors_of(ARMS), reported.claims["C1"]
    assert isinstance(first, Effect)
    pairs = [(part.label, part.arm, part.rival) for part in reported.ingredients]
    pairs.insert(0, ("distilled over hard targets", "distilled", "baseline"))
    claim = ("distilled over hard targets", "distilled", "baseline", -first.reported)
    sweep = [swept(width, T) for width in SWEPT for T in temperatures_of(width)]
    by_bias = Part(
        "Taught without any 3: errors against the bias",
        ERRORS,
        [arm for arm, *_ in POINTS],
        lambda panel: against_bias(panel, records),
    )
    rows = [
        (
            3.8,
            [
                strip("Main arms", ERRORS, SHOWN, colors),
                differences("What the teacher adds", FEWER, pairs, found, colors, claim),
            ],
        ),
        (3.8, [Part("Errors against the temperature", ERRORS, sweep, against_temperature, least=2), by_bias]),
        (4.8, [Part(FRAMED, COVARIANCE, ["generalist"], lambda panel: clusters(panel, records))]),
    ]
    return compose(rows, found, reported)


def draw_local(records: Sequence[Record], data: Data, path: Path) -> None:
    """Draw threes that a student recognises; they stay on this machine: no data set's pictures are committed."""
    if not data.synthetic:
        contact_sheet(records, data.test.inputs.numpy(), path)


def temperatures_of(width: int) -> list[float]:
    return sorted({*SWEPT[width], 20.0})


def against_temperature(panel: Panel) -> None:
    """Draw the errors of students against T, by width."""
    for width, color in WIDTHS.items():
        label = f"{width} units"
        spots = [Spot(swept(width, T), T, f"T {T:g}", color, series=label) for T in temperatures_of(width)]
        panel.line(spots, label)
    panel.axes.set(xscale="log", xlabel="T")
    panel.axes.set_xticks(SWEPT[30], [f"{T:g}" for T in SWEPT[30]])
    panel.axes.xaxis.minorticks_off()
    plain_logarithm(panel.axes)
    panel.axes.legend(frameon=False, fontsize=8.5, title="units per layer")


def against_bias(panel: Panel, records: Sequence[Record]) -> None:
    """Draw the errors of each student without 3s against what is added to its bias of 3, and both chosen points."""
    for record in with_arm(records, "no_threes"):
        curve = record.metrics["final"]["curve"]
        panel.axes.plot(*zip(*curve, strict=True), color="#bbbbbb", linewidth=1)
        for bias, errors in curve:
            panel.note("bias", errors, series="each bias", at=bias, arm="no_threes", seed=record.seed)
    for arm, marker, color, label in POINTS:
        seeds = dict(sorted(panel.found.get(arm, {}).items()))
        for seed, metrics in seeds.items():
            panel.note("seed", metrics["errors"], series=label, at=metrics["bias"], arm=arm, seed=seed)
        places = [metrics["bias"] for metrics in seeds.values()], [metrics["errors"] for metrics in seeds.values()]
        if seeds:
            panel.axes.plot(*places, marker, color=color, label=label)
    panel.axes.set_xlabel("added to the bias of class 3; grey: each student")
    plain_logarithm(panel.axes)


def plain_logarithm(axes: Axes) -> None:
    """Make the scale of errors logarithmic, with plain numbers."""
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(ScalarFormatter())
    axes.tick_params(axis="y", which="minor", labelsize=8)


def clusters(panel: Panel, records: Sequence[Record]) -> None:
    """Draw the covariance of the first generalist's predictions; frames: the classes of its specialists."""
    record = with_arm(records, "generalist")[0]
    subsets = [subset for _, subset in sorted(specialists_of(records, record.seed).items())]
    order = [k for subset in subsets for k in subset]
    order += [k for k in range(len(cifar10.CLASSES)) if k not in order]
    names = [cifar10.CLASSES[k] for k in order]
    values = panel.quantity.factor * np.array(record.metrics["final"]["covariance"])[np.ix_(order, order)]
    for (row, column), value in np.ndenumerate(values):
        at = f"{names[row]}, {names[column]}"
        panel.note("covariance", float(value), at=at, arm="generalist", seed=record.seed)
    largest = np.abs(values - np.diag(values.diagonal())).max()
    edges = np.arange(len(order) + 1) - 0.5
    scale = {"cmap": "PuOr", "vmin": -largest, "vmax": largest}
    mesh = panel.axes.pcolormesh(edges, edges, values, edgecolors="white", linewidth=0.5, **scale)
    bar = panel.axes.figure.colorbar(mesh, ax=panel.axes, label=panel.quantity.label, extend="both")
    assert bar.solids is not None
    bar.solids.set(rasterized=False, edgecolor="face")  # a file without pixels
    panel.axes.set_aspect("equal")
    panel.axes.invert_yaxis()
    panel.axes.set_ylabel("")
    panel.axes.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=8.5)
    panel.axes.set_yticks(range(len(names)), names, fontsize=8.5)
    first = 0
    for subset in subsets:
        corner = (first - 0.5, first - 0.5)
        panel.axes.add_patch(Rectangle(corner, len(subset), len(subset), fill=False, linewidth=2))
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
