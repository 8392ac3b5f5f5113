"""The figure of teacher-free distillation: the first claims' arms, accuracy against T, measured and reported cells.

`kd tables` draws it.
"""

from __future__ import annotations

from collections.abc import Sequence

from kdlib.judge.claims import Effect, Reported
from kdlib.report.figures import Drawing, Part, compose
from kdlib.report.panels import ACCURACY, GAIN, Panel, Spot
from kdlib.report.parts import OTHERS, colors_of, differences, maps, strip
from kdlib.run.records import Record, measured
from replications.course_report.cifar import ALPHAS, TEMPERATURES, cell

from .experiment import ARMS

CELLS = [[f"self_{cell(alpha, t)}" for t in TEMPERATURES] for alpha in ALPHAS]
SHOWN = (  # arm, label
    ("baseline_64", "from\nscratch,\nbatch 64"),
    ("baseline_slowed", "from\nscratch,\nbatch 32,\nslowed"),
    ("smoothed", "label\nsmoothing"),
    ("virtual_teacher", "virtual\nteacher"),
    (f"self_{cell(0.2, 2)}", "taught\nby its\nlike"),
    ("sham", "sham"),
)
# Teacher, prefix of its students' arms, their alpha (the one of the report's best cell).
TEACHERS = (
    ("ResNet-18, alpha 0.6", "by_resnet18", 0.6),
    ("a student, alpha 0.2", "self", 0.2),
    ("a distilled student, alpha 0.4", "again", 0.4),
)


def draw(records: Sequence[Record], reported: Reported) -> Drawing | None:
    """Return the figure of one profile's records."""
    found, colors, first = measured(records), colors_of(ARMS), reported.claims["C1"]
    assert isinstance(first, Effect)
    claim = (
        "taught by an equal student over from scratch, batch 64",
        f"self_{cell(0.2, 2)}",
        "baseline_64",
        first.reported,
    )
    pairs = [(part.label, part.arm, part.rival) for part in reported.ingredients]
    cells = [f"{prefix}_{cell(alpha, t)}" for _, prefix, alpha in TEACHERS for t in TEMPERATURES]
    taught = [arm for arm in cells if arm in colors]  # the source taught again at T 2 and 4 only
    ours, theirs, off = maps("students taught by their like", CELLS, (ALPHAS, TEMPERATURES), found)
    rows = [
        (
            4.6,
            [
                strip("The first claims' arms", ACCURACY, SHOWN, colors),
                differences("What the difference is made of", GAIN, pairs, found, colors, claim),
            ],
        ),
        (4.0, [Part("Accuracy against T, by teacher", ACCURACY, taught, against_temperature, least=2)]),
        (3.4, [ours, theirs]),
        (3.4, [off]),
    ]
    return compose(rows, found, reported)


def against_temperature(panel: Panel) -> None:
    """Draw the students' accuracy against T, by teacher: according to the report, small teachers need a small T."""
    for color, (teacher, prefix, alpha) in zip(OTHERS, TEACHERS, strict=True):
        spots = [Spot(f"{prefix}_{cell(alpha, t)}", t, f"T {t}", color, series=teacher) for t in TEMPERATURES]
        panel.line(spots, f"measured: {teacher}")
        panel.their_line(spots, f"reported: {teacher}")
    panel.axes.set_xticks(TEMPERATURES)
    panel.axes.set_xlabel("T")
    panel.axes.legend(frameon=False, fontsize=8.5, loc="center left", bbox_to_anchor=(1.0, 0.5))
