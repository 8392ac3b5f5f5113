"""The figure of the grid: the first claims' arms, accuracy against amount of data, measured and reported cells.

`kd tables` draws it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kdlib.judge.claims import Effect, Reported
from kdlib.report.figures import Drawing, Part, compose
from kdlib.report.panels import ACCURACY, GAIN, Panel, Spot
from kdlib.report.parts import colors_of, differences, maps, strip
from kdlib.run.records import Record, measured
from replications.course_report.cifar import ALPHAS, TEMPERATURES, cell

from .experiment import ARMS, PERCENT

CELLS = [[cell(alpha, t) for t in TEMPERATURES] for alpha in ALPHAS]
SHARES = (*PERCENT, 100)  # with all of the data it is experiment 2
SERIES = (
    ("from scratch", (*(f"baseline_{percent}_percent" for percent in PERCENT), "baseline")),
    ("distilled", (*(f"distilled_{percent}_percent" for percent in PERCENT), cell(0.6, 8))),
)
SHOWN = (  # arm, label
    ("teacher", "teacher"),
    ("baseline_64", "from\nscratch,\nbatch 64"),
    ("baseline", "from\nscratch,\nbatch 32"),
    (cell(0.6, 8), "distilled,\nalpha 0.6,\nT 8"),
    (cell(1.0, 8), "distilled,\nalpha 1,\nT 8"),
    ("sham", "sham"),
)


def draw(records: Sequence[Record], reported: Reported) -> Drawing | None:
    """Return the figure of one profile's records."""
    found, colors, first = measured(records), colors_of(ARMS), reported.claims["C1"]
    assert isinstance(first, Effect)
    claim = ("distilled over from scratch, batch 64", cell(0.6, 8), "baseline_64", first.reported)
    pairs = [(part.label, part.arm, part.rival) for part in reported.ingredients]
    ingredients = differences("What the difference is made of", GAIN, pairs, found, colors, claim)
    # Profile quick has fewer pictures; the reported shares are of 50,000.
    pictures = records[0].description["config"]["train_pictures"]
    arms = [arm for _, series in SERIES for arm in series]
    by_amount = Part(
        f"Amount of data (100%: {pictures:,} pictures), batch 32",
        ACCURACY,
        arms,
        lambda panel: amount(panel, colors),
        least=3,
    )
    (ours, theirs, off, gain) = maps("measured", CELLS, (ALPHAS, TEMPERATURES), found, "baseline")
    rows = [
        (4.2, [strip("The first claims' arms", ACCURACY, SHOWN, colors), ingredients]),
        (3.8, [by_amount]),
        (3.4, [ours, theirs]),
        (3.4, [off, gain]),
    ]
    return compose(rows, found, reported)


def amount(panel: Panel, colors: Mapping[str, str]) -> None:
    """Draw accuracy against the share of the training pictures, from scratch and distilled."""
    for name, arms in SERIES:
        spots = [
            Spot(arm, share, str(share), colors[arm], series=name) for share, arm in zip(SHARES, arms, strict=True)
        ]
        panel.line(spots, name)
        panel.their_line(spots, f"reported, {name}")
    panel.axes.set_xscale("log")
    panel.axes.set_xticks(SHARES, [str(share) for share in SHARES])
    panel.axes.minorticks_off()
    panel.axes.set_xlabel("share of the training pictures (%); reported: of 50,000, from scratch at 100% with batch 64")
