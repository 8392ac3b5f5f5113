"""Synthetic digits and pictures of ten classes, for machines without the real ones: learnable, but they prove nothing.

Digits are the strokes of a seven-segment display, bent, turned and blurred. Pictures are coloured stripes; the class
gives the direction and, less exactly, the colour.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from kdlib.data.pictures import Bytes, Pictures

Floats = NDArray[np.float32]
Make = Callable[[Generator, NDArray[np.int64]], Bytes]

CLASSES = 10
CHUNK = 500  # pictures made at once: more would need more memory and save no time

# The display's six corners (x, y downwards), its seven segments a to g from corner to corner, and the segments of each
# digit.
CORNERS: Floats = np.array([(-0.5, -1), (0.5, -1), (-0.5, 0), (0.5, 0), (-0.5, 1), (0.5, 1)], np.float32)
SEGMENTS = np.array([(0, 1), (1, 3), (3, 5), (4, 5), (2, 4), (0, 2), (2, 3)])
DIGITS = ("abcdef", "bc", "abged", "abgcd", "fgbc", "afgcd", "afgedc", "abc", "abcdefg", "abcdfg")
LIT = np.array([[segment in digit for segment in "abcdefg"] for digit in DIGITS])


def digits(train: int, test: int, seed: int) -> Pictures:
    """Return synthetic digits in the form of `mnist.digits`, (N, 1, 28, 28).

    The sizes of the classes differ by at most 1 in each part.
    """
    return _both(_digits, train, test, seed)


def pictures(train: int, test: int, seed: int) -> Pictures:
    """Return synthetic pictures in the form of `cifar10.pictures`, (N, 3, 32, 32).

    The sizes of the classes differ by at most 1 in each part.
    """
    return _both(_pictures, train, test, seed)


def _both(make: Make, train: int, test: int, seed: int) -> Pictures:
    arrays: list[Bytes] = []
    for part, count in enumerate((train, test)):
        generator = np.random.default_rng((seed, part))
        labels = generator.permutation(np.arange(count) % CLASSES)
        chunks = [make(generator, labels[start : start + CHUNK]) for start in range(0, count, CHUNK)]
        arrays += [np.concatenate(chunks), labels.astype(np.uint8)]
    return Pictures(*arrays)


def _digits(generator: Generator, labels: NDArray[np.int64]) -> Bytes:
    count = len(labels)

    def draw(low: float, high: float, *shape: int) -> Floats:
        return generator.uniform(low, high, (count, *shape)).astype(np.float32)

    corners: Floats = CORNERS + draw(-0.15, 0.15, 6, 2)
    turn, slant = draw(-0.2, 0.2), draw(-0.2, 0.2)
    matrix = np.stack([np.cos(turn), np.sin(turn), slant - np.sin(turn), np.cos(turn)], 1).reshape(count, 2, 2)
    corners = np.matmul(corners, matrix * draw(6.5, 9.5, 1, 1), dtype=np.float32) + 13.5 + draw(-1.5, 1.5, 1, 2)
    distance = _distance(corners[:, SEGMENTS[:, 0]], corners[:, SEGMENTS[:, 1]], 28)
    nearest = np.where(LIT[labels][:, :, None, None], distance, np.float32(np.inf)).min(1)
    ink = draw(150, 255, 1, 1) / (1 + np.exp(2.5 * (nearest - draw(0.7, 1.8, 1, 1))))
    return _as_bytes(ink + _noise(generator, ink.shape, 18))[:, None]


def _distance(starts: Floats, ends: Floats, side: int) -> Floats:
    """Return the distance of every pixel to each segment (N, S, side, side), given its ends (N, S, 2) and (N, S, 2)."""
    x, y = np.arange(side, dtype=np.float32), np.arange(side, dtype=np.float32)[:, None]
    (x0, y0), (dx, dy) = _xy(starts), _xy(ends - starts)
    along = np.clip(((x - x0) * dx + (y - y0) * dy) / (dx**2 + dy**2), 0, 1)
    distance: Floats = np.sqrt((x0 + along * dx - x) ** 2 + (y0 + along * dy - y) ** 2)
    return distance


def _xy(points: Floats) -> tuple[Floats, Floats]:
    return points[..., 0, None, None], points[..., 1, None, None]


def _pictures(generator: Generator, labels: NDArray[np.int64]) -> Bytes:
    count = len(labels)

    def draw(low: float, high: float, *shape: int) -> Floats:
        return generator.uniform(low, high, (count, *shape)).astype(np.float32)

    # Neighbours in colour differ by 54 degrees in direction: 3 and 10 have no common divisor.
    direction = np.pi / CLASSES * (3 * labels % CLASSES) + generator.normal(0, 0.12, count)
    angle = direction.astype(np.float32)[:, None, None]
    hue = (labels / CLASSES + generator.normal(0, 0.03, count)).astype(np.float32)
    colour = np.stack([np.cos(2 * np.pi * (hue - third / 3)) for third in range(3)], 1)[:, :, None, None]
    x, y = np.arange(32, dtype=np.float32) - 15.5, np.arange(32, dtype=np.float32)[:, None] - 15.5
    across = np.cos(angle) * x + np.sin(angle) * y
    stripes = np.cos(2 * np.pi * (across / draw(7, 12, 1, 1) + draw(0, 1, 1, 1)))
    centre_x, centre_y = draw(-6, 6, 1, 1), draw(-6, 6, 1, 1)
    window = np.exp(-((x - centre_x) ** 2 + (y - centre_y) ** 2) / (2 * draw(7, 11, 1, 1) ** 2))
    light = draw(90, 165, 3, 1, 1) + draw(-2, 2, 3, 1, 1) * x + draw(-2, 2, 3, 1, 1) * y
    pattern = window[:, None] * (draw(40, 70, 1, 1, 1) * colour + draw(30, 60, 1, 1, 1) * stripes[:, None])
    return _as_bytes(light + pattern + _noise(generator, pattern.shape, 12))


def _noise(generator: Generator, shape: tuple[int, ...], sigma: float) -> Floats:
    return np.float32(sigma) * generator.standard_normal(shape, np.float32)


def _as_bytes(values: Floats) -> Bytes:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
