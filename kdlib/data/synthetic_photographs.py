"""Synthetic x-rays, cats and dogs, for machines without the real ones: they can be learned, but they prove nothing.

X-rays are two dark lungs behind ribs: clear (normal), with one bright patch (bacteria), or with many faint spots in
both lungs (virus). A cat is a head with two pointed ears on top; a dog is a head with two long ears at its sides.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from kdlib.data import cats_dogs, chest_xray
from kdlib.data.chest_xray import Xrays
from kdlib.data.pictures import Bytes, Pictures

Floats = NDArray[np.float32]
Draw = Callable[[float, float], np.float32]

SPOTS = 16  # in the lungs of a synthetic viral pneumonia


def xrays(count: int, seed: int) -> Xrays:
    """Return synthetic x-rays in the form of `chest_xray.xrays`; the sizes of the classes differ by at most 1.

    Each person has two pictures of one class; the last person of a class may have one.
    """
    generator = np.random.default_rng((seed, 0))
    classes = len(chest_xray.CLASSES)
    row = np.arange(count)
    labels, persons = (row % classes).astype(np.uint8), row // (2 * classes) * classes + row % classes
    images = [_as_bytes(_xray(generator, int(label))) for label in labels]
    return Xrays(_stacked(images, (1, chest_xray.SIDE, chest_xray.SIDE)), labels, persons)


def pets(train: int, test: int, seed: int) -> Pictures:
    """Return synthetic cats and dogs in the form of `cats_dogs.pictures`.

    The sizes of the classes differ by at most 1 in each part.
    """
    arrays: list[Bytes] = []
    for part, count in enumerate((train, test)):
        generator = np.random.default_rng((seed, 1, part))
        labels = generator.permutation(np.arange(count) % len(cats_dogs.CLASSES)).astype(np.uint8)
        images = [_as_bytes(_pet(generator, int(label))) for label in labels]
        arrays += [_stacked(images, (3, cats_dogs.SIDE, cats_dogs.SIDE)), labels]
    return Pictures(*arrays)


def _xray(generator: Generator, label: int) -> Floats:
    """Return one picture (1, 224, 224)."""
    draw = _drawing(generator)
    x, y = _grid(chest_xray.SIDE)
    x, y = x + draw(-0.08, 0.08), y + draw(-0.08, 0.08)
    width, height, apart = draw(0.26, 0.36), draw(0.5, 0.65), draw(0.38, 0.46)
    lungs = sum(_soft(1 - ((x - side * apart) / width) ** 2 - (y / height) ** 2, 6) for side in (-1, 1))
    ribs = draw(6, 16) * np.cos(draw(16, 22) * (y + draw(0.2, 0.5) * np.abs(x)) + draw(0, 6))
    picture: Floats = draw(140, 185) - draw(70, 110) * lungs + ribs
    if label == 1:
        side, centre = (-1, 1)[int(generator.integers(2))], draw(-0.3, 0.35)
        picture += draw(60, 90) * _spot(x - side * apart, y - centre, draw(0.13, 0.2))
    if label == 2:
        for at in range(SPOTS):
            across, down = (-1, 1)[at % 2] * apart + draw(-0.22, 0.22), draw(-0.45, 0.45)
            picture += draw(25, 45) * _spot(x - across, y - down, draw(0.03, 0.06))
    noisy: Floats = picture + _noise(generator, picture.shape, 8)
    return noisy[None]


def _pet(generator: Generator, label: int) -> Floats:
    """Return one picture (3, 96, 96)."""
    draw = _drawing(generator)
    x, y = _grid(cats_dogs.SIDE)
    size = draw(0.4, 0.6)
    x, y = (x - draw(-0.25, 0.25)) / size, (y - draw(-0.15, 0.3)) / size
    mirrored = np.abs(x)  # both ears at once
    head = _soft(1 - x**2 - (y / draw(0.85, 1.1)) ** 2, 8)
    if label == 0:  # a triangle above the head: between two slanted lines
        lean = draw(0.15, 0.3)
        ears = _soft(np.minimum(y + draw(1.5, 1.8) - 4 * np.abs(mirrored - 0.6 - lean), -0.4 - y), 12)
    else:
        ears = _soft(1 - ((mirrored - draw(0.95, 1.15)) / 0.3) ** 2 - ((y - draw(0.1, 0.4)) / draw(0.75, 1)) ** 2, 8)
    eyes = _spot(mirrored - draw(0.35, 0.45), y + 0.2, draw(0.1, 0.15))
    ground, coat, shade = (generator.uniform(60, 200, (3, 1, 1)).astype(np.float32) for _ in range(3))
    picture: Floats = ground + draw(-25, 25) * x + draw(-25, 25) * y
    picture += ears * (0.5 * coat + 0.5 * shade - picture)
    picture += head * (coat - picture)
    picture -= 120 * eyes
    picture += _noise(generator, picture.shape, 10)
    return picture


def _drawing(generator: Generator) -> Draw:
    return lambda low, high: np.float32(generator.uniform(low, high))


def _grid(side: int) -> tuple[Floats, Floats]:
    """Return x (1, side) to the right and y (side, 1) downwards, from -1 to 1."""
    along = np.linspace(-1, 1, side, dtype=np.float32)
    return along[None], along[:, None]


def _soft(inside: Floats, sharpness: float) -> Floats:
    """Return 1 where `inside` is well above 0 and 0 where it is well below."""
    soft: Floats = 1 / (1 + np.exp(np.clip(-sharpness * inside, -30, 30)))
    return soft


def _spot(x: Floats, y: Floats, radius: np.float32) -> Floats:
    spot: Floats = np.exp(-(x**2 + y**2) / (2 * radius**2))
    return spot


def _noise(generator: Generator, shape: tuple[int, ...], sigma: float) -> Floats:
    return np.float32(sigma) * generator.standard_normal(shape, np.float32)


def _as_bytes(values: Floats) -> Bytes:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _stacked(images: list[Bytes], shape: tuple[int, ...]) -> Bytes:
    return np.stack(images) if images else np.empty((0, *shape), np.uint8)
