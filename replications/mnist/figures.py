"""The figure of the MNIST experiment: every accuracy beside the reported one, and the differences. Called by `kd tables`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib import pyplot as plt

from kdlib.claims import Reported
from kdlib.report.evidence import Record, measured
from kdlib.report.figures import bars, claim, differences, save, seeds, strip

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
    bars(right, differences(found, "accuracy", DIFFERENCES, scale=100), "difference of accuracy on test (points)",
         "What the teacher adds")
    claim(right, 100 * reported.claims["C1"].reported, "one teacher, over scratch")
    save(figure, path)
