"""The figure of the MNIST experiment: measured and reported accuracies, and differences. `kd tables` draws it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib import pyplot as plt

from kdlib.judge.claims import Effect, Reported
from kdlib.report.figures import bars, claim, differences, save, seeds, strip
from kdlib.run.records import Record, measured

# Arm, label, colour.
ARMS = (
    ("teacher", "teacher", "#999933"),
    ("baseline", "student\nfrom scratch", "#4477aa"),
    ("distilled_by_one", "distilled,\none teacher", "#cc6677"),
    ("distilled", "distilled,\nteacher per seed", "#ee6677"),
    ("sham", "sham", "#999999"),
)
# Label, arm, arm it is compared with.
DIFFERENCES = (
    ("one teacher, over scratch", "distilled_by_one", "baseline"),
    ("teacher per seed, over scratch", "distilled", "baseline"),
    ("sham, over scratch", "sham", "baseline"),
    ("teacher per seed, over sham", "distilled", "sham"),
)


def draw(records: Sequence[Record], reported: Reported, path: Path) -> None:
    """Write the figure of one profile's records."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), width_ratios=(1.2, 1), layout="constrained")
    found = measured(records)
    strip(left, found, reported, ARMS)
    counts = [len(found[arm]) for arm, *_ in ARMS if arm in found]
    left.set_title(f"Each seed ({seeds(counts)}), mean and 95% interval (reported: ± sd)", fontsize=10)
    gains = differences(found, "accuracy", DIFFERENCES, scale=100)
    bars(right, gains, "difference of accuracy on test (points)", "What the teacher adds")
    first = reported.claims["C1"]
    assert isinstance(first, Effect)
    claim(right, 100 * first.reported, "one teacher, over scratch")
    save(figure, path)
