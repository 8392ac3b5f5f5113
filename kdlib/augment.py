"""Draws of rows, plans to mix rows, and flips and shifts of pictures: all from explicit generators."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdlib.checks import (
    check_generator,
    check_number,
    outside_zero_to_one,
    readable,
    row_numbers,
    whole_number,
)
from kdlib.class_labels import class_numbers
from kdlib.errors import KDError

__all__ = ["Mix", "balanced_draw", "flip_and_shift", "mixup", "unmixed"]


@dataclass(frozen=True, eq=False)
class Mix:
    """A plan of N mixed rows: row i is weight[i] * values[first[i]] + (1 - weight[i]) * values[second[i]].

    KDError unless there are as many weights as rows and, on a CPU, all of them are from 0 to 1. KDError also for row
    numbers of another type: torch would take those of uint8 for a mask.
    """

    first: Tensor  # int64 (N,)
    second: Tensor  # int64 (N,)
    weight: Tensor  # float (N,), of the first partner

    def __post_init__(self) -> None:
        """Refuse a plan that mixes nothing sensible (KDError)."""
        shapes = [tuple(part.shape) for part in (self.first, self.second, self.weight)]
        kinds = {self.first.dtype, self.second.dtype}
        if not kinds <= {torch.int32, torch.int64}:
            raise KDError(f"expected row numbers int64, found {', '.join(map(str, kinds))}; use rows.long()")
        outside = outside_zero_to_one(self.weight)
        if outside or shapes != [(len(self.first),)] * 3:
            raise KDError(
                f"expected rows (N,), rows (N,) and weights (N,) from 0 to 1, found shapes {shapes}"
                f"{' and weights outside' if outside else ''}; mixup makes such a plan"
            )

    def __getitem__(self, rows: Any) -> Mix:
        """Return the plan for some of its rows, row numbers (n,) in their order or a mask (N,)."""
        rows = row_numbers(rows, len(self.first))
        return Mix(self.first[rows], self.second[rows], self.weight[rows])

    def blend(self, values: Tensor) -> Tensor:
        """Return the mixed rows (N, ...) of values (any, ...), in the values' floating-point type.

        KDError for values of another type, and for a plan of rows that they do not have.
        """
        if not values.is_floating_point():
            raise KDError(f"expected values of floating point to mix, found {values.dtype}; use values.float()")
        for rows in map(readable, (self.first, self.second)):
            if rows is not None and len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(values):
                raise KDError(
                    f"expected a mix of rows from 0 to {len(values) - 1}, found rows from {int(rows.min())} to "
                    f"{int(rows.max())}; make it for these values, with mixup(torch.arange(len(values)), ...)"
                )
        weight = self.weight.to(values).view(-1, *[1] * (values.ndim - 1))
        return torch.lerp(values.index_select(0, self.second), values.index_select(0, self.first), weight)


def balanced_draw(labels: Any, count: int, classes: int, generator: torch.Generator) -> Tensor:
    """Return row numbers (count,), drawn with replacement, for labels (N,).

    Each draw takes a class, all equally likely, then one of its rows, all equally likely. KDError if a class has no row
    or a label is not a class, and for labels that are not whole numbers (N,).
    """
    check_generator(generator)
    labels = class_numbers(labels)
    count, classes = whole_number("count", count, least=0), whole_number("classes", classes)
    sizes = labels.bincount(minlength=classes).cpu()
    absent = [k for k in range(classes) if sizes[k] == 0]
    if absent or len(sizes) > classes:
        raise KDError(
            f"expected rows of each of the classes 0 to {classes - 1} and of no other, found no row of {absent} "
            f"and labels up to {len(sizes) - 1}; add examples or draw fewer classes"
        )
    drawn = torch.randint(classes, (count,), generator=generator, device="cpu")
    # Float64: the scaled fraction then never rounds up to the number of rows, one past the last row of the class.
    fraction = torch.rand(count, dtype=torch.float64, generator=generator, device="cpu")
    position = (sizes.cumsum(0) - sizes)[drawn] + (fraction * sizes[drawn]).long()
    rows: Tensor = labels.argsort(stable=True)[position.to(labels.device)]
    return rows


def mixup(rows: Any, alpha: float, generator: torch.Generator) -> Mix:
    """Return a plan that mixes row i of rows (N,) with row N-1-i.

    Each pair has its own weight from Beta(alpha, alpha) (Zhang et al. 2018). KDError unless alpha is above 0.
    """
    # Twice a number near the largest one is no number.
    alpha = float(check_number("alpha", alpha, 0, 1e300, "0.2 is usual; `unmixed` mixes nothing", above=True))
    rows = row_numbers(rows)
    check_generator(generator)
    # torch's Beta takes no generator. NumPy's computes with logarithms if alpha is small, so it never gives 0/0.
    seed = int(torch.randint(2**63 - 1, (), generator=generator, device="cpu"))
    weight = torch.from_numpy(np.random.default_rng(seed).beta(alpha, alpha, len(rows)))
    return Mix(rows, rows.flip(0), weight.float().to(rows.device))


def unmixed(rows: Any) -> Mix:
    """Return a plan that keeps rows (N,) as they are, for class-balanced draws without mixing."""
    rows = row_numbers(rows)
    return Mix(rows, rows, torch.ones(len(rows), device=rows.device))


def flip_and_shift(pictures: Tensor, largest: int, generator: torch.Generator) -> Tensor:
    """Return pictures (B, C, H, W), each mirrored with probability 1/2 and shifted along both axes.

    A shift is 0, 1, ... or `largest` pixels, all equally likely, with a random sign. The gap is filled with the pixels
    of the border. KDError for another shape, and for a shift that is negative or leaves nothing of a picture.
    """
    check_generator(generator)
    largest = whole_number("largest", largest)  # twice a number of 8 bits overflows
    if pictures.ndim != 4 or not 0 <= largest < min(pictures.shape[2:]):
        raise KDError(
            "expected pictures (B, C, H, W) and a shift from 0 to less than H and W, found "
            f"{tuple(pictures.shape)} and {largest}; use unsqueeze(1) for pictures without channels"
        )
    count, channels, height, width = pictures.shape
    draws = torch.randint(0, 2 * (largest + 1), (count, 2), generator=generator, device="cpu")
    shift = (draws // 2) * (1 - 2 * (draws % 2))
    flip = torch.rand(count, generator=generator, device="cpu") < 0.5
    rows = (torch.arange(height, device="cpu") - shift[:, :1]).clamp(0, height - 1)
    columns = (torch.arange(width, device="cpu") - shift[:, 1:]).clamp(0, width - 1)
    columns = torch.where(flip.unsqueeze(1), columns.flip(1), columns)
    picture = torch.arange(count, device="cpu").view(-1, 1, 1, 1)
    channel = torch.arange(channels, device="cpu").view(1, -1, 1, 1)
    where = (picture, channel, rows.view(count, 1, height, 1), columns.view(count, 1, 1, width))
    return pictures[tuple(index.to(pictures.device) for index in where)]
