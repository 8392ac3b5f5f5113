"""The figure of the x-ray replication, which `kd tables` draws, and a sheet of the views, for the session's own folder.

The figure: accuracy by arm, validation accuracy by epoch, and what the difference between the source's two students is
made of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt

from kdlib.data.chest_xray import CLASSES
from kdlib.judge.claims import Effect, Reported
from kdlib.report.figures import Drawing, Part, compose, save
from kdlib.report.panels import Panel, Quantity
from kdlib.report.parts import OTHERS, colors_of, differences, height_of, strip
from kdlib.run.records import Record, measured

from .data import Data
from .experiment import ARMS

ON_300 = Quantity("accuracy", "accuracy on 300 test pictures (%)", 100)
UNSEEN = Quantity("unseen_accuracy", "difference of accuracy on unseen pictures (points)", 100, "+.2f")
VALIDATION = Quantity("validation_accuracy", "accuracy on 300 validation pictures (%)", 100)
SHOWN = (  # arm, label
    ("teacher", "teacher"),
    ("baseline", "from\nscratch"),
    ("baseline_50", "from\nscratch,\nall epochs"),
    ("distilled_T_2", "distilled,\nT 2"),
    ("distilled_T_6", "distilled,\nT 2,\nthen 6"),
    ("distilled_T_6_fresh", "distilled,\nT 6"),
    ("sham", "sham"),
)
CURVES = ("teacher", "baseline", "baseline_50", "distilled_T_2", "distilled_T_6_fresh", "sham")
SECOND = {  # the second arms of a role, next to the first: colour
    "baseline_50": ("baseline", OTHERS[1]),
    "distilled_T_2": ("distilled_T_6_fresh", OTHERS[0]),
}
PICTURES = 2  # of each class on the sheet


def draw(records: Sequence[Record], reported: Reported) -> Drawing | None:
    """Return the figure of one profile's records."""
    found, first = measured(records), reported.claims["C1"]
    colors = colors_of(ARMS) | {arm: color for arm, (other, color) in SECOND.items() if other in found}
    assert isinstance(first, Effect)
    pairs = [(part.label, part.arm, part.rival) for part in reported.ingredients]
    claim = ("C1, on 300 test pictures", "distilled_T_6", "baseline", first.reported)
    ingredients = differences("What the difference is made of", UNSEEN, pairs, found, colors, claim)
    title = "Line: mean of the seeds that still train;\nband: lowest to highest"
    shown = [arm for arm in CURVES if histories_of(records, arm)]
    by_epoch = Part(title, VALIDATION, shown, lambda panel: curves(panel, records, colors))
    return compose(
        [(3.8, [strip("Arms", ON_300, SHOWN, colors), by_epoch]), (height_of(ingredients), [ingredients])],
        found,
        reported,
    )


def histories_of(records: Sequence[Record], arm: str) -> dict[int, list[float]]:
    """Return the validation accuracy by epoch of each seed of an arm."""
    there = [record for record in records if arm in record.arms and record.history]
    return {record.seed: [entry["validation_accuracy"] for entry in record.history] for record in there}


def curves(panel: Panel, records: Sequence[Record], colors: Mapping[str, str]) -> None:
    """Draw the validation accuracy of each arm by epoch."""
    for arm in CURVES:
        if histories := histories_of(records, arm):
            panel.curve(arm, histories, colors[arm])
    panel.axes.set_xlabel("epochs trained")


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
