"""A bank of augmented views of each training picture, and batches that take one view of each picture.

The teacher is augmented too, so its soft targets belong to views. The source draws a new view whenever it uses a
picture, and asks the teacher for its logits then. Here each picture has a fixed number of views, made once, so that the
teacher's logits can be kept. All arms, seeds and teachers use the same bank.

A view is the source's (Keras's ImageDataGenerator): rotated, sheared, zoomed along each axis, flipped, and made
brighter or darker. Draws are float64, and all that follows is whole numbers: the bank has the same bytes on every
processor.

Shapes: N pictures, V views of each, S x S positions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kdlib.batches import Batch, Batches, Examples
from kdlib.seeds import generator
from kdlib.targets import SoftTargets

RULE = 1  # raised when a byte of a bank changes; it is part of the name of the stored bank
ROTATION, SHEAR = 5.0, 0.02  # degrees; the source's 0.02 is in degrees to Keras, so it shears nothing that can be seen
ZOOM, BRIGHTNESS = 0.1, 0.3  # largest differences from 1
FINE, COARSE = 20, 10  # bits after the point: of the matrix, and of positions and brightness


class Draw(NamedTuple):
    """How one view is made."""

    rotation: float  # degrees
    shear: float  # degrees
    zoom: tuple[float, float]  # along rows and columns
    brightness: float
    flips: tuple[bool, bool]  # left and right, top and bottom


def draw(number: int, view: int) -> Draw:
    """Return the draw of a picture's view, from a random stream of its own; `number` is the picture's."""
    u = torch.rand(7, dtype=torch.float64, generator=generator(view, "view", number)).tolist()
    rotation, shear, rows, columns, brightness = (2 * each - 1 for each in u[:5])
    zoom = (1 + ZOOM * rows, 1 + ZOOM * columns)
    return Draw(ROTATION * rotation, SHEAR * shear, zoom, 1 + BRIGHTNESS * brightness, (u[5] < 0.5, u[6] < 0.5))


def matrix(how: Draw) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the matrix from places in the view to places in the picture, (row, column) from the middle."""
    # rotation [[cos, -sin], [sin, cos]] @ shear [[1, -sin], [0, cos]] @ zoom, as Keras multiplies them
    turn, slant = math.radians(how.rotation), math.radians(how.shear)
    (cos, sin), (down, across) = (math.cos(turn), math.sin(turn)), how.zoom
    first = cos * down, (-cos * math.sin(slant) - sin * math.cos(slant)) * across
    second = sin * down, (-sin * math.sin(slant) + cos * math.cos(slant)) * across
    return first, second


def view_of(picture: Tensor, how: Draw) -> Tensor:
    """Return one view, uint8 (S, S), of a picture uint8 (S, S): bilinear; outside it, the nearest pixel."""
    side = len(picture)
    twice = 2 * torch.arange(side) - (side - 1)  # places from the middle, times 2 so that they are whole numbers
    places = []
    for down, across in matrix(how):
        fine = (round(down * 2**FINE) * twice)[:, None] + round(across * 2**FINE) * twice + ((side - 1) << FINE)
        coarse = (fine + (1 << (FINE - COARSE))) >> (FINE + 1 - COARSE)  # to the nearest; the + 1 undoes the times 2
        places.append(coarse.clamp_(0, (side - 1) << COARSE).int())
    (y, x), (dy, dx) = (p >> COARSE for p in places), (p & ((1 << COARSE) - 1) for p in places)
    # One more row and column, so that every position has a neighbour below and to the right.
    flat, width, one = F.pad(picture.int()[None], (0, 1, 0, 1), "replicate").view(-1), side + 1, 1 << COARSE
    at = (y * width + x).long()
    corners = [flat.take(at + step) for step in (0, 1, width, width + 1)]
    above, below = (left * (one - dx) + right * dx for left, right in (corners[:2], corners[2:]))
    value = (above * (one - dy) + below * dy + (1 << 7)) >> 8  # 2 COARSE - 8 bits after the point
    whole = (value * round(how.brightness * 2**COARSE) + (1 << (3 * COARSE - 9))) >> (3 * COARSE - 8)
    flipped = [axis for axis, flip in zip((1, 0), how.flips, strict=True) if flip]
    result: Tensor = whole.clamp_(max=255).to(torch.uint8).flip(flipped)
    return result


def bank_of(pictures: Tensor, numbers: list[int], views: int) -> Tensor:
    """Return V = `views` views of each picture, uint8 (N * V, 1, S, S), from pictures uint8 (N, 1, S, S).

    Row i * V + v is view v of picture i. `numbers` are the pictures' numbers in the whole data set: a picture has the
    same views in every bank.
    """
    bank = torch.empty(len(pictures) * views, *pictures.shape[1:], dtype=torch.uint8)
    for at, number in enumerate(numbers):
        for view in range(views):
            bank[at * views + view, 0] = view_of(pictures[at, 0], draw(number, view))
    return bank


class Views(Batches):
    """Batches of one view of each picture, with the source's learning rate at each step.

    An epoch has `steps` batches, of passes over all pictures that follow each other without end, as Keras's generators
    do. In each pass, pictures come in a new order, each in a view that is drawn anew. The learning rate falls after
    each step, so the batches set it. All is a function of seed and epoch, so a resumed training goes on as it was.
    """

    def __init__(
        self,
        examples: Examples,
        views: int,
        size: int,
        seed: int,
        steps: int,
        optimizer: torch.optim.Optimizer,
        rate: float,
        decay: float,
        soft: SoftTargets | None = None,
    ) -> None:
        super().__init__(examples, size, seed, soft)
        self.views, self.steps, self.optimizer, self.rate, self.decay = views, steps, optimizer, rate, decay

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return self.steps

    def __call__(self, epoch: int) -> Iterator[Batch]:
        """Yield the epoch's batches."""
        in_a_pass = -(-len(self.examples.inputs) // self.views // self.size)
        for step in range((epoch - 1) * self.steps, epoch * self.steps):
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate / (1 + self.decay * step)
            number, at = divmod(step, in_a_pass)
            yield self._plain(self.order(number)[at * self.size : (at + 1) * self.size])

    def order(self, number: int) -> Tensor:
        """Return the rows (N,) of the bank that a pass takes, in their order."""
        pictures, draws = len(self.examples.inputs) // self.views, generator(self.seed, "order", number)
        order = torch.randperm(pictures, generator=draws)
        rows = order * self.views + torch.randint(self.views, (pictures,), generator=draws)
        return rows.to(self.examples.inputs.device)
