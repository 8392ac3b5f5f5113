"""Synthetic heartbeats, for machines without the real ones: they look similar and prove nothing.

The signal is the Gaussian-wave model of McSharry, Clifford, Tarassenko and Smith 2003, IEEE Trans. Biomed. Eng.
50(3):289-294. A heartbeat is one turn of an angle theta, and each of the waves P, Q, R, S, T adds
a b^2 / w * exp(-(theta - theta_i)^2 / (2 b^2)). This is the integral of their dz/dt at the angular speed w, without
its slow return to the baseline. The baseline moves with their respiratory sine. Rows are then cut, scaled and padded
exactly like the real ones (see `mitdb`).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from kdlib.checks import whole_number
from kdlib.data import mitdb

Floats = NDArray[np.float64]

RATE = 360  # samples per second, as the records have
GAIN = 200  # ADC units per millivolt
FREQUENCIES = np.array([90_589, 2_779, 7_236, 803, 8_039]) / 109_446  # of N, S, V, F, Q in the real set
FEWEST = 8  # beats of each class, if `count` is large enough

# Their Table I for P, Q, R, S, T: angle, width b, and height a b^2 / w at one beat per second. As in their text, the
# heights are scaled so that R has 1.2 millivolt.
ANGLES = np.array([-np.pi / 3, -np.pi / 12, 0.0, np.pi / 12, np.pi / 2])
WIDTHS = np.array([0.25, 0.1, 0.1, 0.1, 0.4])
HEIGHTS = np.array([1.2, -5.0, 30.0, -7.5, 0.75]) * WIDTHS**2 * (1.2 / (30.0 * 0.1**2))

# Factors of each class for the heights, the widths, and the interval to the next beat.
#        P     Q    R    S    T      widths P, Q, R, S, T          interval
SHAPES = {
    0: ((1.00, 1.0, 1.0, 1.0, 1.0), (1.0, 1.0, 1.0, 1.0, 1.0), 1.00),  # N
    1: ((-0.5, 0.7, 0.8, 1.1, 0.8), (0.7, 1.0, 1.0, 1.0, 0.9), 1.15),  # S: other P, early, then a short pause
    2: ((0.00, 0.4, 1.2, 2.5, -2.0), (1.0, 2.0, 2.4, 2.8, 1.2), 1.35),  # V: no P, wide QRS, T inverted, pause
    4: ((0.00, 3.0, 0.9, 1.5, -1.2), (1.0, 0.4, 2.2, 2.0, 1.3), 1.05),  # Q: the pacemaker's spike, wide QRS
}
FUSION = 3  # F: between N and V


def heartbeats(count: int, seed: int) -> tuple[mitdb.Rows, mitdb.Classes, mitdb.Records]:
    """Return `count` synthetic heartbeats as (rows, classes, records), in the form of `mitdb.heartbeats`.

    The classes have about the real frequencies, but at least 8 beats each (if `count` >= 40). Each beat belongs to a
    pseudo patient, who has an individual heart rate and wave shapes. Pseudo patients have the numbers of the real
    records, so every split by record works, and most paced beats belong to the four paced records.
    """
    generator = np.random.default_rng(whole_number("seed", seed, least=0))
    labels = generator.permutation(np.repeat(np.arange(5), class_counts(count)))
    patients = _patients(generator, labels)
    order = np.argsort(patients, kind="stable")
    classes, records = labels[order].astype(np.uint8), patients[order].astype(np.int16)
    habits = {record: _habits(generator) for record in mitdb.RECORDS}
    rows = np.empty((count, mitdb.WIDTH), np.float32)
    for row, (label, record) in enumerate(zip(classes.tolist(), records.tolist(), strict=True)):
        rows[row] = _beat(generator, label, *habits[record])
    return rows, classes, records


def class_counts(count: int) -> NDArray[np.int64]:
    """Return how many of `count` beats each class gets."""
    counts = np.maximum(np.rint(FREQUENCIES * count).astype(np.int64), min(FEWEST, count // 5))
    counts[0] = count - counts[1:].sum()
    return counts


def _patients(generator: Generator, classes: NDArray[np.int64]) -> NDArray[np.int64]:
    paced = np.array(mitdb.PACED)
    others = np.array([record for record in mitdb.RECORDS if record not in mitdb.PACED])
    is_paced = (classes == 4) & (generator.random(len(classes)) < 0.8)
    return np.where(is_paced, generator.choice(paced, len(classes)), generator.choice(others, len(classes)))


def _habits(generator: Generator) -> tuple[float, Floats, Floats, float]:
    """Draw a pseudo patient: seconds per beat, factors of heights and widths, noise in millivolt."""
    return (
        float(np.clip(generator.normal(0.8, 0.12), 0.5, 1.2)),
        generator.lognormal(0.0, 0.3, 5),
        generator.lognormal(0.0, 0.12, 5),
        float(generator.uniform(0.01, 0.05)),
    )


def _beat(
    generator: Generator, label: int, seconds: float, heights: Floats, widths: Floats, noise: float
) -> mitdb.Rows:
    """Make one beat and the one after it (N, or Q after Q), then cut its row as real rows are cut."""
    shapes = [_shape(generator, label), _shape(generator, 4 if label == 4 else 0)]
    intervals = seconds * np.array([shape[2] for shape in shapes]) * generator.lognormal(0.0, 0.05, 2)
    peaks = np.array([0.0, intervals[0], intervals.sum()])
    times = np.arange(int((intervals[0] + 0.2 * intervals[1]) * RATE) + 2) / RATE
    signal = noise * generator.standard_normal(len(times))
    signal += 0.1 * np.sin(2 * np.pi * (0.25 * times + generator.random()))  # breathing, 0.25 Hz
    # The P wave of a beat belongs to the interval before it, the rest to the interval after it.
    for peak, interval, shape in zip(peaks, intervals, shapes, strict=False):
        since = times - peak
        theta = 2 * np.pi * since / np.where(since < 0, intervals[0], interval)
        signal += _waves(theta, heights * shape[0], widths * shape[1])
    adc = np.rint(GAIN * signal).astype(np.int16)
    samples = np.rint(peaks * RATE).astype(np.int64)
    # Code 1 is a beat, code 28 is not: only the first beat is cut, whatever its class.
    rows, _ = mitdb.cut_beats(adc, samples, np.array([1, 28, 28], np.uint8), Path("synthetic"))
    return rows


def _shape(generator: Generator, label: int) -> tuple[Floats, Floats, float]:
    if label == FUSION:
        share = generator.uniform(0.3, 0.7)
        parts = [np.array([*SHAPES[kind][0], *SHAPES[kind][1], SHAPES[kind][2]]) for kind in (0, 2)]
        mixed = share * parts[0] + (1 - share) * parts[1]
        high, wide, interval = mixed[:5], mixed[5:10], float(mixed[10])
    else:
        high, wide, interval = np.array(SHAPES[label][0]), np.array(SHAPES[label][1]), SHAPES[label][2]
    return high * generator.lognormal(0.0, 0.15, 5), wide * generator.lognormal(0.0, 0.08, 5), interval


def _waves(theta: Floats, heights: Floats, widths: Floats) -> Floats:
    distance = (theta[:, None] - ANGLES) / (WIDTHS * widths)
    waves: Floats = (HEIGHTS * heights * np.exp(-(distance**2) / 2)).sum(1)
    return waves
