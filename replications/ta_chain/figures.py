"""The figure of the teaching assistants: accuracy by depth, teacher and assistant; entropy. `kd tables` draws it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matplotlib.lines import Line2D

from kdlib.judge.claims import Reported
from kdlib.report.figures import Drawing, Part, compose
from kdlib.report.panels import ACCURACY, Panel, Quantity, Spot
from kdlib.report.parts import colors_of
from kdlib.run.records import Record, measured

from .experiment import ARMS

ENTROPY = Quantity("entropy", "mean entropy of test predictions (nats)", form=".3f")
SIZES = (2, 4, 6, 8, 10)


class Mode(NamedTuple):
    """How the arms of a mode are drawn: aside, so that no mode hides another."""

    label: str
    marker: str
    shift: float


DESCRIBED = Mode("as described, controlled", "s", -0.2)
RELEASED = Mode("as released", "^", 0.2)
CONTROL = Mode("controlled or sham only", "s", 0.0)
SYMBOLS = [
    Line2D([], [], color="#444444", marker=mode.marker, linestyle="", markersize=6.5, label=f"mean, {mode.label}")
    for mode in (DESCRIBED, RELEASED)
]
Names = dict[str, dict[Mode, str]]  # place on the axis -> mode -> arm


CHAINS: Names = {
    "none": {DESCRIBED: "direct", RELEASED: "released_2_of_10"},
    "4": {DESCRIBED: "ta_4", RELEASED: "released_ta_4"},
    "6": {DESCRIBED: "ta_6", RELEASED: "released_ta_6"},
    "8": {DESCRIBED: "ta_8", RELEASED: "released_ta_8"},
    "8, 6, 4": {DESCRIBED: "chain", RELEASED: "released_chain"},
    "none, twice\nas long": {CONTROL: "direct_as_ta"},
    "none, 4 times\nas long": {CONTROL: "direct_as_chain"},
    "sham": {CONTROL: "sham"},
}


def draw(records: Sequence[Record], reported: Reported) -> Drawing | None:
    """Return the figure of one profile's records."""
    found, colors = measured(records), colors_of(ARMS)

    def part(title: str, axis: str, names: Names, quantity: Quantity = ACCURACY, width: float = 1.0) -> Part:
        arms = [arm for by_mode in names.values() for arm in by_mode.values()]
        places = {at: by_mode for at, by_mode in names.items() if found.keys() & {*by_mode.values()}}
        return Part(title, quantity, arms, lambda panel: by_place(panel, axis, places, colors), 2, width, aside=0.1)

    scratch = both("scratch_", "released_scratch_", {str(n): str(n) for n in SIZES})
    taught = both("student_", "released_", {str(n): f"{n}_of_10" for n in SIZES[:4]})
    by_size = both("student_", "released_", {str(n): f"2_of_{n}" for n in SIZES[1:]})
    rows = [
        (
            3.8,
            [part("Student of 2, by assistant between it and the teacher of 10", "assistants' convolutions", CHAINS)],
        ),
        (
            3.4,
            [
                part("From scratch", "convolutions", scratch),
                part("Taught by the network of 10", "convolutions", taught),
            ],
        ),
        (
            3.4,
            [
                part("Student of 2, by size of its teacher", "convolutions of the teacher", by_size),
                part("How certain networks from scratch are", "convolutions", scratch, ENTROPY),
            ],
        ),
    ]
    released = any(arm.startswith("released") for arm in found)
    return compose(rows, found, reported, SYMBOLS if released else ())


def both(described: str, released: str, names: Mapping[str, str]) -> Names:
    return {at: {DESCRIBED: described + name, RELEASED: released + name} for at, name in names.items()}


def by_place(panel: Panel, axis: str, places: Names, colors: Mapping[str, str]) -> None:
    """Draw the arms of each place, and next to each the source's number."""
    spots, modes = [], {mode for by_mode in places.values() for mode, arm in by_mode.items() if arm in panel.found}
    several = len(modes - {CONTROL}) > 1
    for place, (at, by_mode) in enumerate(places.items()):
        spots.append(Spot("", place, at, ""))
        for mode, arm in by_mode.items():
            spot = Spot(arm, place + mode.shift * several, at, colors[arm], series=mode.label, marker=mode.marker)
            if panel.arm(spot) is not None:
                panel.theirs(spot)
    panel.ticks(spots)
    panel.axes.set_xlabel(axis)
