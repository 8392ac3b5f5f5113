"""The figure of the MNIST experiment: measured and reported accuracies, and differences. `kd tables` draws it."""

from __future__ import annotations

from collections.abc import Sequence

from kdlib.judge.claims import Effect, Reported
from kdlib.report.figures import Drawing, compose
from kdlib.report.panels import ACCURACY, GAIN
from kdlib.report.parts import colors_of, differences, strip
from kdlib.run.records import Record, measured

from .experiment import ARMS

SHOWN = (  # arm, label
    ("teacher", "teacher"),
    ("baseline", "student\nfrom\nscratch"),
    ("distilled_by_one", "distilled,\none\nteacher"),
    ("distilled", "distilled,\nteacher\nper seed"),
    ("sham", "sham"),
)
DIFFERENCES = (  # label, arm, arm it is compared with
    ("one teacher, over scratch", "distilled_by_one", "baseline"),
    ("teacher per seed, over scratch", "distilled", "baseline"),
    ("sham, over scratch", "sham", "baseline"),
    ("teacher per seed, over sham", "distilled", "sham"),
)


def draw(records: Sequence[Record], reported: Reported) -> Drawing | None:
    """Return the figure of one profile's records."""
    found, colors, first = measured(records), colors_of(ARMS), reported.claims["C1"]
    assert isinstance(first, Effect)
    claim = ("one teacher, over scratch", "distilled_by_one", "baseline", first.reported)
    parts = (
        strip("Arms", ACCURACY, SHOWN, colors),
        differences("What the teacher adds", GAIN, DIFFERENCES, found, colors, claim),
    )
    return compose([(4.2, parts)], found, reported)
