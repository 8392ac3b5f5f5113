"""The figure of the binary loss: accuracy against alpha, with the teacher and the controls. `kd tables` draws it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kdlib.judge.claims import Reported
from kdlib.judge.judging import Metrics, chosen, values_of
from kdlib.report.figures import Drawing, Part, compose
from kdlib.report.panels import ACCURACY, GAIN, Panel, Quantity, Spot
from kdlib.report.parts import OTHERS, colors_of, differences, height_of, strip
from kdlib.report.roles import COLORS
from kdlib.run.records import Record, measured

from .experiment import ALPHAS, ARMS, cell

VALIDATION = Quantity("validation_accuracy", "accuracy on validation (%)", 100)
SHOWN = (  # arm, label
    ("teacher", "teacher"),
    (cell(1.0), "alpha 1,\nlabels alone"),
    (cell(0.5), "alpha 0.5"),
    (cell(0.0), "alpha 0,\nteacher alone"),
    ("smoothed", "smoothed\nlabels,\nalpha 0"),
    ("sham", "sham,\nalpha 0"),
)
CONTROLS = (  # arms by alpha, label
    ({0.5: "sham_alpha_0_5", 0.0: "sham"}, "sham"),
    ({0.5: "smoothed_alpha_0_5", 0.0: "smoothed"}, "smoothed labels"),
)
SMOOTHED = {"smoothed": OTHERS[1], "smoothed_alpha_0_5": OTHERS[1]}
BEST = "best alpha"


def draw(records: Sequence[Record], reported: Reported) -> Drawing | None:
    """Return the figure of one profile's records; the teacher is far above the students."""
    found, colors = measured(records), colors_of(ARMS) | SMOOTHED
    best = chosen(reported.choices[0], found)
    curve = Part(
        "Against alpha; dotted: validation, which chooses alpha",
        ACCURACY,
        [cell(alpha) for alpha in ALPHAS],
        lambda panel: against_alpha(panel, best, colors),
        least=2,
        aside=0.015,
    )
    gains = differences("Differences of pairs that share a seed", GAIN, pairs(best), found, colors)
    return compose(
        [(3.8, [strip("Arms", ACCURACY, SHOWN, colors), curve]), (height_of(gains), [gains])], found, reported
    )


def pairs(best: str | None) -> list[tuple[str, str, str]]:
    """Return the compared arms: label, arm, rival; without the chosen arm if none could be chosen."""
    of_best = [
        (f"{BEST}, over alpha 0.5 (C2)", cell(0.5)),
        (f"{BEST}, over alpha 1, no teacher (C3)", cell(1.0)),
    ]
    over_controls = [
        (f"alpha {alpha:g}, over {label}", cell(alpha), control)
        for controls, label in CONTROLS
        for alpha, control in controls.items()
    ]
    return [*((label, best, rival) for label, rival in of_best if best), *over_controls]


def against_alpha(panel: Panel, best: str | None, colors: Mapping[str, str]) -> None:
    """Draw accuracy on test, and on validation, against alpha, and the controls at their alphas."""
    spots = [Spot(cell(alpha), alpha, f"alpha {alpha:g}", colors[cell(alpha)], series="students") for alpha in ALPHAS]
    panel.line(spots, "students, test")
    validation(panel, spots)
    for aside, (controls, label) in zip((-0.045, 0.045), CONTROLS, strict=True):
        for alpha, arm in controls.items():
            panel.arm(Spot(arm, alpha + aside, f"alpha {alpha:g}", colors[arm], series=label, marker="v^"[aside > 0]))
        if panel.found.keys() & controls.values():
            how: dict[str, Any] = {
                "color": colors[controls[0.0]],
                "marker": "v^"[aside > 0],
                "linestyle": "",
                "markersize": 6.5,
            }
            panel.axes.plot([], [], label=label, **how)
    for alpha in [alpha for alpha in ALPHAS if cell(alpha) == best]:
        panel.axes.axvline(alpha, color="black", linestyle=":", linewidth=0.8, label=f"{BEST}: {alpha:g}")
    panel.axes.set(xlabel="alpha, the weight of the labels (1: no teacher)", xticks=ALPHAS)
    # Dots are everywhere in this panel, so its legend is below it.
    panel.axes.legend(frameon=False, fontsize=8.5, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.16))


def validation(panel: Panel, spots: Sequence[Spot]) -> None:
    """Draw the mean accuracy on validation as a dotted line."""
    shown = [(spot, means_of(panel.found, spot.arm)) for spot in spots if spot.arm in panel.found]
    for spot, (mean, n) in shown:
        panel.note(
            "mean",
            mean,
            at=spot.at,
            arm=spot.arm,
            series="students, validation",
            n=n,
            quantity=VALIDATION.label,
            metric=VALIDATION.metric,
        )
    if shown:
        places, means = [spot.place for spot, _ in shown], [mean for _, (mean, _) in shown]
        panel.plot(places, means, ":", color=COLORS["distilled"], label="students, validation")


def means_of(found: Metrics, arm: str) -> tuple[float, int]:
    values = list(values_of(found, VALIDATION.metric, arm).values())
    return float(np.mean(VALIDATION.factor * np.array(values))), len(values)
